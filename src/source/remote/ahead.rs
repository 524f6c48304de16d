//! Objects that readers have announced: from the first read of any of them on they are fetched whole, as far as the budget goes, and are kept.

use super::disk::{Disk, Entry, OPEN_MAX};
use super::object::Object;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// An announcement, until it is dropped.
#[derive(Debug)]
pub struct Ahead {
    now: Vec<Arc<Object>>,
    next: Vec<Arc<Object>>,
    /// What is fetched whole and not evicted; `None` until one of the objects is read.
    kept: Mutex<Option<Vec<Kept>>>,
}

/// An object, and its open entry, which nobody evicts.
type Kept = (Arc<Object>, Arc<Entry>);

impl Ahead {
    /// The announcement that objects are read from now on, those of `now` before those of `next`.
    pub fn new(now: Vec<Arc<Object>>, next: Vec<Arc<Object>>) -> Self {
        Self { now, next, kept: Mutex::default() }
    }

    fn objects(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.now.iter().chain(&self.next)
    }

    fn kept(&self) -> MutexGuard<'_, Option<Vec<Kept>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The announcements of a process.
#[derive(Debug, Default)]
pub struct Announced {
    all: Mutex<Vec<Weak<Ahead>>>,
    /// Whether of one of them nothing was read yet.
    is_waiting: AtomicBool,
    has_warned: AtomicBool,
}

impl Announced {
    /// Takes an announcement.
    pub fn add(&self, ahead: &Arc<Ahead>) {
        let mut all = self.all();
        all.retain(|ahead| ahead.strong_count() > 0);
        all.push(Arc::downgrade(ahead));
        self.is_waiting.store(true, Ordering::Release);
    }

    /// The objects that are to be fetched whole, in this order, now that `object` is read.
    pub fn read(&self, object: &Arc<Object>, disk: &Disk) -> Vec<Arc<Object>> {
        if !self.is_waiting.load(Ordering::Acquire) {
            return Vec::new();
        }
        // Locked to the end, so that no announcement comes between the look and the note that none waits.
        let locked = self.all();
        let all: Vec<Arc<Ahead>> = locked.iter().filter_map(Weak::upgrade).collect();
        let is_begun = |ahead: &Arc<Ahead>| ahead.kept().is_some();
        let mut wanted = Vec::new();
        for ahead in &all {
            if !is_begun(ahead) && ahead.objects().any(|other| Arc::ptr_eq(other, object)) {
                wanted.extend(self.begin(ahead, &all, disk));
            }
        }
        if all.iter().all(is_begun) {
            self.is_waiting.store(false, Ordering::Release);
        }
        wanted
    }

    /// Keeps as many objects of an announcement as fit beside those of the others.
    fn begin(&self, ahead: &Ahead, all: &[Arc<Ahead>], disk: &Disk) -> Vec<Arc<Object>> {
        let mut seen = HashSet::new();
        let mut bytes = 0;
        for ahead in all {
            for (object, _) in ahead.kept().iter().flatten() {
                bytes += if seen.insert(object.key) { object.found.bytes } else { 0 };
            }
        }
        let (mut kept, mut is_failing) = (Vec::new(), false);
        for object in ahead.objects().take(OPEN_MAX) {
            bytes += if seen.insert(object.key) { object.found.bytes } else { 0 };
            if bytes > disk.budget_bytes() {
                break;
            }
            let Ok(entry) = disk.entry(object.key, &object.found) else {
                // Whoever reads is told.
                is_failing = true;
                break;
            };
            kept.push((Arc::clone(object), entry));
        }
        if kept.len() < ahead.now.len() && !is_failing && !self.has_warned.swap(true, Ordering::Relaxed) {
            let needed: u64 = ahead.now.iter().map(|object| object.found.bytes).sum();
            tracing::warn!(
                "of the {} shards that are read at a time ({} MB), {} are prefetched and kept: the disk cache takes {} MB and {OPEN_MAX} shards, and what \
                 does not fit may be fetched again and again (give --disk-cache more, or shuffle fewer shards at a time)",
                ahead.now.len(),
                needed / 1_000_000,
                kept.len(),
                disk.budget_bytes() / 1_000_000
            );
        }
        let wanted = kept.iter().map(|(object, _)| Arc::clone(object)).collect();
        *ahead.kept() = Some(kept);
        wanted
    }

    fn all(&self) -> MutexGuard<'_, Vec<Weak<Ahead>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

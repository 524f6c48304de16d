//! Notices when another program opens or changes a cache file: an inotify watch of one inode, on this machine.
//!
//! `open` raises its event before it returns, so before anything can be written. `write`, `truncate` and `fallocate` raise theirs after the change and before they
//! return; stores through a mapping, this daemon's own ones included, raise none. The kernel merges equal events, so this daemon's own changes are made in
//! [`Watch::change`], which takes their event.

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// A watch of one file.
pub struct Watch {
    inotify: OwnedFd,
    /// Whether another program has opened the file.
    opened: AtomicBool,
    /// Whether another program has changed the file.
    changed: AtomicBool,
    /// Held while this daemon changes the file, or takes events.
    changing: Mutex<()>,
}

impl Watch {
    /// Watches a file from now on.
    ///
    /// # Errors
    /// When the user has too many inotify instances, or /proc is not mounted.
    pub fn new(file: &File) -> Result<Self, Errno> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        inotify::add_watch(
            &inotify,
            format!("/proc/self/fd/{}", file.as_raw_fd()),
            WatchFlags::OPEN | WatchFlags::MODIFY,
        )?;
        Ok(Self { inotify, opened: AtomicBool::new(false), changed: AtomicBool::new(false), changing: Mutex::new(()) })
    }

    /// Whether another program has changed the file.
    pub fn is_changed(&self) -> bool {
        self.look();
        self.changed.load(Ordering::Relaxed)
    }

    /// Whether another program has opened the file since it was watched, and so may be writing to it.
    pub fn is_opened(&self) -> bool {
        self.look();
        self.opened.load(Ordering::Relaxed)
    }

    /// Takes the events so far, or waits until whoever takes them has noted them.
    fn look(&self) {
        let _idle = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.take_events(true);
    }

    /// Forgets the changes so far, as this daemon's own.
    pub fn forget_changes(&self) {
        self.take_events(false);
    }

    /// Makes a change of this daemon's own. One that another program makes meanwhile is not noticed.
    pub fn change<T>(&self, change: impl FnOnce() -> T) -> T {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.take_events(true);
        let result = change();
        self.take_events(false);
        result
    }

    /// Takes the events so far. Of changes, `foreign` says that another program made them.
    fn take_events(&self, foreign: bool) {
        let mut buffer = [MaybeUninit::uninit(); 512];
        let mut events = inotify::Reader::new(&self.inotify, &mut buffer);
        while let Ok(event) = events.next() {
            let flags = event.events();
            if flags.contains(ReadFlags::OPEN) {
                self.opened.store(true, Ordering::Relaxed);
            }
            if flags.contains(ReadFlags::MODIFY) && foreign || flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                self.changed.store(true, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn only_changes_that_others_make_are_reported() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let watch = Watch::new(file.as_file()).unwrap();
        watch.change(|| file.as_file().set_len(10)).unwrap();
        assert!(!watch.is_opened());
        watch.change(|| drop(std::fs::read(file.path())));
        assert!(watch.is_opened() && !watch.is_changed());
        file.write_all(b"x").unwrap();
        // Also one that comes just before this daemon's own.
        watch.change(|| file.as_file().set_len(20)).unwrap();
        assert!(watch.is_changed() && watch.is_changed());
    }
}

//! The readers of a ring, as the daemon keeps them: who comes, who goes, and what writer and control plane share.

use super::READERS_MAX;
use super::error::RingError;
use super::layout::BUCKETS;
use super::protocol::is_lawful;
use super::region::{CursorPage, Data};
use super::wake::Futex;
use crate::spec::Delivery;
use crate::sync::Ordering;
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Number of a reader, unique in its ring.
pub type ReaderId = u64;

/// Who waits for whom.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Whether the slowest or the fastest reader sets the pace.
    pub delivery: Delivery,
    /// How long a reader may keep others waiting at a stretch before it is evicted.
    pub max_lag: Duration,
}

impl Pace {
    /// Of a ring with one reader.
    pub const PRIVATE: Self = Self { delivery: Delivery::Lossless, max_lag: Duration::MAX };
}

pub(super) struct ReaderEntry {
    pub(super) id: ReaderId,
    pub(super) cursor: CursorPage,
    /// Whether it stands for readers that are still to come, and is none itself.
    pub(super) is_hold: bool,
    /// The last `released` that was found lawful; only the writer stores it.
    pub(super) released: AtomicU64,
}

impl ReaderEntry {
    /// Takes over what its cursor says now, where that can be.
    pub(super) fn look(&self, published: u64, delivery: Delivery) -> Result<(), String> {
        let (before, now) = (self.released.load(Ordering::Relaxed), self.cursor.words().released());
        if !is_lawful(before, now, published) {
            return Err(format!("{now} batches released, which must be {before} to {published}"));
        }
        if delivery == Delivery::Latest && self.leases_too_many() {
            return Err("several slots leased, of which there may be one".to_owned());
        }
        self.released.store(now, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the reader of a feed that lends one batch at a time holds more. Its bits are counted one word after the other, so that
    /// a lease which moves meanwhile may count twice, but not always.
    fn leases_too_many(&self) -> bool {
        (0..100).all(|_| self.cursor.words().leases() > 1)
    }
}

/// A reader that was put out, and is still there.
pub(super) struct Evicted {
    pub(super) reader: Arc<ReaderEntry>,
    /// The slots that it had leased then and may still read.
    pub(super) kept: Vec<u32>,
}

/// The readers of a ring.
#[derive(Default)]
pub(super) struct Readers {
    /// Those that the writer delivers to.
    pub(super) live: Vec<Arc<ReaderEntry>>,
    /// Those that it does not deliver to any more.
    pub(super) evicted: Vec<Evicted>,
    /// Whether the writer has found nobody to deliver to, or has ended.
    pub(super) closed: bool,
}

impl Readers {
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<ReaderEntry>> {
        self.live.iter().chain(self.evicted.iter().map(|evicted| &evicted.reader))
    }
}

/// What writer and control plane share.
pub(super) struct Shared {
    pub(super) data: Data,
    pub(super) pace: Pace,
    pub(super) readers: Mutex<Readers>,
    pub(super) next_reader: AtomicU64,
    pub(super) stop: AtomicBool,
}

impl Shared {
    pub(super) fn readers(&self) -> MutexGuard<'_, Readers> {
        // The lists are consistent between any two statements, so a panic elsewhere does not spoil them.
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn published(&self) -> u64 {
        self.data.words().published.load(Ordering::Relaxed)
    }

    /// Notes that a live reader has gone.
    pub(super) fn count_out(&self, reader: &ReaderEntry) {
        if !reader.is_hold {
            self.data.header().readers.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Wakes the writer, wherever it waits, after something that it looks at has changed.
    pub(super) fn dismiss(&self, readers: &Readers) {
        for reader in readers.all() {
            self.data.words().dismiss(reader.cursor.words(), &Futex);
        }
    }
}

/// What is to be known of a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReaderStatus {
    /// Which.
    pub id: ReaderId,
    /// Batches that it has released, as its cursor says.
    pub released: u64,
    /// Batches that it has read.
    pub read: u64,
    /// Batches that it has skipped.
    pub skipped: u64,
    /// Time for which it had nothing to read.
    pub waited: Duration,
    /// Batches by how long it waited for each, [`bucket_max_ns`](super::bucket_max_ns) long at most.
    pub waits: [u64; BUCKETS],
    /// Batches that it waited for by the time from their publication until it had them.
    pub handovers: [u64; BUCKETS],
    /// Sum of these times.
    pub handed_over: Duration,
    /// Whether it was evicted.
    pub evicted: bool,
}

/// The control plane's hold on a ring.
#[derive(Clone)]
pub struct RingHandle(pub(super) Arc<Shared>);

impl RingHandle {
    /// The memory that readers map read-only.
    pub fn data(&self) -> Arc<File> {
        self.0.data.descriptor()
    }

    /// Makes a cursor for a new reader, from which on the writer waits for it. It begins with the batch that `choose` names when
    /// told how many are published, `None` being one before the first; nothing is published meanwhile. Returns the reader's number and the
    /// cursor's memory.
    ///
    /// # Errors
    /// When that batch was overwritten, the ring is full of readers or has ended, or the cursor cannot be made.
    pub fn add_reader(&self, choose: impl FnOnce(u64) -> Option<u64>) -> Result<(ReaderId, Arc<File>), RingError> {
        self.add(choose, false)
    }

    /// Keeps every batch from `seq` on in the ring, for readers that are still to come, until it is removed as a reader is.
    ///
    /// # Errors
    /// As for a reader.
    pub fn hold(&self, seq: u64) -> Result<ReaderId, RingError> {
        self.add(|_| Some(seq), true).map(|(id, _)| id)
    }

    fn add(&self, choose: impl FnOnce(u64) -> Option<u64>, is_hold: bool) -> Result<(ReaderId, Arc<File>), RingError> {
        let Shared { data, pace, next_reader, .. } = &*self.0;
        let mut readers = self.0.readers();
        if readers.closed {
            return Err(RingError::Closed);
        }
        let count = readers.all().filter(|reader| !reader.is_hold).count() + 1;
        if count > READERS_MAX {
            return Err(RingError::TooManyReaders(READERS_MAX));
        }
        if pace.delivery == Delivery::Latest && count >= data.slots as usize {
            return Err(RingError::TooFewSlots { slots: data.slots, readers: count });
        }
        // Under the lock, as is publishing and claiming a slot.
        let published = self.0.published();
        let is_there = |seq| data.words().holds.iter().any(|holds| holds.load(Ordering::Relaxed) == seq);
        let seq = choose(published).filter(|&seq| (seq..published).all(is_there));
        let seq = seq.ok_or(RingError::Gone { published })?;
        let id = next_reader.fetch_add(1, Ordering::Relaxed);
        let cursor = CursorPage::create(seq)?;
        let descriptor = cursor.descriptor();
        let entry = ReaderEntry { id, cursor, is_hold, released: AtomicU64::new(seq) };
        readers.live.push(Arc::new(entry));
        if !is_hold {
            data.header().readers.fetch_add(1, Ordering::Relaxed);
        }
        self.0.dismiss(&readers);
        Ok((id, descriptor))
    }

    /// Takes a reader off the list: its leases are free, and the writer no longer waits for it.
    pub fn remove_reader(&self, id: ReaderId) {
        let mut readers = self.0.readers();
        let Readers { live, evicted, .. } = &mut *readers;
        let reader = if let Some(at) = live.iter().position(|reader| reader.id == id) {
            let reader = live.swap_remove(at);
            self.0.count_out(&reader);
            reader
        } else if let Some(at) = evicted.iter().position(|evicted| evicted.reader.id == id) {
            evicted.swap_remove(at).reader
        } else {
            return;
        };
        self.0.dismiss(&readers);
        self.0.data.words().dismiss(reader.cursor.words(), &Futex);
    }

    /// Stops the writer, wherever it waits.
    pub fn stop(&self) {
        self.0.stop.store(true, Ordering::SeqCst);
        self.0.dismiss(&self.0.readers());
    }

    /// Batches published so far.
    pub fn published(&self) -> u64 {
        self.0.published()
    }

    /// The readers that are attached.
    pub fn readers(&self) -> Vec<ReaderStatus> {
        let readers = self.0.readers();
        let status = |(reader, evicted): (&Arc<ReaderEntry>, bool)| {
            let page = reader.cursor.page();
            let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
            ReaderStatus {
                id: reader.id,
                released: load(&page.released),
                read: load(&page.read),
                skipped: load(&page.skipped),
                waited: Duration::from_nanos(load(&page.waited_ns)),
                waits: page.waits.each_ref().map(load),
                handovers: page.handovers.each_ref().map(load),
                handed_over: Duration::from_nanos(load(&page.handover_ns)),
                evicted,
            }
        };
        // A cursor's own word is the reader's to write.
        let live = readers.live.iter().filter(|reader| !reader.is_hold).map(|reader| (reader, false));
        live.chain(readers.evicted.iter().map(|evicted| (&evicted.reader, true))).map(status).collect()
    }

    /// Bytes of shared memory that the ring takes.
    pub fn bytes(&self) -> u64 {
        self.0.data.bytes()
    }

    /// Whether no reader can join any more.
    pub fn is_closed(&self) -> bool {
        self.0.readers().closed
    }
}

//! The ring's protocol under every interleaving: `src/ring/protocol.rs` itself, compiled against loom's atomics.
#![allow(missing_docs, dead_code, reason = "the protocol's source is the library's, where it is documented and used")]

mod sync {
    pub use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
}

#[path = "../src/ring/protocol.rs"]
mod protocol;

use loom::cell::UnsafeCell;
use loom::sync::atomic::AtomicBool;
use loom::sync::{Arc, Condvar, Mutex};
use protocol::{CursorWords, NO_BATCH, Sleeper, WriterWords, has_room};
use sync::{AtomicU32, AtomicU64, Ordering};

const SLOTS: u32 = 2;

/// A futex: sleeping looks at the word and waits as one step. A wake-up that is lost deadlocks, which loom reports.
#[derive(Default)]
struct Futex {
    lock: Mutex<()>,
    changed: Condvar,
}

impl Sleeper for Futex {
    fn sleep(&self, events: &[(&AtomicU32, u32)]) {
        let guard = self.lock.lock().unwrap();
        if events.iter().all(|(event, seen)| event.load(Ordering::SeqCst) == *seen) {
            drop(self.changed.wait(guard).unwrap());
        }
    }

    fn wake(&self, _: &AtomicU32) {
        drop(self.lock.lock().unwrap());
        self.changed.notify_all();
    }

    fn spin(&self, _: u32) -> bool {
        false
    }
}

#[derive(Default)]
struct Cursor {
    released: AtomicU64,
    event: AtomicU32,
    waiting: AtomicU32,
    evicted: AtomicU32,
    held: [AtomicU64; 1],
}

impl Cursor {
    fn words(&self) -> CursorWords<'_> {
        let Self { released, event, waiting, evicted, held } = self;
        CursorWords { released, event, reader_waiting: waiting, evicted, held }
    }
}

struct Ring {
    published: AtomicU64,
    event: AtomicU32,
    ended: AtomicU32,
    writer_waiting: AtomicU32,
    holds: [AtomicU64; SLOTS as usize],
    cursor: Cursor,
    gone: AtomicBool,
    slots: [UnsafeCell<u64>; SLOTS as usize],
    futex: Futex,
}

impl Ring {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            published: AtomicU64::new(0),
            event: AtomicU32::new(0),
            ended: AtomicU32::new(0),
            writer_waiting: AtomicU32::new(0),
            holds: [AtomicU64::new(NO_BATCH), AtomicU64::new(NO_BATCH)],
            cursor: Cursor::default(),
            gone: AtomicBool::new(false),
            slots: [UnsafeCell::new(u64::MAX), UnsafeCell::new(u64::MAX)],
            futex: Futex::default(),
        })
    }

    fn words(&self) -> WriterWords<'_> {
        let Self { published, event, ended, writer_waiting, holds, .. } = self;
        WriterWords { published, event, ended, writer_waiting, holds }
    }

    fn cursor(&self) -> CursorWords<'_> {
        self.cursor.words()
    }

    /// Lossless delivery to a reader that is waited for until it is gone.
    fn write(&self, seq: u64) {
        let gone = || self.gone.load(Ordering::SeqCst);
        let done = || has_room(seq, self.cursor.released.load(Ordering::Acquire), SLOTS) || gone();
        self.words().await_cursors(&[self.cursor()], done, &self.futex);
        if gone() {
            return;
        }
        assert!(self.words().claim((seq % u64::from(SLOTS)) as u32, std::iter::empty()));
        self.fill(seq, (seq % u64::from(SLOTS)) as usize);
    }

    fn fill(&self, seq: u64, slot: usize) {
        // loom reports any access that is not ordered before or after this one.
        self.slots[slot].with_mut(|slot| {
            // SAFETY: checked by loom.
            #[allow(unsafe_code, reason = "loom's cell")]
            unsafe {
                *slot = seq;
            }
        });
        self.holds[slot].store(seq, Ordering::Relaxed);
        self.words().publish(seq + 1, std::iter::once(self.cursor()), &self.futex);
    }

    fn read(&self, seq: u64) -> Option<u64> {
        if !self.words().await_published(seq, self.cursor(), || false, &self.futex) {
            return None;
        }
        let slot = self.words().lease(seq, self.cursor())?;
        let value = self.look(slot);
        self.cursor().let_go(slot);
        self.words().release(seq + 1, self.cursor(), &self.futex);
        Some(value)
    }

    /// Reads the first two batches, as far as they are there still.
    fn read_what_is_there(&self) {
        for seq in 0..2 {
            if let Some(slot) = self.words().lease(seq, self.cursor()) {
                assert_eq!(self.look(slot), seq);
                self.cursor().let_go(slot);
            }
        }
    }

    fn look(&self, slot: u32) -> u64 {
        self.slots[slot as usize].with(|slot| {
            // SAFETY: checked by loom.
            #[allow(unsafe_code, reason = "loom's cell")]
            unsafe {
                *slot
            }
        })
    }
}

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn every_batch_is_read_whole_and_in_order_and_the_end_is_seen() {
    check(|| {
        let ring = Ring::new();
        let writer = {
            let ring = Arc::clone(&ring);
            loom::thread::spawn(move || {
                for seq in 0..3 {
                    ring.write(seq);
                }
                ring.words().end(1, std::iter::once(ring.cursor()), &ring.futex);
            })
        };
        for seq in 0..3 {
            assert_eq!(ring.read(seq), Some(seq));
        }
        assert_eq!(ring.read(3), None);
        writer.join().unwrap();
    });
}

#[test]
fn a_writer_that_waits_for_a_reader_that_goes_is_woken() {
    check(|| {
        let ring = Ring::new();
        let writer = {
            let ring = Arc::clone(&ring);
            loom::thread::spawn(move || {
                for seq in 0..3 {
                    ring.write(seq);
                }
            })
        };
        ring.gone.store(true, Ordering::SeqCst);
        ring.words().dismiss(ring.cursor(), &ring.futex);
        writer.join().unwrap();
    });
}

/// Delivery latest: the writer takes any slot that is not leased, and waits for nobody.
#[test]
fn what_is_leased_is_not_overwritten_by_a_writer_that_does_not_wait() {
    check(|| {
        let ring = Ring::new();
        ring.fill(0, 0);
        ring.fill(1, 1);
        let writer = {
            let ring = Arc::clone(&ring);
            loom::thread::spawn(move || {
                for seq in 2..4 {
                    let claim = |slot: &u32| ring.words().claim(*slot, std::iter::once(ring.cursor()));
                    // One reader leases one slot of two; but it may go from one to the other between two looks.
                    let free = loop {
                        match (0..SLOTS).find(claim) {
                            Some(free) => break free,
                            None => loom::thread::yield_now(),
                        }
                    };
                    ring.fill(seq, free as usize);
                }
            })
        };
        ring.read_what_is_there();
        writer.join().unwrap();
    });
}

#[test]
fn what_an_evicted_reader_has_leased_is_not_overwritten_and_it_leases_nothing_more() {
    check(|| {
        let ring = Ring::new();
        ring.fill(0, 0);
        ring.fill(1, 1);
        let writer = {
            let ring = Arc::clone(&ring);
            loom::thread::spawn(move || {
                ring.cursor().evict(1);
                for slot in 0..SLOTS {
                    if ring.words().claim(slot, std::iter::once(ring.cursor())) {
                        ring.fill(2 + u64::from(slot), slot as usize);
                    }
                }
            })
        };
        ring.read_what_is_there();
        writer.join().unwrap();
        assert_eq!(ring.words().lease(1, ring.cursor()), None);
    });
}

/// Two readers, and a writer that sleeps on both: whichever releases wakes it.
#[test]
fn a_writer_that_waits_for_any_of_two_is_woken_by_either() {
    check(|| {
        let (ring, other) = (Ring::new(), Arc::new(Cursor::default()));
        let writer = {
            let (ring, other) = (Arc::clone(&ring), Arc::clone(&other));
            loom::thread::spawn(move || {
                let moved = |cursor: CursorWords<'_>| cursor.released.load(Ordering::Acquire) > 0;
                let done = || moved(ring.cursor()) || moved(other.words());
                ring.words().await_cursors(&[ring.cursor(), other.words()], done, &ring.futex);
            })
        };
        ring.words().release(1, other.words(), &ring.futex);
        writer.join().unwrap();
    });
}

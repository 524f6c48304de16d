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
use protocol::{CursorWords, Sleeper, WriterWords, has_room, slot_of};
use sync::{AtomicU32, AtomicU64, Ordering};

const SLOTS: u32 = 2;

/// A futex: sleeping looks at the word and waits as one step. A wake-up that is lost deadlocks, which loom reports.
#[derive(Default)]
struct Futex {
    lock: Mutex<()>,
    changed: Condvar,
}

impl Sleeper for Futex {
    fn sleep(&self, event: &AtomicU32, seen: u32) {
        let guard = self.lock.lock().unwrap();
        if event.load(Ordering::SeqCst) == seen {
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

struct Ring {
    published: AtomicU64,
    event: AtomicU32,
    ended: AtomicU32,
    writer_waiting: AtomicU32,
    released: AtomicU64,
    cursor_event: AtomicU32,
    reader_waiting: AtomicU32,
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
            released: AtomicU64::new(0),
            cursor_event: AtomicU32::new(0),
            reader_waiting: AtomicU32::new(0),
            gone: AtomicBool::new(false),
            slots: [UnsafeCell::new(u64::MAX), UnsafeCell::new(u64::MAX)],
            futex: Futex::default(),
        })
    }

    fn words(&self) -> WriterWords<'_> {
        let Self { published, event, ended, writer_waiting, .. } = self;
        WriterWords { published, event, ended, writer_waiting }
    }

    fn cursor(&self) -> CursorWords<'_> {
        let Self { released, cursor_event: event, reader_waiting, .. } = self;
        CursorWords { released, event, reader_waiting }
    }

    fn write(&self, seq: u64) {
        let gone = || self.gone.load(Ordering::SeqCst);
        let enough = |released| has_room(seq, released, SLOTS);
        self.words().await_room(self.cursor(), enough, gone, &self.futex);
        if gone() {
            return;
        }
        // loom reports any access that is not ordered before or after this one.
        self.slots[slot_of(seq, SLOTS) as usize].with_mut(|slot| {
            // SAFETY: checked by loom.
            #[allow(unsafe_code, reason = "loom's cell")]
            unsafe {
                *slot = seq;
            }
        });
        self.words().publish(seq + 1, std::iter::once(self.cursor()), &self.futex);
    }

    fn read(&self, seq: u64) -> Option<u64> {
        if !self.words().await_published(seq, self.cursor(), || false, &self.futex) {
            return None;
        }
        let value = self.slots[slot_of(seq, SLOTS) as usize].with(|slot| {
            // SAFETY: checked by loom.
            #[allow(unsafe_code, reason = "loom's cell")]
            unsafe {
                *slot
            }
        });
        self.words().release(seq + 1, self.cursor(), &self.futex);
        Some(value)
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

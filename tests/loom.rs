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

/// Futexes: sleeping looks at the words and waits as one step, and whoever wakes a word wakes those who sleep on it and nobody else.
/// A wake-up that is lost deadlocks, which loom reports.
#[derive(Default)]
struct Futex {
    sleepers: Mutex<Vec<Asleep>>,
    woken: Condvar,
}

struct Asleep {
    on: Vec<*const AtomicU32>,
    woken: bool,
}

// Addresses only, to tell words apart.
#[allow(unsafe_code, reason = "pointers that nobody follows")]
// SAFETY: they are compared and never followed.
unsafe impl Send for Asleep {}

impl Sleeper for Futex {
    fn sleep(&self, events: &[(&AtomicU32, u32)]) {
        let mut sleepers = self.sleepers.lock().unwrap();
        if events.iter().any(|(event, seen)| event.load(Ordering::SeqCst) != *seen) {
            return;
        }
        let own = sleepers.len();
        let on = events.iter().map(|&(event, _)| std::ptr::from_ref(event)).collect();
        sleepers.push(Asleep { on, woken: false });
        while !sleepers[own].woken {
            sleepers = self.woken.wait(sleepers).unwrap();
        }
    }

    fn wake(&self, event: &AtomicU32) {
        let mut sleepers = self.sleepers.lock().unwrap();
        sleepers
            .iter_mut()
            .filter(|asleep| asleep.on.contains(&std::ptr::from_ref(event)))
            .for_each(|asleep| asleep.woken = true);
        self.woken.notify_all();
    }

    fn spin(&self, _: u32, _: bool) -> bool {
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
    near: AtomicU64,
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
            near: AtomicU64::new(0),
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
        let Self { published, near, event, ended, writer_waiting, holds, .. } = self;
        WriterWords { published, near, event, ended, writer_waiting, holds }
    }

    fn cursor(&self) -> CursorWords<'_> {
        self.cursor.words()
    }

    /// Lossless delivery to a reader that is waited for until it is gone.
    fn write(&self, seq: u64) {
        let gone = || self.gone.load(Ordering::SeqCst);
        self.until(&[self.cursor()], || has_room(seq, self.cursor().released(), SLOTS) || gone());
        if gone() {
            return;
        }
        assert!(self.words().claim((seq % u64::from(SLOTS)) as u32, || false));
        self.fill(seq, (seq % u64::from(SLOTS)) as usize);
    }

    /// Waits as `RingWriter::next_slot` does.
    fn until(&self, cursors: &[CursorWords<'_>], done: impl Fn() -> bool) {
        loop {
            let noted: Vec<_> = cursors.iter().map(|cursor| (cursor.event, cursor.note())).collect();
            if done() {
                return;
            }
            self.words().await_cursors(&noted, || false, &self.futex);
        }
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
        let slot = self.words().lease(seq, self.cursor(), &self.futex)?;
        let value = self.look(slot);
        self.words().end_lease(slot, Some(seq + 1), self.cursor(), &self.futex);
        Some(value)
    }

    /// Reads the first two batches, as far as they are there still.
    fn read_what_is_there(&self) {
        for seq in 0..2 {
            if let Some(slot) = self.words().lease(seq, self.cursor(), &self.futex) {
                assert_eq!(self.look(slot), seq);
                self.words().end_lease(slot, None, self.cursor(), &self.futex);
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

/// Readers are called to a batch before it is there, and to one that never comes.
#[test]
fn a_reader_that_was_called_early_still_learns_of_the_batch_and_of_the_end() {
    check(|| {
        let ring = Ring::new();
        let writer = {
            let ring = Arc::clone(&ring);
            loom::thread::spawn(move || {
                let call = |seq| ring.words().call(seq, std::iter::once(ring.cursor()), &ring.futex);
                call(0);
                ring.write(0);
                call(1);
                ring.words().end(1, std::iter::once(ring.cursor()), &ring.futex);
            })
        };
        assert_eq!((ring.read(0), ring.read(1)), (Some(0), None));
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

/// Delivery latest: the writer takes any slot that is not leased. One reader leases one slot of two; but it may go from one to the
/// other between two looks, so that the writer finds both leased, and must be woken.
#[test]
fn what_is_leased_is_not_overwritten_and_a_writer_that_finds_all_leased_is_woken() {
    check(|| {
        let ring = Ring::new();
        ring.fill(0, 0);
        ring.fill(1, 1);
        let writer = {
            let ring = Arc::clone(&ring);
            loom::thread::spawn(move || {
                for seq in 2..4 {
                    let claim = |slot: &u32| ring.words().claim(*slot, || ring.cursor().has_leased(*slot));
                    let free = std::cell::Cell::new(None);
                    ring.until(&[ring.cursor()], || {
                        free.set((0..SLOTS).find(claim));
                        free.get().is_some()
                    });
                    ring.fill(seq, free.get().unwrap() as usize);
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
                    if ring.words().claim(slot, || ring.cursor().has_leased(slot)) {
                        ring.fill(2 + u64::from(slot), slot as usize);
                    }
                }
            })
        };
        ring.read_what_is_there();
        writer.join().unwrap();
        assert_eq!(ring.words().lease(1, ring.cursor(), &ring.futex), None);
    });
}

/// Sync point G. A published batch whose slot is gone means that this reader was evicted: it must not see the one without the other, or it
/// would report a damaged ring.
#[test]
fn a_reader_that_finds_its_batch_overwritten_sees_that_it_was_evicted() {
    check(|| {
        let ring = Ring::new();
        ring.fill(0, 0);
        ring.fill(1, 1);
        let writer = {
            let ring = Arc::clone(&ring);
            loom::thread::spawn(move || {
                ring.cursor().evict(1);
                if ring.words().claim(0, || ring.cursor().has_leased(0)) {
                    ring.fill(2, 0);
                }
            })
        };
        match ring.words().lease(0, ring.cursor(), &ring.futex) {
            Some(slot) => assert_eq!(ring.look(slot), 0),
            None => assert_ne!(ring.cursor().eviction(), 0, "the slot was seen overwritten, the eviction was not"),
        }
        writer.join().unwrap();
    });
}

/// Delivery latest with a reader that follows: the writer overwrites whatever is not leased, and the reader goes on with the oldest batch that
/// is still there, or past those that are not, and so reaches the last one.
#[test]
fn a_reader_of_an_overwriting_ring_reads_whole_batches_in_order_up_to_the_last() {
    const BATCHES: u64 = 3;
    check(|| {
        let ring = Ring::new();
        ring.fill(0, 0);
        ring.fill(1, 1);
        let writer = {
            let ring = Arc::clone(&ring);
            loom::thread::spawn(move || {
                for seq in 2..BATCHES {
                    // One reader with one lease leaves one of two slots free: the oldest that is not leased.
                    let claim = |slot: &u32| ring.words().claim(*slot, || ring.cursor().has_leased(*slot));
                    let oldest = (seq % u64::from(SLOTS)) as u32;
                    let free = std::cell::Cell::new(None);
                    ring.until(&[ring.cursor()], || {
                        free.set([oldest, 1 - oldest].iter().copied().find(|slot| claim(slot)));
                        free.get().is_some()
                    });
                    ring.fill(seq, free.get().unwrap() as usize);
                }
            })
        };
        let (mut next, mut last) = (0, None);
        while next < BATCHES {
            assert!(ring.words().await_published(next, ring.cursor(), || false, &ring.futex));
            let published = ring.words().published();
            let lease = |seq| Some((seq, ring.words().lease(seq, ring.cursor(), &ring.futex)?));
            let found = (next..published).find_map(lease);
            assert_eq!(ring.cursor().eviction(), 0);
            next = found.map_or(published, |(seq, _)| seq + 1);
            if let Some((seq, slot)) = found {
                assert_eq!(ring.look(slot), seq);
                ring.words().end_lease(slot, Some(next), ring.cursor(), &ring.futex);
                last = Some(seq);
            } else {
                ring.words().release(next, ring.cursor(), &ring.futex);
            }
        }
        // Nothing is written after the last batch, so nothing makes a reader miss it.
        assert_eq!(last, Some(BATCHES - 1));
        writer.join().unwrap();
    });
}

/// The writer waits for a slot that an evicted reader keeps.
#[test]
fn a_lease_that_ends_wakes_the_writer_though_nothing_is_released() {
    check(|| {
        let ring = Ring::new();
        ring.fill(0, 0);
        let slot = ring.words().lease(0, ring.cursor(), &ring.futex).unwrap();
        ring.cursor().evict(1);
        let writer = {
            let ring = Arc::clone(&ring);
            loom::thread::spawn(move || {
                let claim = || ring.words().claim(slot, || ring.cursor().has_leased(slot));
                ring.until(&[ring.cursor()], claim);
                ring.fill(1, slot as usize);
            })
        };
        assert_eq!(ring.look(slot), 0);
        ring.words().end_lease(slot, None, ring.cursor(), &ring.futex);
        writer.join().unwrap();
    });
}

/// Two readers, and a writer that sleeps on both: whichever releases wakes it.
#[test]
fn a_writer_that_waits_for_any_of_two_is_woken_by_either() {
    for first in [true, false] {
        check(move || {
            let (ring, other) = (Ring::new(), Arc::new(Cursor::default()));
            let writer = {
                let (ring, other) = (Arc::clone(&ring), Arc::clone(&other));
                loom::thread::spawn(move || {
                    let cursors = [ring.cursor(), other.words()];
                    ring.until(&cursors, || cursors.iter().any(|cursor| cursor.released() > 0));
                })
            };
            let moving = if first { ring.cursor() } else { other.words() };
            ring.words().release(1, moving, &ring.futex);
            writer.join().unwrap();
        });
    }
}

/// The client tells a reader to give up once the writer is gone: after all that it will ever publish.
#[test]
fn what_was_published_before_giving_up_is_read() {
    check(|| {
        let ring = Ring::new();
        let writer = {
            let ring = Arc::clone(&ring);
            loom::thread::spawn(move || {
                ring.fill(0, 0);
                ring.gone.store(true, Ordering::SeqCst);
                ring.futex.wake(&ring.event);
            })
        };
        let gave_up = || ring.gone.load(Ordering::SeqCst);
        assert!(ring.words().await_published(0, ring.cursor(), gave_up, &ring.futex));
        writer.join().unwrap();
    });
}

/// A ring of one slot and a spare one. The reader that is evicted may lease the first batch before and keep it meanwhile; the other gets
/// every batch, from the spare slot where need be. Slots are tried in order, so that the first is written again once the evicted reader has
/// let go of it, and that happens in some interleavings, as does that it is kept for good.
#[test]
fn a_spare_slot_replaces_one_that_an_evicted_reader_keeps_until_it_gives_it_back() {
    use std::sync::atomic::{AtomicU32 as Count, Ordering::Relaxed};
    static SLOTS_OF_LAST_TWO: [Count; 4] = [const { Count::new(0) }; 4];
    const DEPTH: u32 = SLOTS - 1;
    check(|| {
        let (ring, evicted) = (Ring::new(), Arc::new(Cursor::default()));
        ring.fill(0, 0);
        assert_eq!(ring.read(0), Some(0));
        let writer = {
            let (ring, evicted) = (Arc::clone(&ring), Arc::clone(&evicted));
            loom::thread::spawn(move || {
                evicted.words().evict(1);
                let kept = [0, 1].map(|slot| evicted.words().has_leased(slot));
                let slots = [1, 2].map(|seq| {
                    ring.until(&[ring.cursor()], || has_room(seq, ring.cursor().released(), DEPTH));
                    let is_leased = |slot: u32| kept[slot as usize] && evicted.words().has_leased(slot);
                    let slot = (0..SLOTS).find(|&slot| ring.words().claim(slot, || is_leased(slot)));
                    let slot = slot.expect("one is kept at most");
                    // A claim that fails changes nothing.
                    assert!(seq > 1 || slot == 0 || ring.holds[0].load(Ordering::Relaxed) == 0);
                    ring.fill(seq, slot as usize);
                    slot
                });
                SLOTS_OF_LAST_TWO[(slots[0] * 2 + slots[1]) as usize].fetch_add(1, Relaxed);
            })
        };
        let stalled = {
            let (ring, evicted) = (Arc::clone(&ring), Arc::clone(&evicted));
            loom::thread::spawn(move || match ring.words().lease(0, evicted.words(), &ring.futex) {
                Some(slot) => {
                    assert_eq!(ring.look(slot), 0);
                    ring.words().end_lease(slot, None, evicted.words(), &ring.futex);
                }
                None => {
                    assert_ne!(evicted.words().eviction(), 0, "the slot was seen overwritten, the eviction was not")
                }
            })
        };
        assert_eq!(ring.read(1), Some(1));
        writer.join().unwrap();
        stalled.join().unwrap();
        assert_eq!(ring.read(2), Some(2));
    });
    let [never_kept, .., given_back, kept] = [0, 1, 2, 3].map(|nth| SLOTS_OF_LAST_TWO[nth].load(Relaxed));
    assert!(never_kept > 0 && given_back > 0 && kept > 0, "{never_kept} {given_back} {kept}");
}

#[test]
fn the_reason_is_seen_with_the_end() {
    check(|| {
        let (ring, reason) = (Ring::new(), Arc::new(AtomicU32::new(0)));
        let writer = {
            let (ring, reason) = (Arc::clone(&ring), Arc::clone(&reason));
            loom::thread::spawn(move || {
                reason.store(7, Ordering::Relaxed);
                ring.words().end(1, std::iter::once(ring.cursor()), &ring.futex);
            })
        };
        assert_eq!(ring.read(0), None);
        assert_eq!((ring.words().ended(), reason.load(Ordering::Relaxed)), (1, 7));
        writer.join().unwrap();
    });
}

//! The ring's counters and wake-ups, free of files and memory maps, so that loom can check them.
//!
//! [`super`] states the protocol in prose; the sync points named there are marked here at both ends.

use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// How to sleep on event words, and how to wake those who do.
pub trait Sleeper {
    /// Sleeps while every event word has the value that was seen with it, until woken on any of them or for as long as the
    /// implementation allows; may return early.
    fn sleep(&self, events: &[(&AtomicU32, u32)]);
    /// Wakes everyone who sleeps on `event`.
    fn wake(&self, event: &AtomicU32);
    /// One turn of waiting awake; false when it is time to sleep, which is later where what is waited for is `near`.
    fn spin(&self, turn: u32, near: bool) -> bool;
}

/// Value of [`WriterWords::holds`]: the slot holds no batch, or is being written.
pub const NO_BATCH: u64 = u64::MAX;

/// The words that the writer owns and readers only read.
#[derive(Debug, Clone, Copy)]
pub struct WriterWords<'a> {
    /// Batches published; only the writer stores it; rises by one.
    pub published: &'a AtomicU64,
    /// One more than the number of the last batch that readers were called to; 0 before.
    pub near: &'a AtomicU64,
    /// Incremented after each change of `published`, `near` and `ended`.
    pub event: &'a AtomicU32,
    /// 0 while the feed runs; set once, after the last `published`.
    pub ended: &'a AtomicU32,
    /// 1 while the writer sleeps, or is about to, on some cursor's event.
    pub writer_waiting: &'a AtomicU32,
    /// For each slot, spare ones included, the number of the batch in it, or [`NO_BATCH`].
    pub holds: &'a [AtomicU64],
}

/// The words that one reader owns; the daemon trusts none of them.
#[derive(Debug, Clone, Copy)]
pub struct CursorWords<'a> {
    /// Batches released: all below it; only the reader stores it; rises, at most to `published`.
    pub released: &'a AtomicU64,
    /// Incremented after each change of `released` and after each lease that ends, and by the daemon when something else has changed
    /// that its writer looks at.
    pub event: &'a AtomicU32,
    /// 1 while the reader sleeps, or is about to, on the writer's event.
    pub reader_waiting: &'a AtomicU32,
    /// Not 0 once the reader was evicted; the one word that the daemon stores.
    pub evicted: &'a AtomicU32,
    /// A bit for each slot that the reader has leased, from the lowest of the first word. Once it was evicted bits are only taken back.
    pub held: &'a [AtomicU64],
}

/// Whether batch `seq` may be written as far as a reader with this `released` is concerned.
pub const fn has_room(seq: u64, released: u64, slots: u32) -> bool {
    seq.saturating_sub(released) < slots as u64
}

/// Whether a reader may move its cursor from `before` to `now` while `published` batches are out. A cursor that begins at a later
/// batch stands still until that is published.
pub const fn is_lawful(before: u64, now: u64, published: u64) -> bool {
    before == now || before <= now && now <= published
}

/// An Acquire load of a word of the writer's. Readers map these read-only, where the language allows only relaxed loads
/// ([`std::sync::atomic`], "Atomic accesses to read-only memory"). ThreadSanitizer models no fences; what it checks is mapped for writing.
fn acquire<T>(load: impl FnOnce(Ordering) -> T) -> T {
    if cfg!(mixd_tsan) {
        return load(Ordering::Acquire);
    }
    let value = load(Ordering::Relaxed);
    fence(Ordering::Acquire);
    value
}

impl CursorWords<'_> {
    /// The word of `held` and the bit in it for a slot.
    fn bit(&self, slot: u32) -> (&AtomicU64, u64) {
        (&self.held[slot as usize / 64], 1 << (slot % 64))
    }

    /// Whether the reader says that it has leased a slot.
    pub fn has_leased(&self, slot: u32) -> bool {
        let (word, bit) = self.bit(slot);
        word.load(Ordering::Acquire) & bit != 0 // sync point E, with `end_lease`
    }

    /// The batches that it has released: all below.
    pub fn released(&self) -> u64 {
        self.released.load(Ordering::Acquire) // sync point B, with `release`
    }

    /// The event word as it is now. A writer that looks at the cursor *after* this, and finds nothing to do, may sleep on it.
    pub fn note(&self) -> u32 {
        self.event.load(Ordering::Acquire) // sync point D, with `tell_writer` and `dismiss`
    }

    /// How many slots the reader says that it has leased.
    pub fn leases(&self) -> u32 {
        self.held.iter().map(|word| word.load(Ordering::Relaxed).count_ones()).sum()
    }

    /// Why the reader was evicted; 0 while it was not. After a [`WriterWords::lease`] that failed because the slot of a batch was claimed from an
    /// evicted reader, not 0.
    pub fn eviction(&self) -> u32 {
        self.evicted.load(Ordering::Relaxed) // after the fence of sync point G, with `evict`
    }

    /// Puts the reader out: it leases nothing from here on. What it says that it has leased is looked at after this.
    pub fn evict(&self, code: u32) {
        self.evicted.store(code, Ordering::Relaxed);
        // Sync point F, with `lease`. Sync point G, with `lease`: what this thread claims after this is seen no earlier than `evicted`.
        fence(Ordering::SeqCst);
    }
}

impl WriterWords<'_> {
    /// Batches published: those below can be read.
    pub fn published(&self) -> u64 {
        acquire(|order| self.published.load(order)) // sync point A, with `publish`
    }

    /// Why the feed has ended; 0 while it runs.
    pub fn ended(&self) -> u32 {
        acquire(|order| self.ended.load(order)) // sync point A, with `end`
    }

    /// Publishes the batches below `count` and wakes the readers that wait.
    pub fn publish<'c>(&self, count: u64, cursors: impl Iterator<Item = CursorWords<'c>>, sleeper: &impl Sleeper) {
        self.published.store(count, Ordering::Release); // sync point A, with `published`
        self.announce(cursors, sleeper);
    }

    /// Wakes the readers that wait for the next batch, number `seq`, since it is nearly there. That saves time and nothing else: whoever
    /// misses it is woken by `publish`.
    pub fn call<'c>(&self, seq: u64, cursors: impl Iterator<Item = CursorWords<'c>>, sleeper: &impl Sleeper) {
        self.near.store(seq + 1, Ordering::Relaxed);
        self.announce(cursors, sleeper);
    }

    /// Ends the feed for good and wakes the readers that wait.
    pub fn end<'c>(&self, code: u32, cursors: impl Iterator<Item = CursorWords<'c>>, sleeper: &impl Sleeper) {
        self.ended.store(code, Ordering::Release); // sync point A, with `ended`
        self.announce(cursors, sleeper);
    }

    fn announce<'c>(&self, mut cursors: impl Iterator<Item = CursorWords<'c>>, sleeper: &impl Sleeper) {
        self.event.fetch_add(1, Ordering::Release); // sync point D, with `await_published`
        fence(Ordering::SeqCst); // sync point C, with `await_published`
        if cursors.any(|cursor| cursor.reader_waiting.load(Ordering::Relaxed) != 0) {
            sleeper.wake(self.event);
        }
    }

    /// Takes a slot for writing; false, and nothing has changed, where somebody `has_leased` it.
    pub fn claim(&self, slot: u32, has_leased: impl FnOnce() -> bool) -> bool {
        let holds = &self.holds[slot as usize];
        let before = holds.swap(NO_BATCH, Ordering::Relaxed);
        fence(Ordering::SeqCst); // sync point F, with `lease`
        let leased = has_leased();
        if leased {
            holds.store(before, Ordering::Relaxed);
        }
        !leased
    }

    /// Leases batch `seq`, which is published, and returns its slot; `None` where no slot holds it any more or the reader was
    /// evicted: [`CursorWords::eviction`] then tells which.
    pub fn lease(&self, seq: u64, cursor: CursorWords<'_>, sleeper: &impl Sleeper) -> Option<u32> {
        let holds = |slot: u32| self.holds[slot as usize].load(Ordering::Relaxed) == seq;
        if let Some(slot) = (0..self.holds.len() as u32).find(|&slot| holds(slot)) {
            let (word, bit) = cursor.bit(slot);
            word.fetch_or(bit, Ordering::Relaxed);
            fence(Ordering::SeqCst); // sync point F, with `claim` and `evict`
            if holds(slot) && cursor.evicted.load(Ordering::Relaxed) == 0 {
                return Some(slot);
            }
            self.end_lease(slot, None, cursor, sleeper);
        }
        fence(Ordering::Acquire); // sync point G, with `evict`
        None
    }

    /// Ends a lease, gives back the batches below `released` where that moves, and wakes the writer if it waits.
    pub fn end_lease(&self, slot: u32, released: Option<u64>, cursor: CursorWords<'_>, sleeper: &impl Sleeper) {
        let (word, bit) = cursor.bit(slot);
        word.fetch_and(!bit, Ordering::Release); // sync point E, with `has_leased`
        match released {
            Some(released) => self.release(released, cursor, sleeper),
            None => self.tell_writer(cursor, sleeper),
        }
    }

    /// Waits until one of the event words is not what was noted, or until `look_again`, which is asked whenever the writer is awake.
    pub fn await_cursors(&self, noted: &[(&AtomicU32, u32)], look_again: impl Fn() -> bool, sleeper: &impl Sleeper) {
        let mut turn = 0;
        while noted.iter().all(|(event, seen)| event.load(Ordering::Relaxed) == *seen) && !look_again() {
            if sleeper.spin(turn, false) {
                turn += 1;
                continue;
            }
            self.writer_waiting.store(1, Ordering::Relaxed);
            fence(Ordering::SeqCst); // sync point C, with `tell_writer`
            sleeper.sleep(noted);
            self.writer_waiting.store(0, Ordering::Relaxed);
        }
    }

    /// Wakes the writer though `cursor` has not moved: after something else that it looks at has changed.
    pub fn dismiss(&self, cursor: CursorWords<'_>, sleeper: &impl Sleeper) {
        cursor.event.fetch_add(1, Ordering::Release); // sync point D, with `note`
        sleeper.wake(cursor.event);
    }

    /// Waits until batch `seq` is published, the feed has ended, or `give_up`. True when the batch can be read.
    pub fn await_published(
        &self,
        seq: u64,
        cursor: CursorWords<'_>,
        give_up: impl Fn() -> bool,
        sleeper: &impl Sleeper,
    ) -> bool {
        let mut turn = 0;
        loop {
            let event = acquire(|order| self.event.load(order)); // sync point D, with `announce`
            // The order matters: what was published before the end, or before whoever tells this reader to give up has seen that the
            // writer is gone, is read before that is seen.
            let over = self.ended() != 0 || give_up();
            if self.published() > seq {
                return true;
            }
            if over {
                return false;
            }
            if sleeper.spin(turn, self.near.load(Ordering::Relaxed) > seq) {
                turn += 1;
                continue;
            }
            cursor.reader_waiting.store(1, Ordering::Relaxed);
            fence(Ordering::SeqCst); // sync point C, with `announce`
            if !give_up() {
                sleeper.sleep(&[(self.event, event)]);
            }
            cursor.reader_waiting.store(0, Ordering::Relaxed);
        }
    }

    /// Gives back the batches below `count` and wakes the writer if it waits.
    pub fn release(&self, count: u64, cursor: CursorWords<'_>, sleeper: &impl Sleeper) {
        cursor.released.store(count, Ordering::Release); // sync point B, with `released`
        self.tell_writer(cursor, sleeper);
    }

    fn tell_writer(&self, cursor: CursorWords<'_>, sleeper: &impl Sleeper) {
        cursor.event.fetch_add(1, Ordering::Release); // sync point D, with `note`
        fence(Ordering::SeqCst); // sync point C, with `await_cursors`
        if self.writer_waiting.load(Ordering::Relaxed) != 0 {
            sleeper.wake(cursor.event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_lags_by_all_slots_leaves_no_room() {
        assert!(has_room(0, 0, 2) && has_room(1, 0, 2) && !has_room(2, 0, 2) && has_room(2, 1, 2));
        assert!(has_room(u64::MAX, u64::MAX - 1, 2) && !has_room(u64::MAX, u64::MAX - 2, 2));
    }

    #[test]
    fn cursors_may_neither_fall_nor_pass_what_is_published() {
        assert!(is_lawful(3, 3, 5) && is_lawful(3, 5, 5));
        assert!(!is_lawful(3, 2, 5) && !is_lawful(3, 6, 5));
        assert!(is_lawful(9, 9, 5) && !is_lawful(9, 10, 5), "one that begins later");
    }
}

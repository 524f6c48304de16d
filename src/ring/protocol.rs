//! The ring's counters and wake-ups, free of files and memory maps, so that loom can check them.
//!
//! [`super`] states the protocol in prose; the sync points named there are marked here at both ends.

use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// How to sleep on an event word, and how to wake those who do.
pub trait Sleeper {
    /// Sleeps while `event` has the value `seen`, until woken or for as long as the implementation allows; may return early.
    fn sleep(&self, event: &AtomicU32, seen: u32);
    /// Wakes everyone who sleeps on `event`.
    fn wake(&self, event: &AtomicU32);
    /// One turn of waiting awake; false when it is time to sleep.
    fn spin(&self, turn: u32) -> bool;
}

/// The words that the writer owns and readers only read.
#[derive(Debug, Clone, Copy)]
pub struct WriterWords<'a> {
    /// Batches published; only the writer stores it; rises by one.
    pub published: &'a AtomicU64,
    /// Incremented after each change of `published` and `ended`.
    pub event: &'a AtomicU32,
    /// 0 while the feed runs; set once, after the last `published`.
    pub ended: &'a AtomicU32,
    /// 1 while the writer sleeps, or is about to, on some cursor's event.
    pub writer_waiting: &'a AtomicU32,
}

/// The words that one reader owns; the daemon trusts none of them.
#[derive(Debug, Clone, Copy)]
pub struct CursorWords<'a> {
    /// Batches released; only the reader stores it; rises, at most to `published`.
    pub released: &'a AtomicU64,
    /// Incremented after each change of `released`, and by the daemon when the reader goes.
    pub event: &'a AtomicU32,
    /// 1 while the reader sleeps, or is about to, on the writer's event.
    pub reader_waiting: &'a AtomicU32,
}

/// The slot of batch number `seq`.
pub const fn slot_of(seq: u64, slots: u32) -> u32 {
    (seq % slots as u64) as u32
}

/// Whether batch `seq` may be written as far as a reader with this `released` is concerned.
pub const fn has_room(seq: u64, released: u64, slots: u32) -> bool {
    seq.saturating_sub(released) < slots as u64
}

/// Whether a reader may move its cursor from `before` to `now` while `published` batches are out.
pub const fn is_lawful(before: u64, now: u64, published: u64) -> bool {
    before <= now && now <= published
}

impl WriterWords<'_> {
    /// Publishes the batches below `count` and wakes the readers that wait.
    pub fn publish<'c>(&self, count: u64, cursors: impl Iterator<Item = CursorWords<'c>>, sleeper: &impl Sleeper) {
        self.published.store(count, Ordering::Release); // sync point A, with `await_published`
        self.announce(cursors, sleeper);
    }

    /// Ends the feed for good and wakes the readers that wait.
    pub fn end<'c>(&self, code: u32, cursors: impl Iterator<Item = CursorWords<'c>>, sleeper: &impl Sleeper) {
        self.ended.store(code, Ordering::Release); // sync point A, with `await_published`
        self.announce(cursors, sleeper);
    }

    fn announce<'c>(&self, mut cursors: impl Iterator<Item = CursorWords<'c>>, sleeper: &impl Sleeper) {
        self.event.fetch_add(1, Ordering::Release); // sync point D, with `await_published`
        fence(Ordering::SeqCst); // sync point C, with `await_published`
        if cursors.any(|cursor| cursor.reader_waiting.load(Ordering::Relaxed) != 0) {
            sleeper.wake(self.event);
        }
    }

    /// Waits until `cursor` has released enough, or `give_up`.
    ///
    /// Returns the `released` that was read last, unchecked.
    pub fn await_room(
        &self,
        cursor: CursorWords<'_>,
        enough: impl Fn(u64) -> bool,
        give_up: impl Fn() -> bool,
        sleeper: &impl Sleeper,
    ) -> u64 {
        let mut turn = 0;
        loop {
            let event = cursor.event.load(Ordering::Acquire); // sync point D, with `release` and `dismiss`
            let released = cursor.released.load(Ordering::Acquire); // sync point B, with `release`
            if enough(released) || give_up() {
                return released;
            }
            if sleeper.spin(turn) {
                turn += 1;
                continue;
            }
            self.writer_waiting.store(1, Ordering::Relaxed);
            fence(Ordering::SeqCst); // sync point C, with `release` and `dismiss`
            if !enough(cursor.released.load(Ordering::Relaxed)) && !give_up() {
                sleeper.sleep(cursor.event, event);
            }
            self.writer_waiting.store(0, Ordering::Relaxed);
        }
    }

    /// Wakes the writer though `cursor` has not moved: after something that its `give_up` looks at has changed.
    pub fn dismiss(&self, cursor: CursorWords<'_>, sleeper: &impl Sleeper) {
        cursor.event.fetch_add(1, Ordering::Release); // sync point D, with `await_room`
        fence(Ordering::SeqCst); // sync point C, with `await_room`
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
            let event = self.event.load(Ordering::Acquire); // sync point D, with `announce`
            // The order matters: what was published before the end is read before the end is seen.
            let ended = self.ended.load(Ordering::Acquire) != 0; // sync point A, with `end`
            // Sync point A, with `publish`.
            if self.published.load(Ordering::Acquire) > seq {
                return true;
            }
            if ended || give_up() {
                return false;
            }
            if sleeper.spin(turn) {
                turn += 1;
                continue;
            }
            cursor.reader_waiting.store(1, Ordering::Relaxed);
            fence(Ordering::SeqCst); // sync point C, with `announce`
            if self.published.load(Ordering::Relaxed) <= seq && self.ended.load(Ordering::Relaxed) == 0 && !give_up() {
                sleeper.sleep(self.event, event);
            }
            cursor.reader_waiting.store(0, Ordering::Relaxed);
        }
    }

    /// Gives back the batches below `count` and wakes the writer if it waits.
    pub fn release(&self, count: u64, cursor: CursorWords<'_>, sleeper: &impl Sleeper) {
        cursor.released.store(count, Ordering::Release); // sync point B, with `await_room`
        cursor.event.fetch_add(1, Ordering::Release); // sync point D, with `await_room`
        fence(Ordering::SeqCst); // sync point C, with `await_room`
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
    }
}

//! Sleeping and waking across processes: shared futexes, with a deadline on every sleep.

use super::protocol::Sleeper;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use rustix::thread::futex;
use rustix::time::{ClockId, Timespec, clock_gettime};
use std::time::Duration;

/// Longest sleep: 250 ms. A waiter looks around this often even if its waker died between the counter and the call.
const SLEEP_MAX_NS: i64 = 250_000_000;

/// The most events that a thread can sleep on (the kernel's bound for `futex_waitv`).
pub const EVENTS_MAX: usize = 128;

/// Turns of `spin_loop` before a sleep: about 2 µs, less than a futex round trip costs.
const SPIN_TURNS: u32 = 64;
/// Turns where what is waited for is near: some 150 µs, or a part of that where processors pause for less.
const SPIN_TURNS_NEAR: u32 = 75 * SPIN_TURNS;

/// How long it must usually take to wake readers for them to be woken ahead of a batch. It takes less where their processor is awake
/// because others work on it, whom readers that wait awake would disturb.
const SLOW_WAKE_NS: u64 = 15_000;
/// How far ahead of a batch readers are woken at most.
const AHEAD_MAX: Duration = Duration::from_micros(100);

fn wait(event: &AtomicU32, seen: u32) -> futex::Wait {
    let mut wait = futex::Wait::new();
    wait.val = seen.into();
    wait.uaddr = futex::WaitPtr::new(std::ptr::from_ref(event).cast_mut().cast());
    wait.flags = futex::WaitFlags::SIZE_U32;
    wait
}

/// Whether a thread may sleep on several events: Linux 5.16 or newer, and no filter of system calls that does not know it.
pub fn can_wait_for_several() -> bool {
    let words = [AtomicU32::new(0), AtomicU32::new(0)];
    let waits = words.each_ref().map(|word| wait(word, 1));
    let refused = futex::waitv(&waits, futex::WaitvFlags::empty(), None, futex::ClockId::Monotonic);
    !matches!(refused, Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM))
}

/// The [`Sleeper`] of real processes.
#[derive(Debug, Clone, Copy)]
pub struct Futex;

impl Sleeper for Futex {
    fn sleep(&self, events: &[(&AtomicU32, u32)]) {
        // Every outcome (woken, changed before, interrupted, out of time) means the same to the caller: look again.
        let _ = match *events {
            [] => Ok(()),
            [(event, seen)] => {
                let timeout = Timespec { tv_sec: 0, tv_nsec: SLEEP_MAX_NS };
                futex::wait(event, futex::Flags::empty(), seen, Some(&timeout))
            }
            _ => {
                let waits: Vec<futex::Wait> = events.iter().map(|&(event, seen)| wait(event, seen)).collect();
                // Of this call the time is a point, not a span.
                let now = clock_gettime(ClockId::Monotonic);
                let nanos = now.tv_nsec + SLEEP_MAX_NS;
                let end = Timespec { tv_sec: now.tv_sec + nanos / 1_000_000_000, tv_nsec: nanos % 1_000_000_000 };
                match futex::waitv(&waits, futex::WaitvFlags::empty(), Some(&end), futex::ClockId::Monotonic) {
                    // Before Linux 5.16, or not allowed: what happens to the others is seen at the deadline.
                    Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => return self.sleep(&events[..1]),
                    outcome => outcome.map(|_| ()),
                }
            }
        };
    }

    fn wake(&self, event: &AtomicU32) {
        // It fails only for an address that is not mapped, which a reference excludes.
        let _ = futex::wake(event, futex::Flags::empty(), i32::MAX as u32);
    }

    fn spin(&self, turn: u32, near: bool) -> bool {
        std::hint::spin_loop();
        turn < if near { SPIN_TURNS_NEAR } else { SPIN_TURNS }
    }
}

/// The [`Sleeper`] of a ring's writer where it wakes readers first for a batch: notes when it does.
#[derive(Debug, Clone, Copy)]
pub struct Waker<'a> {
    /// [`super::layout::DataHeader::woke_ns`].
    pub woke_ns: &'a AtomicU64,
}

impl Sleeper for Waker<'_> {
    fn sleep(&self, events: &[(&AtomicU32, u32)]) {
        Futex.sleep(events);
    }

    fn wake(&self, event: &AtomicU32) {
        self.woke_ns.store(now_ns(), Ordering::Relaxed);
        Futex.wake(event);
    }

    fn spin(&self, turn: u32, near: bool) -> bool {
        Futex.spin(turn, near)
    }
}

/// The [`Sleeper`] of a ring's reader: notes how long it takes to wake.
#[derive(Clone, Copy)]
pub struct Woken<'a> {
    /// [`super::layout::DataHeader::woke_ns`].
    pub woke_ns: &'a AtomicU64,
    /// [`super::layout::Cursor::wake_ns`].
    pub wake_ns: &'a AtomicU64,
    /// Called after each sleep, and not in turns of waiting awake.
    pub slept: &'a dyn Fn(),
}

impl Sleeper for Woken<'_> {
    fn sleep(&self, events: &[(&AtomicU32, u32)]) {
        let before = self.woke_ns.load(Ordering::Relaxed);
        Futex.sleep(events);
        let woke = self.woke_ns.load(Ordering::Relaxed);
        if woke != before {
            let (took, usual) = (now_ns().saturating_sub(woke), self.wake_ns.load(Ordering::Relaxed));
            self.wake_ns.store(follow(usual, took), Ordering::Relaxed);
        }
        (self.slept)();
    }

    fn wake(&self, event: &AtomicU32) {
        Futex.wake(event);
    }

    fn spin(&self, turn: u32, near: bool) -> bool {
        Futex.spin(turn, near)
    }
}

/// A running estimate of the median.
fn follow(usual: u64, value: u64) -> u64 {
    match value {
        _ if usual == 0 => value,
        _ if value > usual => usual + usual / 16 + 1,
        _ => usual - usual / 16,
    }
}

/// How far ahead of a batch to wake readers that take so long to wake, where that is worth it.
pub fn ahead(wake_ns: u64) -> Option<Duration> {
    (wake_ns >= SLOW_WAKE_NS).then(|| Duration::from_nanos(wake_ns.saturating_mul(3) / 2).min(AHEAD_MAX))
}

/// Nanoseconds on the clock that all processes of a machine share (`CLOCK_MONOTONIC`).
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_time_to_wake_follows_most_and_no_single_one() {
        let after = |usual, took: &[u64]| (0..400).fold(usual, |usual, nth| follow(usual, took[nth % took.len()]));
        assert_eq!(follow(0, 30_000), 30_000);
        for usual in [0, 1, 1_000_000] {
            let estimate = after(usual, &[30_000, 31_000, 29_000, 30_000, 9_000_000, 30_500, 29_500, 30_000]);
            assert!((25_000..40_000).contains(&estimate), "{usual} {estimate}");
        }
    }

    #[test]
    fn readers_that_wake_at_once_are_not_called_and_none_is_called_long_ahead() {
        assert_eq!(ahead(0), None);
        assert_eq!(ahead(5_000), None);
        assert_eq!(ahead(40_000), Some(Duration::from_micros(60)));
        assert_eq!(ahead(u64::MAX), Some(Duration::from_micros(100)));
    }
}

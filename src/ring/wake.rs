//! Sleeping and waking across processes: shared futexes, with a deadline on every sleep.

use super::protocol::Sleeper;
use crate::sync::AtomicU32;
use rustix::thread::futex;
use std::time::Duration;

/// Longest sleep. A waiter looks around this often even if its waker died between the counter and the call.
const SLEEP_MAX: Duration = Duration::from_millis(250);

/// Turns of `spin_loop` before a sleep: about 2 µs, less than a futex round trip costs.
const SPIN_TURNS: u32 = 64;

/// The [`Sleeper`] of real processes.
#[derive(Debug, Clone, Copy)]
pub struct Futex;

impl Sleeper for Futex {
    fn sleep(&self, event: &AtomicU32, seen: u32) {
        let deadline = rustix::time::Timespec { tv_sec: 0, tv_nsec: i64::from(SLEEP_MAX.subsec_nanos()) };
        // Every outcome (woken, changed before, interrupted, out of time) means the same to the caller: look again.
        let _ = futex::wait(event, futex::Flags::empty(), seen, Some(&deadline));
    }

    fn wake(&self, event: &AtomicU32) {
        // It fails only for an address that is not mapped, which a reference excludes.
        let _ = futex::wake(event, futex::Flags::empty(), i32::MAX as u32);
    }

    fn spin(&self, turn: u32) -> bool {
        std::hint::spin_loop();
        turn < SPIN_TURNS
    }
}

/// Nanoseconds on the clock that all processes of a machine share (`CLOCK_MONOTONIC`).
pub fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

//! Sleeping and waking across processes: shared futexes, with a deadline on every sleep.

use super::protocol::Sleeper;
use crate::sync::AtomicU32;
use rustix::thread::futex;
use rustix::time::{ClockId, Timespec, clock_gettime};

/// Longest sleep: 250 ms. A waiter looks around this often even if its waker died between the counter and the call.
const SLEEP_MAX_NS: i64 = 250_000_000;

/// The most events that a thread can sleep on (the kernel's bound for `futex_waitv`).
pub const EVENTS_MAX: usize = 128;

/// Turns of `spin_loop` before a sleep: about 2 µs, less than a futex round trip costs.
const SPIN_TURNS: u32 = 64;

fn wait(event: &AtomicU32, seen: u32) -> futex::Wait {
    let mut wait = futex::Wait::new();
    wait.val = seen.into();
    wait.uaddr = futex::WaitPtr::new(std::ptr::from_ref(event).cast_mut().cast());
    wait.flags = futex::WaitFlags::SIZE_U32;
    wait
}

/// Whether this kernel lets a thread sleep on several events (Linux 5.16 or newer).
pub fn can_wait_for_several() -> bool {
    let words = [AtomicU32::new(0), AtomicU32::new(0)];
    let waits = words.each_ref().map(|word| wait(word, 1));
    let refused = futex::waitv(&waits, futex::WaitvFlags::empty(), None, futex::ClockId::Monotonic);
    refused != Err(rustix::io::Errno::NOSYS)
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
                futex::waitv(&waits, futex::WaitvFlags::empty(), Some(&end), futex::ClockId::Monotonic).map(|_| ())
            }
        };
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
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

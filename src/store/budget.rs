//! How much memory decoded images may take, over all stores of a daemon: a fixed number of bytes, and no more than leaves room for rings and staging.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The most memory that is left free: rings, staging and decoders of a few large feeds.
const RESERVE_BYTES_MAX: u64 = 2 << 30;
/// The most bytes that images take between two looks at what is free.
const GRANT_BYTES_MAX: u64 = 64 << 20;
/// How often what is free is looked at while it is too little.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Bytes that stores take and give back.
#[derive(Debug)]
pub struct Budget {
    total: u64,
    taken: AtomicU64,
    memory: Option<Mutex<Memory>>,
}

/// What is free of the memory that the images share with everything else.
#[derive(Debug)]
struct Memory {
    look: fn() -> Option<u64>,
    /// Bytes that stay free.
    reserve: u64,
    /// Bytes that images may take before the next look.
    granted: u64,
    /// When there was too little.
    short: Option<Instant>,
}

impl Memory {
    fn grant(&mut self, bytes: u64) -> bool {
        if self.granted < bytes {
            if self.short.is_some_and(|at| at.elapsed() < LOOK_INTERVAL) {
                return false;
            }
            let spare = (self.look)().map_or(u64::MAX, |free| free.saturating_sub(self.reserve));
            // A part of it: what was granted before may not be touched yet, and so is free still.
            self.granted = if bytes > spare { 0 } else { (spare / 8).clamp(bytes, GRANT_BYTES_MAX.max(bytes)) };
            self.short = (self.granted == 0).then(Instant::now);
        }
        let is_granted = self.granted >= bytes && self.short.is_none();
        self.granted -= if is_granted { bytes } else { 0 };
        is_granted
    }
}

impl Budget {
    /// A budget of which nothing is taken.
    pub fn new(total: u64) -> Self {
        Self { total, taken: AtomicU64::new(0), memory: None }
    }

    /// A budget that is not spent further while less than a quarter of the memory that is free now (2 GiB at most) is free, which `look` reads: the rest
    /// is for rings, staging and decoders.
    pub fn watching(total: u64, look: fn() -> Option<u64>) -> Self {
        let memory = |free: u64| {
            let reserve = (free / 4).min(RESERVE_BYTES_MAX);
            Mutex::new(Memory { look, reserve, granted: 0, short: None })
        };
        Self { memory: look().map(memory), ..Self::new(total) }
    }

    /// Whether memory has room for `bytes` more, which are then about to be used.
    pub fn may_grow(&self, bytes: u64) -> bool {
        let Some(memory) = &self.memory else { return true };
        memory.lock().unwrap_or_else(PoisonError::into_inner).grant(bytes)
    }

    /// Whether memory was short when it was last read, a moment ago.
    pub fn is_short(&self) -> bool {
        let Some(memory) = &self.memory else { return false };
        let memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.short.is_some_and(|at| at.elapsed() < LOOK_INTERVAL)
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// What is left.
    pub fn left(&self) -> u64 {
        self.total.saturating_sub(self.taken.load(Ordering::Relaxed))
    }

    /// Takes bytes, if there are as many left.
    pub fn take(&self, bytes: u64) -> bool {
        let next = |taken: u64| taken.checked_add(bytes).filter(|&taken| taken <= self.total);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }

    /// Counts bytes that are taken whether or not as many are left.
    pub fn take_anyway(&self, bytes: u64) {
        self.taken.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives bytes back that were taken.
    pub fn give(&self, bytes: u64) {
        self.taken.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_taken_than_there_is() {
        let budget = Budget::new(10);
        assert!(budget.take(7) && !budget.take(4) && budget.take(3));
        budget.give(3);
        assert_eq!(budget.left(), 3);
        budget.take_anyway(5);
        assert!(budget.left() == 0 && !budget.take(1));
    }

    #[test]
    fn a_quarter_of_what_is_free_at_the_start_stays_free() {
        static FREE: AtomicU64 = AtomicU64::new(4_000);
        let budget = Budget::watching(1 << 30, || Some(FREE.load(Ordering::SeqCst)));
        let mut kept = 0;
        while budget.may_grow(10) {
            kept += 10;
            FREE.fetch_sub(10, Ordering::SeqCst);
        }
        assert_eq!((kept, FREE.load(Ordering::SeqCst)), (3_000, 1_000));
        // It grows again once there is room.
        FREE.store(4_000, Ordering::SeqCst);
        let start = Instant::now();
        while !budget.may_grow(10) {
            assert!(start.elapsed() < Duration::from_secs(20), "it never looks again");
            std::thread::yield_now();
        }
        assert!(Budget::watching(1 << 30, || None).may_grow(u64::MAX));
    }
}

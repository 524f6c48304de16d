//! How much memory decoded images may take, over all stores of a daemon.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that stores take and give back.
#[derive(Debug)]
pub struct Budget {
    total: u64,
    taken: AtomicU64,
}

impl Budget {
    /// A budget of which nothing is taken.
    pub fn new(total: u64) -> Self {
        Self { total, taken: AtomicU64::new(0) }
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
}

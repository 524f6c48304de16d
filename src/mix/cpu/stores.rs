//! Whether finished batches are stored past the caches.
//!
//! A line that is written whole need not be read first, but a batch that stays in the caches is written, and read by its trainer, faster.
//! Which wins depends on the caches that a virtual machine seldom tells the truth about, on how many threads share them, and on the
//! neighbours. So it is tried, now and then: the values are the same either way.

use std::time::Duration;

/// Batches from one trial to the next.
const INTERVAL: usize = 1024;

/// Batches of a trial: first as hitherto, then the other way.
const TRIAL: usize = 32;

/// Of each half of a trial the last batches count; those before bring the caches to what they become.
const COUNTED: usize = 8;

/// What the other way must take at the most of the present one's time, to be worth a change: noise alone changes nothing.
const BETTER: f64 = 0.95;

/// Batches before the first trial: by then a ring has its memory.
const BEFORE: usize = 64;

/// Which of the two ways, and what is known of them. Begins with ordinary stores.
#[derive(Debug)]
pub struct Stores {
    past_caches: bool,
    /// Batches since the last trial began, or would have begun.
    batch: usize,
    /// Nanoseconds a row, of the batches that count: as hitherto, the other way.
    measured: [[f64; COUNTED]; 2],
    /// Nanoseconds a row, of the last batch.
    row_ns: f64,
}

impl Default for Stores {
    fn default() -> Self {
        Self { past_caches: false, batch: INTERVAL - BEFORE, measured: Default::default(), row_ns: 0.0 }
    }
}

impl Stores {
    /// Whether to store the next batch past the caches.
    pub fn past_caches(&self) -> bool {
        self.past_caches != (TRIAL / 2..TRIAL).contains(&self.batch)
    }

    /// How many rows are mixed in a time, if they take what those of the last batch took.
    pub fn rows_in(&self, time: Duration) -> usize {
        (time.as_nanos() as f64 / self.row_ns) as usize
    }

    /// Notes what the batch took.
    pub fn note(&mut self, took: Duration, rows: usize) {
        self.row_ns = took.as_nanos() as f64 / rows.max(1) as f64;
        let (half, at) = (self.batch / (TRIAL / 2), self.batch % (TRIAL / 2));
        if let (Some(measured), Some(nth)) = (self.measured.get_mut(half), at.checked_sub(TRIAL / 2 - COUNTED)) {
            measured[nth] = self.row_ns;
        }
        self.batch = (self.batch + 1) % INTERVAL;
        if self.batch == TRIAL {
            let [present, other] = self.measured.map(median);
            self.past_caches ^= other < BETTER * present;
        }
    }
}

fn median(mut values: [f64; COUNTED]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[COUNTED / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of as many batches as lie between trials are stored past the caches, at costs in µs.
    fn past_caches(stores: &mut Stores, ordinary: u64, past: u64) -> usize {
        let mut batch = |nth: usize| {
            let is_past = stores.past_caches();
            // One in five is late for other reasons.
            let late = if nth.is_multiple_of(5) { 9 } else { 1 };
            stores.note(Duration::from_micros(late * if is_past { past } else { ordinary }), 64);
            is_past
        };
        (0..INTERVAL).filter(|&nth| batch(nth)).count()
    }

    #[test]
    fn rows_are_counted_by_what_the_last_took() {
        let mut stores = Stores::default();
        assert_eq!(stores.rows_in(Duration::from_micros(60)), usize::MAX, "nothing is known");
        stores.note(Duration::from_micros(640), 64);
        assert_eq!(stores.rows_in(Duration::from_micros(65)), 6);
    }

    #[test]
    fn the_faster_way_is_found_and_found_again_when_it_changes() {
        let mut stores = Stores::default();
        assert_eq!(past_caches(&mut stores, 100, 100), TRIAL / 2, "no change without a reason");
        assert_eq!(past_caches(&mut stores, 100, 70), INTERVAL - BEFORE - TRIAL / 2);
        assert_eq!(past_caches(&mut stores, 100, 70), INTERVAL - TRIAL / 2);
        assert_eq!(past_caches(&mut stores, 100, 130), BEFORE + TRIAL / 2);
        assert_eq!(past_caches(&mut stores, 100, 130), TRIAL / 2);
    }
}

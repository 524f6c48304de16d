//! The last minutes of a daemon's counters.

use crate::status::Verdict;
use crate::verdict::{Reading, verdict};
use std::collections::VecDeque;

/// Readings that are kept: ten minutes of one a second.
const READINGS_MAX: usize = 600;
/// Seconds that a verdict looks back.
const VERDICT_S: f64 = 10.0;

/// Readings, the oldest first.
#[derive(Debug, Default)]
pub struct History(VecDeque<Reading>);

impl History {
    /// Adds a reading, and drops the oldest of too many.
    pub fn record(&mut self, reading: Reading) {
        if self.0.len() == READINGS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(reading);
    }

    /// What bounds the trainers at `now`: since the first reading of the last ten seconds that has all of them.
    pub fn verdict(&self, now: &Reading) -> Verdict {
        let recent = self.0.iter().filter(|then| now.at_s - then.at_s <= VERDICT_S);
        let before = recent.into_iter().find(|then| then.has_trainers_of(now));
        verdict(before.unwrap_or(now), now)
    }
}

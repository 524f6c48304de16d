//! The last minutes of a daemon's counters.

use crate::status::Verdict;
use crate::verdict::{Reading, verdict};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::ops::RangeInclusive;

/// Readings that are kept: ten minutes of one a second.
const READINGS_MAX: usize = 600;
/// Seconds that a verdict looks back: less than a moment says nothing.
const VERDICT_S: RangeInclusive<f64> = 0.5..=10.0;

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

    /// Rates between readings, the oldest first: `at_s` (since the start), `images_per_s`, and `stages`, for each the share of its threads' time
    /// that it was at work.
    pub fn series(&self) -> Value {
        let pairs = || self.0.iter().zip(self.0.iter().skip(1)).filter(|(a, b)| b.at_s > a.at_s);
        let busy = |nth: usize| {
            let share = move |(a, b): (&Reading, &Reading)| {
                let busy_s = b.stages[nth].busy_s - a.stages[nth].busy_s;
                (busy_s / (b.at_s - a.at_s) / f64::from(b.stages[nth].threads.max(1))).clamp(0.0, 1.0)
            };
            pairs().map(share).collect::<Vec<_>>()
        };
        let stages = self.0.back().map_or(&[][..], |last| &last.stages);
        json!({
            "at_s": pairs().map(|(_, b)| b.at_s).collect::<Vec<_>>(),
            "images_per_s": pairs().map(|(a, b)| b.images.saturating_sub(a.images) as f64 / (b.at_s - a.at_s)).collect::<Vec<_>>(),
            "stages": stages.iter().enumerate().map(|(nth, stage)| (stage.name.clone(), json!(busy(nth)))).collect::<serde_json::Map<_, _>>(),
        })
    }

    /// What bounds the trainers at `now`: since the first reading of the last ten seconds, and not of the last moment, that has all of them.
    pub fn verdict(&self, now: &Reading) -> Verdict {
        let mut recent = self.0.iter().filter(|then| VERDICT_S.contains(&(now.at_s - then.at_s)));
        let before = recent.find(|then| then.has_trainers_of(now));
        verdict(before.unwrap_or(now), now)
    }
}

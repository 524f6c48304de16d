//! Rates between the statuses of the last minutes.

use crate::status::{Feed, Stage, Status, Trainer};
use std::collections::VecDeque;

/// Statuses that are kept: enough for a wide terminal's curve.
const STATUSES_MAX: usize = 256;

/// The last statuses, the oldest first; of older ones only the rate is kept.
#[derive(Default)]
pub struct History {
    before: Option<Status>,
    now: Option<Status>,
    images_per_s: VecDeque<f64>,
}

/// What a trainer did between the last two statuses.
pub struct TrainerRate {
    /// Images that it read a second.
    pub images_per_s: f64,
    /// Share of the time for which it waited.
    pub waited: f64,
}

impl History {
    /// Adds a status; a daemon that was started anew begins a new history.
    pub fn push(&mut self, status: Status) {
        if self.now.as_ref().is_some_and(|now| now.pid != status.pid || now.uptime_s > status.uptime_s) {
            *self = Self::default();
        }
        self.before = self.now.replace(status);
        if self.seconds() > 0.0 {
            self.images_per_s.push_back(self.rate(|status| status.mixed.images as f64));
        }
        if self.images_per_s.len() > STATUSES_MAX {
            self.images_per_s.pop_front();
        }
    }

    /// The last status.
    pub fn now(&self) -> Option<&Status> {
        self.now.as_ref()
    }

    /// Images mixed a second, the oldest first.
    pub fn images_per_s(&self) -> impl ExactSizeIterator<Item = f64> + DoubleEndedIterator {
        self.images_per_s.iter().copied()
    }

    fn seconds(&self) -> f64 {
        match (&self.before, &self.now) {
            (Some(before), Some(now)) => now.uptime_s - before.uptime_s,
            _ => 0.0,
        }
    }

    /// What a counter grew by a second; 0 before there are two statuses.
    pub fn rate(&self, counter: impl Fn(&Status) -> f64) -> f64 {
        match (&self.before, &self.now) {
            (Some(before), Some(now)) if self.seconds() > 0.0 => {
                ((counter(now) - counter(before)) / self.seconds()).max(0.0)
            }
            _ => 0.0,
        }
    }

    /// What a stage's counter grew by a second.
    pub fn stage_rate(&self, name: &str, counter: impl Fn(&Stage) -> f64) -> f64 {
        self.rate(|status| status.stages.iter().find(|stage| stage.name == name).map_or(0.0, &counter))
    }

    /// What a trainer of a feed did; nothing, of one that has just attached.
    pub fn trainer_rate(&self, feed: &Feed, trainer: &Trainer) -> TrainerRate {
        let find = |status: &Status| {
            let feed = status.feeds.iter().find(|other| other.feed_id == feed.feed_id)?;
            feed.trainers.iter().find(|other| other.reader == trainer.reader).cloned()
        };
        let rows = f64::from(feed.spec.batch_size);
        match self.before.as_ref().and_then(find) {
            Some(before) if self.seconds() > 0.0 => TrainerRate {
                images_per_s: trainer.read.saturating_sub(before.read) as f64 * rows / self.seconds(),
                waited: ((trainer.waited_s - before.waited_s) / self.seconds()).clamp(0.0, 1.0),
            },
            _ => TrainerRate { images_per_s: 0.0, waited: 0.0 },
        }
    }
}

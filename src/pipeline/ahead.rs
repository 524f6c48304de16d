//! Tells the source which shards a feed reads next, so that it can prefetch them.

use crate::plan::{Sampler, Windows};
use crate::source::{Ahead, Source};
use crate::types::{Place, Split};
use std::sync::Arc;

/// Announces the shards of one feed.
pub struct Announcer {
    source: Arc<dyn Source>,
    split: Split,
    /// The epoch that is being planned, and what it reads when.
    epoch: Option<(u64, Windows)>,
    /// What was announced last: the epoch and the window in it.
    announced: Option<(u64, usize)>,
    ahead: Option<Ahead>,
}

impl Announcer {
    /// Nothing is announced yet.
    pub fn new(source: Arc<dyn Source>, split: Split) -> Self {
        Self { source, split, epoch: None, announced: None, ahead: None }
    }

    /// Announces what the batch at `place`, and those after it, read.
    pub fn reach(&mut self, sampler: &Sampler, place: Place) {
        if self.epoch.as_ref().is_none_or(|(epoch, _)| *epoch != place.epoch) {
            self.epoch = Some((place.epoch, sampler.windows(place.epoch)));
        }
        let Some((epoch, windows)) = self.epoch.as_ref().filter(|(_, windows)| !windows.shards.is_empty()) else {
            return;
        };
        let window = windows.at(sampler.position(place));
        if self.announced.replace((*epoch, window)) == Some((*epoch, window)) {
            return;
        }
        let after = windows.shards.get(window + 1).cloned();
        let next = after.or_else(|| sampler.windows(epoch + 1).shards.into_iter().next()).unwrap_or_default();
        // The shards of the next window are not let go before they are announced again. Of the last one some reads may be under way still.
        self.ahead = self.source.will_read(self.split, &windows.shards[window], &next);
    }
}

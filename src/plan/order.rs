//! The order of an epoch's samples, and with it which shards are read when (docs/spec/batches.md#plans).

use crate::rng::{self, Stream};
use crate::spec::{FeedSpec, Shuffle};
use crate::types::SampleId;
use std::ops::Range;

/// How the samples of a split are numbered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbering {
    /// How many there are; ids are below that.
    pub samples: u32,
    /// The first sample of each shard, ascending from 0; none where samples are files of their own. A shard's samples have consecutive ids.
    pub shards: Vec<SampleId>,
}

impl From<u32> for Numbering {
    /// So many samples, each a file of its own.
    fn from(samples: u32) -> Self {
        Self { samples, shards: Vec::new() }
    }
}

impl Numbering {
    /// The samples of a shard.
    fn shard(&self, shard: u32) -> Range<SampleId> {
        let begins = |shard: usize| self.shards.get(shard).copied().unwrap_or(self.samples);
        begins(shard as usize)..begins(shard as usize + 1)
    }

    /// The shards of an epoch of `spec` in the order in which they are read, by windows: those that are read at a time. Empty where all are.
    fn shards_in_order(&self, spec: &FeedSpec, epoch: u64) -> Vec<Vec<u32>> {
        let shards = self.shards.len() as u32;
        let (shards, count): (Vec<u32>, _) = match spec.shuffle {
            Shuffle::Off => ((0..shards).collect(), 1),
            Shuffle::Global => return Vec::new(),
            Shuffle::Shards(count) => {
                (rng::permutation(rng::at(spec.seed, Stream::Permutation, epoch, 0, 0), shards), count.get())
            }
        };
        shards.chunks(count as usize).map(<[u32]>::to_vec).collect()
    }

    /// What an epoch of `spec` reads when.
    pub fn windows(&self, spec: &FeedSpec, epoch: u64) -> Windows {
        let (mut windows, mut end) = (Windows::default(), 0);
        for shards in self.shards_in_order(spec, epoch) {
            end += shards.iter().map(|&shard| self.shard(shard).len() as u64).sum::<u64>();
            windows.ends.push(end);
            windows.shards.push(shards.iter().map(|&shard| self.shard(shard).start).collect());
        }
        windows
    }

    /// The samples of an epoch of `spec` in their first order, or in the second one, that of partners from a second batch.
    pub fn order(&self, spec: &FeedSpec, epoch: u64, second: bool) -> Vec<SampleId> {
        let rng = |batch: u64| rng::at(spec.seed, Stream::Permutation, epoch, batch, 0);
        match spec.shuffle {
            Shuffle::Off if !second => (0..self.samples).collect(),
            // A second order is always a shuffled one: in the order of the index every row would be its own partner.
            Shuffle::Off | Shuffle::Global => rng::permutation(rng(second.into()), self.samples),
            // The second order goes through the same shards at the same time, so that no others need be read for it.
            Shuffle::Shards(_) => {
                let mut rng = rng(1 + u64::from(second));
                let mut order = Vec::with_capacity(self.samples as usize);
                for window in self.shards_in_order(spec, epoch) {
                    let start = order.len();
                    order.extend(window.into_iter().flat_map(|shard| self.shard(shard)));
                    rng::shuffle(&mut rng, &mut order[start..]);
                }
                order
            }
        }
    }
}

/// The shards that an epoch reads, so many at a time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Windows {
    /// For each window, the first sample of each of its shards.
    pub shards: Vec<Vec<SampleId>>,
    /// For each window, the position in the epoch's order at which it ends.
    ends: Vec<u64>,
}

impl Windows {
    /// The window that a position of the epoch's order lies in; the first one from its end on, where the order's head comes again.
    pub fn at(&self, position: u64) -> usize {
        self.ends.partition_point(|&end| end <= position) % self.ends.len().max(1)
    }
}

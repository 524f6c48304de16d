//! What feeds have delivered since the daemon's start, closed ones included, so that counters never fall.

use crate::ring::{BUCKETS, ReaderStatus};
use std::time::Duration;

/// Times in the buckets of a cursor ([`bucket_max_ns`](crate::ring::bucket_max_ns)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Histogram {
    /// How many, by bucket.
    pub counts: [u64; BUCKETS],
    /// Their sum.
    pub sum: Duration,
}

impl Histogram {
    fn add(&mut self, counts: &[u64; BUCKETS], sum: Duration) {
        self.counts.iter_mut().zip(counts).for_each(|(total, more)| *total = total.saturating_add(*more));
        self.sum = self.sum.saturating_add(sum);
    }
}

/// What one or several feeds have delivered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Batches published.
    pub published: u64,
    /// Batches read, by each trainer.
    pub read: u64,
    /// Batches skipped.
    pub skipped: u64,
    /// Trainers that were evicted.
    pub evicted: u64,
    /// How long trainers waited for each batch.
    pub waits: Histogram,
    /// From the publication of a batch until a trainer that waited for it had it.
    pub handovers: Histogram,
}

impl Totals {
    /// Adds what a reader has read. Its counts lie in memory that it may write, so sums saturate.
    pub fn add_reader(&mut self, reader: &ReaderStatus) {
        self.read = self.read.saturating_add(reader.read);
        self.skipped = self.skipped.saturating_add(reader.skipped);
        self.evicted += u64::from(reader.evicted);
        self.waits.add(&reader.waits, reader.waited);
        self.handovers.add(&reader.handovers, reader.handed_over);
    }
}

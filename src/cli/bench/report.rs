//! What the bench and its trainers say to each other.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What a trainer reads of each batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Touch {
    /// The header and one element of every image.
    Element,
    /// Every byte.
    All,
}

/// What a trainer reports on its standard output, a line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// The warm-up is over.
    Warm {
        /// How long attaching took.
        attach_ns: u64,
        /// When the first batch was there, on the machine's clock.
        first_batch_ns: u64,
    },
    /// A round begins: what was made while nobody read is out of the way.
    Counting,
    /// A round was counted.
    Round(Counted),
}

/// A trainer's figures of a round.
#[derive(Debug, Serialize, Deserialize)]
pub struct Counted {
    /// Images read.
    pub images: u64,
    /// In how many seconds.
    pub seconds: f64,
    /// Processor time of the trainer meanwhile.
    pub cpu_seconds: f64,
    /// From publishing to the trainer being awake, for each batch that it waited for, in microseconds.
    pub handoff_us: Vec<f64>,
    /// Of everything read, so that nothing is left out.
    pub checksum: u64,
}

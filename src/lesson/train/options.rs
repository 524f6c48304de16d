//! The options of a training.

use crate::types::Device;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How to train.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Options {
    /// Epochs, at least 1.
    pub epochs: u64,
    /// Learning rate of plain SGD: `p ← p − lr·∂/∂p`.
    pub lr: f64,
    /// ε of label smoothing, in [0, 1).
    pub smoothing: f64,
    /// How many of the last epochs the network is averaged over, for validation and in checkpoints; 0 averages none.
    /// Checkpoints of earlier versions lack it.
    #[serde(default)]
    pub average: u64,
    /// Seed of the initial weights.
    pub seed: u64,
    /// Where to train.
    #[serde(skip)]
    pub device: Device,
    /// Torch's threads; its own choice where not given.
    pub threads: Option<i32>,
    /// A checkpoint whose network to start from.
    pub load: Option<PathBuf>,
    /// Where to write the checkpoint, after each epoch.
    pub save: Option<PathBuf>,
    /// Batches of an epoch after which to write it, too.
    pub save_every: Option<u64>,
    /// Classes.
    pub classes: usize,
}

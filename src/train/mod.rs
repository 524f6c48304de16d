//! The trainer: the seed's network, the mixed and smoothed loss, and the loop over epochs.

mod checkpoint;
mod loss;
mod memory;
mod model;
mod report;
mod tensors;
mod trainer;

pub use checkpoint::CheckpointError;
pub use loss::{CrossEntropy, LabelSmoothing, Loss, MixedLoss, Reduction};
pub use model::Cnn;
pub use report::{JsonLog, Progress, table};
pub use tensors::BatchTensors;
pub use trainer::{Batches, EpochResult, Event, Options, TrainError, run};

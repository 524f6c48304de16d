//! The trainer: the seed's network, the mixed and smoothed loss, and the loop over epochs.
//!
//! The loop of a trainer of one's own:
//!
//! ```no_run
//! use mixd::client;
//! use mixd::spec::FeedSpec;
//! use mixd::lesson::train::{BatchTensors, Cnn, LabelSmoothing, MixedLoss, Reduction};
//! use tch::nn::{OptimizerConfig, Sgd, VarStore};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let variables = VarStore::new(tch::Device::Cpu);
//! let (cnn, criterion) = (Cnn::new(&variables, 10), MixedLoss(LabelSmoothing::new(0.1).unwrap()));
//! let mut optimizer = Sgd::default().build(&variables, 0.05)?;
//! let mut feed = client::attach(&client::default_socket(), &FeedSpec::train())?;
//! for lease in feed.epoch() {
//!     let lease = lease?;
//!     let view = lease.view();
//!     let batch = BatchTensors::new(&view, variables.device()).expect("f32, not u8");
//!     let loss = criterion.forward(&cnn.forward(&batch.x, true), &batch, Reduction::Mean);
//!     optimizer.backward_step(&loss);
//! }
//! # Ok(())
//! # }
//! ```

mod average;
mod checkpoint;
mod loss;
mod memory;
mod model;
mod options;
mod report;
mod results;
mod tensors;
mod trainer;

pub use checkpoint::{CheckpointError, State, state};
pub use loss::{CrossEntropy, LabelSmoothing, Loss, MixedLoss, Reduction};
pub use model::Cnn;
pub use options::Options;
pub use report::{JsonLog, Progress, conclusion, table};
pub use results::{EpochResult, Event, Running, ValidResult};
pub use tensors::BatchTensors;
pub use trainer::{Batches, TrainError, run};

/// Held by tests that draw from torch's generator, of which a process has one.
#[cfg(test)]
fn torch_random() -> std::sync::MutexGuard<'static, ()> {
    static GENERATOR: std::sync::Mutex<()> = std::sync::Mutex::new(());
    GENERATOR.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

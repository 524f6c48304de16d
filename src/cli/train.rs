//! `mixd train`: the seed's training, through shared memory.

#[cfg(feature = "torch")]
mod run;

use super::options::{DataArgs, JoinArgs, PipelineArgs, SocketArgs};
use crate::spec::FeedOptions;
use clap::Args;
use std::path::PathBuf;

/// Train the lesson's network on a daemon's batches, with mixup and label smoothing.
#[derive(Debug, Args)]
#[command(mut_arg("data", |data| data.conflicts_with("socket")))]
pub struct Train {
    // With a data set, it starts a daemon of its own on it; else it uses the one behind --socket.
    #[command(flatten)]
    data: Option<DataArgs>,
    #[command(flatten)]
    socket: SocketArgs,
    /// Epochs, those before a resumed run was saved included [default: 1; resumed: as it was].
    #[arg(long, env = "MIXD_EPOCHS", value_parser = clap::value_parser!(u64).range(1..))]
    epochs: Option<u64>,
    /// Learning rate.
    #[arg(long, env = "MIXD_LR", default_value_t = 0.4)]
    lr: f64,
    /// ε of label smoothing, in [0, 1).
    #[arg(long, env = "MIXD_SMOOTHING", default_value_t = 0.0)]
    smoothing: f64,
    /// Validate and save the mean of the network over the ends of the last so many epochs (stochastic weight averaging).
    ///
    /// Batch norm's running statistics are averaged with the weights. Resumed with more --epochs, the mean starts anew where it
    /// began before the last so many.
    #[arg(long, env = "MIXD_AVERAGE", value_name = "EPOCHS", default_value_t = 0)]
    average: u64,
    #[command(flatten)]
    feed: FeedOptions,
    #[command(flatten)]
    join: JoinArgs,
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// Torch's threads [default: its own choice].
    #[arg(long, env = "MIXD_THREADS", value_parser = clap::value_parser!(i32).range(1..))]
    threads: Option<i32>,
    /// Write every step and epoch to this file, as JSON lines; a resumed training adds to it.
    #[arg(long, env = "MIXD_LOG", value_name = "F.jsonl")]
    log: Option<PathBuf>,
    /// Write the network, and how far training is, to this file after each epoch [default when resumed: the file resumed from].
    #[arg(long, env = "MIXD_SAVE", value_name = "F.safetensors")]
    save: Option<PathBuf>,
    /// Write it after every so many batches of an epoch, too.
    #[arg(long, env = "MIXD_SAVE_EVERY", value_name = "BATCHES", value_parser = clap::value_parser!(u64).range(1..))]
    save_every: Option<u64>,
    /// Start from the network in this file.
    #[arg(long, env = "MIXD_LOAD", value_name = "F.safetensors")]
    load: Option<PathBuf>,
    /// Go on where the training that was saved in this file stood, with its options.
    #[arg(long, env = "MIXD_RESUME", value_name = "F.safetensors",
        conflicts_with_all = ["FeedOptions", "lr", "smoothing", "average", "load", "start", "share"])]
    resume: Option<PathBuf>,
}

//! `mixd train`: the seed's training, through shared memory.

use super::options::{FeedArgs, PipelineArgs, SocketArgs};
use super::own_daemon::OwnDaemon;
use crate::batch::BatchView;
use crate::client::{self, Feed};
use crate::config::{FeedSpec, Mix};
use crate::train::{self, Batches, Event, JsonLog, Options, Progress, TrainError};
use crate::types::Split;
use anyhow::Context;
use clap::Args;
use std::path::PathBuf;

/// Train the seed's network on a daemon's batches, with mixup and label smoothing.
#[derive(Debug, Args)]
pub struct Train {
    /// Start a daemon of its own on this image folder or archive [default: use the daemon behind --socket].
    #[arg(long, env = "MIXD_DATA", conflicts_with = "socket")]
    data: Option<PathBuf>,
    #[command(flatten)]
    socket: SocketArgs,
    /// Epochs.
    #[arg(long, env = "MIXD_EPOCHS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    epochs: u64,
    /// Learning rate.
    #[arg(long, env = "MIXD_LR", default_value_t = 0.4)]
    lr: f64,
    /// ε of label smoothing, in [0, 1).
    #[arg(long, env = "MIXD_SMOOTHING", default_value_t = 0.0)]
    smoothing: f64,
    #[command(flatten)]
    feed: FeedArgs,
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// Torch's threads [default: its own choice].
    #[arg(long, env = "MIXD_THREADS", value_parser = clap::value_parser!(i32).range(1..))]
    threads: Option<i32>,
    /// Write every step and epoch to this file, as JSON lines.
    #[arg(long, env = "MIXD_LOG", value_name = "F.jsonl")]
    log: Option<PathBuf>,
    /// Write the network to this file after each epoch.
    #[arg(long, env = "MIXD_SAVE", value_name = "F.safetensors")]
    save: Option<PathBuf>,
    /// Start from the network in this file.
    #[arg(long, env = "MIXD_LOAD", value_name = "F.safetensors")]
    load: Option<PathBuf>,
}

impl Train {
    pub fn run(self) -> anyhow::Result<()> {
        anyhow::ensure!(self.lr.is_finite() && self.lr > 0.0, "--lr is {}: it must be positive", self.lr);
        anyhow::ensure!(self.feed.split == Split::Train, "--split is not for train: it reads both splits");
        let spec = FeedSpec { smoothing: self.smoothing, ..self.feed.spec()? };
        spec.validate()?;
        let valid = FeedSpec {
            split: Split::Val,
            batch_size: FeedSpec::val().batch_size.max(2 * spec.batch_size).min(crate::config::BATCH_SIZE_MAX),
            shuffle: false,
            mix: Mix::None,
            last: crate::types::Last::Keep,
            rank: 0,
            world_size: 1,
            ..spec
        };
        let own = self.data.as_ref().map(|data| OwnDaemon::start(data, &self.pipeline.arguments())).transpose()?;
        let socket = own.as_ref().map_or_else(|| self.socket.path(), |own| own.socket().to_owned());
        let (mut train, mut valid) = (client::attach(&socket, &spec)?, client::attach(&socket, &valid)?);
        let options = Options {
            epochs: self.epochs,
            lr: self.lr,
            smoothing: self.smoothing,
            seed: spec.seed,
            device: self.pipeline.device,
            threads: self.threads,
            load: self.load,
            save: self.save,
            classes: train.classes().len(),
        };
        let log = self.log.as_ref();
        let mut log = log
            .map(|path| {
                JsonLog::create(path, &options, &spec).with_context(|| format!("cannot write {}", path.display()))
            })
            .transpose()?;
        let mut progress = Progress::new(self.epochs);
        let mut observe = |event: &Event| {
            progress.observe(event);
            log.as_mut().map_or(Ok(()), |log| log.observe(event))
        };
        let results = train::run(&options, &mut train, &mut valid, &mut observe)?;
        drop(progress);
        print!("{}", train::table(&results));
        // Trainers leave before their daemon is told to end.
        drop((train, valid, own));
        Ok(())
    }
}

impl Batches for Feed {
    fn batches(&self) -> u64 {
        Feed::batches(self)
    }

    fn epoch(&mut self, use_batch: &mut dyn FnMut(&BatchView<'_>) -> Result<(), TrainError>) -> Result<(), TrainError> {
        for batch in Feed::epoch(self) {
            use_batch(&batch.map_err(|error| TrainError::Feed(error.to_string()))?.view())?;
        }
        Ok(())
    }
}

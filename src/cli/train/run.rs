//! Running `mixd train`: its feeds, the loop, what is shown and logged.

use super::Train;
use crate::batch::BatchView;
use crate::cli::own_daemon::OwnDaemon;
use crate::client::{self, Feed};
use crate::escape::escaped;
use crate::lesson::train::{self, Batches, Event, JsonLog, Options, Progress, TrainError};
use crate::spec::{FeedOptions, FeedSpec, Mix, Recipe, Shuffle};
use crate::types::{Place, Split, Start};
use anyhow::Context;
use std::time::Duration;

impl Train {
    pub fn run(self) -> anyhow::Result<()> {
        anyhow::ensure!(self.lr.is_finite() && self.lr > 0.0, "--lr is {}: it must be positive", self.lr);
        anyhow::ensure!(self.feed.split() == Split::Train, "--split is not for train: it reads both splits");
        let resumed = self.resume.as_deref().map(train::state).transpose()?;
        let recipe = match (&self.data, &resumed) {
            (None, None) => client::recipe(&self.socket.path())?,
            // A daemon of its own has no recipe, and what is resumed has its specs.
            _ => Recipe::default(),
        };
        let spec = match &resumed {
            Some(state) => FeedSpec { start: Start::At(state.place), share: None, ..state.feed },
            None => self.join.spec(FeedSpec { smoothing: self.smoothing, ..self.feed.spec_or(&recipe)? })?,
        };
        let spec = FeedSpec { device: self.pipeline.batch_device(), ..spec };
        spec.validate()?;
        let FeedSpec { image_size, crop, interpolation, .. } = match &resumed {
            Some(state) => state.valid,
            None => FeedOptions { split: Some(Split::Val), ..self.feed.clone() }.spec_or(&recipe)?,
        };
        let valid = FeedSpec {
            split: Split::Val,
            batch_size: FeedSpec::val().batch_size.max(2 * spec.batch_size).min(crate::spec::BATCH_SIZE_MAX),
            image_size,
            crop,
            interpolation,
            flip: 0.0,
            shuffle: Shuffle::Off,
            mix: Mix::NONE,
            last: crate::types::Last::Keep,
            repeats: 1,
            rank: 0,
            world_size: 1,
            consumed: None,
            // Where trainers validate at the same time, they share the samples.
            share: None,
            start: Start::Now,
            ..spec
        };
        let own = self.data.as_ref().map(|data| OwnDaemon::start(data, &self.pipeline.arguments())).transpose()?;
        let socket = own.as_ref().map_or_else(|| self.socket.path(), |own| own.socket().to_owned());
        // A daemon of its own is not started again.
        let reconnect = if own.is_some() { Duration::ZERO } else { self.join.reconnect()? };
        let attach = |spec| client::attach_for(&socket, spec, reconnect);
        let feeds = [&spec, &valid];
        let mut train = attach(feeds[0])?;
        let has_validation = client::status(&socket)?.val_samples > 0;
        if !has_validation {
            tracing::warn!(
                "the data set has no validation split: only the training loss is reported (name one with --splits val=FOLDER, or set \
                 training images aside with --holdout 0.1)"
            );
        }
        let mut valid = has_validation.then(|| attach(feeds[1])).transpose()?;
        anyhow::ensure!(
            train.label_sets().is_empty(),
            "the images of this data set have several labels, and this network is for one (train with the Python package: BCEMixedLoss)"
        );
        let saved = resumed.as_ref().map(|state| state.options.clone());
        let saved = saved.unwrap_or(Options {
            epochs: 1,
            lr: self.lr,
            smoothing: self.smoothing,
            average: self.average,
            ..Options::default()
        });
        let options = Options {
            epochs: self.epochs.unwrap_or(saved.epochs),
            seed: spec.seed,
            device: self.pipeline.device,
            threads: self.threads.or(saved.threads),
            load: self.load.or_else(|| self.resume.clone()),
            save: self.save.or(self.resume),
            save_every: self.save_every.or(saved.save_every),
            classes: train.classes().len(),
            ..saved
        };
        anyhow::ensure!(
            options.save_every.is_none() || options.save.is_some(),
            "--save-every says when to save, but not where (name a file with --save)"
        );
        if resumed.as_ref().is_some_and(|state| state.identity != train.identity()) {
            tracing::warn!(
                "goes on, but not to the bit: the batches are not those of the training that was saved, since the data set's path, the \
                 decoder, the resize, the mixer or the version is another"
            );
        }
        let log = self.log.as_ref();
        let mut log = log
            .map(|path| {
                JsonLog::open(path, &options, &spec, resumed.is_some())
                    .with_context(|| format!("cannot write {}", escaped(&path)))
            })
            .transpose()?;
        let first_epoch = resumed.as_ref().map_or(train.place().epoch, |state| state.first_epoch);
        let mut progress = Progress::new(first_epoch + options.epochs);
        let mut observe = |event: &Event| {
            progress.observe(event);
            log.as_mut().map_or(Ok(()), |log| log.observe(event))
        };
        let batches = valid.as_mut().map(|valid| valid as &mut dyn Batches);
        let results = train::run(&options, feeds, resumed, &mut train, batches, &mut observe)?;
        drop(progress);
        // Trainers leave before their daemon is told to end.
        drop((train, valid, own));
        let conclusion = train::conclusion(&results, options.classes);
        crate::cli::print(|out| write!(out, "{}{conclusion}", train::table(&results)))
    }
}

impl Batches for Feed {
    fn batches(&self) -> u64 {
        Feed::batches(self)
    }

    fn place(&self) -> Place {
        Feed::place(self)
    }

    fn identity(&self) -> u64 {
        Feed::identity(self)
    }

    fn epoch(&mut self, use_batch: &mut dyn FnMut(&BatchView<'_>) -> Result<(), TrainError>) -> Result<(), TrainError> {
        for batch in Feed::epoch(self) {
            use_batch(&batch.map_err(|error| TrainError::Feed(error.to_string()))?.view())?;
        }
        Ok(())
    }
}

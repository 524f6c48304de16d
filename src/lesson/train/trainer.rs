//! The loop: epochs of training over mixed batches, each followed by validation over unmixed ones where there are any.

use super::average::Average;
use super::checkpoint::{self, CheckpointError, State};
use super::options::Options;
use super::results::{EpochResult, Event, Running, ValidResult};
use super::{BatchTensors, Cnn, CrossEntropy, LabelSmoothing, Loss, MixedLoss, Reduction};
use crate::batch::BatchView;
use crate::escape::escaped;
use crate::mix::{MixError, torch_device};
use crate::spec::FeedSpec;
use crate::types::Place;
use std::path::Path;
use std::time::Instant;
use tch::nn::VarStore;
use tch::{Kind, Tensor, no_grad};

/// ε of the smoothed loss that validation reports when training itself does not smooth.
const REPORTED_SMOOTHING: f64 = 0.1;

/// Where batches come from.
pub trait Batches {
    /// Batches in each epoch.
    fn batches(&self) -> u64;

    /// The next batch, unless batches are skipped.
    fn place(&self) -> Place;

    /// Hash of what decides the batches' bytes beside the feed's spec.
    fn identity(&self) -> u64;

    /// Hands every batch of the rest of the epoch to `use_batch`, in order.
    ///
    /// # Errors
    /// Those of `use_batch`, or [`TrainError::Feed`] when the batches stop coming.
    fn epoch(&mut self, use_batch: &mut dyn FnMut(&BatchView<'_>) -> Result<(), TrainError>) -> Result<(), TrainError>;
}

/// Why training stopped.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The batches stopped coming.
    #[error("the batches stopped coming: {0}")]
    Feed(String),
    /// A training batch of one image.
    #[error(
        "batch {index} of epoch {epoch} has one image, for which batch norm has no variance (use --last drop, or another --batch-size)"
    )]
    OneImage {
        /// Which epoch.
        epoch: u64,
        /// Which batch.
        index: u64,
    },
    /// The loss is no number any more.
    #[error("the loss of batch {index} of epoch {epoch} is {loss} (use a smaller --lr)")]
    NotFinite {
        /// Which epoch.
        epoch: u64,
        /// Which batch.
        index: u64,
        /// The loss.
        loss: f64,
    },
    /// The network gives no numbers any more, which is not saved.
    #[error("after epoch {epoch} the network gives no numbers any more (use a smaller --lr)")]
    Diverged {
        /// Which epoch.
        epoch: u64,
    },
    /// Raw pixels.
    #[error("u8 batches are not normalised and cannot be trained on (use --dtype f32, bf16 or f16)")]
    RawPixels,
    /// The smoothing is out of range.
    #[error("smoothing is {0}: it must be in [0, 1)")]
    Smoothing(f64),
    /// The device is not there.
    #[error(transparent)]
    Device(#[from] MixError),
    /// A checkpoint failed.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The report could not be written.
    #[error("cannot write the log: {0}")]
    Log(#[from] std::io::Error),
}

fn right(logits: &Tensor, labels: &Tensor) -> f64 {
    logits.argmax(1, false).eq_tensor(labels).sum(Kind::Float).double_value(&[])
}

/// A training in progress.
struct Training<'a> {
    options: &'a Options,
    /// What it trains on, and what it validates on.
    feeds: [FeedSpec; 2],
    /// [`Batches::identity`] of the training batches.
    identity: u64,
    device: tch::Device,
    criterion: MixedLoss<LabelSmoothing>,
    /// The smoothed loss that validation reports.
    smoothed: LabelSmoothing,
    variables: VarStore,
    cnn: Cnn,
    average: Option<Average>,
    first_epoch: u64,
    /// Of the epoch so far.
    running: Running,
    results: Vec<EpochResult>,
}

impl<'a> Training<'a> {
    /// At its beginning, or where `resumed` stood; `place` is that of its next batch.
    fn new(
        options: &'a Options,
        feeds: [&FeedSpec; 2],
        resumed: Option<State>,
        (place, identity): (Place, u64),
    ) -> Result<Self, TrainError> {
        let smoothing = |epsilon| LabelSmoothing::new(epsilon).ok_or(TrainError::Smoothing(epsilon));
        let criterion = MixedLoss(smoothing(options.smoothing)?);
        let smoothed = smoothing(if options.smoothing > 0.0 { options.smoothing } else { REPORTED_SMOOTHING })?;
        let device = torch_device(options.device)?;
        if let Some(threads) = options.threads {
            tch::set_num_threads(threads);
        }
        super::memory::keep();
        tch::manual_seed(options.seed as i64);
        let variables = VarStore::new(device);
        let cnn = Cnn::new(&variables, options.classes as i64);
        let average = (options.average > 0).then(|| Average::new(device, options.classes as i64));
        options.save.as_deref().map_or(Ok(()), checkpoint::check)?;
        let (first_epoch, averaged, running, results) = match resumed {
            Some(State { first_epoch, averaged, running, results, .. }) => (first_epoch, averaged, running, results),
            None => (place.epoch, 0, Running::default(), Vec::new()),
        };
        let feeds = feeds.map(|feed| *feed);
        let mut training = Self {
            options,
            feeds,
            identity,
            device,
            criterion,
            smoothed,
            variables,
            cnn,
            average,
            first_epoch,
            running,
            results,
        };
        if let Some(path) = &options.load {
            training.load(path, averaged, place.epoch)?;
        }
        Ok(training)
    }

    /// Reads a checkpoint, whose network is the mean over `averaged` epochs, to go on with the epoch `next`.
    fn load(&mut self, path: &Path, averaged: u64, next: u64) -> Result<(), CheckpointError> {
        checkpoint::load(&self.variables, if averaged > 0 { checkpoint::TRAINING } else { "" }, path)?;
        // With more epochs than before, the mean is wanted over later ones, and cannot be taken apart.
        let is_still_wanted = averaged > 0 && next >= self.averaged_from() + averaged;
        if let Some(average) = self.average.as_mut().filter(|_| is_still_wanted) {
            checkpoint::load(&average.variables, "", path)?;
            average.epochs = averaged;
        } else if averaged > 0 && self.average.is_some() {
            tracing::warn!(
                "the mean of the network starts anew: the one in {} is over epochs before the last {} of this training",
                escaped(&path),
                self.options.average
            );
        }
        Ok(())
    }

    /// The epoch that is not trained any more.
    fn end(&self) -> u64 {
        self.first_epoch + self.options.epochs
    }

    /// The first epoch whose end the mean is taken over.
    fn averaged_from(&self) -> u64 {
        self.end() - self.options.average.min(self.options.epochs)
    }

    /// The mean of the network, once there is one.
    fn mean(&self) -> Option<&Average> {
        self.average.as_ref().filter(|average| average.epochs > 0)
    }

    /// Trains on the rest of an epoch, and returns which it was: of a feed that skips batches, that of those that come.
    fn train_epoch(
        &mut self,
        train: &mut dyn Batches,
        observe: &mut dyn FnMut(&Event) -> std::io::Result<()>,
    ) -> Result<u64, TrainError> {
        let (batches, mut epoch) = (train.batches(), train.place().epoch);
        train.epoch(&mut |view| {
            let loss = self.step(view)?;
            let index = view.head.index;
            epoch = view.head.epoch;
            let (running_loss, running_acc) = (self.running.mean_loss(), self.running.accuracy());
            observe(&Event::Step { epoch, index, batches, loss, running_loss, running_acc })?;
            let next = index + 1;
            if next < batches && self.options.save_every.is_some_and(|every| next.is_multiple_of(every)) {
                self.save(Place { epoch, index: next })?;
            }
            Ok(())
        })?;
        let averaged_from = self.averaged_from();
        if let Some(average) = self.average.as_mut().filter(|_| epoch >= averaged_from) {
            average.add(&self.variables);
        }
        Ok(epoch)
    }

    /// Forward, backward and one step of SGD on a batch; returns its loss.
    fn step(&mut self, view: &BatchView<'_>) -> Result<f64, TrainError> {
        let (epoch, index) = (view.head.epoch, view.head.index);
        if view.len() == 1 {
            return Err(TrainError::OneImage { epoch, index });
        }
        let batch = BatchTensors::new(view, self.device).ok_or(TrainError::RawPixels)?;
        let logits = self.cnn.forward(&batch.x, true);
        let loss = self.criterion.forward(&logits, &batch, Reduction::Mean);
        loss.backward();
        no_grad(|| {
            for mut parameter in self.variables.trainable_variables() {
                let mut gradient = parameter.grad();
                let _ = parameter.f_sub_(&(&gradient * self.options.lr)).expect("shapes agree");
                let _ = gradient.zero_();
            }
        });
        let loss = loss.double_value(&[]);
        if !loss.is_finite() {
            return Err(TrainError::NotFinite { epoch, index, loss });
        }
        self.running.add(view.len() as f64, loss, right(&logits, &batch.label_a));
        Ok(loss)
    }

    /// Validates the network, or its mean, after an epoch.
    fn validate(&self, epoch: u64, valid: &mut dyn Batches) -> Result<ValidResult, TrainError> {
        let start = Instant::now();
        let cnn = self.mean().map_or(&self.cnn, |average| &average.cnn);
        let (mut validated, mut smoothed) = (Running::default(), 0.0);
        valid.epoch(&mut |view| {
            no_grad(|| {
                let batch = BatchTensors::new(view, self.device).ok_or(TrainError::RawPixels)?;
                let logits = cnn.forward(&batch.x, false);
                let sum = |loss: &dyn Loss| loss.per_image(&logits, &batch.label_a).sum(Kind::Double).double_value(&[]);
                let images = view.len() as f64;
                validated.add(images, sum(&CrossEntropy) / images, right(&logits, &batch.label_a));
                smoothed += sum(&self.smoothed);
                Ok(())
            })
        })?;
        let (ce, ls) = (validated.mean_loss(), smoothed / validated.images);
        if !(ce + ls).is_finite() {
            return Err(TrainError::Diverged { epoch });
        }
        Ok(ValidResult { ce, ls, acc: validated.accuracy(), seconds: start.elapsed().as_secs_f64() })
    }

    /// Checks what validation would show: the last step may have left weights that are no numbers, which are not to be saved.
    fn check_weights(&self, epoch: u64) -> Result<(), TrainError> {
        let is_finite = |weights: &Tensor| no_grad(|| weights.sum(Kind::Double).double_value(&[])).is_finite();
        let all_are = self.variables.trainable_variables().iter().all(is_finite);
        if all_are { Ok(()) } else { Err(TrainError::Diverged { epoch }) }
    }

    /// Writes the checkpoint, if one is wanted, whose next batch is `place`.
    fn save(&self, place: Place) -> Result<(), CheckpointError> {
        let Some(path) = &self.options.save else { return Ok(()) };
        let [feed, valid] = self.feeds;
        let state = State {
            options: self.options.clone(),
            feed,
            valid,
            identity: self.identity,
            first_epoch: self.first_epoch,
            place,
            running: self.running.clone(),
            results: self.results.clone(),
            averaged: self.mean().map_or(0, |average| average.epochs),
        };
        checkpoint::save(&self.variables, self.mean().map(|average| &average.variables), &state, path)
    }
}

/// Trains on batches of the first of `feeds`, validating on those of the second where `valid` gives any, from where `resumed`
/// stood or from the beginning, and returns the result of each epoch.
///
/// # Errors
/// When the batches stop coming, the device is not there, or a file cannot be read or written.
pub fn run(
    options: &Options,
    feeds: [&FeedSpec; 2],
    resumed: Option<State>,
    train: &mut dyn Batches,
    mut valid: Option<&mut dyn Batches>,
    observe: &mut dyn FnMut(&Event) -> std::io::Result<()>,
) -> Result<Vec<EpochResult>, TrainError> {
    let mut training = Training::new(options, feeds, resumed, (train.place(), train.identity()))?;
    while train.place().epoch < training.end() {
        let (before, start) = (training.running.images, Instant::now());
        let epoch = training.train_epoch(train, observe)?;
        let train_s = start.elapsed().as_secs_f64();
        let valid = match &mut valid {
            Some(valid) => {
                observe(&Event::Validating)?;
                Some(training.validate(epoch, &mut **valid)?)
            }
            None => {
                training.check_weights(epoch)?;
                None
            }
        };
        let running = std::mem::take(&mut training.running);
        let result = EpochResult {
            epoch,
            train_loss: running.mean_loss(),
            train_acc: running.accuracy(),
            last30_loss: running.last_losses.iter().sum::<f64>() / running.last_losses.len() as f64,
            train_s,
            images_per_s: (running.images - before) / train_s,
            valid,
        };
        observe(&Event::Epoch(result))?;
        training.results.push(result);
        training.save(Place { epoch: epoch + 1, index: 0 })?;
    }
    Ok(training.results)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Head;
    use crate::columns::Columns;
    use crate::types::{Device, Dtype, ImageSize, Layout};

    /// Noise images of 32 × 32, the same each epoch.
    struct Noise {
        batch_size: usize,
        batches: u64,
        dtype: Dtype,
        place: Place,
    }

    impl Batches for Noise {
        fn batches(&self) -> u64 {
            self.batches
        }

        fn place(&self) -> Place {
            self.place
        }

        fn identity(&self) -> u64 {
            7
        }

        fn epoch(
            &mut self,
            use_batch: &mut dyn FnMut(&BatchView<'_>) -> Result<(), TrainError>,
        ) -> Result<(), TrainError> {
            let image_size = ImageSize::square(32);
            for index in self.place.index..self.batches {
                let count = self.batch_size * image_size.values();
                let x: Vec<f32> =
                    (0..count as u64).map(|n| ((n * 2_654_435_761 + index * 97) % 1000) as f32 / 500.0 - 1.0).collect();
                let labels: Vec<i64> = (0..self.batch_size as i64).map(|row| row % 3).collect();
                let rows: Vec<u32> = (0..self.batch_size as u32).collect();
                let partner: Vec<i32> = (0..self.batch_size as i32).collect();
                use_batch(&BatchView {
                    x_on_device: None,
                    x: &bytemuck::cast_slice(&x)[..count * self.dtype.bytes()],
                    dtype: self.dtype,
                    layout: Layout::Nchw,
                    image_size,
                    columns: Columns {
                        label_a: &labels,
                        label_b: &labels,
                        lambda: &vec![1.0; self.batch_size],
                        partner: &partner,
                        sample_id: &rows,
                        partner_id: &rows,
                        ..Columns::default()
                    },
                    head: Head { epoch: self.place.epoch, index, batches: self.batches, ..Head::default() },
                })?;
            }
            self.place = Place { epoch: self.place.epoch + 1, index: 0 };
            Ok(())
        }
    }

    fn options(seed: u64) -> Options {
        Options {
            epochs: 2,
            lr: 0.002,
            smoothing: 0.1,
            seed,
            device: Device::Cpu,
            threads: Some(1),
            classes: 3,
            ..Options::default()
        }
    }

    fn run_with(
        options: &Options,
        batch_size: usize,
        dtype: Dtype,
        resumed: Option<State>,
    ) -> Result<(Vec<EpochResult>, Vec<f64>), TrainError> {
        let _random = super::super::torch_random();
        let source = |place| Noise { batch_size, batches: 3, dtype, place };
        let place = resumed.as_ref().map_or(Place::default(), |state| state.place);
        run_on(options, resumed, &mut source(place), Some(&mut source(Place::default())))
    }

    fn run_on(
        options: &Options,
        resumed: Option<State>,
        train: &mut dyn Batches,
        valid: Option<&mut dyn Batches>,
    ) -> Result<(Vec<EpochResult>, Vec<f64>), TrainError> {
        let mut losses = Vec::new();
        let results = run(options, [&FeedSpec::train(), &FeedSpec::val()], resumed, train, valid, &mut |event| {
            if let Event::Step { loss, .. } = event {
                losses.push(*loss);
            }
            Ok(())
        })?;
        Ok((results, losses))
    }

    fn train(batch_size: usize, dtype: Dtype, seed: u64) -> Result<(Vec<EpochResult>, Vec<f64>), TrainError> {
        run_with(&options(seed), batch_size, dtype, None)
    }

    /// Runs until the step of this number, from 1, whose observer fails: it is done, and not saved.
    fn interrupt(options: &Options, mut steps: u64) {
        let _random = super::super::torch_random();
        let source = || Noise { batch_size: 6, batches: 3, dtype: Dtype::F32, place: Place::default() };
        let feeds = [&FeedSpec::train(), &FeedSpec::val()];
        let interrupted = run(options, feeds, None, &mut source(), Some(&mut source()), &mut |event| {
            steps -= u64::from(matches!(event, Event::Step { .. }));
            if steps == 0 { Err(std::io::ErrorKind::Interrupted.into()) } else { Ok(()) }
        });
        assert!(matches!(interrupted, Err(TrainError::Log(_))));
    }

    fn untimed(results: &[EpochResult]) -> Vec<EpochResult> {
        let valid = |valid: ValidResult| ValidResult { seconds: 0.0, ..valid };
        let untimed =
            |r: &EpochResult| EpochResult { train_s: 0.0, images_per_s: 0.0, valid: r.valid.map(valid), ..*r };
        results.iter().map(untimed).collect()
    }

    #[test]
    fn without_validation_images_the_training_is_the_same_and_nothing_is_validated() {
        let (validated, losses) = train(6, Dtype::F32, 1).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let saving = Options { save: Some(dir.path().join("model.safetensors")), ..options(1) };
        let mut source = Noise { batch_size: 6, batches: 3, dtype: Dtype::F32, place: Place::default() };
        let random = super::super::torch_random();
        let (results, same) = run_on(&saving, None, &mut source, None).unwrap();
        drop(random);
        assert_eq!(same, losses);
        let trained: Vec<_> =
            untimed(&validated).into_iter().map(|result| EpochResult { valid: None, ..result }).collect();
        assert_eq!(untimed(&results), trained);
        let saved = checkpoint::state(&dir.path().join("model.safetensors")).unwrap();
        assert_eq!(saved.results, results);
    }

    #[test]
    fn a_run_that_is_resumed_anywhere_equals_one_that_was_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let (results, losses) = train(6, Dtype::F32, 1).unwrap();
        // The last file that a run of one epoch writes is that of its end; one that stops half-way leaves that of batch 2.
        for (epochs, half_way) in [(1, false), (1, true), (2, true)] {
            let saving = Options { epochs, save: Some(path.clone()), save_every: Some(2), ..options(1) };
            let done = if half_way {
                // The step after the one that is saved.
                interrupt(&saving, 3 * (epochs - 1) + 3);
                3 * (epochs - 1) + 2
            } else {
                run_with(&saving, 6, Dtype::F32, None).unwrap();
                3
            };
            let state = checkpoint::state(&path).unwrap();
            assert_eq!((state.place.epoch, state.place.index), (done / 3, done % 3));
            let resumed = Options { load: Some(path.clone()), ..options(1) };
            let (again, rest) = run_with(&resumed, 6, Dtype::F32, Some(state)).unwrap();
            assert_eq!(rest, losses[done as usize..]);
            assert_eq!(untimed(&again), untimed(&results));
        }
    }

    #[test]
    fn averaging_changes_what_is_validated_from_the_second_end_on_and_never_the_training() {
        let (plain, losses) = train(6, Dtype::F32, 1).unwrap();
        let (averaged, same) = run_with(&Options { average: 2, ..options(1) }, 6, Dtype::F32, None).unwrap();
        assert_eq!(same, losses);
        // The mean of one epoch's end is that end.
        assert_eq!(untimed(&averaged)[0], untimed(&plain)[0]);
        assert_ne!(averaged[1].valid.unwrap().ce, plain[1].valid.unwrap().ce);
        let (last, _) = run_with(&Options { average: 1, ..options(1) }, 6, Dtype::F32, None).unwrap();
        assert_eq!(untimed(&last), untimed(&plain));
    }

    #[test]
    fn an_averaged_run_that_is_interrupted_anywhere_and_resumed_equals_one_that_was_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let averaged = Options { average: 2, epochs: 3, ..options(1) };
        let (results, losses) = run_with(&averaged, 6, Dtype::F32, None).unwrap();
        let resume = |more: u64| {
            let state = checkpoint::state(&path).unwrap();
            let options =
                Options { load: Some(path.clone()), epochs: state.options.epochs + more, ..state.options.clone() };
            run_with(&options, 6, Dtype::F32, Some(state)).unwrap()
        };
        for done in 1..9 {
            interrupt(&Options { save: Some(path.clone()), save_every: Some(1), ..averaged.clone() }, done + 1);
            let state = checkpoint::state(&path).unwrap();
            assert_eq!(
                (state.place, state.averaged),
                (Place { epoch: done / 3, index: done % 3 }, (done / 3).max(1) - 1)
            );
            let (again, rest) = resume(0);
            assert_eq!(rest, losses[done as usize..], "from step {done}");
            assert_eq!(untimed(&again), untimed(&results), "from step {done}");
        }
        // With more epochs, so many that none of the file's mean is wanted, as from the beginning.
        let longer = Options { epochs: 5, ..averaged };
        let expected = untimed(&run_with(&longer, 6, Dtype::F32, None).unwrap().0);
        for done in [2, 7, 9] {
            let saving = Options { save: Some(path.clone()), save_every: Some(1), epochs: 3, ..longer.clone() };
            if done < 9 {
                interrupt(&saving, done + 1);
            } else {
                run_with(&saving, 6, Dtype::F32, None).unwrap();
            }
            assert_eq!(untimed(&resume(2).0)[3..], expected[3..], "from step {done}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_losses_and_another_does_not() {
        let losses = |seed| train(6, Dtype::F32, seed).unwrap().1;
        let first = losses(1);
        assert_eq!(first.len(), 6);
        assert_eq!(first, losses(1));
        assert_ne!(first, losses(2));
    }

    #[test]
    fn training_learns_what_it_sees() {
        let (results, losses) = train(6, Dtype::F32, 1).unwrap();
        let mean = losses[..3].iter().sum::<f64>() / 3.0;
        assert!((results[0].train_loss - mean).abs() < 1e-9 && (results[0].last30_loss - mean).abs() < 1e-9);
        assert!(results[1].train_loss < results[0].train_loss, "{losses:?}");
        let is_sound = |valid: ValidResult| (0.0..=1.0).contains(&valid.acc) && valid.ce.is_finite();
        assert!(results.iter().all(|result| result.valid.is_some_and(is_sound)));
    }

    #[test]
    fn a_batch_of_one_and_raw_pixels_are_refused_with_the_remedy() {
        let refused = |batch_size, dtype| train(batch_size, dtype, 1).unwrap_err().to_string();
        assert!(refused(1, Dtype::F32).contains("--last drop"));
        assert!(refused(4, Dtype::U8).contains("--dtype f32"));
    }
}

//! The loop: epochs of training over mixed batches, each followed by validation over unmixed ones.

use super::checkpoint::{self, CheckpointError, State};
use super::{BatchTensors, Cnn, CrossEntropy, LabelSmoothing, Loss, MixedLoss, Reduction};
use crate::batch::BatchView;
#[cfg(test)]
use crate::batch::Head;
#[cfg(test)]
use crate::columns::Columns;
use crate::mix::{MixError, torch_device};
use crate::spec::FeedSpec;
use crate::types::{Device, Place};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Instant;
use tch::nn::VarStore;
use tch::{Kind, Tensor, no_grad};

/// ε of the smoothed loss that validation reports when training itself does not smooth.
const REPORTED_SMOOTHING: f64 = 0.1;

/// Losses that the mean of the last ones is taken over.
const LAST_LOSSES: usize = 30;

/// How to train.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Options {
    /// Epochs, at least 1.
    pub epochs: u64,
    /// Learning rate of plain SGD: `p ← p − lr·∂/∂p`.
    pub lr: f64,
    /// ε of label smoothing, in [0, 1).
    pub smoothing: f64,
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
    #[error("after epoch {epoch} the loss on the validation images is no number (use a smaller --lr)")]
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

/// What came of one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EpochResult {
    /// From 0, as in plans and batches.
    pub epoch: u64,
    /// The mixed, smoothed loss, mean over images.
    pub train_loss: f64,
    /// Share of mixed images whose own label was predicted.
    pub train_acc: f64,
    /// Mean of the last 30 batches' losses.
    pub last30_loss: f64,
    /// Plain cross-entropy on validation images.
    pub valid_ce: f64,
    /// Smoothed loss on validation images.
    pub valid_ls: f64,
    /// Share of validation images predicted right.
    pub valid_acc: f64,
    /// Seconds of training.
    pub train_s: f64,
    /// Seconds of validation.
    pub valid_s: f64,
    /// Training images a second.
    pub images_per_s: f64,
}

/// What happens while training.
#[derive(Debug, Clone, Copy)]
pub enum Event {
    /// A training batch is done.
    Step {
        /// From 0.
        epoch: u64,
        /// From 0.
        index: u64,
        /// Batches in the epoch.
        batches: u64,
        /// The batch's loss.
        loss: f64,
        /// Mean over the epoch's images so far.
        running_loss: f64,
        /// Share over the epoch's images so far.
        running_acc: f64,
    },
    /// Validation begins.
    Validating,
    /// An epoch is done.
    Epoch(EpochResult),
}

/// Sums over the images of an epoch so far.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Running {
    /// Images.
    pub images: f64,
    /// Of their losses.
    pub loss: f64,
    /// Images whose own label was predicted.
    pub right: f64,
    /// Losses of the last batches, the newest last.
    pub last_losses: VecDeque<f64>,
}

impl Running {
    fn add(&mut self, images: f64, loss: f64, right: f64) {
        self.images += images;
        self.loss += loss * images;
        self.right += right;
        if self.last_losses.len() == LAST_LOSSES {
            self.last_losses.pop_front();
        }
        self.last_losses.push_back(loss);
    }
}

fn right(logits: &Tensor, labels: &Tensor) -> f64 {
    logits.argmax(1, false).eq_tensor(labels).sum(Kind::Float).double_value(&[])
}

/// Trains on batches of the first of `feeds`, validating on those of the second, from where `resumed` stood or from the beginning, and returns the result of each epoch.
///
/// # Errors
/// When the batches stop coming, the device is not there, or a file cannot be read or written.
pub fn run(
    options: &Options,
    feeds: [&FeedSpec; 2],
    resumed: Option<State>,
    train: &mut dyn Batches,
    valid: &mut dyn Batches,
    observe: &mut dyn FnMut(&Event) -> std::io::Result<()>,
) -> Result<Vec<EpochResult>, TrainError> {
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
    if let Some(path) = &options.load {
        checkpoint::load(&variables, path)?;
    }
    options.save.as_deref().map_or(Ok(()), checkpoint::check)?;
    let (batches, train_identity) = (train.batches(), train.identity());
    let (first_epoch, mut resumed_running, mut results) = match resumed {
        Some(State { first_epoch, running, results, .. }) => (first_epoch, Some(running), results),
        None => (train.place().epoch, None, Vec::new()),
    };
    let save = |place, running: &Running, results: &[EpochResult]| match &options.save {
        Some(path) => {
            let (running, results) = (running.clone(), results.to_vec());
            let (options, [feed, valid], identity) = (options.clone(), feeds.map(|feed| *feed), train_identity);
            let state = State { options, feed, valid, identity, first_epoch, place, running, results };
            checkpoint::save(&variables, &state, path)
        }
        None => Ok(()),
    };
    while train.place().epoch < first_epoch + options.epochs {
        let (mut running, start) = (resumed_running.take().unwrap_or_default(), Instant::now());
        // Of a feed that skips batches, the epoch of those that come.
        let (before, mut epoch) = (running.images, train.place().epoch);
        train.epoch(&mut |view| {
            if view.len() == 1 {
                return Err(TrainError::OneImage { epoch: view.head.epoch, index: view.head.index });
            }
            let batch = BatchTensors::new(view, device).ok_or(TrainError::RawPixels)?;
            let logits = cnn.forward(&batch.x, true);
            let loss = criterion.forward(&logits, &batch, Reduction::Mean);
            loss.backward();
            no_grad(|| {
                for mut parameter in variables.trainable_variables() {
                    let mut gradient = parameter.grad();
                    let _ = parameter.f_sub_(&(&gradient * options.lr)).expect("shapes agree");
                    let _ = gradient.zero_();
                }
            });
            let (images, loss) = (view.len() as f64, loss.double_value(&[]));
            if !loss.is_finite() {
                return Err(TrainError::NotFinite { epoch: view.head.epoch, index: view.head.index, loss });
            }
            running.add(images, loss, right(&logits, &batch.label_a));
            epoch = view.head.epoch;
            let (running_loss, running_acc) = (running.loss / running.images, running.right / running.images);
            observe(&Event::Step { epoch, index: view.head.index, batches, loss, running_loss, running_acc })?;
            let next = view.head.index + 1;
            if next < batches && options.save_every.is_some_and(|every| next.is_multiple_of(every)) {
                save(Place { epoch, index: next }, &running, &results)?;
            }
            Ok(())
        })?;
        let train_s = start.elapsed().as_secs_f64();
        observe(&Event::Validating)?;
        let (mut validated, mut smoothed_loss, start) = (Running::default(), 0.0, Instant::now());
        valid.epoch(&mut |view| {
            no_grad(|| {
                let batch = BatchTensors::new(view, device).ok_or(TrainError::RawPixels)?;
                let logits = cnn.forward(&batch.x, false);
                let sum = |loss: &dyn Loss| loss.per_image(&logits, &batch.label_a).sum(Kind::Double).double_value(&[]);
                let images = view.len() as f64;
                validated.add(images, sum(&CrossEntropy) / images, right(&logits, &batch.label_a));
                smoothed_loss += sum(&smoothed);
                Ok(())
            })
        })?;
        if !(validated.loss + smoothed_loss).is_finite() {
            return Err(TrainError::Diverged { epoch });
        }
        let last = &running.last_losses;
        let result = EpochResult {
            epoch,
            train_loss: running.loss / running.images,
            train_acc: running.right / running.images,
            last30_loss: last.iter().sum::<f64>() / last.len() as f64,
            valid_ce: validated.loss / validated.images,
            valid_ls: smoothed_loss / validated.images,
            valid_acc: validated.right / validated.images,
            train_s,
            valid_s: start.elapsed().as_secs_f64(),
            images_per_s: (running.images - before) / train_s,
        };
        observe(&Event::Epoch(result))?;
        results.push(result);
        save(Place { epoch: epoch + 1, index: 0 }, &Running::default(), &results)?;
    }
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Dtype, ImageSize, Layout};

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
        let (mut train, mut valid, mut losses) = (source(place), source(Place::default()), Vec::new());
        let results =
            run(options, [&FeedSpec::train(), &FeedSpec::val()], resumed, &mut train, &mut valid, &mut |event| {
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

    #[test]
    fn a_run_that_is_resumed_anywhere_equals_one_that_was_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let (results, losses) = train(6, Dtype::F32, 1).unwrap();
        let untimed = |results: &[EpochResult]| -> Vec<EpochResult> {
            results.iter().map(|r| EpochResult { train_s: 0.0, valid_s: 0.0, images_per_s: 0.0, ..*r }).collect()
        };
        // The last file that a run of one epoch writes is that of its end; one that stops half-way leaves that of batch 2.
        for (epochs, half_way) in [(1, false), (1, true), (2, true)] {
            let saving = Options { epochs, save: Some(path.clone()), save_every: Some(2), ..options(1) };
            let done = if half_way {
                let _random = super::super::torch_random();
                let source = || Noise { batch_size: 6, batches: 3, dtype: Dtype::F32, place: Place::default() };
                // The step after the one that is saved.
                let mut steps = 3 * (epochs - 1) + 3;
                let stopped = run(
                    &saving,
                    [&FeedSpec::train(), &FeedSpec::val()],
                    None,
                    &mut source(),
                    &mut source(),
                    &mut |event| {
                        steps -= u64::from(matches!(event, Event::Step { .. }));
                        if steps == 0 { Err(std::io::ErrorKind::Interrupted.into()) } else { Ok(()) }
                    },
                );
                assert!(matches!(stopped, Err(TrainError::Log(_))));
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
        assert!(results.iter().all(|result| (0.0..=1.0).contains(&result.valid_acc) && result.valid_ce.is_finite()));
    }

    #[test]
    fn a_batch_of_one_and_raw_pixels_are_refused_with_the_remedy() {
        let refused = |batch_size, dtype| train(batch_size, dtype, 1).unwrap_err().to_string();
        assert!(refused(1, Dtype::F32).contains("--last drop"));
        assert!(refused(4, Dtype::U8).contains("--dtype f32"));
    }
}

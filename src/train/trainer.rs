//! The loop: epochs of training over mixed batches, each followed by validation over unmixed ones.

use super::checkpoint::{self, CheckpointError};
use super::{BatchTensors, Cnn, CrossEntropy, LabelSmoothing, Loss, MixedLoss, Reduction};
use crate::batch::BatchView;
use crate::mix::{MixError, torch_device};
use crate::types::Device;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;
use tch::nn::VarStore;
use tch::{Kind, Tensor, no_grad};

/// ε of the smoothed loss that validation reports when training itself does not smooth.
const REPORTED_SMOOTHING: f64 = 0.1;

/// How to train.
#[derive(Debug, Clone, Serialize)]
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
    /// A checkpoint to start from.
    pub load: Option<PathBuf>,
    /// Where to write the checkpoint, after each epoch.
    pub save: Option<PathBuf>,
    /// Classes.
    pub classes: usize,
}

/// Where batches come from.
pub trait Batches {
    /// Batches in each epoch.
    fn batches(&self) -> u64;

    /// Hands every batch of the next epoch to `use_batch`, in order.
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
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
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

/// Sums over the images of an epoch.
#[derive(Default)]
struct Running {
    images: f64,
    loss: f64,
    smoothed: f64,
    right: f64,
}

fn right(logits: &Tensor, labels: &Tensor) -> f64 {
    logits.argmax(1, false).eq_tensor(labels).sum(Kind::Float).double_value(&[])
}

/// Trains, and returns the result of each epoch.
///
/// # Errors
/// When the batches stop coming, the device is not there, or a file cannot be read or written.
pub fn run(
    options: &Options,
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
    let batches = train.batches();
    let mut results = Vec::new();
    for epoch in 0..options.epochs {
        let (mut running, mut losses, start) = (Running::default(), Vec::new(), Instant::now());
        train.epoch(&mut |view| {
            if view.len() == 1 {
                return Err(TrainError::OneImage { epoch: view.epoch, index: view.index });
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
                return Err(TrainError::NotFinite { epoch: view.epoch, index: view.index, loss });
            }
            losses.push(loss);
            running.images += images;
            running.loss += loss * images;
            running.right += right(&logits, &batch.label_a);
            let (running_loss, running_acc) = (running.loss / running.images, running.right / running.images);
            Ok(observe(&Event::Step { epoch, index: view.index, batches, loss, running_loss, running_acc })?)
        })?;
        let train_s = start.elapsed().as_secs_f64();
        observe(&Event::Validating)?;
        let (mut validated, start) = (Running::default(), Instant::now());
        valid.epoch(&mut |view| {
            no_grad(|| {
                let batch = BatchTensors::new(view, device).ok_or(TrainError::RawPixels)?;
                let logits = cnn.forward(&batch.x, false);
                let sum = |loss: &dyn Loss| loss.per_image(&logits, &batch.label_a).sum(Kind::Double).double_value(&[]);
                validated.images += view.len() as f64;
                validated.loss += sum(&CrossEntropy);
                validated.smoothed += sum(&smoothed);
                validated.right += right(&logits, &batch.label_a);
                Ok(())
            })
        })?;
        let last: &[f64] = &losses[losses.len().saturating_sub(30)..];
        let result = EpochResult {
            epoch,
            train_loss: running.loss / running.images,
            train_acc: running.right / running.images,
            last30_loss: last.iter().sum::<f64>() / last.len() as f64,
            valid_ce: validated.loss / validated.images,
            valid_ls: validated.smoothed / validated.images,
            valid_acc: validated.right / validated.images,
            train_s,
            valid_s: start.elapsed().as_secs_f64(),
            images_per_s: running.images / train_s,
        };
        observe(&Event::Epoch(result))?;
        results.push(result);
        if let Some(path) = &options.save {
            checkpoint::save(&variables, path)?;
        }
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
    }

    impl Batches for Noise {
        fn batches(&self) -> u64 {
            self.batches
        }

        fn epoch(
            &mut self,
            use_batch: &mut dyn FnMut(&BatchView<'_>) -> Result<(), TrainError>,
        ) -> Result<(), TrainError> {
            let image_size = ImageSize::square(32);
            for index in 0..self.batches {
                let count = self.batch_size * image_size.values();
                let x: Vec<f32> =
                    (0..count as u64).map(|n| ((n * 2_654_435_761 + index * 97) % 1000) as f32 / 500.0 - 1.0).collect();
                let labels: Vec<i64> = (0..self.batch_size as i64).map(|row| row % 3).collect();
                let rows: Vec<u32> = (0..self.batch_size as u32).collect();
                let partner: Vec<i32> = (0..self.batch_size as i32).collect();
                use_batch(&BatchView {
                    x: &bytemuck::cast_slice(&x)[..count * self.dtype.bytes()],
                    dtype: self.dtype,
                    layout: Layout::Nchw,
                    image_size,
                    label_a: &labels,
                    label_b: &labels,
                    lambda: &vec![1.0; self.batch_size],
                    partner: &partner,
                    sample_id: &rows,
                    partner_id: &rows,
                    epoch: 0,
                    index,
                    batches: self.batches,
                    pad: 0,
                    digest: 0,
                })?;
            }
            Ok(())
        }
    }

    fn train(batch_size: usize, dtype: Dtype, seed: u64) -> Result<(Vec<EpochResult>, Vec<f64>), TrainError> {
        let options = Options {
            epochs: 2,
            lr: 0.002,
            smoothing: 0.1,
            seed,
            device: Device::Cpu,
            threads: Some(1),
            load: None,
            save: None,
            classes: 3,
        };
        let _random = super::super::torch_random();
        let source = || Noise { batch_size, batches: 3, dtype };
        let mut losses = Vec::new();
        let results = run(&options, &mut source(), &mut source(), &mut |event| {
            if let Event::Step { loss, .. } = event {
                losses.push(*loss);
            }
            Ok(())
        })?;
        Ok((results, losses))
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

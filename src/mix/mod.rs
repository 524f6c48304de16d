//! Mixers: from u8 samples, partners and λ to a finished batch.
//!
//! One convention for all of them (SPEC §4): every sample is normalised, `x = (u/255 − mean)/std`, and then mixed,
//! `x̃ = λ·x_own + (1−λ)·x_partner`, in f32. f16 and bf16 are that result rounded to nearest even. u8 is
//! `λ·u_own + (1−λ)·u_partner` rounded to nearest even, without normalisation. [`naive`] computes just that, slowly;
//! the other implementations are checked against it.

mod cpu;
#[cfg(test)]
mod naive;
#[cfg(feature = "torch")]
mod torch;

use crate::types::{Device, Dtype, ImageSize, Layout, named};
use std::fmt;
use std::str::FromStr;

use crate::types::ParseError;

/// Which implementation mixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MixerKind {
    /// One fused pass on the processor.
    #[default]
    Cpu,
    /// Torch operations, on the CPU or a CUDA device (feature `torch`).
    Torch,
}
named!(MixerKind, "mixer", "cpu or torch", Cpu = "cpu", Torch = "torch");

/// What a finished batch looks like; fixed for the life of a mixer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Format {
    /// Height and width of every sample.
    pub image_size: ImageSize,
    /// Element type of the output.
    pub dtype: Dtype,
    /// Order of the output's axes.
    pub layout: Layout,
    /// Mean of each channel, of pixel values in [0, 1].
    pub mean: [f32; 3],
    /// Standard deviation of each channel, of pixel values in [0, 1]; not 0.
    pub std: [f32; 3],
}

impl Format {
    /// Bytes of one finished image.
    pub const fn image_bytes(&self) -> usize {
        self.image_size.values() * self.dtype.bytes()
    }
}

/// One row of a batch to be mixed.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// The own sample: u8 `[3, H, W]`.
    pub own: &'a [u8],
    /// The partner: u8 `[3, H, W]`. Need not be read where λ is 1.
    pub partner: &'a [u8],
    /// Weight of the own sample, in [0, 1].
    pub lambda: f32,
    /// Row of this batch whose own sample is the partner; -1 where the partner comes from elsewhere.
    pub partner_row: i32,
}

/// Why a mixer could not be had or could not mix.
#[derive(Debug, thiserror::Error)]
pub enum MixError {
    /// The build has no such mixer.
    #[error("this build has no torch mixer: it was built without the feature `torch` (build it with `make build`)")]
    NoTorch,
    /// The mixer does not run on this device.
    #[error("the cpu mixer does not run on {0} (use --mixer torch)")]
    WrongDevice(Device),
    /// A CUDA device was asked for and is not there.
    #[error("no CUDA device for `{device}`: {found} (use --device cpu)")]
    NoCuda {
        /// What was asked for.
        device: Device,
        /// What was looked for, and what there is.
        found: String,
    },
    /// Torch refused an operation.
    #[error("torch: {0}")]
    Torch(String),
}

/// Fills batches. Implementations keep their scratch between calls, and allocate nothing in the steady state where
/// their substrate lets them.
pub trait Mixer: Send {
    /// The name that stands in statistics.
    fn name(&self) -> &'static str;

    /// Writes the mixed images of `rows`, in order, to `out`: `rows.len()` × [`Format::image_bytes`] bytes, 64-byte aligned.
    ///
    /// # Errors
    /// When the device fails; `out` then holds nothing of use.
    ///
    /// # Panics
    /// When a sample or `out` has another length than the format says.
    fn mix(&mut self, rows: &[Row<'_>], out: &mut [u8]) -> Result<(), MixError>;
}

/// Makes a mixer for batches of at most `batch_size_max` rows.
///
/// # Errors
/// When the build or the machine lacks what `kind` and `device` need; never a silent fall-back.
pub fn mixer(kind: MixerKind, device: Device, format: Format, batch_size_max: usize) -> Result<Box<dyn Mixer>, MixError> {
    match kind {
        MixerKind::Cpu if device == Device::Cpu => Ok(Box::new(cpu::CpuMixer::new(format))),
        MixerKind::Cpu => Err(MixError::WrongDevice(device)),
        #[cfg(feature = "torch")]
        MixerKind::Torch => Ok(Box::new(torch::TorchMixer::new(device, format, batch_size_max)?)),
        #[cfg(not(feature = "torch"))]
        MixerKind::Torch => {
            let _ = batch_size_max;
            Err(MixError::NoTorch)
        }
    }
}

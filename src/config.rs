//! What a feed is asked to be: the feed spec, its defaults and its limits.

use crate::mix::Format;
use crate::types::ParseError;
use crate::types::{Dtype, ImageSize, Last, Layout, Place, Split, named};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The most rows that a batch may have.
pub const BATCH_SIZE_MAX: u32 = 65_536;
/// The most slots that a ring may have.
pub const SLOTS_MAX: u32 = 1_024;
/// The most ranks that an epoch may be dealt to.
pub const WORLD_SIZE_MAX: u32 = 256;

/// Whether every image has a λ of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LambdaPer {
    /// One λ an image.
    Image,
    /// One λ for the whole batch.
    Batch,
}
named!(LambdaPer, "λ choice", "per-image or per-batch", Image = "per-image", Batch = "per-batch");

/// Where the partners come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pairing {
    /// From the same batch, shuffled.
    Shuffle,
    /// From a second batch of the same size, drawn by a permutation of its own.
    SecondBatch,
}
named!(Pairing, "pairing", "shuffle or second-batch", Shuffle = "shuffle", SecondBatch = "second-batch");

/// Mixup (Zhang et al. 2018): `x̃ = λ·x + (1−λ)·x'`, λ from Beta(α, α).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Mixup {
    /// α of Beta(α, α); positive and finite.
    pub alpha: f64,
    /// One λ an image, or one a batch.
    pub lambda: LambdaPer,
    /// Whether λ is folded to max(λ, 1−λ), so that the own image always weighs at least half.
    pub fold: bool,
    /// Where the partners come from.
    pub pairing: Pairing,
}

impl Default for Mixup {
    fn default() -> Self {
        Self { alpha: 0.4, lambda: LambdaPer::Image, fold: true, pairing: Pairing::Shuffle }
    }
}

/// How the images of a batch are mixed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mix {
    /// Not at all: λ is 1, and every row is its own partner.
    None,
    /// Mixup.
    Mixup(Mixup),
}

/// Everything that decides what a feed delivers. Equal specs over equal data deliver equal bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FeedSpec {
    /// Which images.
    pub split: Split,
    /// Rows a batch, 1 to [`BATCH_SIZE_MAX`].
    pub batch_size: u32,
    /// Height and width that every image is resized to.
    pub image_size: ImageSize,
    /// Whether each epoch has an order of its own; otherwise samples come in the order of the index.
    pub shuffle: bool,
    /// Seed of all randomness.
    pub seed: u64,
    /// What becomes of the rows that do not fill the last batch.
    pub last: Last,
    /// How images are mixed.
    pub mix: Mix,
    /// ε of the trainer's label smoothing, in [0, 1); carried, not used by the daemon.
    pub smoothing: f64,
    /// Element type of `x`.
    pub dtype: Dtype,
    /// Order of the axes of `x`.
    pub layout: Layout,
    /// Mean of each channel, of pixel values in [0, 1].
    pub mean: [f32; 3],
    /// Standard deviation of each channel, positive.
    pub std: [f32; 3],
    /// Which of `world_size` ranks this feed serves.
    pub rank: u32,
    /// Ranks that the epoch is dealt to, 1 to [`WORLD_SIZE_MAX`].
    pub world_size: u32,
    /// Slots of the ring, 2 to [`SLOTS_MAX`].
    pub slots: u32,
    /// The first batch to deliver.
    pub start: Place,
}

/// A feed spec that cannot be served.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("bad feed spec: {key} is {found}: it must be {allowed}")]
pub struct SpecError {
    /// The offending key.
    pub key: &'static str,
    /// Its value.
    pub found: String,
    /// What it may be.
    pub allowed: String,
}

impl FeedSpec {
    /// The defaults of a training feed: the seed pipeline's.
    pub fn train() -> Self {
        Self {
            split: Split::Train,
            batch_size: 64,
            image_size: ImageSize::square(128),
            shuffle: true,
            seed: 0,
            last: Last::Keep,
            mix: Mix::Mixup(Mixup::default()),
            smoothing: 0.0,
            dtype: Dtype::F32,
            layout: Layout::Nchw,
            mean: [0.47, 0.48, 0.45],
            std: [0.29, 0.28, 0.30],
            rank: 0,
            world_size: 1,
            slots: 4,
            start: Place::default(),
        }
    }

    /// The defaults of a validation feed: unmixed, unshuffled, with twice the batch.
    pub fn val() -> Self {
        Self { split: Split::Val, batch_size: 128, shuffle: false, mix: Mix::None, ..Self::train() }
    }

    /// What the mixer needs to know.
    pub fn format(&self) -> Format {
        Format { image_size: self.image_size, dtype: self.dtype, layout: self.layout, mean: self.mean, std: self.std }
    }

    /// Checks every value against its range.
    ///
    /// # Errors
    /// Names the first key that is out of range.
    pub fn validate(&self) -> Result<(), SpecError> {
        let side = 1..=ImageSize::SIDE_MAX;
        let checks: [(bool, &'static str, String, String); 10] = [
            range("batch_size", self.batch_size, 1, BATCH_SIZE_MAX),
            (
                side.contains(&self.image_size.height) && side.contains(&self.image_size.width),
                "image_size",
                self.image_size.to_string(),
                format!("1 to {} pixels a side", ImageSize::SIDE_MAX),
            ),
            range("world_size", self.world_size, 1, WORLD_SIZE_MAX),
            range("rank", self.rank, 0, self.world_size.saturating_sub(1)),
            range("slots", self.slots, 2, SLOTS_MAX),
            ((0.0..1.0).contains(&self.smoothing), "smoothing", self.smoothing.to_string(), "in [0, 1)".to_owned()),
            (
                self.mean.iter().all(|v| v.is_finite()),
                "mean",
                format!("{:?}", self.mean),
                "three finite numbers".to_owned(),
            ),
            (
                self.std.iter().all(|&v| v.is_finite() && v > 0.0),
                "std",
                format!("{:?}", self.std),
                "three positive numbers".to_owned(),
            ),
            match self.mix {
                Mix::Mixup(Mixup { alpha, .. }) => (
                    alpha.is_finite() && alpha > 0.0,
                    "alpha",
                    alpha.to_string(),
                    "positive and finite (for no mixing ask for mix none)".to_owned(),
                ),
                Mix::None => (true, "alpha", String::new(), String::new()),
            },
            (
                self.start.epoch >> crate::rng::EPOCH_BITS == 0,
                "start",
                self.start.to_string(),
                format!("in an epoch below 2^{}", crate::rng::EPOCH_BITS),
            ),
        ];
        match checks.into_iter().find(|(ok, ..)| !ok) {
            None => Ok(()),
            Some((_, key, found, allowed)) => Err(SpecError { key, found, allowed }),
        }
    }
}

fn range(key: &'static str, value: u32, low: u32, high: u32) -> (bool, &'static str, String, String) {
    ((low..=high).contains(&value), key, value.to_string(), format!("{low} to {high}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        FeedSpec::train().validate().unwrap();
        FeedSpec::val().validate().unwrap();
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        let train = FeedSpec::train();
        let mixup = |alpha| Mix::Mixup(Mixup { alpha, ..Mixup::default() });
        let cases = [
            ("batch_size", FeedSpec { batch_size: 0, ..train }),
            ("image_size", FeedSpec { image_size: ImageSize { height: 0, width: 9 }, ..train }),
            ("rank", FeedSpec { rank: 2, world_size: 2, ..train }),
            ("world_size", FeedSpec { world_size: 0, ..train }),
            ("slots", FeedSpec { slots: 1, ..train }),
            ("smoothing", FeedSpec { smoothing: 1.0, ..train }),
            ("mean", FeedSpec { mean: [0.0, f32::NAN, 0.0], ..train }),
            ("std", FeedSpec { std: [0.1, 0.0, 0.1], ..train }),
            ("alpha", FeedSpec { mix: mixup(0.0), ..train }),
            ("alpha", FeedSpec { mix: mixup(f64::INFINITY), ..train }),
        ];
        for (key, spec) in cases {
            assert_eq!(spec.validate().unwrap_err().key, key);
        }
    }
}

//! What a feed is asked to be: the feed spec, its defaults and its limits.

use crate::mix::Format;
use crate::types::ParseError;
use crate::types::{Device, Dtype, ImageSize, Last, Layout, Split, Start, named};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The most rows that a batch may have.
pub const BATCH_SIZE_MAX: u32 = 65_536;
/// The most slots that a ring may have.
pub const SLOTS_MAX: u32 = 1_024;
/// The most ranks that an epoch may be dealt to.
pub const WORLD_SIZE_MAX: u32 = 256;
/// Seconds that a trainer may be allowed to keep others waiting: a day.
pub const MAX_LAG_S_MAX: f64 = 86_400.0;
/// Bound of `std`: what a byte is multiplied by, times 2²³, is to be finite in f32.
pub const STD_MIN: f32 = 1e-30;

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

/// CutMix (Yun et al. 2019): a box of the partner in the own image. With λ from Beta(α, α), the box reaches half of `W·√(1−λ)` and of
/// `H·√(1−λ)`, all rounded down, to either side of a uniform pixel, and is clipped to the image; λ is then the share of the image
/// outside it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CutMix {
    /// α of Beta(α, α); positive and finite.
    pub alpha: f64,
    /// One box an image, or one a batch as in the paper.
    pub lambda: LambdaPer,
}

impl Default for CutMix {
    fn default() -> Self {
        Self { alpha: 1.0, lambda: LambdaPer::Image }
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
    /// CutMix.
    CutMix(CutMix),
}

impl Mix {
    /// Whether partners are a second batch, with samples of their own.
    pub fn takes_a_second_batch(&self) -> bool {
        matches!(self, Self::Mixup(Mixup { pairing: Pairing::SecondBatch, .. }))
    }

    fn alpha(&self) -> Option<f64> {
        match *self {
            Self::None => None,
            Self::Mixup(Mixup { alpha, .. }) | Self::CutMix(CutMix { alpha, .. }) => Some(alpha),
        }
    }
}

/// Who waits for whom in a shared feed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Delivery {
    /// Every trainer sees every batch once and in order; the slowest sets the pace.
    #[default]
    Lossless,
    /// Nobody waits for a slower trainer: the fastest sets the pace, and the others skip what they miss.
    Latest,
}
named!(Delivery, "delivery", "lossless or latest", Lossless = "lossless", Latest = "latest");

/// Name of a shared feed: 1 to [`ShareName::LEN_MAX`] letters, digits, `-`, `_` and `.`.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ShareName {
    bytes: [u8; Self::LEN_MAX],
    len: u8,
}

impl ShareName {
    /// The longest name, in bytes.
    pub const LEN_MAX: usize = 64;
}

impl std::ops::Deref for ShareName {
    type Target = str;
    fn deref(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len.into()]).expect("made of ASCII")
    }
}

impl FromStr for ShareName {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if text.is_empty() || text.len() > Self::LEN_MAX || !text.bytes().all(allowed) {
            let expected = "1 to 64 letters, digits, `-`, `_` and `.`";
            return Err(ParseError { what: "name of a shared feed", found: text.to_owned(), expected });
        }
        let mut bytes = [0; Self::LEN_MAX];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self { bytes, len: text.len() as u8 })
    }
}

impl TryFrom<String> for ShareName {
    type Error = ParseError;
    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<ShareName> for String {
    fn from(name: ShareName) -> Self {
        (*name).to_owned()
    }
}

impl fmt::Debug for ShareName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for ShareName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self)
    }
}

/// How a feed is shared: trainers that name the same share, with equal specs, read the same slots.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Which feed.
    pub name: ShareName,
    /// Who waits for whom.
    pub delivery: Delivery,
    /// Seconds, above 0 and at most [`MAX_LAG_S_MAX`], for which a trainer of a lossless feed may keep others waiting at a stretch
    /// before it is evicted.
    pub max_lag_s: f64,
}

impl Share {
    /// The default of [`Share::max_lag_s`]: long enough to validate or to save.
    pub const MAX_LAG_S: f64 = 300.0;

    /// A lossless share whose trainers may keep others waiting for [`Share::MAX_LAG_S`].
    pub fn new(name: ShareName) -> Self {
        Self { name, delivery: Delivery::default(), max_lag_s: Self::MAX_LAG_S }
    }
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
    /// In whose memory `x` lies: main memory, or a CUDA device as its trainer numbers them.
    #[serde(default)]
    pub device: Device,
    /// Which of `world_size` ranks this feed serves.
    pub rank: u32,
    /// Ranks that the epoch is dealt to, 1 to [`WORLD_SIZE_MAX`].
    pub world_size: u32,
    /// Slots of the ring, 2 to [`SLOTS_MAX`].
    pub slots: u32,
    /// Whether each image is flipped horizontally with a chance of one half, anew in every epoch.
    pub flip: bool,
    /// Whether each batch carries its digest ([`crate::batch::BatchView::digest_by`]).
    pub digest: bool,
    /// Whether other trainers read the same slots; a feed without a share is private.
    pub share: Option<Share>,
    /// Where this trainer begins.
    pub start: Start,
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
            device: Device::Cpu,
            rank: 0,
            world_size: 1,
            slots: 4,
            flip: false,
            digest: false,
            share: None,
            start: Start::Now,
        }
    }

    /// The defaults of a validation feed: unmixed, unshuffled, with twice the batch.
    pub fn val() -> Self {
        Self { split: Split::Val, batch_size: 128, shuffle: false, mix: Mix::None, ..Self::train() }
    }

    /// The most samples that a batch is made of.
    pub fn samples_max(&self) -> u32 {
        self.batch_size * if self.mix.takes_a_second_batch() { 2 } else { 1 }
    }

    /// What the mixer needs to know.
    pub fn format(&self) -> Format {
        let Self { image_size, dtype, layout, mean, std, device, .. } = *self;
        Format { image_size, dtype, layout, mean, std, device }
    }

    /// Checks every value against its range.
    ///
    /// # Errors
    /// Names the first key that is out of range.
    pub fn validate(&self) -> Result<(), SpecError> {
        let side = 1..=ImageSize::SIDE_MAX;
        let checks: [(bool, &'static str, String, String); 13] = [
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
                self.std.iter().all(|&v| v.is_finite() && v >= STD_MIN),
                "std",
                format!("{:?}", self.std),
                format!("three numbers of {STD_MIN:e} or more"),
            ),
            (
                self.mix.alpha().is_none_or(|alpha| alpha.is_finite() && alpha > 0.0),
                "alpha",
                self.mix.alpha().unwrap_or_default().to_string(),
                "positive and finite (for no mixing ask for mix none)".to_owned(),
            ),
            (
                self.share.is_none_or(|share| share.max_lag_s > 0.0 && share.max_lag_s <= MAX_LAG_S_MAX),
                "max_lag",
                self.share.map_or(0.0, |share| share.max_lag_s).to_string(),
                format!("above 0 and at most {MAX_LAG_S_MAX} seconds"),
            ),
            (
                self.device == Device::Cpu || self.share.is_none_or(|share| share.delivery == Delivery::Lossless),
                "delivery",
                format!("latest for batches on {}", self.device),
                "lossless there, since latest lends one batch at a time and batches on a device are not copied"
                    .to_owned(),
            ),
            (
                !self.digest || self.device == Device::Cpu,
                "digest",
                format!("on for a batch on {}", self.device),
                "off there, since digests are of main memory".to_owned(),
            ),
            (
                self.start.of_a_new_feed().epoch >> crate::rng::EPOCH_BITS == 0,
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

impl FeedSpec {
    /// The keys in which `other` asks for other batches or another way of sharing them, each with both values. Where trainers
    /// start is their own business.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let keys = |spec: &Self| match serde_json::to_value(Self { start: Start::Now, ..*spec }) {
            Ok(serde_json::Value::Object(keys)) => keys,
            other => unreachable!("a struct of plain values is {other:?}"),
        };
        let (ours, theirs) = (keys(self), keys(other));
        let differing = ours.iter().filter(|(key, value)| theirs.get(*key) != Some(value));
        differing.map(|(key, value)| format!("{key} ({value}, not {})", theirs[key])).collect()
    }
}

fn range(key: &'static str, value: u32, low: u32, high: u32) -> (bool, &'static str, String, String) {
    ((low..=high).contains(&value), key, value.to_string(), format!("{low} to {high}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Place;

    #[test]
    fn the_defaults_are_valid() {
        FeedSpec::train().validate().unwrap();
        FeedSpec::val().validate().unwrap();
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        let train = FeedSpec::train();
        let mixup = |alpha| Mix::Mixup(Mixup { alpha, ..Mixup::default() });
        let share = Share::new("a".parse().unwrap());
        let cases = [
            ("batch_size", FeedSpec { batch_size: 0, ..train }),
            ("image_size", FeedSpec { image_size: ImageSize { height: 0, width: 9 }, ..train }),
            ("rank", FeedSpec { rank: 2, world_size: 2, ..train }),
            ("world_size", FeedSpec { world_size: 0, ..train }),
            ("slots", FeedSpec { slots: 1, ..train }),
            ("smoothing", FeedSpec { smoothing: 1.0, ..train }),
            ("mean", FeedSpec { mean: [0.0, f32::NAN, 0.0], ..train }),
            ("std", FeedSpec { std: [0.1, 0.0, 0.1], ..train }),
            ("std", FeedSpec { std: [0.1, 1e-31, 0.1], ..train }),
            ("alpha", FeedSpec { mix: mixup(0.0), ..train }),
            ("alpha", FeedSpec { mix: mixup(f64::INFINITY), ..train }),
            ("alpha", FeedSpec { mix: Mix::CutMix(CutMix { alpha: -1.0, ..CutMix::default() }), ..train }),
            (
                "delivery",
                FeedSpec {
                    device: Device::Cuda(0),
                    share: Some(Share { delivery: Delivery::Latest, ..share }),
                    ..train
                },
            ),
            ("digest", FeedSpec { digest: true, device: Device::Cuda(0), ..train }),
            ("max_lag", FeedSpec { share: Some(Share { max_lag_s: 0.0, ..share }), ..train }),
            ("start", FeedSpec { start: Start::At(Place { epoch: 1 << 60, index: 0 }), ..train }),
        ];
        for (key, spec) in cases {
            assert_eq!(spec.validate().unwrap_err().key, key);
        }
    }

    #[test]
    fn differences_name_the_keys_and_both_values_but_not_the_start() {
        let train = FeedSpec::train();
        let start = Start::At(Place { epoch: 3, index: 1 });
        assert_eq!(train.differences(&FeedSpec { start, ..train }), [] as [String; 0]);
        let other = FeedSpec { batch_size: 32, dtype: Dtype::U8, ..train };
        assert_eq!(train.differences(&other), ["batch_size (64, not 32)", "dtype (\"f32\", not \"u8\")"]);
    }

    #[test]
    fn names_of_shares_are_short_and_plain() {
        let name: ShareName = "sweep-1.a_B".parse().unwrap();
        assert_eq!((&*name, serde_json::to_string(&name).unwrap().as_str()), ("sweep-1.a_B", "\"sweep-1.a_B\""));
        for text in ["", "a b", "a/b", "ä", &"x".repeat(65)] {
            assert!(text.parse::<ShareName>().is_err(), "{text}");
        }
    }
}

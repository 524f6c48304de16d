//! What a feed is asked to be: the feed spec, its defaults and its limits.

mod augment;
mod consumed;
mod deal;
mod erase;
mod grow;
mod mix;
mod options;
mod presets;
mod recipe;
mod share;
mod shuffle;
mod size;
mod view;

pub use augment::{Augment, Blur, ColorJitter, LaterViews, Policy, Solarize, TimmRand};
pub use consumed::Consumed;
pub use deal::{Deal, DealError};
pub use erase::{Erase, EraseMode, EraseWhen};
pub use grow::Grow;
pub use mix::{Mix, MixPer, Pairing};
pub use options::{FeedOptions, OptionsError, RecipeChoice};
pub use recipe::{Recipe, RecipeError, TrainView, ValView};
pub use share::{Delivery, MAX_LAG_S_MAX, Share, ShareName};
pub use shuffle::Shuffle;
pub use view::Crop;

use crate::format::Format;
use crate::types::{Device, Dtype, ImageSize, Interpolation, Last, Layout, Place, START_EPOCH_BITS, Split, Start};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The most rows that a batch may have.
pub const BATCH_SIZE_MAX: u32 = 65_536;
/// The most slots that a ring may have.
pub const SLOTS_MAX: u32 = 1_024;
/// The most ranks that an epoch may be dealt to.
pub const WORLD_SIZE_MAX: u32 = 65_536;
/// The most times that a sample may come in a row.
pub const REPEATS_MAX: u32 = 64;
/// The most views that a sample may have in a row.
pub const VIEWS_MAX: u32 = 64;
/// Bound of `std`: what a byte is multiplied by, times 2²³, is to be finite in f32.
pub const STD_MIN: f32 = 1e-30;

/// Everything that decides what a feed delivers. Equal specs over equal data deliver equal bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FeedSpec {
    /// Which images.
    pub split: Split,
    /// Rows a batch, 1 to [`BATCH_SIZE_MAX`].
    pub batch_size: u32,
    /// Height and width of every view.
    #[serde(rename = "size")]
    pub image_size: ImageSize,
    /// How views grow to that size with the epochs; `None` where all have it.
    pub grow: Option<Grow>,
    /// What part of an image a view shows.
    pub crop: Crop,
    /// Filter of the resize.
    pub interpolation: Interpolation,
    /// Probability that an image is flipped horizontally, in [0, 1], drawn anew for every use of it.
    pub flip: f64,
    /// What is done to views after that: a policy's operations, and stages of color.
    pub augment: Augment,
    /// Which boxes of a view are erased.
    pub erase: Erase,
    /// The order of an epoch's samples.
    pub shuffle: Shuffle,
    /// Seed of all randomness.
    pub seed: u64,
    /// What becomes of the rows that do not fill the last batch.
    pub last: Last,
    /// How often each sample comes in a row, 1 to [`REPEATS_MAX`]; above 1 an epoch is cut to its usual length (docs/spec/recipes.md, Repeats).
    pub repeats: u32,
    /// Views of each sample, one row after the other, 1 to [`VIEWS_MAX`]; a batch has whole samples.
    pub views: u32,
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
    /// Standard deviation of each channel, of the same, in [[`STD_MIN`], 1].
    pub std: [f32; 3],
    /// In whose memory `x` lies: main memory, or a CUDA device as its trainer numbers them.
    #[serde(default)]
    pub device: Device,
    /// Which of `world_size` ranks this feed serves.
    pub rank: u32,
    /// Ranks that the epoch is dealt to, 1 to [`WORLD_SIZE_MAX`].
    pub world_size: u32,
    /// What ranks of another world size have read of an epoch: its rest is dealt to these ranks, and the feed begins there at the earliest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumed: Option<Consumed>,
    /// Slots of the ring, 2 to [`SLOTS_MAX`].
    pub slots: u32,
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
    /// The defaults of a feed of this split.
    pub fn of(split: Split) -> Self {
        match split {
            Split::Train => Self::train(),
            Split::Val => Self::val(),
        }
    }

    /// The defaults of a training feed: the lesson's.
    pub fn train() -> Self {
        Self {
            split: Split::Train,
            batch_size: 64,
            image_size: ImageSize::square(128),
            grow: None,
            crop: Crop::Squash,
            interpolation: Interpolation::Bilinear,
            flip: 0.0,
            augment: Augment::default(),
            erase: Erase::default(),
            shuffle: Shuffle::Global,
            seed: 0,
            last: Last::Keep,
            repeats: 1,
            views: 1,
            mix: Mix::mixup(0.4),
            smoothing: 0.0,
            dtype: Dtype::F32,
            layout: Layout::Nchw,
            mean: [0.47, 0.48, 0.45],
            std: [0.29, 0.28, 0.30],
            device: Device::Cpu,
            rank: 0,
            world_size: 1,
            consumed: None,
            slots: 4,
            digest: false,
            share: None,
            start: Start::Now,
        }
    }

    /// The defaults of a validation feed: unmixed, unshuffled, with twice the batch.
    pub fn val() -> Self {
        Self { split: Split::Val, batch_size: 128, shuffle: Shuffle::Off, mix: Mix::NONE, ..Self::train() }
    }

    /// The most samples that a batch is made of.
    pub fn samples_max(&self) -> u32 {
        self.batch_size * if self.mix.takes_a_second_batch() { 2 } else { 1 }
    }

    /// Whether each use of an image has a view of its own, rendered for it.
    pub fn renders(&self) -> bool {
        self.crop.is_random() || self.augment.is_on()
    }

    /// Whether anything but a flip is drawn for each use of an image.
    pub fn draws_views(&self) -> bool {
        self.renders() || self.erase.prob > 0.0
    }

    /// Height and width of views in an epoch.
    pub fn size_at(&self, epoch: u64) -> ImageSize {
        self.grow.map_or(self.image_size, |grow| grow.at(epoch, self.image_size))
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
        let probability = |key, value: f64| {
            ((0.0..=1.0).contains(&value), key, value.to_string(), "a probability, in [0, 1]".to_owned())
        };
        let alpha = |key, alpha: Option<f64>| {
            let ok = alpha.is_none_or(|alpha| alpha.is_finite() && alpha > 0.0);
            (
                ok,
                key,
                alpha.unwrap_or_default().to_string(),
                "positive and finite (without it: --no-mixup or --no-cutmix, in Python mixup=None or cutmix=None)"
                    .to_owned(),
            )
        };
        let refused = |key, checked: Result<(), (String, String)>| match checked {
            Ok(()) => (true, key, String::new(), String::new()),
            Err((found, allowed)) => (false, key, found, allowed),
        };
        let augment = match self.augment.check() {
            Ok(()) => (true, "augment", String::new(), String::new()),
            Err((key, found, allowed)) => (false, key, found, allowed),
        };
        let checks: [(bool, &'static str, String, String); 26] = [
            range("batch_size", self.batch_size, 1, BATCH_SIZE_MAX),
            (
                side.contains(&self.image_size.height) && side.contains(&self.image_size.width),
                "size",
                self.image_size.to_string(),
                format!("1 to {} pixels a side", ImageSize::SIDE_MAX),
            ),
            refused("grow", self.grow.map_or(Ok(()), |grow| grow.check(self.image_size))),
            (
                self.grow.is_none() || self.renders(),
                "grow",
                self.grow.map_or(String::new(), |grow| grow.to_string()),
                "for feeds whose views are rendered for each use (use a random crop)".to_owned(),
            ),
            refused("crop", self.crop.check()),
            probability("flip", self.flip),
            augment,
            refused("erase", self.erase.check()),
            range("repeats", self.repeats, 1, REPEATS_MAX),
            range("views", self.views, 1, VIEWS_MAX),
            (
                self.batch_size.is_multiple_of(self.views.max(1)),
                "batch_size",
                format!("{} rows of {} views a sample", self.batch_size, self.views),
                "a multiple of the views".to_owned(),
            ),
            range("world_size", self.world_size, 1, WORLD_SIZE_MAX),
            range("rank", self.rank, 0, self.world_size.saturating_sub(1)),
            range("slots", self.slots, 2, SLOTS_MAX),
            ((0.0..1.0).contains(&self.smoothing), "smoothing", self.smoothing.to_string(), "in [0, 1)".to_owned()),
            (
                self.mean.iter().all(|v| (0.0..=1.0).contains(v)),
                "mean",
                format!("{:?}", self.mean),
                "three numbers in [0, 1], of pixel values in [0, 1] (divide those of bytes by 255)".to_owned(),
            ),
            (
                self.std.iter().all(|v| (STD_MIN..=1.0).contains(v)),
                "std",
                format!("{:?}", self.std),
                format!("three numbers of {STD_MIN:e} to 1, of pixel values in [0, 1] (divide those of bytes by 255)"),
            ),
            alpha("mixup", self.mix.mixup),
            alpha("cutmix", self.mix.cutmix),
            probability("mix_prob", self.mix.prob),
            probability("mix_switch", self.mix.switch),
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
                self.start.of_a_new_feed(Place::default()).epoch >> START_EPOCH_BITS == 0,
                "start",
                self.start.to_string(),
                format!("in an epoch below 2^{START_EPOCH_BITS}"),
            ),
            (
                self.consumed.is_none_or(|consumed| consumed.epoch >> START_EPOCH_BITS == 0),
                "consumed",
                self.consumed.map_or(String::new(), |consumed| consumed.to_string()),
                format!("of an epoch below 2^{START_EPOCH_BITS}"),
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
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        let keys = |spec: &Self| match serde_json::to_value(Self { start: Start::Now, ..*spec }) {
            Ok(serde_json::Value::Object(keys)) => keys,
            other => unreachable!("a struct of plain values is {other:?}"),
        };
        let (mut ours, mut theirs) = (keys(self), keys(other));
        // A key may stand in one of them only.
        let all: BTreeSet<String> = ours.keys().chain(theirs.keys()).cloned().collect();
        let difference = |key: String| {
            let [ours, theirs] = [&mut ours, &mut theirs].map(|spec| spec.remove(&key).unwrap_or_default());
            (ours != theirs).then_some(Difference { key, ours, theirs })
        };
        all.into_iter().filter_map(difference).collect()
    }
}

/// A key in which two specs differ.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// The key.
    pub key: String,
    /// The one spec's value.
    pub ours: serde_json::Value,
    /// The other's.
    pub theirs: serde_json::Value,
}

impl Difference {
    /// `key (value, not value)`, for each.
    pub fn list(differences: &[Self]) -> String {
        let text = |Self { key, ours, theirs }: &Self| format!("{key} ({ours}, not {theirs})");
        differences.iter().map(text).collect::<Vec<_>>().join(", ")
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
        let share = Share::new("a".parse().unwrap());
        let cases = [
            ("batch_size", FeedSpec { batch_size: 0, ..train }),
            ("size", FeedSpec { image_size: ImageSize { height: 0, width: 9 }, ..train }),
            ("rank", FeedSpec { rank: 2, world_size: 2, ..train }),
            ("world_size", FeedSpec { world_size: 0, ..train }),
            ("world_size", FeedSpec { world_size: WORLD_SIZE_MAX + 1, ..train }),
            ("consumed", FeedSpec { consumed: Some(Consumed { epoch: 1 << 55, samples: 0 }), ..train }),
            ("slots", FeedSpec { slots: 1, ..train }),
            ("smoothing", FeedSpec { smoothing: 1.0, ..train }),
            ("mean", FeedSpec { mean: [0.0, f32::NAN, 0.0], ..train }),
            ("mean", FeedSpec { mean: [123.0, 116.0, 103.0], ..train }),
            ("std", FeedSpec { std: [58.0, 57.0, 57.0], ..train }),
            ("std", FeedSpec { std: [0.1, 0.0, 0.1], ..train }),
            ("std", FeedSpec { std: [0.1, 1e-31, 0.1], ..train }),
            ("mixup", FeedSpec { mix: Mix::mixup(0.0), ..train }),
            ("mixup", FeedSpec { mix: Mix::mixup(f64::INFINITY), ..train }),
            ("cutmix", FeedSpec { mix: Mix::cutmix(-1.0), ..train }),
            ("mix_prob", FeedSpec { mix: Mix { prob: 1.5, ..Mix::NONE }, ..train }),
            ("mix_switch", FeedSpec { mix: Mix { switch: f64::NAN, ..Mix::NONE }, ..train }),
            ("flip", FeedSpec { flip: -0.1, ..train }),
            ("repeats", FeedSpec { repeats: 0, ..train }),
            ("views", FeedSpec { views: 65, ..train }),
            ("views", FeedSpec { views: 0, ..train }),
            ("batch_size", FeedSpec { views: 3, ..train }),
            ("crop", FeedSpec { crop: Crop::ShortCenter { resize: 0 }, ..train }),
            ("crop", FeedSpec { crop: Crop::RandomResizedCrop { scale: [0.5, 0.4], ratio: [1.0, 1.0] }, ..train }),
            ("grow", FeedSpec { grow: Some("160,2,3".parse().unwrap()), crop: Crop::RANDOM_RESIZED, ..train }),
            ("grow", FeedSpec { grow: Some("96,2,3".parse().unwrap()), ..train }),
            ("erase", FeedSpec { erase: Erase::torchvision(1.5), ..train }),
            ("erase", FeedSpec { erase: Erase { count: 9, ..Erase::default() }, ..train }),
            ("grayscale", FeedSpec { augment: Augment { grayscale: -0.1, ..Augment::default() }, ..train }),
            (
                "blur",
                FeedSpec {
                    augment: Augment { blur: Blur { prob: 0.5, sigma: [2.0, 1.0] }, ..Augment::default() },
                    ..train
                },
            ),
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
            ("start", FeedSpec { start: Start::At(Place { epoch: 1 << 55, index: 0 }), ..train }),
        ];
        for (key, spec) in cases {
            assert_eq!(spec.validate().unwrap_err().key, key);
        }
    }

    #[test]
    fn only_feeds_that_others_have_begun_have_consumed_in_their_json() {
        let rest = FeedSpec { consumed: Some("3, 40".parse().unwrap()), ..FeedSpec::train() };
        for (spec, has_it) in [(FeedSpec::train(), false), (rest, true)] {
            let json = serde_json::to_string(&spec).unwrap();
            assert_eq!(json.contains("consumed"), has_it);
            assert_eq!(serde_json::from_str::<FeedSpec>(&json).unwrap(), spec);
        }
        for text in ["3", "3,-1", "3,40,1", "3,4294967296"] {
            assert!(text.parse::<Consumed>().is_err(), "{text}");
        }
    }

    #[test]
    fn differences_name_the_keys_and_both_values_but_not_the_start() {
        let train = FeedSpec::train();
        let start = Start::At(Place { epoch: 3, index: 1 });
        assert_eq!(train.differences(&FeedSpec { start, ..train }), []);
        let other = FeedSpec { batch_size: 32, dtype: Dtype::U8, ..train };
        let text = Difference::list(&train.differences(&other));
        assert_eq!(text, "batch_size (64, not 32), dtype (\"f32\", not \"u8\")");
        // A key that stands in the JSON of one of them only.
        let rest = FeedSpec { consumed: Some(Consumed { epoch: 3, samples: 40 }), ..train };
        let texts =
            [(&rest, &train), (&train, &rest)].map(|(ours, theirs)| Difference::list(&ours.differences(theirs)));
        let value = r#"{"epoch":3,"samples":40}"#;
        assert_eq!(texts, [format!("consumed ({value}, not null)"), format!("consumed (null, not {value})")]);
    }
}

//! How the images of a batch are mixed: mixup, CutMix, or either by chance.

use crate::types::{ParseError, named};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// Which rows share one draw of λ or of a box, and of what is mixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MixPer {
    /// Every image has its own.
    #[serde(rename = "per-image")]
    Image,
    /// Rows `i` and `B − 1 − i` share one.
    #[serde(rename = "per-pair")]
    Pair,
    /// The whole batch shares one.
    #[serde(rename = "per-batch")]
    Batch,
}
named!(
    MixPer,
    "mixing unit",
    "per-image, per-pair or per-batch",
    Image = "per-image",
    Pair = "per-pair",
    Batch = "per-batch"
);

/// Where the partners come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pairing {
    /// The same batch, shuffled.
    Shuffle,
    /// A second batch of the same size, drawn by a permutation of its own.
    SecondBatch,
    /// The same batch in reverse: row `B − 1 − i` (timm).
    Reverse,
    /// The row before, and the last for the first: row `i − 1` (torchvision).
    Roll,
}
named!(
    Pairing,
    "pairing",
    "shuffle, second-batch, reverse or roll",
    Shuffle = "shuffle",
    SecondBatch = "second-batch",
    Reverse = "reverse",
    Roll = "roll"
);

/// How a batch is mixed. With `mixup` and `cutmix` both given, each unit (`per`) is cut with probability `switch` and mixed up otherwise.
///
/// Mixup (Zhang et al. 2018): `x̃ = λ·x + (1−λ)·x'`, λ from Beta(α, α).
/// CutMix (Yun et al. 2019): a box of the partner in the own image. With λ from Beta(α, α), the box reaches half of `W·√(1−λ)` and of
/// `H·√(1−λ)`, all rounded down, to either side of a uniform pixel, and is clipped to the image; λ is then the share of the image
/// outside it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mix {
    /// α of mixup, positive and finite; `None` (written "none") without mixup.
    #[serde(with = "alpha")]
    pub mixup: Option<f64>,
    /// α of CutMix, positive and finite; `None` (written "none") without CutMix.
    #[serde(with = "alpha")]
    pub cutmix: Option<f64>,
    /// Probability that a unit is mixed at all, in [0, 1].
    pub prob: f64,
    /// Probability that a mixed unit is cut, in [0, 1]; of use where both are given.
    pub switch: f64,
    /// Which rows share one draw.
    pub per: MixPer,
    /// Whether mixup's λ is folded to max(λ, 1−λ), so that the own image weighs at least half.
    pub fold: bool,
    /// Where the partners come from.
    pub pairing: Pairing,
    /// The first epoch without any mixing, at most 2⁵⁶; `None` mixes in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub off_epoch: Option<u64>,
}

impl Mix {
    /// No mixing: λ is 1, and every row is its own partner.
    pub const NONE: Self = Self {
        mixup: None,
        cutmix: None,
        prob: 1.0,
        switch: 0.5,
        per: MixPer::Image,
        fold: true,
        pairing: Pairing::Shuffle,
        off_epoch: None,
    };

    /// Mixup with this α, folded, per image, with partners from a shuffle of the batch.
    pub const fn mixup(alpha: f64) -> Self {
        Self { mixup: Some(alpha), ..Self::NONE }
    }

    /// CutMix with this α, per image, with partners from a shuffle of the batch.
    pub const fn cutmix(alpha: f64) -> Self {
        Self { cutmix: Some(alpha), ..Self::NONE }
    }

    /// Whether any row may be mixed.
    pub const fn is_on(&self) -> bool {
        self.mixup.is_some() || self.cutmix.is_some()
    }

    /// Whether partners are a second batch, with samples of their own.
    pub fn takes_a_second_batch(&self) -> bool {
        self.is_on() && self.pairing == Pairing::SecondBatch
    }
}

/// An α, or "none".
mod alpha {
    use super::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Text {
        Alpha(f64),
        None(None),
    }

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum None {
        None,
    }

    pub fn serialize<S: Serializer>(alpha: &Option<f64>, to: S) -> Result<S::Ok, S::Error> {
        alpha.map_or(Text::None(None::None), Text::Alpha).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
        Ok(match Text::deserialize(from)? {
            Text::Alpha(alpha) => Some(alpha),
            Text::None(_) => Option::None,
        })
    }
}

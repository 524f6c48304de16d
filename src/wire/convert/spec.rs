//! A feed spec's messages.

use super::{Crosses, Field, Reason, Refusal, proto};
use crate::operation::Warping;
use crate::spec::{Augment, Blur, ColorJitter, Crop, Erase, FeedSpec, Grow, Mix, Share, Shuffle, Solarize};
use crate::types::{ImageSize, ParseError, Place, Split, Start};
use std::num::NonZeroU32;
use std::str::FromStr;

fn parse<T: FromStr<Err = ParseError>>(text: Option<&str>) -> Result<Option<T>, ParseError> {
    text.map(str::parse).transpose()
}

fn channels(key: &'static str, values: &[f32]) -> Result<Option<[f32; 3]>, Refusal> {
    match values {
        [] => Ok(None),
        &[r, g, b] => Ok(Some([r, g, b])),
        other => {
            let found = other.len();
            let text = format!("bad feed spec: {key} has {found} numbers: it must have one a channel, 3");
            Err(Reason::Spec.because(text))
        }
    }
}

/// The order that is asked for.
fn shuffle(shuffle: Option<bool>, shards: Option<u32>) -> Result<Option<Shuffle>, Refusal> {
    match (shuffle, shards.map(NonZeroU32::new)) {
        (Some(false), None) => Ok(Some(Shuffle::Off)),
        (Some(true), None) => Ok(Some(Shuffle::Global)),
        (None, None) => Ok(None),
        (None | Some(true), Some(Some(count))) => Ok(Some(Shuffle::Shards(count))),
        (Some(false), Some(_)) | (_, Some(None)) => {
            let text = "bad feed spec: shuffle_shards goes with shuffle and must be 1 or more".to_owned();
            Err(Reason::Spec.because(text))
        }
    }
}

impl Crosses for FeedSpec {
    type Message = proto::FeedSpec;

    fn into_message(self) -> proto::FeedSpec {
        // Without the ..: a field that is forgotten here does not compile.
        let Self {
            split,
            batch_size,
            image_size: ImageSize { height, width },
            grow,
            crop,
            interpolation,
            flip,
            augment,
            erase,
            shuffle,
            seed,
            last,
            repeats,
            views,
            mix,
            smoothing,
            dtype,
            layout,
            mean,
            std,
            device,
            rank,
            world_size,
            consumed,
            slots,
            digest,
            share,
            start,
        } = self;
        proto::FeedSpec {
            split: Some(split.to_string()),
            batch_size: Some(batch_size),
            height: Some(height),
            width: Some(width),
            grow: grow.into_field(),
            crop: crop.into_field(),
            interpolation: Some(interpolation.to_string()),
            flip: Some(flip),
            augment: augment.into_field(),
            erase: erase.into_field(),
            shuffle: Some(shuffle != Shuffle::Off),
            shuffle_shards: match shuffle {
                Shuffle::Shards(count) => Some(count.get()),
                Shuffle::Off | Shuffle::Global => None,
            },
            seed: Some(seed),
            last: Some(last.to_string()),
            repeats: Some(repeats),
            views: Some(views),
            mix: mix.into_field(),
            smoothing: Some(smoothing),
            dtype: Some(dtype.to_string()),
            layout: Some(layout.to_string()),
            mean: mean.to_vec(),
            std: std.to_vec(),
            rank: Some(rank),
            world_size: Some(world_size),
            consumed: consumed.into_field(),
            slots: Some(slots),
            start: start.into_field(),
            digest: Some(digest),
            share: share.into_field(),
            device: Some(device.to_string()),
        }
    }

    /// Defaults are filled in; ranges are not checked here.
    fn from_message(from: proto::FeedSpec) -> Result<Self, Refusal> {
        // Without the ..: a field that is forgotten here does not compile.
        let proto::FeedSpec {
            split,
            batch_size,
            height,
            width,
            shuffle,
            shuffle_shards,
            seed,
            last,
            mix,
            smoothing,
            dtype,
            layout,
            mean,
            std,
            rank,
            world_size,
            slots,
            start,
            digest,
            share,
            device,
            crop,
            interpolation,
            flip,
            repeats,
            augment,
            erase,
            views,
            grow,
            consumed,
        } = from;
        let base = FeedSpec::of(parse(split.as_deref())?.unwrap_or(Split::Train));
        Ok(FeedSpec {
            split: base.split,
            batch_size: batch_size.unwrap_or(base.batch_size),
            image_size: ImageSize {
                height: height.unwrap_or(base.image_size.height),
                width: width.unwrap_or(base.image_size.width),
            },
            grow: Field::from_field(grow)?,
            crop: crop.map_or(Ok(base.crop), Crop::from_message)?,
            interpolation: parse(interpolation.as_deref())?.unwrap_or(base.interpolation),
            flip: flip.unwrap_or(base.flip),
            augment: augment.map_or(Ok(base.augment), Augment::from_message)?,
            erase: erase.map_or(Ok(base.erase), Erase::from_message)?,
            shuffle: self::shuffle(shuffle, shuffle_shards)?.unwrap_or(base.shuffle),
            seed: seed.unwrap_or(base.seed),
            last: parse(last.as_deref())?.unwrap_or(base.last),
            repeats: repeats.unwrap_or(base.repeats),
            views: views.unwrap_or(base.views),
            mix: mix.map_or(Ok(base.mix), Mix::from_message)?,
            smoothing: smoothing.unwrap_or(base.smoothing),
            dtype: parse(dtype.as_deref())?.unwrap_or(base.dtype),
            layout: parse(layout.as_deref())?.unwrap_or(base.layout),
            mean: channels("mean", &mean)?.unwrap_or(base.mean),
            std: channels("std", &std)?.unwrap_or(base.std),
            device: parse(device.as_deref())?.unwrap_or(base.device),
            rank: rank.unwrap_or(base.rank),
            world_size: world_size.unwrap_or(base.world_size),
            consumed: Field::from_field(consumed)?,
            slots: slots.unwrap_or(base.slots),
            digest: digest.unwrap_or(base.digest),
            share: Field::from_field(share)?,
            start: start.map_or(Ok(base.start), Start::from_message)?,
        })
    }
}

impl Crosses for Crop {
    type Message = proto::Crop;

    fn into_message(self) -> proto::Crop {
        use proto::crop::Kind;
        let kind = match self {
            Self::Squash => Kind::Squash(proto::Squash {}),
            Self::SquashCenter { resize } => Kind::SquashCenter(proto::CenterCrop { resize }),
            Self::ShortCenter { resize } => Kind::ShortCenter(proto::CenterCrop { resize }),
            Self::RandomResizedCrop { scale: [scale_min, scale_max], ratio: [ratio_min, ratio_max] } => {
                Kind::RandomResizedCrop(proto::RandomResizedCrop { scale_min, scale_max, ratio_min, ratio_max })
            }
            Self::PadCrop { pad, mode } => Kind::PadCrop(proto::PadCrop { pad, mode: mode.to_string() }),
        };
        proto::Crop { kind: Some(kind) }
    }

    fn from_message(from: proto::Crop) -> Result<Self, Refusal> {
        use proto::crop::Kind;
        Ok(match from.kind {
            // One that a later version adds.
            None => {
                let text =
                    "bad feed spec: crop is of no kind that this version knows (use the same mixd on both sides)";
                return Err(Reason::Spec.because(text));
            }
            Some(Kind::Squash(proto::Squash {})) => Self::Squash,
            Some(Kind::SquashCenter(proto::CenterCrop { resize })) => Self::SquashCenter { resize },
            Some(Kind::ShortCenter(proto::CenterCrop { resize })) => Self::ShortCenter { resize },
            Some(Kind::RandomResizedCrop(proto::RandomResizedCrop { scale_min, scale_max, ratio_min, ratio_max })) => {
                Self::RandomResizedCrop { scale: [scale_min, scale_max], ratio: [ratio_min, ratio_max] }
            }
            Some(Kind::PadCrop(proto::PadCrop { pad, mode })) => Self::PadCrop { pad, mode: mode.parse()? },
        })
    }
}

impl Crosses for Augment {
    type Message = proto::Augment;

    fn into_message(self) -> proto::Augment {
        let Self { policy, jitter, grayscale, blur, solarize, warping: Warping { filter, fill }, later } = self;
        let ColorJitter { brightness, contrast, saturation, hue, prob } = jitter;
        proto::Augment {
            policy: policy.to_string(),
            jitter: Some(proto::ColorJitter { brightness, contrast, saturation, hue, prob }),
            grayscale,
            blur: blur.into_field(),
            solarize: solarize.into_field(),
            warp: filter.to_string(),
            fill: fill.to_vec(),
            later: later.into_field(),
        }
    }

    fn from_message(from: proto::Augment) -> Result<Self, Refusal> {
        let proto::Augment { policy, jitter, grayscale, blur, solarize, warp, fill, later } = from;
        let off = Self::default();
        let [r, g, b] = fill[..] else {
            let text = format!("bad feed spec: fill has {} bytes: it must have one a channel, 3", fill.len());
            return Err(Reason::Spec.because(text));
        };
        Ok(Self {
            policy: policy.parse()?,
            jitter: jitter.map_or(off.jitter, |jitter| {
                let proto::ColorJitter { brightness, contrast, saturation, hue, prob } = jitter;
                ColorJitter { brightness, contrast, saturation, hue, prob }
            }),
            grayscale,
            blur: blur.map_or(Ok(off.blur), Blur::from_message)?,
            solarize: solarize.map_or(Ok(off.solarize), Solarize::from_message)?,
            warping: Warping { filter: warp.parse()?, fill: [r, g, b] },
            later: Field::from_field(later)?,
        })
    }
}

impl Crosses for Blur {
    type Message = proto::Blur;

    fn into_message(self) -> proto::Blur {
        let Self { prob, sigma: [sigma_min, sigma_max] } = self;
        proto::Blur { prob, sigma_min, sigma_max }
    }

    fn from_message(from: proto::Blur) -> Result<Self, Refusal> {
        let proto::Blur { prob, sigma_min, sigma_max } = from;
        Ok(Self { prob, sigma: [sigma_min, sigma_max] })
    }
}

impl Crosses for Grow {
    type Message = proto::Grow;

    fn into_message(self) -> proto::Grow {
        let Self { size: ImageSize { height, width }, from, to } = self;
        proto::Grow { height, width, from, to }
    }

    fn from_message(message: proto::Grow) -> Result<Self, Refusal> {
        let proto::Grow { height, width, from, to } = message;
        Ok(Self { size: ImageSize { height, width }, from, to })
    }
}

impl Crosses for Erase {
    type Message = proto::Erase;

    fn into_message(self) -> proto::Erase {
        let Self { prob, mode, count, area: [area_min, area_max], ratio: [ratio_min, ratio_max], when } = self;
        let (mode, when) = (mode.to_string(), when.to_string());
        proto::Erase { prob, mode, count, area_min, area_max, ratio_min, ratio_max, when }
    }

    fn from_message(from: proto::Erase) -> Result<Self, Refusal> {
        let proto::Erase { prob, mode, count, area_min, area_max, ratio_min, ratio_max, when } = from;
        let (area, ratio) = ([area_min, area_max], [ratio_min, ratio_max]);
        Ok(Self { prob, mode: mode.parse()?, count, area, ratio, when: when.parse()? })
    }
}

impl Crosses for Mix {
    type Message = proto::Mix;

    fn into_message(self) -> proto::Mix {
        let Self { mixup, cutmix, prob, switch, per, fold, pairing, off_epoch } = self;
        proto::Mix {
            mixup,
            cutmix,
            prob: Some(prob),
            switch: Some(switch),
            per: Some(per.to_string()),
            fold: Some(fold),
            pairing: Some(pairing.to_string()),
            off_epoch,
        }
    }

    fn from_message(from: proto::Mix) -> Result<Self, Refusal> {
        let proto::Mix { mixup, cutmix, prob, switch, per, fold, pairing, off_epoch } = from;
        let base = Self::NONE;
        Ok(Self {
            mixup,
            cutmix,
            prob: prob.unwrap_or(base.prob),
            switch: switch.unwrap_or(base.switch),
            per: parse(per.as_deref())?.unwrap_or(base.per),
            fold: fold.unwrap_or(base.fold),
            pairing: parse(pairing.as_deref())?.unwrap_or(base.pairing),
            off_epoch,
        })
    }
}

impl Crosses for Share {
    type Message = proto::Share;

    fn into_message(self) -> proto::Share {
        let Self { name, delivery, max_lag_s } = self;
        proto::Share { name: name.to_string(), delivery: Some(delivery.to_string()), max_lag_s: Some(max_lag_s) }
    }

    fn from_message(from: proto::Share) -> Result<Self, Refusal> {
        let base = Self::new(from.name.parse()?);
        Ok(Self {
            delivery: parse(from.delivery.as_deref())?.unwrap_or(base.delivery),
            max_lag_s: from.max_lag_s.unwrap_or(base.max_lag_s),
            ..base
        })
    }
}

impl Crosses for Start {
    type Message = proto::Start;

    fn into_message(self) -> proto::Start {
        use proto::start::At;
        let at = match self {
            Self::Now => At::Now(proto::Now {}),
            Self::NextEpoch => At::NextEpoch(proto::NextEpoch {}),
            Self::At(place) => At::Place(place.into_message()),
        };
        proto::Start { at: Some(at) }
    }

    fn from_message(from: proto::Start) -> Result<Self, Refusal> {
        use proto::start::At;
        Ok(match from.at {
            None | Some(At::Now(_)) => Self::Now,
            Some(At::NextEpoch(_)) => Self::NextEpoch,
            Some(At::Place(place)) => Self::At(Place::from_message(place)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::WarpFilter;
    use crate::spec::{Consumed, Delivery, EraseMode, EraseWhen, LaterViews, MixPer, Pairing, Recipe};
    use crate::types::{Device, Dtype, Interpolation, Last, Layout, PadMode};

    #[test]
    fn specs_survive_a_round_trip() {
        let unusual = FeedSpec {
            split: Split::Val,
            batch_size: 7,
            image_size: ImageSize { height: 33, width: 65 },
            grow: Some("32x40,3,9".parse().unwrap()),
            shuffle: Shuffle::Shards(NonZeroU32::new(7).unwrap()),
            seed: u64::MAX,
            last: Last::Drop,
            crop: Crop::PadCrop { pad: 4, mode: PadMode::Reflect },
            interpolation: Interpolation::Bicubic,
            flip: 0.25,
            augment: Augment {
                policy: "rand-m7-mstd0.3-n3-p0.4-inc0".parse().unwrap(),
                jitter: ColorJitter { brightness: 0.1, contrast: 0.2, saturation: 0.3, hue: 0.4, prob: 0.5 },
                grayscale: 0.6,
                blur: Blur { prob: 0.7, sigma: [0.8, 0.9] },
                solarize: Solarize { prob: 0.1, threshold: 99.5 },
                warping: Warping { filter: WarpFilter::Bicubic, fill: [1, 2, 3] },
                later: Some(LaterViews { blur: Blur { prob: 0.15, sigma: [0.3, 0.4] }, ..LaterViews::default() }),
            },
            erase: Erase {
                prob: 0.2,
                mode: EraseMode::Rand,
                count: 4,
                area: [0.1, 0.2],
                ratio: [0.5, 2.0],
                when: EraseWhen::AfterMix,
            },
            repeats: 3,
            views: 7,
            mix: Mix {
                mixup: Some(0.1),
                cutmix: Some(0.7),
                prob: 0.9,
                switch: 0.3,
                per: MixPer::Batch,
                fold: false,
                pairing: Pairing::SecondBatch,
                off_epoch: Some(3),
            },
            smoothing: 0.3,
            dtype: Dtype::Bf16,
            layout: Layout::Nhwc,
            mean: [0.0, 0.1, 0.2],
            std: [1.0, 2.0, 3.0],
            device: Device::Cuda(3),
            rank: 3,
            world_size: 5,
            consumed: Some(Consumed { epoch: 4, samples: 1_000 }),
            slots: 9,
            start: Start::At(Place { epoch: 4, index: 2 }),
            digest: true,
            share: Some(Share { delivery: Delivery::Latest, max_lag_s: 2.5, ..Share::new("a-1".parse().unwrap()) }),
        };
        let other = FeedSpec { mix: Mix::cutmix(0.7), start: Start::NextEpoch, ..unusual };
        let recipes =
            Recipe::presets().into_iter().flat_map(|recipe| [recipe.feed(Split::Train), recipe.feed(Split::Val)]);
        for spec in [unusual, other].into_iter().chain(recipes) {
            assert_eq!(FeedSpec::from_message(spec.into_message()), Ok(spec));
        }
    }

    #[test]
    fn an_empty_message_is_the_default_feed_of_its_split() {
        assert_eq!(FeedSpec::from_message(proto::FeedSpec::default()), Ok(FeedSpec::train()));
        let val = proto::FeedSpec { split: Some("val".to_owned()), ..Default::default() };
        assert_eq!(FeedSpec::from_message(val), Ok(FeedSpec::val()));
    }

    #[test]
    fn texts_that_name_nothing_are_refused() {
        let message = proto::FeedSpec { dtype: Some("f64".to_owned()), ..Default::default() };
        let error = FeedSpec::from_message(message).unwrap_err();
        assert_eq!(error, Reason::Spec.because("`f64` is not a dtype (use f32, f16, bf16 or u8)"));
        for (shuffle, shards) in [(Some(true), 0), (None, 0), (Some(false), 2)] {
            let message = proto::FeedSpec { shuffle, shuffle_shards: Some(shards), ..Default::default() };
            assert_eq!(FeedSpec::from_message(message).unwrap_err().reason, Reason::Spec);
        }
        let message = proto::FeedSpec { mean: vec![0.5], ..Default::default() };
        assert_eq!(FeedSpec::from_message(message).unwrap_err().reason, Reason::Spec);
        let message = proto::FeedSpec { crop: Some(proto::Crop { kind: None }), ..Default::default() };
        assert_eq!(FeedSpec::from_message(message).unwrap_err().reason, Reason::Spec);
    }
}

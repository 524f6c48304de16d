//! Between the messages of the control plane and the types of the domain; the only file that sees both.

use super::daemon::Former;
use super::proto;
use crate::pipeline::{BadSample, StoreEntry, Views};
use crate::render::SourceSize;
use crate::source::Class;
use crate::spec::{Crop, FeedSpec, Mix, Share};
use crate::stats::{Mixed, Stage};
use crate::store::Sources;
use crate::types::{ImageSize, ParseError, Place, Split, Start};
use std::str::FromStr;

/// Version of `control.proto`.
pub const PROTOCOL_VERSION: u32 = 4;

/// The versions of this build.
pub fn versions() -> proto::Versions {
    proto::Versions {
        protocol: PROTOCOL_VERSION,
        layout: crate::ring::LAYOUT_VERSION,
        plan: crate::batch::PLAN_VERSION,
    }
}

/// Why a message is no feed spec.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum SpecMessageError {
    /// A text that names no value.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// A list of another length.
    #[error("bad feed spec: {key} has {found} numbers: it must have one a channel, 3")]
    Channels {
        /// Which list.
        key: &'static str,
        /// Its length.
        found: usize,
    },
}

fn parse<T: FromStr<Err = ParseError>>(text: Option<&str>) -> Result<Option<T>, ParseError> {
    text.map(str::parse).transpose()
}

fn channels(key: &'static str, values: &[f32]) -> Result<Option<[f32; 3]>, SpecMessageError> {
    match values {
        [] => Ok(None),
        &[r, g, b] => Ok(Some([r, g, b])),
        other => Err(SpecMessageError::Channels { key, found: other.len() }),
    }
}

/// The spec that a message asks for, defaults filled in; its ranges are not checked here.
///
/// # Errors
/// When a text names no value, or a list has another length.
pub fn spec_from_proto(message: &proto::FeedSpec) -> Result<FeedSpec, SpecMessageError> {
    // Without the ..: a field that is forgotten here does not compile.
    let proto::FeedSpec {
        split,
        batch_size,
        height,
        width,
        shuffle,
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
    } = message;
    let base = FeedSpec::of(parse(split.as_deref())?.unwrap_or(Split::Train));
    Ok(FeedSpec {
        split: base.split,
        batch_size: batch_size.unwrap_or(base.batch_size),
        image_size: ImageSize {
            height: height.unwrap_or(base.image_size.height),
            width: width.unwrap_or(base.image_size.width),
        },
        crop: crop.as_ref().map(crop_from_proto).transpose()?.unwrap_or(base.crop),
        interpolation: parse(interpolation.as_deref())?.unwrap_or(base.interpolation),
        flip: flip.unwrap_or(base.flip),
        shuffle: shuffle.unwrap_or(base.shuffle),
        seed: seed.unwrap_or(base.seed),
        last: parse(last.as_deref())?.unwrap_or(base.last),
        repeats: repeats.unwrap_or(base.repeats),
        mix: mix.as_ref().map(mix_from_proto).transpose()?.unwrap_or(base.mix),
        smoothing: smoothing.unwrap_or(base.smoothing),
        dtype: parse(dtype.as_deref())?.unwrap_or(base.dtype),
        layout: parse(layout.as_deref())?.unwrap_or(base.layout),
        mean: channels("mean", mean)?.unwrap_or(base.mean),
        std: channels("std", std)?.unwrap_or(base.std),
        device: parse(device.as_deref())?.unwrap_or(base.device),
        rank: rank.unwrap_or(base.rank),
        world_size: world_size.unwrap_or(base.world_size),
        slots: slots.unwrap_or(base.slots),
        digest: digest.unwrap_or(base.digest),
        share: share.as_ref().map(share_from_proto).transpose()?,
        start: start.as_ref().map_or(base.start, start_from_proto),
    })
}

fn crop_from_proto(message: &proto::Crop) -> Result<Crop, ParseError> {
    use proto::crop::Kind;
    Ok(match message.kind.as_ref() {
        None | Some(Kind::Squash(proto::Squash {})) => Crop::Squash,
        Some(&Kind::SquashCenter(proto::CenterCrop { resize })) => Crop::SquashCenter { resize },
        Some(&Kind::ShortCenter(proto::CenterCrop { resize })) => Crop::ShortCenter { resize },
        Some(&Kind::RandomResizedCrop(proto::RandomResizedCrop { scale_min, scale_max, ratio_min, ratio_max })) => {
            Crop::RandomResizedCrop { scale: [scale_min, scale_max], ratio: [ratio_min, ratio_max] }
        }
        Some(Kind::PadCrop(proto::PadCrop { pad, mode })) => Crop::PadCrop { pad: *pad, mode: mode.parse()? },
    })
}

fn crop_to_proto(crop: Crop) -> proto::Crop {
    use proto::crop::Kind;
    let kind = match crop {
        Crop::Squash => Kind::Squash(proto::Squash {}),
        Crop::SquashCenter { resize } => Kind::SquashCenter(proto::CenterCrop { resize }),
        Crop::ShortCenter { resize } => Kind::ShortCenter(proto::CenterCrop { resize }),
        Crop::RandomResizedCrop { scale: [scale_min, scale_max], ratio: [ratio_min, ratio_max] } => {
            Kind::RandomResizedCrop(proto::RandomResizedCrop { scale_min, scale_max, ratio_min, ratio_max })
        }
        Crop::PadCrop { pad, mode } => Kind::PadCrop(proto::PadCrop { pad, mode: mode.to_string() }),
    };
    proto::Crop { kind: Some(kind) }
}

fn share_from_proto(message: &proto::Share) -> Result<Share, ParseError> {
    let base = Share::new(message.name.parse()?);
    Ok(Share {
        delivery: parse(message.delivery.as_deref())?.unwrap_or(base.delivery),
        max_lag_s: message.max_lag_s.unwrap_or(base.max_lag_s),
        ..base
    })
}

fn start_from_proto(message: &proto::Start) -> Start {
    use proto::start::At;
    match message.at {
        None | Some(At::Now(_)) => Start::Now,
        Some(At::NextEpoch(_)) => Start::NextEpoch,
        Some(At::Place(at)) => Start::At(place_from_proto(at)),
    }
}

/// The place that a message names.
pub fn place_from_proto(message: proto::Place) -> Place {
    Place { epoch: message.epoch, index: message.index }
}

/// What a trainer that comes back says of the feed that it had.
pub fn former_from_proto(message: &proto::Former) -> Former {
    Former { next: message.next.map(place_from_proto).unwrap_or_default(), trainers: message.trainers }
}

/// The message of a place.
pub fn place_to_proto(place: Place) -> proto::Place {
    proto::Place { epoch: place.epoch, index: place.index }
}

fn mix_from_proto(message: &proto::Mix) -> Result<Mix, ParseError> {
    let proto::Mix { mixup, cutmix, prob, switch, per, fold, pairing } = message;
    let base = Mix::NONE;
    Ok(Mix {
        mixup: *mixup,
        cutmix: *cutmix,
        prob: prob.unwrap_or(base.prob),
        switch: switch.unwrap_or(base.switch),
        per: parse(per.as_deref())?.unwrap_or(base.per),
        fold: fold.unwrap_or(base.fold),
        pairing: parse(pairing.as_deref())?.unwrap_or(base.pairing),
    })
}

/// The message of a spec, with every field set.
pub fn spec_to_proto(spec: &FeedSpec) -> proto::FeedSpec {
    // Without the ..: a field that is forgotten here does not compile.
    let &FeedSpec {
        split,
        batch_size,
        image_size: ImageSize { height, width },
        crop,
        interpolation,
        flip,
        shuffle,
        seed,
        last,
        repeats,
        mix: Mix { mixup, cutmix, prob, switch, per, fold, pairing },
        smoothing,
        dtype,
        layout,
        mean,
        std,
        device,
        rank,
        world_size,
        slots,
        digest,
        share,
        start,
    } = spec;
    let share = share.map(|Share { name, delivery, max_lag_s }| proto::Share {
        name: name.to_string(),
        delivery: Some(delivery.to_string()),
        max_lag_s: Some(max_lag_s),
    });
    let at = match start {
        Start::Now => proto::start::At::Now(proto::Now {}),
        Start::NextEpoch => proto::start::At::NextEpoch(proto::NextEpoch {}),
        Start::At(at) => proto::start::At::Place(place_to_proto(at)),
    };
    let mix = proto::Mix {
        mixup,
        cutmix,
        prob: Some(prob),
        switch: Some(switch),
        per: Some(per.to_string()),
        fold: Some(fold),
        pairing: Some(pairing.to_string()),
    };
    proto::FeedSpec {
        split: Some(split.to_string()),
        batch_size: Some(batch_size),
        height: Some(height),
        width: Some(width),
        crop: Some(crop_to_proto(crop)),
        interpolation: Some(interpolation.to_string()),
        flip: Some(flip),
        shuffle: Some(shuffle),
        seed: Some(seed),
        last: Some(last.to_string()),
        repeats: Some(repeats),
        mix: Some(mix),
        smoothing: Some(smoothing),
        dtype: Some(dtype.to_string()),
        layout: Some(layout.to_string()),
        mean: mean.to_vec(),
        std: std.to_vec(),
        rank: Some(rank),
        world_size: Some(world_size),
        slots: Some(slots),
        start: Some(proto::Start { at: Some(at) }),
        digest: Some(digest),
        share,
        device: Some(device.to_string()),
    }
}

/// The message of a class.
pub fn class(class: &Class) -> proto::Class {
    proto::Class { id: class.id.clone(), name: class.name.clone() }
}

/// The message of a store.
pub fn store(entry: &StoreEntry) -> proto::Store {
    let StoreEntry { split, views: Views { crop, interpolation, size: image_size }, store, .. } = entry;
    proto::Store {
        split: split.to_string(),
        height: image_size.height,
        width: image_size.width,
        samples: store.samples(),
        capacity: store.rows().len(),
        decoded: store.decoded(),
        bytes: store.bytes(),
        device_bytes: entry.device_bytes(),
        view: format!("{crop} {interpolation}"),
    }
}

/// The message of kept sources.
pub fn sources(split: Split, sources: &Sources, size: SourceSize) -> proto::Sources {
    proto::Sources {
        split: split.to_string(),
        samples: sources.samples(),
        kept: sources.kept(),
        decoded: sources.decoded(),
        bytes: sources.bytes(),
        size: size.to_string(),
    }
}

/// The message of what was mixed.
pub fn mixed(mixed: Mixed) -> proto::Mixed {
    let Mixed { images, to_device_bytes, from_device_bytes, on_device_bytes } = mixed;
    proto::Mixed { images, to_device_bytes, from_device_bytes, on_device_bytes }
}

/// The message of a bad sample.
pub fn bad_sample(bad: &BadSample) -> proto::BadSample {
    proto::BadSample {
        split: bad.split.to_string(),
        sample_id: bad.sample_id,
        path: bad.name.clone(),
        cause: bad.cause.clone(),
    }
}

/// The message of a stage.
pub fn stage(name: &str, stage: &Stage) -> proto::Stage {
    let read = stage.read();
    proto::Stage {
        name: name.to_owned(),
        items: read.items,
        busy_s: read.busy.as_secs_f64(),
        waiting_in_s: read.waiting_in.as_secs_f64(),
        waiting_out_s: read.waiting_out.as_secs_f64(),
        threads: read.threads as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Delivery, MixPer, Pairing, Recipe};
    use crate::types::{Device, Dtype, Interpolation, Last, Layout, PadMode};

    #[test]
    fn specs_survive_a_round_trip() {
        let unusual = FeedSpec {
            split: Split::Val,
            batch_size: 7,
            image_size: ImageSize { height: 33, width: 65 },
            shuffle: true,
            seed: u64::MAX,
            last: Last::Drop,
            crop: Crop::PadCrop { pad: 4, mode: PadMode::Reflect },
            interpolation: Interpolation::Bicubic,
            flip: 0.25,
            repeats: 3,
            mix: Mix {
                mixup: Some(0.1),
                cutmix: Some(0.7),
                prob: 0.9,
                switch: 0.3,
                per: MixPer::Batch,
                fold: false,
                pairing: Pairing::SecondBatch,
            },
            smoothing: 0.3,
            dtype: Dtype::Bf16,
            layout: Layout::Nhwc,
            mean: [0.0, 0.1, 0.2],
            std: [1.0, 2.0, 3.0],
            device: Device::Cuda(3),
            rank: 3,
            world_size: 5,
            slots: 9,
            start: Start::At(Place { epoch: 4, index: 2 }),
            digest: true,
            share: Some(Share { delivery: Delivery::Latest, max_lag_s: 2.5, ..Share::new("a-1".parse().unwrap()) }),
        };
        let other = FeedSpec { mix: Mix::cutmix(0.7), start: Start::NextEpoch, ..unusual };
        let recipes =
            Recipe::presets().into_iter().flat_map(|recipe| [recipe.feed(Split::Train), recipe.feed(Split::Val)]);
        for spec in [unusual, other].into_iter().chain(recipes) {
            assert_eq!(spec_from_proto(&spec_to_proto(&spec)), Ok(spec));
        }
    }

    #[test]
    fn an_empty_message_is_the_default_feed_of_its_split() {
        assert_eq!(spec_from_proto(&proto::FeedSpec::default()), Ok(FeedSpec::train()));
        let val = proto::FeedSpec { split: Some("val".to_owned()), ..Default::default() };
        assert_eq!(spec_from_proto(&val), Ok(FeedSpec::val()));
    }

    #[test]
    fn texts_that_name_nothing_are_refused() {
        let message = proto::FeedSpec { dtype: Some("f64".to_owned()), ..Default::default() };
        let error = spec_from_proto(&message).unwrap_err().to_string();
        assert_eq!(error, "`f64` is not a dtype (use f32, f16, bf16 or u8)");
        let message = proto::FeedSpec { mean: vec![0.5], ..Default::default() };
        assert_eq!(spec_from_proto(&message), Err(SpecMessageError::Channels { key: "mean", found: 1 }));
    }
}

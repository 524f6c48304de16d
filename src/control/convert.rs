//! Between the messages of the control plane and the types of the domain; the only file that sees both.

use super::daemon::Former;
use super::proto;
use crate::config::{CutMix, FeedSpec, Mix, Mixup, Share};
use crate::pipeline::{BadSample, StoreEntry};
use crate::source::Class;
use crate::stats::{Mixed, Stage};
use crate::types::{ImageSize, ParseError, Place, Start};
use std::str::FromStr;

/// Version of `control.proto`.
pub const PROTOCOL_VERSION: u32 = 3;

/// The versions of this build.
pub fn versions() -> proto::Versions {
    proto::Versions { protocol: PROTOCOL_VERSION, layout: crate::ring::LAYOUT_VERSION, plan: crate::rng::PLAN_VERSION }
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

/// Overwrites `target` where the message says something.
fn set<T>(target: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *target = value;
    }
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
    let m = message;
    let val = m.split.as_deref() == Some("val");
    let mut spec = if val { FeedSpec::val() } else { FeedSpec::train() };
    set(&mut spec.split, parse(m.split.as_deref())?);
    set(&mut spec.batch_size, m.batch_size);
    let ImageSize { height, width } = spec.image_size;
    spec.image_size = ImageSize { height: m.height.unwrap_or(height), width: m.width.unwrap_or(width) };
    set(&mut spec.shuffle, m.shuffle);
    set(&mut spec.seed, m.seed);
    set(&mut spec.last, parse(m.last.as_deref())?);
    set(&mut spec.mix, m.mix.as_ref().map(mix_from_proto).transpose()?);
    set(&mut spec.smoothing, m.smoothing);
    set(&mut spec.dtype, parse(m.dtype.as_deref())?);
    set(&mut spec.layout, parse(m.layout.as_deref())?);
    set(&mut spec.mean, channels("mean", &m.mean)?);
    set(&mut spec.std, channels("std", &m.std)?);
    set(&mut spec.device, parse(m.device.as_deref())?);
    set(&mut spec.rank, m.rank);
    set(&mut spec.world_size, m.world_size);
    set(&mut spec.slots, m.slots);
    set(&mut spec.flip, m.flip);
    set(&mut spec.digest, m.digest);
    spec.share = m.share.as_ref().map(share_from_proto).transpose()?;
    set(&mut spec.start, m.start.as_ref().map(start_from_proto));
    Ok(spec)
}

fn share_from_proto(message: &proto::Share) -> Result<Share, ParseError> {
    let mut share = Share::new(message.name.parse()?);
    set(&mut share.delivery, parse(message.delivery.as_deref())?);
    set(&mut share.max_lag_s, message.max_lag_s);
    Ok(share)
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
    use proto::mix::Kind;
    match &message.kind {
        None | Some(Kind::None(_)) => Ok(Mix::None),
        Some(Kind::Mixup(m)) => {
            let mut mixup = Mixup::default();
            set(&mut mixup.alpha, m.alpha);
            set(&mut mixup.lambda, parse(m.lambda.as_deref())?);
            set(&mut mixup.fold, m.fold);
            set(&mut mixup.pairing, parse(m.pairing.as_deref())?);
            Ok(Mix::Mixup(mixup))
        }
        Some(Kind::Cutmix(m)) => {
            let mut cut_mix = CutMix::default();
            set(&mut cut_mix.alpha, m.alpha);
            set(&mut cut_mix.lambda, parse(m.lambda.as_deref())?);
            Ok(Mix::CutMix(cut_mix))
        }
    }
}

/// The message of a spec, with every field set.
pub fn spec_to_proto(spec: &FeedSpec) -> proto::FeedSpec {
    use proto::mix::Kind;
    let kind = match spec.mix {
        Mix::None => Kind::None(proto::NoMix {}),
        Mix::Mixup(Mixup { alpha, lambda, fold, pairing }) => Kind::Mixup(proto::Mixup {
            alpha: Some(alpha),
            lambda: Some(lambda.to_string()),
            fold: Some(fold),
            pairing: Some(pairing.to_string()),
        }),
        Mix::CutMix(CutMix { alpha, lambda }) => {
            Kind::Cutmix(proto::CutMix { alpha: Some(alpha), lambda: Some(lambda.to_string()) })
        }
    };
    let share = spec.share.map(|share| proto::Share {
        name: share.name.to_string(),
        delivery: Some(share.delivery.to_string()),
        max_lag_s: Some(share.max_lag_s),
    });
    let at = match spec.start {
        Start::Now => proto::start::At::Now(proto::Now {}),
        Start::NextEpoch => proto::start::At::NextEpoch(proto::NextEpoch {}),
        Start::At(at) => proto::start::At::Place(place_to_proto(at)),
    };
    proto::FeedSpec {
        split: Some(spec.split.to_string()),
        batch_size: Some(spec.batch_size),
        height: Some(spec.image_size.height),
        width: Some(spec.image_size.width),
        shuffle: Some(spec.shuffle),
        seed: Some(spec.seed),
        last: Some(spec.last.to_string()),
        mix: Some(proto::Mix { kind: Some(kind) }),
        smoothing: Some(spec.smoothing),
        dtype: Some(spec.dtype.to_string()),
        layout: Some(spec.layout.to_string()),
        mean: spec.mean.to_vec(),
        std: spec.std.to_vec(),
        rank: Some(spec.rank),
        world_size: Some(spec.world_size),
        slots: Some(spec.slots),
        start: Some(proto::Start { at: Some(at) }),
        flip: Some(spec.flip),
        digest: Some(spec.digest),
        share,
        device: Some(spec.device.to_string()),
    }
}

/// The message of a class.
pub fn class(class: &Class) -> proto::Class {
    proto::Class { id: class.id.clone(), name: class.name.clone() }
}

/// The message of a store.
pub fn store(entry: &StoreEntry) -> proto::Store {
    let StoreEntry { split, image_size, store, .. } = entry;
    proto::Store {
        split: split.to_string(),
        height: image_size.height,
        width: image_size.width,
        samples: store.samples(),
        capacity: store.rows().len(),
        decoded: store.decoded(),
        bytes: store.bytes(),
        device_bytes: entry.device_bytes(),
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
    use crate::config::{Delivery, LambdaPer, Pairing};
    use crate::types::{Device, Dtype, Last, Layout, Split};

    #[test]
    fn specs_survive_a_round_trip() {
        let unusual = FeedSpec {
            split: Split::Val,
            batch_size: 7,
            image_size: ImageSize { height: 33, width: 65 },
            shuffle: true,
            seed: u64::MAX,
            last: Last::Drop,
            mix: Mix::Mixup(Mixup { alpha: 0.1, lambda: LambdaPer::Batch, fold: false, pairing: Pairing::SecondBatch }),
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
            flip: true,
            digest: true,
            share: Some(Share { delivery: Delivery::Latest, max_lag_s: 2.5, ..Share::new("a-1".parse().unwrap()) }),
        };
        let cut = Mix::CutMix(CutMix { alpha: 0.7, lambda: LambdaPer::Batch });
        let other = FeedSpec { mix: cut, start: Start::NextEpoch, ..unusual };
        for spec in [FeedSpec::train(), FeedSpec::val(), unusual, other] {
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

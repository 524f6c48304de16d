//! Between the messages of the control plane and the types of the domain; the only file that sees both.

use super::proto;
use crate::config::{FeedSpec, Mix, Mixup};
use crate::dataset::Class;
use crate::pipeline::{BadSample, StoreEntry};
use crate::stats::Stage;
use crate::types::{ImageSize, ParseError, Place};
use std::str::FromStr;

/// Version of `control.proto`.
pub const PROTOCOL_VERSION: u32 = 1;

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
    set(&mut spec.rank, m.rank);
    set(&mut spec.world_size, m.world_size);
    set(&mut spec.slots, m.slots);
    set(&mut spec.start, m.start.map(|proto::Place { epoch, index }| Place { epoch, index }));
    Ok(spec)
}

fn mix_from_proto(message: &proto::Mix) -> Result<Mix, ParseError> {
    let Some(proto::mix::Kind::Mixup(m)) = &message.kind else { return Ok(Mix::None) };
    let mut mixup = Mixup::default();
    set(&mut mixup.alpha, m.alpha);
    set(&mut mixup.lambda, parse(m.lambda.as_deref())?);
    set(&mut mixup.fold, m.fold);
    set(&mut mixup.pairing, parse(m.pairing.as_deref())?);
    Ok(Mix::Mixup(mixup))
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
        start: Some(proto::Place { epoch: spec.start.epoch, index: spec.start.index }),
    }
}

/// The message of a class.
pub fn class(class: &Class) -> proto::Class {
    proto::Class { id: class.id.clone(), name: class.name.clone() }
}

/// The message of a store.
pub fn store(entry: &StoreEntry) -> proto::Store {
    let StoreEntry { split, image_size, store } = entry;
    proto::Store {
        split: split.to_string(),
        height: image_size.height,
        width: image_size.width,
        samples: store.samples(),
        capacity: store.rows().len(),
        decoded: store.decoded(),
        bytes: store.bytes(),
    }
}

/// The message of a bad sample.
pub fn bad_sample(bad: &BadSample) -> proto::BadSample {
    proto::BadSample {
        split: bad.split.to_string(),
        sample_id: bad.sample_id,
        path: bad.path.display().to_string(),
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
    use crate::config::{LambdaPer, Pairing};
    use crate::types::{Dtype, Last, Layout, Split};

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
            rank: 3,
            world_size: 5,
            slots: 9,
            start: Place { epoch: 4, index: 2 },
        };
        for spec in [FeedSpec::train(), FeedSpec::val(), unusual] {
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

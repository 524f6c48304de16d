//! Between the messages of the control plane and the types of the domain; this module alone sees both. Feed specs are in `spec.rs`.

mod spec;

use super::{AttachRequest, Attached, Former, ListFeedsReply, Reason, Refusal, SeatToken, ShutdownReply, WatchRequest};
use crate::spec::{Consumed, LaterViews, Solarize};
use crate::status::{BadSample, Feed, Fetched, Mixed, Sources, Stage, Status, Store, Trainer, Verdict};
use crate::types::{Class, ImageSize, LabelSet, ParseError, Place, Split};
use prost::Message;
use std::marker::PhantomData;
use std::time::Duration;
use tonic::Code;
use tonic::codec::{DecodeBuf, Decoder, EncodeBuf, Encoder};

#[allow(missing_docs, clippy::all, reason = "generated; the documentation stands in the proto file")]
mod proto {
    tonic::include_proto!("mixd.v1");
}

/// Version of `control.proto`.
pub const PROTOCOL_VERSION: u32 = 7;

/// The versions of this build.
fn versions() -> proto::Versions {
    proto::Versions {
        protocol: PROTOCOL_VERSION,
        layout: crate::ring::LAYOUT_VERSION,
        plan: crate::batch::PLAN_VERSION,
    }
}

fn check_versions(theirs: Option<proto::Versions>) -> Result<(), Refusal> {
    let (ours, theirs) = (versions(), theirs.unwrap_or_default());
    if ours == theirs {
        return Ok(());
    }
    let text = |v: &proto::Versions| format!("protocol {}, layout {}, plan {}", v.protocol, v.layout, v.plan);
    Err(Reason::Version.because(format!(
        "versions differ: the daemon has {}, the trainer {} (use the same mixd on both sides)",
        text(&ours),
        text(&theirs)
    )))
}

/// A type that crosses the socket as a message.
pub trait Crosses: Sized + Send + 'static {
    /// As what.
    type Message: Message + Default;

    /// Whether a client sends it. What cannot be read in a request is the client's fault; an answer that cannot be read
    /// comes from a daemon of another version.
    const IS_REQUEST: bool = false;

    /// The message that says what this does.
    fn into_message(self) -> Self::Message;

    /// What a message says.
    ///
    /// # Errors
    /// When it names nothing that this version knows.
    fn from_message(message: Self::Message) -> Result<Self, Refusal>;
}

/// The codec of the generated service: sends `E`, receives `D`.
pub struct Codec<E, D>(PhantomData<(E, D)>);

impl<E, D> Default for Codec<E, D> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<E: Crosses, D: Crosses> tonic::codec::Codec for Codec<E, D> {
    type Encode = E;
    type Decode = D;
    type Encoder = Half<E>;
    type Decoder = Half<D>;

    fn encoder(&mut self) -> Half<E> {
        Half(PhantomData)
    }

    fn decoder(&mut self) -> Half<D> {
        Half(PhantomData)
    }
}

/// One direction of a [`Codec`].
pub struct Half<T>(PhantomData<T>);

impl<T: Crosses> Encoder for Half<T> {
    type Item = T;
    type Error = tonic::Status;

    fn encode(&mut self, item: T, to: &mut EncodeBuf<'_>) -> Result<(), tonic::Status> {
        item.into_message().encode(to).map_err(|error| tonic::Status::internal(error.to_string()))
    }
}

impl<T: Crosses> Decoder for Half<T> {
    type Item = T;
    type Error = tonic::Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<T>, tonic::Status> {
        let message = T::Message::decode(from).map_err(|error| Reason::Version.because(error))?;
        Ok(Some(received(message)?))
    }
}

/// What a message of the other side says.
fn received<T: Crosses>(message: T::Message) -> Result<T, Refusal> {
    T::from_message(message).map_err(|refusal| match T::IS_REQUEST {
        true => refusal,
        false => Reason::Version
            .because(format!("the daemon's answer cannot be read: {refusal} (use the same mixd on both sides)")),
    })
}

impl From<Refusal> for tonic::Status {
    fn from(refusal: Refusal) -> Self {
        use proto::refusal::Kind;
        let mut details = proto::Refusal::default();
        let (kind, code) = match refusal.reason {
            Reason::Spec => (Kind::Spec, Code::InvalidArgument),
            Reason::OtherSpec { keys } => {
                details.keys = keys;
                (Kind::OtherSpec, Code::FailedPrecondition)
            }
            Reason::Passed { next } => {
                details.next = next.into_field();
                (Kind::Passed, Code::OutOfRange)
            }
            Reason::Behind { next } => {
                details.next = next.into_field();
                (Kind::Behind, Code::FailedPrecondition)
            }
            Reason::NoRoom { need, free } => {
                (details.need_bytes, details.free_bytes) = (need, free);
                (Kind::NoRoom, Code::ResourceExhausted)
            }
            Reason::TooManyTrainers => (Kind::TooManyTrainers, Code::ResourceExhausted),
            Reason::Stopping => (Kind::Stopping, Code::Unavailable),
            Reason::Device => (Kind::Device, Code::FailedPrecondition),
            Reason::Version => (Kind::Version, Code::FailedPrecondition),
            Reason::OtherUser => (Kind::OtherUser, Code::PermissionDenied),
            Reason::System => (Kind::System, Code::ResourceExhausted),
            Reason::Other => (Kind::Unspecified, Code::Internal),
        };
        details.set_kind(kind);
        Self::with_details(code, refusal.message, details.encode_to_vec().into())
    }
}

impl Refusal {
    /// The refusal that a status carries, if it does.
    pub fn of(status: &tonic::Status) -> Option<Self> {
        use proto::refusal::Kind;
        let details = Some(status.details()).filter(|details| !details.is_empty())?;
        let details = proto::Refusal::decode(details).ok()?;
        let next = Place::from_field(details.next).ok()?;
        let reason = match details.kind() {
            Kind::Unspecified => Reason::Other,
            Kind::Spec => Reason::Spec,
            Kind::OtherSpec => Reason::OtherSpec { keys: details.keys },
            Kind::Passed => Reason::Passed { next },
            Kind::Behind => Reason::Behind { next },
            Kind::NoRoom => Reason::NoRoom { need: details.need_bytes, free: details.free_bytes },
            Kind::TooManyTrainers => Reason::TooManyTrainers,
            Kind::Stopping => Reason::Stopping,
            Kind::Device => Reason::Device,
            Kind::Version => Reason::Version,
            Kind::OtherUser => Reason::OtherUser,
            Kind::System => Reason::System,
        };
        Some(reason.because(status.message()))
    }
}

/// A field of a type, which its message has as an `M`.
trait Field<M>: Sized {
    fn into_field(self) -> M;

    fn from_field(field: M) -> Result<Self, Refusal>;
}

/// A message that is not set stands for what an empty one does.
impl<T: Crosses> Field<Option<T::Message>> for T {
    fn into_field(self) -> Option<T::Message> {
        Some(self.into_message())
    }

    fn from_field(field: Option<T::Message>) -> Result<Self, Refusal> {
        T::from_message(field.unwrap_or_default())
    }
}

impl<T: Crosses> Field<Option<T::Message>> for Option<T> {
    fn into_field(self) -> Option<T::Message> {
        self.map(T::into_message)
    }

    fn from_field(field: Option<T::Message>) -> Result<Self, Refusal> {
        field.map(T::from_message).transpose()
    }
}

impl<T: Crosses> Field<Vec<T::Message>> for Vec<T> {
    fn into_field(self) -> Vec<T::Message> {
        self.into_iter().map(T::into_message).collect()
    }

    fn from_field(field: Vec<T::Message>) -> Result<Self, Refusal> {
        field.into_iter().map(T::from_message).collect()
    }
}

impl Field<String> for Split {
    fn into_field(self) -> String {
        self.to_string()
    }

    fn from_field(field: String) -> Result<Self, Refusal> {
        Ok(field.parse()?)
    }
}

impl Field<Vec<u8>> for SeatToken {
    fn into_field(self) -> Vec<u8> {
        self.0.into()
    }

    fn from_field(field: Vec<u8>) -> Result<Self, Refusal> {
        let seat = field.try_into().map_err(|_| Reason::Version.because("a seat's token has 16 bytes"))?;
        Ok(Self(seat))
    }
}

macro_rules! as_they_are {
    ($($type:ty),+) => {
        $(impl Field<$type> for $type {
            fn into_field(self) -> $type {
                self
            }

            fn from_field(field: $type) -> Result<Self, Refusal> {
                Ok(field)
            }
        })+
    };
}

as_they_are!(bool, u32, u64, f64, Option<f64>, String, Option<String>, Vec<String>);

/// Types whose messages have the same fields, and the versions where it says so.
macro_rules! fields {
    ($($type:ident { $($field:ident),+ $(; $versions:ident)? })+) => {
        $(impl Crosses for $type {
            type Message = proto::$type;

            fn into_message(self) -> proto::$type {
                let Self { $($field),+ } = self;
                proto::$type { $($field: $field.into_field(),)+ $($versions: Some($versions()))? }
            }

            fn from_message(from: proto::$type) -> Result<Self, Refusal> {
                let proto::$type { $($field,)+ $($versions: _)? } = from;
                Ok(Self { $($field: Field::from_field($field)?),+ })
            }
        })+
    };
}

fields! {
    Attached {
        feed_id, seat, batches, samples, classes, label_sets, pid, origin, start, mixer, identity;
        versions
    }
    BadSample { split, sample_id, name, cause }
    Class { id, name }
    Consumed { epoch, samples }
    Fetched { bytes, requests, retries, evictions, cached_bytes, budget_bytes }
    Feed { feed_id, spec, published, next, batches, ring_bytes, trainers }
    Former { next, trainers }
    LaterViews { blur, solarize }
    ListFeedsReply { feeds }
    Mixed { images, to_device_bytes, from_device_bytes, on_device_bytes }
    Place { epoch, index }
    ShutdownReply { pid }
    Solarize { prob, threshold }
    Sources { split, samples, kept, decoded, bytes, size }
    Stage { name, items, busy_s, waiting_in_s, waiting_out_s, threads }
    Status {
        pid, version, data, uptime_s, cpu_s, peak_rss_bytes, decode_workers, jpeg_decoder, mixer, train_samples, val_samples,
        stores, sources, feeds, bad_samples, decode_warnings, last_decode_warning, stages, draining, mixed, recipe, classes,
        notes, fetched, read_bytes, idle_cpu_s, verdict, available_cpus
    }
    Trainer { pid, read, skipped, waited_s, lag, place, evicted, name, reader }
    Verdict { bound, text, seconds, images_per_s, headroom_images_per_s }
}

impl Crosses for LabelSet {
    type Message = proto::LabelSet;

    fn into_message(self) -> proto::LabelSet {
        proto::LabelSet { classes: self.into() }
    }

    fn from_message(from: proto::LabelSet) -> Result<Self, Refusal> {
        Ok(from.classes.into())
    }
}

impl Crosses for () {
    type Message = ();

    const IS_REQUEST: bool = true;

    fn into_message(self) {}

    fn from_message((): ()) -> Result<(), Refusal> {
        Ok(())
    }
}

impl Crosses for AttachRequest {
    type Message = proto::AttachRequest;

    const IS_REQUEST: bool = true;

    fn into_message(self) -> proto::AttachRequest {
        let Self { spec, pid, name, former, device_uuid } = self;
        let (spec, former) = (spec.into_field(), former.into_field());
        proto::AttachRequest { versions: Some(versions()), spec, pid, former, device_uuid, name }
    }

    /// Versions first: what another version asks for need not make sense here.
    fn from_message(from: proto::AttachRequest) -> Result<Self, Refusal> {
        let proto::AttachRequest { versions, spec, pid, former, device_uuid, name } = from;
        check_versions(versions)?;
        Ok(Self { spec: Field::from_field(spec)?, pid, name, former: Field::from_field(former)?, device_uuid })
    }
}

impl Crosses for WatchRequest {
    type Message = proto::WatchRequest;

    const IS_REQUEST: bool = true;

    fn into_message(self) -> proto::WatchRequest {
        proto::WatchRequest { interval_ms: Some(self.interval.as_millis() as u32) }
    }

    fn from_message(from: proto::WatchRequest) -> Result<Self, Refusal> {
        match from.interval_ms.unwrap_or(1_000) {
            ms @ 100..=60_000 => Ok(Self { interval: Duration::from_millis(ms.into()) }),
            ms => Err(Reason::Spec.because(format!("interval_ms is {ms}: it must be 100 to 60000"))),
        }
    }
}

impl Crosses for Store {
    type Message = proto::Store;

    fn into_message(self) -> proto::Store {
        let Self { split, size: ImageSize { height, width }, view, samples, capacity, decoded, bytes, device_bytes } =
            self;
        let split = split.to_string();
        proto::Store { split, height, width, samples, capacity, decoded, bytes, device_bytes, view }
    }

    fn from_message(from: proto::Store) -> Result<Self, Refusal> {
        let proto::Store { split, height, width, samples, capacity, decoded, bytes, device_bytes, view } = from;
        let (split, size) = (split.parse()?, ImageSize { height, width });
        Ok(Self { split, size, view, samples, capacity, decoded, bytes, device_bytes })
    }
}

impl From<ParseError> for Refusal {
    fn from(error: ParseError) -> Self {
        Reason::Spec.because(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_survive_a_round_trip_and_those_of_a_newer_daemon_keep_their_text() {
        let (next, need, free) = (Place { epoch: 2, index: 7 }, Some(9), Some(0));
        let reasons = [
            Reason::Spec,
            Reason::OtherSpec { keys: vec!["seed".to_owned()] },
            Reason::Passed { next },
            Reason::Behind { next },
            Reason::NoRoom { need, free },
            Reason::NoRoom { need: None, free: None },
            Reason::TooManyTrainers,
            Reason::Stopping,
            Reason::Device,
            Reason::Version,
            Reason::OtherUser,
            Reason::System,
        ];
        for refusal in reasons.map(|reason| reason.because("why")) {
            assert_eq!(Refusal::of(&refusal.clone().into()), Some(refusal));
        }
        let details = proto::Refusal { kind: 99, ..Default::default() }.encode_to_vec();
        let newer = tonic::Status::with_details(Code::Unknown, "why", details.into());
        assert_eq!(Refusal::of(&newer), Some(Reason::Other.because("why")));
        assert_eq!(Refusal::of(&tonic::Status::unknown("the transport's")), None);
    }

    #[test]
    fn answers_that_cannot_be_read_are_of_another_version_and_requests_are_the_client_s_fault() {
        let store = proto::Store { split: "fold_3".to_owned(), ..Default::default() };
        assert_eq!(received::<Store>(store).unwrap_err().reason, Reason::Version);
        let watch = proto::WatchRequest { interval_ms: Some(1) };
        assert_eq!(received::<WatchRequest>(watch).unwrap_err().reason, Reason::Spec);
    }
}

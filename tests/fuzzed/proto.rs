//! Messages of the control plane: what can be read says the same when it is written again.

use super::views;
use mixd::spec::FeedSpec;
use mixd::status::Status;
use mixd::wire::{AttachRequest, Attached, Crosses, ListFeedsReply, Reason, Refusal, ShutdownReply, WatchRequest};
use prost::Message;
use std::fmt::Debug;

/// Reads a message of the kind that the first byte names; a feed that is asked for, and that is valid, is planned.
pub fn proto(bytes: &[u8]) {
    let Some((&kind, message)) = bytes.split_first() else { return };
    match kind % 8 {
        0 => {
            if let Some(spec) = survives::<FeedSpec>(message) {
                views::planned_if_valid(spec);
            }
        }
        1 => {
            // Merged into a request of this version, since others are refused before they are read.
            let request = AttachRequest {
                spec: FeedSpec::train(),
                pid: 1,
                name: "train.py".to_owned(),
                former: None,
                device_uuid: Vec::new(),
            };
            drop(survives::<AttachRequest>(&[&request.into_message().encode_to_vec(), message].concat()));
        }
        2 => drop(survives::<Attached>(message)),
        3 => drop(survives::<ListFeedsReply>(message)),
        4 => drop(survives::<Status>(message)),
        5 => drop(survives::<WatchRequest>(message)),
        6 => drop(survives::<ShutdownReply>(message)),
        _ => {
            let status = tonic::Status::with_details(tonic::Code::Internal, "why", message.to_vec().into());
            // Of no reason that this version knows, a client is told the text alone.
            if let Some(refusal) = Refusal::of(&status).filter(|refusal| refusal.reason != Reason::Other) {
                assert_eq!(Refusal::of(&refusal.clone().into()), Some(refusal));
            }
        }
    }
}

/// What a message says, if it can be read; panics where it says something else once it is written again.
fn survives<T: Crosses + Clone + Debug>(message: &[u8]) -> Option<T> {
    let read = T::from_message(T::Message::decode(message).ok()?).ok()?;
    let again = T::from_message(read.clone().into_message()).expect("it was written by this version");
    // As text, in which NaN is equal to itself.
    assert_eq!(format!("{again:?}"), format!("{read:?}"));
    Some(read)
}

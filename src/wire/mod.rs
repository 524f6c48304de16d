//! The control plane as daemon and client share it: the gRPC service, and what crosses the socket, as types of the domain.
//!
//! The service is generated from `proto/mixd/v1/control.proto` over these types; its codec is in `convert`, which alone sees
//! the messages.

mod convert;
mod descriptors;
mod refusal;

pub use crate::status::Status;
pub(crate) use convert::Codec;
pub use convert::{Crosses, PROTOCOL_VERSION};
#[cfg(feature = "daemon")]
pub(crate) use descriptors::{OWN, SEAT, give_seat, receive};
pub use descriptors::{SeatMemory, take_seat};
pub use refusal::{Reason, Refusal};
pub(crate) use service::control_client;
#[cfg(feature = "daemon")]
pub(crate) use service::control_server;

use crate::spec::FeedSpec;
use crate::status::Feed;
use crate::types::{Class, LabelSet, Place};
use std::path::{Path, PathBuf};
use std::time::Duration;

#[allow(missing_docs, clippy::all, reason = "generated; the documentation stands in the proto file")]
mod service {
    include!(concat!(env!("OUT_DIR"), "/service/mixd.v1.rs"));
}

/// `$XDG_RUNTIME_DIR/mixd/mixd.sock`, else `mixd-<uid>/mixd.sock` in the temporary directory.
pub fn default_socket() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_dir()) {
        Some(dir) => Path::new(&dir).join("mixd/mixd.sock"),
        None => std::env::temp_dir().join(format!("mixd-{}/mixd.sock", rustix::process::getuid().as_raw())),
    }
}

/// Longest path of a socket, in bytes: `sun_path` has 108, with a zero at the end (unix(7)).
const SOCKET_PATH_MAX: usize = 107;

/// Why a path is too long for a socket, and the remedy; `None` where it is not.
pub fn too_long(socket: &Path) -> Option<String> {
    let bytes = socket.as_os_str().len();
    (bytes > SOCKET_PATH_MAX).then(|| {
        format!(
            "a socket's path has at most {SOCKET_PATH_MAX} bytes, and this one has {bytes} (name a shorter --socket, or set XDG_RUNTIME_DIR to a \
             shorter folder)"
        )
    })
}

/// A trainer asks for a feed.
#[derive(Debug, Clone, PartialEq)]
pub struct AttachRequest {
    /// What it delivers.
    pub spec: FeedSpec,
    /// The trainer's process id.
    pub pid: u32,
    /// Name of its script or program.
    pub name: String,
    /// Of a trainer that comes back to a shared feed whose daemon was gone.
    pub former: Option<Former>,
    /// UUID of the trainer's CUDA device, 16 bytes; empty without one.
    pub device_uuid: Vec<u8>,
}

/// A shared feed as it was at a daemon that is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Former {
    /// The first batch that no trainer of the feed has been able to read.
    pub next: Place,
    /// How many trainers it had.
    pub trainers: u32,
}

/// Stands for a trainer's place at a feed: 16 random bytes, so that a daemon which takes another's socket does not know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeatToken(pub [u8; 16]);

/// A trainer's place at a feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Unique in the daemon's life.
    pub feed_id: u64,
    /// For which the daemon hands out the seat's memory, once ([`take_seat`]).
    pub seat: SeatToken,
    /// Batches in each epoch.
    pub batches: u64,
    /// Samples of the split.
    pub samples: u32,
    /// In the order of their labels.
    pub classes: Vec<Class>,
    /// Where images have several labels: the sets of classes that labels number; else empty.
    pub label_sets: Vec<LabelSet>,
    /// The daemon's process id.
    pub pid: u32,
    /// The place of the ring's batch 0.
    pub origin: Place,
    /// The first batch that this trainer gets.
    pub start: Place,
    /// The mixer that digests name.
    pub mixer: String,
    /// Hash of everything beside the spec that the bytes of batches depend on.
    pub identity: u64,
}

/// The feeds that are open.
#[derive(Debug, Clone, PartialEq)]
pub struct ListFeedsReply {
    /// In the order of their ids.
    pub feeds: Vec<Feed>,
}

/// A request for a status again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchRequest {
    /// How often.
    pub interval: Duration,
}

/// The daemon is going to exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShutdownReply {
    /// Its process id.
    pub pid: u32,
}

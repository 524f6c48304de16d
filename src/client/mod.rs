//! The client: what a trainer uses to read feeds. Blocking, without a runtime of the trainer's own.
//!
//! ```no_run
//! use mixd::{client, spec::FeedSpec};
//!
//! let mut feed = client::attach(&client::default_socket(), &FeedSpec::train())?;
//! for batch in feed.epoch() {
//!     let batch = batch?; // leased until it is dropped
//!     println!("{}: {} images, λ = {:?}", batch.view().head.index, batch.view().len(), batch.view().lambda);
//! }
//! # Ok::<(), client::ClientError>(())
//! ```

mod attach;
mod call;
mod device;

pub use crate::ring::{ANY_STREAM, Lease as Batch, RingError};
pub use crate::status::Status;
pub use crate::wire::{Reason, Refusal, default_socket};
pub use attach::{Feed, RECONNECT, attach, attach_for, attach_unless};
pub use call::{Watch, peer_pid, recipe, shutdown, status, status_unless, watch};

use crate::escape::escaped;
use crate::spec::RecipeError;
use rustix::io::Errno;
use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong between a trainer and its daemon.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers on the socket.
    #[error(
        "no daemon answers on {}: {cause} (start one with `mixd serve --data …`, or name its --socket)",
        escaped(socket)
    )]
    NoDaemon {
        /// The socket.
        socket: PathBuf,
        /// The system's answer.
        cause: String,
    },
    /// The daemon will not serve this feed or this client.
    #[error("refused by the daemon: {0}")]
    Refused(Refusal),
    /// The daemon's recipe is none of this version.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The daemon went away without ending the feed.
    #[error("the daemon on {} is gone (see its log; start it again)", escaped(.0))]
    DaemonGone(PathBuf),
    /// A daemon has taken the place of one that was gone, but cannot go on where that one was.
    #[error(
        "the daemon that answers on {} now does not make the same batches: its data set, decoder, resize, mixer or version is another (start it as before)",
        escaped(.0)
    )]
    OtherDaemon(PathBuf),
    /// The daemon has evicted this trainer from a shared feed, because it kept others waiting for too long.
    #[error(
        "evicted from the shared feed: it kept others waiting for more than {max_lag_s} s (read faster, allow a longer max_lag, or use \
         delivery latest or a private feed)"
    )]
    Evicted {
        /// For how long it may.
        max_lag_s: f64,
    },
    /// The daemon has evicted this trainer because its cursor, which lies in shared memory, held impossible values.
    #[error("evicted: the trainer's cursor in shared memory failed validation (something wrote into it: attach again)")]
    CorruptCursor,
    /// The feed ended.
    #[error("the feed ended: {reason}")]
    Ended {
        /// Why.
        reason: String,
        /// Whether it could not go on, rather than being stopped in order.
        failed: bool,
    },
    /// The CUDA device that batches were to lie on is not there.
    #[error("{0}")]
    Device(String),
    /// The shared memory is not what was agreed.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// This process, or the machine, has no file descriptor left.
    #[error(
        "too many files are open in this process or on this machine (raise `ulimit -n`, or the kernel's fs.file-max)"
    )]
    NoDescriptors,
    /// The client's own thread or runtime could not be made.
    #[error("cannot start the client: {0}")]
    Start(io::Error),
}

impl ClientError {
    fn from_status(socket: &Path, status: &tonic::Status) -> Self {
        if let Some(refusal) = Refusal::of(status) {
            return Self::Refused(refusal);
        }
        match status.code() {
            // The transport broke: what stands in the status is hyper's view of a closed socket.
            tonic::Code::Unknown | tonic::Code::Cancelled => Self::DaemonGone(socket.to_owned()),
            // What has a source was not said by the daemon.
            _ if status.source().is_some() => Self::DaemonGone(socket.to_owned()),
            _ => Self::Refused(Reason::Other.because(status.message())),
        }
    }
}

/// Whether a lack of file descriptors is among the causes of an error.
fn lacks_descriptors(error: &(dyn Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    let codes = causes.filter_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error());
    codes.map(Errno::from_raw_os_error).any(|code| matches!(code, Errno::MFILE | Errno::NFILE))
}

//! What can go wrong with a ring, at either end.

use crate::memory::Lack;
use std::io;

/// Why a ring could not be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// There is no memory for it.
    #[error(
        "no memory for a ring: it needs {need} bytes and {free} are available (use a smaller batch, fewer slots, a smaller dtype or a smaller --cache; in a \
         container, raise its memory limit: `docker run --memory`, or resources.limits.memory in Kubernetes)"
    )]
    NoMemory {
        /// Bytes needed.
        need: u64,
        /// Bytes available to this process: the machine's, or less where a cgroup limits it.
        free: u64,
    },
    /// A system call failed.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The memory is not a ring of this version.
    #[error(
        "what the daemon has handed out is not a ring that this mixd can read: {0} (run the same mixd version on both sides)"
    )]
    Foreign(String),
    /// This process is a child of the one that opened the feed.
    #[error(
        "process {0} opened this feed, and a child that was forked from it cannot read it (open a feed in the child)"
    )]
    Forked(u32),
    /// The system has no memory for a view of a slot, or for a copy of one that is kept.
    #[error("cannot map or keep {bytes} bytes of a batch: {source} (drop batches, and what refers to them)")]
    NoView {
        /// How many.
        bytes: usize,
        /// The system's answer.
        source: io::Error,
    },
    /// The images lie on a device, and this trainer has none.
    #[error("the batches of this feed lie on a CUDA device, which this trainer has not opened")]
    NoDevice,
    /// The slots' images could not be had on the device, for this reason.
    #[error("cannot open the feed's slots on the device: {0}")]
    NoDeviceSlots(String),
    /// A batch on a device cannot be kept.
    #[error("a batch on a CUDA device cannot be kept: clone what is to outlive it, and drop the batch")]
    OnDevice,
    /// All slots are leased by the reader itself, so no batch can ever come.
    #[error(
        "this trainer holds a batch that keeps all {0} slots of the feed, since they are given back in order: drop or keep it before asking for the next (or open the feed with more slots)"
    )]
    AllLeased(u32),
    /// A slot does not hold what its number says.
    #[error("no slot holds batch {seq}: the ring is damaged")]
    Torn {
        /// The batch that was asked for.
        seq: u64,
    },
    /// The ring has as many readers as it can have.
    #[error("the feed has {0} trainers, the most that a ring can have")]
    TooManyReaders(usize),
    /// A feed that waits for nobody needs a slot for each trainer and one to write.
    #[error(
        "the feed has {slots} slots and {readers} trainers: with delivery latest it needs a slot for each and one more (open it with more slots)"
    )]
    TooFewSlots {
        /// Slots of the ring.
        slots: u32,
        /// Its readers.
        readers: usize,
    },
    /// This reader holds a batch of a feed that lends one at a time.
    #[error("a feed with delivery latest lends one batch at a time: drop or keep it before asking for the next")]
    OneAtATime,
    /// The batch to begin at was overwritten.
    #[error("the batch to begin with is gone: the next to come is {published}")]
    Gone {
        /// The next to be published.
        published: u64,
    },
    /// The feed is over; another can be opened.
    #[error("the feed is over")]
    Closed,
    /// The kernel is too old.
    #[error("delivery latest needs the system call futex_waitv: Linux 5.16 or newer (use delivery lossless)")]
    OldKernel,
}

impl From<Lack> for RingError {
    fn from(Lack { need, free }: Lack) -> Self {
        Self::NoMemory { need, free }
    }
}

impl RingError {
    pub(super) fn io(action: &'static str, source: impl Into<io::Error>) -> Self {
        Self::Io { action, source: source.into() }
    }
}

//! Why a daemon refuses a request.

use crate::types::Place;

/// A daemon's refusal: a reason that programs can act on, and a text for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// What, why and the remedy.
    pub message: String,
}

/// Why a daemon refuses a request.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// A value is out of range or contradicts another, or the data set has no batch for it.
    Spec,
    /// The shared feed of that name has another spec.
    OtherSpec {
        /// The keys that differ.
        keys: Vec<String>,
    },
    /// The shared feed has passed the batch to start with.
    Passed {
        /// Its next batch.
        next: Place,
    },
    /// A trainer comes back to a shared feed that a newcomer has opened at an earlier batch.
    Behind {
        /// That feed's next batch.
        next: Place,
    },
    /// Shared memory, main memory or a device's memory does not suffice.
    NoRoom {
        /// Bytes needed, where known.
        need: Option<u64>,
        /// Bytes free, where known.
        free: Option<u64>,
    },
    /// The shared feed has as many trainers as it can have.
    TooManyTrainers,
    /// The daemon opens no more feeds.
    Stopping,
    /// The daemon cannot mix on the device, or for it.
    Device,
    /// Daemon and client are of versions that do not work together.
    Version,
    /// The daemon serves another user.
    OtherUser,
    /// The system failed the daemon: a file, a limit, the kernel's version.
    System,
    /// None that this version knows.
    Other,
}

impl Reason {
    /// With its text.
    pub fn because(self, message: impl ToString) -> Refusal {
        Refusal { reason: self, message: message.to_string() }
    }
}

//! An object as readers and fetchers share it: which of its blocks are on their way, or will not come.

use super::disk::{BLOCK_BYTES, Verified};
use super::store::Found;
use super::trouble::StoreError;
use std::collections::HashMap;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Why a block is not there.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// The store's answer.
    #[error("{0}")]
    Store(StoreError),
    /// The store was away for the timeout.
    #[error("{error} (for {} s, --store-timeout)", timeout.as_secs())]
    Timeout {
        /// The last failure.
        error: StoreError,
        /// How long it was waited.
        timeout: Duration,
    },
    /// An index names bytes that the object does not have.
    #[error("{end} bytes are needed of an object of {bytes}: its index is damaged (make it anew with `mixd index`)")]
    Beyond {
        /// The end of the bytes.
        end: u64,
        /// The object's bytes.
        bytes: u64,
    },
    /// The disk cache fails.
    #[error("the disk cache fails: {0}")]
    Disk(Arc<io::Error>),
}

/// An object that is read.
#[derive(Debug)]
pub struct Object {
    /// As it was found.
    pub found: Found,
    /// Of its entry in the disk cache.
    pub key: u128,
    /// Its blocks that were compared with their checksums.
    pub verified: Verified,
    /// Its blocks that are not there.
    blocks: Mutex<HashMap<u32, Block>>,
    /// Notified whenever one of these is settled.
    pub arrived: Condvar,
    /// Whether the rest of it has been asked for.
    pub is_filling: AtomicBool,
}

/// A block that is not there.
#[derive(Debug)]
pub enum Block {
    /// It is queued or requested.
    OnItsWay,
    /// It will not come; known since then.
    Failed(FetchError, Instant),
}

impl Object {
    /// An object of which nothing is on its way.
    pub fn new(found: Found, key: u128) -> Self {
        Self {
            found,
            key,
            verified: Verified::default(),
            blocks: Mutex::default(),
            arrived: Condvar::new(),
            is_filling: AtomicBool::new(false),
        }
    }

    /// Its blocks that are not there.
    pub fn blocks(&self) -> MutexGuard<'_, HashMap<u32, Block>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what became of a block, and wakes those who wait for it.
    pub fn settle(&self, block: u32, result: Result<(), FetchError>) {
        let mut blocks = self.blocks();
        match result {
            Ok(()) => drop(blocks.remove(&block)),
            Err(error) => drop(blocks.insert(block, Block::Failed(error, Instant::now()))),
        }
        self.arrived.notify_all();
    }

    /// Number of its blocks.
    pub fn count(&self) -> u32 {
        self.found.bytes.div_ceil(BLOCK_BYTES) as u32
    }
}

//! Memory that is promised before it is taken: the kernel kills a process sooner than it refuses it memory.

use crate::usage::available_memory;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes that this process is still going to take.
static PROMISED: Mutex<u64> = Mutex::new(0);

fn promised() -> MutexGuard<'static, u64> {
    PROMISED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes available to this process, promised ones included; `u64::MAX` where the system does not say.
pub fn available() -> u64 {
    available_memory(Path::new("/")).unwrap_or(u64::MAX)
}

/// Bytes that nothing has been promised yet; `None` where the system does not say.
pub fn free() -> Option<u64> {
    let promised = promised();
    Some(available_memory(Path::new("/"))?.saturating_sub(*promised))
}

/// More bytes are needed than are free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lack {
    /// Bytes needed.
    pub need: u64,
    /// Bytes that are free.
    pub free: u64,
}

/// A reservation of bytes that its owner will allocate. Dropping it releases what was not allocated.
#[derive(Debug, Default)]
pub struct Promise(AtomicU64);

impl Promise {
    /// Promises bytes, beside `spare` bytes that stay free.
    ///
    /// # Errors
    /// When fewer are free.
    pub fn new(need: u64, spare: u64) -> Result<Self, Lack> {
        let mut promised = promised();
        let free = available().saturating_sub(*promised).saturating_sub(spare);
        if need > free {
            return Err(Lack { need, free });
        }
        *promised += need;
        Ok(Self(need.into()))
    }

    /// Bytes that are still promised.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Ends the promise of bytes that are taken now. Returns whether it covered them all.
    pub fn take(&self, bytes: u64) -> bool {
        // Most have no bytes: no lock for them. A forked child of a trainer may have a copy of the lock that is held for good.
        if self.bytes() == 0 {
            return bytes == 0;
        }
        let mut promised = promised();
        let taken = bytes.min(self.bytes());
        self.0.fetch_sub(taken, Ordering::Relaxed);
        *promised -= taken;
        taken == bytes
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.take(self.bytes());
    }
}

//! Decoded pages that are kept for the samples that are read next.

use super::parquet::Decoded;
use crate::memory::{Promise, free};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A page, by its file's number and its offset there.
pub type Key = (u32, u64);
/// A page, once it is decoded. Whoever decodes it holds the lock, so that others wait instead of decoding it, too.
type Slot = Arc<Mutex<Option<Arc<Decoded>>>>;

/// What decoded pages may take. A page of the usual writers has 1 MiB, or a row group of 100 images.
const BUDGET_BYTES_MAX: u64 = 256 << 20;
/// The part of the free memory that they take at most.
const SHARE: u64 = 8;

/// The pages that were used last, up to a budget of bytes.
pub struct Pages {
    kept: Mutex<Kept>,
    budget_bytes: usize,
    /// Of the budget what was never taken yet: images and rings leave it alone.
    promise: Promise,
}

#[derive(Default)]
struct Kept {
    pages: HashMap<Key, Entry>,
    bytes: usize,
    /// The most that they were.
    most_bytes: usize,
    /// Counts uses.
    clock: u64,
}

struct Entry {
    slot: Slot,
    bytes: usize,
    used: u64,
}

impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pages").field("bytes", &self.kept().bytes).finish()
    }
}

impl Pages {
    /// Room for pages as memory has it: 256 MiB, or an eighth of what is free. Nothing where none is ever decoded.
    pub fn new(are_any: bool) -> Self {
        let budget = BUDGET_BYTES_MAX.min(free().unwrap_or(u64::MAX) / SHARE) * u64::from(are_any);
        let promise = Promise::new(budget, 0).unwrap_or_default();
        Self { kept: Mutex::default(), budget_bytes: budget as usize, promise }
    }

    /// The most bytes that pages take between reads.
    pub fn budget_bytes(&self) -> usize {
        self.budget_bytes
    }

    /// What is promised to pages, and was never taken.
    #[cfg(test)]
    pub fn promised_bytes(&self) -> u64 {
        self.promise.bytes()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The page `key`, decoded by `decode` unless it is kept.
    ///
    /// # Errors
    /// Those of `decode`; nothing is kept then.
    pub fn get<E>(&self, key: Key, decode: impl FnOnce() -> Result<Decoded, E>) -> Result<Arc<Decoded>, E> {
        let slot = {
            let mut kept = self.kept();
            kept.clock += 1;
            let used = kept.clock;
            let entry = kept.pages.entry(key).or_insert_with(|| Entry { slot: Slot::default(), bytes: 0, used });
            entry.used = used;
            Arc::clone(&entry.slot)
        };
        let mut page = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(page) = &*page {
            return Ok(Arc::clone(page));
        }
        let decoded = match decode() {
            Ok(decoded) => Arc::new(decoded),
            Err(error) => {
                let mut kept = self.kept();
                // Another thread may have made a new one meanwhile.
                if kept.pages.get(&key).is_some_and(|entry| Arc::ptr_eq(&entry.slot, &slot))
                    && let Some(entry) = kept.pages.remove(&key)
                {
                    kept.bytes -= entry.bytes;
                }
                return Err(error);
            }
        };
        *page = Some(Arc::clone(&decoded));
        drop(page);
        self.keep(key, decoded.bytes());
        Ok(decoded)
    }

    /// Counts a page that was decoded, and drops those that were used least lately.
    fn keep(&self, key: Key, bytes: usize) {
        let mut kept = self.kept();
        let Some(entry) = kept.pages.get_mut(&key) else {
            return;
        };
        let before = std::mem::replace(&mut entry.bytes, bytes);
        kept.bytes = kept.bytes - before + bytes;
        while kept.bytes > self.budget_bytes {
            let others = kept.pages.iter().filter(|(other, entry)| **other != key && entry.bytes > 0);
            let Some(oldest) = others.min_by_key(|(_, entry)| entry.used).map(|(&oldest, _)| oldest) else {
                break;
            };
            kept.bytes -= kept.pages.remove(&oldest).map_or(0, |entry| entry.bytes);
        }
        let grown = kept.bytes.saturating_sub(kept.most_bytes);
        kept.most_bytes += grown;
        self.promise.take(grown as u64);
    }
}

//! The sample store: every decoded sample that fits a budget, decoded once, whoever asks.
//!
//! A store serves one split's views of one kind: one size, one crop that does not depend on chance, one filter. Samples get a row of its memory on first request, while there are rows; they
//! are never evicted: an epoch reads each sample once, so whatever stays is as good as anything else, and what is in it
//! never changes. Samples without a row are decoded anew each time, into rows that the caller brings.

mod budget;
mod file;
mod guard;
#[cfg(feature = "cuda")]
mod resident;
mod rows;
mod sources;
mod watch;

pub use budget::Budget;
pub use file::{FileError, Key, MappedFile, RowsFile};
#[cfg(feature = "cuda")]
pub use resident::{PinnedRows, Residency, Resident, sample_stride};
pub use rows::{Claim, Rows, Settled, State};
pub use sources::{Found, SourceClaim, Sources};

use crate::types::SampleId;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Value of [`SampleStore::row_of`]: no row was given yet.
const UNASSIGNED: u32 = u32::MAX;

/// Where a sample is to be had.
pub enum Lookup {
    /// In this row of [`SampleStore::rows`], now or when its decoding settles.
    Row(u32),
    /// In the claimed row, once the caller has it decoded.
    Claimed(Claim),
    /// Nowhere: the store is full; decode it into a row of your own.
    Full,
}

/// The finished views of one split: one size, crop and filter.
pub struct SampleStore {
    rows: Arc<Rows>,
    /// For each sample its row, or [`UNASSIGNED`].
    row_of: Box<[AtomicU32]>,
    /// Rows that no sample has, the next one last; locked once in a sample's life.
    free: Mutex<Vec<u32>>,
    /// Decodes that landed in the store.
    decoded: AtomicU64,
}

impl SampleStore {
    /// A store for `samples` samples of `sample_bytes` bytes, of which it keeps as many as fit `budget_bytes`.
    ///
    /// # Errors
    /// When the memory cannot be mapped.
    pub fn new(samples: u32, sample_bytes: usize, budget_bytes: u64, settled: Arc<Settled>) -> std::io::Result<Self> {
        let capacity = capacity(samples, sample_bytes, budget_bytes);
        Ok(Self::over(Rows::new(capacity, sample_bytes, settled)?, samples))
    }

    /// A store in a file, whose rows are decoded anew unless they still hold what they held.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn in_file(path: &Path, key: Key, budget_bytes: u64, settled: Arc<Settled>) -> Result<Self, FileError> {
        let capacity = capacity(key.samples, key.row_bytes, budget_bytes);
        let file = RowsFile::open(path, key, capacity)?;
        let known: Vec<(u32, SampleId)> = (0..capacity).filter_map(|row| Some((row, file.sample_of(row)?))).collect();
        let store = Self::over(Rows::in_file(file, settled), key.samples);
        let mut taken = vec![false; capacity as usize];
        for (row, sample) in known {
            let row_of = &store.row_of[sample as usize];
            // Of two rows for one sample, which no lawful file has, the first counts.
            taken[row as usize] =
                row_of.compare_exchange(UNASSIGNED, row, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        }
        store.free.lock().unwrap_or_else(PoisonError::into_inner).retain(|&row| !taken[row as usize]);
        Ok(store)
    }

    fn over(rows: Arc<Rows>, samples: u32) -> Self {
        Self {
            row_of: (0..samples).map(|_| AtomicU32::new(UNASSIGNED)).collect(),
            free: Mutex::new((0..rows.len()).rev().collect()),
            decoded: AtomicU64::new(0),
            rows,
        }
    }

    /// Looks a sample up, giving it a row if it has none yet, there is one, and `may_grow` of a row's bytes allows that (not asked of a file,
    /// whose pages the kernel can take back).
    pub fn request(&self, sample: SampleId, may_grow: impl FnOnce(u64) -> bool) -> Lookup {
        let row_of = &self.row_of[sample as usize];
        match row_of.load(Ordering::Acquire) {
            UNASSIGNED => {}
            row => return self.rows.claim(row).map_or(Lookup::Row(row), Lookup::Claimed),
        }
        // Rows are given out in the order of the first requests, not of the samples: what is decoded first lies together, and a
        // huge page that the kernel has to clear is filled at once.
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let row = match row_of.load(Ordering::Acquire) {
            UNASSIGNED => {
                if free.is_empty() || (self.rows.file().is_none() && !may_grow(self.rows.row_bytes() as u64)) {
                    return Lookup::Full;
                }
                let row = free.pop().expect("there is one");
                row_of.store(row, Ordering::Release);
                row
            }
            theirs => theirs,
        };
        drop(free);
        self.rows.claim(row).map_or(Lookup::Row(row), Lookup::Claimed)
    }

    /// Counts a decode that landed in a claimed row.
    pub fn count_decoded(&self) {
        self.decoded.fetch_add(1, Ordering::Relaxed);
    }

    /// The memory.
    pub fn rows(&self) -> &Arc<Rows> {
        &self.rows
    }

    /// Whether every sample is certain to have a row. In memory it is not, since the store stops growing where memory becomes short.
    pub fn holds_all(&self) -> bool {
        self.rows.len() as usize == self.row_of.len() && self.rows.file().is_some()
    }

    /// Bytes that the rows take when all are filled.
    pub fn bytes(&self) -> u64 {
        u64::from(self.rows.len()) * self.rows.row_bytes() as u64
    }

    /// Samples of the split.
    pub fn samples(&self) -> u32 {
        self.row_of.len() as u32
    }

    /// Samples decoded into the store so far.
    pub fn decoded(&self) -> u64 {
        self.decoded.load(Ordering::Relaxed)
    }
}

/// Samples that fit a budget.
fn capacity(samples: u32, sample_bytes: usize, budget_bytes: u64) -> u32 {
    (budget_bytes / sample_bytes as u64).min(u64::from(samples)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(samples: u32, budget: u64) -> SampleStore {
        SampleStore::new(samples, 12, budget, Arc::default()).unwrap()
    }

    fn claim(store: &SampleStore, sample: u32) -> Claim {
        match store.request(sample, |_| true) {
            Lookup::Claimed(claim) => claim,
            _ => panic!("not claimed"),
        }
    }

    #[test]
    fn a_sample_is_claimed_once_and_then_found() {
        let store = store(3, 1000);
        let mut first = claim(&store, 1);
        assert!(matches!(store.request(1, |_| true), Lookup::Row(_)), "claimed twice");
        first.bytes().fill(7);
        first.ready();
        let Lookup::Row(row) = store.request(1, |_| true) else { panic!("not stored") };
        assert_eq!(store.rows().get(row), Some(&[7; 12][..]));
    }

    #[test]
    fn an_abandoned_claim_can_be_claimed_again() {
        let store = store(3, 1000);
        drop(claim(&store, 2));
        claim(&store, 2).ready();
        assert!(matches!(store.request(2, |_| true), Lookup::Row(_)));
    }

    #[test]
    fn the_budget_is_kept() {
        let store = store(5, 12 * 2 + 11);
        claim(&store, 4).ready();
        claim(&store, 0).ready();
        for sample in 1..4 {
            assert!(matches!(store.request(sample, |_| true), Lookup::Full));
        }
        assert!(matches!(store.request(4, |_| true), Lookup::Row(_)));
    }

    #[test]
    fn nothing_more_is_kept_where_memory_is_short() {
        let store = store(3, 1000);
        claim(&store, 0).ready();
        let short = |bytes| {
            assert_eq!(bytes, 12);
            false
        };
        assert!(matches!(store.request(1, short), Lookup::Full));
        assert!(matches!(store.request(0, |_| panic!("it has a row")), Lookup::Row(_)));
        claim(&store, 1).ready();
    }

    #[test]
    fn a_bad_sample_is_tried_again_in_its_row() {
        let store = store(2, 12);
        let first = claim(&store, 1);
        let row = first.row();
        first.bad();
        assert_eq!(store.rows().state(row), State::Bad);
        assert!(matches!(store.request(0, |_| true), Lookup::Full), "its row was given away");
        let again = claim(&store, 1);
        assert_eq!(again.row(), row);
        again.ready();
        assert!(matches!(store.request(1, |_| true), Lookup::Row(found) if found == row));
    }
}

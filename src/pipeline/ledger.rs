//! The ledger of images that are bad now: each with its name and cause, until it reads and decodes again.

use crate::escape::printable;
use crate::source::{ReadError, Source};
pub use crate::status::BadSample;
use crate::types::{ParseError, SampleId, Split, named};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use xxhash_rust::xxh3::xxh3_64;

/// What happens to an image that cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnBadImage {
    /// The next readable image of its class, in the order of the index, takes its row.
    #[default]
    Substitute,
    /// The feed ends.
    Fail,
}
named!(OnBadImage, "policy for bad images", "substitute or fail", Substitute = "substitute", Fail = "fail");

/// Entries that are kept with their causes; more are only counted.
const ENTRIES_MAX: usize = 1_000;

/// Why an image is bad.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What the reader or the decoder reported.
    pub cause: String,
    /// What has to change for it to be good again.
    pub kind: FaultKind,
}

/// What has to change for a bad image to be good again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FaultKind {
    /// Its bytes could not be read, or what was to be made of them panicked.
    Unread,
    /// XXH3 of its encoded bytes, which do not decode: the same ones need not be decoded again.
    Undecodable(u64),
    /// There was no memory for it.
    NoMemory,
}

impl Fault {
    /// Whether these encoded bytes are known to fail.
    pub fn is_of(&self, bytes: &[u8]) -> bool {
        matches!(self.kind, FaultKind::Undecodable(hash) if hash == xxh3_64(bytes))
    }
}

/// The bad images of one split.
type Entries = BTreeMap<SampleId, Fault>;

/// All bad images of a daemon.
#[derive(Debug, Default)]
pub struct Ledger {
    splits: Mutex<[Entries; Split::ALL.len()]>,
    /// Entries of both splits: readers of good images take no lock.
    len: AtomicUsize,
    warnings: Mutex<Warnings>,
}

/// Images that were decoded with a warning.
#[derive(Debug, Default)]
struct Warnings {
    samples: [BTreeSet<SampleId>; Split::ALL.len()],
    last: Option<BadSample>,
}

impl Ledger {
    /// Enters an image that could not be read or decoded, and logs it unless it was entered for the same cause.
    pub fn enter(&self, source: &dyn Source, split: Split, sample: SampleId, mut fault: Fault) {
        // A decoder may quote the file.
        fault.cause = printable(&fault.cause).to_string();
        let mut splits = self.splits();
        let others: usize = splits.iter().map(Entries::len).sum();
        let known = splits[split as usize].get(&sample);
        let is_news = known.is_none_or(|known| known.cause != fault.cause && !known.cause.is_empty());
        let cause = if is_news { fault.cause.clone() } else { String::new() };
        if others >= ENTRIES_MAX && known.is_none_or(|known| known.cause.is_empty()) {
            fault.cause = String::new();
        }
        splits[split as usize].insert(sample, fault);
        self.len.store(splits.iter().map(Entries::len).sum(), Ordering::Relaxed);
        // A log that is slow to be read must not hold up the decoders.
        drop(splits);
        if is_news {
            tracing::warn!(%split, sample_id = sample, "bad image: {}: {cause}", source.name(split, sample));
        }
    }

    /// Counts an image that was decoded with a warning, unless it was counted before.
    pub fn warn(&self, source: &dyn Source, split: Split, sample_id: SampleId, warning: &str) {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        if !warnings.samples[split as usize].insert(sample_id) {
            return;
        }
        let name = source.name(split, sample_id);
        warnings.last = Some(BadSample { split, sample_id, name: name.clone(), cause: warning.to_owned() });
        drop(warnings);
        tracing::debug!(%split, sample_id, "decoded with a warning: {name}: {warning}");
    }

    /// How many images were decoded with a warning, and the last of them.
    pub fn warnings(&self) -> (u64, Option<BadSample>) {
        let warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        (warnings.samples.iter().map(|samples| samples.len() as u64).sum(), warnings.last.clone())
    }

    /// Removes an image that was read and decoded.
    pub fn clear(&self, source: &dyn Source, split: Split, sample: SampleId) {
        if self.len.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut splits = self.splits();
        let was_bad = splits[split as usize].remove(&sample).is_some();
        self.len.store(splits.iter().map(Entries::len).sum(), Ordering::Relaxed);
        drop(splits);
        if was_bad {
            tracing::info!(%split, sample_id = sample, "image is good again: {}", source.name(split, sample));
        }
    }

    /// Why an image was bad when it was last tried; `None` of a good one.
    pub fn fault(&self, split: Split, sample: SampleId) -> Option<Fault> {
        if self.len.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.splits()[split as usize].get(&sample).cloned()
    }

    /// How many images of a split were bad when they were last tried.
    pub fn count(&self, split: Split) -> usize {
        self.splits()[split as usize].len()
    }

    /// Reads the bad images of a split once more and removes those that can be read and hold other bytes now: they are tried again when
    /// they are next asked for. Returns how many are bad still, and stops reading once these are more than `enough`.
    pub fn recheck(&self, source: &dyn Source, split: Split, enough: usize) -> usize {
        let entries = self.splits()[split as usize].clone();
        let (mut bad, mut bytes) = (0, Vec::new());
        for (sample, fault) in entries {
            if fault.kind == FaultKind::NoMemory {
                bad += 1;
                continue;
            }
            match source.read(split, sample, &mut bytes) {
                Ok(_) if !fault.is_of(&bytes) => self.clear(source, split, sample),
                Err(ReadError::DescriptorShortage(_)) => {}
                _ => bad += 1,
            }
            if bad > enough {
                break;
            }
        }
        bad
    }

    /// The entry of one image.
    pub fn find(&self, source: &dyn Source, split: Split, sample_id: SampleId) -> BadSample {
        let cause = self.fault(split, sample_id).map(|fault| fault.cause).filter(|cause| !cause.is_empty());
        let cause = cause.unwrap_or_else(|| "cannot be decoded".to_owned());
        BadSample { split, sample_id, name: source.name(split, sample_id), cause }
    }

    /// Every entry that was kept with its cause, in the order of splits and samples.
    pub fn list(&self, source: &dyn Source) -> Vec<BadSample> {
        let splits = self.splits();
        let entries =
            Split::ALL.iter().flat_map(|&split| splits[split as usize].iter().map(move |entry| (split, entry)));
        let entry = |(split, (&sample_id, fault)): (Split, (&SampleId, &Fault))| {
            let (name, cause) = (source.name(split, sample_id), fault.cause.clone());
            (!fault.cause.is_empty()).then_some(BadSample { split, sample_id, name, cause })
        };
        entries.filter_map(entry).collect()
    }

    fn splits(&self) -> MutexGuard<'_, [Entries; Split::ALL.len()]> {
        self.splits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

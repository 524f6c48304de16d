//! The ledger of images that could not be decoded: each once, with its name and cause.

pub use crate::status::BadSample;
use crate::types::{ParseError, SampleId, Split, named};
use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

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

/// Entries that are kept with their causes; later ones are only counted.
const ENTRIES_MAX: usize = 1_000;

#[derive(Debug, Default)]
struct Entries {
    seen: HashSet<(Split, SampleId)>,
    list: Vec<BadSample>,
}

/// All bad images of a daemon.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<Entries>);

impl Ledger {
    /// Enters an image, and logs it the first time.
    pub fn enter(&self, bad: BadSample) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.seen.insert((bad.split, bad.sample_id)) {
            tracing::warn!(split = %bad.split, sample_id = bad.sample_id, "bad image: {bad}");
            if entries.list.len() < ENTRIES_MAX {
                entries.list.push(bad);
            }
        }
    }

    /// How many images of a split are bad.
    pub fn count(&self, split: Split) -> usize {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.seen.iter().filter(|(of, _)| *of == split).count()
    }

    /// The entry of one image.
    pub fn find(&self, split: Split, sample_id: SampleId) -> Option<BadSample> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.list.iter().find(|bad| (bad.split, bad.sample_id) == (split, sample_id)).cloned()
    }

    /// Every entry that was kept.
    pub fn list(&self) -> Vec<BadSample> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).list.clone()
    }
}

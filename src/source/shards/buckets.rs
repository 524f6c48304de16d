//! Which objects of a store are the shards of a data set: by patterns, or all in a folder, told apart by the words in their names.

use super::super::bucket::Bucket;
use super::super::pattern;
use super::super::remote::Url;
use super::super::{DataSet, DatasetError};
use super::names::{self, Beside};
use super::places::{Places, is_word};
use crate::types::Split;
use std::path::PathBuf;

/// Endings of the names of shards.
const SHARDS: &[&str] = &[".tar"];

/// The shards of `set`, which are objects of a store; `None` when it has none.
///
/// # Errors
/// When the store cannot be read, or the names stand for objects that are not there.
pub fn find(set: &DataSet, bucket: &mut Bucket) -> Result<Option<Places>, DatasetError> {
    let data = set.data.to_str().unwrap_or_default();
    let names = Split::ALL.iter().filter_map(|&split| set.splits.of(split)).chain([data]);
    let are_named = names.clone().any(|name| name.contains(".tar"));
    let is_table = |name: &str| [".parquet", ".arrow"].iter().any(|ending| name.contains(ending));
    if !are_named && names.clone().any(is_table) {
        return Ok(None);
    }
    // What was named is looked for first, so that an error names it, and not what may lie beside it.
    let named = (Url::is_url(data) && data.contains(".tar")).then(|| bucket.resolve(data, SHARDS)).transpose()?;
    let texts = bucket.texts(&Beside::names().collect::<Vec<_>>(), names::BYTES_MAX)?;
    let beside = Beside::new(|name| texts.get(name).cloned());
    let mut places = Places::at(bucket.location().to_owned(), beside, bucket.base());
    let listed = if bucket.is_folder() { places.listed(set) } else { Vec::new() };
    if !are_named && listed.is_empty() && bucket.is_folder() && bucket.all(SHARDS)?.is_empty() {
        return Ok(None);
    }
    for &split in Split::ALL {
        if let Some(place) = set.splits.of(split) {
            places.shards[split as usize] = resolved(&places, place, bucket)?;
        }
    }
    if !Url::is_url(data) {
        return places.checked().map(Some);
    }
    for (split, listed) in listed {
        for shards in &listed.shards {
            if pattern::parts(shards).any(Url::is_url) {
                // A stranger's bucket must not send a user's credentials elsewhere.
                let cause = format!("its info file names {}, which is not in the same folder", Url::shown(shards));
                return Err(places.refused(cause));
            }
            places.shards[split as usize].extend(bucket.resolve(shards, SHARDS)?);
        }
        places.expected[split as usize] = listed.samples;
    }
    let has_given = |split: Split| set.splits.of(split).is_some();
    // What an info file does not list is no part of the set.
    if places.shards[Split::Train as usize].is_empty() || has_given(Split::Train) {
        let is_pattern = named.is_some();
        let all = named.map_or_else(|| bucket.resolve(data, SHARDS), Ok)?;
        places.rest(set, all, is_pattern);
    }
    places.checked().map(Some)
}

/// A split's shards: a pattern, or a word in the names of the shards in the folder.
fn resolved(places: &Places, place: &str, bucket: &mut Bucket) -> Result<Vec<PathBuf>, DatasetError> {
    if !is_word(place) {
        return bucket.resolve(place, SHARDS);
    }
    places.with_word(place, bucket.all(SHARDS)?)
}

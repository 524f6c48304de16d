//! Which objects of a store are the shards of a data set: by patterns, or all in a folder, told apart by the words in their names.

use super::super::located::IndexedFile;
use super::super::pattern::{self, Malformed, is_glob, matches};
use super::super::remote::{Found, Remote, RemoteError, RemoteFile, Scheme, StoreOptions, Url};
use super::super::{DataSet, DatasetError};
use super::places::{Places, is_word};
use crate::types::Split;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The shards of `set` and the objects that they are, training first; `None` when it names no store.
///
/// # Errors
/// When the store cannot be read, or the names stand for objects that are not there.
pub fn find(set: &DataSet, cache_dir: &Path) -> Result<Option<(Places, Vec<IndexedFile>)>, DatasetError> {
    if set.remote_location().is_none() {
        return Ok(None);
    }
    let data = set.data.to_str().unwrap_or_default();
    let base = base(data).or_else(|| Split::ALL.iter().find_map(|&split| base(set.splits.of(split)?)));
    let Some(base) = base else {
        return Ok(None);
    };
    let base: Url = base.parse().map_err(|error: crate::types::ParseError| DatasetError::Remote(error.to_string()))?;
    let remote = remote(&set.store, cache_dir).map_err(|error| failed(&error))?;
    let location = if Url::is_url(data) { Url::shown(data) } else { base.to_string() };
    let shown_base = PathBuf::from(base.to_string());
    let mut bucket = Bucket { places: Places::at(location, shown_base), base, remote, found: HashMap::new() };
    let all = if Url::is_url(data) { bucket.resolve(data)? } else { Vec::new() };
    for &split in Split::ALL {
        if let Some(place) = set.splits.of(split) {
            bucket.places.shards[split as usize] = bucket.place(place)?;
        }
    }
    let Bucket { mut places, remote, found, .. } = bucket;
    places.rest(set, all, data.contains(".tar"));
    let places = places.checked()?;
    let file = |path: &PathBuf| {
        let object = found.get(path).expect("it was found by that name").clone();
        let name = path.strip_prefix(&places.base).unwrap_or(path).to_string_lossy().into_owned();
        IndexedFile::remote(name, RemoteFile::new(&remote, object))
    };
    let files = places.shards.iter().flatten().map(file).collect();
    Ok(Some((places, files)))
}

fn remote(options: &StoreOptions, cache_dir: &Path) -> Result<Arc<Remote>, RemoteError> {
    let text =
        |(name, value): (std::ffi::OsString, std::ffi::OsString)| name.into_string().ok().zip(value.into_string().ok());
    Remote::new(options, cache_dir, std::env::vars_os().filter_map(text).collect())
}

fn failed(error: &RemoteError) -> DatasetError {
    DatasetError::Remote(error.to_string())
}

/// The folder in which a pattern's objects lie: what goes before its first wildcard, up to a slash.
fn base(pattern: &str) -> Option<&str> {
    if !Url::is_url(pattern) {
        return None;
    }
    let first = pattern::parts(pattern).find(|part| Url::is_url(part))?;
    // A query may hold slashes.
    let query = if first.starts_with("http") { first.find('?') } else { None };
    let address = &first[..query.unwrap_or(first.len())];
    let has_name = address[address.find("://")? + 3..].contains('/');
    Some(if first.contains(".tar") && has_name { pattern::folder(address) } else { address.trim_end_matches('/') })
}

/// Where shards are looked for.
struct Bucket {
    places: Places,
    base: Url,
    remote: Arc<Remote>,
    /// Objects by the address that people see.
    found: HashMap<PathBuf, Found>,
}

impl Bucket {
    /// A split's shards: a pattern, or a word in the names of the shards in the folder.
    fn place(&mut self, place: &str) -> Result<Vec<PathBuf>, DatasetError> {
        if !is_word(place) {
            return self.resolve(place);
        }
        let all = self.listed(&self.base.clone())?;
        self.places.with_word(place, all)
    }

    /// The shards that a pattern stands for, relative to the folder or as an address.
    fn resolve(&mut self, pattern: &str) -> Result<Vec<PathBuf>, DatasetError> {
        let (mut paths, mut named) = (Vec::new(), Vec::new());
        let malformed = |Malformed { part, cause }| self.places.refused(format!("{}: {cause}", Url::shown(&part)));
        for name in pattern::names(pattern).map_err(malformed)? {
            let url = self.url(&name)?;
            if is_glob(url.name()) && url.scheme() != Scheme::Http {
                let listed = self.listed(&url.sibling(pattern::folder(url.name())))?;
                let is_meant = |path: &PathBuf| matches(url.name(), self.found[path].url.name());
                paths.extend(listed.into_iter().filter(is_meant));
            } else if url.name().ends_with(".tar") {
                paths.push(url.to_string().into());
                named.push(url);
            } else {
                paths.extend(self.listed(&url)?);
            }
        }
        if paths.is_empty() {
            let cause = format!("there is no .tar at {}", Url::shown(pattern));
            return Err(self.places.refused(cause));
        }
        // What was named is looked for at once, to be known by its ETag.
        let found = self.remote.find(&named).map_err(|error| failed(&error))?;
        self.found.extend(found.into_iter().map(|found| (found.url.to_string().into(), found)));
        Ok(paths)
    }

    /// The shards in a folder and in its folders, by name.
    fn listed(&mut self, of: &Url) -> Result<Vec<PathBuf>, DatasetError> {
        let mut paths = Vec::new();
        for found in self.remote.list(of).map_err(|error| failed(&error))? {
            if found.url.name().ends_with(".tar") {
                let path = PathBuf::from(found.url.to_string());
                self.found.insert(path.clone(), found);
                paths.push(path);
            }
        }
        Ok(paths)
    }

    fn url(&self, name: &str) -> Result<Url, DatasetError> {
        if !Url::is_url(name) {
            let folder = self.base.name();
            let separator = if folder.is_empty() { "" } else { "/" };
            return Ok(self.base.sibling(&format!("{folder}{separator}{name}")));
        }
        name.parse().map_err(|error: crate::types::ParseError| DatasetError::Remote(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_what_goes_before_a_wildcard() {
        for (pattern, expected) in [
            ("s3://b/a/train-{000..146}.tar", Some("s3://b/a")),
            ("s3://b/train-*.tar", Some("s3://b")),
            ("s3://b/a/x.tar::s3://c/y.tar", Some("s3://b/a")),
            ("s3://b/a/", Some("s3://b/a")),
            ("s3://b", Some("s3://b")),
            ("https://h/a/b.tar?sig=x/y.tar", Some("https://h/a")),
            ("a/b.tar", None),
        ] {
            assert_eq!(base(pattern), expected, "{pattern}");
        }
    }
}

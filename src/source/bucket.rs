//! The objects of a data set in a store: named by patterns, or listed in the folder that the data set is, each as it was found.

use super::located::{FindPublished, IndexedFile, PUBLISHED};
use super::pattern::{self, Malformed, is_glob, matches};
use super::remote::{Found, Remote, RemoteError, RemoteFile, Scheme, StoreOptions, Url};
use super::{DataSet, DatasetError};
use crate::types::{ParseError, Split};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Endings of names that make an address one of a file rather than a folder.
const FILES: [&str; 3] = [".tar", ".parquet", ".arrow"];

/// Where the objects of a data set are looked for.
pub struct Bucket {
    /// What people call the data set.
    location: String,
    /// The folder that patterns and names begin from.
    base: Url,
    /// Whether that folder is all that was named.
    is_folder: bool,
    remote: Arc<Remote>,
    /// Objects by the address that people see.
    found: HashMap<PathBuf, Found>,
    /// What lies in folders that were listed.
    listed: HashMap<Url, Vec<PathBuf>>,
}

impl Bucket {
    /// The store that a data set names; `None` when it names none.
    ///
    /// # Errors
    /// When an address cannot be understood, or the disk cache not be used.
    pub fn open(set: &DataSet, cache_dir: &Path) -> Result<Option<Self>, DatasetError> {
        let data = set.data.to_str().unwrap_or_default();
        let base = base(data).or_else(|| Split::ALL.iter().find_map(|&split| base(set.splits.of(split)?)));
        let Some(base) = base else {
            return Ok(None);
        };
        let base: Url = base.parse().map_err(unknown)?;
        let remote = remote(&set.store, cache_dir).map_err(|error| failed(&error))?;
        let location = if Url::is_url(data) { Url::shown(data) } else { base.to_string() };
        let is_folder = Url::is_url(data) && pattern::parts(data).count() == 1 && !names_file(data);
        Ok(Some(Self { location, base, is_folder, remote, found: HashMap::new(), listed: HashMap::new() }))
    }

    /// What people call the data set.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// The folder that patterns and names begin from, as people see it.
    pub fn base(&self) -> PathBuf {
        self.base.to_string().into()
    }

    /// Whether the data set is all that lies in that folder.
    pub fn is_folder(&self) -> bool {
        self.is_folder
    }

    /// What is wrong with the data set.
    fn refused(&self, cause: String) -> DatasetError {
        DatasetError::Shards { location: self.location.clone(), cause }
    }

    /// The objects in the folder and in its folders whose names end in one of `endings`, by name.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn all(&mut self, endings: &[&str]) -> Result<Vec<PathBuf>, DatasetError> {
        self.list(&self.base.clone(), endings)
    }

    /// The objects that a pattern stands for, relative to the folder or as an address; of folders, those whose names end in one of `endings`.
    ///
    /// # Errors
    /// When there are none, or the store cannot be read.
    pub fn resolve(&mut self, pattern: &str, endings: &[&str]) -> Result<Vec<PathBuf>, DatasetError> {
        let (mut paths, mut named) = (Vec::new(), Vec::new());
        let malformed = |Malformed { part, cause }| self.refused(format!("{}: {cause}", Url::shown(&part)));
        for name in pattern::names(pattern).map_err(malformed)? {
            let url = if Url::is_url(&name) { name.parse().map_err(unknown)? } else { self.base.inside(&name) };
            if is_glob(url.name()) && url.scheme() != Scheme::Http {
                let listed = self.list(&url.sibling(pattern::folder(url.name())), endings)?;
                let is_meant = |path: &PathBuf| matches(url.name(), self.found[path].url.name());
                paths.extend(listed.into_iter().filter(is_meant));
            } else if endings.iter().any(|ending| url.name().ends_with(ending)) {
                paths.push(url.to_string().into());
                named.push(url);
            } else {
                paths.extend(self.list(&url, endings)?);
            }
        }
        if paths.is_empty() {
            return Err(self.refused(format!("there is no {} at {}", endings.join(" or "), Url::shown(pattern))));
        }
        // What was named is looked for at once, to be known by its ETag.
        let found = self.remote.find(&named).map_err(|error| failed(&error))?;
        self.found.extend(found.into_iter().map(|found| (found.url.to_string().into(), found)));
        Ok(paths)
    }

    /// The texts of small objects in the folder, by name; those that are not there or may not be read are left out.
    ///
    /// # Errors
    /// When the store does not answer.
    pub fn texts<'a>(&self, names: &[&'a str], bytes_max: u64) -> Result<HashMap<&'a str, String>, DatasetError> {
        let may_be_there =
            |name: &&&str| !self.listed.contains_key(&self.base) || self.found.contains_key(&self.base().join(name));
        let names: Vec<&str> = names.iter().filter(may_be_there).copied().collect();
        let urls: Vec<Url> = names.iter().map(|name| self.base.inside(name)).collect();
        let read = self.remote.read_optional(&urls, bytes_max).map_err(|error| failed(&error))?;
        let text = |bytes: Option<Vec<u8>>| {
            // Some web servers answer with a page to whatever is not there.
            String::from_utf8(bytes?).ok().filter(|text| !text.trim_start().starts_with('<'))
        };
        Ok(names.into_iter().zip(read).filter_map(|(name, bytes)| Some((name, text(bytes)?))).collect())
    }

    /// An object that was found; its name is its path from the folder.
    ///
    /// # Panics
    /// When it is none of those.
    pub fn file(&self, path: &Path) -> IndexedFile {
        let object = self.found.get(path).expect("it was found by that name").clone();
        let name = path.strip_prefix(self.base()).unwrap_or(path).to_string_lossy().into_owned();
        IndexedFile::remote(name, RemoteFile::new(&self.remote, object))
    }

    /// Looks for an index that somebody published in the folder.
    pub fn published(&self) -> FindPublished {
        let (remote, url) = (Arc::clone(&self.remote), self.base.inside(PUBLISHED));
        Box::new(move || {
            let found = remote.find_optional(&url).map_err(|error| failed(&error))?;
            Ok(found.map(|found| IndexedFile::remote(PUBLISHED.to_owned(), RemoteFile::new(&remote, found))))
        })
    }

    /// The objects below a folder whose names end in one of `endings`.
    fn list(&mut self, of: &Url, endings: &[&str]) -> Result<Vec<PathBuf>, DatasetError> {
        if !self.listed.contains_key(of) {
            let found = self.remote.list(of).map_err(|error| failed(&error))?;
            let paths = found.iter().map(|found| found.url.to_string().into()).collect();
            self.found.extend(found.into_iter().map(|found| (found.url.to_string().into(), found)));
            self.listed.insert(of.clone(), paths);
        }
        let is_wanted = |path: &&PathBuf| endings.iter().any(|ending| self.found[*path].url.name().ends_with(ending));
        Ok(self.listed[of].iter().filter(is_wanted).cloned().collect())
    }
}

fn remote(options: &StoreOptions, cache_dir: &Path) -> Result<Arc<Remote>, RemoteError> {
    let text =
        |(name, value): (std::ffi::OsString, std::ffi::OsString)| name.into_string().ok().zip(value.into_string().ok());
    Remote::new(options, cache_dir, std::env::vars_os().filter_map(text).collect())
}

fn failed(error: &RemoteError) -> DatasetError {
    DatasetError::Remote(error.to_string())
}

fn unknown(error: ParseError) -> DatasetError {
    DatasetError::Remote(error.to_string())
}

fn names_file(pattern: &str) -> bool {
    FILES.iter().any(|ending| pattern.contains(ending))
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
    Some(if names_file(first) && has_name { pattern::folder(address) } else { address.trim_end_matches('/') })
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
            ("s3://b/a/data/train-*.parquet", Some("s3://b/a/data")),
            ("s3://b/a/", Some("s3://b/a")),
            ("s3://b", Some("s3://b")),
            ("https://h/a/b.tar?sig=x/y.tar", Some("https://h/a")),
            ("a/b.tar", None),
        ] {
            assert_eq!(base(pattern), expected, "{pattern}");
        }
    }
}

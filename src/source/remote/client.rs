//! Objects as data sets read them: found or listed, then read by ranges through the disk cache.

use super::super::{Ahead, ReadError, Stamp};
use super::disk::Disk;
use super::fetch::{Counters, Fetcher};
use super::object::{FetchError, Object};
use super::options::StoreOptions;
use super::profile::Variables;
use super::store::{Found, Stores};
use super::trouble::{StoreError, Trouble};
use super::url::Url;
use crate::escape::escaped;
use crate::status::Fetched;
use futures_util::{StreamExt, TryStreamExt};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64;

/// Objects that are looked for at once.
const FINDS_AT_ONCE: usize = 32;
/// For how long a read waits before it says that the bytes are on their way still, so that its reader can leave.
const WAIT: Duration = Duration::from_millis(100);

/// The stores that this process reads, and its disk cache.
#[derive(Debug)]
pub struct Remote(Fetcher);

/// An object that is read as a file is.
#[derive(Debug, Clone)]
pub struct RemoteFile {
    remote: Arc<Remote>,
    object: Arc<Object>,
}

/// Why there are no objects to be had.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The folder of the disk cache cannot be used.
    #[error(
        "cannot keep objects in {}: {error} (name a folder that this user may write to: --disk-cache DIR:SIZE)",
        escaped(dir)
    )]
    Cache {
        /// The folder.
        dir: PathBuf,
        /// The system's answer.
        error: io::Error,
    },
    /// An object cannot be found, or a prefix not listed.
    #[error("{url}: {error}")]
    Object {
        /// Which.
        url: Url,
        /// Why.
        error: FetchError,
    },
    /// No client can be made.
    #[error(transparent)]
    Client(#[from] StoreError),
}

impl Remote {
    /// Reads objects as `options` have it. `variables` are the environment's, in which credentials are; objects are kept in `default_dir` where no other
    /// folder is named.
    ///
    /// # Errors
    /// When the disk cache cannot be used.
    pub fn new(options: &StoreOptions, default_dir: &Path, variables: Variables) -> Result<Arc<Self>, RemoteError> {
        let dir = options.disk_cache.as_ref().map_or(default_dir, |cache| &cache.dir);
        let failed = |error| RemoteError::Cache { dir: dir.to_owned(), error };
        let disk = Disk::open(options.disk_cache.as_ref(), default_dir).map_err(failed)?;
        tracing::info!("objects are kept in {} (at most {} MB)", escaped(disk.dir()), disk.budget_bytes() / 1_000_000);
        let stores = Arc::new(Stores::new(variables)?);
        let fetcher = Fetcher::new(stores, Arc::new(disk), options.timeout).map_err(failed)?;
        Ok(Arc::new(Self(fetcher)))
    }

    /// Looks for objects; the answers are in the order of `urls`.
    ///
    /// # Errors
    /// The first that is found: an object is not there, or its store does not answer.
    pub fn find(&self, urls: &[Url]) -> Result<Vec<Found>, RemoteError> {
        // Each by itself, so that a failure repeats one request and not all.
        let find = |url: &Url| {
            let url = url.clone();
            async move {
                let found = self.0.run_async(async |stores| stores.find(&url).await).await;
                found.map_err(|error| RemoteError::Object { url, error })
            }
        };
        let all = futures_util::stream::iter(urls.iter().map(find)).buffered(FINDS_AT_ONCE).try_collect();
        self.0.block_on(all)
    }

    /// Looks for an object that need not be there. One that may not be read counts as missing: S3 answers so about a missing object to users who
    /// may not list the bucket, and a signature is good for one object.
    ///
    /// # Errors
    /// When its store does not answer.
    pub fn find_optional(&self, url: &Url) -> Result<Option<Found>, RemoteError> {
        optional(url, self.0.block_on(self.0.run_async(async |stores| stores.find(url).await)))
    }

    /// The contents of small objects that need not be there, each by one request; those of more than `bytes_max` count as missing. The answers are in
    /// the order of `urls`.
    ///
    /// # Errors
    /// When a store does not answer.
    pub fn read_optional(&self, urls: &[Url], bytes_max: u64) -> Result<Vec<Option<Vec<u8>>>, RemoteError> {
        let read = |url: &Url| {
            let url = url.clone();
            async move { optional(&url, self.0.run_async(async |stores| stores.get_small(&url, bytes_max).await).await) }
        };
        let all = futures_util::stream::iter(urls.iter().map(read)).buffered(FINDS_AT_ONCE).try_collect();
        self.0.block_on(all)
    }

    /// The objects in a folder of a bucket, sorted by name.
    ///
    /// # Errors
    /// When it cannot be listed.
    pub fn list(&self, prefix: &Url) -> Result<Vec<Found>, RemoteError> {
        let listed = self.0.block_on(self.0.run_async(async |stores| stores.list(prefix).await));
        listed.map_err(|error| RemoteError::Object { url: prefix.clone(), error })
    }

    /// Figures.
    pub fn counters(&self) -> &Counters {
        self.0.counters()
    }
}

/// What was found of an object that need not be there.
fn optional<T>(url: &Url, found: Result<T, FetchError>) -> Result<Option<T>, RemoteError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(FetchError::Store(error)) if matches!(error.trouble, Trouble::Missing | Trouble::Final) => Ok(None),
        Err(error) => Err(RemoteError::Object { url: url.clone(), error }),
    }
}

impl PartialEq for RemoteFile {
    fn eq(&self, other: &Self) -> bool {
        self.object.found == other.object.found
    }
}

impl Eq for RemoteFile {}

impl RemoteFile {
    /// The object, to be read through `remote`.
    pub fn new(remote: &Arc<Remote>, found: Found) -> Self {
        Self { remote: Arc::clone(remote), object: remote.0.add(found) }
    }

    /// Its address, without what may be secret.
    pub fn location(&self) -> String {
        self.object.found.url.to_string()
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.object.found.bytes
    }

    /// Another one for each content.
    pub fn stamp(&self) -> Stamp {
        xxh3_64(format!("{}\0{}", self.object.found.tag, self.object.found.bytes).as_bytes()).max(1)
    }

    /// Announces that objects, all of one [`Remote`], are read from now on, those of `now` before those of `next`.
    pub fn will_read(now: &[Self], next: &[Self]) -> Option<Ahead> {
        let remote = &now.first()?.remote;
        let objects = |files: &[Self]| files.iter().map(|file| Arc::clone(&file.object)).collect();
        Some(Box::new(remote.0.will_read(objects(now), objects(next))))
    }

    /// Figures of everything that is read from stores with it.
    pub fn fetched(&self) -> Fetched {
        self.remote.0.figures()
    }

    /// Fills `bytes` from `offset`.
    ///
    /// # Errors
    /// [`ReadError::NotYet`] where the bytes are still on their way: ask again. Otherwise when they cannot be had.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), ReadError> {
        match self.remote.0.read(&self.object, offset, bytes, WAIT) {
            Ok(true) => Ok(()),
            Ok(false) => Err(ReadError::NotYet),
            Err(FetchError::Store(error)) if error.trouble == Trouble::Changed => {
                Err(ReadError::FileChanged { path: self.location().into() })
            }
            Err(FetchError::Disk(error)) => {
                let text = format!("the disk cache fails: {error}");
                let copy = error
                    .raw_os_error()
                    .map_or_else(|| io::Error::new(error.kind(), text), io::Error::from_raw_os_error);
                Err(copy.into())
            }
            Err(error) => Err(ReadError::Store { url: self.location(), cause: error.to_string() }),
        }
    }

    /// Fills `bytes` from `offset`, however long that takes.
    ///
    /// # Errors
    /// When they cannot be had.
    pub fn read_waiting(&self, offset: u64, bytes: &mut [u8]) -> Result<(), ReadError> {
        loop {
            match self.read(offset, bytes) {
                Err(ReadError::NotYet) => {}
                read => return read,
            }
        }
    }
}

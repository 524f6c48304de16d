//! The index of a set, wherever it can be had without reading the set: remembered in the cache folder, or published beside objects of a store.

use super::files::{IndexedFile, Opened};
use super::saved::Contents;
use crate::escape::{escaped, printable};
use crate::memory;
use crate::source::DatasetError;
use crate::types::Split;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// What a published index is called.
pub const PUBLISHED: &str = "mixd.index";
/// The largest published index that is read: one of a hundred million samples.
const PUBLISHED_BYTES_MAX: u64 = 8 << 30;

/// What is wrong with a published index that is not used.
const NO_INDEX: &str = "is damaged, or of other files or options (--splits, --image-key, --label-key)";

/// Looks for the object that may hold a published index.
pub type FindPublished = Box<dyn Fn() -> Result<Option<IndexedFile>, DatasetError>>;

/// Where the index of a set may be, and what it must be of.
pub struct Remembered<'a> {
    /// What people call the set.
    pub location: String,
    /// The file in the cache folder.
    pub saved: PathBuf,
    /// Of which files and options: an index of another key is not used.
    pub key: Vec<u8>,
    /// Of sets in an object store.
    pub published: Option<&'a FindPublished>,
}

impl Remembered<'_> {
    /// The index of `files`, with what `fits` makes of it, if one that fits is remembered or published. A published one is looked for at each start, since
    /// another may take its place; its bytes are in the disk cache.
    ///
    /// # Errors
    /// When the store does not answer.
    pub fn load<'f, T>(
        &self,
        files: impl ExactSizeIterator<Item = &'f IndexedFile>,
        fits: impl Fn(&Contents) -> Option<T>,
    ) -> Result<Option<(Contents, T)>, DatasetError> {
        let count = files.len();
        let has_training = |contents: &Contents| contents.splits[Split::Train as usize].len() > 0;
        let fitting =
            |contents: Contents| fits(&contents).filter(|_| has_training(&contents)).map(|made| (contents, made));
        let remembered = Contents::load(&self.saved, &self.key, count).and_then(fitting);
        let Some(find) = self.published.filter(|_| remembered.is_none()) else {
            return Ok(remembered);
        };
        let Some(index) = find()? else {
            tracing::info!(
                "{}: there is no {PUBLISHED} beside the data, so all {count} files ({} MB) are read for their index before the first batch (what \
                 `mixd index` writes, uploaded there, spares that: docs/object-stores.md)",
                self.location,
                files.map(IndexedFile::bytes).sum::<u64>() / 1_000_000
            );
            return Ok(None);
        };
        let contents = self.read(&index, count).and_then(|contents| fitting(contents).ok_or(NO_INDEX.to_owned()));
        match &contents {
            Ok(_) => tracing::info!("{}: the index is the published one, {}", self.location, escaped(&index.path)),
            Err(cause) => tracing::warn!(
                "{} {cause}: it is not used, and all {count} files are read (make it anew with `mixd index`)",
                escaped(&index.path)
            ),
        }
        Ok(contents.ok())
    }

    fn read(&self, index: &IndexedFile, files: usize) -> Result<Contents, String> {
        if index.bytes() > PUBLISHED_BYTES_MAX {
            return Err(format!("has {} bytes, more than an index", index.bytes()));
        }
        // Twice while an array grows.
        if memory::free().is_some_and(|free| index.bytes() > free / 2) {
            return Err(format!("takes more memory than is free ({} MB)", index.bytes() / 1_000_000));
        }
        let opened = index.open().map_err(|error| format!("cannot be read: {error}"))?;
        let mut input = InOrder { opened: &opened, at: 0, error: None };
        let contents = Contents::read(&mut input, index.bytes(), &self.key, files);
        if let Some(error) = input.error {
            return Err(format!("cannot be read: {error}"));
        }
        let mut contents = contents.ok_or_else(|| NO_INDEX.to_owned())?;
        // They are printed as they are.
        contents.classes.iter_mut().for_each(|class| class.name = printable(&class.name).to_string());
        Ok(contents)
    }

    /// Remembers an index that was made of `files`.
    pub fn save<'f>(&self, contents: &Contents, mut files: impl Iterator<Item = &'f IndexedFile>) {
        // However small, if it took a network to make.
        if files.any(IndexedFile::is_remote) {
            contents.save_always(&self.saved, &self.key);
        } else {
            contents.save(&self.saved, &self.key);
        }
    }
}

/// An index to be published.
pub struct Publication {
    /// The index.
    pub contents: Contents,
    /// Of which files and options.
    pub key: Vec<u8>,
}

impl Publication {
    /// Writes it to a file; returns its bytes.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, file: &Path) -> io::Result<u64> {
        self.contents.write_whole(file, &self.key)?;
        Ok(file.metadata()?.len())
    }
}

/// A file from its beginning to its end.
struct InOrder<'a> {
    opened: &'a Opened,
    at: u64,
    error: Option<String>,
}

impl Read for InOrder<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.opened.read_up_to(bytes, self.at).inspect_err(|error| self.error = Some(error.to_string()))?;
        self.at += read as u64;
        Ok(read)
    }
}

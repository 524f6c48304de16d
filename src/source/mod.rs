//! Sources: where encoded samples come from, as one trait.
//!
//! A [`Source`] lists the samples of both splits and reads their bytes; it knows neither pixels nor batches. Kinds: an image folder
//! (`folder.rs`), or an unpacked archive of one; samples in larger files (`located/`), such as WebDataset shards (`shards/`), tables (`tables/`) and binaries (`binaries/`).
//! [`open`] is the single place that chooses the kind of a [`DataSet`].

mod archive;
mod binaries;
#[cfg(feature = "cloud")]
mod bucket;
#[cfg(not(feature = "cloud"))]
#[path = "no_bucket.rs"]
mod bucket;
mod classes;
mod compression;
mod dataset;
mod detours;
mod flaw;
mod folder;
mod image_names;
mod index;
mod label_table;
mod layout;
mod links;
mod listed;
mod located;
mod pattern;
mod remembered;
pub mod remote;
mod shards;
mod sparse;
mod split_words;
mod subset;
mod tables;
mod tally;
mod tar_block;
mod unpack;
mod vocabulary;
mod walk;

use crate::escape::{escaped, printable};
use crate::plan::Numbering;
use crate::status::Fetched;
pub use crate::types::Class;
use crate::types::{ClassId, LabelSet, SampleId, Split};
use binaries::Binaries;
use bucket::Bucket;
pub use dataset::{DataSet, Fraction, Selection, Splits};
use folder::Folder;
pub use folder::format_of;
use listed::Listed;
use rustix::io::Errno;
use std::ffi::OsString;
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use subset::Subset;
use tables::Tables;
use xxhash_rust::xxh3::Xxh3;

/// An indexed collection of labelled, encoded samples.
///
/// A source is immutable once open: sample ids, labels and classes never change. The bytes of a sample may change while the source is
/// open; its stamp tells. Methods that take a sample id panic when it is not below [`Source::len`].
pub trait Source: Send + Sync + Debug {
    /// Where the samples are, for status and logs.
    fn location(&self) -> String;

    /// The vocabulary; a [`ClassId`] is an index into it.
    fn classes(&self) -> &[Class];

    /// Number of samples in a split; ids are `0..len`.
    fn len(&self, split: Split) -> u32;

    /// Where samples have several labels: the distinct sets of classes. [`label`](Self::label) is then an index into it.
    fn label_sets(&self) -> Option<&[LabelSet]> {
        None
    }

    /// The class of a sample, or its set of classes. Does not allocate: it is called for every row of every batch.
    fn label(&self, split: Split, sample: SampleId) -> ClassId;

    /// A sample's name for logs and people, unique within the source, without control characters ([`escaped`]). It need not be a path; nothing
    /// is looked up by it.
    fn name(&self, split: Split, sample: SampleId) -> String;

    /// The first sample of each file that holds many (a shard, a table), ascending from 0; none where each sample is a file of its own. The
    /// samples of such a file have consecutive ids.
    fn shards(&self, _split: Split) -> Vec<SampleId> {
        Vec::new()
    }

    /// How the samples of a split are numbered.
    fn numbering(&self, split: Split) -> Numbering {
        Numbering { samples: self.len(split), shards: self.shards(split) }
    }

    /// Announces that the samples of some shards are read from now on, those of `now` before those of `next`; each shard is named by its first
    /// sample. A source whose bytes are far away may prefetch them, and keeps them while what is returned lives.
    fn will_read(&self, _split: Split, _now: &[SampleId], _next: &[SampleId]) -> Option<Ahead> {
        None
    }

    /// Replaces the content of `bytes` by a sample's encoded bytes, reusing its capacity, and returns the sample's stamp as it was before the
    /// first byte was read, so that a sample that changes during the read gets a stamp that no longer matches.
    ///
    /// # Errors
    /// When the sample cannot be read; `bytes` then holds nothing of use.
    fn read(&self, split: Split, sample: SampleId, bytes: &mut Vec<u8>) -> Result<Option<Stamp>, ReadError>;

    /// Reads as [`Source::read`] does, and waits for bytes that are on their way.
    ///
    /// # Errors
    /// Any but [`ReadError::NotYet`].
    fn read_waiting(&self, split: Split, sample: SampleId, bytes: &mut Vec<u8>) -> Result<Option<Stamp>, ReadError> {
        loop {
            match self.read(split, sample, bytes) {
                Err(ReadError::NotYet) => {}
                read => return read,
            }
        }
    }

    /// The current stamp of a sample, without reading it; `None` when there is none that is valid for caching.
    fn stamp(&self, split: Split, sample: SampleId) -> Option<Stamp>;

    /// Feeds everything that identifies a split's encoded samples to `hash`: location, names, places and order, but neither content nor labels.
    /// Cache files of pixels are bound to it, and resumed feeds to it and to the labels, so an implementation must never change what it feeds.
    fn hash_samples(&self, split: Split, hash: &mut Xxh3);

    /// Feeds a split's labels to `hash`, and what they mean. Nothing where they follow from the samples' names, as those of folders do.
    fn hash_labels(&self, _split: Split, _hash: &mut Xxh3) {}

    /// What a user should know of how the data set was read, a line each: files that were left out, by cause; folders that were taken for a split.
    fn notes(&self) -> &[String] {
        &[]
    }

    /// What was fetched from object stores so far; `None` where no sample is in one.
    fn fetched(&self) -> Option<Fetched> {
        None
    }

    /// A readable name for a label: the class's, or those of a set.
    fn label_name(&self, label: ClassId) -> String {
        let name = |class: ClassId| self.classes()[class as usize].name.as_str();
        match self.label_sets().map(|sets| &sets[label as usize]) {
            None => name(label).to_owned(),
            Some(set) if set.is_empty() => "no label".to_owned(),
            Some(set) => set.iter().map(|&class| name(class)).collect::<Vec<_>>().join(" + "),
        }
    }
}

/// What was announced, until it is dropped.
pub type Ahead = Box<dyn Debug + Send>;

/// Changes whenever the bytes of a sample change; never 0. A source gives none while a later change could go unnoticed.
pub type Stamp = u64;

/// Why a sample's bytes cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The process or the machine has no file descriptor left (EMFILE, ENFILE). It says nothing about the sample: retry.
    #[error("cannot be read: {0}")]
    DescriptorShortage(io::Error),
    /// The sample has more bytes than are read.
    #[error("has {bytes} bytes, more than the limit of {ENCODED_BYTES_MAX} (save it smaller, or remove it)")]
    TooLarge {
        /// Its bytes.
        bytes: u64,
    },
    /// The sample's file is gone from a cache folder.
    #[error(
        "was removed from {}, where {} was unpacked (by a cleaner of old files, say; start the daemon again, which unpacks it anew)",
        escaped(folder),
        escaped(archive)
    )]
    Removed {
        /// The archive.
        archive: PathBuf,
        /// The folder.
        folder: PathBuf,
    },
    /// The file that holds the sample is not the one that was indexed.
    #[error(
        "cannot be read: {} has changed since it was indexed (start the daemon again, which indexes it anew)",
        escaped(path)
    )]
    FileChanged {
        /// The file.
        path: PathBuf,
    },
    /// Its bytes are on their way from an object store: ask again at once. The source gives up itself when the store does not come back.
    #[error("is not there yet")]
    NotYet,
    /// The object store that holds it does not give it, and was given its time to.
    #[error("cannot be read: {url}: {cause}")]
    Store {
        /// The object.
        url: String,
        /// Why.
        cause: String,
    },
    /// Any other failure. It may pass: retry for a while.
    #[error("cannot be read: {0}")]
    Io(io::Error),
}

/// The most bytes of an encoded sample: 256 MiB. The largest image that is accepted has 512 MiB of pixels, and decoders hold both.
pub const ENCODED_BYTES_MAX: u64 = 256 << 20;

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(Errno::MFILE | Errno::NFILE) => Self::DescriptorShortage(error),
            _ => Self::Io(error),
        }
    }
}

/// Layout that is expected; ends every refusal.
const LAYOUT: &str = "expected DATA/train/<class>/<image> and DATA/val/<class>/<image>, e.g. \
                      imagenette2-160/train/n01440764/ILSVRC2012_val_00000293.JPEG; other folders are named with --splits \
                      train=FOLDER,val=FOLDER, and labels in a table with --labels FILE";

/// How far the unpacking of an archive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the archive read.
    pub read_bytes: u64,
    /// Bytes of the archive.
    pub total_bytes: u64,
}

/// Why a data set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// There is nothing.
    #[error("{}: no such file or folder ({LAYOUT})", escaped(.0))]
    Missing(PathBuf),
    /// A file that is no archive.
    #[error("{}: {what}, neither a folder nor a .tgz, .tar.gz, .tar.zst or .tar ({LAYOUT})", escaped(path))]
    NotAnArchive {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        what: String,
    },
    /// A folder without a single image in either split.
    #[error(
        "{}: not an image folder: {found} files, none of them an image in train/ or val/ ({LAYOUT})",
        escaped(root)
    )]
    NotAnImageFolder {
        /// The folder.
        root: PathBuf,
        /// Files that were found at all.
        found: usize,
    },
    /// One split has no image.
    #[error("{}: no image in {}/<class>/ for {split}; its folders: {there} ({LAYOUT})", escaped(root), escaped(place))]
    EmptySplit {
        /// The folder.
        root: PathBuf,
        /// Which split.
        split: Split,
        /// Where it was looked for.
        place: String,
        /// The folders that are there.
        there: String,
    },
    /// Two sets below one folder.
    #[error(
        "{}: it holds two data sets, in {}/ and in {}/: name one of them, or its splits with --splits train=FOLDER,val=FOLDER",
        escaped(root),
        escaped(first),
        escaped(second)
    )]
    SecondSet {
        /// The folder.
        root: PathBuf,
        /// The folder in it that holds the splits of the first image; `.` where it is the same.
        first: PathBuf,
        /// One that holds others.
        second: PathBuf,
    },
    /// Links that make of a few folders endlessly many.
    #[error("{}: links lead to links too often, e.g. to {}: remove some of them", escaped(root), escaped(folder))]
    TooManyLinks {
        /// The folder.
        root: PathBuf,
        /// A folder behind some of them.
        folder: PathBuf,
    },
    /// A validation class that cannot be learned.
    #[error(
        "{}: class `{}` of the validation split has no training images, e.g. {} (add some, or remove the class from the validation split)",
        escaped(root),
        escaped(class),
        escaped(example)
    )]
    UnknownClass {
        /// The folder.
        root: PathBuf,
        /// The class.
        class: OsString,
        /// One of its images.
        example: PathBuf,
    },
    /// A split with more file names than the index can address.
    #[error("{}: the file names of {split}/ exceed 4 GiB: split the data set", escaped(root))]
    TooManyNames {
        /// The folder.
        root: PathBuf,
        /// Which split.
        split: Split,
    },
    /// A part of the training split is asked for as the validation split, and there is one.
    #[error(
        "{location}: there is a validation split of {samples} images, {example} among them, so --holdout {holdout} has nothing to make \
         (leave one of them out: --splits train=FOLDER takes no folder beside it that is not called val)"
    )]
    HoldoutBesideVal {
        /// Where the samples are.
        location: String,
        /// What was asked for.
        holdout: Fraction,
        /// Samples of the validation split.
        samples: u32,
        /// One of them.
        example: String,
    },
    /// No class has an image to spare.
    #[error("{location}: no class has two images or more, so --holdout {holdout} finds none to set aside (add images)")]
    NothingToHoldOut {
        /// Where the samples are.
        location: String,
        /// What was asked for.
        holdout: Fraction,
    },
    /// A list of samples that cannot be followed.
    #[error("{}: {cause} (--samples takes a file with a name in each line, as `mixd plan` prints them)", escaped(path))]
    Samples {
        /// The list.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// A table of labels that cannot be used.
    #[error("{} {}", escaped(path), printable(cause))]
    Labels {
        /// The table.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// A table of labels beside what is no folder.
    #[error(
        "{}: labels come with a folder of images, and {} is none (unpack it, or leave --labels out)",
        escaped(labels),
        escaped(data)
    )]
    LabelsOfNoFolder {
        /// The table.
        labels: PathBuf,
        /// The data.
        data: PathBuf,
    },
    /// An archive that cannot be unpacked.
    #[error("{}: cannot be unpacked: {cause}", escaped(path))]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// A file of many images that cannot be used.
    #[error("{} {}", escaped(path), printable(cause))]
    Unusable {
        /// The file, or the folder of such files.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// There is no folder to unpack to.
    #[error("cannot unpack to {}: {source} (name a folder that this user may write to: MIXD_CACHE_DIR)", escaped(path))]
    NoCache {
        /// The folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A shard that cannot be used.
    #[error("{} {fault}", escaped(path))]
    Shard {
        /// The shard.
        path: PathBuf,
        /// What is wrong.
        fault: shards::Fault,
    },
    /// Shards that make no data set.
    #[error("{location}: {}", printable(cause))]
    Shards {
        /// Where they are.
        location: String,
        /// What is wrong.
        cause: String,
    },
    /// An object store, which this build does not read.
    #[error(
        "{0}: this build reads no object stores (build mixd with the feature `cloud`, or copy the data set to a disk)"
    )]
    NoCloud(String),
    /// Something in an object store that is read from disks alone.
    #[error(
        "{0}: only shards (.tar) and tables (.parquet, or what save_to_disk wrote) are read from object stores: name them, or the folder that they lie in; \
         copy other data sets to a disk"
    )]
    NotRemote(String),
    /// A data set whose index is of no use to others.
    #[error(
        "{0}: only sets in object stores have an index to publish: other machines could not tell that it is of the same files on a disk, and index them \
         themselves, once"
    )]
    NothingToPublish(String),
    /// An object store that cannot be read.
    #[error("{0}")]
    Remote(String),
    /// A system call failed.
    #[error("cannot {action} {}: {source}", escaped(path))]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl DatasetError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// The same error of the folder's archive.
    fn of(mut self, archive: &Path) -> Self {
        match &mut self {
            Self::NotAnImageFolder { root, .. }
            | Self::EmptySplit { root, .. }
            | Self::SecondSet { root, .. }
            | Self::TooManyLinks { root, .. }
            | Self::UnknownClass { root, .. }
            | Self::TooManyNames { root, .. } => archive.clone_into(root),
            _ => {}
        }
        self
    }
}

/// Opens a data set. An archive is unpacked once into the cache folder, where the walk over a large folder and the index of shards are remembered, too.
///
/// # Errors
/// When there is no such path, or it holds no data set of a known kind with a training split.
pub fn open(set: &DataSet, progress: &mut dyn FnMut(Progress)) -> Result<Arc<dyn Source>, DatasetError> {
    let source = of_kind(set, &set.cache_dir.clone().unwrap_or_else(archive::default_cache_dir), progress)?;
    Ok(if set.selection == Selection::default() { source } else { Arc::new(Subset::new(source, &set.selection)?) })
}

/// Writes the index of a data set in an object store to a file, which, uploaded as `mixd.index` beside its shards, spares other machines reading all of
/// them for it; returns the file's bytes.
///
/// # Errors
/// When the data set is no such one or cannot be used, or the file cannot be written.
pub fn publish_index(set: &DataSet, to: &Path) -> Result<u64, DatasetError> {
    let location = || set.remote_location().unwrap_or_else(|| escaped(&set.data).to_string());
    if cfg!(not(feature = "cloud")) && set.remote_location().is_some() {
        return Err(DatasetError::NoCloud(location()));
    }
    let cache_dir = set.cache_dir.clone().unwrap_or_else(archive::default_cache_dir);
    let Some(mut bucket) = Bucket::open(set, &cache_dir)? else {
        return Err(DatasetError::NothingToPublish(location()));
    };
    let publication = match shards::publication(set, &cache_dir, &mut bucket)? {
        None => Tables::publication(set, &cache_dir, &mut bucket)?,
        shards => shards,
    };
    let publication = publication.ok_or_else(|| DatasetError::NotRemote(location()))?;
    publication.write(to).map_err(DatasetError::io("write", to))
}

/// All samples of a data set, whatever its kind.
fn of_kind(
    set: &DataSet,
    cache_dir: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Arc<dyn Source>, DatasetError> {
    if let Some(location) = set.remote_location().filter(|_| cfg!(not(feature = "cloud"))) {
        return Err(DatasetError::NoCloud(location));
    }
    if let Some(binaries) = Binaries::open(set)? {
        return Ok(Arc::new(binaries));
    }
    if let Some(listed) = Listed::open(set)? {
        return Ok(Arc::new(listed));
    }
    if let Some(labels) = &set.labels {
        return Err(DatasetError::LabelsOfNoFolder { labels: labels.clone(), data: set.data.clone() });
    }
    // Images in folders of classes are what such a folder is for, whatever lies beside them.
    let names_files = |split: &Split| {
        let place = set.splits.of(*split).unwrap_or_default();
        [".tar", ".parquet", ".arrow"].iter().any(|ending| place.contains(ending))
    };
    if folder::has_classes(&set.data) && !Split::ALL.iter().any(names_files) {
        return Ok(Arc::new(Folder::open(&set.data, &set.splits, cache_dir, progress)?));
    }
    let mut bucket = Bucket::open(set, cache_dir)?;
    if let Some(shards) = shards::open(set, cache_dir, bucket.as_mut())? {
        return Ok(Arc::new(shards));
    }
    if let Some(tables) = Tables::open(set, cache_dir, bucket.as_mut())? {
        return Ok(Arc::new(tables));
    }
    if let Some(location) = set.remote_location() {
        return Err(DatasetError::NotRemote(location));
    }
    Ok(Arc::new(Folder::open(&set.data, &set.splits, cache_dir, progress)?))
}

#[cfg(test)]
mod tests;

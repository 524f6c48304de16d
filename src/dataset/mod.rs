//! Data sets: an image folder, or an archive of one, as a sorted index of labelled samples.

mod archive;
mod classes;
mod index;
mod remembered;

pub use archive::Progress;

use crate::types::{ClassId, SampleId, Split};
use std::io;
use std::path::{Path, PathBuf};

/// One labelled image file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The file, relative to [`Dataset::root`].
    pub path: PathBuf,
    /// Its class.
    pub label: ClassId,
}

/// One class of the vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    /// The name of its folder.
    pub id: String,
    /// A name to read; the folder's where none is known.
    pub name: String,
}

/// The index of an image folder (SPEC §1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// The folder.
    pub root: PathBuf,
    /// The vocabulary: the training classes, sorted by their folders' bytes.
    pub classes: Vec<Class>,
    train: Vec<Sample>,
    val: Vec<Sample>,
}

/// Layout that is expected; ends every refusal.
const LAYOUT: &str = "expected DATA/train/<class>/<image> and DATA/val/<class>/<image>, e.g. \
                      imagenette2-160/train/n01440764/ILSVRC2012_val_00000293.JPEG";

/// Why a data set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// There is nothing.
    #[error("{}: no such file or folder ({LAYOUT})", .0.display())]
    Missing(PathBuf),
    /// A file that is no archive.
    #[error("{}: neither a folder nor a .tgz, .tar.gz or .tar ({LAYOUT})", .0.display())]
    NotAnArchive(PathBuf),
    /// A folder without a single image in either split.
    #[error("{}: not an image folder: {found} files, none of them an image in train/ or val/ ({LAYOUT})", root.display())]
    NotAnImageFolder {
        /// The folder.
        root: PathBuf,
        /// Files that were found at all.
        found: usize,
    },
    /// One split has no image.
    #[error("{}: no image in {split}/ ({LAYOUT})", root.display())]
    EmptySplit {
        /// The folder.
        root: PathBuf,
        /// Which split.
        split: Split,
    },
    /// A validation class that cannot be learned.
    #[error("{}: class `{class}` of val/ has no images in train/, e.g. {} ({LAYOUT})", root.display(), example.display())]
    UnknownClass {
        /// The folder.
        root: PathBuf,
        /// The class.
        class: String,
        /// One of its images.
        example: PathBuf,
    },
    /// An archive that cannot be unpacked.
    #[error("{}: cannot be unpacked: {cause}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// A system call failed.
    #[error("cannot {action} {}: {source}", path.display())]
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
}

impl Dataset {
    /// Opens an image folder, or a `.tgz`, `.tar.gz` or `.tar` of one, which is unpacked once into `cache_dir` (default: the
    /// user's cache folder, or `$MIXD_CACHE_DIR`). The walk over a large folder is remembered there.
    ///
    /// # Errors
    /// When there is no such path, or it holds no image folder with both splits.
    pub fn open(
        path: &Path,
        cache_dir: Option<&Path>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, DatasetError> {
        let meta = std::fs::metadata(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => DatasetError::Missing(path.to_owned()),
            _ => DatasetError::io("look at", path)(error),
        })?;
        let cache_dir = cache_dir.map_or_else(archive::default_cache_dir, Path::to_owned);
        let root = match meta.is_dir() {
            true => path.canonicalize().map_err(DatasetError::io("find", path))?,
            false => archive::unpack(path, &cache_dir, progress)?,
        };
        index::index(root, &cache_dir)
    }

    /// The samples of a split, in the order of their ids.
    pub fn samples(&self, split: Split) -> &[Sample] {
        match split {
            Split::Train => &self.train,
            Split::Val => &self.val,
        }
    }

    /// The file of a sample.
    pub fn path_of(&self, split: Split, sample: SampleId) -> PathBuf {
        self.root.join(&self.samples(split)[sample as usize].path)
    }

    /// The file of a sample, in memory that is used again.
    pub fn path_into(&self, split: Split, sample: SampleId, path: &mut PathBuf) {
        path.as_mut_os_string().clear();
        path.push(&self.root);
        path.push(&self.samples(split)[sample as usize].path);
    }

    /// A readable name for a class.
    pub fn class_name(&self, class: ClassId) -> &str {
        &self.classes[class as usize].name
    }
}

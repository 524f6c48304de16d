//! Where the tables of a data set are: on a disk, or in an object store.

use super::super::bucket::Bucket;
use super::super::located::IndexedFile;
use super::super::pattern::{self, Malformed};
use super::super::remote::Url;
use super::super::{DataSet, DatasetError, Stamp};
use super::layout::{self, Found, Refused};
use crate::escape::escaped;
use crate::stamp::{is_settled, stamp};
use crate::types::Split;
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What is looked for in a store: endings of tables, and the files that `save_to_disk` writes beside them.
const TABLES: &[&str] = &[".parquet", ".arrow"];
const SAVED: &[&str] = &[".arrow", "/state.json", "/dataset_info.json", "/dataset_dict.json"];

/// A table that belongs to a split.
pub struct Part {
    /// Which split.
    pub split: Split,
    /// As it is before it is indexed.
    pub file: IndexedFile,
    /// What changes with its content.
    pub stamp: Stamp,
    /// Whether it does so whenever that changes.
    pub is_lasting: bool,
}

/// Where tables are looked for.
pub enum Places<'a> {
    /// On a disk.
    Disk,
    /// In an object store.
    Store(&'a mut Bucket),
}

impl Places<'_> {
    /// What people call the data set.
    pub fn location(&self, set: &DataSet) -> PathBuf {
        match self {
            Self::Disk => set.data.clone(),
            Self::Store(bucket) => bucket.location().into(),
        }
    }

    /// The folder that names begin from, and the tables of the data set; `None` where it has none.
    ///
    /// # Errors
    /// When they cannot be found out.
    pub fn find(&mut self, set: &DataSet) -> Result<Option<(PathBuf, Option<Found>)>, DatasetError> {
        match self {
            Self::Disk => on_disk(set),
            Self::Store(bucket) => in_store(set, bucket).map(Some),
        }
    }

    /// The tables that a path or a pattern names, relative to `root`.
    ///
    /// # Errors
    /// When it names what is not there.
    pub fn files_at(&mut self, root: &Path, place: &str) -> Result<Vec<PathBuf>, DatasetError> {
        match self {
            Self::Disk => files_at(root, Path::new(place)),
            Self::Store(bucket) => bucket.resolve(place, TABLES),
        }
    }

    /// A table, as it is now.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn part(&self, split: Split, path: &Path, root: &Path) -> Result<Part, DatasetError> {
        Ok(match self {
            Self::Disk => {
                let meta = path.metadata().map_err(DatasetError::io("look at", path))?;
                let name = escaped(&path.strip_prefix(root).unwrap_or(path)).to_string();
                let file = IndexedFile::new(path.to_owned(), name, &meta);
                Part { split, file, stamp: stamp(&meta), is_lasting: is_settled(&meta) }
            }
            Self::Store(bucket) => {
                let file = bucket.file(path);
                Part { split, stamp: file.remote_stamp().unwrap_or_default(), file, is_lasting: true }
            }
        })
    }
}

fn only_training(files: Vec<PathBuf>) -> Found {
    Found { splits: BTreeMap::from([("train".to_owned(), files)]), others: 0 }
}

fn in_store(set: &DataSet, bucket: &mut Bucket) -> Result<(PathBuf, Option<Found>), DatasetError> {
    let (root, data) = (bucket.base(), set.data.to_str().unwrap_or_default());
    if bucket.is_folder() {
        let found = match layout::saved_among(&root, &bucket.all(SAVED)?) {
            Some(saved) => Some(saved),
            None => layout::find_among(&root, bucket.all(TABLES)?).map_err(refused)?,
        };
        return Ok((root, found));
    }
    if !Url::is_url(data) {
        return Ok((root, None));
    }
    let files = bucket.resolve(data, TABLES)?;
    let is_one = files.len() == 1 && !pattern::is_pattern(data.split('?').next().unwrap_or_default());
    let found = if is_one { only_training(files) } else { layout::sort(&root, files).map_err(refused)? };
    Ok((root, Some(found)))
}

fn on_disk(set: &DataSet) -> Result<Option<(PathBuf, Option<Found>)>, DatasetError> {
    let data = &std::path::absolute(&set.data).unwrap_or_else(|_| set.data.clone());
    Ok(if data.is_dir() {
        Some((data.clone(), layout::find(data).map_err(refused)?))
    } else if !layout::is_table(data) {
        None
    } else if data.is_file() {
        Some((folder_of(data), Some(only_training(vec![data.clone()]))))
    } else {
        let root = folder_of(data);
        let files = expand(&std::env::current_dir().unwrap_or_default(), data)?;
        let sorted = layout::sort(&root, files).map_err(refused)?;
        Some((root, Some(sorted)))
    })
}

fn refused(refused: Refused) -> DatasetError {
    match refused {
        Refused::Io(folder, error) => DatasetError::io("list", &folder)(error),
        Refused::Two(first, second) => {
            let cause = format!("and {} are two data sets (name one of them with --data)", escaped(&second));
            DatasetError::Unusable { path: first, cause }
        }
    }
}

/// The folder of a path, or the one ahead of a pattern's first wildcard.
fn folder_of(path: &Path) -> PathBuf {
    let folder = if path.exists() { path.parent() } else { path.to_str().map(|text| Path::new(pattern::folder(text))) };
    folder.unwrap_or(path).to_owned()
}

/// The tables that a path or a pattern names, relative to `root`.
fn files_at(root: &Path, place: &Path) -> Result<Vec<PathBuf>, DatasetError> {
    let folder = root.join(place);
    if !folder.is_dir() {
        return if layout::is_table(place) { expand(root, place) } else { Ok(Vec::new()) };
    }
    let mut files = Vec::new();
    layout::list(&folder, 1, &mut files).map_err(refused)?;
    files.sort_unstable_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    Ok(files)
}

/// The files that a pattern stands for, relative to `base`.
fn expand(base: &Path, pattern: &Path) -> Result<Vec<PathBuf>, DatasetError> {
    let path = base.join(pattern);
    let refused = |cause: String| DatasetError::Unusable { path: path.clone(), cause };
    let Some(text) = pattern.to_str().filter(|_| !path.is_file()) else {
        return Ok(vec![path]);
    };
    let mut files = Vec::new();
    let malformed = |Malformed { cause, .. }| refused(format!("is no pattern: {cause}"));
    for name in pattern::names(text).map_err(malformed)? {
        let path = base.join(&name);
        files.extend(
            pattern::files(base, &name).map_err(DatasetError::io("list", &path))?.unwrap_or_else(|| vec![path]),
        );
    }
    match files.iter().find(|file| !file.is_file()) {
        Some(file) => Err(refused(format!("stands for {}, which is no file", escaped(&file)))),
        None if files.is_empty() => Err(refused("matches no file".to_owned())),
        None => Ok(files),
    }
}

//! What is found in a folder: images, and what is known of each.

use super::super::DatasetError;
use super::super::detours::Detours;
use super::super::image_names::is_image;
use super::super::split_words::KINDS;
use super::super::tally::{Ignored, Tally};
use crate::types::Split;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use walkdir::WalkDir;

/// One image and what is known of it.
pub struct Entry {
    /// Relative to the root.
    pub path: Vec<u8>,
    /// As they are written.
    pub labels: Vec<String>,
    /// A position in [`KINDS`].
    pub kind: usize,
}

impl Entry {
    /// Its split.
    pub fn split(&self) -> Split {
        KINDS[self.kind].0
    }
}

/// What a folder turned out to hold.
pub struct Found {
    /// In any order.
    pub entries: Vec<Entry>,
    /// Whether an image may have several labels.
    pub is_multi: bool,
    /// What a user should know.
    pub notes: Vec<String>,
}

/// The images below `folder`, relative to it; links are followed, names with a leading dot not seen, and other files than `table` counted.
pub fn images(folder: &Path, table: &Path, tally: &mut Tally) -> Result<Vec<Vec<u8>>, DatasetError> {
    let walk = WalkDir::new(folder).follow_links(true).min_depth(1).into_iter();
    let (mut images, mut detours) = (Vec::new(), Detours::default());
    for entry in walk.filter_entry(|entry| !entry.file_name().as_bytes().starts_with(b".")) {
        match entry {
            Ok(entry) if entry.file_type().is_dir() && !detours.enter(entry.depth() - 1, entry.path_is_symlink()) => {
                let below = entry.path().strip_prefix(folder).expect("below it").to_owned();
                return Err(DatasetError::TooManyLinks { root: folder.to_owned(), folder: below });
            }
            Ok(entry) if !entry.file_type().is_file() || entry.path() == table => {}
            Ok(entry) if is_image(entry.path()) => {
                let path = entry.path().strip_prefix(folder).expect("below it");
                images.push(path.as_os_str().as_bytes().to_vec());
            }
            Ok(_) => tally.file(Ignored::NotAnImage),
            Err(error) if error.loop_ancestor().is_some() => tally.cycle(),
            Err(error) if error.io_error().is_some_and(|error| error.kind() == io::ErrorKind::NotFound) => {
                tally.file(Ignored::Broken);
            }
            Err(error) => {
                let path = error.path().unwrap_or(folder).to_owned();
                let source = error.into_io_error().unwrap_or_else(|| io::ErrorKind::Other.into());
                return Err(DatasetError::Io { action: "list", path, source });
            }
        }
    }
    images.sort_unstable();
    Ok(images)
}

/// A path without its image's ending.
pub fn stem(path: &[u8]) -> &[u8] {
    path.iter().rposition(|&byte| byte == b'.').map_or(path, |dot| &path[..dot])
}

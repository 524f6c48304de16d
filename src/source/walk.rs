//! The walk over an image folder, in the order of the bytes of the relative paths.

use super::DatasetError;
use super::index::{Index, PushError, place};
use super::remembered::Walk;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Extensions of raster images, lower case. They only select; the decoder looks at the content.
const EXTENSIONS: [&str; 13] =
    ["jpeg", "jpg", "jpe", "png", "bmp", "gif", "tif", "tiff", "webp", "ppm", "pgm", "pbm", "pnm"];

/// Whether a name is that of an image.
pub fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(OsStr::to_str);
    extension.is_some_and(|extension| EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known)))
}

/// Indexes the folder `root`; its walk is remembered in `cache_dir`. Labels are not assigned yet.
pub fn index(root: &Path, cache_dir: &Path) -> Result<Index, DatasetError> {
    let name = format!("index-{:016x}", xxhash_rust::xxh3::xxh3_64(root.as_os_str().as_bytes()));
    let file = cache_dir.join(name);
    if let Some(index) = Walk::load(&file, root) {
        return Ok(index);
    }
    let (mut walked, mut files) = (Walk::new(), 0);
    walk(root, Path::new(""), &mut walked, &mut files)?;
    if walked.images() == 0 {
        return Err(DatasetError::NotAnImageFolder { root: root.to_owned(), found: files });
    }
    walked.save(&file, root);
    Ok(walked.into_index())
}

/// Collects the images below `root/relative`; links to folders are not followed, names with a leading dot not seen.
pub(super) fn walk(root: &Path, relative: &Path, walked: &mut Walk, files: &mut usize) -> Result<(), DatasetError> {
    let dir = root.join(relative);
    walked.enter(root, relative).map_err(DatasetError::io("look at", &dir))?;
    let (folder, mut listing) = (relative.as_os_str().as_bytes(), Listing::default());
    let is_class = place(folder).is_some();
    for entry in std::fs::read_dir(&dir).map_err(DatasetError::io("list", &dir))? {
        let entry = entry.map_err(DatasetError::io("list", &dir))?;
        let name = entry.file_name();
        if name.as_bytes().starts_with(b".") {
            continue;
        }
        let kind = entry.file_type().map_err(DatasetError::io("look at", &dir))?;
        if kind.is_symlink() {
            walked.depends();
        }
        if kind.is_dir() {
            listing.push(name.as_bytes(), b"/");
        } else if kind.is_file() || (kind.is_symlink() && entry.path().is_file()) {
            *files += 1;
            if is_class && is_image(Path::new(&name)) {
                listing.push(name.as_bytes(), b"");
            }
        }
    }
    for name in listing.sorted() {
        match name.strip_suffix(b"/") {
            Some(name) => walk(root, &relative.join(OsStr::from_bytes(name)), walked, files)?,
            None => walked.image(folder, name).map_err(|error| match error {
                PushError::Full(split) => DatasetError::TooManyNames { root: root.to_owned(), split },
                PushError::NotInSplit => unreachable!("only images of class folders are listed"),
            })?,
        }
    }
    Ok(())
}

/// The entries of one folder, packed.
///
/// A subfolder's name ends with `/`, so that sorting the names and walking each subfolder in its turn visits the images in the order of
/// their whole paths: no name holds a `/`, hence an entry compares with all that is below a subfolder as it does with the subfolder itself.
#[derive(Default)]
struct Listing {
    names: Vec<u8>,
    /// Start and end of each name.
    entries: Vec<(usize, usize)>,
}

impl Listing {
    fn push(&mut self, name: &[u8], suffix: &[u8]) {
        let start = self.names.len();
        self.names.extend_from_slice(name);
        self.names.extend_from_slice(suffix);
        self.entries.push((start, self.names.len()));
    }

    fn sorted(&mut self) -> impl Iterator<Item = &[u8]> {
        let (names, entries) = (&self.names, &mut self.entries);
        entries.sort_unstable_by_key(|&(start, end)| &names[start..end]);
        entries.iter().map(|&(start, end)| &names[start..end])
    }
}

//! The walk over a folder, remembered: good as long as every folder below it is as it was.
//!
//! A folder's change time, and so its [`stamp`], moves whenever a name in it comes, goes or changes. What a file holds is not
//! remembered, so that may change as it likes.

use crate::stamp::{is_settled, stamp};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// First bytes of a file of this version.
const MAGIC: &[u8] = b"mixd index 1\0";
/// Fewer files are walked as fast as they are read.
const FILES_MIN: usize = 1_000;
/// What a walk saw.
#[derive(Default)]
pub struct Walk {
    /// Images, relative to the root, sorted by the bytes of their paths.
    pub images: Vec<PathBuf>,
    /// Folders, relative to the root, each as it was before it was listed.
    folders: Vec<(PathBuf, u64)>,
    /// Whether the same folders always mean the same walk.
    lasting: bool,
}

impl Walk {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self { lasting: true, ..Self::default() }
    }

    /// Notes a folder that is about to be listed.
    pub fn enter(&mut self, root: &Path, folder: &Path) -> io::Result<()> {
        let meta = std::fs::metadata(root.join(folder))?;
        self.lasting &= is_settled(&meta);
        self.folders.push((folder.to_owned(), stamp(&meta)));
        Ok(())
    }

    /// Notes that the walk depends on what lies elsewhere.
    pub fn depends(&mut self) {
        self.lasting = false;
    }

    /// The walk over `root` that `file` remembers; `None` when there is none, or anything has changed.
    pub fn load(file: &Path, root: &Path) -> Option<Self> {
        let bytes = std::fs::read(file).ok()?;
        let (content, hash) = bytes.split_last_chunk::<8>()?;
        if xxhash_rust::xxh3::xxh3_64(content) != u64::from_le_bytes(*hash) {
            return None;
        }
        let mut fields = content.strip_prefix(MAGIC)?.split(|byte| *byte == 0).map(OsStr::from_bytes);
        if fields.next()? != root {
            return None;
        }
        // Pairs of a folder and its stamp, an empty stamp, then the images.
        while let Some(expected) = fields.next()?.to_str().filter(|stamp| !stamp.is_empty()) {
            let found = stamp(&std::fs::metadata(root.join(fields.next()?)).ok()?);
            if found.to_string() != expected {
                return None;
            }
        }
        let images = fields.filter(|path| !path.is_empty()).map(PathBuf::from).collect();
        Some(Self { images, ..Self::default() })
    }

    /// Remembers the walk, if it is worth it. A failure only costs the next walk.
    pub fn save(&self, file: &Path, root: &Path) {
        if self.images.len() < FILES_MIN || !self.lasting {
            return;
        }
        let mut bytes = MAGIC.to_vec();
        let mut field = |text: &[u8]| {
            bytes.extend_from_slice(text);
            bytes.push(0);
        };
        field(root.as_os_str().as_bytes());
        for (folder, stamp) in &self.folders {
            field(stamp.to_string().as_bytes());
            field(folder.as_os_str().as_bytes());
        }
        field(b"");
        self.images.iter().for_each(|image| field(image.as_os_str().as_bytes()));
        bytes.extend(xxhash_rust::xxh3::xxh3_64(&bytes).to_le_bytes());
        let partial = file.with_extension(format!("{}.partial", std::process::id()));
        let written =
            file.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&partial, bytes));
        if written.and_then(|()| std::fs::rename(&partial, file)).is_err() {
            let _ = std::fs::remove_file(&partial);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Dataset;
    use super::*;
    use crate::types::Split;
    use std::time::{Duration, Instant};

    /// A folder of 1,100 files whose change times have settled.
    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for class in ["train/a", "val/a"] {
            std::fs::create_dir_all(dir.path().join(class)).unwrap();
            (0..550).for_each(|nth| std::fs::write(dir.path().join(format!("{class}/{nth}.jpg")), "").unwrap());
        }
        dir
    }

    /// Opens until the walk is remembered, which it is once the folders have settled.
    fn remembered(dir: &Path, cache: &Path) -> PathBuf {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            Dataset::open(dir, Some(cache), &mut |_| {}).unwrap();
            if let Some(file) = std::fs::read_dir(cache).into_iter().flatten().flatten().next() {
                return file.path();
            }
            assert!(Instant::now() < deadline, "never remembered");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_walk_is_remembered_until_something_changes() {
        let (dir, cache) = (folder(), tempfile::tempdir().unwrap());
        let root = dir.path().canonicalize().unwrap();
        let walked = Dataset::open(dir.path(), Some(cache.path()), &mut |_| {}).unwrap();
        let file = remembered(dir.path(), cache.path());
        assert_eq!(Walk::load(&file, &root).unwrap().images.len(), 1_100);
        assert!(Walk::load(&file, Path::new("/elsewhere")).is_none());
        assert_eq!(Dataset::open(dir.path(), Some(cache.path()), &mut |_| {}).unwrap(), walked);
        std::fs::write(dir.path().join("train/a/new.jpg"), "").unwrap();
        assert!(Walk::load(&file, &root).is_none(), "a new file was not noticed");
        let dataset = Dataset::open(dir.path(), Some(cache.path()), &mut |_| {}).unwrap();
        assert_eq!(dataset.samples(Split::Train).len(), 551);
    }

    #[test]
    fn a_damaged_file_is_not_believed() {
        let (dir, cache) = (folder(), tempfile::tempdir().unwrap());
        let root = dir.path().canonicalize().unwrap();
        let file = remembered(dir.path(), cache.path());
        let whole = std::fs::read(&file).unwrap();
        for at in [0, 20, whole.len() / 2, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&file, bytes).unwrap();
            assert!(Walk::load(&file, &root).is_none(), "byte {at}");
        }
        std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
        assert!(Walk::load(&file, &root).is_none());
    }

    #[test]
    fn a_walk_over_links_is_not_remembered() {
        let (dir, cache) = (folder(), tempfile::tempdir().unwrap());
        let root = dir.path().canonicalize().unwrap();
        std::os::unix::fs::symlink(root.join("val/a/1.jpg"), root.join("train/a/link.jpg")).unwrap();
        let mut walk = Walk::new();
        super::super::index::walk(&root, Path::new(""), &mut walk, &mut 0).unwrap();
        assert!(!walk.lasting && walk.images.len() == 1_101);
        walk.save(&cache.path().join("index"), &root);
        assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
    }
}

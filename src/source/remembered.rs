//! The walk over a folder, remembered: good as long as every folder below it is as it was.
//!
//! A folder's change time, and so its [`stamp`], moves whenever a name in it comes, goes or changes. What a file holds is not
//! remembered, so that may change as it likes.
//!
//! The file is a sequence of fields, each ended by a zero byte: [`MAGIC`], the root, a stamp and a path for each folder, an empty stamp, then
//! the path of each image in the order of the index. The hash of all that ends it. It is read and written as a stream, so a load
//! takes no memory beside the index.

use super::index::{Index, PushError};
use crate::stamp::{is_settled, stamp};
use crate::types::Split;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// First bytes of a file of this version.
const MAGIC: &[u8] = b"mixd index 1\0";
/// Fewer files are walked as fast as they are read.
const FILES_MIN: u32 = 1_000;
const HASH_BYTES: u64 = size_of::<u64>() as u64;
const BUFFER_BYTES: usize = 256 << 10;

/// What a walk saw.
#[derive(Default)]
pub struct Walk {
    /// The images so far, without labels.
    index: Index,
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

    /// Adds an image; they come in the order of the bytes of their paths.
    pub fn image(&mut self, folder: &[u8], name: &[u8]) -> Result<(), PushError> {
        self.index.push(folder, name)
    }

    /// Notes that the walk depends on what lies elsewhere.
    pub fn depends(&mut self) {
        self.lasting = false;
    }

    /// How many images were seen.
    pub fn images(&self) -> u64 {
        Split::ALL.iter().map(|&split| u64::from(self.index.len(split))).sum()
    }

    /// The images.
    pub fn into_index(self) -> Index {
        self.index
    }

    /// The images below `root` that `file` remembers; `None` when there is no such file, or anything has changed.
    pub fn load(file: &Path, root: &Path) -> Option<Index> {
        let file = File::open(file).ok()?;
        let content_bytes = file.metadata().ok()?.len().checked_sub(HASH_BYTES)?;
        let content = Hashing { inner: file.take(content_bytes), hash: Xxh3::new() };
        let mut content = BufReader::with_capacity(BUFFER_BYTES, content);
        let mut magic = [0; MAGIC.len()];
        content.read_exact(&mut magic).ok()?;
        let mut field = Vec::new();
        if magic != MAGIC || next_field(&mut content, &mut field)? != root.as_os_str().as_bytes() {
            return None;
        }
        let mut expected = String::new();
        loop {
            expected.clear();
            expected.push_str(std::str::from_utf8(next_field(&mut content, &mut field)?).ok()?);
            if expected.is_empty() {
                break;
            }
            let folder = Path::new(OsStr::from_bytes(next_field(&mut content, &mut field)?));
            let found = stamp(&std::fs::metadata(root.join(folder)).ok()?);
            if found.to_string() != expected {
                return None;
            }
        }
        let mut index = Index::default();
        while let Some(path) = next_field(&mut content, &mut field) {
            index.push_path(path).ok()?;
        }
        // Nothing of the index is believed before the hash has proved that the file is whole.
        let Hashing { inner, hash } = content.into_inner();
        let mut expected = Vec::new();
        inner.into_inner().read_to_end(&mut expected).ok()?;
        (*expected == hash.digest().to_le_bytes()).then_some(index)
    }

    /// Remembers the walk, if it is worth it. A failure only costs the next walk.
    pub fn save(&self, file: &Path, root: &Path) {
        if self.images() < u64::from(FILES_MIN) || !self.lasting {
            return;
        }
        let partial = file.with_extension(format!("{}.partial", std::process::id()));
        let written = file
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| self.write(File::create(&partial)?, root))
            .and_then(|()| std::fs::rename(&partial, file));
        if written.is_err() {
            let _ = std::fs::remove_file(&partial);
        }
    }

    fn write(&self, file: File, root: &Path) -> io::Result<()> {
        let hashing = Hashing { inner: file, hash: Xxh3::new() };
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, hashing);
        out.write_all(MAGIC)?;
        let mut field = |parts: &[&[u8]]| {
            parts.iter().try_for_each(|part| out.write_all(part))?;
            out.write_all(&[0])
        };
        field(&[root.as_os_str().as_bytes()])?;
        for (folder, stamp) in &self.folders {
            field(&[stamp.to_string().as_bytes()])?;
            field(&[folder.as_os_str().as_bytes()])?;
        }
        field(&[])?;
        for [folder, name] in Split::ALL.iter().flat_map(|&split| self.index.paths(split)) {
            field(&[folder, b"/", name])?;
        }
        let Hashing { mut inner, hash } = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        inner.write_all(&hash.digest().to_le_bytes())
    }
}

/// The next field, without the zero that ends it; `None` at the end of the content.
fn next_field<'a>(content: &mut impl BufRead, field: &'a mut Vec<u8>) -> Option<&'a [u8]> {
    field.clear();
    content.read_until(0, field).ok()?;
    field.strip_suffix(&[0])
}

/// Hashes what passes through.
struct Hashing<T> {
    inner: T,
    hash: Xxh3,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(into)?;
        self.hash.update(&into[..read]);
        Ok(read)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Folder, Source};
    use super::*;
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
            Folder::open(dir, cache, &mut |_| {}).unwrap();
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
        let walked = Folder::open(dir.path(), cache.path(), &mut |_| {}).unwrap();
        let file = remembered(dir.path(), cache.path());
        let loaded = Walk::load(&file, &root).unwrap();
        assert_eq!(loaded.len(Split::Train) + loaded.len(Split::Val), 1_100);
        assert!(Walk::load(&file, Path::new("/elsewhere")).is_none());
        assert_eq!(Folder::open(dir.path(), cache.path(), &mut |_| {}).unwrap(), walked);
        std::fs::write(dir.path().join("train/a/new.jpg"), "").unwrap();
        assert!(Walk::load(&file, &root).is_none(), "a new file was not noticed");
        let source = Folder::open(dir.path(), cache.path(), &mut |_| {}).unwrap();
        assert_eq!(source.len(Split::Train), 551);
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
        super::super::walk::walk(&root, Path::new(""), &mut walk, &mut 0).unwrap();
        assert!(!walk.lasting && walk.images() == 1_101);
        walk.save(&cache.path().join("index"), &root);
        assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
    }
}

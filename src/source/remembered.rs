//! The walk over a folder, remembered: good as long as every folder below it is as it was.
//!
//! A folder's change time, and so its [`stamp`], moves whenever a name in it comes, goes or changes. What a file holds is not
//! remembered, so that may change as it likes.
//!
//! A folder behind a link is stamped by way of the link, so a link that leads elsewhere is noticed. Where a walk saw links to files, or links
//! that it did not follow, other folders decide what they lead to: such a walk is not remembered.
//!
//! The file is a sequence of fields, each ended by a zero byte: [`MAGIC`], the root, where its splits are, a stamp and a path for each folder,
//! an empty stamp, the notes, an empty one, then for each split its folders: path, start and end of the class in it and number of images, the
//! images' names; an empty path ends the split. The hash of all that ends the file. It is read and written as a stream, so a load takes no
//! memory beside the index.

use super::index::{Full, Index, Run};
use crate::stamp::{is_settled, stamp};
use crate::types::Split;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// First bytes of a file of this version.
const MAGIC: &[u8] = b"mixd index 2\0";
/// Fewer files are walked as fast as they are read.
const FILES_MIN: u64 = 1_000;
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

    /// Adds an image; those of a split come in the order of the bytes of their paths.
    pub fn image(&mut self, split: Split, folder: &[u8], class: Range<usize>, name: &[u8]) -> Result<(), Full> {
        self.index.push(split, folder, class, name)
    }

    /// Notes that the walk depends on what lies elsewhere.
    pub fn depends(&mut self) {
        self.lasting = false;
    }

    /// How many images of a split were seen.
    pub fn images(&self, split: Split) -> u32 {
        self.index.len(split)
    }

    /// The images.
    pub fn into_index(self) -> Index {
        self.index
    }

    /// The images and notes that `file` remembers of `root` with these splits; `None` when there is no such file, or anything has changed.
    pub fn load(file: &Path, root: &Path, splits: &str) -> Option<(Index, Vec<String>)> {
        let file = File::open(file).ok()?;
        let content_bytes = file.metadata().ok()?.len().checked_sub(HASH_BYTES)?;
        let content = Hashing { inner: file.take(content_bytes), hash: Xxh3::new() };
        let mut content = BufReader::with_capacity(BUFFER_BYTES, content);
        let mut magic = [0; MAGIC.len()];
        content.read_exact(&mut magic).ok()?;
        let mut field = Vec::new();
        if magic != MAGIC
            || next_field(&mut content, &mut field)? != root.as_os_str().as_bytes()
            || next_field(&mut content, &mut field)? != splits.as_bytes()
        {
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
        let mut notes = Vec::new();
        loop {
            match std::str::from_utf8(next_field(&mut content, &mut field)?).ok()? {
                "" => break,
                note => notes.push(note.to_owned()),
            }
        }
        let index = read_images(&mut content)?;
        if next_field(&mut content, &mut field).is_some() {
            return None;
        }
        // Nothing of the index is believed before the hash has proved that the file is whole.
        let Hashing { inner, hash } = content.into_inner();
        let mut expected = Vec::new();
        inner.into_inner().read_to_end(&mut expected).ok()?;
        (*expected == hash.digest().to_le_bytes()).then_some((index, notes))
    }

    /// Remembers the walk, if it is worth it. A failure only costs the next walk.
    pub fn save(&self, file: &Path, root: &Path, splits: &str, notes: &[String]) {
        let images: u64 = Split::ALL.iter().map(|&split| u64::from(self.images(split))).sum();
        if images < FILES_MIN || !self.lasting {
            return;
        }
        let partial = file.with_extension(format!("{}.partial", std::process::id()));
        let written = file
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| self.write(File::create(&partial)?, root, splits, notes))
            .and_then(|()| std::fs::rename(&partial, file));
        if written.is_err() {
            let _ = std::fs::remove_file(&partial);
        }
    }

    fn write(&self, file: File, root: &Path, splits: &str, notes: &[String]) -> io::Result<()> {
        let hashing = Hashing { inner: file, hash: Xxh3::new() };
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, hashing);
        out.write_all(MAGIC)?;
        let mut field = |bytes: &[u8]| out.write_all(bytes).and_then(|()| out.write_all(&[0]));
        field(root.as_os_str().as_bytes())?;
        field(splits.as_bytes())?;
        for (folder, stamp) in &self.folders {
            field(stamp.to_string().as_bytes())?;
            field(folder.as_os_str().as_bytes())?;
        }
        field(&[])?;
        notes.iter().try_for_each(|note| field(note.as_bytes()))?;
        field(&[])?;
        for &split in Split::ALL {
            for Run { folder, class, samples } in self.index.runs(split) {
                field(folder)?;
                field(format!("{} {} {}", class.start, class.end, samples.len()).as_bytes())?;
                for sample in samples {
                    field(self.index.path(split, sample)[1])?;
                }
            }
            field(&[])?;
        }
        let Hashing { mut inner, hash } = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        inner.write_all(&hash.digest().to_le_bytes())
    }
}

/// Reads the images of both splits.
fn read_images(content: &mut impl BufRead) -> Option<Index> {
    let (mut index, mut folder, mut field) = (Index::default(), Vec::new(), Vec::new());
    for &split in Split::ALL {
        while !next_field(content, &mut folder)?.is_empty() {
            let path = folder.strip_suffix(&[0])?;
            let numbers = std::str::from_utf8(next_field(content, &mut field)?).ok()?;
            let mut numbers = numbers.split(' ').map(|number| number.parse::<usize>().ok());
            let (start, end, count) = (numbers.next()??, numbers.next()??, numbers.next()??);
            path.get(start..end)?;
            for _ in 0..count {
                index.push(split, path, start..end, next_field(content, &mut field)?).ok()?;
            }
        }
    }
    Some(index)
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
    use super::super::{Folder, Source, Splits};
    use super::*;
    use std::time::{Duration, Instant};

    /// A folder of 1,100 files whose change times have settled.
    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for class in ["train/a", "val/a"] {
            std::fs::create_dir_all(dir.path().join(class)).unwrap();
            (0..550).for_each(|nth| std::fs::write(dir.path().join(format!("{class}/{nth}.jpg")), "").unwrap());
        }
        std::fs::write(dir.path().join("train/a/notes.txt"), "").unwrap();
        dir
    }

    fn load(file: &Path, root: &Path) -> Option<(Index, Vec<String>)> {
        Walk::load(file, root, "")
    }

    /// Opens until the walk is remembered, which it is once the folders have settled.
    fn remembered(dir: &Path, cache: &Path) -> PathBuf {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            Folder::open(dir, &Splits::default(), cache, &mut |_| {}).unwrap();
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
        let walked = Folder::open(dir.path(), &Splits::default(), cache.path(), &mut |_| {}).unwrap();
        let file = remembered(dir.path(), cache.path());
        let (loaded, notes) = load(&file, &root).unwrap();
        assert_eq!(notes, ["1 file ignored: 1 not an image"]);
        assert_eq!(loaded.len(Split::Train) + loaded.len(Split::Val), 1_100);
        assert!(load(&file, Path::new("/elsewhere")).is_none());
        assert!(Walk::load(&file, &root, "train=x").is_none());
        assert_eq!(Folder::open(dir.path(), &Splits::default(), cache.path(), &mut |_| {}).unwrap(), walked);
        std::fs::write(dir.path().join("train/a/new.jpg"), "").unwrap();
        assert!(load(&file, &root).is_none(), "a new file was not noticed");
        let source = Folder::open(dir.path(), &Splits::default(), cache.path(), &mut |_| {}).unwrap();
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
            assert!(load(&file, &root).is_none(), "byte {at}");
        }
        std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
        assert!(load(&file, &root).is_none());
    }

    #[test]
    fn a_walk_over_links_to_folders_is_remembered_until_one_leads_elsewhere() {
        let (dir, cache) = (folder(), tempfile::tempdir().unwrap());
        let [pool, other] = ["pool", "other"].map(|name| {
            let pool = cache.path().join(name);
            std::fs::create_dir_all(pool.join("b")).unwrap();
            std::fs::write(pool.join("b/1.jpg"), "").unwrap();
            pool
        });
        let [cache, now] = ["cache", "now"].map(|name| cache.path().join(name));
        let link = |to: &Path, at: &Path| std::os::unix::fs::symlink(to, at).unwrap();
        link(&pool, &now);
        // By way of another link, which no folder of the set holds.
        link(&now.join("b"), &dir.path().join("train/b"));
        let root = dir.path().canonicalize().unwrap();
        let file = remembered(dir.path(), &cache);
        let (index, _) = load(&file, &root).unwrap();
        assert_eq!(index.len(Split::Train), 551);
        std::fs::remove_file(&now).unwrap();
        link(&other, &now);
        assert!(load(&file, &root).is_none(), "a link that leads elsewhere was not noticed");
    }

    #[test]
    fn a_walk_over_links_to_files_is_not_remembered() {
        let (dir, cache) = (folder(), tempfile::tempdir().unwrap());
        let root = dir.path().canonicalize().unwrap();
        std::os::unix::fs::symlink(root.join("val/a/1.jpg"), root.join("train/a/link.jpg")).unwrap();
        let (walk, notes) = super::super::walk::walk(&root, &Splits::default()).unwrap();
        assert!(!walk.lasting && walk.images(Split::Train) == 551);
        walk.save(&cache.path().join("index"), &root, "", &notes);
        assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
    }
}

//! Archives of image folders: unpacked once, safely, into a cache folder.
//!
//! The cache is keyed by the archive's path, size and time of change. Unpacking goes to a folder beside the final one, which
//! gets its name when it is whole; a lock keeps two processes from doing it at once. Only regular files with an image's
//! name are written; links and special files never are, so nothing written can be led elsewhere.
//!
//! A manifest in the folder holds the number of images and a hash of their names. A folder that does not match its manifest, since a cleaner
//! of old files removed some, or that has none, is unpacked anew.

use super::index::Index;
use super::remembered::Walk;
use super::walk::{self, is_image};
use super::{DatasetError, Progress};
use crate::types::Split;
use flate2::bufread::MultiGzDecoder;
use rustix::fs::{FlockOperation, flock, syncfs};
use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use xxhash_rust::xxh3::Xxh3;

/// The most bytes that an archive may unpack to: 1 TiB.
const UNPACKED_BYTES_MAX: u64 = 1 << 40;
const TAR_BLOCK_BYTES: u64 = 512;
/// The manifest's file; the walk does not see names with a leading dot.
const MANIFEST: &str = ".mixd-manifest";

/// Unpacks `archive`, or finds it unpacked and whole; returns the folder and its images, which have no labels yet.
pub fn unpack(
    archive: &Path,
    cache_dir: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(PathBuf, Index), DatasetError> {
    let name = archive.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let lower = name.to_ascii_lowercase();
    let Some(ending) = [".tgz", ".tar.gz", ".tar"].into_iter().find(|ending| lower.ends_with(ending)) else {
        return Err(DatasetError::NotAnArchive(archive.to_owned()));
    };
    let archive = archive.canonicalize().map_err(DatasetError::io("find", archive))?;
    let meta = std::fs::metadata(&archive).map_err(DatasetError::io("look at", &archive))?;
    let mut key = archive.as_os_str().as_bytes().to_vec();
    for number in [meta.len() as i64, meta.mtime(), meta.mtime_nsec()] {
        key.extend(number.to_le_bytes());
    }
    let no_cache = |source| DatasetError::NoCache { path: cache_dir.to_owned(), source };
    std::fs::create_dir_all(cache_dir).map_err(no_cache)?;
    let stem = format!("{}-{:016x}", &name[..name.len() - ending.len()], xxhash_rust::xxh3::xxh3_64(&key));
    let [whole, partial, stale] =
        ["", ".partial", ".stale.partial"].map(|ending| cache_dir.join(stem.clone() + ending));
    if let Some(index) = whole_index(&whole, cache_dir)? {
        return Ok((whole, index));
    }
    let lock_path = cache_dir.join(format!("{stem}.lock"));
    let lock = File::create(&lock_path).map_err(no_cache)?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|errno| DatasetError::io("lock", &lock_path)(errno.into()))?;
    if let Some(index) = whole_index(&whole, cache_dir)? {
        return Ok((whole, index));
    }
    if whole.is_dir() {
        tracing::warn!("{} lacks images of its archive: it is unpacked anew", whole.display());
    }
    remove_partials(cache_dir, &[&partial, &stale]);
    std::fs::create_dir(&partial).map_err(no_cache)?;
    extract(&archive, &partial, meta.len(), progress).map_err(|error| {
        let _ = std::fs::remove_dir_all(&partial);
        DatasetError::Archive { path: archive.clone(), cause: error.to_string() }
    })?;
    let (mut walked, mut found) = (Walk::new(), 0);
    walk::walk(&partial, Path::new(""), &mut walked, &mut found)?;
    if walked.images() == 0 {
        let _ = std::fs::remove_dir_all(&partial);
        return Err(DatasetError::NotAnImageFolder { root: archive, found });
    }
    let path = partial.join(MANIFEST);
    std::fs::write(&path, manifest(&walked.into_index())).map_err(DatasetError::io("write", &path))?;
    // The name must not reach the disk before the content does.
    let written = File::open(&partial).and_then(|dir| Ok(syncfs(&dir)?));
    // Another daemon may read the old one: it is never away for longer than reads are retried.
    let moved = || if whole.is_dir() { std::fs::rename(&whole, &stale) } else { Ok(()) };
    let named = written.and_then(|()| moved()).and_then(|()| std::fs::rename(&partial, &whole));
    named.map_err(DatasetError::io("name", &whole))?;
    let _ = std::fs::remove_dir_all(&stale);
    let _ = std::fs::remove_file(&lock_path);
    let index = walk::index(&whole, cache_dir)?;
    Ok((whole, index))
}

/// The content of the manifest of a folder with these images.
fn manifest(index: &Index) -> String {
    let (mut hash, mut images) = (Xxh3::new(), 0_u64);
    for [folder, name] in Split::ALL.iter().flat_map(|&split| index.paths(split)) {
        [folder, b"/", name, &[0]].iter().for_each(|part| hash.update(part));
        images += 1;
    }
    format!("mixd manifest 1: {images} images, {:016x}\n", hash.digest())
}

/// The images of an unpacked folder; `None` where it is missing, or does not hold what its manifest names.
fn whole_index(folder: &Path, cache_dir: &Path) -> Result<Option<Index>, DatasetError> {
    let path = folder.join(MANIFEST);
    let expected = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(DatasetError::io("read", &path))?,
    };
    Ok(Some(walk::index(folder, cache_dir)?).filter(|index| manifest(index) == expected))
}

/// Removes what unpackings that did not end have left: `own`, whose lock is held, and those whose locks are free.
fn remove_partials(cache_dir: &Path, own: &[&Path]) {
    for entry in std::fs::read_dir(cache_dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension() != Some("partial".as_ref()) {
            continue;
        }
        // Of `X.partial`, and of `X.stale.partial`.
        let stem = path.with_extension("");
        let stem = if stem.extension() == Some("stale".as_ref()) { stem.with_extension("") } else { stem };
        let mut lock_path = stem.into_os_string();
        lock_path.push(".lock");
        let is_free = |lock: File| flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
        if own.contains(&&*path) || File::open(&lock_path).is_ok_and(is_free) {
            let _ = std::fs::remove_dir_all(&path);
        }
    }
}

pub(super) fn default_cache_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("MIXD_CACHE_DIR").filter(|dir| !dir.is_empty()) {
        return dir.into();
    }
    let dirs = directories::ProjectDirs::from("", "", "mixd");
    dirs.map_or_else(|| std::env::temp_dir().join("mixd-cache"), |dirs| dirs.cache_dir().to_owned())
}

struct Counting<R> {
    inner: R,
    bytes: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(into)?;
        self.bytes.set(self.bytes.get() + read as u64);
        Ok(read)
    }
}

fn extract(archive: &Path, to: &Path, total_bytes: u64, progress: &mut dyn FnMut(Progress)) -> io::Result<()> {
    let read = Rc::new(Cell::new(0));
    let file = Counting { inner: File::open(archive)?, bytes: Rc::clone(&read) };
    let mut file = BufReader::with_capacity(1 << 20, file);
    let gzipped = file.fill_buf()?.starts_with(&[0x1F, 0x8B]);
    let inner: Box<dyn Read> = if gzipped { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let content_bytes = Rc::new(Cell::new(0));
    let content = Counting { inner, bytes: Rc::clone(&content_bytes) };
    let mut tar = tar::Archive::new(BufReader::with_capacity(1 << 18, content));
    let (mut unpacked_bytes, mut made, mut entries_end) = (0_u64, PathBuf::new(), 0);
    for entry in tar.entries()? {
        let mut entry = entry?;
        entries_end = entry
            .raw_file_position()
            .saturating_add(entry.size().div_ceil(TAR_BLOCK_BYTES).saturating_mul(TAR_BLOCK_BYTES));
        let path = entry.path()?.into_owned();
        let mut target = to.to_owned();
        for part in path.components() {
            match part {
                Component::Normal(name) => target.push(name),
                Component::CurDir => {}
                _ => return Err(io::Error::other(format!("{} would lie outside of the folder", path.display()))),
            }
        }
        if !entry.header().entry_type().is_file() || !is_image(&path) {
            continue;
        }
        unpacked_bytes = unpacked_bytes.saturating_add(entry.size());
        if unpacked_bytes > UNPACKED_BYTES_MAX {
            return Err(io::Error::other(format!("it holds more than {UNPACKED_BYTES_MAX} bytes")));
        }
        let dir = target.parent().expect("inside the folder");
        if dir != made {
            std::fs::create_dir_all(dir)?;
            made = dir.to_owned();
        }
        io::copy(&mut entry, &mut File::create(&target)?)?;
        progress(Progress { read_bytes: read.get(), total_bytes });
    }
    // To the very end, where gzip's checksum stands.
    io::copy(&mut tar.into_inner(), &mut io::sink())?;
    if content_bytes.get() < entries_end.saturating_add(TAR_BLOCK_BYTES) {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "it is cut off: the block that ends a tar is missing",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Folder, Source};
    use super::*;
    use flate2::write::GzEncoder;
    use tar::{Builder, EntryType, Header};

    const IMAGES: [&str; 2] = ["set/train/a/1.jpg", "set/val/a/2.jpg"];

    struct Fixture {
        dir: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap() }
        }

        /// Writes `set.tgz` with the usual images and whatever `more` adds.
        fn archive(&self, more: impl FnOnce(&mut Builder<GzEncoder<File>>)) -> PathBuf {
            let path = self.dir.path().join("set.tgz");
            let mut builder = Builder::new(GzEncoder::new(File::create(&path).unwrap(), flate2::Compression::fast()));
            for image in IMAGES {
                add(&mut builder, image, EntryType::Regular, b"pixels");
            }
            more(&mut builder);
            builder.into_inner().unwrap().finish().unwrap();
            path
        }

        fn open(&self, archive: &Path) -> Result<Folder, DatasetError> {
            Folder::open(archive, &self.dir.path().join("cache"), &mut |_| {})
        }
    }

    fn root(source: &Folder) -> PathBuf {
        source.location().into()
    }

    /// Adds an entry without the checks that a well-meaning archiver makes.
    fn add(builder: &mut Builder<GzEncoder<File>>, name: &str, kind: EntryType, data: &[u8]) {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        if kind != EntryType::Regular {
            header.set_link_name("/etc").unwrap();
        }
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }

    #[test]
    fn an_archive_is_unpacked_once_and_reopened() {
        let fixture = Fixture::new();
        let archive = fixture.archive(|_| {});
        let source = fixture.open(&archive).unwrap();
        let file = root(&source).join(source.name(Split::Train, 0));
        assert_eq!(std::fs::read(&file).unwrap(), b"pixels");
        std::fs::write(&file, "changed").unwrap();
        assert_eq!(fixture.open(&archive).unwrap(), source);
        assert_eq!(std::fs::read(&file).unwrap(), b"changed", "unpacked again");
    }

    #[test]
    fn a_changed_archive_is_unpacked_anew() {
        let fixture = Fixture::new();
        let first = fixture.open(&fixture.archive(|_| {})).unwrap();
        let second = fixture.archive(|tar| add(tar, "set/train/b/3.jpg", EntryType::Regular, b"more"));
        let second = fixture.open(&second).unwrap();
        assert_ne!(root(&first), root(&second));
        assert_eq!(second.len(Split::Train), 2);
    }

    #[test]
    fn a_folder_that_lost_images_is_unpacked_anew() {
        let fixture = Fixture::new();
        let archive = fixture.archive(|tar| {
            for name in ["set/train/b/3.jpg", "set/train/b/4.jpg"] {
                add(tar, name, EntryType::Regular, b"more");
            }
        });
        let source = fixture.open(&archive).unwrap();
        let root = root(&source);
        for lost in [&["set/train/b/3.jpg"][..], &["set/val/a/2.jpg"], &["set/train/b/3.jpg", MANIFEST], &[MANIFEST]] {
            lost.iter().for_each(|path| std::fs::remove_file(root.join(path)).unwrap());
            // Beside the images that are left, which must not survive either.
            std::fs::write(root.join("set/train/a/1.jpg"), "changed").unwrap();
            assert_eq!(fixture.open(&archive).unwrap(), source, "{lost:?}");
            assert_eq!(std::fs::read(root.join("set/train/a/1.jpg")).unwrap(), b"pixels", "{lost:?}");
        }
        let names = std::fs::read_dir(root.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(names.collect::<Vec<_>>(), [root.file_name().unwrap()], "something was left");
    }

    #[test]
    fn an_image_that_vanishes_from_the_cache_has_a_clear_cause() {
        let fixture = Fixture::new();
        let source = fixture.open(&fixture.archive(|_| {})).unwrap();
        std::fs::remove_file(root(&source).join(source.name(Split::Train, 0))).unwrap();
        let error = source.read(Split::Train, 0, &mut Vec::new()).unwrap_err().to_string();
        assert!(
            error.contains("where the archive was unpacked") && error.contains("start the daemon again"),
            "{error}"
        );
    }

    #[test]
    fn nothing_is_written_outside_of_the_folder() {
        for name in ["../evil.jpg", "set/../../evil.jpg", "/tmp/mixd-evil.jpg"] {
            let fixture = Fixture::new();
            let archive = fixture.archive(|tar| add(tar, name, EntryType::Regular, b"evil"));
            let error = fixture.open(&archive).unwrap_err();
            assert!(error.to_string().contains("outside of the folder"), "{name}: {error}");
            assert!(!fixture.dir.path().join("evil.jpg").exists() && !Path::new("/tmp/mixd-evil.jpg").exists());
            assert!(!fixture.dir.path().join("cache/evil.jpg").exists());
        }
    }

    #[test]
    fn links_are_not_followed() {
        let fixture = Fixture::new();
        let archive = fixture.archive(|tar| {
            add(tar, "set/train/link", EntryType::Symlink, b"");
            add(tar, "set/train/a/hard.jpg", EntryType::Link, b"");
            add(tar, "set/train/link/3.jpg", EntryType::Regular, b"inside");
        });
        let source = fixture.open(&archive).unwrap();
        assert!(root(&source).join("set/train/link").is_dir());
        assert!(!root(&source).join("set/train/link").is_symlink());
        assert!(!root(&source).join("set/train/a/hard.jpg").exists());
    }

    #[test]
    fn a_partial_unpacking_is_never_taken_for_whole() {
        let fixture = Fixture::new();
        let archive = fixture.archive(|_| {});
        let whole = root(&fixture.open(&archive).unwrap());
        // As a process that was killed leaves it.
        let partial = whole.with_file_name(format!("{}.partial", whole.file_name().unwrap().to_str().unwrap()));
        std::fs::rename(&whole, &partial).unwrap();
        std::fs::remove_dir_all(partial.join("set/val")).unwrap();
        // And as one of another archive was left; a third is being written.
        let cache = whole.parent().unwrap();
        for name in ["dead", "alive"] {
            std::fs::create_dir(cache.join(name).with_extension("partial")).unwrap();
        }
        let [_dead, alive] =
            ["dead", "alive"].map(|name| File::create(cache.join(name).with_extension("lock")).unwrap());
        flock(&alive, FlockOperation::LockExclusive).unwrap();
        assert_eq!(fixture.open(&archive).unwrap().len(Split::Val), 1);
        assert!(!partial.exists() && !cache.join("dead.partial").exists() && cache.join("alive.partial").exists());
    }

    #[test]
    fn a_cut_archive_is_refused_and_leaves_nothing() {
        let fixture = Fixture::new();
        let archive = fixture.archive(|_| {});
        let bytes = std::fs::read(&archive).unwrap();
        std::fs::write(&archive, &bytes[..bytes.len() / 2]).unwrap();
        assert!(matches!(fixture.open(&archive), Err(DatasetError::Archive { .. })));
        // Between two entries, where nothing but the missing end gives it away.
        let mut plain = Vec::new();
        io::copy(&mut MultiGzDecoder::new(&*bytes), &mut plain).unwrap();
        let archive = fixture.dir.path().join("set.tar");
        std::fs::write(&archive, &plain[..4 * TAR_BLOCK_BYTES as usize]).unwrap();
        assert!(fixture.open(&archive).unwrap_err().to_string().contains("cut off"));
        let left = std::fs::read_dir(fixture.dir.path().join("cache")).unwrap();
        assert!(left.map(|entry| entry.unwrap().path()).all(|path| path.extension() == Some("lock".as_ref())));
    }
}

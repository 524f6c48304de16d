//! Decoded samples in a file, which outlives the daemon (`--cache-file`).
//!
//! A page of header, then an entry for every row that there can be, then the rows. The header's key stands for the data set and for
//! every setting that pixels depend on: a file with another key is emptied. An entry names the sample that its row holds, the
//! [stamp](crate::stamp) of the image file that it was decoded from, where that is known, and a hash of the row. A later daemon believes a row only if all three
//! are right when the sample is next asked for: a changed image, a row half written when the machine went down, a damaged disk are decoded anew.
//! Once another program has opened the file, each row is compared with its hash, as this process knows it, whenever it has been read.
#![expect(unsafe_code, reason = "typed views of a file that is mapped shared")]

use super::guard::Guard;
use super::watch::Watch;
use crate::escape::escaped;
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock, fstatvfs};
use rustix::io::{Errno, retry_on_intr};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: u64 = u64::from_le_bytes(*b"mixdrows");
const VERSION: u64 = 1;
const PAGE_BYTES: usize = 4096;
/// Why a cache file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Another daemon has it.
    #[error("{}: another mixd uses this cache file (give each daemon its own --cache-file)", escaped(.0))]
    InUse(PathBuf),
    /// Another program changed the file, or its disk was full, while it was served.
    #[error(
        "the cache file {} was truncated or overwritten while it was served, or its disk is full (open the feed again: images are \
         decoded anew, into a new file)", escaped(.0)
    )]
    Damaged(PathBuf),
    /// The file system has no room.
    #[error(
        "no room for a cache file of {need} bytes at {}: {free} bytes are free (use a smaller --cache)",
        escaped(path)
    )]
    NoSpace {
        /// Bytes needed.
        need: u64,
        /// Bytes free.
        free: u64,
        /// The file.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("cannot use the cache file {}: {source}", escaped(path))]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// What a file's rows depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Hash of the data set and of the settings.
    pub key: u64,
    /// Samples of the split.
    pub samples: u32,
    /// Bytes of a row.
    pub row_bytes: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Header {
    magic: u64,
    version: u64,
    key: u64,
    samples: u64,
    row_bytes: u64,
}

/// What a row holds.
#[repr(C)]
struct Entry {
    /// Of the image file, never 0; 0 where the row holds nothing for a later daemon.
    stamp: AtomicU64,
    hash: AtomicU64,
    sample: AtomicU32,
    unused: AtomicU32,
}

/// Rows in a file, and what they hold.
pub struct RowsFile {
    // Declared, and so dropped, before the mapping.
    file: MappedFile,
    map: MmapRaw,
    capacity: u32,
    key: Key,
    /// Of each row that this process has written or checked.
    hashes: Box<[AtomicU64]>,
}

impl RowsFile {
    /// Opens or makes the file, for `capacity` rows.
    ///
    /// # Errors
    /// When another daemon uses it, or there is no room, or a system call fails.
    pub fn open(path: &Path, key: Key, capacity: u32) -> Result<Self, FileError> {
        let failed = |source: io::Error| FileError::Io { path: path.to_owned(), source };
        let (file, watch) = open_locked(path)?;
        let header = Header {
            magic: MAGIC,
            version: VERSION,
            key: key.key,
            samples: key.samples.into(),
            row_bytes: key.row_bytes as u64,
        };
        let mut found = [0; size_of::<Header>()];
        let whole = std::os::unix::fs::FileExt::read_exact_at(&file, &mut found, 0).is_ok();
        if !whole || found != bytemuck::bytes_of(&header) {
            file.set_len(0).map_err(failed)?;
        }
        let bytes = first_row(key.samples) + capacity as usize * key.row_bytes;
        reserve(&file, path, bytes as u64)?;
        // Last: whoever finds the header finds room for all behind it.
        std::os::unix::fs::FileExt::write_all_at(&file, bytemuck::bytes_of(&header), 0).map_err(failed)?;
        let map = MmapOptions::new().len(bytes).map_raw(&file).map_err(failed)?;
        let file = MappedFile::new(file, watch, path, &map, bytes as u64);
        let hashes = (0..capacity).map(|_| AtomicU64::new(0)).collect();
        Ok(Self { file, map, capacity, key, hashes })
    }

    /// The file.
    pub fn file(&self) -> &MappedFile {
        &self.file
    }

    /// Rows.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.key.row_bytes
    }

    /// Where the rows begin in memory.
    pub fn rows(&self) -> *mut u8 {
        // SAFETY: inside the mapping, or at its end where there are no rows.
        unsafe { self.map.as_mut_ptr().add(first_row(self.key.samples)) }
    }

    /// The sample that a row may hold.
    pub fn sample_of(&self, row: u32) -> Option<u32> {
        let entry = self.entry(row);
        let sample = entry.sample.load(Ordering::Relaxed);
        (entry.stamp.load(Ordering::Acquire) != 0 && sample < self.key.samples).then_some(sample)
    }

    /// Whether a row holds `sample` as it was decoded from a file of this stamp.
    pub fn holds(&self, row: u32, sample: u32, stamp: u64, bytes: &[u8]) -> bool {
        let entry = self.entry(row);
        let hash = xxh3_64(bytes);
        let holds = entry.stamp.load(Ordering::Acquire) == stamp
            && entry.sample.load(Ordering::Relaxed) == sample
            && entry.hash.load(Ordering::Relaxed) == hash;
        if holds {
            self.hashes[row as usize].store(hash, Ordering::Relaxed);
        }
        holds
    }

    /// Notes that a row is going to be written: it holds nothing.
    pub fn clear(&self, row: u32) {
        self.entry(row).stamp.store(0, Ordering::SeqCst);
    }

    /// Notes what a row, in this process's own memory, holds; for later daemons only with a stamp.
    pub fn record(&self, row: u32, sample: u32, stamp: Option<u64>, bytes: &[u8]) {
        let (entry, hash) = (self.entry(row), xxh3_64(bytes));
        self.hashes[row as usize].store(hash, Ordering::Relaxed);
        entry.sample.store(sample, Ordering::Relaxed);
        entry.hash.store(hash, Ordering::Relaxed);
        entry.stamp.store(stamp.unwrap_or(0), Ordering::Release);
    }

    /// Marks the file as damaged unless a row, recorded or found to hold its sample, is as it was then.
    pub fn verify(&self, row: u32, bytes: &[u8]) {
        if self.hashes[row as usize].load(Ordering::Relaxed) != xxh3_64(bytes) {
            self.file.mark();
        }
    }

    fn entry(&self, row: u32) -> &Entry {
        assert!(row < self.capacity && self.capacity <= self.key.samples);
        // SAFETY: the mapping begins with a page of header and an entry for every sample; entries are atomics, of which any bits are
        // valid, and aligned, since a page is.
        unsafe { &*self.map.as_ptr().add(PAGE_BYTES).cast::<Entry>().add(row as usize) }
    }
}

/// A cache file that is locked and mapped. Dropped before the mapping.
pub struct MappedFile {
    guard: Guard,
    /// `None` where inotify is not to be had.
    watch: Option<Watch>,
    /// Holds the lock.
    file: File,
    /// The length that it had last, or less.
    bytes: AtomicU64,
}

impl MappedFile {
    /// The file at `path` of at least `bytes` bytes, which `map` maps; this process changes it only by the mapping and by [`reserve`](Self::reserve) from
    /// now on.
    pub(super) fn new(file: File, watch: Option<Watch>, path: &Path, map: &MmapRaw, bytes: u64) -> Self {
        watch.as_ref().inspect(|watch| watch.forget_changes());
        Self { guard: Guard::new(map.as_ptr(), map.len(), path), watch, file, bytes: AtomicU64::new(bytes) }
    }

    /// Whether another program may be writing to the file: what was read from the mapping is to be verified.
    pub fn is_suspect(&self) -> bool {
        self.watch.as_ref().is_none_or(Watch::is_opened)
    }

    /// Marks the file as damaged.
    pub(super) fn mark(&self) {
        self.guard.mark();
    }

    /// Checks that the file was not found damaged, nor changed by another program.
    ///
    /// # Errors
    /// [`FileError::Damaged`].
    pub fn check(&self) -> Result<(), FileError> {
        // A file that is cut is shorter before its last page is cleared, which raises no SIGBUS.
        // Loaded before the look: it may be growing.
        let bytes = self.bytes.load(Ordering::Acquire);
        let is_cut = || self.file.metadata().is_ok_and(|now| now.len() < bytes);
        if self.guard.is_damaged() || self.watch.as_ref().is_some_and(Watch::is_changed) || is_cut() {
            return Err(FileError::Damaged(self.guard.path().to_owned()));
        }
        Ok(())
    }

    /// Reserves bytes of the file.
    pub(super) fn reserve(&self, offset: u64, bytes: u64) -> Result<(), Errno> {
        let reserve = || retry_on_intr(|| fallocate(&self.file, FallocateFlags::empty(), offset, bytes));
        self.watch.as_ref().map_or_else(reserve, |watch| watch.change(reserve))?;
        self.bytes.fetch_max(offset + bytes, Ordering::Release);
        Ok(())
    }

    /// Removes a damaged file, so that a new one can be made at its path while feeds still map this one.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn discard(&self) -> Result<(), FileError> {
        let path = self.guard.path();
        let failed = |source: io::Error| FileError::Io { path: path.to_owned(), source };
        let is_same = |found: fs::Metadata| {
            self.file.metadata().is_ok_and(|own| (own.dev(), own.ino()) == (found.dev(), found.ino()))
        };
        if fs::metadata(path).is_ok_and(is_same) {
            // The path may be a link, which stays.
            fs::canonicalize(path).and_then(fs::remove_file).map_err(failed)?;
            // Frees its blocks now: the new file may need them.
            self.file.set_len(0).map_err(failed)?;
        }
        tracing::warn!("the cache file {} was damaged while it was served: a new one is made", escaped(&path));
        Ok(())
    }
}

/// Opens or makes a cache file for this process alone, and watches it.
///
/// # Errors
/// When another daemon uses it, or a system call fails.
pub(super) fn open_locked(path: &Path) -> Result<(File, Option<Watch>), FileError> {
    static WARNING: Once = Once::new();
    let failed = |source: io::Error| FileError::Io { path: path.to_owned(), source };
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path).map_err(failed)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
        Errno::WOULDBLOCK => FileError::InUse(path.to_owned()),
        errno => failed(errno.into()),
    })?;
    let warn = |error: Errno| {
        let text = "inotify fails: all that is read from cache files is compared with its hash, which takes time";
        WARNING.call_once(|| tracing::warn!("{text}: {error}"));
    };
    let watch = Watch::new(&file).map_err(warn).ok();
    Ok((file, watch))
}

/// Reserves the first `need` bytes of a file.
///
/// # Errors
/// When the file system has no room, or the system call fails.
pub(super) fn reserve(file: &File, path: &Path, need: u64) -> Result<(), FileError> {
    retry_on_intr(|| fallocate(file, FallocateFlags::empty(), 0, need)).map_err(|errno| match errno {
        Errno::NOSPC => {
            let free = fstatvfs(file).map_or(0, |fs| fs.f_bavail * fs.f_frsize);
            FileError::NoSpace { need, free, path: path.to_owned() }
        }
        errno => FileError::Io { path: path.to_owned(), source: errno.into() },
    })
}

/// Offset of the first row.
fn first_row(samples: u32) -> usize {
    (PAGE_BYTES + samples as usize * size_of::<Entry>()).next_multiple_of(PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key { key: 7, samples: 5, row_bytes: 64 };
    const STAMP: u64 = u64::MAX;

    fn fill(file: &RowsFile, row: u32, sample: u32, value: u8) -> [u8; 64] {
        let bytes = [value; 64];
        file.clear(row);
        // SAFETY: the row lies in the mapping, and nobody else has it.
        unsafe { file.rows().add(row as usize * 64).copy_from_nonoverlapping(bytes.as_ptr(), 64) };
        file.record(row, sample, Some(STAMP), &bytes);
        bytes
    }

    fn bytes(file: &RowsFile, row: u32) -> [u8; 64] {
        // SAFETY: as above.
        unsafe { file.rows().add(row as usize * 64).cast::<[u8; 64]>().read() }
    }

    #[test]
    fn rows_outlive_the_file_s_user_and_other_keys_empty_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows");
        let file = RowsFile::open(&path, KEY, 3).unwrap();
        fill(&file, 2, 4, 9);
        assert!(matches!(RowsFile::open(&path, KEY, 3), Err(FileError::InUse(_))));
        drop(file);
        for capacity in [3, 5, 4] {
            let file = RowsFile::open(&path, KEY, capacity).unwrap();
            assert_eq!((0..capacity).map(|row| file.sample_of(row)).collect::<Vec<_>>()[..3], [None, None, Some(4)]);
            assert!(file.holds(2, 4, STAMP, &bytes(&file, 2)));
            assert!(!file.holds(2, 3, STAMP, &bytes(&file, 2)), "another sample");
            assert!(!file.holds(2, 4, 1, &bytes(&file, 2)), "another file");
            assert!(!file.holds(2, 4, STAMP, &[8; 64]), "other bytes");
        }
        assert_eq!(RowsFile::open(&path, KEY, 2).unwrap().sample_of(1), None);
        for key in [Key { key: 8, ..KEY }, Key { samples: 6, ..KEY }, Key { row_bytes: 32, ..KEY }] {
            fill(&RowsFile::open(&path, KEY, 3).unwrap(), 2, 4, 9);
            let file = RowsFile::open(&path, key, 3).unwrap();
            assert_eq!(file.sample_of(2), None, "{key:?}");
        }
    }

    #[test]
    fn a_row_that_another_program_has_changed_is_found_once_it_has_opened_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows");
        let file = RowsFile::open(&path, KEY, 3).unwrap();
        let own = [1, 2].map(|row| (row, fill(&file, row, row, row as u8)));
        assert!(!file.file().is_suspect(), "nobody can have changed it");
        let other = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        assert!(file.file().is_suspect());
        own.iter().for_each(|(row, bytes)| file.verify(*row, bytes));
        assert!(file.file().check().is_ok(), "it is read by a backup, say");
        // Stores through its mapping raise no event; here a row and its entry, which fit together.
        let map = MmapOptions::new().map_raw(&other).unwrap();
        for (at, bytes) in [(first_row(KEY.samples) + 64, 64), (PAGE_BYTES + size_of::<Entry>(), size_of::<Entry>())] {
            // SAFETY: inside the mapping; both are of row 1, and then of row 2.
            unsafe { map.as_mut_ptr().add(at).copy_from(map.as_ptr().add(at + bytes), bytes) };
        }
        file.verify(2, &bytes(&file, 2));
        assert!(file.file().check().is_ok());
        file.verify(1, &bytes(&file, 1));
        assert!(matches!(file.file().check(), Err(FileError::Damaged(_))));
    }

    #[test]
    fn a_file_that_is_cut_within_a_page_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows");
        let mut file = RowsFile::open(&path, KEY, 3).unwrap();
        file.file.watch = None;
        assert!(file.file().check().is_ok());
        let length = std::fs::metadata(&path).unwrap().len();
        File::options().write(true).open(&path).unwrap().set_len(length - 1).unwrap();
        assert!(matches!(file.file().check(), Err(FileError::Damaged(_))));
    }

    #[test]
    fn a_cleared_row_holds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = RowsFile::open(&dir.path().join("rows"), KEY, 3).unwrap();
        let bytes = fill(&file, 1, 2, 3);
        file.clear(1);
        assert!(file.sample_of(1).is_none() && !file.holds(1, 2, STAMP, &bytes));
    }
}

//! The files that hold samples: opened when they are first read, and so many kept open as descriptors allow.

use super::super::remote::RemoteFile;
use super::super::{Ahead, ReadError, Stamp};
use crate::escape::escaped;
use crate::stamp::{is_settled, stamp};
use crate::status::Fetched;
use rustix::process::{Resource, getrlimit};
use std::collections::{HashMap, VecDeque};
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The most descriptors that are kept, and the fewest where there are few.
const KEPT_MAX: u64 = 1_024;
const KEPT_MIN: u64 = 8;
/// The part of the process's descriptors that are kept at most: trainers need theirs.
const KEPT_SHARE: u64 = 4;

/// A file as it was when it was indexed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexedFile {
    /// Where it is.
    pub path: PathBuf,
    /// How logs call it: its path from the data set's folder.
    pub name: String,
    origin: Origin,
}

/// What holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    /// The machine's file system.
    Local(Print),
    /// An object store.
    Remote(RemoteFile),
}

/// What tells a file's content from another's. Unlike a [`stamp`] it allows a `chmod`, a `chown` and a hard link that leave a trace
/// in the metadata, and the inode numbers of file systems that make them up anew (buckets mounted by FUSE). One without a trace, such as a `chmod` to
/// the mode that the file has, looks like a write whose time was set back, and counts as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Print {
    bytes: u64,
    modified: [i64; 2],
    inode: u64,
    /// Of the inode, which no program can set: a file that takes another's place has a later one, and so has one that was written to and got its
    /// time back.
    changed: [i64; 2],
    /// Mode, owners and number of links, a change of which moves that, too.
    attributes: [u64; 4],
}

impl Print {
    fn of(meta: &Metadata) -> Self {
        let [modified, changed] = [[meta.mtime(), meta.mtime_nsec()], [meta.ctime(), meta.ctime_nsec()]];
        let attributes = [meta.mode().into(), meta.uid().into(), meta.gid().into(), meta.nlink()];
        Self { bytes: meta.size(), modified, inode: meta.ino(), changed, attributes }
    }

    /// Whether a later print is of the same content.
    fn is_of_content(&self, later: &Self) -> bool {
        let is_explained = self.inode == later.inode && self.attributes != later.attributes;
        (self.changed == later.changed || is_explained) && self.bytes == later.bytes && self.modified == later.modified
    }
}

impl IndexedFile {
    /// The file at `path`, of which `meta` was read before it was indexed.
    pub fn new(path: PathBuf, name: String, meta: &Metadata) -> Self {
        Self { path, name, origin: Origin::Local(Print::of(meta)) }
    }

    /// An object, as it was found.
    pub fn remote(name: String, file: RemoteFile) -> Self {
        Self { path: file.location().into(), name, origin: Origin::Remote(file) }
    }

    /// Whether it is an object in a store.
    pub fn is_remote(&self) -> bool {
        matches!(self.origin, Origin::Remote(_))
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        match &self.origin {
            Origin::Local(print) => print.bytes,
            Origin::Remote(file) => file.bytes(),
        }
    }

    /// What an index of a remote file depends on; a local one's depends on its metadata.
    pub fn remote_stamp(&self) -> Option<Stamp> {
        match &self.origin {
            Origin::Local(_) => None,
            Origin::Remote(file) => Some(file.stamp()),
        }
    }

    /// Whether `meta` is that of the file as it was indexed.
    pub fn is_as_indexed(&self, meta: &Metadata) -> bool {
        matches!(&self.origin, Origin::Local(print) if print.is_of_content(&Print::of(meta)))
    }

    /// Opens it to be indexed.
    ///
    /// # Errors
    /// When that fails.
    pub fn open(&self) -> io::Result<Opened> {
        Ok(match &self.origin {
            Origin::Local(_) => Opened::Local(open(&self.path)?),
            Origin::Remote(file) => Opened::Remote(file.clone()),
        })
    }
}

/// A file that is being indexed.
#[derive(Debug)]
pub enum Opened {
    /// On the machine's file system.
    Local(File),
    /// In an object store; reads wait for its bytes.
    Remote(RemoteFile),
}

impl Opened {
    /// Its size.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn bytes(&self) -> io::Result<u64> {
        match self {
            Self::Local(file) => Ok(file.metadata()?.len()),
            Self::Remote(file) => Ok(file.bytes()),
        }
    }

    /// Whether it is still what `file` was.
    pub fn is_as_indexed(&self, file: &IndexedFile) -> bool {
        match self {
            Self::Local(opened) => opened.metadata().is_ok_and(|meta| file.is_as_indexed(&meta)),
            // An object that changes gives no more bytes.
            Self::Remote(_) => true,
        }
    }

    /// Fills `bytes` from `offset`.
    ///
    /// # Errors
    /// When that fails, or the file ends before.
    pub fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let is_whole = self.read_up_to(bytes, offset)? == bytes.len();
        if is_whole { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Reads what is at `offset`; fewer bytes than asked for only at the end.
    ///
    /// # Errors
    /// When that fails.
    pub fn read_up_to(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        match self {
            Self::Local(file) => {
                while filled < bytes.len() {
                    match file.read_at(&mut bytes[filled..], offset + filled as u64) {
                        Ok(0) => break,
                        Ok(read) => filled += read,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            Self::Remote(file) => {
                filled = bytes.len().min(file.bytes().saturating_sub(offset) as usize);
                file.read_waiting(offset, &mut bytes[..filled]).map_err(|error| match error {
                    ReadError::Io(error) | ReadError::DescriptorShortage(error) => error,
                    // The indexer names the file itself.
                    ReadError::Store { cause, .. } => io::Error::other(cause),
                    error => io::Error::other(error),
                })?;
            }
        }
        Ok(filled)
    }
}

/// Reads ranges of files, which must be as they were indexed.
#[derive(Debug)]
pub struct Files {
    files: Vec<IndexedFile>,
    open: Mutex<Open>,
    kept_max: usize,
    /// The last prints of local files whose attributes have changed since they were indexed: one change explains no second.
    renewed: Mutex<HashMap<u32, Print>>,
}

#[derive(Debug)]
struct Open {
    /// A descriptor for each file that has one. A reader holds it, too, so that it is not closed during a read.
    descriptors: Vec<Option<Arc<File>>>,
    /// The files that have one, oldest first.
    order: VecDeque<u32>,
}

impl Files {
    /// These files; none is opened yet.
    pub fn new(files: Vec<IndexedFile>) -> Self {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let open = Open { descriptors: vec![None; files.len()], order: VecDeque::new() };
        let kept_max = (limit / KEPT_SHARE).clamp(KEPT_MIN, KEPT_MAX) as usize;
        Self { files, open: Mutex::new(open), kept_max, renewed: Mutex::default() }
    }

    /// The files.
    pub fn all(&self) -> &[IndexedFile] {
        &self.files
    }

    /// What was fetched for all files that are in stores, which one disk cache keeps; `None` where none is.
    pub fn fetched(&self) -> Option<Fetched> {
        self.files.iter().find_map(|file| match &file.origin {
            Origin::Remote(remote) => Some(remote.fetched()),
            _ => None,
        })
    }

    /// Fills `bytes` from `offset` of `file`; returns the range's stamp as it was before the first byte was read.
    ///
    /// # Errors
    /// When the range cannot be read, or the file is no longer the one that was indexed: never other bytes.
    pub fn read(&self, file: u32, offset: u64, bytes: &mut [u8]) -> Result<Option<Stamp>, ReadError> {
        if let Origin::Remote(remote) = &self.files[file as usize].origin {
            return remote.read(offset, bytes).map(|()| Some(ranged(remote.stamp(), offset)));
        }
        let result = self.descriptor(file).and_then(|descriptor| {
            let before = descriptor.metadata()?;
            let read = descriptor.read_exact_at(bytes, offset);
            // A change that reached any of the bytes has moved the file's time before. It explains a failure, too.
            self.check(file, &descriptor.metadata()?)?;
            read?;
            Ok(settled_stamp(&before, offset))
        });
        if result.is_err() {
            // A stale handle of a network's file system, say: the next read opens the file anew.
            self.forget(file);
        }
        result
    }

    /// Announces that objects are read from now on, those of `now` before those of `next`. Of this machine's files nothing is announced.
    pub fn will_read(&self, now: &[u32], next: &[u32]) -> Option<Ahead> {
        let remote = |files: &[u32]| -> Vec<RemoteFile> {
            let remote = files.iter().filter_map(|&file| match &self.files[file as usize].origin {
                Origin::Remote(remote) => Some(remote.clone()),
                Origin::Local(_) => None,
            });
            remote.collect()
        };
        RemoteFile::will_read(&remote(now), &remote(next))
    }

    /// The current stamp of a range; `None` where it cannot be read, or may change without the stamp.
    pub fn stamp(&self, file: u32, offset: u64) -> Option<Stamp> {
        if let Origin::Remote(remote) = &self.files[file as usize].origin {
            return Some(ranged(remote.stamp(), offset));
        }
        let meta = self.descriptor(file).ok()?.metadata().ok()?;
        self.check(file, &meta).ok()?;
        settled_stamp(&meta, offset)
    }

    fn changed(&self, file: u32) -> ReadError {
        ReadError::FileChanged { path: self.files[file as usize].path.clone() }
    }

    fn check(&self, file: u32, meta: &Metadata) -> Result<(), ReadError> {
        let Origin::Local(indexed) = &self.files[file as usize].origin else { return Err(self.changed(file)) };
        let print = Print::of(meta);
        if print == *indexed {
            return Ok(());
        }
        let mut renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        let last = renewed.entry(file).or_insert(*indexed);
        if !last.is_of_content(&print) {
            return Err(self.changed(file));
        }
        *last = print;
        Ok(())
    }

    /// The descriptor of a file, which is opened if need be.
    fn descriptor(&self, file: u32) -> Result<Arc<File>, ReadError> {
        if let Some(descriptor) = &self.open().descriptors[file as usize] {
            return Ok(Arc::clone(descriptor));
        }
        let path = &self.files[file as usize].path;
        let opened = open(path).or_else(|error| match ReadError::from(error) {
            // Ours can be spared.
            ReadError::DescriptorShortage(error) if self.close_all() == 0 => Err(ReadError::DescriptorShortage(error)),
            ReadError::DescriptorShortage(_) => open(path).map_err(ReadError::from),
            error => Err(error),
        })?;
        self.check(file, &opened.metadata()?)?;
        let descriptor = Arc::new(opened);
        let mut open = self.open();
        if open.descriptors[file as usize].replace(Arc::clone(&descriptor)).is_none() {
            open.order.push_back(file);
        }
        if open.order.len() > self.kept_max
            && let Some(oldest) = open.order.pop_front()
        {
            open.descriptors[oldest as usize] = None;
        }
        Ok(descriptor)
    }

    fn forget(&self, file: u32) {
        let mut open = self.open();
        open.descriptors[file as usize] = None;
        open.order.retain(|&kept| kept != file);
    }

    /// Closes what is kept open; returns how many.
    fn close_all(&self) -> usize {
        let mut open = self.open();
        let order = std::mem::take(&mut open.order);
        order.iter().for_each(|&file| open.descriptors[file as usize] = None);
        order.len()
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens a regular file; a pipe of that name must not block.
fn open(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other(format!("{} is no longer a file", escaped(&path))));
    }
    Ok(file)
}

/// The stamp of the range at `offset`, where it tells any later change.
fn settled_stamp(meta: &Metadata, offset: u64) -> Option<Stamp> {
    is_settled(meta).then(|| ranged(stamp(meta), offset))
}

/// The stamp of a range of what has `stamp`.
fn ranged(stamp: Stamp, offset: u64) -> Stamp {
    xxhash_rust::xxh3::xxh3_64(bytemuck::cast_slice(&[stamp, offset])).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn files(contents: &[&[u8]]) -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        let file = |(nth, content): (usize, &&[u8])| {
            let path = dir.path().join(nth.to_string());
            std::fs::write(&path, content).unwrap();
            let meta = path.metadata().unwrap();
            IndexedFile::new(path, nth.to_string(), &meta)
        };
        let files = Files::new(contents.iter().enumerate().map(file).collect());
        (dir, files)
    }

    fn read(files: &Files, file: u32, offset: u64, length: usize) -> Result<Vec<u8>, ReadError> {
        let mut bytes = vec![0; length];
        files.read(file, offset, &mut bytes).map(|_| bytes)
    }

    #[test]
    fn a_range_is_read() {
        let (_dir, files) = files(&[b"0123456789", b"abc"]);
        for (file, offset, expected) in [(0, 2, "23456"), (1, 0, "abc"), (1, 3, ""), (0, 9, "9")] {
            assert_eq!(read(&files, file, offset, expected.len()).unwrap(), expected.as_bytes());
        }
    }

    #[test]
    fn stamps_tell_ranges_and_changes_apart() {
        let (dir, files) = files(&[b"0123456789"]);
        assert_eq!(files.stamp(0, 0), None, "just written");
        let deadline = Instant::now() + Duration::from_secs(20);
        let stamp = loop {
            match files.read(0, 0, &mut [0; 5]).unwrap() {
                Some(stamp) => break stamp,
                None => assert!(Instant::now() < deadline, "never settled"),
            }
            std::thread::yield_now();
        };
        assert_eq!(files.stamp(0, 0), Some(stamp));
        assert!(files.stamp(0, 5).is_some_and(|other| other != stamp));
        std::fs::write(dir.path().join("0"), "0123456789").unwrap();
        assert_eq!(files.stamp(0, 0), None);
    }

    #[test]
    fn a_file_that_is_not_the_one_that_was_indexed_gives_no_bytes() {
        let (dir, files) = files(&[b"0123456789", b"0123456789", b"0123456789"]);
        for file in 0..3 {
            assert_eq!(read(&files, file, 2, 3).unwrap(), b"234");
        }
        // Cut, written into, and replaced by one of the same size; the last one's descriptor still reads what was indexed.
        File::options().write(true).open(dir.path().join("0")).unwrap().set_len(4).unwrap();
        let written = File::options().write(true).open(dir.path().join("1")).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while files.check(1, &written.metadata().unwrap()).is_ok() {
            assert!(Instant::now() < deadline, "its time does not move");
            written.write_all_at(b"x", 3).unwrap();
        }
        std::fs::write(dir.path().join("new"), "abcdefghij").unwrap();
        std::fs::rename(dir.path().join("new"), dir.path().join("2")).unwrap();
        assert_eq!(read(&files, 2, 2, 3).unwrap(), b"234");
        files.close_all();
        for file in 0..3 {
            let error = read(&files, file, 2, 3).unwrap_err();
            assert!(matches!(&error, ReadError::FileChanged { path } if path.ends_with(file.to_string())), "{error}");
            assert_eq!(files.stamp(file, 2), None);
        }
    }

    #[test]
    fn a_file_in_the_place_of_another_is_seen_though_size_and_time_are_the_same() {
        let (dir, files) = files(&[b"0123456789"]);
        let [path, other] = ["0", "other"].map(|name| dir.path().join(name));
        let indexed = path.metadata().unwrap();
        std::fs::hard_link(&path, dir.path().join("link")).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(read(&files, 0, 2, 3).unwrap(), b"234");
        files.close_all();
        let deadline = Instant::now() + Duration::from_secs(20);
        while other.metadata().map_or(true, |meta| Print::of(&meta).changed == Print::of(&indexed).changed) {
            assert!(Instant::now() < deadline, "its time does not move");
            std::fs::write(&other, "abcdefghij").unwrap();
        }
        File::options().write(true).open(&other).unwrap().set_modified(indexed.modified().unwrap()).unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_eq!(path.metadata().unwrap().modified().unwrap(), indexed.modified().unwrap());
        assert!(matches!(read(&files, 0, 2, 3), Err(ReadError::FileChanged { .. })));
        // As a file system that gives inodes new numbers has it.
        let print = Print { inode: indexed.ino() + 1, ..Print::of(&indexed) };
        assert!(print.is_of_content(&Print::of(&indexed)));
    }

    /// Writes into the file at `path` until its change time moves, and gives it its old times back.
    fn rewrite(path: &Path, bytes: &[u8]) {
        let before = path.metadata().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let file = File::options().write(true).open(path).unwrap();
        while Print::of(&path.metadata().unwrap()).changed == Print::of(&before).changed {
            assert!(Instant::now() < deadline, "its time does not move");
            file.write_all_at(bytes, 0).unwrap();
            file.set_times(std::fs::FileTimes::new().set_modified(before.modified().unwrap())).unwrap();
        }
        let after = path.metadata().unwrap();
        assert_eq!((after.len(), after.modified().unwrap()), (before.len(), before.modified().unwrap()));
    }

    #[test]
    fn a_file_that_was_written_to_in_place_is_seen_though_its_size_and_time_were_restored() {
        let (dir, files) = files(&[b"0123456789", b"0123456789"]);
        let [first, second] = ["0", "1"].map(|name| dir.path().join(name));
        assert_eq!(read(&files, 0, 2, 3).unwrap(), b"234");
        rewrite(&first, b"abcdefghij");
        assert!(matches!(read(&files, 0, 2, 3), Err(ReadError::FileChanged { .. })));
        // Attributes that changed before explain nothing.
        let deadline = Instant::now() + Duration::from_secs(20);
        let indexed = second.metadata().unwrap();
        for mode in [0o600, 0o640].into_iter().cycle() {
            std::fs::set_permissions(&second, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
            if mode == 0o640 && Print::of(&second.metadata().unwrap()).changed != Print::of(&indexed).changed {
                break;
            }
            assert!(Instant::now() < deadline, "its time does not move");
        }
        assert_eq!(read(&files, 1, 2, 3).unwrap(), b"234");
        rewrite(&second, b"abcdefghij");
        assert!(matches!(read(&files, 1, 2, 3), Err(ReadError::FileChanged { .. })));
    }

    #[test]
    fn no_more_descriptors_are_kept_than_there_is_room_for() {
        let contents: Vec<Vec<u8>> = (0..20).map(|nth| vec![nth; 10]).collect();
        let (_dir, mut files) = files(&contents.iter().map(|content| &**content).collect::<Vec<_>>());
        files.kept_max = 3;
        for nth in (0..20).chain([5, 5, 19, 0]) {
            assert_eq!(read(&files, nth, 1, 4).unwrap(), [nth as u8; 4]);
            let open = files.open();
            let kept = open.descriptors.iter().flatten().count();
            assert!(kept <= 3 && kept == open.order.len() && open.descriptors[nth as usize].is_some());
        }
    }

    #[test]
    fn a_missing_file_is_an_error_that_may_pass() {
        let (dir, files) = files(&[b"0123456789"]);
        // Its folder: a file that is renamed itself has another change time.
        let away = dir.path().with_extension("away");
        std::fs::rename(dir.path(), &away).unwrap();
        let error = read(&files, 0, 0, 3).unwrap_err();
        assert!(matches!(&error, ReadError::Io(cause) if cause.kind() == io::ErrorKind::NotFound), "{error}");
        std::fs::rename(&away, dir.path()).unwrap();
        assert_eq!(read(&files, 0, 0, 3).unwrap(), b"012");
    }
}

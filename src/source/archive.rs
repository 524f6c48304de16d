//! Archives of image folders: unpacked once, safely, into a cache folder.
//!
//! The cache is keyed by the archive's path, size and time of change. Unpacking goes to a folder beside the final one, which
//! gets its name when it is whole; a lock keeps two processes from doing it at once. Only regular files with an image's
//! name are written; links are made when all files are there, and only within the folder (`links.rs`).
//!
//! A manifest in the folder holds the number of files and a hash of their names, and notes on what was left out. A folder that does not match
//! its manifest, since a cleaner of old files removed some, or that has none, is unpacked anew.

use super::compression;
use super::index::Index;
use super::unpack::{Unpacked, read_head, unpack as unpack_to};
use super::walk;
use super::{DatasetError, Progress, Splits};
use crate::escape::escaped;
use rustix::fs::{FlockOperation, flock, syncfs};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

/// The manifest's file; the walk does not see names with a leading dot.
const MANIFEST: &str = ".mixd-manifest";
/// The most characters of an archive's name that its folder's begins with.
const STEM_CHARS_MAX: usize = 80;

/// Unpacks `archive`, or finds it unpacked and whole; returns the folder, its images, which have no labels yet, and notes on what was left out.
pub fn unpack(
    archive: &Path,
    splits: &Splits,
    cache_dir: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(PathBuf, Index, Vec<String>), DatasetError> {
    let head = File::open(archive).and_then(|mut file| read_head(&mut file));
    if let Err(what) = compression::kind(&head.map_err(DatasetError::io("read", archive))?) {
        return Err(DatasetError::NotAnArchive { path: archive.to_owned(), what });
    }
    let path = archive.canonicalize().map_err(DatasetError::io("find", archive))?;
    let meta = std::fs::metadata(&path).map_err(DatasetError::io("look at", archive))?;
    let mut key = path.as_os_str().as_bytes().to_vec();
    for number in [meta.len() as i64, meta.mtime(), meta.mtime_nsec()] {
        key.extend(number.to_le_bytes());
    }
    let no_cache = |source| DatasetError::NoCache { path: cache_dir.to_owned(), source };
    std::fs::create_dir_all(cache_dir).map_err(no_cache)?;
    let stem = format!("{}-{:016x}", stem(archive), xxh3_64(&key));
    let [whole, partial, stale] =
        ["", ".partial", ".stale.partial"].map(|ending| cache_dir.join(stem.clone() + ending));
    let is_whole = || whole_index(&whole, splits, cache_dir).map_err(|error| error.of(archive));
    if let Some((index, notes)) = is_whole()? {
        return Ok((whole, index, notes));
    }
    let lock_path = cache_dir.join(format!("{stem}.lock"));
    let lock = File::create(&lock_path).map_err(no_cache)?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|errno| DatasetError::io("lock", &lock_path)(errno.into()))?;
    if let Some((index, notes)) = is_whole()? {
        return Ok((whole, index, notes));
    }
    if whole.is_dir() {
        tracing::warn!("{} lacks images of its archive: it is unpacked anew", escaped(&whole));
    }
    remove_partials(cache_dir, &[&partial, &stale]);
    std::fs::create_dir(&partial).map_err(no_cache)?;
    let unpacked = unpack_to(&path, &partial, meta.len(), progress)
        .map_err(|error| DatasetError::Archive { path: archive.to_owned(), cause: error.to_string() });
    let checked = unpacked.and_then(|unpacked| check(archive, &unpacked, &partial, splits).map(|()| unpacked));
    let unpacked = checked.inspect_err(|_| drop(std::fs::remove_dir_all(&partial)))?;
    let path = partial.join(MANIFEST);
    let written = content_line(&partial).and_then(|line| std::fs::write(&path, line + &notes_lines(&unpacked)));
    written.map_err(DatasetError::io("write", &path))?;
    // The name must not reach the disk before the content does.
    let written = File::open(&partial).and_then(|dir| Ok(syncfs(&dir)?));
    // Another daemon may read the old one: it is never away for longer than reads are retried.
    let moved = || if whole.is_dir() { std::fs::rename(&whole, &stale) } else { Ok(()) };
    let named = written.and_then(|()| moved()).and_then(|()| std::fs::rename(&partial, &whole));
    named.map_err(DatasetError::io("name", &whole))?;
    let _ = std::fs::remove_dir_all(&stale);
    let _ = std::fs::remove_file(&lock_path);
    match is_whole()? {
        Some((index, notes)) => Ok((whole, index, notes)),
        None => Err(DatasetError::Archive {
            path: archive.to_owned(),
            cause: format!("files vanish from {} (is another program cleaning it up?)", escaped(&whole)),
        }),
    }
}

/// What an archive's folder is called, before its hash.
fn stem(archive: &Path) -> String {
    let name = archive.file_name().map(|name| escaped(name).to_string()).unwrap_or_default();
    let lower = name.to_ascii_lowercase();
    let ending = [".tgz", ".tar.gz", ".tar.zst", ".tzst", ".tar"].into_iter().find(|ending| lower.ends_with(ending));
    name[..name.len() - ending.map_or(0, str::len)].chars().take(STEM_CHARS_MAX).collect()
}

/// Checks that an archive that was unpacked to `partial` is an image folder's.
fn check(archive: &Path, unpacked: &Unpacked, partial: &Path, splits: &Splits) -> Result<(), DatasetError> {
    let Err(error) = walk::walk(partial, splits) else { return Ok(()) };
    let cause = match (&error, &unpacked.inner) {
        (DatasetError::NotAnImageFolder { .. } | DatasetError::EmptySplit { .. }, Some(inner)) => format!(
            "there are tars inside, such as {}: unpack each to a folder of its class, train/<class>/, and name the folder instead",
            escaped(inner)
        ),
        _ => return Err(error.of(archive)),
    };
    Err(DatasetError::Archive { path: archive.to_owned(), cause })
}

/// The first line of the manifest of a folder as it is.
fn content_line(folder: &Path) -> io::Result<String> {
    let (mut files, mut hash) = (0, 0);
    count(folder, Path::new(""), &mut files, &mut hash)?;
    Ok(format!("mixd manifest 2: {files} files, {hash:016x}\n"))
}

/// Counts the files and links below `relative`; the hash does not depend on their order.
fn count(folder: &Path, relative: &Path, files: &mut u64, hash: &mut u64) -> io::Result<()> {
    for entry in std::fs::read_dir(folder.join(relative))? {
        let entry = entry?;
        let path = relative.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            count(folder, &path, files, hash)?;
        } else if path != Path::new(MANIFEST) {
            *files += 1;
            *hash = hash.wrapping_add(xxh3_64(path.as_os_str().as_bytes()));
        }
    }
    Ok(())
}

/// The other lines of a manifest.
fn notes_lines(unpacked: &Unpacked) -> String {
    let cut = "it has no end: it may have been cut between two files".to_owned();
    let notes = unpacked.tally.notes().into_iter().chain((!unpacked.is_ended).then_some(cut));
    notes.map(|note| format!("in the archive: {note}\n")).collect()
}

/// The images of an unpacked folder, and notes; `None` where it is missing, or does not hold what its manifest has.
fn whole_index(folder: &Path, splits: &Splits, cache_dir: &Path) -> Result<Option<(Index, Vec<String>)>, DatasetError> {
    let path = folder.join(MANIFEST);
    let manifest = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(DatasetError::io("read", &path))?,
    };
    // A walk that is remembered was checked then, and nothing has changed since.
    let (index, more) = match walk::remembered(folder, splits, cache_dir) {
        Some(found) => found,
        None => {
            let line = content_line(folder).map_err(DatasetError::io("list", folder))?;
            if !manifest.starts_with(&line) {
                return Ok(None);
            }
            walk::index(folder, splits, cache_dir)?
        }
    };
    Ok(Some((index, manifest.lines().skip(1).map(str::to_owned).chain(more).collect())))
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

#[cfg(test)]
mod tests {
    use super::super::{Folder, Source};
    use super::*;
    use crate::types::Split;
    use flate2::bufread::MultiGzDecoder;
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
            Folder::open(archive, &Splits::default(), &self.dir.path().join("cache"), &mut |_| {})
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
        let archive = fixture.archive(|_| {});
        let source = fixture.open(&archive).unwrap();
        std::fs::remove_file(root(&source).join(source.name(Split::Train, 0))).unwrap();
        let error = source.read(Split::Train, 0, &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains(archive.to_str().unwrap()) && error.contains("start the daemon again"), "{error}");
    }

    #[test]
    fn nothing_is_written_outside_of_the_folder() {
        for name in ["../evil.jpg", "set/../../evil.jpg", "/../evil.jpg"] {
            let fixture = Fixture::new();
            let archive = fixture.archive(|tar| add(tar, name, EntryType::Regular, b"evil"));
            let error = fixture.open(&archive).unwrap_err();
            assert!(error.to_string().contains("outside of the folder"), "{name}: {error}");
            assert!(!fixture.dir.path().join("evil.jpg").exists());
            assert!(!fixture.dir.path().join("cache/evil.jpg").exists());
        }
    }

    #[test]
    fn links_that_leave_the_archive_are_not_followed() {
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
        let mut plain = Vec::new();
        io::copy(&mut MultiGzDecoder::new(&*bytes), &mut plain).unwrap();
        let archive = fixture.dir.path().join("set.tar");
        for end in [2 * 512 + 3, 2 * 512 + 200, 3 * 512, 3 * 512 + 3] {
            std::fs::write(&archive, &plain[..end]).unwrap();
            let error = fixture.open(&archive).unwrap_err().to_string();
            assert!(error.starts_with(archive.to_str().unwrap()) && error.contains("cut off"), "{end}: {error}");
        }
        let left = std::fs::read_dir(fixture.dir.path().join("cache")).unwrap();
        assert!(left.map(|entry| entry.unwrap().path()).all(|path| path.extension() == Some("lock".as_ref())));
        // Between two entries: as archivers that write no end leave it.
        std::fs::write(&archive, &plain[..4 * 512]).unwrap();
        let source = fixture.open(&archive).unwrap();
        assert_eq!(source.notes(), ["in the archive: it has no end: it may have been cut between two files"]);
    }

    /// Pax attributes, a long name or a long link of a gigabyte, and endless blocks of a map of holes: each a few kilobytes of gzip.
    #[test]
    fn headers_of_more_bytes_than_archivers_write_are_refused_without_reading_them() {
        for kind in [EntryType::XHeader, EntryType::GNULongName, EntryType::GNULongLink, EntryType::GNUSparse] {
            let fixture = Fixture::new();
            let archive = fixture.archive(|tar| {
                let mut header = Header::new_gnu();
                header.set_entry_type(kind);
                header.set_size(1 << 30);
                if kind == EntryType::GNUSparse {
                    header.set_size(0);
                    header.as_gnu_mut().unwrap().set_real_size(0);
                    header.as_gnu_mut().unwrap().isextended[0] = 1;
                }
                header.set_cksum();
                io::Write::write_all(tar.get_mut(), header.as_bytes()).unwrap();
                // Of a map, each block says that another follows.
                let mut block = [0; 512];
                block[504] = 1;
                (0..1 << 17).for_each(|_| io::Write::write_all(tar.get_mut(), &block).unwrap());
            });
            let error = fixture.open(&archive).unwrap_err().to_string();
            let named = error.starts_with(archive.to_str().unwrap()) && error.contains("after set/val/a/2.jpg");
            assert!(named && error.contains("headers"), "{kind:?}: {error}");
        }
    }

    /// Large entries that are passed over leave no room for the headers that follow them.
    #[test]
    fn what_is_passed_over_counts_for_no_header() {
        let fixture = Fixture::new();
        let large = vec![0; 16 << 20];
        let archive = fixture.archive(|tar| {
            add(tar, "set/video.mp4", EntryType::Regular, &large);
            add(tar, "set/train/b/3.jpg", EntryType::Regular, &large);
        });
        assert_eq!(fixture.open(&archive).unwrap().len(Split::Train), 2);
        let archive = fixture.archive(|tar| {
            add(tar, "set/train/b/3.jpg", EntryType::Regular, &large);
            add(tar, "long", EntryType::XHeader, &large);
        });
        let error = fixture.open(&archive).unwrap_err().to_string();
        assert!(error.contains("the headers after set/train/b/3.jpg"), "{error}");
    }

    #[test]
    fn a_name_that_no_file_can_have_is_refused_in_short() {
        let fixture = Fixture::new();
        let name = ["a/"; 3_000].concat() + "1.jpg";
        let archive = fixture.archive(|tar| {
            add(tar, "long", EntryType::GNULongName, name.as_bytes());
            add(tar, "x.jpg", EntryType::Regular, b"x");
        });
        let error = fixture.open(&archive).unwrap_err().to_string();
        assert!(error.contains("a name of 6005 bytes") && error.len() < 500, "{error}");
    }

    #[test]
    fn an_archive_is_known_by_its_content_and_not_by_its_name() {
        let fixture = Fixture::new();
        let gzipped = std::fs::read(fixture.archive(|_| {})).unwrap();
        let mut plain = Vec::new();
        io::copy(&mut MultiGzDecoder::new(&*gzipped), &mut plain).unwrap();
        let zstd = zstd::encode_all(&*plain, 1).unwrap();
        for (name, bytes) in
            [("a.tar", &gzipped), ("b.tgz", &plain), ("c.tar.zst", &zstd), ("data", &zstd), ("d.zip", &plain)]
        {
            let archive = fixture.dir.path().join(name);
            std::fs::write(&archive, bytes).unwrap();
            assert_eq!(fixture.open(&archive).unwrap().len(Split::Train), 1, "{name}");
        }
        let csv = fixture.dir.path().join("labels.csv.gz");
        let mut encoder = GzEncoder::new(File::create(&csv).unwrap(), flate2::Compression::fast());
        io::Write::write_all(&mut encoder, b"id,label\n").unwrap();
        encoder.finish().unwrap();
        let error = fixture.open(&csv).unwrap_err().to_string();
        assert!(error.starts_with(csv.to_str().unwrap()) && error.contains("no tar"), "{error}");
    }
}

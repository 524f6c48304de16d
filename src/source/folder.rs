//! The image folder as a source: a sample is a file.

use super::image_names::is_image;
use super::index::{Index, UnknownClass};
use super::{Class, DatasetError, ENCODED_BYTES_MAX, Progress, ReadError, Source, Splits, Stamp, archive, walk};
use crate::escape::escaped;
use crate::stamp::{is_settled, stamp};
use crate::types::{ClassId, SampleId, Split};
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// An image folder (docs/spec/index.md).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    root: PathBuf,
    /// The archive that was unpacked to it.
    archive: Option<PathBuf>,
    /// Where its splits are, as it was opened.
    splits: Splits,
    classes: Vec<Class>,
    index: Index,
    notes: Vec<String>,
}

/// Bytes of a file that are read before it is known to begin as an image does.
const HEAD_BYTES: u64 = 64 << 10;
/// Entries of a folder that tell what it holds.
const ENTRIES_MAX: usize = 64;
/// The longest path, with its end marker, that Linux opens (`PATH_MAX`).
const PATH_BYTES_MAX: usize = 4_096;

impl Folder {
    /// As [`super::open`].
    pub(super) fn open(
        path: &Path,
        splits: &Splits,
        cache_dir: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, DatasetError> {
        let meta = std::fs::metadata(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => DatasetError::Missing(path.to_owned()),
            _ => DatasetError::io("look at", path)(error),
        })?;
        if meta.is_dir() {
            let root = path.canonicalize().map_err(DatasetError::io("find", path))?;
            let (index, notes) = walk::index(&root, splits, cache_dir)?;
            return Self::new(root, splits, index, notes);
        }
        let (root, index, notes) = archive::unpack(path, splits, cache_dir, progress)?;
        let folder = Self::new(root, splits, index, notes).map_err(|error| error.of(path))?;
        Ok(Self { archive: Some(path.to_owned()), ..folder })
    }

    /// The folder `root` with the samples of `index`, which has no labels yet.
    fn new(root: PathBuf, splits: &Splits, mut index: Index, notes: Vec<String>) -> Result<Self, DatasetError> {
        let classes = match index.assign_labels() {
            Ok(classes) => classes,
            Err(UnknownClass { class, example }) => {
                let example = OsString::from_vec(index.path(Split::Val, example).join(&b'/')).into();
                return Err(DatasetError::UnknownClass { root, class: OsString::from_vec(class), example });
            }
        };
        Ok(Self { root, archive: None, splits: splits.clone(), classes, index, notes })
    }

    /// Calls `run` with the file of a sample, without an allocation.
    fn with_file<T>(&self, split: Split, sample: SampleId, run: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
        let [folder, name] = self.index.path(split, sample);
        // A split may be in a folder elsewhere.
        if folder.starts_with(b"/") {
            return path_in([folder, name], run);
        }
        path_in([self.root.as_os_str().as_bytes(), folder, name], run)
    }
}

/// Whether a folder has images in folders of classes, in its `train`: then it is an image folder, whatever else lies in it.
pub(super) fn has_classes(root: &Path) -> bool {
    let entries = |folder: &Path, most: usize| std::fs::read_dir(folder).into_iter().flatten().flatten().take(most);
    let holds_images = |folder: &Path| entries(folder, ENTRIES_MAX).any(|entry| is_image(&entry.path()));
    entries(&root.join("train"), ENTRIES_MAX).any(|entry| entry.path().is_dir() && holds_images(&entry.path()))
}

/// Calls `run` with the path of these parts, without an allocation.
pub(super) fn path_in<const PARTS: usize, T>(
    parts: [&[u8]; PARTS],
    run: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    let (mut bytes, mut len) = ([0; PATH_BYTES_MAX], 0);
    for part in parts {
        for piece in [part, b"/"] {
            let Some(room) = bytes.get_mut(len..len + piece.len()) else {
                return Err(rustix::io::Errno::NAMETOOLONG.into());
            };
            room.copy_from_slice(piece);
            len += piece.len();
        }
    }
    run(Path::new(OsStr::from_bytes(&bytes[..len - 1])))
}

/// Replaces `bytes` by those of an open image file; its stamp is that of before.
pub(super) fn read_file(file: File, bytes: &mut Vec<u8>) -> Result<Option<Stamp>, ReadError> {
    bytes.clear();
    let meta = file.metadata()?;
    read_image(&file, meta.len(), bytes)?;
    Ok(settled_stamp(&meta))
}

/// The ending of an image's format, by its first bytes.
pub fn format_of(bytes: &[u8]) -> Option<&'static str> {
    // BigTIFF, which `image` does not know.
    if bytes.starts_with(b"II+\0") || bytes.starts_with(b"MM\0+") {
        return Some("tiff");
    }
    let format = image::guess_format(bytes).ok()?;
    format.extensions_str().first().copied()
}

/// Reads a file of `len` bytes; of one that does not begin as an image does only [`HEAD_BYTES`], by which the decoder refuses it.
fn read_image(file: &File, len: u64, bytes: &mut Vec<u8>) -> Result<(), ReadError> {
    // One more, so that the end is found without another allocation.
    bytes.reserve(len.min(HEAD_BYTES) as usize + 1);
    file.take(HEAD_BYTES).read_to_end(bytes)?;
    let is_image = || format_of(bytes).is_some();
    if (bytes.len() as u64) < HEAD_BYTES || !is_image() {
        return Ok(());
    }
    // Before memory is taken, and again for a file that grows.
    let check = |bytes| if bytes > ENCODED_BYTES_MAX { Err(ReadError::TooLarge { bytes }) } else { Ok(()) };
    check(len)?;
    bytes.reserve(len.saturating_sub(HEAD_BYTES) as usize + 1);
    file.take(ENCODED_BYTES_MAX + 1 - HEAD_BYTES).read_to_end(bytes)?;
    check(bytes.len() as u64)
}

/// The stamp of a file, where it tells any later change.
pub(super) fn settled_stamp(meta: &Metadata) -> Option<Stamp> {
    is_settled(meta).then(|| stamp(meta))
}

impl Source for Folder {
    fn location(&self) -> String {
        escaped(&self.root).to_string()
    }

    fn classes(&self) -> &[Class] {
        &self.classes
    }

    fn len(&self, split: Split) -> u32 {
        self.index.len(split)
    }

    fn label(&self, split: Split, sample: SampleId) -> ClassId {
        self.index.label(split, sample)
    }

    /// The path relative to the folder.
    fn name(&self, split: Split, sample: SampleId) -> String {
        escaped(OsStr::from_bytes(&self.index.path(split, sample).join(&b'/'))).to_string()
    }

    fn read(&self, split: Split, sample: SampleId, bytes: &mut Vec<u8>) -> Result<Option<Stamp>, ReadError> {
        let file = self.with_file(split, sample, |path| File::open(path)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => match &self.archive {
                Some(archive) => ReadError::Removed { archive: archive.clone(), folder: self.root.clone() },
                None => error.into(),
            },
            _ => error.into(),
        })?;
        read_file(file, bytes)
    }

    fn stamp(&self, split: Split, sample: SampleId) -> Option<Stamp> {
        self.with_file(split, sample, |path| path.metadata()).ok().as_ref().and_then(settled_stamp)
    }

    fn hash_samples(&self, split: Split, hash: &mut Xxh3) {
        hash.update(self.root.as_os_str().as_bytes());
        hash.update(&[0]);
        for [folder, name] in self.index.paths(split) {
            [folder, b"/", name, &[0]].iter().for_each(|part| hash.update(part));
        }
        if let Some(place) = self.splits.of(split) {
            hash.update(place.as_bytes());
        }
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }
}

#[cfg(test)]
mod tests {
    use super::super::DataSet;
    use super::*;
    use serde_json::Value;
    use std::time::{Duration, Instant};
    use tempfile::TempDir;

    fn folder(paths: &[&str]) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for path in paths {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        dir
    }

    fn open(dir: &TempDir) -> Result<Folder, DatasetError> {
        Folder::open(dir.path(), &Splits::default(), &archive::default_cache_dir(), &mut |_| {})
    }

    #[test]
    fn the_reference_tree_is_indexed_as_it_says() {
        for reference in crate::fixtures::roots() {
            let tree: Value = serde_json::from_slice(&std::fs::read(reference.join("tree-2.json")).unwrap()).unwrap();
            let texts = |value: &Value| -> Vec<String> {
                value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
            };
            let files = tree["files"].as_array().unwrap();
            let paths: Vec<&str> = files.iter().map(|file| file["path"].as_str().unwrap()).collect();
            let dir = folder(&paths);
            let source = open(&dir).unwrap();
            assert_eq!(
                source.classes().iter().map(|class| class.id.clone()).collect::<Vec<_>>(),
                texts(&tree["vocab"])
            );
            let mut listed = 0;
            for (split, order) in [(Split::Train, "order_train"), (Split::Val, "order_val")] {
                let ours: Vec<String> = (0..source.len(split)).map(|sample| source.name(split, sample)).collect();
                assert_eq!(ours, texts(&tree[order]));
                listed += ours.len();
                for (sample, name) in ours.iter().enumerate() {
                    let file = files.iter().find(|file| file["path"] == **name).unwrap();
                    let label = source.label(split, sample as SampleId);
                    assert_eq!(file["label"].as_u64(), Some(u64::from(label)), "{file}");
                    assert_eq!(file["split"], split.name(), "{file}");
                }
            }
            assert_eq!(listed, files.iter().filter(|file| !file["split"].is_null()).count());
            let with = |extra: &str| open(&folder(&paths.iter().copied().chain([extra]).collect::<Vec<_>>()));
            for extra in texts(&tree["each_is_an_error_when_added"]) {
                assert!(matches!(with(&extra), Err(DatasetError::UnknownClass { .. })), "{extra}");
            }
            for extra in texts(&tree["refused_as_a_second_set_when_added"]) {
                let error = with(&extra).unwrap_err();
                let (set, _) = extra.split_once("/train").or(extra.split_once("/val")).unwrap();
                let both = format!("in {set}/ and in ./");
                assert!(
                    matches!(error, DatasetError::SecondSet { .. }) && error.to_string().contains(&both),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn samples_are_sorted_by_the_bytes_of_the_whole_path() {
        let dir = folder(&[
            "train/b/1.jpg",
            "train/b-/1.jpg",
            "train/b.jpg/1.jpg",
            "train/b/10.jpg",
            "train/b/train/c/1.jpg",
            "train/b/train-.jpg",
            "train/b/zz.jpg",
            "train/b/x-/1.jpg",
            "train/b/x/1.jpg",
            "train/b/x.jpg",
            "val/b/1.jpg",
        ]);
        let source = open(&dir).unwrap();
        let names: Vec<String> =
            (0..source.len(Split::Train)).map(|sample| source.name(Split::Train, sample)).collect();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        assert_eq!((names.len(), names), (10, sorted));
    }

    #[test]
    fn folders_that_are_none_are_refused() {
        let refused = |paths: &[&str]| open(&folder(paths)).unwrap_err();
        assert!(matches!(refused(&[]), DatasetError::NotAnImageFolder { found: 0, .. }));
        assert!(matches!(refused(&["a/b/c.jpg", "x.txt"]), DatasetError::NotAnImageFolder { found: 2, .. }));
        assert!(matches!(refused(&["val/a/1.jpg"]), DatasetError::EmptySplit { split: Split::Train, .. }));
        let unknown = refused(&["train/a/1.jpg", "val/b/1.jpg"]);
        assert!(
            unknown.to_string().contains("class `b` of the validation split has no training images, e.g. val/b/1.jpg"),
            "{unknown}"
        );
        let missing = super::super::open(&DataSet::at(Path::new("/no/such/folder")), &mut |_| {}).unwrap_err();
        assert!(matches!(missing, DatasetError::Missing(_)) && missing.to_string().contains("expected DATA/train"));
    }

    #[test]
    fn names_that_are_not_utf_8_are_read() {
        let dir = folder(&["train/a/1.jpg", "val/a/1.jpg"]);
        let name = OsStr::from_bytes(b"train/a/\xff.jpg");
        std::fs::write(dir.path().join(name), "bytes").unwrap();
        let (source, mut bytes) = (open(&dir).unwrap(), Vec::new());
        source.read(Split::Train, 1, &mut bytes).unwrap();
        assert_eq!((&*bytes, &*source.name(Split::Train, 1)), (&b"bytes"[..], "train/a/\\xff.jpg"));
    }

    /// Cache files and resumed feeds hold this hash: it must stay what the first versions computed from `PathBuf`s.
    #[test]
    fn the_identity_is_the_root_and_every_path_each_ended_by_a_zero() {
        let dir = folder(&["train/a/1.jpg", "train/a-/1.jpg", "train/b/2.jpg", "val/a/1.jpg", "val/b/3.jpg"]);
        let source = open(&dir).unwrap();
        let root = dir.path().canonicalize().unwrap();
        for (split, paths) in [
            (Split::Train, &["train/a-/1.jpg", "train/a/1.jpg", "train/b/2.jpg"][..]),
            (Split::Val, &["val/a/1.jpg", "val/b/3.jpg"]),
        ] {
            let (mut ours, mut expected) = (Xxh3::new(), Xxh3::new());
            for path in std::iter::once(&*root).chain(paths.iter().map(Path::new)) {
                expected.update(path.as_os_str().as_encoded_bytes());
                expected.update(&[0]);
            }
            source.hash_samples(split, &mut ours);
            assert_eq!(ours.digest(), expected.digest(), "{split}");
        }
        let mut index = Index::default();
        for (folder, name) in [("train/a", "1.jpg"), ("train/b", "2.JPEG")] {
            index.push(Split::Train, folder.as_bytes(), 6..7, name.as_bytes()).unwrap();
        }
        let mut hash = Xxh3::new();
        Folder::new("/data/set".into(), &Splits::default(), index, Vec::new())
            .unwrap()
            .hash_samples(Split::Train, &mut hash);
        assert_eq!(hash.digest(), xxhash_rust::xxh3::xxh3_64(b"/data/set\0train/a/1.jpg\0train/b/2.JPEG\0"));
    }

    #[test]
    fn a_read_reuses_memory_and_its_stamp_is_that_of_the_file() {
        let dir = folder(&["train/a/1.jpg", "val/a/1.jpg"]);
        let file = dir.path().join("train/a/1.jpg");
        std::fs::write(&file, "some bytes").unwrap();
        let source = open(&dir).unwrap();
        let mut bytes = vec![7; 1_000];
        let before = (bytes.as_ptr(), bytes.capacity());
        assert_eq!(source.read(Split::Train, 0, &mut bytes).unwrap(), None, "just written");
        assert_eq!((&*bytes, (bytes.as_ptr(), bytes.capacity())), (&b"some bytes"[..], before));
        let deadline = Instant::now() + Duration::from_secs(20);
        let stamp = loop {
            match source.read(Split::Train, 0, &mut bytes).unwrap() {
                Some(stamp) => break stamp,
                None => assert!(Instant::now() < deadline, "never settled"),
            }
            std::thread::yield_now();
        };
        assert_eq!(source.stamp(Split::Train, 0), Some(stamp));
        std::fs::write(&file, "other bytes").unwrap();
        assert_ne!(source.stamp(Split::Train, 0), Some(stamp));
    }

    #[test]
    fn what_is_no_image_is_not_read_and_what_is_too_large_is_refused() {
        let dir = folder(&["train/a/1.jpg", "val/a/1.jpg"]);
        let source = open(&dir).unwrap();
        let file = File::options().write(true).open(dir.path().join("train/a/1.jpg")).unwrap();
        file.set_len(12 << 30).unwrap();
        let mut bytes = Vec::new();
        source.read(Split::Train, 0, &mut bytes).unwrap();
        assert!(bytes.len() as u64 == HEAD_BYTES && bytes.capacity() < 1 << 20, "{} bytes", bytes.capacity());
        for magic in [&[0xFF, 0xD8, 0xFF, 0xE0][..], b"\x89PNG\r\n\x1a\n", b"BM"] {
            std::os::unix::fs::FileExt::write_all_at(&file, magic, 0).unwrap();
            let error = source.read(Split::Train, 0, &mut bytes).unwrap_err();
            assert!(matches!(error, ReadError::TooLarge { bytes } if bytes == 12 << 30), "{error}");
            assert!(bytes.capacity() < 1 << 20, "{} bytes", bytes.capacity());
        }
        file.set_len(100_000).unwrap();
        for magic in [&b"BM"[..], b"II+\0", b"MM\0+"] {
            std::os::unix::fs::FileExt::write_all_at(&file, magic, 0).unwrap();
            source.read(Split::Train, 0, &mut bytes).unwrap();
            assert_eq!(bytes.len(), 100_000, "{magic:?}");
        }
    }

    #[test]
    fn a_missing_file_is_an_error_and_no_shortage() {
        let dir = folder(&["train/a/1.jpg", "val/a/1.jpg"]);
        let source = open(&dir).unwrap();
        std::fs::remove_file(dir.path().join("train/a/1.jpg")).unwrap();
        let error = source.read(Split::Train, 0, &mut Vec::new()).unwrap_err();
        assert!(matches!(&error, ReadError::Io(cause) if cause.kind() == io::ErrorKind::NotFound));
        assert!(error.to_string().starts_with("cannot be read: No such file"), "{error}");
        assert_eq!(source.stamp(Split::Train, 0), None);
        for errno in [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE] {
            assert!(matches!(ReadError::from(io::Error::from(errno)), ReadError::DescriptorShortage(_)));
        }
    }
}

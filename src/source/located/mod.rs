//! Samples that lie in larger files, as a source: each is a range of bytes, which is read in place.
//!
//! Whoever knows the format of the files (`shards/`) makes an index of them: an [`IndexedFile`] for each file, from its metadata as they
//! were *before* it was indexed, and the [`Samples`] of both splits, in the order in which samples are to be numbered. [`Samples::push`] takes
//! the file's number, offset, length, label and name. [`Located::new`] makes a source of that.
//!
//! [`Contents`] is such an index on disk. Its key, which the maker of the index chooses, says of which files it is, by their stamps, and of which
//! options. [`Remembered`] finds it in the cache folder or beside the objects of a store, where somebody published it.
//!
//! A file that is cut, written into or replaced while it is served gives [`ReadError::FileChanged`] for its samples; never other bytes.

#[cfg_attr(
    not(feature = "cloud"),
    expect(dead_code, unreachable_code, reason = "without the feature `cloud` no file is remote")
)]
mod files;
mod remembered;
mod samples;
mod saved;

use super::vocabulary::hash_labels;
use super::{Ahead, Class, ENCODED_BYTES_MAX, ReadError, Source, Stamp};
use crate::escape::escaped;
use crate::status::Fetched;
use crate::types::{ClassId, LabelSet, SampleId, Split};
pub use files::{Files, IndexedFile, Opened};
#[cfg(feature = "cloud")]
pub use remembered::PUBLISHED;
pub use remembered::{FindPublished, Publication, Remembered};
pub use samples::{Full, Location, Samples};
pub use saved::Contents;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use xxhash_rust::xxh3::Xxh3;

/// Samples in files.
#[derive(Debug)]
pub struct Located {
    location: String,
    classes: Vec<Class>,
    label_sets: Option<Vec<LabelSet>>,
    files: Files,
    splits: [Samples; Split::ALL.len()],
    notes: Vec<String>,
}

impl Located {
    /// The samples of `contents` in `files`; `location` is for people.
    pub fn new(location: String, files: Vec<IndexedFile>, contents: Contents) -> Self {
        let Contents { mut splits, classes, label_sets, notes, .. } = contents;
        splits.iter_mut().for_each(Samples::shrink_to_fit);
        Self { location, classes, label_sets, files: Files::new(files), splits, notes }
    }

    /// Where a sample is.
    pub fn get(&self, split: Split, sample: SampleId) -> Location<'_> {
        self.splits[split as usize].get(sample)
    }

    /// The files that hold the samples.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Bytes that the index has allocated.
    pub fn index_bytes(&self) -> usize {
        self.splits.iter().map(Samples::bytes).sum()
    }
}

impl Source for Located {
    fn location(&self) -> String {
        self.location.clone()
    }

    fn classes(&self) -> &[Class] {
        &self.classes
    }

    fn label_sets(&self) -> Option<&[LabelSet]> {
        self.label_sets.as_deref()
    }

    fn len(&self, split: Split) -> u32 {
        self.splits[split as usize].len()
    }

    fn label(&self, split: Split, sample: SampleId) -> ClassId {
        self.splits[split as usize].label(sample)
    }

    fn shards(&self, split: Split) -> Vec<SampleId> {
        self.splits[split as usize].runs.iter().map(|&[first, _]| first).collect()
    }

    fn will_read(&self, split: Split, now: &[SampleId], next: &[SampleId]) -> Option<Ahead> {
        let files = |firsts: &[SampleId]| firsts.iter().map(|&first| self.get(split, first).file).collect::<Vec<_>>();
        self.files.will_read(&files(now), &files(next))
    }

    /// The file's name, then the sample's in it.
    fn name(&self, split: Split, sample: SampleId) -> String {
        let place = self.get(split, sample);
        format!("{}/{}", escaped(&self.files.all()[place.file as usize].name), escaped(OsStr::from_bytes(place.name)))
    }

    fn read(&self, split: Split, sample: SampleId, bytes: &mut Vec<u8>) -> Result<Option<Stamp>, ReadError> {
        let place = self.get(split, sample);
        if u64::from(place.length) > ENCODED_BYTES_MAX {
            return Err(ReadError::TooLarge { bytes: place.length.into() });
        }
        // What is longer already is not zeroed again.
        bytes.resize(place.length as usize, 0);
        self.files.read(place.file, place.offset, bytes)
    }

    fn stamp(&self, split: Split, sample: SampleId) -> Option<Stamp> {
        let place = self.get(split, sample);
        self.files.stamp(place.file, place.offset)
    }

    /// The path and size of each file that holds samples of the split, their number, and their places and names.
    fn hash_samples(&self, split: Split, hash: &mut Xxh3) {
        let Samples { offsets, lengths, labels: _, names, name_ends, runs } = &self.splits[split as usize];
        for &[first, file] in runs {
            let file = &self.files.all()[file as usize];
            hash.update(file.path.as_os_str().as_bytes());
            hash.update(&[0]);
            hash.update(bytemuck::bytes_of(&[file.bytes(), u64::from(first)]));
            // Nothing for a local file, whose path stands for it.
            file.remote_stamp().iter().for_each(|stamp| hash.update(&stamp.to_le_bytes()));
        }
        hash.update(&u64::from(self.len(split)).to_le_bytes());
        hash.update(bytemuck::cast_slice(offsets));
        for numbers in [lengths, name_ends] {
            hash.update(bytemuck::cast_slice(numbers));
        }
        hash.update(names);
    }

    fn hash_labels(&self, split: Split, hash: &mut Xxh3) {
        hash_labels(&self.splits[split as usize].labels, &self.classes, self.label_sets(), hash);
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn fetched(&self) -> Option<Fetched> {
        self.files.fetched()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two files of three samples each, one of which is empty; the second file is validation.
    fn located() -> (tempfile::TempDir, Located) {
        let dir = tempfile::tempdir().unwrap();
        let (mut files, mut contents) = (Vec::new(), Contents::default());
        for (number, split) in [(0, Split::Train), (1, Split::Val)] {
            let path = dir.path().join(format!("{number}.bin"));
            std::fs::write(&path, "aaabbccccc").unwrap();
            files.push(IndexedFile::new(path.clone(), format!("{number}.bin"), &path.metadata().unwrap()));
            for (name, offset, length) in [("a", 0, 3), ("b", 3, 2), ("e", 5, 0)] {
                let name = format!("{name}.jpg");
                let sample = Location { file: number, offset, length, label: length % 2, name: name.as_bytes() };
                contents.splits[split as usize].push(sample).unwrap();
            }
        }
        contents.classes = ["x", "y"].map(|id| Class { id: id.into(), name: id.into() }).to_vec();
        (dir, Located::new("here".into(), files, contents))
    }

    #[test]
    fn samples_are_read_in_place() {
        let (_dir, source) = located();
        let mut bytes = vec![1; 100];
        for &split in Split::ALL {
            assert_eq!(source.len(split), 3);
            for (sample, (content, label)) in [("aaa", 1), ("bb", 0), ("", 0)].into_iter().enumerate() {
                source.read(split, sample as u32, &mut bytes).unwrap();
                assert_eq!((&*bytes, source.label(split, sample as u32)), (content.as_bytes(), label));
            }
        }
        assert_eq!(source.name(Split::Val, 1), "1.bin/b.jpg");
    }

    #[test]
    fn a_sample_over_the_limit_is_refused_before_memory_is_taken() {
        let (_dir, mut source) = located();
        source.splits[0].lengths[0] = u32::MAX;
        let mut bytes = Vec::new();
        let error = source.read(Split::Train, 0, &mut bytes).unwrap_err();
        assert!(matches!(error, ReadError::TooLarge { .. }) && bytes.capacity() == 0, "{error}");
    }

    #[test]
    fn the_identity_tells_places_names_and_files_apart_and_labels_by_themselves() {
        let (_dir, mut source) = located();
        let identity = |source: &Located, split| {
            let mut hash = Xxh3::new();
            source.hash_samples(split, &mut hash);
            hash.digest()
        };
        let labels = |source: &Located| {
            let mut hash = Xxh3::new();
            source.hash_labels(Split::Train, &mut hash);
            hash.digest()
        };
        let mut seen = vec![identity(&source, Split::Train), identity(&source, Split::Val)];
        source.splits[0].offsets[1] += 1;
        seen.push(identity(&source, Split::Train));
        let before = labels(&source);
        source.splits[0].labels[1] += 1;
        assert_eq!(identity(&source, Split::Train), *seen.last().unwrap(), "pixels depend on no label");
        assert_ne!(labels(&source), before);
        source.splits[0].names[0] += 1;
        seen.push(identity(&source, Split::Train));
        source.splits[0].runs[0][1] = 1;
        seen.push(identity(&source, Split::Train));
        assert_eq!(identity(&source, Split::Val), seen[1]);
        let count = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), count);
    }
}

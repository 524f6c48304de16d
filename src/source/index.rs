//! The relative paths of an image folder's samples, packed: about 28 bytes per sample of ImageNet.
//!
//! Each split keeps the file names end to end in one arena, a `u32` end offset and a `u32` folder number per sample, and each folder's path
//! once. Samples keep the order in which they are pushed, which must be that of the bytes of the whole relative path.

use super::Class;
use super::vocabulary::{Vocabulary, Written};
use crate::types::{ClassId, SampleId, Split};
use std::fmt;
use std::ops::Range;

/// The samples of both splits.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Index {
    train: Samples,
    val: Samples,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Samples {
    /// File names, end to end.
    names: Vec<u8>,
    /// For each sample, where its name ends in `names`; it begins where the previous one ends.
    name_ends: Vec<u32>,
    /// For each sample, its position in `folders`.
    folder_of: Vec<u32>,
    /// In the order of their first samples. A folder that is interrupted by the samples of a folder in it is listed again.
    folders: Vec<ClassFolder>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ClassFolder {
    /// Relative to the root, or absolute.
    path: Box<[u8]>,
    /// Where the class is in the path.
    class: Range<u32>,
    /// The class; 0 until [`Index::assign_labels`].
    label: ClassId,
}

impl ClassFolder {
    fn class(&self) -> &[u8] {
        &self.path[self.class.start as usize..self.class.end as usize]
    }
}

/// A folder of a split whose images follow each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run<'a> {
    /// The folder's path.
    pub folder: &'a [u8],
    /// Where the class is in it.
    pub class: Range<usize>,
    /// Its samples.
    pub samples: Range<SampleId>,
}

/// The names of a split exceed 4 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// A class of the validation split that no training image has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownClass {
    /// The name of its folder.
    pub class: Vec<u8>,
    /// Its first sample.
    pub example: SampleId,
}

impl Index {
    /// Appends the file `name` of `folder` to a split; its class is a part of the folder's path.
    ///
    /// # Errors
    /// When the split is full.
    pub fn push(&mut self, split: Split, folder: &[u8], class: Range<usize>, name: &[u8]) -> Result<(), Full> {
        let samples = match split {
            Split::Train => &mut self.train,
            Split::Val => &mut self.val,
        };
        let name_end = u32::try_from(samples.names.len() + name.len()).map_err(|_| Full)?;
        if samples.folders.last().is_none_or(|last| *last.path != *folder) {
            let class = class.start as u32..class.end as u32;
            samples.folders.push(ClassFolder { path: folder.into(), class, label: 0 });
        }
        samples.names.extend_from_slice(name);
        samples.name_ends.push(name_end);
        samples.folder_of.push(samples.folders.len() as u32 - 1);
        Ok(())
    }

    /// Sets every sample's label and returns the vocabulary: the training classes, sorted by their folders' bytes. Frees what pushing reserved.
    ///
    /// # Errors
    /// When a validation sample's class is not in the vocabulary.
    pub fn assign_labels(&mut self) -> Result<Vec<Class>, UnknownClass> {
        let vocabulary = Vocabulary::of_names(self.train.folders.iter().map(ClassFolder::class));
        for samples in [&mut self.train, &mut self.val] {
            for (nth, folder) in samples.folders.iter_mut().enumerate() {
                folder.label = vocabulary.label(Written::Name(folder.class())).ok_or_else(|| UnknownClass {
                    class: folder.class().to_owned(),
                    example: samples.folder_of.partition_point(|&of| of < nth as u32) as SampleId,
                })?;
            }
            samples.names.shrink_to_fit();
            samples.name_ends.shrink_to_fit();
            samples.folder_of.shrink_to_fit();
            samples.folders.shrink_to_fit();
        }
        Ok(vocabulary.classes)
    }

    /// Samples of a split.
    pub fn len(&self, split: Split) -> u32 {
        self.of(split).name_ends.len() as u32
    }

    /// The class of a sample.
    pub fn label(&self, split: Split, sample: SampleId) -> ClassId {
        let samples = self.of(split);
        samples.folders[samples.folder_of[sample as usize] as usize].label
    }

    /// The folder and the file name of a sample; joined by `/` they are its path.
    pub fn path(&self, split: Split, sample: SampleId) -> [&[u8]; 2] {
        let (samples, at) = (self.of(split), sample as usize);
        let start = if at == 0 { 0 } else { samples.name_ends[at - 1] as usize };
        let name = &samples.names[start..samples.name_ends[at] as usize];
        [&samples.folders[samples.folder_of[at] as usize].path, name]
    }

    /// The paths of a split's samples, in the order of their ids.
    pub fn paths(&self, split: Split) -> impl Iterator<Item = [&[u8]; 2]> {
        (0..self.len(split)).map(move |sample| self.path(split, sample))
    }

    /// The folders of a split, in the order of its samples. A folder that the samples of a folder in it interrupt comes again.
    pub fn runs(&self, split: Split) -> impl Iterator<Item = Run<'_>> {
        let samples = self.of(split);
        let mut start = 0;
        samples.folders.iter().enumerate().map(move |(nth, folder)| {
            let end = samples.folder_of.partition_point(|&of| of <= nth as u32) as SampleId;
            let class = folder.class.start as usize..folder.class.end as usize;
            let run = Run { folder: &folder.path, class, samples: start..end };
            start = end;
            run
        })
    }

    /// Bytes that the index has allocated.
    pub fn bytes(&self) -> usize {
        let of = |samples: &Samples| {
            samples.names.capacity()
                + samples.name_ends.capacity() * size_of::<u32>()
                + samples.folder_of.capacity() * size_of::<u32>()
                + samples.folders.capacity() * size_of::<ClassFolder>()
                + samples.folders.iter().map(|folder| folder.path.len()).sum::<usize>()
        };
        size_of::<Self>() + of(&self.train) + of(&self.val)
    }

    fn of(&self, split: Split) -> &Samples {
        match split {
            Split::Train => &self.train,
            Split::Val => &self.val,
        }
    }
}

/// By its size: a list of a million names helps nobody.
impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [train, val] = [Split::Train, Split::Val].map(|split| self.len(split));
        f.debug_struct("Index").field("train", &train).field("val", &val).field("bytes", &self.bytes()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds `…/train/CLASS/NAME` or `…/val/CLASS/NAME`.
    fn push(index: &mut Index, path: &[u8]) {
        let folder = &path[..memchr::memrchr(b'/', path).unwrap()];
        let class = memchr::memrchr(b'/', folder).unwrap() + 1..folder.len();
        let split = if folder[..class.start].ends_with(b"val/") { Split::Val } else { Split::Train };
        index.push(split, folder, class, &path[folder.len() + 1..]).unwrap();
    }

    /// ImageNet-1k by its counts and the forms of its names: 1,000 classes, 1,281,167 and 50,000 images.
    fn imagenet() -> Index {
        let mut index = Index::default();
        let mut push = |path: String| push(&mut index, path.as_bytes());
        let class = |nth: u32| format!("n{:08}", 1_440_764 + nth * 14_000);
        for nth in 0..1_281_167 {
            push(format!("train/{0}/{0}_{1}.JPEG", class(nth / 1_282), 10_000 + nth % 1_282));
        }
        for nth in 0..50_000 {
            push(format!("val/{}/ILSVRC2012_val_{nth:08}.JPEG", class(nth / 50)));
        }
        index
    }

    #[test]
    fn a_sample_of_imagenet_takes_at_most_64_bytes() {
        let mut index = imagenet();
        assert_eq!(index.assign_labels().unwrap().len(), 1_000);
        let samples = index.len(Split::Train) + index.len(Split::Val);
        assert_eq!(samples, 1_331_167);
        let bytes_per_sample = index.bytes() as f64 / f64::from(samples);
        println!("{bytes_per_sample:.1} bytes per sample, {} in all", index.bytes());
        assert!(bytes_per_sample <= 64.0, "{bytes_per_sample} bytes per sample");
        let path = |split, sample| index.path(split, sample).join(&b'/');
        assert_eq!(path(Split::Train, 1_282), b"train/n01454764/n01454764_10000.JPEG");
        assert_eq!(path(Split::Val, 49_999), b"val/n15426764/ILSVRC2012_val_00049999.JPEG");
        assert_eq!((index.label(Split::Train, 1_281), index.label(Split::Train, 1_282)), (0, 1));
    }

    #[test]
    fn an_index_gives_back_every_path_that_was_pushed() {
        // In the order of their bytes; `b` is interrupted by a folder in it.
        let paths: [&[u8]; 7] = [
            b"a/train/b/1.jpg",
            b"a/train/b/train/c/1.jpg",
            b"a/train/b/z.jpg",
            b"train/a/\xFF.jpg",
            b"train/b-/1.jpg",
            b"train/b/1.jpg",
            b"val/\xFE/1.jpg",
        ];
        let mut index = Index::default();
        paths.iter().for_each(|path| push(&mut index, path));
        let unknown = UnknownClass { class: b"\xFE".to_vec(), example: 0 };
        assert_eq!(index.clone().assign_labels(), Err(unknown));
        push(&mut index, b"train/\xFE/2.jpg");
        let classes = index.assign_labels().unwrap();
        assert_eq!(classes.iter().map(|class| &*class.id).collect::<Vec<_>>(), ["a", "b", "b-", "c", "\u{FFFD}"]);
        let found: Vec<Vec<u8>> =
            Split::ALL.iter().flat_map(|&split| index.paths(split)).map(|p| p.join(&b'/')).collect();
        assert_eq!(found[..6], paths[..6]);
        assert_eq!((&*found[6], &*found[7]), (&b"train/\xFE/2.jpg"[..], paths[6]));
        let labels: Vec<ClassId> = (0..7).map(|sample| index.label(Split::Train, sample)).collect();
        assert_eq!((labels, index.label(Split::Val, 0)), (vec![1, 3, 1, 0, 2, 1, 4], 4));
    }
}

//! CIFAR's and MNIST's binary files as a source: `cifar10:PATH`, `cifar100:PATH`, `mnist:PATH`, `fashion-mnist:PATH`.
//!
//! A sample is raw pixels at a fixed distance from the one before, and is given as a PPM or PGM image, which every decoder here reads. The test set
//! is the validation split.

mod cifar;
mod mnist;
#[cfg(test)]
mod tests;

use super::flaw::Flaw;
use super::located::{Files, IndexedFile};
use super::vocabulary::Vocabulary;
use super::{Class, DataSet, DatasetError, ReadError, Source, Stamp};
use crate::escape::escaped;
use crate::types::{ClassId, SampleId, Split};
use std::fs::{File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// The data sets, by what stands before the colon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Cifar10,
    Cifar100,
    Mnist,
    FashionMnist,
}

impl Kind {
    fn of(data: &Path) -> Option<(Self, &Path)> {
        let (kind, path) = data.to_str()?.split_once(':')?;
        let kind = match kind {
            "cifar10" => Self::Cifar10,
            "cifar100" => Self::Cifar100,
            "mnist" => Self::Mnist,
            "fashion-mnist" => Self::FashionMnist,
            _ => return None,
        };
        Some((kind, Path::new(path)))
    }
}

/// The most values of an image: CIFAR's.
const PIXELS_MAX: usize = 3 * 32 * 32;

/// Size and colors of all images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    width: u32,
    height: u32,
    /// Three whole planes of red, green and blue; or one of gray.
    planes: usize,
}

impl Shape {
    /// Values of an image.
    fn values(self) -> usize {
        self.width as usize * self.height as usize * self.planes
    }
}

/// A file with images of one split.
#[derive(Debug)]
struct Part {
    /// Its number among the files.
    file: u32,
    /// Where its first image begins, and each one after that.
    start: u64,
    stride: u64,
    labels: Vec<u8>,
    /// The whole content of a file that is compressed.
    unpacked: Option<Vec<u8>>,
}

/// Binary files of images.
#[derive(Debug)]
pub struct Binaries {
    location: String,
    shape: Shape,
    classes: Vec<Class>,
    files: Files,
    /// By [`Split`].
    splits: [Vec<Part>; Split::ALL.len()],
}

/// What the reader of a kind finds.
struct Found {
    shape: Shape,
    /// Names of the classes.
    names: Vec<String>,
    files: Vec<IndexedFile>,
    splits: [Vec<Part>; Split::ALL.len()],
}

impl Binaries {
    /// The data set, where it is named as one of these.
    pub(super) fn open(set: &DataSet) -> Result<Option<Self>, DatasetError> {
        let Some((kind, folder)) = Kind::of(&set.data) else {
            return Ok(None);
        };
        let unusable = |path: &Path, cause: String| DatasetError::Unusable { path: path.to_owned(), cause };
        if let Some(place) = Split::ALL.iter().find_map(|&split| set.splits.of(split)) {
            return Err(unusable(folder, format!("has fixed splits: leave out --splits ({place})")));
        }
        let folder = folder.canonicalize().map_err(DatasetError::io("find", folder))?;
        let found = match kind {
            Kind::Cifar10 | Kind::Cifar100 => cifar::find(&folder, kind),
            Kind::Mnist | Kind::FashionMnist => mnist::find(&folder, kind),
        };
        let Found { shape, names, files, splits } = found.map_err(|(path, flaw)| unusable(&path, flaw.to_string()))?;
        for (part, &label) in
            splits.iter().flatten().flat_map(|part| part.labels.iter().map(move |label| (part, label)))
        {
            if usize::from(label) >= names.len() {
                let path = &files[part.file as usize].path;
                return Err(unusable(path, format!("has the label {label}, where there are {} classes", names.len())));
            }
        }
        let classes = Vocabulary::listed(names.into_iter()).classes;
        Ok(Some(Self { location: escaped(&set.data).to_string(), shape, classes, files: Files::new(files), splits }))
    }

    /// The file of a sample, and its number there.
    fn place(&self, split: Split, sample: SampleId) -> (&Part, usize) {
        let mut nth = sample as usize;
        for part in &self.splits[split as usize] {
            if nth < part.labels.len() {
                return (part, nth);
            }
            nth -= part.labels.len();
        }
        panic!("there is no sample {sample} in {split}");
    }
}

impl Source for Binaries {
    fn location(&self) -> String {
        self.location.clone()
    }

    fn classes(&self) -> &[Class] {
        &self.classes
    }

    fn len(&self, split: Split) -> u32 {
        self.splits[split as usize].iter().map(|part| part.labels.len() as u32).sum()
    }

    fn label(&self, split: Split, sample: SampleId) -> ClassId {
        let (part, nth) = self.place(split, sample);
        part.labels[nth].into()
    }

    /// The file and the image's number in it.
    fn name(&self, split: Split, sample: SampleId) -> String {
        let (part, nth) = self.place(split, sample);
        format!("{}#{nth}", escaped(&self.files.all()[part.file as usize].name))
    }

    fn read(&self, split: Split, sample: SampleId, bytes: &mut Vec<u8>) -> Result<Option<Stamp>, ReadError> {
        let ((part, nth), shape) = (self.place(split, sample), self.shape);
        let (start, values) = (part.start + nth as u64 * part.stride, shape.values());
        let mut buffer = [0; PIXELS_MAX];
        let planes = &mut buffer[..values];
        let stamp = match &part.unpacked {
            // Of a file that has changed nothing is served.
            Some(unpacked) => {
                planes.copy_from_slice(&unpacked[start as usize..start as usize + values]);
                self.files.read(part.file, start, &mut [])?
            }
            None => self.files.read(part.file, start, planes)?,
        };
        bytes.clear();
        let kind = if shape.planes == 3 { "P6" } else { "P5" };
        bytes.extend_from_slice(format!("{kind}\n{} {}\n255\n", shape.width, shape.height).as_bytes());
        let plane = values / shape.planes;
        bytes.extend((0..values).map(|at| planes[at % shape.planes * plane + at / shape.planes]));
        Ok(stamp)
    }

    fn stamp(&self, split: Split, sample: SampleId) -> Option<Stamp> {
        let (part, nth) = self.place(split, sample);
        self.files.stamp(part.file, part.start + nth as u64 * part.stride)
    }

    /// Each file's path and size, and where its images are.
    fn hash_samples(&self, split: Split, hash: &mut Xxh3) {
        hash.update(format!("binaries 1 {:?}", self.shape).as_bytes());
        for part in &self.splits[split as usize] {
            let file = &self.files.all()[part.file as usize];
            hash.update(file.path.as_os_str().as_bytes());
            hash.update(&[0]);
            hash.update(bytemuck::cast_slice(&[file.bytes(), part.start, part.stride, part.labels.len() as u64]));
        }
    }

    fn hash_labels(&self, split: Split, hash: &mut Xxh3) {
        self.splits[split as usize].iter().for_each(|part| hash.update(&part.labels));
    }
}

/// What is wrong with which file or folder.
type Refused = (PathBuf, Flaw);

/// Opens a file, and looks at it before anything of it is read.
fn open(path: &Path) -> Result<(File, Metadata), Refused> {
    let opened = File::open(path).and_then(|file| file.metadata().map(|meta| (file, meta)));
    opened.map_err(|error| (path.to_owned(), Flaw::from(error)))
}

/// The file's own name.
fn name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// The first of some folders that has a file.
fn folder_with(folder: &Path, below: &[&str], file: &str) -> Option<PathBuf> {
    below.iter().map(|below| folder.join(below)).find(|folder| folder.join(file).is_file())
}

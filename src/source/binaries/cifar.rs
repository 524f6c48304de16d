//! CIFAR-10 and CIFAR-100 in their binary version: labels of a byte each, then 32x32 pixels in three planes.

use super::super::flaw::Flaw;
use super::super::located::IndexedFile;
use super::{Found, Kind, Part, Refused, Shape, folder_with, name, open};
use std::os::unix::fs::FileExt;
use std::path::Path;

const SHAPE: Shape = Shape { width: 32, height: 32, planes: 3 };
const CIFAR10_NAMES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// The files of a kind.
struct Files {
    /// Where they are below the folder.
    below: &'static [&'static str],
    train: &'static [&'static str],
    val: &'static str,
    /// The names of the classes, a line each.
    names: &'static str,
    classes: usize,
    /// Bytes before the pixels; the last of them is the label.
    label_bytes: u64,
    /// A file of the version for Python.
    pickle: &'static str,
    archive: &'static str,
}

const CIFAR10: Files = Files {
    below: &["", "cifar-10-batches-bin"],
    train: &["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"],
    val: "test_batch.bin",
    names: "batches.meta.txt",
    classes: 10,
    label_bytes: 1,
    pickle: "data_batch_1",
    archive: "cifar-10-binary.tar.gz",
};

/// Its coarse label comes before the fine one.
const CIFAR100: Files = Files {
    below: &["", "cifar-100-binary"],
    train: &["train.bin"],
    val: "test.bin",
    names: "fine_label_names.txt",
    classes: 100,
    label_bytes: 2,
    pickle: "train",
    archive: "cifar-100-binary.tar.gz",
};

pub fn find(folder: &Path, kind: Kind) -> Result<Found, Refused> {
    let expected = if kind == Kind::Cifar10 { CIFAR10 } else { CIFAR100 };
    let Some(folder) = folder_with(folder, expected.below, expected.train[0]) else {
        let python = ["", "cifar-10-batches-py", "cifar-100-python"];
        let has_pickles = folder_with(folder, &python, expected.pickle).is_some();
        let there = if has_pickles { "has the version for Python, which are pickles" } else { "has no files of CIFAR" };
        let flaw = format!(
            "{there}: expected {}, ... of the binary version, {}, unpacked",
            expected.train[0], expected.archive
        );
        return Err((folder.to_owned(), Flaw::new(flaw)));
    };
    let mut found =
        Found { shape: SHAPE, names: names(&folder, &expected), files: Vec::new(), splits: Default::default() };
    for (split, file) in expected.train.iter().map(|file| (0, file)).chain([(1, &expected.val)]) {
        let path = folder.join(file);
        let (part, file) = part(&path, found.files.len() as u32, expected.label_bytes)?;
        found.splits[split].push(part);
        found.files.push(file);
    }
    Ok(found)
}

fn part(path: &Path, number: u32, label_bytes: u64) -> Result<(Part, IndexedFile), Refused> {
    let (file, meta) = open(path)?;
    let stride = label_bytes + SHAPE.values() as u64;
    if meta.len() == 0 || meta.len() % stride != 0 {
        let flaw =
            format!("has {} bytes, which are no whole number of images of {stride} (download it again)", meta.len());
        return Err((path.to_owned(), Flaw::new(flaw)));
    }
    let mut labels = vec![0; (meta.len() / stride) as usize];
    for (nth, label) in labels.iter_mut().enumerate() {
        let at = nth as u64 * stride + label_bytes - 1;
        file.read_exact_at(std::slice::from_mut(label), at).map_err(|error| (path.to_owned(), Flaw::from(error)))?;
    }
    let part = Part { file: number, start: label_bytes, stride, labels, unpacked: None };
    Ok((part, IndexedFile::new(path.to_owned(), name(path), &meta)))
}

/// The names beside the files, or those that are known.
fn names(folder: &Path, expected: &Files) -> Vec<String> {
    let text = std::fs::read_to_string(folder.join(expected.names)).unwrap_or_default();
    let names: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if names.len() == expected.classes {
        return names;
    }
    let known = |nth: usize| CIFAR10_NAMES.get(nth).filter(|_| expected.classes == CIFAR10_NAMES.len());
    (0..expected.classes).map(|nth| known(nth).map_or_else(|| nth.to_string(), |name| (*name).to_owned())).collect()
}

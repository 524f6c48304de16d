//! A folder whose labels stand in a table, or that is laid out as ImageNet: a sample is a file.
//!
//! A table is `--labels FILE`, or Hugging Face's `metadata.csv` or `metadata.jsonl`, in the folder itself or in a folder for each split. ImageNet
//! is Kaggle's archive: `ILSVRC/Data/CLS-LOC/train/<class>/<image>`, and `val/<image>` with the classes in `LOC_val_solution.csv`.

mod found;
mod imagenet;
mod tables;

use super::folder::{path_in, read_file, settled_stamp};
use super::split_words::{KINDS, TEST};
use super::vocabulary::{Sets, Vocabulary, hash_labels};
use super::{Class, DataSet, DatasetError, ReadError, Source, Splits, Stamp, folder};
use crate::escape::escaped;
use crate::types::{ClassId, LabelSet, SampleId, Split};
use found::{Entry, Found};
use imagenet::{imagenet, imagenet_names, of_imagenet};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use tables::{of_tables, tables};
use xxhash_rust::xxh3::Xxh3;

/// A folder with a table.
#[derive(Debug)]
pub struct Listed {
    root: PathBuf,
    splits: [Files; Split::ALL.len()],
    classes: Vec<Class>,
    label_sets: Option<Vec<LabelSet>>,
    notes: Vec<String>,
}

/// The samples of a split, sorted by the bytes of their paths.
#[derive(Debug, Default)]
struct Files {
    /// Paths relative to the root, end to end.
    paths: Vec<u8>,
    /// For each sample, where its path ends in `paths`.
    ends: Vec<usize>,
    labels: Vec<ClassId>,
}

impl Files {
    fn push(&mut self, path: &[u8], label: ClassId) {
        self.paths.extend_from_slice(path);
        self.ends.push(self.paths.len());
        self.labels.push(label);
    }

    fn path(&self, sample: SampleId) -> &[u8] {
        let at = sample as usize;
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.paths[start..self.ends[at]]
    }

    fn shrink(&mut self) {
        self.paths.shrink_to_fit();
        self.ends.shrink_to_fit();
        self.labels.shrink_to_fit();
    }
}

impl Listed {
    /// The data set, where it has a table or is ImageNet's; `None` where folders are the classes.
    ///
    /// # Errors
    /// When a table cannot be read, names no image that is there, or its validation split has classes that training has not.
    pub fn open(set: &DataSet) -> Result<Option<Self>, DatasetError> {
        let Ok(root) = set
            .data
            .canonicalize()
            .and_then(|root| root.is_dir().then_some(root).ok_or(io::ErrorKind::NotADirectory.into()))
        else {
            return Ok(None);
        };
        let tables = tables(set, &root)?;
        // A table that nobody asked for may be of something else.
        let is_folder = set.labels.is_none() && folder::has_classes(&root);
        if !tables.is_empty() {
            let listed = of_tables(&root, &tables, set, is_folder);
            return match listed.and_then(|found| Self::new(root, found, &HashMap::new())) {
                Err(error) if is_folder => {
                    tracing::warn!("{error}: the names of folders are the labels");
                    Ok(None)
                }
                listed => listed.map(Some),
            };
        }
        if set.splits != Splits::default() {
            return Ok(None);
        }
        let Some((images, solution)) = imagenet(&root) else { return Ok(None) };
        let names = imagenet_names(&solution);
        let found = of_imagenet(&images, &solution)?;
        Self::new(images, found, &names).map(Some)
    }

    fn new(root: PathBuf, found: Found, names: &HashMap<String, String>) -> Result<Self, DatasetError> {
        let Found { mut entries, is_multi, mut notes } = found;
        notes.extend(one_val(&mut entries));
        entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        if let Some(twice) = entries.windows(2).find(|pair| pair[0].path == pair[1].path) {
            let cause = format!(
                "names {} twice: give an image all its labels in one row",
                escaped(OsStr::from_bytes(&twice[0].path))
            );
            return Err(DatasetError::Labels { path: root, cause });
        }
        let training = || entries.iter().filter(|entry| entry.split() == Split::Train);
        if training().next().is_none() {
            let cause =
                "gives no image to the training split (its column split, or the folders in its names)".to_owned();
            return Err(DatasetError::Labels { path: root, cause });
        }
        let mut vocabulary = Vocabulary::of_texts(training().flat_map(|entry| entry.labels.iter().map(String::as_str)));
        let (mut sets, mut splits) = (Sets::default(), [Files::default(), Files::default()]);
        // Training first, so that sets have the numbers that they have in shards (`mixd pack`).
        let by_split = Split::ALL.iter().flat_map(|&split| entries.iter().filter(move |entry| entry.split() == split));
        for entry in by_split {
            let labels: Result<Vec<ClassId>, &String> =
                entry.labels.iter().map(|text| vocabulary.label_of_text(text).ok_or(text)).collect();
            let labels = labels.map_err(|class| DatasetError::UnknownClass {
                root: root.clone(),
                class: class.into(),
                example: OsStr::from_bytes(&entry.path).into(),
            })?;
            let label = if is_multi { sets.number(labels) } else { labels[0] };
            splits[entry.split() as usize].push(&entry.path, label);
        }
        splits.iter_mut().for_each(Files::shrink);
        for class in &mut vocabulary.classes {
            if let Some(name) = names.get(&class.id) {
                class.name.clone_from(name);
            }
        }
        let label_sets = is_multi.then(|| sets.into_sets());
        Ok(Self { root, splits, classes: vocabulary.classes, label_sets, notes })
    }

    fn files(&self, split: Split) -> &Files {
        &self.splits[split as usize]
    }
}

/// Leaves the test split out where there is another for validation; returns what a user should know of that.
fn one_val(entries: &mut Vec<Entry>) -> Option<String> {
    let count = |kind| entries.iter().filter(|entry| entry.kind == kind).count();
    let (others, tests) = ((0..TEST).any(|kind| KINDS[kind].0 == Split::Val && count(kind) > 0), count(TEST));
    if others {
        entries.retain(|entry| entry.kind != TEST);
    }
    (tests > 0).then(|| match others {
        true => format!("images of the test split left out: {tests} (--splits val=test takes them)"),
        false => format!("images of the test split taken for validation: {tests}"),
    })
}

impl Source for Listed {
    fn location(&self) -> String {
        escaped(&self.root).to_string()
    }

    fn classes(&self) -> &[Class] {
        &self.classes
    }

    fn label_sets(&self) -> Option<&[LabelSet]> {
        self.label_sets.as_deref()
    }

    fn len(&self, split: Split) -> u32 {
        self.files(split).labels.len() as u32
    }

    fn label(&self, split: Split, sample: SampleId) -> ClassId {
        self.files(split).labels[sample as usize]
    }

    /// The path relative to the folder.
    fn name(&self, split: Split, sample: SampleId) -> String {
        escaped(OsStr::from_bytes(self.files(split).path(sample))).to_string()
    }

    fn read(&self, split: Split, sample: SampleId, bytes: &mut Vec<u8>) -> Result<Option<Stamp>, ReadError> {
        let path = self.files(split).path(sample);
        read_file(path_in([self.root.as_os_str().as_bytes(), path], |path| File::open(path))?, bytes)
    }

    fn stamp(&self, split: Split, sample: SampleId) -> Option<Stamp> {
        let path = self.files(split).path(sample);
        path_in([self.root.as_os_str().as_bytes(), path], Path::metadata).ok().as_ref().and_then(settled_stamp)
    }

    fn hash_samples(&self, split: Split, hash: &mut Xxh3) {
        hash.update(self.root.as_os_str().as_bytes());
        hash.update(&[0]);
        for sample in 0..self.len(split) {
            hash.update(self.files(split).path(sample));
            hash.update(&[0]);
        }
    }

    /// Labels may change while no file does.
    fn hash_labels(&self, split: Split, hash: &mut Xxh3) {
        hash_labels(&self.files(split).labels, &self.classes, self.label_sets(), hash);
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }
}

#[cfg(test)]
mod tests;

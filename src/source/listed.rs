//! A folder whose labels stand in a table, or that is laid out as ImageNet: a sample is a file.
//!
//! A table is `--labels FILE`, or Hugging Face's `metadata.csv` or `metadata.jsonl`, in the folder itself or in a folder for each split. ImageNet
//! is Kaggle's archive: `ILSVRC/Data/CLS-LOC/train/<class>/<image>`, and `val/<image>` with the classes in `LOC_val_solution.csv`.

use super::folder::{path_in, read_file, settled_stamp};
use super::label_table::Table;
use super::split_words::{KINDS, TEST, kind};
use super::tally::{Ignored, Tally};
use super::vocabulary::{Sets, Vocabulary};
use super::walk::is_image;
use super::{Class, DataSet, DatasetError, ReadError, Source, Splits, Stamp, folder};
use crate::escape::escaped;
use crate::types::{ClassId, LabelSet, SampleId, Split};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use walkdir::WalkDir;
use xxhash_rust::xxh3::Xxh3;

/// Tables that are found by themselves.
const TABLES: [&str; 2] = ["metadata.csv", "metadata.jsonl"];
/// Where ImageNet's images are in its archive.
const IMAGENET: &str = "ILSVRC/Data/CLS-LOC";
/// The classes of ImageNet's validation images.
const IMAGENET_VAL: &str = "LOC_val_solution.csv";
/// Names of ImageNet's classes.
const IMAGENET_NAMES: &str = "LOC_synset_mapping.txt";

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

/// One image and what is known of it.
struct Entry {
    path: Vec<u8>,
    labels: Vec<String>,
    /// A position in [`KINDS`].
    kind: usize,
}

impl Entry {
    fn split(&self) -> Split {
        KINDS[self.kind].0
    }
}

/// What a folder turned out to hold.
struct Found {
    entries: Vec<Entry>,
    is_multi: bool,
    notes: Vec<String>,
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
        let names = imagenet_names(&solution.with_file_name(IMAGENET_NAMES));
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
        let mut vocabulary = Vocabulary::of(training().flat_map(|entry| entry.labels.iter().map(String::as_str)));
        let (mut sets, mut splits) = (Sets::default(), [Files::default(), Files::default()]);
        for entry in &entries {
            let labels: Result<Vec<ClassId>, &String> =
                entry.labels.iter().map(|text| vocabulary.label(text).ok_or(text)).collect();
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

/// What a split's name means.
enum Named {
    /// A position in [`KINDS`].
    Kind(usize),
    /// A split that is not asked for.
    NotAskedFor,
    /// No split.
    Nothing,
}

fn named(name: &str, set: &DataSet) -> Named {
    let kind_of = |split: Split| KINDS.iter().position(|(of, _)| *of == split).expect("each has words");
    if let Some(&split) = Split::ALL.iter().find(|&&split| set.splits.of(split) == Some(name)) {
        return Named::Kind(kind_of(split));
    }
    match kind(name) {
        Some(kind) if set.splits.of(KINDS[kind].0).is_none() => Named::Kind(kind),
        None if set.splits == Splits::default() => Named::Nothing,
        _ => Named::NotAskedFor,
    }
}

/// A table, the folder that its files are relative to, and the kind of split that it is of.
type TableAt = (PathBuf, PathBuf, Option<usize>);

/// The tables of a folder.
fn tables(set: &DataSet, root: &Path) -> Result<Vec<TableAt>, DatasetError> {
    if let Some(labels) = &set.labels {
        return Ok(vec![(labels.clone(), root.to_owned(), None)]);
    }
    let table_in = |folder: &Path| TABLES.iter().map(|name| folder.join(name)).find(|table| table.is_file());
    if let Some(table) = table_in(root) {
        return Ok(vec![(table, root.to_owned(), None)]);
    }
    let mut tables = Vec::new();
    for entry in std::fs::read_dir(root).map_err(DatasetError::io("list", root))?.flatten() {
        if let (Some(table), Some(name)) = (table_in(&entry.path()), entry.file_name().to_str())
            && let Named::Kind(kind) = named(name, set)
        {
            tables.push((table, entry.path(), Some(kind)));
        }
    }
    // Of several words for a split one counts.
    tables.sort_unstable_by_key(|(_, folder, kind)| (*kind, folder.clone()));
    tables.dedup_by_key(|(.., kind)| *kind);
    Ok(tables)
}

/// The images below `folder`, relative to it; links are followed, names with a leading dot not seen, and other files than `table` counted.
fn images(folder: &Path, table: &Path, tally: &mut Tally) -> Result<Vec<Vec<u8>>, DatasetError> {
    let walk = WalkDir::new(folder).follow_links(true).min_depth(1).into_iter();
    let mut images = Vec::new();
    for entry in walk.filter_entry(|entry| !entry.file_name().as_bytes().starts_with(b".")) {
        match entry {
            Ok(entry) if !entry.file_type().is_file() || entry.path() == table => {}
            Ok(entry) if is_image(entry.path()) => {
                let path = entry.path().strip_prefix(folder).expect("below it");
                images.push(path.as_os_str().as_bytes().to_vec());
            }
            Ok(_) => tally.file(Ignored::NotAnImage),
            Err(error) if error.loop_ancestor().is_some() => tally.cycle(),
            Err(error) if error.io_error().is_some_and(|error| error.kind() == io::ErrorKind::NotFound) => {
                tally.file(Ignored::Broken);
            }
            Err(error) => {
                let path = error.path().unwrap_or(folder).to_owned();
                let source = error.into_io_error().unwrap_or_else(|| io::ErrorKind::Other.into());
                return Err(DatasetError::Io { action: "list", path, source });
            }
        }
    }
    images.sort_unstable();
    Ok(images)
}

/// A path without its image's ending.
fn stem(path: &[u8]) -> &[u8] {
    path.iter().rposition(|&byte| byte == b'.').map_or(path, |dot| &path[..dot])
}

fn of_tables(root: &Path, tables: &[TableAt], set: &DataSet, by_custom: bool) -> Result<Found, DatasetError> {
    let mut found = Found { entries: Vec::new(), is_multi: false, notes: Vec::new() };
    let mut tally = Tally::default();
    for (nth, (path, folder, kind)) in tables.iter().enumerate() {
        let refused = |cause: String| DatasetError::Labels { path: path.clone(), cause };
        let table = Table::read(path, set.label_key.as_deref(), by_custom)?;
        if nth > 0 && table.is_multi != found.is_multi {
            return Err(refused(
                "has several labels an image where another table of the set has one, or the other way round".to_owned(),
            ));
        }
        found.is_multi = table.is_multi;
        let there = images(folder, path, &mut tally)?;
        let prefix = folder.strip_prefix(root).unwrap_or(Path::new("")).as_os_str().as_bytes().to_vec();
        let by_stem: HashMap<&[u8], &Vec<u8>> = there.iter().map(|path| (stem(path), path)).collect();
        let (mut missing, mut listed) = (None, 0);
        for row in table.rows {
            let name = row.file.as_bytes();
            let is_there = there.binary_search_by(|path| path.as_slice().cmp(name)).is_ok();
            let file = if is_there { Some(name) } else { by_stem.get(name).map(|path| path.as_slice()) };
            let Some(file) = file else {
                tally.file(Ignored::NotThere);
                missing.get_or_insert(row.file);
                continue;
            };
            listed += 1;
            let by_name = match (kind, &row.split) {
                (Some(kind), _) => Named::Kind(*kind),
                (None, Some(name)) => match named(name, set) {
                    Named::Nothing => {
                        let name = escaped(name);
                        return Err(refused(format!(
                            "has the split `{name}` (use train and val, or name them with --splits train=NAME,val=NAME)"
                        )));
                    }
                    known => known,
                },
                (None, None) => {
                    let folders = row.file.split('/').rev().skip(1);
                    let mut known =
                        folders.map(|name| named(name, set)).filter(|named| matches!(named, Named::Kind(_)));
                    known.next().unwrap_or(Named::Kind(0))
                }
            };
            match by_name {
                Named::Kind(kind) => {
                    let path = if prefix.is_empty() { file.to_vec() } else { [&prefix, &b"/"[..], file].concat() };
                    found.entries.push(Entry { path, labels: row.labels, kind });
                }
                _ => tally.file(Ignored::OtherSplit),
            }
        }
        if let (0, Some(missing)) = (listed, missing) {
            return Err(refused(format!(
                "names no image of {}: {} is not there (names are relative to that folder)",
                escaped(&folder),
                escaped(&missing)
            )));
        }
        (listed..there.len() as u64).for_each(|_| tally.file(Ignored::Unnamed));
    }
    for &split in Split::ALL {
        if let Some(place) = set.splits.of(split).filter(|_| found.entries.iter().all(|entry| entry.split() != split)) {
            let cause = format!("has no image of the split `{}` (--splits)", escaped(place));
            return Err(DatasetError::Labels { path: tables[0].0.clone(), cause });
        }
    }
    found.notes = tally.notes();
    Ok(found)
}

/// Where ImageNet's images are, and the classes of its validation images; `None` where the folder is not laid out as ImageNet, or its validation
/// images lie in folders of their classes.
fn imagenet(root: &Path) -> Option<(PathBuf, PathBuf)> {
    // Any folder from the archive's own down to the images'.
    let depth = Path::new(IMAGENET).components().count();
    let mut tails = (0..=depth).map(|skip| Path::new(IMAGENET).components().skip(skip).collect::<PathBuf>());
    let images = tails.find_map(|tail| {
        let images = if tail.as_os_str().is_empty() { root.to_owned() } else { root.join(tail) };
        (images.ends_with(IMAGENET) && images.join("train").is_dir() && images.join("val").is_dir()).then_some(images)
    })?;
    let first = std::fs::read_dir(images.join("val")).ok()?.flatten().next()?;
    if !first.path().is_file() {
        return None;
    }
    let solution =
        images.ancestors().take(depth + 1).map(|folder| folder.join(IMAGENET_VAL)).find(|file| file.is_file());
    Some((
        images.clone(),
        solution.unwrap_or_else(|| images.ancestors().nth(depth).unwrap_or(&images).join(IMAGENET_VAL)),
    ))
}

fn of_imagenet(images_in: &Path, solution: &Path) -> Result<Found, DatasetError> {
    let text = std::fs::read_to_string(solution).map_err(DatasetError::io("read", solution))?;
    // ImageId,PredictionString: the class, then the corners of a box, for each object.
    let class_of = |line: &str| {
        let (image, prediction) = line.trim().split_once(',')?;
        Some((image.to_owned(), prediction.split_whitespace().next()?.to_owned()))
    };
    let classes: HashMap<String, String> = text.lines().skip(1).filter_map(class_of).collect();
    let (mut entries, mut tally) = (Vec::new(), Tally::default());
    for (kind, folder) in ["train", "val"].into_iter().enumerate() {
        for image in images(&images_in.join(folder), solution, &mut tally)? {
            let class = match KINDS[kind].0 {
                Split::Train => {
                    let end = image.iter().position(|&byte| byte == b'/');
                    end.map(|end| String::from_utf8_lossy(&image[..end]).into_owned())
                }
                Split::Val => std::str::from_utf8(stem(&image)).ok().and_then(|name| classes.get(name).cloned()),
            };
            let path = [folder.as_bytes(), b"/", &image].concat();
            match class {
                Some(class) => entries.push(Entry { path, labels: vec![class], kind }),
                None => tally.file(Ignored::Unnamed),
            }
        }
    }
    Ok(Found { entries, is_multi: false, notes: tally.notes() })
}

/// Readable names: a line is a class and its synonyms.
fn imagenet_names(mapping: &Path) -> HashMap<String, String> {
    let text = std::fs::read_to_string(mapping).unwrap_or_default();
    let name = |line: &str| {
        let (class, synonyms) = line.split_once(' ')?;
        Some((class.to_owned(), synonyms.split(',').next()?.trim().to_owned()))
    };
    text.lines().filter_map(name).collect()
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

    fn hash_identity(&self, split: Split, hash: &mut Xxh3) {
        hash.update(self.root.as_os_str().as_bytes());
        hash.update(&[0]);
        // Labels may change while no file does.
        for sample in 0..self.len(split) {
            hash.update(self.files(split).path(sample));
            hash.update(&[0]);
            hash.update(&self.label(split, sample).to_le_bytes());
        }
        for class in &self.classes {
            hash.update(class.id.as_bytes());
            hash.update(&[0]);
        }
        for set in self.label_sets.iter().flatten() {
            hash.update(bytemuck::cast_slice(set));
            hash.update(&u32::MAX.to_le_bytes());
        }
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }
}

#[cfg(test)]
mod tests {
    use super::super::open;
    use super::*;
    use std::sync::Arc;
    use tempfile::TempDir;

    /// A folder of files, each with its path as its content where nothing else is given.
    fn folder(files: &[(&str, &str)]) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let file = dir.path().join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, if text.is_empty() { path } else { text }).unwrap();
        }
        dir
    }

    fn opened(dir: &TempDir, change: impl FnOnce(&mut DataSet)) -> Result<Arc<dyn Source>, DatasetError> {
        let mut set = DataSet::at(dir.path());
        change(&mut set);
        open(&set, &mut |_| {})
    }

    /// `name:label` of each sample; that its bytes are those of its file is checked.
    fn shown(source: &dyn Source, split: Split) -> Vec<String> {
        let mut bytes = Vec::new();
        let each = (0..source.len(split)).map(|sample| {
            let name = source.name(split, sample);
            source.read(split, sample, &mut bytes).unwrap();
            assert_eq!(String::from_utf8_lossy(&bytes), name);
            format!("{name}:{}", source.label_name(source.label(split, sample)))
        });
        each.collect()
    }

    #[test]
    fn a_folder_has_the_labels_of_its_metadata() {
        let table = "file_name,label\nb.jpg,dog\nsub/a.png,cat\n";
        let dir = folder(&[("metadata.csv", table), ("b.jpg", ""), ("sub/a.png", "")]);
        let source = opened(&dir, |_| {}).unwrap();
        assert_eq!(shown(&*source, Split::Train), ["b.jpg:dog", "sub/a.png:cat"]);
        assert!(source.len(Split::Val) == 0 && source.label_sets().is_none() && source.notes().is_empty());
        assert_eq!(source.classes().iter().map(|class| &*class.id).collect::<Vec<_>>(), ["cat", "dog"]);
    }

    #[test]
    fn splits_have_tables_of_their_own_or_a_column_or_folders() {
        let [train, val] = [
            "{\"file_name\": \"1.jpg\", \"label\": 1}\n{\"file_name\": \"2.jpg\", \"label\": 0}",
            "{\"file_name\": \"1.jpg\", \"label\": 1}",
        ];
        let apart = folder(&[
            ("train/metadata.jsonl", train),
            ("train/1.jpg", ""),
            ("train/2.jpg", ""),
            ("validation/metadata.jsonl", val),
            ("validation/1.jpg", ""),
            ("test/metadata.jsonl", val),
            ("test/1.jpg", ""),
        ]);
        let source = opened(&apart, |_| {}).unwrap();
        assert_eq!(shown(&*source, Split::Train), ["train/1.jpg:1", "train/2.jpg:0"]);
        assert_eq!(shown(&*source, Split::Val), ["validation/1.jpg:1"]);
        let source = opened(&apart, |set| set.splits = "val=test".parse().unwrap()).unwrap();
        assert_eq!(shown(&*source, Split::Val), ["test/1.jpg:1"]);
        let column = "file,label,split\n1.jpg,a,train\n2.jpg,a,valid\n";
        let column = folder(&[("metadata.csv", column), ("1.jpg", ""), ("2.jpg", "")]);
        assert_eq!(shown(&*opened(&column, |_| {}).unwrap(), Split::Val), ["2.jpg:a"]);
        let folders = "train/x/1.jpg,a\nval/x/2.jpg,a\n";
        let folders = folder(&[("labels.csv", folders), ("train/x/1.jpg", ""), ("val/x/2.jpg", "")]);
        let source = opened(&folders, |set| set.labels = Some(set.data.join("labels.csv"))).unwrap();
        assert_eq!(
            [Split::Train, Split::Val].map(|split| shown(&*source, split)),
            [["train/x/1.jpg:a"], ["val/x/2.jpg:a"]]
        );
    }

    #[test]
    fn a_test_split_is_for_validation_where_there_is_no_other() {
        let with = |rows: &str| {
            let table = format!("file,label,split\n1.jpg,a,train\n{rows}");
            folder(&[("metadata.csv", &table), ("1.jpg", ""), ("2.jpg", ""), ("3.jpg", "")])
        };
        let (both, alone) = (with("2.jpg,a,val\n3.jpg,a,test\n"), with("2.jpg,a,test\n3.jpg,a,test\n"));
        let source = opened(&both, |_| {}).unwrap();
        assert_eq!(shown(&*source, Split::Val), ["2.jpg:a"]);
        assert_eq!(source.notes(), ["images of the test split left out: 1 (--splits val=test takes them)"]);
        let source = opened(&alone, |_| {}).unwrap();
        assert_eq!(shown(&*source, Split::Val), ["2.jpg:a", "3.jpg:a"]);
        assert_eq!(source.notes(), ["images of the test split taken for validation: 2"]);
        let source = opened(&both, |set| set.splits = "val=test".parse().unwrap()).unwrap();
        assert_eq!(shown(&*source, Split::Val), ["3.jpg:a"]);
        assert_eq!(source.notes(), ["1 file ignored: 1 image of another split"]);
        let refused = |set: fn(&mut DataSet), rows| opened(&with(rows), set).unwrap_err().to_string();
        let error = refused(|_| {}, "2.jpg,a,fold\u{1b}3\n");
        assert!(error.contains("has the split `fold\\x1b3`") && error.contains("--splits"), "{error}");
        let error = refused(|set| set.splits = "val=fold9".parse().unwrap(), "2.jpg,a,fold3\n");
        assert!(error.contains("has no image of the split `fold9`"), "{error}");
    }

    #[test]
    fn images_with_several_labels_have_sets_of_them() {
        let table = "image_name,tags\n1,haze primary\n2,primary haze\n3,\n4,water\n";
        let dir = folder(&[("tags.csv", table), ("1.jpg", ""), ("2.jpg", ""), ("3.jpg", ""), ("4.jpg", "")]);
        let source = opened(&dir, |set| set.labels = Some(set.data.join("tags.csv"))).unwrap();
        assert_eq!(
            shown(&*source, Split::Train),
            ["1.jpg:haze + primary", "2.jpg:haze + primary", "3.jpg:no label", "4.jpg:water"]
        );
        assert_eq!(source.label_sets().unwrap(), [&[0, 1][..], &[], &[2]].map(LabelSet::from));
        let labels: Vec<_> = (0..4).map(|sample| source.label(Split::Train, sample)).collect();
        assert_eq!(labels, [0, 0, 1, 2]);
    }

    #[test]
    fn what_does_not_match_is_said() {
        let table = "file,label\n1.jpg,a\ngone.jpg,a\n";
        let dir = folder(&[("metadata.csv", table), ("1.jpg", ""), ("2.jpg", ""), ("x.txt", "text")]);
        let source = opened(&dir, |_| {}).unwrap();
        assert_eq!(shown(&*source, Split::Train), ["1.jpg:a"]);
        let notes = source.notes().join("\n");
        assert_eq!(
            notes,
            "3 files ignored: 1 not an image, 1 image that no table names, 1 file of a table that is not there"
        );
        let refused = |files: &[(&str, &str)]| opened(&folder(files), |_| {}).unwrap_err().to_string();
        let error = refused(&[("metadata.csv", "file,label\n2.jpg,a\n"), ("1.jpg", "")]);
        assert!(error.contains("names no image") && error.contains("2.jpg is not there"), "{error}");
        let error = refused(&[("metadata.csv", "file,label\n1.jpg,a\n1.jpg,b\n"), ("1.jpg", "")]);
        assert!(error.contains("names 1.jpg twice"), "{error}");
        let error = refused(&[
            ("metadata.csv", "file,label,split\n1.jpg,a,train\n2.jpg,b,val\n"),
            ("1.jpg", ""),
            ("2.jpg", ""),
        ]);
        assert!(error.contains("`b`") && error.contains("2.jpg"), "{error}");
        let error = refused(&[("metadata.csv", "file,width\n1.jpg,a\n,"), ("1.jpg", "")]);
        assert!(error.contains("metadata.csv names no file in line 3"), "{error}");
    }

    #[test]
    fn imagenet_is_read_as_it_is_packed() {
        let solution = "ImageId,PredictionString\nILSVRC2012_val_00000001,n02 1 2 3 4 n02 5 6 7 8\n\
                        ILSVRC2012_val_00000002,n01 85 1 499 272\n";
        let names = "n01 tench, Tinca tinca\nn02 goldfish, Carassius auratus\n";
        let dir = folder(&[
            ("LOC_val_solution.csv", solution),
            ("LOC_synset_mapping.txt", names),
            ("ILSVRC/Data/CLS-LOC/train/n01/n01_7.JPEG", "train/n01/n01_7.JPEG"),
            ("ILSVRC/Data/CLS-LOC/train/n02/n02_3.JPEG", "train/n02/n02_3.JPEG"),
            ("ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG", "val/ILSVRC2012_val_00000001.JPEG"),
            ("ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000002.JPEG", "val/ILSVRC2012_val_00000002.JPEG"),
            ("ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000003.JPEG", "val/ILSVRC2012_val_00000003.JPEG"),
            ("ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG", ""),
        ]);
        for below in ["", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"] {
            let source = opened(&dir, |set| set.data.push(below)).unwrap();
            assert_eq!(
                shown(&*source, Split::Train),
                ["train/n01/n01_7.JPEG:tench", "train/n02/n02_3.JPEG:goldfish"],
                "{below}"
            );
            assert_eq!(
                shown(&*source, Split::Val),
                ["val/ILSVRC2012_val_00000001.JPEG:goldfish", "val/ILSVRC2012_val_00000002.JPEG:tench"]
            );
            assert_eq!(source.notes(), ["1 file ignored: 1 image that no table names"]);
        }
        std::fs::remove_file(dir.path().join("LOC_val_solution.csv")).unwrap();
        let error = opened(&dir, |_| {}).unwrap_err().to_string();
        assert!(error.contains("cannot read") && error.contains("LOC_val_solution.csv"), "{error}");
    }

    #[test]
    fn labels_are_part_of_the_identity() {
        let dir = folder(&[("metadata.csv", "file,label\n1.jpg,a\n2.jpg,b\n"), ("1.jpg", ""), ("2.jpg", "")]);
        let identity = || {
            let mut hash = Xxh3::new();
            opened(&dir, |_| {}).unwrap().hash_identity(Split::Train, &mut hash);
            hash.digest()
        };
        let before = identity();
        assert_eq!(identity(), before);
        std::fs::write(dir.path().join("metadata.csv"), "file,label\n1.jpg,b\n2.jpg,a\n").unwrap();
        assert_ne!(identity(), before);
    }
}

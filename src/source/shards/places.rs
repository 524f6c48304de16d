//! Which files are the shards of a data set: by patterns, or all of a folder, told apart by the words in their names.

use super::super::image_names::is_image;
use super::super::pattern::{self, Malformed, is_pattern};
use super::super::split_words::{KINDS, TEST, kind};
use super::super::{DataSet, DatasetError};
use super::names::{Beside, ListedSplit};
use crate::escape::escaped;
use crate::types::Split;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The shards of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// What people call the data set.
    pub location: String,
    /// The folder that patterns and names begin from.
    pub base: PathBuf,
    /// What describes the shards in that folder.
    pub beside: Beside,
    /// The shards of each split, by [`Split`].
    pub shards: [Vec<PathBuf>; Split::ALL.len()],
    /// How many samples a split has, where that is said.
    pub expected: [Option<u64>; Split::ALL.len()],
    /// What was chosen that the user did not name.
    pub notes: Vec<String>,
}

/// The shards of `set`; `None` when it is something else than shards.
///
/// # Errors
/// When patterns stand for files that are not there.
pub fn find(set: &DataSet) -> Result<Option<Places>, DatasetError> {
    let names_shards = |place: &str| ends_as_shard(OsStr::new(place)) || place.contains(".tar");
    let are_given = Split::ALL.iter().any(|&split| set.splits.of(split).is_some_and(names_shards));
    match std::fs::metadata(&set.data) {
        Ok(meta) if meta.is_dir() && (are_given || holds_shards(&set.data)) => in_folder(set).map(Some),
        Ok(meta) if meta.is_file() && are_given => by_pattern(set).map(Some),
        Ok(_) => Ok(None),
        Err(_) => {
            let is_pattern = set.data.to_str().is_some_and(|text| names_shards(text) && is_pattern(text));
            if is_pattern { by_pattern(set).map(Some) } else { Ok(None) }
        }
    }
}

fn ends_as_shard(name: &OsStr) -> bool {
    name.as_bytes().ends_with(b".tar")
}

/// The shards in a folder, in the order of their bytes.
fn listed(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let is_shard = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default();
        ends_as_shard(name) && !name.as_bytes().starts_with(b".") && path.is_file()
    };
    let mut found: Vec<_> = entries.map(|entry| entry.path()).filter(is_shard).collect();
    found.sort_unstable_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    found
}

/// The folders in a folder whose names say a split.
fn split_folders(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| word(Path::new(path.file_name().unwrap_or_default())).is_some() && path.is_dir())
        .collect();
    found.sort_unstable();
    found
}

/// Whether a folder is one of shards rather than of images: tars lie in it and no images, or in the folders of its splits and no other folders there.
fn holds_shards(folder: &Path) -> bool {
    let of_splits = split_folders(folder);
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    if entries.map(|entry| entry.path()).any(|path| is_image(&path) && path.is_file()) {
        return false;
    }
    let has_folders =
        |folder: &PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten().any(|entry| entry.path().is_dir());
    !of_splits.iter().any(has_folders)
        && (!listed(folder).is_empty() || of_splits.iter().any(|of| !listed(of).is_empty()))
}

/// The split that a path names, as a position in [`KINDS`]: the last word in it that names one.
fn word(path: &Path) -> Option<usize> {
    let text = path.to_str()?.to_ascii_lowercase();
    let text = text.strip_suffix(".tar").unwrap_or(&text);
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    words.rev().find_map(|word| {
        let word = word.trim_end_matches(|c: char| c.is_ascii_digit());
        kind(word)
    })
}

/// The shards of a folder, each split's by its place if that is given, else by the folder's info file, else by their names.
fn in_folder(set: &DataSet) -> Result<Places, DatasetError> {
    let base = set.data.canonicalize().map_err(DatasetError::io("find", &set.data))?;
    let mut all = listed(&base);
    split_folders(&base).iter().for_each(|folder| all.extend(listed(folder)));
    let mut places = Places::at(escaped(&base).to_string(), Beside::in_folder(&base), base);
    places.given(set)?;
    for (split, listed) in places.listed(set) {
        for shard in &listed.shards {
            let more = places.resolve(shard)?;
            places.shards[split as usize].extend(more);
        }
        places.expected[split as usize] = listed.samples;
    }
    // What an info file does not list is no part of the set.
    if places.shards[Split::Train as usize].is_empty() || set.splits.of(Split::Train).is_some() {
        places.rest(set, all, false);
    }
    places.checked()
}

/// The shards that a pattern stands for.
fn by_pattern(set: &DataSet) -> Result<Places, DatasetError> {
    let text = set.data.to_str().unwrap_or_default();
    let folder = pattern::folder(text);
    let below = text[folder.len()..].trim_start_matches('/');
    let folder = Path::new(if folder.is_empty() { "." } else { folder });
    let base = folder.canonicalize().map_err(DatasetError::io("find", folder))?;
    let location = escaped(&base.join(below)).to_string();
    let mut places = Places::at(location, Beside::in_folder(&base), base);
    // Patterns after the first begin where the first does: at the process's folder.
    let mut all = Vec::new();
    for (nth, part) in pattern::parts(below).enumerate() {
        let part = if nth == 0 { part.to_owned() } else { absolute(part)? };
        all.extend(places.resolve(&part)?);
    }
    places.given(set)?;
    places.rest(set, all, true);
    places.checked()
}

/// A pattern from the process's folder as one from the root.
fn absolute(pattern: &str) -> Result<String, DatasetError> {
    let path = std::path::absolute(pattern).map_err(DatasetError::io("find", Path::new(pattern)))?;
    Ok(path.to_string_lossy().into_owned())
}

/// Whether a split's place is a word in the names of its shards rather than a pattern.
pub fn is_word(place: &str) -> bool {
    place.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

impl Places {
    /// No shards yet.
    pub fn at(location: String, beside: Beside, base: PathBuf) -> Self {
        Self { location, base, beside, shards: Default::default(), expected: Default::default(), notes: Vec::new() }
    }

    /// The splits that an info file lists, but for those whose places are given.
    pub fn listed(&self, set: &DataSet) -> Vec<(Split, ListedSplit)> {
        let is_free = |split: &Split| set.splits.of(*split).is_none();
        let listed = |split: Split| {
            let of_split = KINDS.iter().filter(|(of, _)| *of == split);
            let names: Vec<&str> = of_split.flat_map(|(_, words)| *words).copied().collect();
            Some((split, self.beside.listed_split(&names)?))
        };
        Split::ALL.iter().copied().filter(is_free).filter_map(listed).collect()
    }

    /// What is wrong with the set.
    pub fn refused(&self, cause: String) -> DatasetError {
        DatasetError::Shards { location: self.location.clone(), cause }
    }

    /// The files that a pattern stands for; one that is a folder stands for its shards.
    fn resolve(&self, pattern: &str) -> Result<Vec<PathBuf>, DatasetError> {
        let mut found = Vec::new();
        for name in pattern::names(pattern).map_err(|Malformed { cause, .. }| self.refused(cause))? {
            let path = self.base.join(&name);
            if path.is_dir() {
                found.extend(listed(&path));
                continue;
            }
            found.extend(pattern::files(&self.base, &name).map_err(DatasetError::io("list", &path))?.ok_or_else(
                || {
                    self.refused(format!(
                        "there is no shard {} (name those that are there, by --data or --splits)",
                        escaped(&path)
                    ))
                },
            )?);
        }
        if found.is_empty() {
            return Err(self.refused(format!("`{pattern}` matches no .tar")));
        }
        Ok(found)
    }

    /// Takes the splits whose places are given: a pattern, a folder, or a word in the names of shards.
    fn given(&mut self, set: &DataSet) -> Result<(), DatasetError> {
        for &split in Split::ALL {
            let Some(place) = set.splits.of(split) else { continue };
            self.shards[split as usize] = if is_word(place) && !self.base.join(place).exists() {
                self.with_word(place, listed(&self.base))?
            } else {
                self.resolve(place)?
            };
        }
        Ok(())
    }

    /// Those of `all` that have the word `place` in their names below the base.
    ///
    /// # Errors
    /// When none has.
    pub fn with_word(&self, place: &str, all: Vec<PathBuf>) -> Result<Vec<PathBuf>, DatasetError> {
        let has_word = |path: &PathBuf| {
            let name = path.strip_prefix(&self.base).unwrap_or(path).to_string_lossy();
            name.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == place)
        };
        let found: Vec<_> = all.into_iter().filter(has_word).collect();
        if found.is_empty() {
            return Err(self.refused(format!("no .tar has the word `{place}` in its name (--splits)")));
        }
        Ok(found)
    }

    /// Takes for the splits that were not given those of `all` that no given split has. Where `is_pattern` named them beside a validation split,
    /// they are for training, else they go by their names.
    pub fn rest(&mut self, set: &DataSet, mut all: Vec<PathBuf>, is_pattern: bool) {
        // Files by where they really are; an object's address is nowhere.
        let real = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
        let given: HashSet<PathBuf> = self.shards.iter().flatten().map(real).collect();
        if !given.is_empty() {
            all.retain(|path| !given.contains(&real(path)));
        }
        if is_pattern && set.splits.of(Split::Val).is_some() && set.splits.of(Split::Train).is_none() {
            self.shards[Split::Train as usize] = all;
        } else {
            self.by_words(set, &all);
        }
    }

    /// Takes for the splits that have no shards yet those of `all` that are called so.
    fn by_words(&mut self, set: &DataSet, all: &[PathBuf]) {
        let of = |path: &PathBuf| word(path.strip_prefix(&self.base).unwrap_or(path));
        let mut called: [Vec<PathBuf>; KINDS.len()] = Default::default();
        let mut others = Vec::new();
        for path in all {
            match of(path) {
                Some(at) => called[at].push(path.clone()),
                None => others.push(path.clone()),
            }
        }
        let are_called = called.iter().any(|paths| !paths.is_empty());
        if !are_called && self.is_free(Split::Train, set) {
            self.shards[Split::Train as usize] = std::mem::take(&mut others);
        }
        for (at, paths) in called.into_iter().enumerate().filter(|(_, paths)| !paths.is_empty()) {
            let (split, count, example) = (KINDS[at].0, paths.len(), escaped(&paths[0]).to_string());
            if self.is_free(split, set) {
                self.shards[split as usize] = paths;
                if at == TEST {
                    self.notes.push(format!(
                        "{count} shards are taken for validation, e.g. {example} (--splits names others)"
                    ));
                }
            } else if at == TEST && set.splits.of(split).is_none() {
                self.notes.push(format!("{count} shards of a third split are left out, e.g. {example} (--splits)"));
            }
        }
        if let Some(example) = others.first().filter(|_| are_called) {
            let example = escaped(&example);
            self.notes
                .push(format!("{} shards name no split and are left out, e.g. {example} (--splits)", others.len()));
        }
    }

    fn is_free(&self, split: Split, set: &DataSet) -> bool {
        set.splits.of(split).is_none() && self.shards[split as usize].is_empty()
    }

    /// The places, if they make a data set.
    ///
    /// # Errors
    /// When there are no training shards, or one is named twice.
    pub fn checked(mut self) -> Result<Self, DatasetError> {
        if self.shards[Split::Train as usize].is_empty() {
            return Err(self.refused(
                "no .tar is called as a training shard is, such as train-000000.tar (--splits train=PATTERN)"
                    .to_owned(),
            ));
        }
        for paths in &self.shards {
            let mut sorted: Vec<_> = paths.iter().collect();
            sorted.sort_unstable();
            if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(self.refused(format!("{} is named twice", escaped(&pair[0]))));
            }
        }
        let training: HashSet<&PathBuf> = self.shards[Split::Train as usize].iter().collect();
        let both: Vec<&PathBuf> =
            self.shards[Split::Val as usize].iter().filter(|path| training.contains(path)).collect();
        if let Some(example) = both.first() {
            let note = format!("{} shards are in both splits, e.g. {} (--splits)", both.len(), escaped(example));
            self.notes.push(note);
        }
        if self.shards[Split::Val as usize].is_empty() {
            self.notes.push("there are no validation shards (--splits val=PATTERN names some)".to_owned());
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        dir
    }

    /// The shards of both splits, from the folder, and how many notes there are.
    fn found(dir: &Path, data: &str, splits: &str) -> Option<(String, String, usize)> {
        let splits = if splits.is_empty() { Default::default() } else { splits.parse().unwrap() };
        let places = find(&DataSet { splits, ..DataSet::at(&dir.join(data)) }).unwrap()?;
        let root = dir.canonicalize().unwrap();
        let [train, val] = places.shards.map(|paths| {
            let names = paths.iter().map(|path| path.strip_prefix(&root).unwrap().to_str().unwrap());
            names.collect::<Vec<_>>().join(" ")
        });
        Some((train, val, places.notes.len()))
    }

    #[test]
    fn splits_are_told_apart_by_names() {
        for (files, train, val, notes) in [
            (&["train-0.tar", "train-1.tar", "val-0.tar"][..], "train-0.tar train-1.tar", "val-0.tar", 0),
            (
                &["imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar", "x.idx"],
                "imagenet1k-train-0000.tar",
                "imagenet1k-validation-00.tar",
                0,
            ),
            (&["a_train_1.tar", "a_test_1.tar"], "a_train_1.tar", "a_test_1.tar", 1),
            (&["train0.tar", "val0.tar", "test0.tar", "x.tar"], "train0.tar", "val0.tar", 2),
            (&["train/1.tar", "valid/2.tar"], "train/1.tar", "valid/2.tar", 0),
            (&["00.tar", "01.tar"], "00.tar 01.tar", "", 1),
        ] {
            let dir = folder(files);
            assert_eq!(found(dir.path(), "", ""), Some((train.to_owned(), val.to_owned(), notes)), "{files:?}");
        }
    }

    #[test]
    fn patterns_and_places_stand_for_shards() {
        let dir =
            folder(&["s/train-0.tar", "s/train-1.tar", "s/train-2.tar", "s/val-0.tar", "s/test-0.tar", "v/x.tar"]);
        let other = dir.path().join("v");
        for (data, splits, train, val, notes) in [
            ("s/train-{0..1}.tar", "", "s/train-0.tar s/train-1.tar", "", 1),
            ("s/train-{1,0}.tar", "val=val-*.tar", "s/train-1.tar s/train-0.tar", "s/val-0.tar", 0),
            ("s/{val,train}-[01].tar", "", "s/train-0.tar s/train-1.tar", "s/val-0.tar", 0),
            ("s", "val=test", "s/train-0.tar s/train-1.tar s/train-2.tar", "s/test-0.tar", 0),
            ("s", "train=train-2.tar::train-0.tar,val=../v", "s/train-2.tar s/train-0.tar", "s/../v/x.tar", 0),
            ("s/train-0.tar", "val=val-0.tar", "s/train-0.tar", "s/val-0.tar", 0),
            // What is given to one split is not taken for the other, but where both are given.
            ("s/*-0.tar", "val=val-0.tar", "s/test-0.tar s/train-0.tar", "s/val-0.tar", 0),
            ("s", "val=train-2.tar", "s/train-0.tar s/train-1.tar", "s/train-2.tar", 0),
            ("s", "train=train-*.tar,val=train-2.tar", "s/train-0.tar s/train-1.tar s/train-2.tar", "s/train-2.tar", 1),
        ] {
            let expected = Some((train.to_owned(), val.to_owned(), notes));
            assert_eq!(found(dir.path(), data, splits), expected, "{data} {splits}");
        }
        let splits = format!("train=s/train-0.tar,val={}/*.tar", escaped(&other.canonicalize().unwrap()));
        assert_eq!(found(dir.path(), "", &splits), Some(("s/train-0.tar".into(), "v/x.tar".into(), 0)));
    }

    #[test]
    fn an_info_file_decides() {
        let dir = folder(&["a.tar", "b.tar", "train-0.tar"]);
        let info =
            r#"{"splits": {"train": {"filenames": ["{b,a}.tar"]}, "validation": {"filenames": ["train-0.tar"]}}}"#;
        std::fs::write(dir.path().join("_info.json"), info).unwrap();
        assert_eq!(found(dir.path(), "", ""), Some(("b.tar a.tar".into(), "train-0.tar".into(), 0)));
    }

    #[test]
    fn what_holds_no_shards_is_left_to_others() {
        for files in [
            &["train/a/1.jpg", "val/a/1.jpg", "set.tar"][..],
            &["1.jpg", "labels.csv", "set.tar"],
            &["a.tgz"],
            &[".a.tar"],
        ] {
            assert_eq!(found(folder(files).path(), "", ""), None, "{files:?}");
        }
        let dir = folder(&["set.tar"]);
        assert_eq!(found(dir.path(), "set.tar", ""), None);
        assert_eq!(found(dir.path(), "missing", ""), None);
    }

    #[test]
    fn shards_that_are_not_there_are_named() {
        let dir = folder(&["s/train-0.tar", "s/other.tar"]);
        for (data, splits, cause) in [
            ("s/train-{0..1}.tar", "", "there is no shard"),
            ("s/x*.tar", "", "matches no .tar"),
            ("s/{train-0.tar", "", "without its counterpart"),
            ("s", "val=test", "the word `test`"),
            ("s/train-{0,0}.tar", "", "is named twice"),
        ] {
            let splits = if splits.is_empty() { Default::default() } else { splits.parse().unwrap() };
            let error = find(&DataSet { splits, ..DataSet::at(&dir.path().join(data)) }).unwrap_err().to_string();
            assert!(error.contains(cause), "{data}: {error}");
        }
    }
}

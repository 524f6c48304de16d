//! Which files a data set of tables has, and which split each belongs to: by its name, as Hugging Face's `datasets` has it.

use super::super::image_names::is_image;
use super::super::split_words::{KINDS, kind};
use std::collections::BTreeMap;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Endings of files that are tables.
const EXTENSIONS: [&str; 2] = ["parquet", "arrow"];
/// Folders within each other that are looked into, the data folder among them.
const DEPTH_MAX: usize = 4;
/// Images beside no table that show a folder to be one of images: its listing ends.
const IMAGES_MAX: usize = 64;
/// What stands around a keyword in a name.
const SEPARATORS: [char; 4] = ['-', '.', '_', ' '];

/// `datasets`' own name of each kind of [`KINDS`].
const NAMES: [&str; KINDS.len()] = ["train", "validation", "test"];

/// Whether a name is that of a table.
pub fn is_table(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension))
}

/// The files of each split, by its name; of a table without one, `train`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Splits by their names, with their files in the order of their paths.
    pub splits: BTreeMap<String, Vec<PathBuf>>,
    /// Tables that belong to none.
    pub others: usize,
}

/// Why files cannot be sorted into splits.
#[derive(Debug)]
pub enum Refused {
    /// A folder cannot be listed.
    Io(PathBuf, io::Error),
    /// Two folders hold sets of their own.
    Two(PathBuf, PathBuf),
}

/// The tables below a folder; none where it holds no tables.
///
/// # Errors
/// When the folder cannot be listed, or holds two sets.
pub fn find(root: &Path) -> Result<Option<Found>, Refused> {
    if let Some(saved) = saved(root)? {
        return Ok(Some(saved));
    }
    let mut files = Vec::new();
    list(root, DEPTH_MAX, &mut files)?;
    find_among(root, files)
}

/// The tables among the files below a folder; none where there are no tables.
///
/// # Errors
/// When they are two sets.
pub fn find_among(root: &Path, mut files: Vec<PathBuf>) -> Result<Option<Found>, Refused> {
    // What describes files of images is no table of them.
    let is_table = |file: &PathBuf| file.extension().is_some_and(|extension| extension == "parquet");
    files.retain(|file| is_table(file) && file.file_stem().is_some_and(|stem| stem != "metadata"));
    files.sort_unstable_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    if files.is_empty() { Ok(None) } else { sort(root, files).map(Some) }
}

/// A folder that `save_to_disk` made.
fn saved(root: &Path) -> Result<Option<Found>, Refused> {
    if !["state.json", "dataset_dict.json"].iter().any(|name| root.join(name).is_file()) {
        return Ok(None);
    }
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(|error| Refused::Io(folder.clone(), error))? {
            let path = entry.map_err(|error| Refused::Io(folder.clone(), error))?.path();
            if path.is_file() {
                files.push(path);
            } else if folder == root && path.join("state.json").is_file() {
                folders.push(path);
            }
        }
    }
    Ok(saved_among(root, &files))
}

/// What `save_to_disk` wrote among the files below a folder: one split, which counts as `train`, or a folder for each.
pub fn saved_among(root: &Path, files: &[PathBuf]) -> Option<Found> {
    let mut folders = BTreeMap::<&Path, Vec<&PathBuf>>::new();
    files.iter().for_each(|file| folders.entry(file.parent().unwrap_or(file)).or_default().push(file));
    let has = |folder: &Path, name: &str| {
        folders.get(folder).is_some_and(|files| files.iter().any(|file| file.file_name().is_some_and(|of| of == name)))
    };
    let tables = |folder: &Path| {
        let is_saved = has(folder, "state.json") && has(folder, "dataset_info.json");
        let is_table = |file: &&&PathBuf| {
            let is_hidden = file.file_name().is_some_and(|name| name.as_bytes().starts_with(b"."));
            !is_hidden && file.extension().is_some_and(|extension| extension == "arrow")
        };
        let mut found: Vec<PathBuf> =
            folders.get(folder)?.iter().filter(is_table).map(|file| PathBuf::clone(file)).collect();
        found.sort_unstable();
        is_saved.then_some(found)
    };
    if let Some(files) = tables(root) {
        return Some(Found { splits: BTreeMap::from([("train".to_owned(), files)]), others: 0 });
    }
    if !has(root, "dataset_dict.json") {
        return None;
    }
    let of_root = folders.keys().filter(|folder| folder.parent() == Some(root));
    let split = |folder: &&Path| Some((folder.file_name()?.to_str()?.to_owned(), tables(folder)?));
    Some(Found { splits: of_root.filter_map(split).collect(), others: 0 })
}

/// Collects the tables below a folder, at most `depth` folders deep. Names that begin with a dot are not seen.
pub fn list(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), Refused> {
    let refused = |error| Refused::Io(folder.to_owned(), error);
    let (mut images, mut folders, before) = (0, Vec::new(), files.len());
    for entry in std::fs::read_dir(folder).map_err(refused)? {
        let entry = entry.map_err(refused)?;
        let path = entry.path();
        if entry.file_name().as_bytes().starts_with(b".") {
            continue;
        }
        if is_table(&path) && path.is_file() {
            files.push(path);
        } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            folders.push(path);
        } else if is_image(&path) {
            images += 1;
            if images >= IMAGES_MAX && files.len() == before {
                return Ok(());
            }
        }
    }
    if depth > 1 {
        for folder in folders {
            // What may not be listed is no reason to refuse what lies beside it.
            match list(&folder, depth - 1, files) {
                Err(Refused::Io(_, error)) if error.kind() == io::ErrorKind::PermissionDenied => {}
                listed => listed?,
            }
        }
    }
    Ok(())
}

/// Sorts tables into splits: by `SPLIT-00000-of-00001` names, else by folders, else by words in their names; all are `train` if none has any.
pub fn sort(root: &Path, files: Vec<PathBuf>) -> Result<Found, Refused> {
    type Rule = fn(&Path) -> Option<(PathBuf, String)>;
    let rules: [Rule; 3] = [by_number, by_folder, by_word];
    let relative = |file: &Path| file.strip_prefix(root).unwrap_or(file).to_owned();
    let mut found = Found::default();
    let Some(rule) = rules.into_iter().find(|rule| files.iter().any(|file| rule(&relative(file)).is_some())) else {
        found.splits.insert("train".to_owned(), files);
        return Ok(found);
    };
    let mut set: Option<PathBuf> = None;
    for file in files {
        let Some((folder, split)) = rule(&relative(&file)) else {
            found.others += 1;
            continue;
        };
        let first = set.get_or_insert_with(|| folder.clone());
        if *first != folder {
            return Err(Refused::Two(root.join(first), root.join(folder)));
        }
        found.splits.entry(split).or_default().push(file);
    }
    Ok(found)
}

/// `train-00000-of-00004.parquet`, or with a hash behind that: the folder, and the split.
fn by_number(file: &Path) -> Option<(PathBuf, String)> {
    let name = file.file_stem()?.to_str()?;
    let at = name.find("-of-")?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let (split, number) = name[..at].rsplit_once('-')?;
    let of = name.get(at + 4..at + 9)?;
    let folder = file.parent()?.to_owned();
    (is_number(number) && is_number(of) && !split.is_empty()).then(|| (folder, split.to_owned()))
}

/// `train/0.parquet`: the folder around the innermost one that is named after a split, and the split.
fn by_folder(file: &Path) -> Option<(PathBuf, String)> {
    let named =
        file.ancestors().skip(1).find_map(|folder| Some((folder.parent()?, word_in(folder.file_name()?.to_str()?)?)));
    named.map(|(around, split)| (around.to_owned(), split.to_owned()))
}

/// `my-train_0.parquet`: the folder, and the split.
fn by_word(file: &Path) -> Option<(PathBuf, String)> {
    Some((file.parent()?.to_owned(), word_in(file.file_name()?.to_str()?)?.to_owned()))
}

/// The split that a name has as a word of its own.
fn word_in(name: &str) -> Option<&'static str> {
    let words = || name.split(|letter: char| SEPARATORS.contains(&letter) || letter.is_ascii_digit());
    let mut kinds = KINDS.iter().zip(NAMES);
    kinds.find(|((_, known), _)| words().any(|word| known.contains(&word))).map(|(_, name)| name)
}

/// Whether a name stands for one of `datasets`' splits.
pub fn is_known(name: &str) -> bool {
    kind(name).is_some()
}

/// The split among `names` that stands for one of `datasets`' splits.
pub fn standing_for<'a>(wanted: &str, names: impl Iterator<Item = &'a String> + Clone) -> Option<&'a String> {
    let words = NAMES.iter().zip(KINDS).find(|(name, _)| **name == wanted).map_or(&[][..], |(_, (_, words))| words);
    words.iter().find_map(|word| names.clone().find(|name| name.eq_ignore_ascii_case(word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(files: &[&str]) -> Result<Vec<(String, String)>, String> {
        let files = files.iter().map(|file| Path::new("/data").join(file)).collect();
        match sort(Path::new("/data"), files) {
            Ok(found) => {
                let name = |file: &PathBuf| file.strip_prefix("/data").unwrap().display().to_string();
                let list = |files: Vec<PathBuf>| files.iter().map(name).collect::<Vec<_>>().join(" ");
                Ok(found.splits.into_iter().map(|(split, files)| (split, list(files))).collect())
            }
            Err(Refused::Two(a, b)) => Err(format!("{} {}", a.display(), b.display())),
            Err(error) => panic!("{error:?}"),
        }
    }

    #[test]
    fn files_are_sorted_by_their_names_as_datasets_does() {
        for (files, expected) in [
            (
                &[
                    "data/train-00000-of-00002.parquet",
                    "data/train-00001-of-00002.parquet",
                    "data/test-00000-of-00001.parquet",
                ][..],
                &[
                    ("test", "data/test-00000-of-00001.parquet"),
                    ("train", "data/train-00000-of-00002.parquet data/train-00001-of-00002.parquet"),
                ][..],
            ),
            (
                &[
                    "data/validation-00000-of-00001-0c5f.parquet",
                    "data/my.train_b-00000-of-00001.parquet",
                    "data/more.parquet",
                ],
                &[
                    ("my.train_b", "data/my.train_b-00000-of-00001.parquet"),
                    ("validation", "data/validation-00000-of-00001-0c5f.parquet"),
                ],
            ),
            (
                &["default/train/0000.parquet", "default/dev/0000.parquet"],
                &[("train", "default/train/0000.parquet"), ("validation", "default/dev/0000.parquet")],
            ),
            (
                &["my-training_0.parquet", "b eval.parquet", "trainer.parquet"],
                &[("test", "b eval.parquet"), ("train", "my-training_0.parquet")],
            ),
            (&["train/test-00000-of-00001.parquet"], &[("test", "train/test-00000-of-00001.parquet")]),
            (&["val1.parquet", "train.parquet"], &[("train", "train.parquet"), ("validation", "val1.parquet")]),
            (&["a.parquet", "b/c.parquet"], &[("train", "a.parquet b/c.parquet")]),
        ] {
            let expected: Vec<_> =
                expected.iter().map(|&(split, files)| (split.to_owned(), files.to_owned())).collect();
            assert_eq!(sorted(files), Ok(expected), "{files:?}");
        }
    }

    #[test]
    fn two_sets_below_one_folder_are_refused() {
        let svhn = ["cropped_digits/train-00000-of-00001.parquet", "full_numbers/train-00000-of-00001.parquet"];
        assert_eq!(sorted(&svhn), Err("/data/cropped_digits /data/full_numbers".to_owned()));
        assert!(sorted(&["a/train/0.parquet", "b/test/0.parquet"]).is_err());
    }

    #[test]
    fn a_split_goes_by_the_first_of_its_names() {
        let names = ["test", "val", "Train"].map(str::to_owned);
        let standing = |wanted| standing_for(wanted, names.iter()).map(String::as_str);
        assert_eq!(
            (standing("train"), standing("validation"), standing("test")),
            (Some("Train"), Some("val"), Some("test"))
        );
        assert_eq!(standing_for("validation", ["train".to_owned()].iter()), None);
    }

    #[test]
    fn a_folder_of_images_is_not_listed_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("train/a")).unwrap();
        (0..500).for_each(|nth| std::fs::write(dir.path().join(format!("train/a/{nth}.jpg")), "").unwrap());
        assert_eq!(find(dir.path()).unwrap(), None);
    }
}

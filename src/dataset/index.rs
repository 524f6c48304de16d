//! The walk over an image folder: split by the grandparent's name, label by the parent's.

use super::remembered::Walk;
use super::{Class, Dataset, DatasetError, Sample, classes};
use crate::types::Split;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Extensions of raster images, lower case. They only select; the decoder looks at the content.
const EXTENSIONS: [&str; 13] =
    ["jpeg", "jpg", "jpe", "png", "bmp", "gif", "tif", "tiff", "webp", "ppm", "pgm", "pbm", "pnm"];

/// Whether a name is that of an image.
pub fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(OsStr::to_str).map(str::to_ascii_lowercase);
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str()))
}

/// Indexes the folder `root`; its walk is remembered in `cache_dir`.
pub fn index(root: PathBuf, cache_dir: &Path) -> Result<Dataset, DatasetError> {
    let name = format!("index-{:016x}", xxhash_rust::xxh3::xxh3_64(root.as_os_str().as_bytes()));
    let file = cache_dir.join(name);
    let images = match Walk::load(&file, &root) {
        Some(walk) => walk.images,
        None => {
            let (mut walked, mut files) = (Walk::new(), 0);
            walk(&root, Path::new(""), &mut walked, &mut files)?;
            if walked.images.is_empty() {
                return Err(DatasetError::NotAnImageFolder { root, found: files });
            }
            // By the bytes of the whole path; `Path`'s own order goes by its parts.
            walked.images.sort_unstable_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
            walked.save(&file, &root);
            walked.images
        }
    };
    let places: Vec<(Split, OsString)> = images
        .iter()
        .map(|path| place(path).map(|(split, class)| (split, class.to_owned())).expect("images lie in a split"))
        .collect();
    let mut vocabulary: Vec<&OsStr> =
        places.iter().filter(|(split, _)| *split == Split::Train).map(|(_, class)| &**class).collect();
    vocabulary.sort_unstable_by_key(|class| class.as_bytes());
    vocabulary.dedup();
    let class = |id: &OsStr| {
        let id = id.to_string_lossy().into_owned();
        Class { name: classes::readable(&id).unwrap_or(&id).to_owned(), id }
    };
    let mut dataset =
        Dataset { root, classes: vocabulary.iter().map(|id| class(id)).collect(), train: Vec::new(), val: Vec::new() };
    for (path, (split, class)) in images.into_iter().zip(&places) {
        let samples = match split {
            Split::Train => &mut dataset.train,
            Split::Val => &mut dataset.val,
        };
        match vocabulary.binary_search_by_key(&class.as_bytes(), |class| class.as_bytes()) {
            Ok(label) => samples.push(Sample { path, label: label as u32 }),
            Err(_) if vocabulary.is_empty() => {}
            Err(_) => {
                let class = class.to_string_lossy().into_owned();
                return Err(DatasetError::UnknownClass { root: dataset.root, class, example: path });
            }
        }
    }
    for &split in Split::ALL {
        if dataset.samples(split).is_empty() {
            return Err(DatasetError::EmptySplit { root: dataset.root, split });
        }
    }
    Ok(dataset)
}

/// Collects the images below `root/relative`; links to folders are not followed, names with a leading dot not seen.
pub(super) fn walk(root: &Path, relative: &Path, walked: &mut Walk, files: &mut usize) -> Result<(), DatasetError> {
    let dir = root.join(relative);
    walked.enter(root, relative).map_err(DatasetError::io("look at", &dir))?;
    for entry in std::fs::read_dir(&dir).map_err(DatasetError::io("list", &dir))? {
        let entry = entry.map_err(DatasetError::io("list", &dir))?;
        let name = entry.file_name();
        if name.as_bytes().starts_with(b".") {
            continue;
        }
        let path = relative.join(&name);
        let kind = entry.file_type().map_err(DatasetError::io("look at", &dir))?;
        if kind.is_symlink() {
            walked.depends();
        }
        if kind.is_dir() {
            walk(root, &path, walked, files)?;
        } else if kind.is_file() || (kind.is_symlink() && entry.path().is_file()) {
            *files += 1;
            if is_image(&path) && place(&path).is_some() {
                walked.images.push(path);
            }
        }
    }
    Ok(())
}

/// Split and class of `…/split/class/file`.
fn place(path: &Path) -> Option<(Split, &OsStr)> {
    let parent = path.parent()?;
    let class = parent.file_name()?;
    let split = match parent.parent()?.file_name()?.as_bytes() {
        b"train" => Split::Train,
        b"val" => Split::Val,
        _ => return None,
    };
    Some((split, class))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
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

    fn open(dir: &TempDir) -> Result<Dataset, DatasetError> {
        Dataset::open(dir.path(), None, &mut |_| {})
    }

    #[test]
    fn the_reference_tree_is_indexed_as_it_says() {
        let Some(reference) = crate::fixtures::reference() else { return };
        let tree: Value = serde_json::from_slice(&std::fs::read(reference.join("tree.json")).unwrap()).unwrap();
        let texts = |value: &Value| -> Vec<String> {
            value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
        };
        let files = tree["files"].as_array().unwrap();
        let paths: Vec<&str> = files.iter().map(|file| file["path"].as_str().unwrap()).collect();
        let dir = folder(&paths);
        let dataset = open(&dir).unwrap();
        assert_eq!(dataset.classes.iter().map(|class| class.id.clone()).collect::<Vec<_>>(), texts(&tree["vocab"]));
        for (split, order) in [(Split::Train, "order_train"), (Split::Val, "order_val")] {
            let ours: Vec<String> =
                dataset.samples(split).iter().map(|sample| sample.path.to_str().unwrap().to_owned()).collect();
            assert_eq!(ours, texts(&tree[order]));
            for sample in dataset.samples(split) {
                let file = files.iter().find(|file| file["path"] == sample.path.to_str().unwrap()).unwrap();
                assert_eq!(file["label"].as_u64(), Some(u64::from(sample.label)), "{file}");
                assert_eq!(file["split"], split.name(), "{file}");
            }
        }
        for extra in texts(&tree["each_is_an_error_when_added"]) {
            let mut paths = paths.clone();
            paths.push(&extra);
            assert!(matches!(open(&folder(&paths)), Err(DatasetError::UnknownClass { .. })), "{extra}");
        }
    }

    #[test]
    fn folders_that_are_none_are_refused() {
        let refused = |paths: &[&str]| open(&folder(paths)).unwrap_err();
        assert!(matches!(refused(&[]), DatasetError::NotAnImageFolder { found: 0, .. }));
        assert!(matches!(refused(&["a/b/c.jpg", "x.txt"]), DatasetError::NotAnImageFolder { found: 2, .. }));
        assert!(matches!(refused(&["train/a/1.jpg"]), DatasetError::EmptySplit { split: Split::Val, .. }));
        assert!(matches!(refused(&["val/a/1.jpg"]), DatasetError::EmptySplit { split: Split::Train, .. }));
        let unknown = refused(&["train/a/1.jpg", "val/b/1.jpg"]);
        assert!(
            unknown.to_string().contains("class `b` of val/ has no images in train/, e.g. val/b/1.jpg"),
            "{unknown}"
        );
        let missing = Dataset::open(Path::new("/no/such/folder"), None, &mut |_| {}).unwrap_err();
        assert!(matches!(missing, DatasetError::Missing(_)) && missing.to_string().contains("expected DATA/train"));
    }

    #[test]
    fn links_to_files_count_and_links_to_folders_do_not() {
        let dir = folder(&["train/a/1.jpg", "val/a/1.jpg", "elsewhere/2.jpg"]);
        let link = |to: &str, name: &str| {
            std::os::unix::fs::symlink(dir.path().join(to), dir.path().join(name)).unwrap();
        };
        link("elsewhere/2.jpg", "train/a/2.jpg");
        link("elsewhere", "train/b");
        link("nothing", "train/a/3.jpg");
        let dataset = open(&dir).unwrap();
        assert_eq!((dataset.classes.len(), dataset.samples(Split::Train).len()), (1, 2));
    }

    #[test]
    fn names_that_are_no_text_are_kept() {
        let dir = folder(&["train/a/1.jpg", "val/a/1.jpg"]);
        let name = OsStr::from_bytes(b"train/a/\xff.jpg");
        std::fs::write(dir.path().join(name), "").unwrap();
        let dataset = open(&dir).unwrap();
        assert!(dataset.path_of(Split::Train, 1).is_file());
    }
}

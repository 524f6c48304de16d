//! ImageNet as Kaggle packs it: training images in folders of their classes, validation images in one folder with their classes in a list.

use super::super::DatasetError;
use super::super::split_words::KINDS;
use super::super::tally::{Ignored, Tally};
use super::found::{Entry, Found, images, stem};
use crate::types::Split;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Where the images are in the archive.
const IMAGENET: &str = "ILSVRC/Data/CLS-LOC";
/// The classes of the validation images.
const IMAGENET_VAL: &str = "LOC_val_solution.csv";
/// Names of the classes, beside that.
const IMAGENET_NAMES: &str = "LOC_synset_mapping.txt";

/// Where ImageNet's images are, and the classes of its validation images; `None` where the folder is not laid out as ImageNet, or its validation
/// images lie in folders of their classes.
pub fn imagenet(root: &Path) -> Option<(PathBuf, PathBuf)> {
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

/// The images of both splits.
pub fn of_imagenet(images_in: &Path, solution: &Path) -> Result<Found, DatasetError> {
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
pub fn imagenet_names(solution: &Path) -> HashMap<String, String> {
    let mapping = solution.with_file_name(IMAGENET_NAMES);
    let text = std::fs::read_to_string(mapping).unwrap_or_default();
    let name = |line: &str| {
        let (class, synonyms) = line.split_once(' ')?;
        Some((class.to_owned(), synonyms.split(',').next()?.trim().to_owned()))
    };
    text.lines().filter_map(name).collect()
}

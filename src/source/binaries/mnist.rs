//! MNIST and Fashion-MNIST in the idx format: a header with the sizes, then a byte a value. Gzipped files are unpacked in memory.

use super::super::flaw::Flaw;
use super::super::located::IndexedFile;
use super::{Found, Kind, PIXELS_MAX, Part, Refused, Shape, name, open};
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Where torchvision puts them, too.
const BELOW: [&str; 4] = ["", "MNIST/raw", "FashionMNIST/raw", "raw"];
const FASHION: [&str; 10] =
    ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"];
/// The most bytes of a file: forty times MNIST's.
const FILE_BYTES_MAX: u64 = 2 << 30;
/// The header of images: two zeros, the type (bytes), the number of sizes, the sizes.
const IMAGES: [u8; 4] = [0, 0, 8, 3];
/// The same of labels.
const LABELS: [u8; 4] = [0, 0, 8, 1];

pub fn find(folder: &Path, kind: Kind) -> Result<Found, Refused> {
    let names: Vec<String> = match kind {
        Kind::FashionMnist => FASHION.map(str::to_owned).to_vec(),
        _ => (0..10).map(|digit| digit.to_string()).collect(),
    };
    let (mut files, mut splits, mut shape) = (Vec::new(), [Vec::new(), Vec::new()], None);
    for (parts, split) in splits.iter_mut().zip(["train", "t10k"]) {
        let images = locate(folder, kind, split, "images", 3)?;
        let labels = locate(folder, kind, split, "labels", 1)?;
        let (part, file, found) = part(&images, &labels, files.len() as u32)?;
        if shape.is_some_and(|shape| shape != found) {
            return Err((images, Flaw::from("has images of another size than the training set")));
        }
        shape = Some(found);
        parts.push(part);
        files.push(file);
    }
    let shape = shape.expect("there are two splits");
    Ok(Found { shape, names, files, splits })
}

/// The path of a file, plain or gzipped.
fn locate(folder: &Path, kind: Kind, split: &str, what: &str, sizes: u32) -> Result<PathBuf, Refused> {
    let names = [format!("{split}-{what}-idx{sizes}-ubyte"), format!("{split}-{what}.idx{sizes}-ubyte")];
    let names = names.iter().flat_map(|name| [name.clone(), format!("{name}.gz")]);
    // A folder may hold both.
    let other = if kind == Kind::Mnist { "FashionMNIST/raw" } else { "MNIST/raw" };
    let below = BELOW.iter().filter(|below| **below != other);
    let mut paths = below.flat_map(|below| {
        let folder = folder.join(below);
        names.clone().map(move |name| folder.join(name))
    });
    paths.find(|path| path.is_file()).ok_or_else(|| {
        let flaw = format!(
            "has no {split}-{what}-idx{sizes}-ubyte, and none with .gz (download the four files of the data set)"
        );
        (folder.to_owned(), Flaw::new(flaw))
    })
}

fn part(images: &Path, labels: &Path, number: u32) -> Result<(Part, IndexedFile, Shape), Refused> {
    let (file, meta) = open(images)?;
    let in_images = |flaw: Flaw| (images.to_owned(), flaw);
    let unpacked = if is_gzipped(images) { Some(unpack(file.take(FILE_BYTES_MAX)).map_err(in_images)?) } else { None };
    let mut head = [0; 16];
    match &unpacked {
        Some(bytes) => head = *bytes.first_chunk().ok_or_else(|| in_images(Flaw::from("is too short")))?,
        None => {
            let mut file = File::open(images).map_err(|error| in_images(error.into()))?;
            file.read_exact(&mut head).map_err(|error| in_images(error.into()))?;
        }
    }
    let size = |nth: usize| u32::from_be_bytes(*head[4 * nth..].first_chunk().expect("sixteen bytes"));
    let (count, shape) = (size(1), Shape { height: size(2), width: size(3), planes: 1 });
    let values = u64::from(shape.width) * u64::from(shape.height);
    if head[..4] != IMAGES || values == 0 || values > PIXELS_MAX as u64 {
        return Err(in_images(Flaw::from("is no idx file of small gray images (download it again)")));
    }
    let bytes = unpacked.as_ref().map_or(meta.len(), |bytes| bytes.len() as u64);
    if bytes != head.len() as u64 + u64::from(count) * values {
        let flaw = format!("has {bytes} bytes, which are not the {count} images of its header (download it again)");
        return Err(in_images(Flaw::new(flaw)));
    }
    let in_labels = |flaw: Flaw| (labels.to_owned(), flaw);
    let (file, _) = open(labels)?;
    let all = if is_gzipped(labels) { unpack(file.take(FILE_BYTES_MAX)) } else { read(file.take(FILE_BYTES_MAX)) };
    let all = all.map_err(in_labels)?;
    let labels = all.strip_prefix(&LABELS).and_then(|rest| rest.strip_prefix(&count.to_be_bytes()));
    let labels = labels.filter(|labels| labels.len() == count as usize).ok_or_else(|| {
        in_labels(Flaw::new(format!("is no idx file of {count} labels, as there are images (download it again)")))
    })?;
    let part = Part { file: number, start: head.len() as u64, stride: values, labels: labels.to_vec(), unpacked };
    Ok((part, IndexedFile::new(images.to_owned(), name(images), &meta), shape))
}

fn is_gzipped(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "gz")
}

fn unpack(file: impl Read) -> Result<Vec<u8>, Flaw> {
    read(MultiGzDecoder::new(file).take(FILE_BYTES_MAX))
}

fn read(mut from: impl Read) -> Result<Vec<u8>, Flaw> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes)?;
    Ok(bytes)
}

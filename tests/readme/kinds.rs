//! A small data set of each kind that the README's table names, with what is to be read from it.

use image::RgbImage;
use mixd::types::{ImageSize, Split};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The names of a sample's classes, sorted, and its pixels `[3, height, width]`.
pub type Sample = (Vec<String>, Vec<u8>);

pub struct Kind {
    /// The first cell of its line in the README's table.
    pub row: &'static str,
    pub name: String,
    /// `--data`.
    pub data: PathBuf,
    pub args: Vec<String>,
    pub variables: Vec<(String, String)>,
    /// Of every image, which no view changes therefore.
    pub size: ImageSize,
    /// The samples of each split, in any order.
    pub samples: [Vec<Sample>; 2],
    /// A server that must run as long as it is read.
    pub _server: Option<Box<dyn std::any::Any>>,
}

impl Kind {
    fn new(row: &'static str, name: &str, data: impl Into<PathBuf>, samples: [Vec<Sample>; 2]) -> Self {
        let (args, variables, size) = (Vec::new(), Vec::new(), ImageSize::square(16));
        Self { row, name: name.to_owned(), data: data.into(), args, variables, size, samples, _server: None }
    }

    fn with(self, args: &[&str]) -> Self {
        Self { args: args.iter().map(|arg| (*arg).to_owned()).collect(), ..self }
    }
}

const FOLDERS: &str = "folders of classes, with `val/`, `valid/`, `test/` … or no validation split; a `.tgz`, `.tar.zst` or `.tar` of them";
const TABLES: &str = "images with labels in a CSV or JSON-lines table, one or several an image (multi-hot)";
const IMAGENET: &str = "ImageNet as it is packed";
const SHARDS: &str = "WebDataset shards, in place; from S3, Google Cloud Storage, Azure and web servers [through a disk cache](docs/object-stores.md)";
const HUGGING_FACE: &str =
    "Hugging Face's Parquet files and saved data sets, in place where they are not compressed; from object stores, too";
const BINARIES: &str = "CIFAR and MNIST";

/// All of them, made in a folder.
pub fn kinds(dir: &Path) -> Vec<Kind> {
    let parts = [folders, tables, imagenet, shards, hugging_face, binaries].into_iter().enumerate();
    parts.flat_map(|(nth, part)| part(&dir.join(nth.to_string()))).collect()
}

/// The split, classes and number of each image of the sets that are made of files. Validation comes first by its names, and sets of classes
/// are numbered by training.
const IMAGES: [(Split, &[&str], usize); 7] = [
    (Split::Val, &["dog", "old"], 0),
    (Split::Val, &["old"], 1),
    (Split::Train, &["cat"], 2),
    (Split::Train, &["cat", "old"], 3),
    (Split::Train, &["dog"], 4),
    (Split::Train, &["dog", "old"], 5),
    (Split::Train, &[], 6),
];

/// Those of a single class each: the first of cat and dog that it has.
fn single() -> impl Iterator<Item = (Split, &'static str, usize)> {
    let first = |classes: &[&'static str]| classes.iter().copied().find(|class| *class != "old");
    IMAGES.into_iter().filter_map(move |(split, classes, nth)| Some((split, first(classes)?, nth)))
}

fn picture(nth: usize) -> RgbImage {
    RgbImage::from_fn(16, 16, |x, y| image::Rgb([(x * 13) as u8, (y * 11) as u8, (nth * 29) as u8]))
}

fn planes(picture: &RgbImage) -> Vec<u8> {
    (0..3).flat_map(|channel| picture.pixels().map(move |pixel| pixel.0[channel])).collect()
}

fn png(nth: usize) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture(nth).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// What is to be read of images with these classes.
fn expected<'a>(images: impl Iterator<Item = (Split, Vec<&'a str>, usize)>) -> [Vec<Sample>; 2] {
    let mut samples = [Vec::new(), Vec::new()];
    for (split, classes, nth) in images {
        let classes = classes.into_iter().map(str::to_owned).collect();
        samples[split as usize].push((classes, planes(&picture(nth))));
    }
    samples
}

fn expected_single() -> [Vec<Sample>; 2] {
    expected(single().map(|(split, class, nth)| (split, vec![class], nth)))
}

fn expected_multi() -> [Vec<Sample>; 2] {
    expected(IMAGES.into_iter().map(|(split, classes, nth)| (split, classes.to_vec(), nth)))
}

fn put(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// A tar of files.
fn tar(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, &**content).unwrap();
    }
    tar.into_inner().unwrap()
}

/// `train/cat/0.png` and so on, with another name for validation or without it.
fn class_folders(val: Option<&str>) -> Vec<(String, Vec<u8>)> {
    let place = |split| if split == Split::Train { Some("train") } else { val };
    single()
        .filter_map(|(split, class, nth)| Some((format!("{}/{class}/{nth}.png", place(split)?), png(nth))))
        .collect()
}

fn folders(dir: &Path) -> Vec<Kind> {
    let mut kinds = Vec::new();
    for val in [Some("val"), Some("valid"), Some("test"), None] {
        let (name, mut samples) = (val.unwrap_or("none"), expected_single());
        if val.is_none() {
            samples[Split::Val as usize].clear();
        }
        class_folders(val).iter().for_each(|(path, bytes)| put(&dir.join(name).join(path), bytes));
        kinds.push(Kind::new(FOLDERS, &format!("folder with {name}"), dir.join(name), samples));
    }
    let archive = tar(&class_folders(Some("val")));
    put(&dir.join("set.tar"), &archive);
    let mut gzip =
        flate2::write::GzEncoder::new(File::create(dir.join("set.tgz")).unwrap(), flate2::Compression::fast());
    gzip.write_all(&archive).unwrap();
    gzip.finish().unwrap();
    put(&dir.join("set.tar.zst"), &zstd::encode_all(&*archive, 1).unwrap());
    for name in ["set.tar", "set.tgz", "set.tar.zst"] {
        kinds.push(Kind::new(FOLDERS, name, dir.join(name), expected_single()));
    }
    kinds
}

fn tables(dir: &Path) -> Vec<Kind> {
    let photos = |name: &str| {
        let folder = dir.join(name);
        IMAGES.iter().for_each(|(.., nth)| put(&folder.join(format!("{nth}.png")), &png(*nth)));
        folder
    };
    let mut csv = "file,label,split\n".to_owned();
    let mut json = String::new();
    for (split, class, nth) in single() {
        csv += &format!("{nth}.png,{class},{split}\n");
        json += &format!("{{\"file_name\": \"{nth}.png\", \"label\": \"{class}\", \"split\": \"{split}\"}}\n");
    }
    let mut csv_multi = "file,labels,split\n".to_owned();
    let mut json_multi = String::new();
    for (split, classes, nth) in IMAGES {
        csv_multi += &format!("{nth}.png,{},{split}\n", classes.join("|"));
        json_multi += &format!(
            "{}\n",
            serde_json::json!({"file_name": format!("{nth}.png"), "labels": classes, "split": split.to_string()})
        );
    }
    let mut kinds = Vec::new();
    for (name, text, samples) in [("labels.csv", csv, expected_single()), ("several.csv", csv_multi, expected_multi())]
    {
        let (folder, table) = (photos(name), dir.join(format!("beside-{name}")));
        put(&table, text.as_bytes());
        kinds.push(Kind::new(TABLES, name, folder, samples).with(&["--labels", table.to_str().unwrap()]));
    }
    for (name, text, samples) in [("one", json, expected_single()), ("several", json_multi, expected_multi())] {
        let folder = photos(name);
        put(&folder.join("metadata.jsonl"), text.as_bytes());
        kinds.push(Kind::new(TABLES, &format!("metadata.jsonl, {name}"), folder, samples));
    }
    kinds
}

fn imagenet(dir: &Path) -> Vec<Kind> {
    let images = dir.join("ILSVRC/Data/CLS-LOC");
    let mut solution = "ImageId,PredictionString\n".to_owned();
    let synset = |class: &str| if class == "cat" { "n02123045" } else { "n02099601" };
    for (split, class, nth) in single() {
        let at = match split {
            Split::Train => format!("train/{0}/{0}_{nth}.JPEG", synset(class)),
            Split::Val => format!("val/ILSVRC2012_val_{nth:08}.JPEG"),
        };
        put(&images.join(at), &png(nth));
        if split == Split::Val {
            solution += &format!("ILSVRC2012_val_{nth:08},{} 1 2 3 4\n", synset(class));
        }
    }
    put(&dir.join("LOC_val_solution.csv"), solution.as_bytes());
    put(&dir.join("LOC_synset_mapping.txt"), b"n02099601 dog\nn02123045 cat\n");
    vec![Kind::new(IMAGENET, "Kaggle's", dir, expected_single())]
}

/// Shards by their names; labels are numbers, with names beside them.
fn shard_files() -> Vec<(String, Vec<u8>)> {
    let mut shards: BTreeMap<String, Vec<(String, Vec<u8>)>> = BTreeMap::new();
    for (split, class, nth) in single() {
        let files = shards.entry(format!("{split}-{:06}.tar", nth / 2)).or_default();
        files.push((format!("a/{nth:04}.png"), png(nth)));
        files.push((format!("a/{nth:04}.cls"), if class == "cat" { "0" } else { "1" }.into()));
    }
    shards.into_iter().map(|(name, files)| (name, tar(&files))).collect()
}

fn shards(dir: &Path) -> Vec<Kind> {
    let files = shard_files();
    files.iter().for_each(|(name, bytes)| put(&dir.join("set").join(name), bytes));
    put(&dir.join("set/classnames.txt"), b"cat\ndog\n");
    let pattern = dir.join("set/train-{000001..000002}.tar");
    for (split, classes, nth) in IMAGES {
        let label = serde_json::json!({"label": classes}).to_string().into_bytes();
        let files = [(format!("{nth}.png"), png(nth)), (format!("{nth}.json"), label)];
        put(&dir.join(format!("several/{split}-{nth}.tar")), &tar(&files));
    }
    #[cfg_attr(not(feature = "cloud-test"), expect(unused_mut, reason = "with it there is one kind more"))]
    let mut kinds = vec![
        Kind::new(SHARDS, "a folder of shards", dir.join("set"), expected_single()),
        Kind::new(SHARDS, "shards with lists of labels", dir.join("several"), expected_multi()),
        Kind::new(SHARDS, "a pattern of shards", pattern, expected_single()).with(&["--splits=val=val-000000.tar"]),
    ];
    #[cfg(feature = "cloud-test")]
    {
        let numbered = expected_single().map(|samples| {
            let number = |class: &String| if class == "cat" { "0" } else { "1" }.to_owned();
            samples.into_iter().map(|(classes, planes)| (classes.iter().map(number).collect(), planes)).collect()
        });
        kinds.push(in_bucket(Kind::new(SHARDS, "shards in a bucket", "", numbered), files));
    }
    kinds
}

/// The same kind with these files in a bucket.
#[cfg(feature = "cloud-test")]
fn in_bucket(kind: Kind, files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Kind {
    let server = super::server::Server::start();
    files.into_iter().for_each(|(name, bytes)| server.put(&format!("set/{name}"), bytes));
    let (data, variables) = (format!("s3://{}/set", super::server::BUCKET), super::server::variables(server.address));
    Kind { data: data.into(), variables, _server: Some(Box::new(server)), ..kind }
}

/// The golden tables, whose rows are listed beside them.
fn hugging_face(_: &Path) -> Vec<Kind> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tables");
    let rows: BTreeMap<String, Vec<(String, String)>> =
        serde_json::from_slice(&std::fs::read(golden.join("rows.json")).unwrap()).unwrap();
    let mut size = None;
    let mut read = |split: &str| -> Vec<Sample> {
        let sample = |(image, class): &(String, String)| {
            let byte = |at| u8::from_str_radix(&image[at..at + 2], 16).unwrap();
            let bytes: Vec<u8> = (0..image.len()).step_by(2).map(byte).collect();
            let picture = image::load_from_memory(&bytes).unwrap().to_rgb8();
            let (width, height) = picture.dimensions();
            assert_eq!(*size.get_or_insert(ImageSize { height, width }), ImageSize { height, width });
            (vec![class.clone()], planes(&picture))
        };
        rows[split].iter().map(sample).collect()
    };
    let samples = [read("train"), read("test")];
    let kind = |name: &str, at: &str| {
        let kind = Kind::new(HUGGING_FACE, name, golden.join(at), samples.clone());
        Kind { size: size.unwrap(), ..kind }
    };
    // Without the noted names classes are numbers.
    let classes: BTreeSet<&String> = samples[0].iter().flat_map(|(classes, _)| classes).collect();
    let number = |class: &String| classes.iter().position(|known| *known == class).unwrap().to_string();
    let numbered = |(classes, planes): &Sample| (classes.iter().map(number).collect(), planes.clone());
    let numbers = [samples[0].iter().map(numbered).collect(), Vec::new()];
    vec![
        kind("Parquet", "hub"),
        kind("a saved data set", "saved"),
        Kind { samples: numbers, ..kind("compressed Parquet", "variants/zstd-v2.parquet") },
        #[cfg(feature = "cloud-test")]
        in_bucket(kind("Parquet in a bucket", "hub"), {
            let hub = golden.join("hub");
            let file = |path: std::path::PathBuf| {
                (path.strip_prefix(&hub).unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap())
            };
            super::common::files(&hub).into_iter().map(file).collect::<Vec<_>>()
        }),
    ]
}

/// Labels and planes of the images of a split: `count` of them, each with `values` bytes.
fn raw(split: Split, count: usize, values: usize) -> Vec<(u8, Vec<u8>)> {
    let value = |image: usize, at: usize| (image * 101 + at * 7 + split as usize * 53) as u8;
    (0..count).map(|image| (image as u8 % 10, (0..values).map(|at| value(image, at)).collect())).collect()
}

fn binaries(dir: &Path) -> Vec<Kind> {
    let airplanes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];
    let clothes =
        ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"];
    let named = |images: &[(u8, Vec<u8>)], name: &dyn Fn(u8) -> String| -> Vec<Sample> {
        images.iter().map(|(label, planes)| (vec![name(*label)], planes.clone())).collect()
    };
    let kind = |kind: &str, side: u32, samples| {
        let data = format!("{kind}:{}", dir.join(kind).to_str().unwrap());
        Kind { size: ImageSize::square(side), ..Kind::new(BINARIES, kind, data, samples) }
    };
    let [train, val] = [(Split::Train, 10), (Split::Val, 4)].map(|(split, count)| raw(split, count, 3_072));
    let record =
        |coarse: bool| move |(label, planes): &(u8, Vec<u8>)| [&[7, *label][usize::from(!coarse)..], planes].concat();
    for (nth, part) in train.chunks(2).enumerate() {
        let bytes: Vec<u8> = part.iter().flat_map(record(false)).collect();
        put(&dir.join(format!("cifar10/data_batch_{}.bin", nth + 1)), &bytes);
    }
    put(&dir.join("cifar10/test_batch.bin"), &val.iter().flat_map(record(false)).collect::<Vec<_>>());
    put(&dir.join("cifar100/train.bin"), &train.iter().flat_map(record(true)).collect::<Vec<_>>());
    put(&dir.join("cifar100/test.bin"), &val.iter().flat_map(record(true)).collect::<Vec<_>>());
    let cifar = |name: &dyn Fn(u8) -> String| [named(&train, name), named(&val, name)];
    let mut kinds = vec![
        kind("cifar10", 32, cifar(&|label| airplanes[usize::from(label)].to_owned())),
        kind("cifar100", 32, cifar(&|label| label.to_string())),
    ];
    for (name, is_clothes) in [("mnist", false), ("fashion-mnist", true)] {
        let mut samples = [Vec::new(), Vec::new()];
        for (split, prefix, count) in [(Split::Train, "train", 10), (Split::Val, "t10k", 4)] {
            let images = raw(split, count, 28 * 28);
            let head = |magic: u32, rest: &[u32]| -> Vec<u8> {
                [&[magic, count as u32], rest].concat().into_iter().flat_map(u32::to_be_bytes).collect()
            };
            let (mut labels, mut pixels) = (head(0x801, &[]), head(0x803, &[28, 28]));
            for (label, gray) in &images {
                labels.push(*label);
                pixels.extend(gray);
                let class = if is_clothes { clothes[usize::from(*label)].to_owned() } else { label.to_string() };
                samples[split as usize].push((vec![class], [&gray[..]; 3].concat()));
            }
            put(&dir.join(name).join(format!("{prefix}-labels-idx1-ubyte")), &labels);
            put(&dir.join(name).join(format!("{prefix}-images-idx3-ubyte")), &pixels);
        }
        kinds.push(kind(name, 28, samples));
    }
    kinds
}

//! Files of the formats' definitions, written value by value.

use super::super::{DataSet, Source, Split};
use super::Binaries;
use crate::decode::Decoder;
use crate::escape::escaped;
use std::io::Write;
use std::path::Path;

/// A value of an image.
fn value(image: usize, channel: usize, y: usize, x: usize) -> u8 {
    (image * 101 + channel * 67 + y * 13 + x * 7) as u8
}

/// Records of CIFAR: labels, then red, green and blue, each row after row.
fn cifar(first: usize, count: usize, labels: impl Fn(usize) -> Vec<u8>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for image in first..first + count {
        bytes.extend(labels(image));
        for (channel, y) in (0..3).flat_map(|channel| (0..32).map(move |y| (channel, y))) {
            bytes.extend((0..32).map(|x| value(image, channel, y, x)));
        }
    }
    bytes
}

/// A folder of CIFAR-10: two images in each of five batches, three in the test batch.
fn cifar10(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    for batch in 0..5 {
        let bytes = cifar(batch * 2, 2, |image| vec![image as u8]);
        std::fs::write(folder.join(format!("data_batch_{}.bin", batch + 1)), bytes).unwrap();
    }
    std::fs::write(folder.join("test_batch.bin"), cifar(100, 3, |image| vec![9 - (image % 10) as u8])).unwrap();
}

/// The four files of MNIST, of 5 training and 2 test images of 3x4 pixels.
fn mnist(folder: &Path, ending: &str, pack: impl Fn(Vec<u8>) -> Vec<u8>) {
    std::fs::create_dir_all(folder).unwrap();
    for (split, first, count) in [("train", 0, 5_usize), ("t10k", 50, 2)] {
        let mut images = [&[0, 0, 8, 3, 0, 0, 0, count as u8][..], &[0, 0, 0, 3, 0, 0, 0, 4]].concat();
        for (image, y) in (first..first + count).flat_map(|image| (0..3).map(move |y| (image, y))) {
            images.extend((0..4).map(|x| value(image, 0, y, x)));
        }
        let mut labels = vec![0, 0, 8, 1, 0, 0, 0, count as u8];
        labels.extend((first..first + count).map(|image| (image % 10) as u8));
        std::fs::write(folder.join(format!("{split}-images-idx3-ubyte{ending}")), pack(images)).unwrap();
        std::fs::write(folder.join(format!("{split}-labels-idx1-ubyte{ending}")), pack(labels)).unwrap();
    }
}

fn gzip(bytes: Vec<u8>) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(&bytes).unwrap();
    encoder.finish().unwrap()
}

fn open(kind: &str, folder: &Path) -> Result<Binaries, String> {
    let set = DataSet::at(Path::new(&format!("{kind}:{}", escaped(&folder))));
    Binaries::open(&set).map(|found| found.expect("it is one of these")).map_err(|error| error.to_string())
}

/// Checks every pixel of a sample, as the decoder of PNM files gives it, against image number `image`.
fn assert_image(source: &Binaries, split: Split, sample: u32, image: usize, size: [u32; 2]) {
    let mut bytes = vec![1; 5];
    source.read(split, sample, &mut bytes).unwrap();
    let mut decoder = Decoder::default();
    let decoded = decoder.decode(&bytes, None).unwrap();
    assert_eq!([decoded.width, decoded.height], size);
    let is_gray = bytes.starts_with(b"P5");
    for (nth, pixel) in decoded.to_rgb().chunks_exact(3).enumerate() {
        let (y, x) = (nth / size[0] as usize, nth % size[0] as usize);
        let channel = |channel| value(image, if is_gray { 0 } else { channel }, y, x);
        assert_eq!(pixel, [0, 1, 2].map(channel), "sample {sample} at {x}, {y}");
    }
}

#[test]
fn images_of_cifar_are_read_pixel_by_pixel() {
    let dir = tempfile::tempdir().unwrap();
    cifar10(&dir.path().join("cifar-10-batches-bin"));
    let source = open("cifar10", dir.path()).unwrap();
    assert_eq!((source.len(Split::Train), source.len(Split::Val), source.label_name(2)), (10, 3, "bird".to_owned()));
    for sample in 0..10 {
        assert_image(&source, Split::Train, sample, sample as usize, [32, 32]);
        assert_eq!(source.label(Split::Train, sample), sample);
    }
    for sample in 0..3 {
        assert_image(&source, Split::Val, sample, 100 + sample as usize, [32, 32]);
        assert_eq!(source.label(Split::Val, sample), 9 - sample);
    }
    assert_eq!([source.name(Split::Train, 5), source.name(Split::Val, 2)], ["data_batch_3.bin#1", "test_batch.bin#2"]);
    // Names beside the files go before those that are known.
    let folder = dir.path().join("cifar-10-batches-bin");
    let names: Vec<String> = (0..10).map(|nth| format!("name {nth}")).collect();
    std::fs::write(folder.join("batches.meta.txt"), names.join("\n") + "\n\n").unwrap();
    assert_eq!(open("cifar10", &folder).unwrap().label_name(2), "name 2");
}

#[test]
fn cifar_100_has_the_fine_labels() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("train.bin"), cifar(0, 3, |image| vec![7, 90 + image as u8])).unwrap();
    std::fs::write(dir.path().join("test.bin"), cifar(3, 1, |_| vec![8, 99])).unwrap();
    let source = open("cifar100", dir.path()).unwrap();
    assert_eq!((source.classes().len(), source.label(Split::Train, 2), source.label(Split::Val, 0)), (100, 92, 99));
    assert_image(&source, Split::Train, 2, 2, [32, 32]);
    assert_image(&source, Split::Val, 0, 3, [32, 32]);
}

#[test]
fn images_of_mnist_are_read_plain_and_gzipped() {
    for (kind, below, class) in [("mnist", "", "3"), ("fashion-mnist", "FashionMNIST/raw", "Dress")] {
        for (ending, pack) in [("", (|bytes| bytes) as fn(Vec<u8>) -> Vec<u8>), (".gz", gzip)] {
            let dir = tempfile::tempdir().unwrap();
            mnist(&dir.path().join(below), ending, pack);
            let source = open(kind, dir.path()).unwrap();
            assert_eq!(
                (source.len(Split::Train), source.len(Split::Val), source.label_name(3)),
                (5, 2, class.to_owned())
            );
            for (split, first, count) in [(Split::Train, 0, 5), (Split::Val, 50, 2)] {
                for sample in 0..count {
                    assert_image(&source, split, sample, first + sample as usize, [4, 3]);
                    assert_eq!(source.label(split, sample), (first as u32 + sample) % 10);
                }
            }
        }
    }
}

#[test]
fn files_that_are_not_whole_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |kind: &str, words: &str| {
        let error = open(kind, dir.path()).unwrap_err();
        assert!(error.contains(words), "{error}");
    };
    refused("cifar10", "no files of CIFAR: expected data_batch_1.bin");
    std::fs::write(dir.path().join("data_batch_1"), "pickle").unwrap();
    refused("cifar10", "are pickles: expected data_batch_1.bin, ... of the binary version, cifar-10-binary.tar.gz");
    refused("mnist", "has no train-images-idx3-ubyte");
    cifar10(dir.path());
    let path = dir.path().join("data_batch_4.bin");
    let whole = std::fs::read(&path).unwrap();
    for (bytes, words) in [
        (&whole[..3_000], "data_batch_4.bin has 3000 bytes"),
        (&[][..], "data_batch_4.bin has 0 bytes"),
        (&[&[10], &whole[1..]].concat()[..], "data_batch_4.bin has the label 10"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        refused("cifar10", words);
    }
    std::fs::remove_file(&path).unwrap();
    refused("cifar10", "data_batch_4.bin cannot be read");

    for file in ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"] {
        mnist(dir.path(), "", |bytes| bytes);
        let path = dir.path().join(file);
        let whole = std::fs::read(&path).unwrap();
        for len in 0..whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            refused("mnist", file);
        }
        for (at, &byte) in whole.iter().enumerate().take(16) {
            let mut bytes = whole.clone();
            bytes[at] = !byte;
            std::fs::write(&path, bytes).unwrap();
            refused("mnist", file.split_once('-').unwrap().0);
        }
    }
    mnist(dir.path(), "", |bytes| bytes);
    for name in ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"] {
        std::fs::remove_file(dir.path().join(name)).unwrap();
        std::fs::write(dir.path().join(format!("{name}.gz")), "no gzip").unwrap();
    }
    refused("mnist", "train-images-idx3-ubyte.gz cannot be read");
}

#[test]
fn a_file_that_changes_while_it_is_served_gives_no_bytes() {
    for (ending, pack) in [("", (|bytes| bytes) as fn(Vec<u8>) -> Vec<u8>), (".gz", gzip)] {
        let dir = tempfile::tempdir().unwrap();
        mnist(dir.path(), ending, pack);
        let (source, mut bytes) = (open("mnist", dir.path()).unwrap(), Vec::new());
        source.read(Split::Train, 1, &mut bytes).unwrap();
        let path = dir.path().join(format!("train-images-idx3-ubyte{ending}"));
        std::fs::OpenOptions::new().append(true).open(path).unwrap().write_all(b"more").unwrap();
        let error = source.read(Split::Train, 1, &mut bytes).unwrap_err();
        assert!(matches!(error, super::ReadError::FileChanged { .. }), "{error}");
    }
}

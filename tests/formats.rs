//! What a build reads, and how, through the real binary: photos that lie on their side, and the name of its decoder.

mod common;

use common::{Daemon, mixd, run, sample_data, stderr};
use mixd::decode::{Decoder, JPEG_DECODER, JPEG_DECODER_COST};
use mixd::spec::{Crop, FeedSpec, Mix, Shuffle};
use mixd::types::{ImageSize, Place};
use rustix::process::Signal;
use std::io::Read;
use std::path::Path;
use std::process::{Output, Stdio};

/// A JPEG with Exif that has nothing but this orientation.
fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let exif = [b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0", &[orientation][..], &[0; 6]].concat();
    let length = (exif.len() as u16 + 2).to_be_bytes();
    [&[0xFF, 0xD8, 0xFF, 0xE1], &length[..], &exif, &jpeg[2..]].concat()
}

/// The upright picture, pixel by pixel, of one that lies in its file with this orientation.
fn upright(picture: &image::RgbImage, orientation: u8) -> image::RgbImage {
    use image::imageops::{flip_horizontal, flip_vertical, rotate90, rotate180, rotate270};
    match orientation {
        2 => flip_horizontal(picture),
        3 => rotate180(picture),
        4 => flip_vertical(picture),
        5 => flip_horizontal(&rotate90(picture)),
        6 => rotate90(picture),
        7 => flip_horizontal(&rotate270(picture)),
        8 => rotate270(picture),
        _ => picture.clone(),
    }
}

/// Photos of all orientations, and the same pictures turned upright, without loss, under the same names.
fn folders() -> [tempfile::TempDir; 2] {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    for split in ["train", "val"] {
        let class = sample_data().join(split).join("n01440764");
        let mut photos: Vec<_> = std::fs::read_dir(class).unwrap().map(|entry| entry.unwrap().path()).collect();
        photos.sort();
        let [on_side, turned] = [&dirs[0], &dirs[1]].map(|dir| dir.path().join(split).join("class"));
        for folder in [&on_side, &turned] {
            std::fs::create_dir_all(folder).unwrap();
        }
        for (photo, orientation) in photos.iter().zip(1..=8) {
            let jpeg = std::fs::read(photo).unwrap();
            let mut decoder = Decoder::default();
            let picture = decoder.decode(&jpeg, None).unwrap();
            let picture = image::RgbImage::from_raw(picture.width, picture.height, picture.to_rgb()).unwrap();
            let name = format!("{orientation}.JPEG");
            std::fs::write(on_side.join(&name), with_orientation(&jpeg, orientation)).unwrap();
            upright(&picture, orientation).save_with_format(turned.join(&name), image::ImageFormat::Png).unwrap();
        }
    }
    dirs
}

const BATCH: [&str; 6] = ["--epoch=0", "--batch=0", "--batch-size=8", "--size=48", "--seed=3", "--workers=1"];

fn replay(data: &Path, options: &[&str]) -> Output {
    let start = ["replay", "--data", data.to_str().unwrap(), "--out=/dev/null"];
    run(&[&start, &BATCH[..], options].concat())
}

fn digest(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split("digest ").nth(1).unwrap_or_else(|| panic!("{text}{}", stderr(output)))[..18].to_owned()
}

#[test]
fn with_exif_applied_photos_are_the_pictures_that_were_turned_upright() {
    let [photos, turned] = folders();
    for recipe in [&[][..], &["--recipe=torchvision-v1"], &["--recipe=torchvision-v1", "--source=40", "--cache=off"]] {
        let expected = digest(&replay(turned.path(), recipe));
        let ignored = digest(&replay(photos.path(), recipe));
        assert_eq!(digest(&replay(photos.path(), &[recipe, &["--exif=apply"]].concat())), expected, "{recipe:?}");
        assert_ne!(ignored, expected, "{recipe:?}");
        assert_eq!(digest(&replay(photos.path(), &[recipe, &["--exif=ignore"]].concat())), ignored, "{recipe:?}");
        // What is upright in its pixels has nothing to be turned.
        assert_eq!(digest(&replay(turned.path(), &[recipe, &["--exif=apply"]].concat())), expected, "{recipe:?}");
    }
    // By the variable and the configuration file, too.
    let file = photos.path().join("mixd.toml");
    std::fs::write(&file, "exif = \"apply\"\n").unwrap();
    let expected = digest(&replay(turned.path(), &[]));
    assert_eq!(digest(&replay(photos.path(), &["--config", file.to_str().unwrap()])), expected);
    let data = photos.path().to_str().unwrap();
    let replay = ["replay", "--data", data, "--out=/dev/null"];
    let output = mixd().args(replay).args(BATCH).env("MIXD_EXIF", "apply").output().unwrap();
    assert_eq!(digest(&output), expected);
    let output = run(&[&replay[..], &BATCH, &["--exif=auto"]].concat());
    assert!(stderr(&output).contains("use apply or ignore"), "{}", stderr(&output));
}

#[test]
fn crops_are_named_in_pixels_of_the_upright_picture() {
    let [photos, turned] = folders();
    let plan = |data: &Path, options: &[&str]| {
        let recipe = ["--epoch=0", "--size=48", "--seed=3", "--recipe=torchvision-v1", "--json", "--resolve"];
        let output = run(&[&["plan", "--data", data.to_str().unwrap()], &recipe[..], options].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        output.stdout
    };
    assert!(plan(photos.path(), &["--exif=apply"]) == plan(turned.path(), &[]));
    assert!(plan(photos.path(), &[]) != plan(turned.path(), &[]));
}

#[test]
fn the_orientation_is_part_of_what_a_feed_and_a_cache_file_are() {
    let [photos, turned] = folders();
    let dir = tempfile::tempdir().unwrap();
    let cache_file = format!("--cache-file={}", dir.path().join("cache").display());
    let squashed = FeedSpec {
        batch_size: 8,
        image_size: ImageSize::square(40),
        digest: true,
        mix: Mix::NONE,
        shuffle: Shuffle::Off,
        ..FeedSpec::train()
    };
    let crop = Crop::RandomResizedCrop { scale: [0.1, 0.5], ratio: [0.75, 1.5] };
    for spec in [squashed, FeedSpec { crop, ..squashed }] {
        let first = |data: &Path, options: &[&str]| {
            let daemon = Daemon::on(data, options);
            let mut feed = daemon.attach(spec).unwrap();
            let identity = feed.identity();
            let batch = feed.next_batch().unwrap();
            assert_eq!(batch.place(), Place::default());
            (batch.header().digest, identity)
        };
        let (ignored, of_ignored) = first(photos.path(), &[&cache_file]);
        let (applied, of_applied) = first(photos.path(), &[&cache_file, "--exif=apply"]);
        assert_eq!(applied, first(turned.path(), &[]).0);
        assert!(ignored != applied && of_ignored != of_applied);
        assert_eq!((ignored, of_ignored), first(photos.path(), &[&cache_file]));
    }
}

/// A build without libjpeg-turbo names its decoder and what that costs, once, when a daemon starts; `mixd status` names it always.
#[test]
fn a_daemon_names_its_decoder() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::with(dir, &sample_data(), &[], |command| {
        command.env("RUST_LOG", "mixd=warn").stderr(Stdio::piped());
    });
    let mut errors = daemon.child.stderr.take().unwrap();
    let output = run(&["status", "--socket", daemon.socket().to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&output.stdout).contains(JPEG_DECODER), "{output:?}");
    daemon.signal(Signal::TERM);
    daemon.child.wait().unwrap();
    let mut log = String::new();
    errors.read_to_string(&mut log).unwrap();
    let lines = log.lines().filter(|line| line.contains("libjpeg-turbo")).collect::<Vec<_>>();
    match JPEG_DECODER {
        "libjpeg-turbo" => assert!(lines.is_empty(), "{log}"),
        other => {
            let [line] = lines[..] else { panic!("{log}") };
            assert!(line.contains(JPEG_DECODER_COST.unwrap()), "{other}: {line}");
        }
    }
}

//! Tables of images and binary files through the real program: their batches are those of the same images in a folder, whatever happens to the daemon.

mod common;

use common::trainer::{ENDLESS, Oracle, Trainer};
use common::{Daemon, run, stderr, until};
use mixd::client;
use mixd::spec::FeedSpec;
use mixd::types::ImageSize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[test]
#[ignore = "run by the others, in a process of its own"]
fn trainer_process() {
    common::trainer::run();
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tables")
}

/// The rows of the golden tables as a folder of images. They are sorted by class there, so samples have the same numbers.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let rows: BTreeMap<String, Vec<(String, String)>> =
        serde_json::from_slice(&std::fs::read(golden().join("rows.json")).unwrap()).unwrap();
    for (split, place) in [("train", "train"), ("test", "val")] {
        for (nth, (image, class)) in rows[split].iter().enumerate() {
            let folder = dir.path().join(place).join(class);
            std::fs::create_dir_all(&folder).unwrap();
            let byte = |at| u8::from_str_radix(&image[at..at + 2], 16).unwrap();
            let bytes: Vec<u8> = (0..image.len()).step_by(2).map(byte).collect();
            std::fs::write(folder.join(format!("{nth:02}.png")), bytes).unwrap();
        }
    }
    dir
}

fn spec() -> FeedSpec {
    FeedSpec { batch_size: 4, image_size: ImageSize::square(8), digest: true, seed: 3, ..FeedSpec::train() }
}

/// What `mixd replay` prints of a batch.
fn replayed(data: &str, options: &[&str]) -> String {
    let fixed = ["replay", "--epoch=3", "--batch=0", "--batch-size=4", "--size=8", "--out=/dev/null", "--data", data];
    let output = run(&[&fixed[..], options].concat());
    assert!(output.status.success(), "{data}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn refused(data: &Path, options: &[&str]) -> String {
    let output = run(&[&["plan", "--epoch=0", "--batch-size=4", "--data", data.to_str().unwrap()], options].concat());
    assert!(!output.status.success(), "{}", data.display());
    stderr(&output)
}

#[test]
fn replay_makes_the_batch_of_the_folder_from_every_table() {
    let dir = folder();
    let folder = dir.path().to_str().unwrap();
    let of_folder = replayed(folder, &[]);
    assert!(of_folder.contains("digest 0x"), "{of_folder}");
    let variants = std::fs::read_dir(golden().join("variants")).unwrap().map(|entry| entry.unwrap().path());
    let tables: Vec<PathBuf> = variants.chain([golden().join("hub"), golden().join("saved")]).collect();
    assert!(tables.len() > 10);
    for table in tables {
        assert_eq!(replayed(table.to_str().unwrap(), &[]), of_folder, "{}", table.display());
    }
    let val = replayed(folder, &["--split=val"]);
    assert!(val != of_folder);
    for table in ["hub", "saved"] {
        assert_eq!(replayed(golden().join(table).to_str().unwrap(), &["--split=val"]), val);
        let test_as_train =
            replayed(golden().join(table).to_str().unwrap(), &["--splits=train=test,val=train", "--split=val"]);
        assert!(test_as_train != val);
    }
    assert_eq!(replayed(&format!("{}/hub/data/*.parquet", golden().display()), &["--split=val"]), val);
}

#[test]
fn a_trainer_on_tables_goes_on_where_the_daemon_is_killed() {
    let dir = folder();
    for table in [golden().join("hub"), golden().join("variants/snappy.parquet")] {
        let mut daemon = Daemon::on(&table, &["--cache=off"]);
        let mut trainer = Trainer::start(&daemon, spec(), ENDLESS, 5);
        trainer.batches(8);
        daemon.child.kill().unwrap();
        daemon.child.wait().unwrap();
        let socket = std::mem::replace(&mut daemon.dir, tempfile::tempdir().unwrap());
        let daemon = Daemon::again(socket, &table, &["--workers=1"]);
        until("it is back", || {
            let feeds = client::status(&daemon.socket()).unwrap().feeds;
            (feeds.len() == 1 && feeds[0].trainers[0].read > 4).then_some(())
        });
        trainer.kill();
        assert!(trainer.read.len() > 8);
        Oracle::of(dir.path()).check(&trainer);
    }
}

#[test]
fn a_daemon_with_other_rows_is_not_taken_for_the_one_that_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let copy = |from: &str, to: &str| std::fs::copy(golden().join("hub/data").join(from), dir.path().join(to)).unwrap();
    copy("train-00000-of-00002.parquet", "train-00000-of-00002.parquet");
    copy("train-00001-of-00002.parquet", "train-00001-of-00002.parquet");
    let mut daemon = Daemon::on(dir.path(), &[]);
    let mut trainer = Trainer::start(&daemon, spec(), 2_000, 1);
    trainer.batches(4);
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    let socket = std::mem::replace(&mut daemon.dir, tempfile::tempdir().unwrap());
    copy("train-00001-of-00002.parquet", "train-00000-of-00002.parquet");
    copy("train-00000-of-00002.parquet", "train-00001-of-00002.parquet");
    let _daemon = Daemon::again(socket, dir.path(), &[]);
    let error = trainer.line("error ").expect("it ends");
    assert!(error.contains("data"), "{error}");
}

#[test]
fn columns_are_chosen_by_options_where_tables_have_several() {
    let table = |name: &str| golden().join(format!("refused/{name}.parquet"));
    let error = refused(&table("two-labels"), &[]);
    assert!(error.contains("the columns label, class of labels: choose one with --label-key"), "{error}");
    let error = refused(&table("two-images"), &["--image-key=boxes"]);
    assert!(error.contains("`boxes`, given with --image-key, cannot be used as that"), "{error}");
    let dir = folder();
    let of_folder = replayed(dir.path().to_str().unwrap(), &[]);
    assert_eq!(replayed(table("two-labels").to_str().unwrap(), &["--label-key=class"]), of_folder);
    assert_eq!(replayed(table("two-images").to_str().unwrap(), &["--image-key=mask"]), of_folder);
    // The daemon of a command's own is told, too.
    let bench = ["bench", "--seconds=0.1", "--batch-size=4", "--size=8", "--label-key=class", "--data"];
    let output = run(&[&bench[..], &[table("two-labels").to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn binary_files_are_served_as_the_same_images_in_a_folder() {
    let (dir, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let value = |image: usize, channel: usize, at: usize| (image * 101 + channel * 67 + at * 7) as u8;
    for (nth, file) in
        (1..6).map(|nth| format!("data_batch_{nth}.bin")).chain(["test_batch.bin".to_owned()]).enumerate()
    {
        let mut bytes = Vec::new();
        for image in [2 * nth, 2 * nth + 1] {
            bytes.push(image as u8 % 10);
            bytes.extend((0..3).flat_map(|channel| (0..1_024).map(move |at| value(image, channel, at))));
            let place = if nth < 5 { "train" } else { "val" };
            let class = folder.path().join(place).join((image % 10).to_string());
            std::fs::create_dir_all(&class).unwrap();
            let mut pixels = b"P6 32 32 255\n".to_vec();
            pixels.extend((0..1_024).flat_map(|at| [0, 1, 2].map(|channel| value(image, channel, at))));
            std::fs::write(class.join("0.ppm"), pixels).unwrap();
        }
        std::fs::write(dir.path().join(file), bytes).unwrap();
    }
    let cifar = format!("cifar10:{}", dir.path().display());
    for split in ["--split=train", "--split=val"] {
        assert_eq!(replayed(&cifar, &[split]), replayed(folder.path().to_str().unwrap(), &[split]));
    }
    let daemon = Daemon::on(Path::new(&cifar), &[]);
    let mut trainer = Trainer::start(&daemon, spec(), 12, 0);
    trainer.finish();
    Oracle::of(folder.path()).check(&trainer);
    let error = refused(Path::new(&format!("mnist:{}", dir.path().display())), &[]);
    assert!(error.contains("has no train-images-idx3-ubyte"), "{error}");
}

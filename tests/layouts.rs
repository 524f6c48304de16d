//! Data sets as people have them, through the real binary: what is found, what is said and what is refused.

mod common;

use common::{Daemon, command, files, mixd, refusal, small_folder, stderr, until};
use mixd::client::Reason;
use mixd::spec::{FeedSpec, Mix};
use mixd::types::{ImageSize, Split};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

fn spec(split: Split) -> FeedSpec {
    FeedSpec { split, batch_size: 4, image_size: ImageSize::square(16), mix: Mix::NONE, ..FeedSpec::train() }
}

/// A daemon whose log goes to a file; with the folder of the log.
fn logged(data: &Path, args: &[&str]) -> (Daemon, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let log = File::create(dir.path().join("log")).unwrap();
    let environment = |command: &mut std::process::Command| {
        command.env("RUST_LOG", "mixd=info").stderr(log);
    };
    (Daemon::with(tempfile::tempdir().unwrap(), data, args, environment), dir)
}

fn log(dir: &tempfile::TempDir) -> String {
    String::from_utf8(std::fs::read(dir.path().join("log")).unwrap()).unwrap()
}

fn status(daemon: &Daemon, args: &[&str]) -> String {
    let output = mixd().arg("status").args(args).arg("--socket").arg(daemon.socket()).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// The samples of an epoch.
fn samples(daemon: &Daemon, split: Split) -> BTreeSet<u32> {
    let mut feed = daemon.attach(spec(split)).unwrap();
    feed.epoch().flat_map(|batch| batch.unwrap().view().sample_id.to_vec()).collect()
}

#[test]
fn what_was_found_and_left_out_is_said_in_the_log_and_by_status() {
    let dir = small_folder(6);
    let path = |name: &str| dir.path().join(name);
    std::fs::rename(path("val"), path("valid")).unwrap();
    std::fs::write(path("train/n01440764/notes.txt"), "").unwrap();
    symlink("gone.png", path("train/n03394916/link.png")).unwrap();
    std::fs::create_dir(path("train/cow")).unwrap();
    let (daemon, logs) = logged(dir.path(), &[]);
    assert_eq!((samples(&daemon, Split::Train).len(), samples(&daemon, Split::Val).len()), (12, 4));
    let (text, json) = (status(&daemon, &[]), status(&daemon, &["--json"]));
    for note in [
        "2 files ignored: 1 not an image, 1 broken link",
        "class folders without images: train/cow",
        "valid/ is the validation split: val/ has no image",
    ] {
        let in_log = log(&logs).lines().filter(|line| line.ends_with(note)).count();
        assert_eq!(in_log, 1, "{note}: {}", log(&logs));
        assert!(text.contains(&format!("note     {note}\n")) && json.contains(note), "{note}: {text}{json}");
    }
}

#[test]
fn a_set_without_validation_trains_and_a_feed_of_it_is_refused_with_the_remedy() {
    let dir = small_folder(6);
    std::fs::remove_dir_all(dir.path().join("val")).unwrap();
    let daemon = Daemon::on(dir.path(), &[]);
    assert_eq!(samples(&daemon, Split::Train).len(), 12);
    let error = daemon.attach(spec(Split::Val)).err().unwrap().to_string();
    for word in ["no validation split", "--splits val=FOLDER", "--holdout 0.1"] {
        assert!(error.contains(word), "{error}");
    }
    assert_eq!(refusal(daemon.attach(spec(Split::Val))), Reason::Spec);
}

#[test]
#[cfg(feature = "torch")]
fn a_set_without_validation_trains_and_reports_the_training_loss_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(common::sample_data().join("train"), dir.path().join("train")).unwrap();
    let train = |more: &[&str]| {
        let fixed = ["train", "--size=16", "--batch-size=40", "--lr=0.02", "--threads=1", "--epochs=2"];
        let output = mixd().args(fixed).args(more).arg("--data").arg(dir.path()).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        (String::from_utf8_lossy(&output.stdout).into_owned(), stderr(&output))
    };
    let (table, said) = train(&[]);
    assert!(
        !table.contains("valid") && table.contains("\ntraining loss ") && table.contains("(guessing 2.303)"),
        "{table}"
    );
    assert_eq!(said.matches("the data set has no validation split").count(), 1, "{said}");
    let (table, said) = train(&["--holdout=0.2"]);
    assert!(table.contains("valid CE") && table.contains("\nvalidation accuracy "), "{table}");
    assert!(!said.contains("no validation split"), "{said}");
}

#[test]
fn a_holdout_is_served_as_the_validation_split_and_chosen_parts_are_kept() {
    let dir = small_folder(10);
    std::fs::remove_dir_all(dir.path().join("val")).unwrap();
    let daemon = Daemon::on(dir.path(), &["--holdout=0.2"]);
    assert_eq!(samples(&daemon, Split::Train), (0..16).collect());
    assert_eq!(samples(&daemon, Split::Val), (0..4).collect());
    assert!(status(&daemon, &[]).contains("(16 train, 4 val)"));
    let names = |split: &str, more: &[&str]| -> BTreeSet<String> {
        let args = ["plan", "--epoch=0", "--shuffle=false", "--mixup=0", "--holdout=0.2", "--split", split];
        let output = mixd().args(args).args(more).arg("--data").arg(dir.path()).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), stderr(&output));
        let names = text
            .split_whitespace()
            .filter(|part| part.starts_with("train/"))
            .map(str::to_owned)
            .collect::<BTreeSet<_>>();
        assert!(!names.is_empty(), "{text}");
        names
    };
    let [train, val] = ["train", "val"].map(|split| names(split, &[]));
    assert!(train.is_disjoint(&val) && train.len() + val.len() == 20, "{train:?} {val:?}");
    assert_eq!(names("train", &["--max-samples=5"]).len(), 5);
    let beside = small_folder(2);
    let output = mixd().args(["plan", "--epoch=0", "--holdout=0.2", "--data"]).arg(beside.path()).output().unwrap();
    assert!(stderr(&output).contains("val/n01440764/000.png among them"), "{}", stderr(&output));
}

#[test]
fn splits_are_where_they_are_given() {
    let [dir, elsewhere] = [small_folder(6), small_folder(2)];
    std::fs::rename(dir.path().join("train"), dir.path().join("training")).unwrap();
    let val = elsewhere.path().join("val");
    let daemon = Daemon::on(dir.path(), &["--splits", &format!("train=training,val={}", val.display())]);
    assert_eq!((samples(&daemon, Split::Train).len(), samples(&daemon, Split::Val).len()), (12, 4));
    drop(daemon);
    // Of a folder that is given no other is taken for the validation split, so that a part can be set aside.
    std::fs::rename(dir.path().join("val"), dir.path().join("test")).unwrap();
    let daemon = Daemon::on(dir.path(), &["--splits=train=training", "--holdout=0.5"]);
    assert_eq!((samples(&daemon, Split::Train).len(), samples(&daemon, Split::Val).len()), (6, 6));
    drop(daemon);
    // A folder of classes alone is a training split.
    let daemon = Daemon::on(&dir.path().join("training"), &["--splits=train=.", "--holdout=0.5"]);
    assert_eq!((samples(&daemon, Split::Train).len(), samples(&daemon, Split::Val).len()), (6, 6));
    let output = mixd().args(["plan", "--epoch=0", "--splits=train=trian", "--data"]).arg(dir.path()).output().unwrap();
    let text = stderr(&output);
    assert!(text.contains("trian/<class>/") && text.contains("training/"), "no remedy: {text}");
}

/// A file that is no image, in whose name a line break and a time stand, had its own line in the log.
#[test]
fn a_name_forges_no_line_of_the_log_and_moves_no_terminal() {
    let dir = small_folder(25);
    for name in [&b"x\n2026-01-01T00:00:00.000000Z  INFO all images are fine.png"[..], b"\x1b[31mred\xe9\xc2\x9b.png"] {
        std::fs::write(dir.path().join("train/n01440764").join(OsStr::from_bytes(name)), "not an image\n").unwrap();
    }
    let (daemon, logs) = logged(dir.path(), &[]);
    assert!(samples(&daemon, Split::Train).len() >= 50);
    let plan = mixd().args(["plan", "--epoch=0", "--data"]).arg(dir.path()).output().unwrap();
    let plan = String::from_utf8(plan.stdout).unwrap();
    let (text, json, log) = (status(&daemon, &[]), status(&daemon, &["--json"]), log(&logs));
    for text in [&text, &json, &log, &plan] {
        assert!(!text.lines().any(|line| line.starts_with("2026-01-01")), "{text}");
        assert!(!text.chars().any(|char| char.is_control() && char != '\n'), "{text:?}");
        assert!(text.contains(r"x\n2026") || text.contains(r"x\\n2026"), "not reported: {text}");
        assert!(text.contains(r"\x1b[31mred\xe9\u{9b}") || text.contains(r"\\x1b[31mred\\xe9\\u{9b}"), "{text}");
    }
    // The data set's own path, too.
    let odd = dir.path().join(OsStr::from_bytes(b"gone\n2026-01-01\x1b[31m"));
    let refused =
        stderr(&command(env!("CARGO_BIN_EXE_mixd")).args(["plan", "--epoch=0", "--data"]).arg(odd).output().unwrap());
    assert!(refused.lines().count() == 1 && refused.contains(r"gone\n2026-01-01\x1b[31m"), "{refused}");
}

/// The labels of an epoch's samples, by their ids.
fn labels(daemon: &Daemon, split: Split) -> BTreeMap<u32, i64> {
    let mut feed = daemon.attach(spec(split)).unwrap();
    let mut labels = BTreeMap::new();
    for batch in feed.epoch() {
        let batch = batch.unwrap();
        let view = batch.view();
        labels.extend(view.sample_id.iter().copied().zip(view.label_a.iter().copied()));
    }
    labels
}

#[test]
fn labels_of_a_table_and_of_imagenet_s_list_are_served() {
    let dir = small_folder(4);
    let from = |class: &str, nth: usize| {
        let folder = dir.path().join("train").join(class);
        let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort_unstable();
        files[nth].clone()
    };
    let set = tempfile::tempdir().unwrap();
    let put = |image: &Path, at: &str| {
        let to = set.path().join(at);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(image, to).unwrap();
    };
    let [cat, dog] = ["n01440764", "n03394916"];
    for (nth, name) in ["0.png", "1.png", "2.png"].into_iter().enumerate() {
        put(&from(cat, nth), &format!("photos/{name}"));
    }
    put(&from(dog, 0), "photos/3.png");
    let table = set.path().join("table.csv");
    std::fs::write(&table, "name of it,file,labels\nx,3.png,dog|old\nx,1.png,cat\nx,0.png,cat|old\nx,2.png,\n")
        .unwrap();
    let options = ["--labels", table.to_str().unwrap()];
    let daemon = Daemon::on(&set.path().join("photos"), &options);
    // In the order of the names: cat and old, cat, none, dog and old.
    assert_eq!(labels(&daemon, Split::Train), BTreeMap::from([(0, 0), (1, 1), (2, 2), (3, 3)]));
    let feed = daemon.attach(spec(Split::Train)).unwrap();
    let classes: Vec<_> = feed.classes().iter().map(|class| &*class.id).collect();
    assert_eq!(classes, ["cat", "dog", "old"]);
    let sets: Vec<&[u32]> = feed.label_sets().iter().map(|set| &**set).collect();
    assert_eq!(sets, [&[0, 2][..], &[0], &[], &[1, 2]]);
    drop(feed);

    let images = "imagenet/ILSVRC/Data/CLS-LOC";
    for (class, nth, at) in [
        (cat, 0, "train/n01/n01_1.JPEG"),
        (dog, 0, "train/n02/n02_1.JPEG"),
        (dog, 1, "val/v_1.JPEG"),
        (cat, 1, "val/v_2.JPEG"),
    ] {
        put(&from(class, nth), &format!("{images}/{at}"));
    }
    std::fs::write(
        set.path().join("imagenet/LOC_val_solution.csv"),
        "ImageId,PredictionString\nv_1,n02 1 2 3 4\nv_2,n01 5 6 7 8 n01 1 2 3 4\n",
    )
    .unwrap();
    let daemon = Daemon::on(&set.path().join("imagenet"), &[]);
    assert_eq!(labels(&daemon, Split::Train), BTreeMap::from([(0, 0), (1, 1)]));
    assert_eq!(labels(&daemon, Split::Val), BTreeMap::from([(0, 1), (1, 0)]));
}

/// Pixels that are kept depend on no label; a feed does.
#[test]
fn a_changed_table_of_labels_costs_no_decoded_image() {
    let (images, dir) = (small_folder(4), tempfile::tempdir().unwrap());
    let images = images.path().join("train");
    let last = || files(&images).iter().map(|path| path.metadata().unwrap().modified().unwrap()).max().unwrap();
    until("times that have settled", || last().elapsed().ok().filter(|age| *age > Duration::from_millis(1_100)));
    let names: Vec<String> =
        files(&images).iter().map(|path| path.strip_prefix(&images).unwrap().to_str().unwrap().to_owned()).collect();
    let table = dir.path().join("table.csv");
    let cache_file = format!("--cache-file={}", dir.path().join("rows").display());
    let epoch = |label: fn(usize) -> &'static str| {
        let rows = names.iter().enumerate().map(|(nth, name)| format!("{name},{}\n", label(nth)));
        std::fs::write(&table, format!("file,label\n{}", rows.collect::<String>())).unwrap();
        let daemon = Daemon::on(&images, &["--labels", table.to_str().unwrap(), &cache_file]);
        let spec = FeedSpec { batch_size: 8, shuffle: mixd::spec::Shuffle::Off, ..spec(Split::Train) };
        let mut feed = daemon.attach(spec).unwrap();
        let (x, identity) = (feed.next_batch().unwrap().view().x.to_vec(), feed.identity());
        (x, identity, mixd::client::status(&daemon.socket()).unwrap().stores[0].decoded)
    };
    let (whole, first, decoded) = epoch(|nth| ["a", "b"][nth % 2]);
    assert_eq!(decoded, 8);
    let (again, second, decoded) = epoch(|nth| ["a", "b"][nth / 4]);
    assert!((again == whole, decoded) == (true, 0) && second != first, "{decoded} decoded anew");
}

//! WebDataset shards through the real binary: the same batches as the folder that they were made of, whatever happens to daemon and trainers.

mod common;

use common::trainer::{ENDLESS, Oracle, Trainer};
use common::{Daemon, mixd, refusal, run, sample_data, stderr, until};
use mixd::client::{self, Reason};
use mixd::source::{DataSet, ReadError, open};
use mixd::spec::{Delivery, FeedSpec, Mix, Share};
use mixd::types::{Dtype, ImageSize, Last, Split};
use rustix::process::{Resource, Rlimit, setrlimit};
use std::fs::File;
use std::path::Path;

/// No multiple of a batch's size.
const SAMPLES_PER_SHARD: usize = 37;

#[test]
#[ignore = "run by the others, in a process of its own"]
fn trainer_process() {
    common::trainer::run();
}

/// The sample data as shards in a folder, in the order of the folder's samples: every fourth field is `json`, the others `cls`.
fn shards() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let source = open(&DataSet::at(&sample_data()), &mut |_| {}).unwrap();
    let mut bytes = Vec::new();
    for &split in Split::ALL {
        let samples: Vec<u32> = (0..source.len(split)).collect();
        for (nth, samples) in samples.chunks(SAMPLES_PER_SHARD).enumerate() {
            let file = File::create(dir.path().join(format!("{split}-{nth:06}.tar"))).unwrap();
            let mut tar = tar::Builder::new(file);
            let mut add = |name: String, content: &[u8]| {
                let mut header = tar::Header::new_ustar();
                header.set_size(content.len() as u64);
                tar.append_data(&mut header, name, content).unwrap();
            };
            for &sample in samples {
                source.read(split, sample, &mut bytes).unwrap();
                let name = source.name(split, sample);
                let (key, label) = (name.strip_suffix(".JPEG").unwrap(), source.label(split, sample));
                add(format!("{key}.jpg"), &bytes);
                match sample % 4 {
                    0 => add(format!("{key}.json"), format!(r#"{{"label": {label}, "id": {sample}}}"#).as_bytes()),
                    _ => add(format!("{key}.cls"), label.to_string().as_bytes()),
                }
            }
            tar.into_inner().unwrap();
        }
    }
    dir
}

fn spec() -> FeedSpec {
    FeedSpec { batch_size: 16, image_size: ImageSize::square(48), digest: true, seed: 3, ..FeedSpec::train() }
}

/// Reads shards while the process has no descriptor to spare, but for those that the source keeps open.
#[test]
#[ignore = "run by another, in a process of its own"]
fn reader_process() {
    let Some(data) = std::env::var_os("READER") else { return };
    setrlimit(Resource::Nofile, Rlimit { current: Some(40), maximum: Some(40) }).unwrap();
    let source =
        open(&DataSet { cache_dir: Some(data.clone().into()), ..DataSet::at(data.as_ref()) }, &mut |_| {}).unwrap();
    let read = |sample| source.read(Split::Train, sample, &mut Vec::new());
    let last = source.len(Split::Train) - 1;
    read(0).unwrap();
    let mut others: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    // The first shard's descriptor is given up for the last one's.
    read(last).unwrap();
    read(0).unwrap();
    // None is kept once the file of the only one is gone.
    let shard = std::path::Path::new(&data).join("train-000000.tar");
    std::fs::rename(&shard, shard.with_extension("away")).unwrap();
    assert!(read(last).is_ok() && matches!(read(0), Err(ReadError::Io(_))));
    others.extend(std::iter::from_fn(|| File::open("/dev/null").ok()));
    assert!(matches!(read(last), Err(ReadError::DescriptorShortage(_))));
    drop(others);
    read(last).unwrap();
    println!("read to the end");
}

#[test]
fn a_lack_of_descriptors_is_met_with_those_of_other_shards_and_then_named() {
    let dir = shards();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "reader_process", "--ignored", "--nocapture"])
        .env("READER", dir.path())
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && stdout.contains("read to the end"), "{stdout}{}", stderr(&output));
}

#[test]
fn trainers_on_shards_get_the_batches_of_the_folder() {
    let dir = shards();
    let pattern = dir.path().join("train-{000000..000005}.tar");
    let splits = "--splits=val=val-*.tar";
    assert!(!dir.path().join("train-000006.tar").exists());
    let mut oracle = Oracle::new();
    // The folder is found to be one of shards; the pattern needs a word on validation.
    for daemon in [Daemon::on(dir.path(), &[]), Daemon::on(&pattern, &[splits, "--cache=off", "--workers=3"])] {
        let two_of_three = FeedSpec { rank: 1, world_size: 3, last: Last::Drop, ..spec() };
        let cut = FeedSpec { flip: 0.5, mix: Mix::cutmix(1.0), dtype: Dtype::U8, ..spec() };
        let val = FeedSpec { digest: true, batch_size: 21, image_size: spec().image_size, ..FeedSpec::val() };
        for (spec, batches) in [(spec(), 30), (two_of_three, 15), (cut, 15), (val, 9)] {
            let mut trainer = Trainer::start(&daemon, spec, batches, 0);
            trainer.finish();
            assert_eq!(trainer.read.len(), batches as usize);
            oracle.check(&trainer);
        }
    }
}

#[test]
fn replay_makes_the_batch_of_the_folder_from_shards() {
    let dir = shards();
    let replayed = |data: &Path| {
        let fixed = ["replay", "--epoch=2", "--batch=7", "--batch-size=16", "--size=48", "--out=/dev/null", "--data"];
        let output = run(&[&fixed[..], &[data.to_str().unwrap()]].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let of_folder = replayed(&sample_data());
    assert!(of_folder.contains("digest 0x"), "{of_folder}");
    assert_eq!(replayed(dir.path()), of_folder);
}

#[test]
fn a_trainer_goes_on_with_the_next_batch_where_the_daemon_is_killed() {
    let dir = shards();
    let mut daemon = Daemon::on(dir.path(), &["--cache=off"]);
    let share = Some(Share { delivery: Delivery::Lossless, ..Share::new("all".parse().unwrap()) });
    let mut trainers =
        [spec(), FeedSpec { batch_size: 24, share, ..spec() }].map(|spec| Trainer::start(&daemon, spec, ENDLESS, 20));
    for _ in 0..2 {
        trainers.iter_mut().for_each(|trainer| trainer.batches(8));
        daemon.child.kill().unwrap();
        daemon.child.wait().unwrap();
        let socket = std::mem::replace(&mut daemon.dir, tempfile::tempdir().unwrap());
        daemon = Daemon::again(socket, dir.path(), &["--workers=1"]);
        until("both are back", || {
            let feeds = client::status(&daemon.socket()).unwrap().feeds;
            (feeds.len() == 2 && feeds.iter().all(|feed| feed.trainers[0].read > 4)).then_some(())
        });
    }
    let mut oracle = Oracle::new();
    for trainer in &mut trainers {
        trainer.kill();
        assert!(trainer.read.len() > 16);
        oracle.check(trainer);
    }
}

#[test]
fn a_daemon_with_other_shards_is_not_taken_for_the_one_that_is_gone() {
    let dir = shards();
    let mut daemon = Daemon::on(dir.path(), &[]);
    let mut trainer = Trainer::start(&daemon, spec(), ENDLESS, 1);
    trainer.batches(4);
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    let socket = std::mem::replace(&mut daemon.dir, tempfile::tempdir().unwrap());
    // As many samples of the same names; two have changed places.
    let [first, second] = [0, 1].map(|nth| dir.path().join(format!("train-{nth:06}.tar")));
    std::fs::rename(&first, dir.path().join("first")).unwrap();
    std::fs::rename(&second, &first).unwrap();
    std::fs::rename(dir.path().join("first"), &second).unwrap();
    let _daemon = Daemon::again(socket, dir.path(), &[]);
    let error = trainer.line("error ").expect("it ends");
    assert!(error.contains("data"), "{error}");
}

#[test]
fn a_shard_that_is_replaced_while_it_is_served_ends_a_strict_feed_and_is_named() {
    let dir = shards();
    let daemon = Daemon::on(dir.path(), &["--cache=off", "--on-bad-image=fail"]);
    let mut trainer = Trainer::start(&daemon, spec(), ENDLESS, 1);
    trainer.batches(4);
    let shard = dir.path().join("train-000002.tar");
    // In place, as some tools write: the same size, other bytes.
    let content = std::fs::read(dir.path().join("train-000003.tar")).unwrap();
    let bytes = shard.metadata().unwrap().len() as usize;
    std::fs::write(&shard, content.iter().cycle().copied().take(bytes).collect::<Vec<_>>()).unwrap();
    let error = trainer.line("error ").expect("it ends");
    assert!(error.contains("train-000002.tar has changed since it was indexed (start the daemon again"), "{error}");
    trainer.kill();
    Oracle::new().check(&trainer);
}

#[test]
fn shards_without_validation_train_and_refuse_validation() {
    let dir = shards();
    let daemon = Daemon::on(&dir.path().join("train-{000000..000001}.tar"), &[]);
    assert_eq!(daemon.attach(spec()).unwrap().samples(), 2 * SAMPLES_PER_SHARD as u32);
    let refused = refusal(daemon.attach(FeedSpec { batch_size: 16, ..FeedSpec::val() }));
    assert!(matches!(refused, Reason::Spec), "{refused:?}");
}

#[test]
fn what_cannot_be_read_in_place_is_refused_with_the_remedy() {
    let dir = shards();
    let gzipped = dir.path().join("train-000001.tar");
    let content = std::fs::read(&gzipped).unwrap();
    let serve = |data: &Path, args: &[&str]| {
        let socket = tempfile::tempdir().unwrap();
        let mut command = mixd();
        command.arg("serve").arg("--data").arg(data).args(args).arg("--socket").arg(socket.path().join("s"));
        let output = command.output().unwrap();
        assert!(!output.status.success());
        stderr(&output)
    };
    let mut encoder = flate2::write::GzEncoder::new(File::create(&gzipped).unwrap(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, &content).unwrap();
    encoder.finish().unwrap();
    let error = serve(dir.path(), &[]);
    assert!(error.contains("train-000001.tar is compressed (gzip)") && error.contains("unpack it"), "{error}");
    std::fs::write(&gzipped, &content[..content.len() / 2]).unwrap();
    let error = serve(dir.path(), &[]);
    assert!(error.contains("train-000001.tar is cut: the entry at byte "), "{error}");
    std::fs::write(&gzipped, &content).unwrap();
    let error = serve(&dir.path().join("train-{000000..000099}.tar"), &[]);
    assert!(error.contains("there is no shard") && error.contains("train-000006.tar"), "{error}");
    let error = serve(&dir.path().join("train-000000.tar"), &["--splits=val=val-*.tar", "--label-key=class"]);
    assert!(error.contains("no training sample has a label") && error.contains("id, label"), "{error}");
}

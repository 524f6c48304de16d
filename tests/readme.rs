//! The README's table of what mixd reads: each of its lines is a data set here, served by the real program, and packed into shards that serve the same.

mod common;
#[path = "readme/kinds.rs"]
mod kinds;
#[cfg(feature = "cloud-test")]
#[path = "cloud/server.rs"]
#[allow(dead_code, reason = "only the server, and none of its faults")]
mod server;

use common::{Daemon, mixd, refusal, stderr};
use kinds::{Kind, Sample, kinds};
use mixd::client::Reason;
use mixd::spec::{FeedSpec, Mix};
use mixd::types::{Dtype, Split};
use std::collections::BTreeSet;
use std::path::Path;

/// What a daemon serves of a split, in any order.
fn served(daemon: &Daemon, kind: &Kind, split: Split) -> (Vec<Sample>, Vec<u64>) {
    let spec = FeedSpec { batch_size: 4, image_size: kind.size, dtype: Dtype::U8, digest: true, ..FeedSpec::val() };
    let mut feed = daemon.attach(FeedSpec { split, mix: Mix::NONE, ..spec }).unwrap();
    let names: Vec<String> = feed.classes().iter().map(|class| class.name.clone()).collect();
    let sets = feed.label_sets().to_vec();
    let (mut samples, mut digests) = (Vec::new(), Vec::new());
    for batch in feed.epoch() {
        let batch = batch.unwrap();
        let view = batch.view();
        digests.push(view.head.digest);
        for (planes, &label) in view.x.chunks(kind.size.values()).zip(view.label_a) {
            let mut classes = match sets.get(label as usize) {
                Some(set) => set.iter().map(|&class| names[class as usize].clone()).collect(),
                None => vec![names[label as usize].clone()],
            };
            classes.sort();
            samples.push((classes, planes.to_vec()));
        }
    }
    (samples, digests)
}

fn serve(kind: &Kind, data: &Path, args: &[String]) -> Daemon {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Daemon::with(dir, data, &args, |command| {
        command.env("MIXD_CACHE_DIR", cache).envs(kind.variables.iter().cloned());
    })
}

/// That a daemon serves what there is to read; returns the digests of both splits.
fn check(daemon: &Daemon, kind: &Kind, what: &str) -> Vec<u64> {
    let mut digests = Vec::new();
    for &split in Split::ALL {
        let mut expected = kind.samples[split as usize].clone();
        if expected.is_empty() {
            assert_eq!(refusal(daemon.attach(FeedSpec { split, ..FeedSpec::val() })), Reason::Spec, "{what}");
            continue;
        }
        let (mut samples, of_split) = served(daemon, kind, split);
        samples.sort();
        expected.sort();
        assert!(samples == expected, "{what}, {split}: {} samples, {} expected", samples.len(), expected.len());
        digests.extend(of_split);
    }
    digests
}

#[test]
fn every_line_of_the_table_is_read_and_none_is_untested() {
    let dir = tempfile::tempdir().unwrap();
    let kinds = kinds(dir.path());
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let (_, section) = readme.split_once("\n## What it reads\n").expect("the section");
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next()).skip(1);
    let tested: BTreeSet<&str> = kinds.iter().map(|kind| kind.row).collect();
    assert_eq!(
        rows.collect::<BTreeSet<_>>(),
        tested,
        "the lines of the table, and those with a data set in tests/readme/kinds.rs"
    );
    for kind in &kinds {
        check(&serve(kind, &kind.data, &kind.args), kind, &format!("{}: {}", kind.row, kind.name));
    }
}

/// Packed in the order of the samples, since digests are compared.
#[test]
fn every_kind_is_packed_into_shards_that_serve_the_same() {
    let dir = tempfile::tempdir().unwrap();
    for (nth, kind) in kinds(dir.path()).iter().enumerate() {
        let what = format!("{}: {}", kind.row, kind.name);
        let out = dir.path().join(format!("packed-{nth}"));
        let mut command = mixd();
        command.arg("pack").arg("--data").arg(&kind.data).args(&kind.args).arg("--out").arg(&out);
        command.args(["--in-order", "--shard-size=5K"]).env("MIXD_CACHE_DIR", dir.path().join("cache"));
        let packed = command.envs(kind.variables.iter().cloned()).output().unwrap();
        assert!(packed.status.success(), "{what}: {}", stderr(&packed));
        let [packed, original] = [serve(kind, &out, &[]), serve(kind, &kind.data, &kind.args)];
        let digests = check(&packed, kind, &format!("packed {what}"));
        assert_eq!(digests, check(&original, kind, &what), "{what}");
    }
}

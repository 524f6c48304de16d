//! `mixd pack`: what it writes is what mixd reads.

mod common;

use common::{mixd, sample_data};
use mixd::source::{DataSet, Source, open};
use mixd::types::Split;
use std::path::Path;
use std::sync::Arc;

fn opened(data: &Path) -> Arc<dyn Source> {
    open(&DataSet::at(data), &mut |_| {}).unwrap()
}

/// Bytes and class of each sample of a split, sorted.
fn samples(source: &dyn Source, split: Split) -> Vec<(Vec<u8>, String)> {
    let mut bytes = Vec::new();
    let each = (0..source.len(split)).map(|sample| {
        source.read(split, sample, &mut bytes).unwrap();
        (bytes.clone(), source.label_name(source.label(split, sample)))
    });
    let mut samples: Vec<_> = each.collect();
    samples.sort();
    samples
}

#[test]
fn what_is_packed_is_read_as_shards_with_the_same_images_classes_and_splits() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("shards");
    let run =
        mixd().arg("pack").arg("--data").arg(sample_data()).arg("--out").arg(&out).arg("--shard-size=300K").output();
    let run = run.unwrap();
    let printed = String::from_utf8(run.stdout).unwrap();
    assert!(run.status.success() && printed.starts_with("200 train and 50 val samples in "), "{printed}");
    let (folder, shards) = (opened(&sample_data()), opened(&out));
    for &split in Split::ALL {
        assert!(samples(&*folder, split) == samples(&*shards, split), "{split}");
    }
    let names = |source: &dyn Source| source.classes().iter().map(|class| class.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&*folder), names(&*shards));
    let again = mixd().arg("pack").arg("--data").arg(&out).arg("--out").arg(&out).output().unwrap();
    let error = String::from_utf8(again.stderr).unwrap();
    assert!(!again.status.success() && error.contains("is not empty (name a new folder)"), "{error}");
}

#[test]
fn what_is_packed_smaller_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("shards");
    let options = ["--size=64", "--quality=80", "--workers=2"];
    let run =
        mixd().arg("pack").arg("--data").arg(sample_data()).arg("--out").arg(&out).args(options).output().unwrap();
    assert!(run.status.success(), "{run:?}");
    let batch = dir.path().join("batch.safetensors");
    let replay = mixd()
        .args(["replay", "--epoch=0", "--batch=0", "--batch-size=8", "--size=64", "--data"])
        .arg(&out)
        .arg("--out")
        .arg(&batch)
        .output()
        .unwrap();
    assert!(replay.status.success(), "{replay:?}");
    let folder: u64 = samples(&*opened(&sample_data()), Split::Train).iter().map(|(bytes, _)| bytes.len() as u64).sum();
    let packed: u64 = samples(&*opened(&out), Split::Train).iter().map(|(bytes, _)| bytes.len() as u64).sum();
    assert!(packed < folder / 2, "{packed} bytes of {folder}");
}

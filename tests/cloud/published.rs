//! What lies beside shards in a bucket: published indexes, info files, names of classes.

use super::server::BUCKET;
use super::{BLOCK, World, spec};
use crate::common::trainer::{Oracle, Trainer};
use crate::common::{mixd, stderr};
use mixd::spec::{FeedSpec, Mix, Shuffle};

#[test]
fn with_a_published_index_no_start_needs_the_shards() {
    let world = World::new(40, 400_000);
    let data = format!("s3://{BUCKET}/set");
    let index = world.kept.path().join("set.index");
    let output = world.run(&["index", "--data", &data, "--out", index.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    let published = std::fs::read(&index).unwrap();
    let starts_anew = || {
        std::fs::remove_dir_all(world.cache()).unwrap();
        // A published index is not remembered, so it may not be there.
        let _ = std::fs::remove_dir_all(world.kept.path().join("indexes"));
        world.proxy.forget();
    };
    world.server.put("set/mixd.index", published.clone());
    starts_anew();
    world.proxy.hold(BLOCK as u64..u64::MAX);
    let daemon = world.daemon(&data, &[]);
    let spec = FeedSpec { shuffle: Shuffle::Off, batch_size: 8, mix: Mix::NONE, ..spec() };
    let mut trainer = Trainer::start(&daemon, spec, 20, 0);
    trainer.batches(1);
    // The first batch took fewer bytes than the first shard has.
    let answered = world.proxy.answered();
    let blocks = answered.iter().filter(|(name, _)| name.ends_with(".tar")).count();
    let bytes = (blocks * BLOCK + published.len()) as u64;
    assert!(bytes < world.shards.paths()[0].metadata().unwrap().len(), "{answered:?}");
    assert!(answered.iter().all(|(_, first)| *first == 0), "{answered:?}");
    world.proxy.hold(0..0);
    trainer.finish();
    Oracle::of(world.shards.dir.path()).check(&trainer);
    drop(daemon);
    // It is in the disk cache.
    world.proxy.forget();
    drop(world.daemon(&data, &[]));
    assert_eq!(world.proxy.asked(), []);
    // One of other shards or damaged is not used.
    let mut damaged = published.clone();
    damaged[published.len() / 2] ^= 1;
    for other in [damaged, published[..published.len() / 3].to_vec(), b"<html>".to_vec()] {
        world.server.put("set/mixd.index", other);
        starts_anew();
        let output = world.run(&["plan", "--epoch", "0", "--data", &data]);
        assert!(stderr(&output).contains("mixd.index") && stderr(&output).contains("not used"), "{}", stderr(&output));
        assert!(output.status.success() && world.proxy.asked().iter().any(|(_, first)| *first > 0));
    }
    world.server.put("set/mixd.index", published);
    world.server.put("set/train-000.tar", std::fs::read(&world.shards.paths()[1]).unwrap());
    starts_anew();
    let output = world.run(&["plan", "--epoch", "0", "--data", &data]);
    assert!(stderr(&output).contains("not used") && output.status.success(), "{}", stderr(&output));
}

#[test]
fn without_a_published_index_the_log_says_how_to_make_one() {
    let world = World::new(200, 100);
    let mut program = mixd();
    world.environment(&mut program);
    let data = format!("s3://{BUCKET}/set");
    let output = program.args(["plan", "--epoch", "0", "--data", &data]).env("RUST_LOG", "mixd=info").output().unwrap();
    assert_eq!(stderr(&output).matches("`mixd index`").count(), 1, "{}", stderr(&output));
    let folder = world.shards.dir.path().to_str().unwrap();
    let output = world.run(&["index", "--data", folder]);
    assert!(!output.status.success() && stderr(&output).contains("only sets in object stores"), "{}", stderr(&output));
}

#[test]
fn what_lies_beside_shards_in_a_bucket_describes_them() {
    let world = World::new(30, 100);
    let info = serde_json::json!({"splits": {
        "train": {"filenames": ["train-{000..001}.tar"], "num_samples": 7},
        "validation": {"filenames": ["val-*.tar"]},
    }});
    world.server.put("set/_info.json", info.to_string().into_bytes());
    world.server.put("set/classnames.txt", b"first class\nsecond class\n".to_vec());
    let data = format!("s3://{BUCKET}/set");
    let mut program = mixd();
    world.environment(&mut program);
    let output = program.args(["plan", "--epoch", "0", "--data", &data]).env("RUST_LOG", "mixd=info").output().unwrap();
    let text = stderr(&output);
    let val = world.shards.paths().iter().filter(|path| path.to_str().unwrap().contains("val-")).count();
    assert!(output.status.success() && text.contains(&format!("indexing {} shards", 2 + val)), "{text}");
    assert!(text.contains("where their info file counts 7") && text.contains("2 class names lie beside"), "{text}");
    let other = r#"{"splits": {"train": {"filenames": ["http://elsewhere/train-0.tar"]}}}"#;
    world.server.put("set/_info.json", other.into());
    let output = world.run(&["plan", "--epoch", "0", "--data", &data]);
    assert!(!output.status.success() && stderr(&output).contains("elsewhere"), "{}", stderr(&output));
}

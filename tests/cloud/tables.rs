//! Parquet and saved tables in a bucket: what the same tables on a disk give.

use super::server::{BUCKET, Proxy, Server, Shards};
use super::{World, trained};
use crate::common::{self, mixd, stderr};
use mixd::spec::FeedSpec;
use mixd::types::ImageSize;
use std::path::{Path, PathBuf};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tables")
}

/// A server with the golden tables: of the hub, saved, and each way of writing one as a set of its own.
fn world() -> World {
    let server = Server::start();
    for path in common::files(&golden()) {
        let name = path.strip_prefix(golden()).unwrap().to_str().unwrap();
        if !name.starts_with("refused") {
            server.put(name, std::fs::read(&path).unwrap());
        }
    }
    let proxy = Proxy::before(server.address);
    let shards = Shards { dir: tempfile::tempdir().unwrap() };
    World { server, proxy, shards, kept: tempfile::tempdir().unwrap() }
}

/// What `mixd replay` prints of a batch, its digest among it.
fn replayed(world: &World, data: &str, options: &[&str]) -> String {
    let fixed = ["replay", "--epoch=3", "--batch=0", "--batch-size=4", "--size=8", "--out=/dev/null", "--data", data];
    let output = world.run(&[&fixed[..], options].concat());
    assert!(output.status.success(), "{data}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn tables_in_a_bucket_give_the_batches_of_the_same_tables_on_a_disk() {
    let world = world();
    let mut sets = vec![
        ("hub".to_owned(), Vec::new()),
        ("hub".to_owned(), vec!["--splits=train=test,val=train"]),
        ("hub/data/train-*.parquet".to_owned(), Vec::new()),
        ("hub/data/train-{00000..00001}-of-00002.parquet".to_owned(), vec!["--splits=val=test-00000-of-00001.parquet"]),
        ("saved".to_owned(), Vec::new()),
        ("saved/train".to_owned(), Vec::new()),
    ];
    for path in common::files(&golden().join("variants")) {
        sets.push((format!("variants/{}", path.file_name().unwrap().to_str().unwrap()), Vec::new()));
    }
    for (set, options) in sets {
        let local = replayed(&world, golden().join(&set).to_str().unwrap(), &options);
        let remote = format!("s3://{BUCKET}/{set}");
        assert_eq!(replayed(&world, &remote, &options), local, "{set}");
        // What is remembered gives the same, too.
        assert_eq!(replayed(&world, &remote, &options), local, "{set}");
    }
}

#[test]
fn daemons_serve_tables_of_a_bucket_from_a_remembered_or_a_published_index() {
    let world = world();
    let spec = FeedSpec { batch_size: 4, image_size: ImageSize::square(8), digest: true, seed: 3, ..FeedSpec::train() };
    for set in ["hub", "variants/snappy.parquet", "variants/dictionary-v2.parquet", "saved"] {
        let (data, local) = (format!("s3://{BUCKET}/{set}"), golden().join(set));
        let starts_anew = |folders: &[&str]| {
            folders.iter().for_each(|folder| std::fs::remove_dir_all(world.kept.path().join(folder)).unwrap());
            world.proxy.forget();
        };
        trained(&world, &data, spec, 9, &local);
        starts_anew(&["objects"]);
        let plan = || {
            let output = world.run(&["plan", "--epoch=0", "--batch-size=4", "--data", &data]);
            assert!(output.status.success(), "{set}: {}", stderr(&output));
        };
        plan();
        assert_eq!(world.proxy.asked(), [], "{set}: the index is not remembered");
        // In the folder of a single table, too.
        let index = world.kept.path().join("index");
        let output = world.run(&["index", "--data", &data, "--out", index.to_str().unwrap()]);
        assert!(output.status.success(), "{set}: {}", stderr(&output));
        let folder = if set.ends_with(".parquet") { "variants" } else { set };
        world.server.put(&format!("{folder}/mixd.index"), std::fs::read(index).unwrap());
        starts_anew(&["objects", "indexes"]);
        plan();
        assert_eq!(world.proxy.asked(), [(format!("/{BUCKET}/{folder}/mixd.index"), 0)], "{set}");
        trained(&world, &data, spec, 9, &local);
    }
}

#[test]
fn what_is_neither_shards_nor_tables_is_refused_by_name() {
    let world = world();
    world.server.put("images/train/a/0.jpg", b"x".to_vec());
    for (command, data) in [("plan", "images"), ("index", "images"), ("plan", "nothing")] {
        let mut program = mixd();
        world.environment(&mut program);
        program.args([command, "--data", &format!("s3://{BUCKET}/{data}")]);
        let output = if command == "plan" { program.arg("--epoch=0").output() } else { program.output() }.unwrap();
        let text = stderr(&output);
        assert!(!output.status.success() && text.contains("(.tar) and tables (.parquet"), "{text}");
    }
    let output = world.run(&["plan", "--epoch=0", "--data", &format!("s3://{BUCKET}/hub/data/gone-*.parquet")]);
    assert!(stderr(&output).contains("gone-*.parquet"), "{}", stderr(&output));
}

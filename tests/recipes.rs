//! Feeds with a recipe, through real daemons: the same batches whatever decodes, renders, keeps or dies, and those without one as they were
//! before there were recipes.

mod common;

use common::{DEADLINE, Daemon, mixd, run, sample_data, small_folder, stderr};
use mixd::client;
use mixd::spec::{Crop, FeedSpec, Mix, Pairing, Recipe, Share};
use mixd::types::{Dtype, ImageSize, Interpolation, PadMode, Place, Split, Start};
use rustix::process::Signal;
use std::path::Path;

/// Random resized crops of 40 px and flips, mixed by either mix.
fn spec() -> FeedSpec {
    let mix = Mix { cutmix: Some(1.0), fold: false, ..Mix::mixup(0.4) };
    FeedSpec { batch_size: 16, image_size: ImageSize::square(40), digest: true, seed: 3, mix, ..recipe(Split::Train) }
}

fn recipe(split: Split) -> FeedSpec {
    "torchvision-v1".parse::<Recipe>().unwrap().feed(split)
}

/// Digests of the next batches; each batch is intact.
fn digests(feed: &mut client::Feed, count: usize) -> Vec<u64> {
    let mut next = || {
        let batch = feed.next_batch().unwrap();
        assert!(batch.header().digest != 0 && feed.is_intact(&batch));
        batch.header().digest
    };
    (0..count).map(|_| next()).collect()
}

/// What `mixd replay` prints of a batch's digest.
fn replayed(data: &Path, options: &[&str]) -> u64 {
    let fixed = ["replay", "--data", data.to_str().unwrap(), "--out", "/dev/null", "--workers=1", "--cache=off"];
    let output = run(&[&fixed[..], options].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let digits = text.split("digest 0x").nth(1).unwrap_or_else(|| panic!("{text}{}", stderr(&output)));
    u64::from_str_radix(&digits[..16], 16).unwrap()
}

fn killed_and_started_again(mut daemon: Daemon, options: &[&str]) -> Daemon {
    daemon.signal(Signal::KILL);
    daemon.child.wait().unwrap();
    let dir = std::mem::replace(&mut daemon.dir, tempfile::tempdir().unwrap());
    Daemon::again(dir, &sample_data(), options)
}

#[test]
fn batches_are_the_same_whatever_keeps_and_renders_their_views() {
    let dir = tempfile::tempdir().unwrap();
    let cache_file = format!("--cache-file={}", dir.path().join("cache").display());
    let alone = replayed(
        &sample_data(),
        &[
            "--epoch=0",
            "--batch=3",
            "--batch-size=16",
            "--size=40",
            "--seed=3",
            "--recipe=torchvision-v1",
            "--mixup=0.4",
            "--cutmix=1",
        ],
    );
    let mut all = Vec::new();
    // The file is made by the third daemon and read by the fourth. 2 MB hold a part of the sources.
    for options in [
        &["--workers=3"][..],
        &["--cache=off"],
        &[&cache_file, "--cache=2M"],
        &[&cache_file],
        &["--cache=2M", "--workers=1"],
    ] {
        let daemon = Daemon::start(options);
        let mut feed = daemon.attach(spec()).unwrap();
        all.push(digests(&mut feed, 26));
        let status = client::status(&daemon.socket()).unwrap();
        let [sources] = &status.sources[..] else { panic!("{:?}", status.sources) };
        match options {
            ["--cache=off"] => assert_eq!((sources.kept, sources.bytes), (0, 0)),
            [.., "--cache=2M"] | ["--cache=2M", ..] => assert!((1..200).contains(&sources.kept), "{sources:?}"),
            _ => assert_eq!(sources.kept, 200),
        }
        // Those that the file has are not decoded again.
        assert!(*options != [&*cache_file] || sources.decoded < 200, "{sources:?}");
    }
    assert!(all.iter().all(|digests| *digests == all[0]), "{all:#x?}");
    assert_eq!(all[0][3], alone);
    // An epoch of 13 batches, and another one of other views.
    assert!(all[0][..13].iter().zip(&all[0][13..]).all(|(one, other)| one != other));
}

#[test]
fn a_damaged_or_changed_source_is_decoded_again() {
    let (dir, data) = (tempfile::tempdir().unwrap(), small_folder(8));
    let path = dir.path().join("cache");
    let cache_file = format!("--cache-file={}", path.display());
    let spec = FeedSpec { batch_size: 4, image_size: ImageSize::square(12), ..spec() };
    let read = || {
        let daemon = Daemon::on(data.path(), &[&cache_file]);
        let read = digests(&mut daemon.attach(spec).unwrap(), 8);
        (read, client::status(&daemon.socket()).unwrap().sources[0].decoded)
    };
    let deadline = std::time::Instant::now() + DEADLINE;
    // Images that changed within the last second are not kept in the file.
    let (first, _) = loop {
        let found = read();
        if found.1 == 0 {
            break found;
        }
        assert!(std::time::Instant::now() < deadline, "never kept");
    };
    let file = path.with_extension("train-sources-full");
    let mut bytes = std::fs::read(&file).unwrap();
    // Within the pixels of an image, behind the index and the header.
    let at = bytes.len() - bytes.iter().rev().position(|&byte| byte != 0).unwrap() - 1;
    bytes[at] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    assert_eq!(read(), (first.clone(), 1));
    let changed = data.path().join("train/n01440764/000.png");
    image::RgbImage::from_pixel(24, 20, image::Rgb([1, 2, 3])).save(&changed).unwrap();
    let (second, decoded) = read();
    assert!(second != first && decoded == 1);
}

#[test]
fn shares_ranks_and_resumed_feeds_have_the_views_of_their_places() {
    let daemons = [Daemon::start(&[]), Daemon::start(&["--cache=off", "--workers=1"])];
    let whole = digests(&mut daemons[0].attach(spec()).unwrap(), 13);
    let share = FeedSpec { share: Some(Share::new("any".parse().unwrap())), ..spec() };
    let later = FeedSpec { start: Start::At(Place { epoch: 0, index: 9 }), ..share };
    let [mut one, mut other] = [daemons[1].attach(share).unwrap(), daemons[1].attach(later).unwrap()];
    assert_eq!((digests(&mut one, 13), digests(&mut other, 4)), (whole.clone(), whole[9..].to_vec()));
    let start = Start::At(Place { epoch: 0, index: 7 });
    assert_eq!(digests(&mut daemons[1].attach(FeedSpec { start, ..spec() }).unwrap(), 6), whole[7..]);
    // Ranks draw crops of their own, and the same ones on any daemon.
    let rank =
        |daemon: &Daemon, rank| digests(&mut daemon.attach(FeedSpec { rank, world_size: 2, ..spec() }).unwrap(), 7);
    let ranks = [rank(&daemons[0], 0), rank(&daemons[0], 1)];
    assert_eq!([rank(&daemons[1], 0), rank(&daemons[1], 1)], ranks);
    assert_ne!(ranks[0], ranks[1]);
}

#[test]
fn a_daemon_that_is_killed_and_started_again_goes_on_with_the_same_views() {
    let daemon = Daemon::start(&[]);
    let whole = digests(&mut daemon.attach(spec()).unwrap(), 20);
    let mut feed = client::attach_for(&daemon.socket(), &spec(), DEADLINE).unwrap();
    let mut read = digests(&mut feed, 3);
    let _daemon = killed_and_started_again(daemon, &["--cache=off", "--workers=1"]);
    read.extend(digests(&mut feed, 17));
    assert_eq!(read, whole);
}

#[test]
fn every_kind_of_crop_is_delivered_with_its_boxes_and_replayed() {
    let daemon = Daemon::start(&[]);
    let pad = Crop::PadCrop { pad: 5, mode: PadMode::Reflect };
    let second = Mix { pairing: Pairing::SecondBatch, ..Mix::mixup(0.4) };
    let cases: [(FeedSpec, &[&str]); 5] = [
        (
            FeedSpec { mix: second, ..spec() },
            &["--recipe=torchvision-v1", "--mixup=0.4", "--pairing=second-batch", "--fold=true"],
        ),
        (
            FeedSpec { interpolation: Interpolation::Bicubic, dtype: Dtype::U8, mix: Mix::NONE, ..spec() },
            &["--recipe=torchvision-v1", "--interpolation=bicubic", "--dtype=u8"],
        ),
        (
            FeedSpec {
                crop: pad,
                flip: 0.3,
                digest: true,
                seed: 3,
                batch_size: 16,
                image_size: ImageSize::square(40),
                ..FeedSpec::train()
            },
            &["--crop=pad_crop:5,reflect", "--flip=0.3"],
        ),
        (
            FeedSpec { repeats: 3, mix: Mix { pairing: Pairing::Roll, ..spec().mix }, ..spec() },
            &["--recipe=torchvision-v1", "--repeats=3", "--mixup=0.4", "--cutmix=1", "--pairing=roll"],
        ),
        (
            FeedSpec {
                batch_size: 16,
                image_size: ImageSize::square(40),
                crop: Crop::ShortCenter { resize: 46 },
                digest: true,
                seed: 3,
                ..recipe(Split::Val)
            },
            &["--recipe=torchvision-v1", "--split=val"],
        ),
    ];
    for (spec, options) in cases {
        let mut feed = daemon.attach(spec).unwrap();
        let batch = feed.next_batch().unwrap();
        let view = batch.view();
        assert!(feed.is_intact(&batch), "{options:?}");
        let is_random = spec.crop.is_random();
        assert_eq!(view.head.digest_version, if is_random { 2 } else { 1 });
        for [_, _, height, width] in view.crop {
            assert_eq!((*height > 0, *width > 0), (is_random, is_random), "{options:?}");
        }
        assert!(spec.flip == 0.0 || [0, 1].iter().all(|coin| view.flip.contains(coin)), "{options:?}");
        let cuts = view.cut.iter().filter(|cut| cut[2] * cut[3] > 0).count();
        assert_eq!(cuts > 0, spec.mix.cutmix.is_some(), "{options:?}");
        let same = ["--epoch=0", "--batch=0", "--batch-size=16", "--size=40", "--seed=3"];
        assert_eq!(replayed(&sample_data(), &[&same[..], options].concat()), view.head.digest, "{options:?}");
    }
}

/// Bytes and random streams of feeds without a recipe: digests that the commit before recipes (dfe408d) gave of these images, which are
/// stored without loss, so that every decoder has the same.
#[test]
fn feeds_without_a_recipe_are_what_they_were_before_there_were_recipes() {
    let data = small_folder(20);
    let cases: [(&[&str], u64); 8] = BEFORE;
    for (options, before) in cases {
        let batch = if options.contains(&"--batch=0") { &[][..] } else { &["--batch=1"] };
        let same = [&["--epoch=2", "--batch-size=8", "--size=16", "--seed=3"], batch].concat();
        assert_eq!(replayed(data.path(), &[&same[..], options].concat()), before, "{options:?}");
    }
}
const BEFORE: [(&[&str], u64); 8] = [
    (&[], 0xb9e4_b03a_7392_2307),
    (&["--flip", "--cutmix=1"], 0x9a46_dd2b_8bd1_017f),
    (&["--cutmix=1", "--lambda=per-batch", "--dtype=bf16"], 0x8eb1_3453_82e7_fa2f),
    (&["--dtype=u8", "--layout=nhwc"], 0x3cac_c25b_aa37_cd9c),
    (
        &["--lambda=per-batch", "--no-fold", "--dtype=f16", "--mean=0.1,0.2,0.5", "--std=0.5,0.25,1"],
        0x0c80_5289_1a9c_bc2f,
    ),
    (&["--pairing=second-batch", "--alpha=1", "--last=drop", "--flip"], 0xdffb_75c3_511b_802a),
    (&["--rank=2", "--world-size=3"], 0x9148_0dcb_e5f0_7667),
    (&["--split=val", "--batch=0"], 0xdee4_60fe_b805_2ef0),
];

#[test]
fn plans_name_crops_as_drawn_or_in_pixels_and_recipes_are_listed_and_read() {
    let data = sample_data();
    let plan = |options: &[&str]| -> serde_json::Value {
        let fixed = ["plan", "--data", data.to_str().unwrap(), "--epoch=1", "--json", "--batch-size=4"];
        let output = run(&[&fixed[..], options].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice(output.stdout.split(|&byte| byte == b'\n').next().unwrap()).unwrap()
    };
    assert!(plan(&[]).get("recipe").is_none());
    let drawn = plan(&["--recipe=torchvision-v1"]);
    let rows = drawn["recipe"].as_array().unwrap();
    assert!(
        rows.len() == 4 && rows[0]["crop"]["attempts"].as_array().unwrap().len() == 10 && rows[0]["flip"].is_boolean()
    );
    let resolved = plan(&["--recipe=torchvision-v1", "--resolve"]);
    let daemon = Daemon::start(&[]);
    let start = Start::At(Place { epoch: 1, index: 0 });
    let mut feed = daemon.attach(FeedSpec { batch_size: 4, start, ..recipe(Split::Train) }).unwrap();
    let batch = feed.next_batch().unwrap();
    for (row, crop) in resolved["recipe"].as_array().unwrap().iter().zip(batch.view().crop) {
        assert_eq!(row["crop"], serde_json::json!(crop));
    }
    let val = plan(&["--recipe=torchvision-v1", "--split=val", "--size=112"]);
    assert_eq!(val["recipe"][0]["crop"], serde_json::json!({ "kind": "short_center", "resize": 128 }));

    let list = String::from_utf8(run(&["recipe"]).stdout).unwrap();
    assert!(["lesson", "imagenette", "torchvision-v1"].iter().all(|name| list.contains(name)), "{list}");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mine.toml");
    let text = String::from_utf8(run(&["recipe", "imagenette"]).stdout).unwrap();
    std::fs::write(&file, text.replace("size = 128", "size = 64")).unwrap();
    let mine = plan(&["--recipe", file.to_str().unwrap(), "--resolve"]);
    assert_eq!(mine["recipe"], plan(&["--recipe=imagenette", "--resolve"])["recipe"]);
    let refused = mixd().args(["recipe", "torchvision-v9"]).output().unwrap();
    assert!(refused.status.code() == Some(2) && stderr(&refused).contains("torchvision-v1"), "{}", stderr(&refused));
}

#[test]
fn a_bounded_source_is_the_image_with_its_short_side_resized() {
    let daemon = Daemon::start(&["--source=64"]);
    let mut feed = daemon.attach(spec()).unwrap();
    let batch = feed.next_batch().unwrap();
    for [top, left, height, width] in batch.view().crop {
        assert!((top + height).min(left + width) <= 64, "{top} {left} {height} {width}");
    }
    let full = Daemon::start(&[]);
    assert_ne!(full.attach(spec()).unwrap().identity(), feed.identity());
}

#[test]
fn every_preset_s_batches_are_the_same_wherever_they_are_made() {
    let daemons = [&["--workers=3"][..], &["--cache=off", "--workers=1"]].map(Daemon::start);
    let mut expected = Vec::new();
    for Recipe { name, .. } in Recipe::presets() {
        let recipe: Recipe = name.parse().unwrap();
        let small = |spec: FeedSpec| FeedSpec {
            batch_size: 16,
            image_size: ImageSize::square(48),
            grow: None,
            crop: spec.crop.scaled(spec.image_size, ImageSize::square(48)),
            digest: true,
            seed: 3,
            ..spec
        };
        for split in [Split::Train, Split::Val] {
            let spec = small(recipe.feed(split));
            let ranked = FeedSpec { rank: 1, world_size: 2, ..spec };
            let shared = FeedSpec { share: Some(Share::new("all".parse().unwrap())), ..spec };
            let all = daemons.each_ref().map(|daemon| {
                let alone = digests(&mut daemon.attach(spec).unwrap(), if split == Split::Train { 8 } else { 3 });
                let mut trainers = [(); 2].map(|()| daemon.attach(shared).unwrap());
                for trainer in &mut trainers {
                    let batch = trainer.next_batch().unwrap();
                    let Place { epoch, index } = batch.place();
                    // The second comes when the first batches have gone.
                    let expected = alone.get(index as usize).filter(|_| epoch == 0);
                    assert!(expected.is_none_or(|&digest| digest == batch.header().digest), "{name} {split}: shared");
                }
                (alone, digests(&mut daemon.attach(ranked).unwrap(), 2))
            });
            assert_eq!(all[0], all[1], "{name} {split}");
            assert!(all[0].0[0] != all[0].1[0], "{name} {split}: another rank");
            expected.push((spec, all[0].0.clone()));
            let (name, split) = (format!("--recipe={name}"), format!("--split={split}"));
            let place = ["--epoch=0", "--batch=2", "--batch-size=16", "--size=48", "--seed=3"];
            let options = [&place[..], &[&name, &split]].concat();
            assert_eq!(replayed(&sample_data(), &options), all[0].0[2], "{name} {split}: replayed");
        }
    }
    let daemon = Daemon::start(&["--cache=2M"]);
    let attach = |(spec, expected): (FeedSpec, Vec<u64>)| {
        let mut feed = client::attach_for(&daemon.socket(), &spec, DEADLINE).unwrap();
        assert_eq!(digests(&mut feed, 1), expected[..1]);
        (spec, feed, expected)
    };
    let feeds = expected.into_iter().map(attach).collect::<Vec<_>>();
    let _daemon = killed_and_started_again(daemon, &["--workers=1"]);
    for (spec, mut feed, expected) in feeds {
        assert_eq!(digests(&mut feed, expected.len() - 1), expected[1..], "restarted: {spec:?}");
    }
}

#[test]
fn views_grow_with_the_epochs_in_slots_made_for_the_largest() {
    let grow = Some("32x40,0,2".parse().unwrap());
    let base = FeedSpec { image_size: ImageSize { height: 96, width: 104 }, grow, batch_size: 50, ..spec() };
    let daemon = Daemon::start(&["--workers=3"]);
    for (dtype, device_bytes) in [(Dtype::F32, 4), (Dtype::U8, 1)] {
        let mut feed = daemon.attach(FeedSpec { dtype, ..base }).unwrap();
        let mut digest = 0;
        for epoch in 0..4 {
            let size = [(32, 40), (64, 64), (96, 104), (96, 104)][epoch as usize];
            for index in 0..4 {
                let batch = feed.next_batch().unwrap();
                assert_eq!(batch.place(), Place { epoch, index });
                let view = batch.view();
                assert_eq!((view.image_size.height, view.image_size.width), size);
                assert_eq!(view.x.len(), 50 * 3 * (size.0 * size.1) as usize * device_bytes);
                assert!(feed.is_intact(&batch));
                digest = if (epoch, index) == (1, 3) { view.head.digest } else { digest };
            }
        }
        let dtype = format!("--dtype={dtype}");
        let options = [
            "--epoch=1",
            "--batch=3",
            "--batch-size=50",
            "--size=96x104",
            "--grow=32x40,0,2",
            "--seed=3",
            "--recipe=torchvision-v1",
            "--mixup=0.4",
            "--cutmix=1",
            &dtype,
        ];
        assert_eq!(replayed(&sample_data(), &options), digest);
    }
}

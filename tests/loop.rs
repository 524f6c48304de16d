//! What trainers get from a daemon in another process is what the plan, the files and the formula say.

mod common;

use common::{Daemon, mixd, refusal, run, sample_data, small_folder, stderr, until};
use mixd::client::{self, ClientError, Reason};
use mixd::spec::{FeedSpec, Mix, Pairing, Shuffle};
use mixd::types::{Dtype, ImageSize, Layout, Place, Split, Start};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use safetensors::SafeTensors;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

fn spec() -> FeedSpec {
    FeedSpec { batch_size: 16, seed: 5, ..FeedSpec::train() }
}

#[test]
fn a_pipe_is_written_to_and_stays_a_pipe() {
    use std::os::unix::fs::FileTypeExt;
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("batch");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::read(pipe)
    });
    let status = mixd()
        .args(["replay", "--epoch=0", "--batch=0", "--batch-size=4", "--out"])
        .arg(&pipe)
        .arg("--data")
        .arg(sample_data())
        .status();
    assert!(status.unwrap().success());
    assert!(pipe.metadata().unwrap().file_type().is_fifo());
    let bytes = reader.join().unwrap().unwrap();
    assert_eq!(safetensors::SafeTensors::deserialize(&bytes).unwrap().tensor("x").unwrap().shape(), [4, 3, 128, 128]);
}

#[test]
fn a_trainer_gets_the_bytes_that_replay_makes() {
    let daemon = Daemon::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let mixes = [
        (Dtype::F32, Layout::Nchw, Pairing::Shuffle, "shuffle"),
        (Dtype::Bf16, Layout::Nhwc, Pairing::SecondBatch, "second-batch"),
        (Dtype::U8, Layout::Nchw, Pairing::Shuffle, "shuffle"),
    ];
    for (dtype, layout, pairing, pairing_name) in mixes {
        let mix = Mix { pairing, ..Mix::mixup(0.4) };
        let mut feed = daemon.attach(FeedSpec { dtype, layout, mix, ..spec() }).unwrap();
        let batches: Vec<_> = feed.epoch().map(|batch| batch.unwrap()).take(3).collect();
        for batch in &batches {
            let view = batch.view();
            let out = dir.path().join("batch.safetensors");
            // Other threads, no cache: it must not matter.
            let status = mixd()
                .args(["replay", "--workers=1", "--cache=off", "--batch-size=16", "--seed=5", "--epoch=0"])
                .args([
                    format!("--batch={}", view.head.index),
                    format!("--dtype={dtype}"),
                    format!("--layout={layout}"),
                ])
                .arg(format!("--pairing={pairing_name}"))
                .arg("--data")
                .arg(sample_data())
                .arg("--out")
                .arg(&out)
                .status();
            assert!(status.unwrap().success());
            let bytes = std::fs::read(&out).unwrap();
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            let field = |name: &str| tensors.tensor(name).unwrap();
            assert!(field("x").data() == view.x, "x of batch {}", view.head.index);
            assert_eq!(field("x").shape(), view.shape());
            assert_eq!(field("label_a").data(), bytemuck::cast_slice::<_, u8>(view.label_a));
            assert_eq!(field("label_b").data(), bytemuck::cast_slice::<_, u8>(view.label_b));
            assert_eq!(field("lambda").data(), bytemuck::cast_slice::<_, u8>(view.lambda));
            assert_eq!(field("partner").data(), bytemuck::cast_slice::<_, u8>(view.partner));
            assert_eq!(field("sample_id").data(), bytemuck::cast_slice::<_, u8>(view.sample_id));
            assert_eq!(field("partner_id").data(), bytemuck::cast_slice::<_, u8>(view.partner_id));
            assert_eq!(field("epoch").data(), view.head.epoch.to_le_bytes());
            assert_eq!(field("index").data(), view.head.index.to_le_bytes());
            assert_eq!(field("batches").data(), view.head.batches.to_le_bytes());
            assert_eq!(field("len").data(), (view.len() as u32).to_le_bytes());
        }
    }
}

#[test]
fn plan_prints_what_the_feed_delivers() {
    let daemon = Daemon::start(&[]);
    let data = sample_data();
    let plan = run(&["plan", "--data", data.to_str().unwrap(), "--epoch=1", "--batch-size=16", "--seed=5", "--json"]);
    let lines: Vec<serde_json::Value> =
        String::from_utf8(plan.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut feed = daemon.attach(FeedSpec { start: Start::At(Place { epoch: 1, index: 0 }), ..spec() }).unwrap();
    assert_eq!(lines.len() as u64, feed.batches());
    for (line, batch) in lines.iter().zip(feed.epoch()) {
        let batch = batch.unwrap();
        let view = batch.view();
        assert_eq!(line["epoch"], 1);
        assert_eq!(line["index"], view.head.index);
        assert_eq!(line["len"], view.len());
        assert_eq!(line["sample_id"], serde_json::json!(view.sample_id));
        assert_eq!(line["partner"], serde_json::json!(view.partner));
        assert_eq!(line["partner_id"], serde_json::json!(view.partner_id));
        assert_eq!(line["label_a"], serde_json::json!(view.label_a));
        assert_eq!(line["label_b"], serde_json::json!(view.label_b));
        let lambda: Vec<f32> =
            line["lambda"].as_array().unwrap().iter().map(|lambda| lambda.as_f64().unwrap() as f32).collect();
        assert_eq!(lambda, view.lambda);
    }
}

#[test]
fn several_trainers_read_private_feeds_at_once_and_samples_are_decoded_once() {
    let daemon = Daemon::start(&[]);
    let sums: Vec<u64> = std::thread::scope(|scope| {
        let read = |seed: u64| {
            let mut feed = daemon.attach(FeedSpec { seed, ..spec() }).unwrap();
            move || -> u64 {
                let mut seen = vec![0; feed.samples() as usize];
                for batch in feed.epoch() {
                    for &id in batch.unwrap().view().sample_id {
                        seen[id as usize] += 1;
                    }
                }
                assert!(seen.iter().all(|&times| times == 1), "lost or repeated: {seen:?}");
                seen.len() as u64
            }
        };
        let threads: Vec<_> = (0..3).map(|seed| scope.spawn(read(seed))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(sums, [200; 3]);
    let status = client::status(&daemon.socket()).unwrap();
    assert_eq!((status.stores.len(), status.stores[0].decoded), (1, 200));
    let decode = status.stages.iter().find(|stage| stage.name == "decode").unwrap();
    assert_eq!(decode.items, 200);
}

#[test]
fn a_store_that_holds_little_gives_the_same_bytes() {
    let read = |args: &[&str]| -> Vec<u64> {
        let daemon = Daemon::start(args);
        let mut feed = daemon.attach(spec()).unwrap();
        let mut hashes = Vec::new();
        for _ in 0..2 {
            hashes.extend(feed.epoch().map(|batch| xxhash_rust::xxh3::xxh3_64(batch.unwrap().view().x)));
        }
        hashes
    };
    let all = read(&["--cache=auto", "--workers=2"]);
    assert_eq!(all.len(), 26);
    assert_eq!(all, read(&["--cache=2M", "--workers=1"]));
    assert_eq!(all, read(&["--cache=off", "--workers=3"]));
}

/// design.md §8: an unreadable image.
#[test]
fn a_bad_image_is_substituted_by_the_next_of_its_class_and_entered_once() {
    let folder = small_folder(25);
    let bad = folder.path().join("train/n01440764/024.png");
    std::fs::write(&bad, "not an image").unwrap();
    let daemon = Daemon::on(folder.path(), &[]);
    let mut feed = daemon.attach(FeedSpec { batch_size: 50, shuffle: Shuffle::Off, ..spec() }).unwrap();
    for _ in 0..2 {
        let batch = feed.next_batch().unwrap();
        let view = batch.view();
        // The last of the class: the next one, going round, is the first.
        assert_eq!((view.sample_id[24], view.label_a[24]), (0, 0));
        for row in 0..50 {
            let partner = view.partner[row] as usize;
            assert_eq!(view.partner_id[row], view.sample_id[partner]);
            assert_eq!(view.label_b[row], view.label_a[partner]);
        }
    }
    let status = client::status(&daemon.socket()).unwrap();
    assert_eq!(status.bad_samples.len(), 1);
    assert_eq!((status.bad_samples[0].sample_id, status.bad_samples[0].split), (24, Split::Train));
    assert!(status.bad_samples[0].name.ends_with("n01440764/024.png"));

    let strict = Daemon::on(folder.path(), &["--on-bad-image=fail"]);
    let mut feed = strict.attach(FeedSpec { batch_size: 50, ..spec() }).unwrap();
    let error = feed.next_batch().err().unwrap();
    assert!(matches!(&error, ClientError::Ended { failed: true, reason } if reason.contains("024.png")), "{error}");
}

#[test]
fn an_image_that_is_decoded_with_a_warning_is_counted_once() {
    let folder = small_folder(25);
    let jpeg = common::files(&sample_data().join("val/n01440764")).remove(0);
    let jpeg = std::fs::read(jpeg).unwrap();
    // Stray bytes behind the start; the content decides, not the name.
    let stray = [&jpeg[..2], &[1, 2, 3], &jpeg[2..]].concat();
    std::fs::write(folder.path().join("train/n01440764/024.png"), stray).unwrap();
    let random = "torchvision-v1".parse::<mixd::spec::Recipe>().unwrap().feed(Split::Train);
    for spec in [spec(), random] {
        let daemon = Daemon::on(folder.path(), &["--cache=off"]);
        let mut feed = daemon.attach(FeedSpec { batch_size: 50, image_size: ImageSize::square(64), ..spec }).unwrap();
        for _ in 0..3 {
            feed.next_batch().unwrap();
        }
        let status = client::status(&daemon.socket()).unwrap();
        assert_eq!((status.decode_warnings, &status.bad_samples[..]), (1, &[][..]));
        assert_eq!(status.last_decode_warning.map(|last| last.sample_id), Some(24));
        let text = run(&["status", "--socket", daemon.socket().to_str().unwrap()]);
        let text = String::from_utf8(text.stdout).unwrap();
        assert!(text.contains("1 image decoded with warnings (last: train/n01440764/024.png: "), "{text}");
    }
}

/// Decoded samples outlive the daemon, whatever ended it; a changed image and another setting are decoded anew.
#[test]
fn a_cache_file_serves_no_stale_pixels() {
    let (folder, cache) = (small_folder(25), tempfile::tempdir().unwrap());
    let settle = || {
        let changed = |path: &PathBuf| std::fs::metadata(path).unwrap().modified().unwrap();
        let last = common::files(folder.path()).iter().map(changed).max().unwrap();
        until("times that have settled", || last.elapsed().ok().filter(|age| *age > Duration::from_millis(1_100)));
    };
    settle();
    let option = format!("--cache-file={}", cache.path().join("rows").display());
    let spec = FeedSpec { batch_size: 50, shuffle: Shuffle::Off, mix: Mix::NONE, ..spec() };
    // The bytes of an epoch, and how many samples were decoded for it.
    let epoch = |daemon: &Daemon| -> (Vec<u8>, u64) {
        let x = daemon.attach(spec).unwrap().next_batch().unwrap().view().x.to_vec();
        (x, client::status(&daemon.socket()).unwrap().stores[0].decoded)
    };
    let first = Daemon::on(folder.path(), &[&option]);
    let (whole, decoded) = epoch(&first);
    assert_eq!(decoded, 50);
    assert_eq!(refusal(Daemon::on(folder.path(), &[&option]).attach(spec)), Reason::System);
    first.signal(rustix::process::Signal::KILL);
    drop(first);
    assert!(epoch(&Daemon::on(folder.path(), &[&option])) == (whole.clone(), 0), "after a kill");

    // The same name, size and class, but other pixels.
    std::fs::copy(folder.path().join("train/n01440764/003.png"), folder.path().join("train/n01440764/007.png"))
        .unwrap();
    settle();
    let (changed, decoded) = epoch(&Daemon::on(folder.path(), &[&option]));
    let image = whole.len() / 50;
    assert!(changed[7 * image..8 * image] == whole[3 * image..4 * image], "stale pixels");
    assert!((&changed[8 * image..], decoded) == (&whole[8 * image..], 1), "{decoded} decoded anew");

    // A damaged row.
    let file = common::files(cache.path()).remove(0);
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    assert!(epoch(&Daemon::on(folder.path(), &[&option])) == (changed, 1), "a damaged row");
    assert_eq!(epoch(&Daemon::on(folder.path(), &[&option, "--resize=fast"])).1, 50);
    let both = run(&["serve", "--data", "x", "--cache=off", &option]);
    assert!(stderr(&both).contains("leave one of them out"), "{}", stderr(&both));
}

/// design.md §8: more than 5 % bad.
#[test]
fn too_many_bad_images_end_the_feed() {
    let folder = small_folder(10);
    for nth in 0..2 {
        std::fs::write(folder.path().join(format!("train/n01440764/00{nth}.png")), "").unwrap();
    }
    let daemon = Daemon::on(folder.path(), &[]);
    let mut feed = daemon.attach(FeedSpec { batch_size: 20, ..spec() }).unwrap();
    let error = feed.next_batch().err().unwrap();
    let is_named = |reason: &str| reason.contains("2 of 20 images of train cannot be read or decoded, more than 5 %");
    assert!(matches!(&error, ClientError::Ended { failed: true, reason } if is_named(reason)), "{error}");
}

/// design.md §8: no readable image of a class.
#[test]
fn a_class_without_a_readable_image_ends_the_feed_and_is_named() {
    let folder = small_folder(40);
    for nth in 0..40 {
        let image = folder.path().join(format!("train/n01440764/{nth:03}.png"));
        // Two of 42 images, fewer than 5 %.
        if nth < 2 { std::fs::write(image, "") } else { std::fs::remove_file(image) }.unwrap();
    }
    let daemon = Daemon::on(folder.path(), &[]);
    let mut feed = daemon.attach(FeedSpec { batch_size: 42, ..spec() }).unwrap();
    let error = feed.next_batch().err().unwrap();
    let is_named = |reason: &str| reason.contains("no readable image of class") && reason.contains("n01440764");
    assert!(matches!(&error, ClientError::Ended { failed: true, reason } if is_named(reason)), "{error}");
}

/// design.md §8: a bad spec.
#[test]
fn specs_out_of_range_are_refused_and_running_feeds_go_on() {
    let daemon = Daemon::start(&[]);
    let mut running = daemon.attach(spec()).unwrap();
    let start = Start::At(Place { epoch: 0, index: 99 });
    let last = mixd::types::Last::Drop;
    let out_of_range = FeedSpec { batch_size: 0, ..spec() };
    for spec in [out_of_range, FeedSpec { start, ..spec() }, FeedSpec { last, batch_size: 400, ..spec() }] {
        assert_eq!(refusal(daemon.attach(spec)), Reason::Spec);
    }
    assert_eq!(running.epoch().count(), 13);
}

/// design.md §8: memory that does not suffice.
#[test]
fn a_ring_for_which_there_is_no_memory_is_a_refusal_that_names_need_and_room() {
    let daemon = Daemon::start(&[]);
    let mut running = daemon.attach(FeedSpec { batch_size: 2, ..spec() }).unwrap();
    let too_large = FeedSpec { batch_size: 65_536, slots: 1_024, image_size: ImageSize::square(2_048), ..spec() };
    let refused = refusal(daemon.attach(too_large));
    let Reason::NoRoom { need: Some(need), free: Some(free) } = refused else { panic!("{refused:?}") };
    let images = 1_024 * 65_536 * 3 * 2_048 * 2_048 * 4;
    assert!((images..2 * images).contains(&need) && (1 << 20..1 << 50).contains(&free), "{need} {free}");
    assert_eq!(running.epoch().count(), 100);
    drop(running);
    drop(daemon.attach(FeedSpec { batch_size: 4, ..spec() }).unwrap());
}

/// design.md §8: data that is no image folder, and the exit codes.
#[test]
fn wrong_data_and_wrong_usage_have_their_exit_codes() {
    let missing = run(&["serve", "--data", "/no/such/folder", "--socket", "/tmp/mixd-test-missing/s"]);
    assert_eq!(missing.status.code(), Some(1));
    let text = stderr(&missing);
    assert!(text.starts_with("mixd: /no/such/folder: no such file or folder") && text.lines().count() == 1, "{text}");
    let _ = std::fs::remove_dir("/tmp/mixd-test-missing");
    let dir = small_folder(2);
    let (val, train) = (dir.path().join("val"), dir.path().join("train"));
    let refused = |why: &str| {
        let served =
            mixd().args(["serve", "--data"]).arg(dir.path()).arg("--socket").arg(dir.path().join("s")).output();
        let (output, text) = served.map(|output| (output.status.code(), stderr(&output))).unwrap();
        assert!(output == Some(1) && text.lines().count() == 1, "{output:?}: {text}");
        assert!(text.starts_with("mixd: ") && text.contains(why), "{text}");
    };
    std::fs::rename(val.join("n03394916"), val.join("n99999999")).unwrap();
    refused("class `n99999999` of the validation split has no training images");
    std::fs::remove_dir_all(val).unwrap();
    std::fs::remove_dir_all(train).unwrap();
    refused("none of them an image in train/ or val/ (expected DATA/train/");
    assert_eq!(run(&["serve"]).status.code(), Some(2));
    assert_eq!(run(&["plan", "--data", ".", "--epoch=x"]).status.code(), Some(2));
    assert_eq!(run(&["--help"]).status.code(), Some(0));
    let nobody = run(&["status", "--socket", "/no/such/socket"]);
    assert!(stderr(&nobody).contains("start one with `mixd serve"), "{}", stderr(&nobody));
}

#[test]
fn bench_reports_every_figure_cold_and_cached_with_one_and_two_trainers() {
    for (cache, trainers) in [("off", 1), ("auto", 2)] {
        let data = sample_data();
        let output = mixd()
            .args(["bench", "--json", "--images=400", "--rounds=2", "--ceiling", "--size=64", "--batch-size=16"])
            .args([format!("--cache={cache}"), format!("--trainers={trainers}")])
            .arg("--data")
            .arg(data)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let numbers = [
            "images_per_s",
            "seconds",
            "cpu_seconds",
            "trainer_cpu_seconds",
            "peak_rss_mb",
            "first_batch_ms",
            "ceiling_images_per_s",
            "share_of_ceiling",
        ];
        for key in numbers {
            assert!(result[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {result}");
        }
        assert!(result["images"].as_u64().unwrap() >= 400 * trainers, "{result}");
        assert!(result["ceiling"]["wake_us_p50"].as_f64().unwrap() > 0.0, "{result}");
        for key in ["handoff_us_p50", "handoff_us_p99", "bottleneck"] {
            assert!(result.get(key).is_some(), "{key}: {result}");
        }
        let stages = result["stages"].as_array().unwrap();
        assert_eq!(
            stages.iter().map(|stage| stage["name"].as_str().unwrap()).collect::<Vec<_>>(),
            ["plan", "read", "decode", "render", "mix"]
        );
        let decoded = stages[2]["items"].as_u64().unwrap();
        assert_eq!(decoded > 0, cache == "off", "{result}");
    }
}

/// A program without torch becomes the one beside it, with the same arguments.
#[test]
#[cfg(not(feature = "torch"))]
fn what_needs_torch_is_handed_over() {
    let dir = tempfile::tempdir().unwrap();
    let alone = dir.path().join("mixd");
    std::fs::copy(env!("CARGO_BIN_EXE_mixd"), &alone).unwrap();
    let run = |arguments: &[&str]| std::process::Command::new(&alone).args(arguments).output().unwrap();
    let missing = run(&["train", "--data", "x"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("mixd-torch, which this command needs (build it with `make build`)"));
    let torch = dir.path().join("mixd-torch");
    std::fs::write(&torch, "#!/bin/sh\necho torch \"$@\"\n").unwrap();
    std::fs::set_permissions(&torch, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for arguments in [&["train", "--data", "a b"][..], &["serve", "--data=x", "--mixer=torch"]] {
        let output = run(arguments);
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("torch {}\n", arguments.join(" ")));
    }
}

#[test]
fn pictures_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (sample_data(), |name: &str| dir.path().join(name).display().to_string());
    let png = out("p.png");
    assert!(run(&["preview", "--data", data.to_str().unwrap(), "--out", &png]).status.success());
    assert!(image::open(&png).unwrap().width() > 400);
    for (figure, name) in [("beta", "b.svg"), ("gamma", "g.png"), ("lambda", "l.svg")] {
        let path = out(name);
        assert!(run(&["plot", figure, "--out", &path, "--alpha", "0.3"]).status.success());
        assert!(std::fs::metadata(&path).unwrap().len() > 1000, "{figure}");
    }
    let refused = run(&["plot", "beta", "--out", &out("b.gif")]);
    assert!(stderr(&refused).contains(".svg or .png"));
}

#[test]
#[cfg(feature = "torch")]
fn train_runs_through_its_own_daemon_and_repeats_itself() {
    let dir = tempfile::tempdir().unwrap();
    let losses = |name: &str, more: &[&str]| -> Vec<f64> {
        let (log, save) = (dir.path().join(format!("{name}.jsonl")), dir.path().join(format!("{name}.safetensors")));
        let output = mixd()
            .args(["train", "--size=32", "--batch-size=50", "--lr=0.05", "--smoothing=0.1", "--threads=1", "--seed=3"])
            .args(more)
            .arg("--data")
            .arg(sample_data())
            .arg("--log")
            .arg(&log)
            .arg("--save")
            .arg(&save)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(String::from_utf8_lossy(&output.stdout).starts_with("epoch  train loss"));
        let saved = std::fs::read(&save).unwrap();
        assert!(SafeTensors::deserialize(&saved).unwrap().tensor("features.7.bn.running_var").is_ok());
        let lines = std::fs::read_to_string(&log).unwrap();
        let lines = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.filter(|line| line["event"] == "step").map(|line| line["loss"].as_f64().unwrap()).collect()
    };
    let first = losses("a", &[]);
    assert_eq!(first.len(), 4);
    assert_eq!(first, losses("b", &[]));
    let load = dir.path().join("a.safetensors");
    assert_ne!(first, losses("c", &["--load", load.to_str().unwrap()]));
}

/// A run that is killed and resumed, and one that ends and is resumed, equal one that was neither.
#[test]
#[cfg(feature = "torch")]
fn train_resumes_where_it_was_killed() {
    use std::io::{BufRead, BufReader};
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let train = |log: &str, more: &[&str]| {
        let mut command = mixd();
        command.arg("train").args(more).arg("--data").arg(sample_data()).arg("--log").arg(path(log));
        command
    };
    let fresh = ["--size=32", "--batch-size=20", "--lr=0.02", "--smoothing=0.1", "--threads=1", "--flip", "--epochs=3"];
    let losses = |log: &str| -> Vec<(u64, u64, f64)> {
        let lines = std::fs::read_to_string(path(log)).unwrap();
        let lines = lines.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let step = |line: serde_json::Value| {
            (line["epoch"].as_u64().unwrap(), line["index"].as_u64().unwrap(), line["loss"].as_f64().unwrap())
        };
        lines.filter(|line| line["event"] == "step").map(step).collect()
    };
    let table = |output: &std::process::Output| -> Vec<String> {
        assert!(output.status.success(), "{}", stderr(output));
        // All but the last three columns, which are times.
        let line = |line: &str| line.split_whitespace().take(7).collect::<Vec<_>>().join(" ");
        let output = String::from_utf8_lossy(&output.stdout);
        // Between the heading and the conclusion.
        let lines: Vec<&str> = output.lines().collect();
        let (conclusion, rows) = lines[1..].split_last().unwrap();
        assert!(conclusion.starts_with("validation accuracy 0.") && conclusion.ends_with("(chance 0.10)"), "{output}");
        rows.iter().copied().map(line).collect()
    };
    let whole = table(&train("whole", &fresh).output().unwrap());
    let expected = losses("whole");
    assert_eq!((whole.len(), expected.len()), (3, 30));

    // Killed in its second epoch, once the checkpoint says that it is there.
    let save = path("killed.safetensors");
    let options = [&fresh[..], &["--save-every=3", "--save", save.to_str().unwrap()]].concat();
    let mut killed = train("killed", &options).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(killed.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.starts_with("epoch 0: train loss")), "it ended early");
    until("it is in its second epoch", || {
        mixd::lesson::train::state(&save).ok().filter(|state| state.place > Place { epoch: 1, index: 2 }).map(|_| ())
    });
    killed.kill().unwrap();
    killed.wait().unwrap();
    let place = mixd::lesson::train::state(&save).unwrap().place;
    let resumed = train("resumed", &["--resume", save.to_str().unwrap()]).output().unwrap();
    assert_eq!(table(&resumed), whole, "from {place}");
    let rest = expected.into_iter().filter(|&(epoch, index, _)| (epoch, index) >= (place.epoch, place.index));
    assert_eq!(losses("resumed"), rest.collect::<Vec<_>>(), "from {place}");

    // Three epochs are done; a fourth may follow, and other options may not.
    let more = train("more", &["--epochs=4", "--resume", save.to_str().unwrap()]).output().unwrap();
    assert_eq!((table(&more)[..3].to_vec(), losses("more").len()), (whole, 10));
    let refused = train("refused", &["--lr=0.1", "--resume", save.to_str().unwrap()]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("--lr") && stderr(&refused).contains("--resume"), "{}", stderr(&refused));
    // What is not among them but decides the pixels is said to be another.
    let other = train("more", &["--resize=fast", "--epochs=5", "--resume", save.to_str().unwrap()]).output().unwrap();
    assert!(other.status.success() && stderr(&other).contains("goes on, but not to the bit"), "{}", stderr(&other));
    assert!(!stderr(&more).contains("not to the bit"));
    // A resumed training adds to its log.
    assert_eq!((losses("more").len(), losses("killed").len() >= place.number(10) as usize), (20, true));
}

/// The writer once started before its reader was on the list, and could lap it.
#[test]
fn a_feed_never_runs_ahead_of_its_reader() {
    let daemon = Daemon::start(&[]);
    let image_size = mixd::types::ImageSize::square(1);
    for _ in 0..40 {
        let mut feed = daemon.attach(FeedSpec { batch_size: 1, slots: 2, image_size, ..spec() }).unwrap();
        for index in 0..20 {
            assert_eq!(feed.next_batch().unwrap().view().head.index, index);
        }
    }
}

#[test]
fn images_wait_for_descriptors_that_the_daemon_lacks_and_are_not_called_bad() {
    let mut daemon = Daemon::with(tempfile::tempdir().unwrap(), &sample_data(), &["--cache=off"], |command| {
        command.env("RUST_LOG", "mixd=warn").stderr(Stdio::piped());
    });
    let pid = Some(Pid::from_child(&daemon.child));
    let limit = getrlimit(Resource::Nofile);
    let mut feed = daemon.attach(FeedSpec { batch_size: 8, ..FeedSpec::train() }).unwrap();
    let samples = feed.samples();
    let none = prlimit(pid, Resource::Nofile, Rlimit { current: Some(0), ..limit }).unwrap();
    let reading = std::thread::spawn(move || {
        let ids = |batch: Result<client::Batch, _>| batch.unwrap().view().sample_id.to_vec();
        (feed.epoch().flat_map(ids).collect::<Vec<_>>(), feed)
    });
    let lines = BufReader::new(daemon.child.stderr.take().unwrap()).lines();
    let waits = "images wait to be read";
    let said =
        lines.map(|line| line.unwrap()).find(|line| line.contains(waits) || line.contains("a feed ends")).unwrap();
    assert!(said.contains(waits) && said.contains("Too many open files"), "{said}");
    prlimit(pid, Resource::Nofile, none).unwrap();
    let (mut ids, _feed) = reading.join().unwrap();
    ids.sort_unstable();
    assert_eq!(ids, (0..samples).collect::<Vec<_>>());
    assert_eq!(client::status(&daemon.socket()).unwrap().bad_samples.len(), 0);
}

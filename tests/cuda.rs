//! Batches that are mixed and stay on a CUDA device, through the real program in real processes: on the machine's device, or where there is
//! none on one that runs on the processor (`cuda_on_cpu`), whose work is late and whose addresses cannot be read in main memory.
#![cfg(feature = "cuda")]

mod common;
mod cuda_on_cpu;

use common::{Daemon, command, sample_data, stderr, until};
use mixd::batch::OnDevice;
use mixd::client::{self, Batch, ClientError, Feed};
use mixd::cuda::{Gpu, PinnedMemory, Stream};
use mixd::spec::{Crop, Delivery, FeedSpec, Mix, Pairing, Share};
use mixd::types::{Device, Dtype, ImageSize, Layout, Place, Start};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};
use std::sync::Once;

/// A spec of batches on the first device.
fn spec() -> FeedSpec {
    FeedSpec { batch_size: 16, image_size: ImageSize::square(64), device: Device::Cuda(0), ..FeedSpec::train() }
}

/// The device; work on it is late, so that whoever does not wait sees what was there before.
fn gpu() -> std::sync::Arc<Gpu> {
    static LOADED: Once = Once::new();
    LOADED.call_once(|| {
        if Gpu::open(0).is_ok() {
            return;
        }
        cuda_on_cpu::load();
    });
    Gpu::open(0).expect("a device on the processor")
}

/// Has a command find the device.
fn on_device(command: &mut Command) -> &mut Command {
    if is_on_cpu() {
        command.env("LD_LIBRARY_PATH", cuda_on_cpu::libraries()).env("CUDA_ON_CPU_DELAY_US", "300");
    }
    command
}

/// Whether the device is one that runs on the processor.
fn is_on_cpu() -> bool {
    gpu().name().starts_with("CUDA on the CPU")
}

fn daemon(args: &[&str]) -> Daemon {
    daemon_in(tempfile::tempdir().unwrap(), args)
}

fn daemon_in(dir: tempfile::TempDir, args: &[&str]) -> Daemon {
    Daemon::with(dir, &sample_data(), args, |command| {
        on_device(command);
    })
}

fn mixd(args: &[&str]) -> Output {
    on_device(&mut common::mixd()).args(args).output().unwrap()
}

/// The images of a batch, copied from its device.
fn images(batch: &Batch) -> Vec<u8> {
    let OnDevice { address, bytes, ordinal } = batch.view().x_on_device.expect("on the device");
    assert!(batch.view().x.is_empty() && ordinal == 0);
    let gpu = gpu();
    let (stream, mut memory) = (Stream::new(gpu.context()).unwrap(), PinnedMemory::new(gpu.context(), bytes).unwrap());
    // SAFETY: the batch is leased, the memory is as large, and the copy is waited for.
    #[expect(unsafe_code, reason = "queues a copy")]
    unsafe { stream.download(address, memory.as_ptr(), bytes) }.unwrap();
    stream.synchronize().unwrap();
    memory.bytes_mut().to_vec()
}

/// The same batches from main memory, mixed by the processor.
fn on_cpu(daemon: &Daemon, spec: FeedSpec, count: usize) -> Vec<Vec<u8>> {
    let mut feed = daemon.attach(FeedSpec { device: Device::Cpu, ..spec }).unwrap();
    (0..count).map(|_| feed.next_batch().unwrap().view().x.to_vec()).collect()
}

#[test]
fn batches_on_the_device_are_those_of_the_processor_to_the_bit() {
    // With all samples on the device, with room for a few, and with none, decoded anew each time.
    for cache in [&["--device-cache=auto"][..], &["--device-cache=300K"], &["--device-cache=off", "--cache=off"]] {
        let daemon = daemon(cache);
        let second = Mix { pairing: Pairing::SecondBatch, ..Mix::mixup(0.4) };
        let odd = ImageSize { height: 33, width: 50 };
        let specs = [
            spec(),
            FeedSpec { dtype: Dtype::Bf16, mix: second, flip: 0.5, ..spec() },
            FeedSpec { dtype: Dtype::F16, layout: Layout::Nhwc, ..spec() },
            FeedSpec { dtype: Dtype::U8, mix: Mix::cutmix(1.0), flip: 0.5, ..spec() },
            FeedSpec { dtype: Dtype::Bf16, image_size: odd, layout: Layout::Nhwc, ..spec() },
            FeedSpec { dtype: Dtype::U8, image_size: odd, mix: Mix::NONE, ..spec() },
            // Views that are rendered for each use cross the bus as staged samples do.
            FeedSpec {
                crop: Crop::RANDOM_RESIZED,
                flip: 0.5,
                mix: Mix { cutmix: Some(1.0), ..Mix::mixup(0.4) },
                ..spec()
            },
            FeedSpec { crop: Crop::RANDOM_RESIZED, dtype: Dtype::Bf16, mix: second, image_size: odd, ..spec() },
        ];
        for spec in specs {
            let mut feed = daemon.attach(spec).unwrap();
            assert_eq!(feed.mixer(), "cuda");
            let status = common::run(&["status", "--socket", daemon.socket().to_str().unwrap()]);
            let status = String::from_utf8(status.stdout).unwrap();
            assert!(status.contains(&format!("batches of 16 {} on cuda:0", spec.dtype)), "{status}");
            // More than an epoch: the short batch at its end, and samples that are there already.
            let batches = feed.batches() as usize + 4;
            for (at, expected) in on_cpu(&daemon, spec, batches).iter().enumerate() {
                let batch = feed.next_batch().unwrap();
                assert!(images(&batch) == *expected, "batch {at} of {spec:?} with {cache:?}");
            }
        }
        // The device's copies go with the last feed.
        let resident =
            || -> u64 { client::status(&daemon.socket()).unwrap().stores.iter().map(|store| store.device_bytes).sum() };
        until("the device has no samples", || (resident() == 0).then_some(()));
    }
}

#[test]
fn batches_that_go_back_to_main_memory_are_the_same() {
    let daemon = daemon(&["--device=cuda:0"]);
    let spec = FeedSpec { device: Device::Cpu, ..spec() };
    let other = Daemon::start(&[]);
    let mut feeds = [daemon.attach(spec).unwrap(), other.attach(spec).unwrap()];
    assert_eq!(feeds.each_ref().map(Feed::mixer), ["cuda", "cpu"]);
    let mut images = 0;
    for _ in 0..20 {
        let [ours, theirs] = feeds.each_mut().map(|feed| feed.next_batch().unwrap());
        assert!(ours.view().x == theirs.view().x && ours.view().lambda == theirs.view().lambda);
        images += ours.view().lambda.len() as u64;
    }
    // A batch is counted when it has been published.
    let counted = || Some(client::status(&daemon.socket()).unwrap().mixed).filter(|mixed| mixed.images >= images);
    let mixed = until("all are counted", counted);
    assert!(mixed.from_device_bytes == mixed.images * 3 * 64 * 64 * 4 && mixed.to_device_bytes > 0, "{mixed:?}");
    let data = sample_data();
    let out = daemon.dir.path().join("batch.safetensors");
    let replay = ["replay", "--data", data.to_str().unwrap(), "--epoch=0", "--batch=0", "--out", out.to_str().unwrap()];
    assert!(mixd(&[&replay[..], &["--device=cuda"]].concat()).status.success());
    let on_device = std::fs::read(&out).unwrap();
    assert!(mixd(&replay).status.success());
    let on_cpu = std::fs::read(&out).unwrap();
    // But for the digest, which names the mixer.
    assert!(on_device.len() == on_cpu.len() && on_device.iter().zip(&on_cpu).filter(|(a, b)| a != b).count() <= 8);
}

#[test]
fn a_slot_is_not_written_while_work_that_reads_it_is_queued() {
    // Slow enough that leases end long before the work is done.
    let daemon = daemon(&[]);
    let gpu = gpu();
    let spec = FeedSpec { slots: 2, ..spec() };
    let expected = on_cpu(&daemon, spec, 24);
    let mut feed = daemon.attach(spec).unwrap();
    let stream = Stream::new(gpu.context()).unwrap();
    let mut copies = Vec::new();
    for _ in &expected {
        let batch = feed.next_batch().unwrap();
        let OnDevice { address, bytes, .. } = batch.view().x_on_device.unwrap();
        let memory = PinnedMemory::new(gpu.context(), bytes).unwrap();
        batch.used_on(stream.handle());
        // SAFETY: the lease knows of the stream, and the memory is kept until it was waited for.
        #[expect(unsafe_code, reason = "queues copies")]
        unsafe {
            // Before the one that counts, many that take their time.
            for _ in 0..200 {
                stream.download(address, memory.as_ptr(), bytes).unwrap();
            }
            stream.download(address, memory.as_ptr(), bytes).unwrap();
        }
        copies.push(memory);
    }
    // Neither does a reader leave before.
    drop(feed);
    stream.synchronize().unwrap();
    for (at, (copy, expected)) in copies.iter_mut().zip(&expected).enumerate() {
        assert!(copy.bytes_mut() == *expected, "batch {at}");
    }
}

#[test]
fn trainers_share_a_feed_on_the_device_and_evicted_ones_keep_their_batch() {
    let daemon = daemon(&[]);
    let share = Share { max_lag_s: 0.3, ..Share::new("both".parse().unwrap()) };
    // Whoever comes second would else begin with the batch that is next by then.
    let spec = FeedSpec { share: Some(share), slots: 2, start: Start::At(Place::default()), ..spec() };
    let expected = on_cpu(&daemon, FeedSpec { share: None, ..spec }, 12);
    let [mut slow, mut fast] = [daemon.attach(spec).unwrap(), daemon.attach(spec).unwrap()];
    let kept = slow.next_batch().unwrap();
    for (at, expected) in expected.iter().enumerate() {
        assert!(images(&fast.next_batch().unwrap()) == *expected, "batch {at}");
    }
    assert!(images(&kept) == expected[0], "what the evicted trainer holds");
    drop(kept);
    assert!(matches!(slow.next_batch(), Err(ClientError::Evicted { .. })));
    let latest = Share { delivery: Delivery::Latest, ..Share::new("latest".parse().unwrap()) };
    let refused = daemon.attach(FeedSpec { share: Some(latest), ..spec }).err().expect("refused").to_string();
    assert!(refused.contains("lossless there"), "{refused}");
}

#[test]
fn a_feed_is_left_while_its_batches_are_held_and_ends_with_the_last() {
    let daemon = daemon(&[]);
    let expected = on_cpu(&daemon, spec(), 2);
    let mut feed = daemon.attach(spec()).unwrap();
    let held = [feed.next_batch().unwrap(), feed.next_batch().unwrap()];
    feed.leave().unwrap();
    let feeds = || client::status(&daemon.socket()).unwrap().feeds.len();
    until("the feed in main memory is over", || (feeds() == 1).then_some(()));
    for (held, expected) in held.into_iter().zip(&expected) {
        assert!(images(&held) == *expected);
    }
    until("the feed is over", || (feeds() == 0).then_some(()));
}

/// Mappings of device memory that processes share, in a process.
fn mapped(pid: u32) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    maps.lines().filter(|line| line.contains("memfd:cuda-on-cpu")).count()
}

#[test]
fn a_killed_trainer_costs_no_device_memory_and_a_killed_daemon_no_batch() {
    let mut daemon = daemon(&[]);
    let before = mapped(daemon.child.id());
    let mut trainer = on_device(&mut common::mixd())
        .args(["bench-trainer", "--touch=all", "--warmup=3", "--images=0", "--seconds=600", "--device=cuda:0"])
        .args(["--batch-size=16", "--size=64"])
        .arg("--socket")
        .arg(daemon.socket())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(trainer.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("warm"));
    writeln!(trainer.stdin.as_mut().unwrap()).unwrap();
    assert!(lines.next().unwrap().unwrap().contains("counting"));
    if is_on_cpu() {
        until("the daemon has mapped its slots", || (mapped(daemon.child.id()) == before + 1).then_some(()));
    }
    trainer.kill().unwrap();
    trainer.wait().unwrap();
    until("the daemon has let go of them", || (mapped(daemon.child.id()) == before).then_some(()));
    // A trainer reads what was published from memory that its dead daemon made, and goes on at the next one.
    let expected = on_cpu(&daemon, spec(), 14);
    let mut feed = daemon.attach(spec()).unwrap();
    for expected in &expected[..3] {
        assert!(images(&feed.next_batch().unwrap()) == *expected);
    }
    let held = feed.next_batch().unwrap();
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    assert!(images(&held) == expected[3], "what is held when the daemon dies");
    drop(held);
    let _next = daemon_in(std::mem::replace(&mut daemon.dir, tempfile::tempdir().unwrap()), &[]);
    for (at, expected) in expected.iter().enumerate().skip(4) {
        assert!(images(&feed.next_batch().unwrap()) == *expected, "batch {at}");
    }
}

/// design.md §8: no CUDA, or out of device memory.
#[test]
fn what_is_not_there_is_refused_naming_what_was_looked_for() {
    let data = sample_data();
    let bench = |variables: &[(&str, &str)], args: &[&str]| {
        let mut command = common::mixd();
        on_device(&mut command).envs(variables.iter().copied());
        let args = [&["bench", "--data", data.to_str().unwrap(), "--seconds=0.1", "--rounds=1"], args].concat();
        let output = command.args(args).output().unwrap();
        assert!(!output.status.success());
        stderr(&output)
    };
    let text = bench(&[], &["--device=cuda:1"]);
    assert!(text.contains("no CUDA device for `cuda:1`: the machine has 1 CUDA devices"), "{text}");
    let text = bench(&[("CUDA_VISIBLE_DEVICES", "")], &["--device=cuda"]);
    assert!(text.contains("the machine has no CUDA device"), "{text}");
    let text = bench(&[("CUDA_ON_CPU_MEMORY", "20000000")], &["--device=cuda"]);
    assert!(text.contains("the device has too little memory") && text.contains("--device-cache"), "{text}");
    let text = bench(&[], &["--device=cuda", "--digest"]);
    assert!(text.contains("digests are of main memory"), "{text}");
    // Without the driver; the machine's own is in no such folder.
    if is_on_cpu() {
        let text = bench(&[("LD_LIBRARY_PATH", "/nowhere")], &["--device=cuda"]);
        assert!(text.contains("there is no driver (libcuda.so.1 was looked for)"), "{text}");
        let only = tempfile::tempdir().unwrap();
        let driver = only.path().join("libcuda.so.1");
        std::fs::copy(cuda_on_cpu::libraries().join("libcuda.so.1"), driver).unwrap();
        let text = bench(&[("LD_LIBRARY_PATH", only.path().to_str().unwrap())], &["--device=cuda"]);
        assert!(text.contains("there is no libnvrtc.so") && text.contains("LD_LIBRARY_PATH"), "{text}");
    }
}

#[test]
fn a_trainers_device_is_found_by_what_it_is_and_not_by_its_number() {
    // The daemon sees the devices in another order than the trainer, which sees one.
    let daemon = Daemon::with(tempfile::tempdir().unwrap(), &sample_data(), &[], |command| {
        on_device(command).env("CUDA_ON_CPU_DEVICES", "2").env("CUDA_VISIBLE_DEVICES", "1,0");
    });
    let train = |visible: &str| {
        let mut command = common::mixd();
        let command = on_device(&mut command).env("CUDA_ON_CPU_DEVICES", "3").env("CUDA_VISIBLE_DEVICES", visible);
        let args = ["bench-trainer", "--touch=element", "--warmup=1", "--images=0", "--seconds=1", "--device=cuda:0"];
        let output = command.args(args).arg("--socket").arg(daemon.socket()).stdin(Stdio::null()).output().unwrap();
        (output.status.success(), stderr(&output))
    };
    if is_on_cpu() {
        assert_eq!(train("1"), (true, String::new()));
        let (_, refused) = train("2");
        assert!(refused.contains("none of the 2 that the daemon sees"), "{refused}");
    }
}

#[test]
fn bench_reports_what_a_device_moves() {
    let data = sample_data();
    let bench = |args: &[&str]| {
        let args =
            [&["bench", "--data", data.to_str().unwrap(), "--seconds=1", "--rounds=1", "--size=64", "--json"], args]
                .concat();
        let output = on_device(&mut command(env!("CARGO_BIN_EXE_mixd")))
            .env_remove("CUDA_ON_CPU_DELAY_US")
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let number = |value: &serde_json::Value, key: &str| value["device"][key].as_f64().unwrap_or(-1.0);
    // All samples are there; a batch's own are read once, and its images written once.
    let resident = bench(&["--device=cuda", "--dtype=bf16", "--ceiling"]);
    let (sample, image) = (3.0 * 64.0 * 64.0, 2.0 * 3.0 * 64.0 * 64.0);
    let on_device = number(&resident, "on_device_bytes_per_image");
    assert!((on_device - (sample + image)).abs() < 1e-6, "{resident}");
    assert!(number(&resident, "to_device_bytes_per_image") < 100.0, "{resident}");
    assert_eq!(number(&resident, "from_device_bytes_per_image"), 0.0);
    assert!(
        number(&resident, "copy_bytes_per_s") > 0.0 && number(&resident, "kernel_images_per_s") > 0.0,
        "{resident}"
    );
    assert_eq!(resident["ceiling"]["kind"], "device memory copy");
    let from_host = bench(&["--device=cuda", "--device-cache=off", "--copy-back", "--touch=all"]);
    let to_device = number(&from_host, "to_device_bytes_per_image");
    assert!(to_device > sample && to_device < sample + 100.0, "{from_host}");
    assert!((number(&from_host, "from_device_bytes_per_image") - 2.0 * image).abs() < 1e-6, "{from_host}");
}

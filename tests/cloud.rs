//! Data sets in an object store: a real S3 server on loopback that dies, lies and comes back, read by the disk cache and by the real program.

mod common;
#[path = "cloud/outages.rs"]
mod outages;
#[path = "cloud/published.rs"]
mod published;
#[path = "cloud/server.rs"]
mod server;
#[path = "cloud/others.rs"]
mod others;
#[path = "cloud/profiles.rs"]
mod profiles;
#[path = "cloud/tables.rs"]
mod tables;
#[path = "cloud/web.rs"]
mod web;

use common::trainer::{Oracle, Orders, Trainer};
use common::{DEADLINE, Daemon, mixd, stderr, until};
use mixd::client;
use mixd::plan::Sampler;
use mixd::source::ReadError;
use mixd::source::remote::{DiskCache, Remote, RemoteFile, StoreOptions, Url};
use mixd::spec::{FeedSpec, Shuffle};
use mixd::types::{ImageSize, Split};
use server::{BUCKET, Fault, KEY, Proxy, SECRET, Server, Shards, variables};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const BLOCK: usize = 4 << 20;

#[test]
#[ignore = "run by the others, in a process of its own"]
fn trainer_process() {
    common::trainer::run();
}

/// Bytes that do not repeat.
fn content(length: usize) -> Vec<u8> {
    (0..length.div_ceil(8) as u64)
        .flat_map(|n| xxhash_rust::xxh3::xxh3_64(&n.to_le_bytes()).to_le_bytes())
        .take(length)
        .collect()
}

fn remote(address: SocketAddr, dir: &Path, bytes: u64, timeout: Duration) -> Arc<Remote> {
    let options = StoreOptions { disk_cache: Some(DiskCache { dir: dir.to_owned(), bytes }), timeout };
    Remote::new(&options, dir, variables(address)).unwrap()
}

fn url(name: &str) -> Url {
    format!("s3://{BUCKET}/{name}").parse().unwrap()
}

fn file(remote: &Arc<Remote>, name: &str) -> RemoteFile {
    RemoteFile::new(remote, remote.find(&[url(name)]).unwrap().remove(0))
}

fn read(file: &RemoteFile, at: usize, length: usize) -> Result<Vec<u8>, ReadError> {
    let mut bytes = vec![0; length];
    file.read_waiting(at as u64, &mut bytes).map(|()| bytes)
}

#[test]
fn any_range_is_read_and_each_block_is_fetched_once() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let content = content(3 * BLOCK - 100);
    server.put("a.bin", content.clone());
    let proxy = Proxy::before(server.address);
    let remote = remote(proxy.address, dir.path(), 1 << 30, DEADLINE);
    let file = file(&remote, "a.bin");
    assert_eq!(file.bytes(), content.len() as u64);
    for (at, length) in [(2 * BLOCK, 10), (0, 1), (BLOCK - 5, 10), (5, 2 * BLOCK), (content.len() - 3, 3), (7, 0)] {
        assert!(read(&file, at, length).unwrap() == content[at..at + length], "{at} {length}");
    }
    let beyond = read(&file, content.len() - 3, 4).unwrap_err();
    assert!(beyond.to_string().contains("its index is damaged"), "{beyond}");
    let mut asked: Vec<_> = proxy.asked().into_iter().map(|(_, first)| first).collect();
    asked.sort_unstable();
    assert_eq!(asked, [0, BLOCK as u64, 2 * BLOCK as u64]);
}

#[test]
fn a_demanded_block_does_not_wait_for_the_rest_of_its_object() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let content = content(24 * BLOCK);
    server.put("a.bin", content.clone());
    let proxy = Proxy::before(server.address);
    proxy.hold(BLOCK as u64..23 * BLOCK as u64);
    let remote = remote(proxy.address, dir.path(), 1 << 30, DEADLINE);
    let file = file(&remote, "a.bin");
    for at in [0, 23 * BLOCK] {
        let start = Instant::now();
        let mut bytes = [0; 100];
        until("the demanded block", || file.read(at as u64, &mut bytes).ok());
        assert!(bytes == content[at..at + 100] && start.elapsed() < DEADLINE);
        until("requests for the rest", || (proxy.asked().len() >= 13).then_some(()));
    }
    // Of 16 requests at once 4 are kept for what is demanded.
    assert_eq!(proxy.asked().len(), 2 + 12, "{:?}", proxy.asked());
    proxy.hold(0..0);
    assert!(read(&file, 0, 24 * BLOCK).unwrap() == content);
}

#[test]
fn answers_that_lie_break_off_or_fail_are_repeated() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let content = content(BLOCK);
    for (nth, fault) in
        [Fault::Cut, Fault::HalfLength, Fault::Longer, Fault::WrongRange, Fault::SlowDown, Fault::Garbage]
            .into_iter()
            .enumerate()
    {
        let (name, proxy) = (format!("{nth}.bin"), Proxy::before(server.address));
        server.put(&name, content.clone());
        let remote = remote(proxy.address, dir.path(), 1 << 30, DEADLINE);
        proxy.spoil([fault; 3]);
        assert!(read(&file(&remote, &name), 0, BLOCK).unwrap() == content, "{fault:?}");
        assert_eq!(remote.counters().retries.load(Ordering::Relaxed), 3, "{fault:?}");
        // And reported by name when there is no end to it.
        let other = format!("other-{nth}.bin");
        server.put(&other, content.clone());
        let remote = self::remote(proxy.address, dir.path(), 1 << 30, Duration::from_millis(200));
        proxy.spoil_all(fault);
        let error = read(&file(&remote, &other), 0, BLOCK).unwrap_err();
        assert!(matches!(error, ReadError::Store { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(&other) && text.contains("--store-timeout"), "{text}");
        println!("{fault:?}: {text}");
    }
}

#[test]
fn a_changed_object_is_named_and_never_mixed_with_what_it_was() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let old = content(2 * BLOCK);
    server.put("a.bin", old.clone());
    let proxy = Proxy::before(server.address);
    proxy.hold(BLOCK as u64..u64::MAX);
    let remote = remote(proxy.address, dir.path(), 1 << 30, DEADLINE);
    let before = file(&remote, "a.bin");
    assert!(read(&before, 0, 100).unwrap() == old[..100]);
    let new: Vec<u8> = old.iter().rev().copied().collect();
    server.put("a.bin", new.clone());
    proxy.hold(0..0);
    let error = read(&before, BLOCK, 100).unwrap_err();
    assert!(matches!(&error, ReadError::FileChanged { path } if path.ends_with("a.bin")), "{error}");
    assert!(read(&before, 0, 100).unwrap() == old[..100]);
    let after = file(&remote, "a.bin");
    assert!(read(&after, 0, 2 * BLOCK).unwrap() == new && after.stamp() != before.stamp());
}

#[test]
fn daemons_share_what_is_fetched_and_what_is_damaged_is_fetched_anew() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let content = content(8 * BLOCK);
    server.put("a.bin", content.clone());
    let proxy = Proxy::before(server.address);
    let remotes: Vec<_> = (0..3).map(|_| remote(proxy.address, dir.path(), 1 << 30, DEADLINE)).collect();
    std::thread::scope(|scope| {
        for remote in &remotes {
            let content = &content;
            scope.spawn(move || assert!(read(&file(remote, "a.bin"), 0, 8 * BLOCK).unwrap() == *content));
        }
    });
    assert_eq!(proxy.asked().len(), 8, "{:?}", proxy.asked());
    drop(remotes);
    // One that comes later needs nothing, whatever was torn comes anew.
    proxy.forget();
    let data = common::files(dir.path()).into_iter().find(|path| path.ends_with("data")).unwrap();
    let opened = std::fs::File::options().write(true).open(data).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&opened, b"torn", 3 * BLOCK as u64 + 1_000).unwrap();
    let remote = remote(proxy.address, dir.path(), 1 << 30, DEADLINE);
    assert!(read(&file(&remote, "a.bin"), 0, 8 * BLOCK).unwrap() == content);
    assert_eq!(proxy.asked(), [(format!("/{BUCKET}/a.bin"), 3 * BLOCK as u64)]);
}

#[test]
fn what_was_read_longest_ago_is_evicted_and_the_budget_kept() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let contents: Vec<_> = (0..5_u8).map(|nth| content(BLOCK + usize::from(nth) * 8)).collect();
    for (nth, content) in contents.iter().enumerate() {
        server.put(&format!("{nth}.bin"), content.clone());
    }
    let kept = || kept(dir.path());
    let budget = 3 * BLOCK as u64 + BLOCK as u64 / 2;
    let remote = remote(server.address, dir.path(), budget, DEADLINE);
    let files: Vec<_> = (0..5).map(|nth| file(&remote, &format!("{nth}.bin"))).collect();
    for round in 0..2 {
        for (file, content) in files.iter().zip(&contents) {
            assert!(read(file, 0, BLOCK).unwrap() == content[..BLOCK], "round {round}");
            assert!(kept() <= budget, "{} of {budget}", kept());
        }
    }
    let requests = remote.counters().requests.load(Ordering::Relaxed);
    assert!(read(&files[4], 5, 9).unwrap() == contents[4][5..14]);
    assert_eq!(remote.counters().requests.load(Ordering::Relaxed), requests, "the newest was evicted");
    // 5 objects twice, of which 3 are kept.
    assert_eq!(files[0].fetched().evictions, 2 * 5 - 3);
    // Another daemon evicts what this one holds no more.
    drop((files, remote));
    let other = self::remote(server.address, dir.path(), budget, DEADLINE);
    for (nth, content) in contents.iter().enumerate().take(2) {
        assert!(read(&file(&other, &format!("{nth}.bin")), 0, 9).unwrap() == content[..9]);
    }
    assert!(kept() <= budget);
}

/// Bytes on disk of what is kept in `dir`.
fn kept(dir: &Path) -> u64 {
    let data = common::files(dir).into_iter().filter(|path| path.ends_with("data"));
    data.map(|path| path.metadata().unwrap().blocks() * 512).sum()
}

#[test]
fn announced_objects_are_fetched_whole_and_kept_until_the_next_are() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let content = content(3 * BLOCK);
    let names = ["a", "b", "c", "d"].map(|name| format!("{name}.bin"));
    names.iter().for_each(|name| server.put(name, content.clone()));
    let proxy = Proxy::before(server.address);
    let budget = 7 * BLOCK as u64;
    let remote = remote(proxy.address, dir.path(), budget, DEADLINE);
    let files = names.each_ref().map(|name| file(&remote, name));
    let asked = |of: &[usize]| -> Vec<_> {
        of.iter()
            .flat_map(|&nth| [0, 1, 2].map(|block| (format!("/{BUCKET}/{}", names[nth]), block * BLOCK as u64)))
            .collect()
    };
    let all_asked = || {
        let mut all = proxy.asked();
        all.sort_unstable();
        all
    };
    let mut ahead = None;
    for window in 0..3 {
        let window: usize = window;
        ahead = RemoteFile::will_read(&files[window..=window], &files[window + 1..=window + 1]).or(ahead);
        if window == 0 {
            assert_eq!(proxy.asked(), [], "nothing is read yet");
        }
        assert!(read(&files[window], BLOCK, 9).unwrap() == content[BLOCK..BLOCK + 9]);
        let expected = asked(&(0..=window + 1).collect::<Vec<_>>());
        until("both windows", || (all_asked() == expected).then_some(()));
        until("the room", || (kept(dir.path()) <= budget).then_some(()));
        // What is still to come is not fetched again.
        assert!(read(&files[window], 0, 3 * BLOCK).unwrap() == content);
        assert_eq!(all_asked(), expected);
    }
    drop(ahead);
    // Of what does not fit only what is read is fetched.
    proxy.forget();
    let others = names.each_ref().map(|name| name.replace("bin", "big"));
    others.iter().for_each(|name| server.put(name, self::content(8 * BLOCK)));
    let files = others.each_ref().map(|name| file(&remote, name));
    let _ahead = RemoteFile::will_read(&files[..1], &files[1..2]);
    for block in [5, 2] {
        read(&files[0], block * BLOCK, 9).unwrap();
    }
    let expected = [5, 2].map(|block| (format!("/{BUCKET}/{}", others[0]), block * BLOCK as u64));
    assert_eq!(proxy.asked(), expected);
}

#[test]
fn a_store_that_is_away_for_longer_than_the_timeout_is_an_error_and_serves_again_later() {
    let (mut server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    server.put("a.bin", content(BLOCK));
    let remote = remote(server.address, dir.path(), 1 << 30, Duration::from_millis(300));
    let file = file(&remote, "a.bin");
    server.die();
    let start = Instant::now();
    let error = read(&file, 0, 10).unwrap_err().to_string();
    assert!(error.contains("cannot be reached") && start.elapsed() >= Duration::from_millis(300), "{error}");
    server.come_back();
    until("the store's return", || read(&file, 0, 10).ok());
}

// The program.

/// Shards on disk, the same in a bucket, and folders for what the program keeps.
struct World {
    server: Server,
    proxy: Proxy,
    shards: Shards,
    kept: tempfile::TempDir,
}

/// Trains on a data set from its beginning; its batches are those of the data set at `local`.
fn trained(world: &World, data: &str, spec: FeedSpec, batches: u64, local: &Path) {
    let daemon = world.daemon(data, &[]);
    let mut trainer = Trainer::start(&daemon, spec, batches, 0);
    trainer.finish();
    assert_eq!(trainer.read.len() as u64, batches, "{data}");
    Oracle::of(local).check(&trainer);
}

impl World {
    fn new(each: usize, padding: usize) -> Self {
        let (server, shards) = (Server::start(), Shards::write(each, padding));
        shards.upload(&server);
        let proxy = Proxy::before(server.address);
        Self { server, proxy, shards, kept: tempfile::tempdir().unwrap() }
    }

    /// The environment of a program that reads the bucket.
    fn environment(&self, command: &mut Command) {
        common::without_credentials(command, self.kept.path());
        command.envs(variables(self.proxy.address)).env("MIXD_CACHE_DIR", self.kept.path().join("indexes"));
        command.env("MIXD_DISK_CACHE", format!("{}:1G", self.cache().display()));
    }

    fn cache(&self) -> std::path::PathBuf {
        self.kept.path().join("objects")
    }

    fn daemon(&self, data: &str, args: &[&str]) -> Daemon {
        let environment = |command: &mut Command| self.environment(command);
        Daemon::with(tempfile::tempdir().unwrap(), Path::new(data), args, environment)
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = mixd();
        self.environment(&mut command);
        command.args(args).output().unwrap()
    }
}

fn spec() -> FeedSpec {
    FeedSpec { batch_size: 16, image_size: ImageSize::square(48), digest: true, seed: 3, ..FeedSpec::train() }
}

#[test]
fn shards_in_a_bucket_give_the_batches_of_the_same_shards_on_a_disk() {
    let world = World::new(30, 1_000);
    let mut oracle = Oracle::of(world.shards.dir.path());
    let train = (world.shards.paths().iter().filter(|path| path.to_str().unwrap().contains("train-"))).count() - 1;
    let named = format!("s3://{BUCKET}/set/train-{{000..{train:03}}}.tar");
    for (data, splits) in [
        (format!("s3://{BUCKET}/set"), ""),
        (named, "--splits=val=val-*.tar"),
        (format!("s3://{BUCKET}/set/*.tar"), ""),
    ] {
        let daemon = world.daemon(&data, if splits.is_empty() { &[] } else { std::slice::from_ref(&splits) });
        for spec in
            [spec(), FeedSpec { digest: true, batch_size: 21, image_size: spec().image_size, ..FeedSpec::val() }]
        {
            let mut trainer = Trainer::start(&daemon, spec, 25, 0);
            trainer.finish();
            assert_eq!(trainer.read.len(), 25, "{data}");
            oracle.check(&trainer);
        }
    }
}

#[test]
fn what_was_fetched_is_shown_by_status_and_metrics() {
    let world = World::new(40, 100_000);
    world.proxy.spoil([Fault::SlowDown; 3]);
    let port = common::free_port();
    let daemon = world.daemon(&format!("s3://{BUCKET}/set"), &["--metrics", &port.to_string()]);
    let sizes: std::collections::HashMap<String, u64> = (world.shards.paths().iter())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path.metadata().unwrap().len()))
        .collect();
    let status = |args: &[&str]| {
        let output = mixd().arg("status").args(args).arg("--socket").arg(daemon.socket()).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let block = |(name, first): &(String, u64)| (sizes[name.rsplit('/').next().unwrap()] - first).min(BLOCK as u64);
    // What the store's side saw. A disk that is nearly full evicts, and then blocks come twice.
    let (fetched, requests) = until("all shards", || {
        let bytes: u64 = world.proxy.answered().iter().map(block).sum();
        let json: serde_json::Value = serde_json::from_str(&status(&["--json"])).unwrap();
        let is_all = bytes >= sizes.values().sum() && json["fetched"]["bytes"] == bytes;
        (is_all && bytes == world.proxy.answered().iter().map(block).sum::<u64>())
            .then(|| (json["fetched"].clone(), world.proxy.asked().len()))
    });
    let figure = |name: &str| fetched[name].as_u64().unwrap_or_else(|| panic!("no {name} in {fetched}"));
    assert_eq!(["requests", "retries", "budget_bytes"].map(figure), [requests as u64, 3, 1 << 30], "{fetched}");
    assert!((1..figure("bytes") + (1 << 20)).contains(&figure("cached_bytes")), "{fetched}");
    // What the cache takes on the disk may change a little as the file system writes it.
    let mib = figure("bytes") as f64 / f64::from(1 << 20);
    let begin = format!("objects  {mib:.0} MiB fetched by {requests} requests, 3 retries; ");
    let end = format!(" of 1024 MiB in the disk cache, {} objects evicted", figure("evictions"));
    let text = status(&[]);
    assert!(text.lines().any(|line| line.starts_with(&begin) && line.ends_with(&end)), "{begin} {end} {text}");
    let metrics = common::get(port, "/metrics").1;
    for (name, figure_name) in [
        ("object_store_fetched_bytes_total", "bytes"),
        ("object_store_requests_total", "requests"),
        ("object_store_retries_total", "retries"),
        ("disk_cache_evictions_total", "evictions"),
        ("disk_cache_budget_bytes", "budget_bytes"),
    ] {
        let line = format!("mixd_{name} {}", figure(figure_name));
        assert!(metrics.lines().any(|found| found == line), "{line}: {metrics}");
    }
    let cached = metrics.lines().find_map(|line| line.strip_prefix("mixd_disk_cache_bytes ")).expect("a figure");
    assert!(cached.parse::<u64>().unwrap().abs_diff(figure("cached_bytes")) < 1 << 20, "{cached} {fetched}");
    // A set on a disk has none.
    let local = Daemon::on(world.shards.dir.path(), &[]);
    assert_eq!(client::status(&local.socket()).unwrap().fetched, None);
}

#[test]
fn the_first_batch_comes_before_the_first_shard_is_whole() {
    let world = World::new(40, 400_000);
    let data = format!("s3://{BUCKET}/set");
    let daemon = world.daemon(&data, &[]);
    drop(daemon);
    // The index is remembered by ETags; of the shards nothing is left.
    std::fs::remove_dir_all(world.cache()).unwrap();
    world.proxy.forget();
    world.proxy.hold(BLOCK as u64..u64::MAX);
    let daemon = world.daemon(&data, &[]);
    assert_eq!(world.proxy.asked(), [], "the second start needed shards");
    let spec = FeedSpec { shuffle: Shuffle::Off, batch_size: 8, mix: mixd::spec::Mix::NONE, ..spec() };
    let mut trainer = Trainer::start(&daemon, spec, 20, 0);
    trainer.batches(1);
    assert!(world.proxy.answered().iter().all(|(_, first)| *first == 0), "{:?}", world.proxy.answered());
    world.proxy.hold(0..0);
    trainer.finish();
    Oracle::of(world.shards.dir.path()).check(&trainer);
}

#[test]
fn a_shuffle_within_windows_of_shards_fetches_a_set_that_does_not_fit_once_an_epoch() {
    let world = World::new(10, 1_000_000);
    let data = format!("s3://{BUCKET}/set");
    drop(world.daemon(&data, &[]));
    let source = mixd::source::open(&mixd::source::DataSet::at(world.shards.dir.path()), &mut |_| {}).unwrap();
    let shards = source.shards(Split::Train);
    let shard_bytes = world.shards.paths()[0].metadata().unwrap().len();
    // Room for two windows of three shards, and a shard more.
    let budget = 7 * shard_bytes;
    assert!(shards.len() as u64 * shard_bytes > 2 * budget, "the set fits: {} shards", shards.len());
    let mut oracle = Oracle::of(world.shards.dir.path());
    let shuffle = Shuffle::Shards(NonZeroU32::new(3).unwrap());
    let daemon = |cache: &str| world.daemon(&data, &[cache, "--cache", "off"]);
    let cache = format!("--disk-cache={}:{budget}", world.cache().display());
    let orders = |daemon: &Daemon, spec, batches| Orders {
        shards: shards.clone(),
        ..Orders::new(daemon.socket(), spec, batches, 0)
    };
    // While the first window is read, both of the first two are fetched whole, and nothing else.
    std::fs::remove_dir_all(world.cache()).unwrap();
    world.proxy.forget();
    let spec = FeedSpec { shuffle, batch_size: 2, ..spec() };
    let windows = Sampler::new(spec, source.numbering(Split::Train)).unwrap().windows(0);
    let names = windows.shards[..2].iter().flatten().map(|&first| source.name(Split::Train, first));
    let of_shard = |name: String| {
        let name = name.split('/').next().unwrap().to_owned();
        (0..shard_bytes.div_ceil(BLOCK as u64))
            .map(move |block| (format!("/{BUCKET}/set/{name}"), block * BLOCK as u64))
    };
    let expected: BTreeSet<_> = names.flat_map(of_shard).collect();
    {
        let daemon = daemon(&cache);
        let mut trainer = Trainer::obey(Orders { holds_the_first: true, ..orders(&daemon, spec, 1) });
        trainer.line("holding").unwrap();
        let asked = || world.proxy.asked().into_iter().collect::<BTreeSet<_>>();
        until("both windows", || (asked().len() >= expected.len()).then_some(()));
        assert_eq!(asked(), expected);
    }
    let blocks = shards.len() * shard_bytes.div_ceil(BLOCK as u64) as usize;
    let asked = [shuffle, Shuffle::Global].map(|shuffle| {
        std::fs::remove_dir_all(world.cache()).unwrap();
        world.proxy.forget();
        let (daemon, spec) = (daemon(&cache), FeedSpec { shuffle, batch_size: 10, ..spec });
        let epoch = u64::from(source.len(Split::Train)).div_ceil(10);
        let mut trainer = Trainer::obey(orders(&daemon, spec, epoch));
        trainer.finish();
        assert_eq!(trainer.read.len() as u64, epoch);
        oracle.check(&trainer);
        assert!(kept(&world.cache()) <= budget + shard_bytes, "{} kept", kept(&world.cache()));
        world.proxy.asked().len()
    });
    // The first windows of the next epoch are on their way, too.
    let ahead = blocks / shards.len() * 6;
    println!("requests for {blocks} blocks: {} by windows, {} globally", asked[0], asked[1]);
    assert!(asked[0] <= blocks + ahead, "{} requests for {blocks} blocks", asked[0]);
    assert!(asked[1] > asked[0] * 3 / 2, "{} and {} requests", asked[0], asked[1]);
}

#[test]
fn a_killed_daemons_blocks_are_not_fetched_again() {
    let world = World::new(40, 400_000);
    let data = format!("s3://{BUCKET}/set");
    world.proxy.hold(BLOCK as u64..u64::MAX);
    let mut command = Daemon::command(world.kept.path(), Path::new(&data));
    world.environment(&mut command);
    let mut killed = command.arg("--until-eof").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let written = || {
        // With a record behind its first 4 KiB.
        let manifests = common::files(&world.cache()).into_iter().filter(|path| path.ends_with("manifest"));
        manifests.filter(|path| path.metadata().is_ok_and(|meta| meta.len() > 4 << 10)).count()
    };
    let written = until("blocks on disk", || Some(written()).filter(|count| *count >= 3));
    killed.kill().unwrap();
    killed.wait().unwrap();
    let before = world.proxy.answered();
    world.proxy.forget();
    world.proxy.hold(0..0);
    let daemon = world.daemon(&data, &[]);
    let mut trainer = Trainer::start(&daemon, spec(), 30, 0);
    trainer.finish();
    Oracle::of(world.shards.dir.path()).check(&trainer);
    let again: Vec<_> = world.proxy.answered().into_iter().filter(|range| before.contains(range)).collect();
    assert!(again.len() <= before.len().saturating_sub(written), "{again:?} of {before:?}, {written} written");
}

#[test]
fn no_secret_is_ever_shown() {
    let world = World::new(200, 100);
    let signed = format!("http://{}/{BUCKET}/set/train-000.tar?X-Amz-Signature=0123secret", world.proxy.address);
    let missing = format!("s3://{BUCKET}/set/train-{{000..999}}.tar");
    world.proxy.spoil_all(Fault::Denied);
    let mut outputs = Vec::new();
    for data in [&*signed, &*missing, &format!("s3://{BUCKET}/set"), "https://me:pass-word@[::1]:1/train-0.tar"] {
        for command in [&["plan", "--epoch", "0"][..], &["serve"]] {
            let mut program = mixd();
            world.environment(&mut program);
            program
                .args(command)
                .args(["--data", data, "--store-timeout", "0.3"])
                .env("RUST_LOG", "trace")
                .stdin(Stdio::null());
            program.env("MIXD_SOCKET", world.kept.path().join("mixd.sock"));
            outputs.push(program.output().unwrap());
        }
        let mut help = mixd();
        outputs.push(help.args(["serve", "--help"]).env("MIXD_DATA", data).output().unwrap());
    }
    for output in outputs {
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), stderr(&output));
        for secret in [KEY, SECRET, "0123secret", "pass-word"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
    let output = world.run(&["plan", "--epoch", "0", "--data", &signed, "--store-timeout", "0.3"]);
    assert!(
        stderr(&output).contains("InvalidAccessKeyId") || stderr(&output).contains("denied"),
        "{}",
        stderr(&output)
    );
}

/// `cargo test --release --features cloud-test --test cloud -- --ignored --nocapture rate`
#[test]
#[ignore = "a measurement, for release builds"]
fn rate_against_a_bare_range_client() {
    use futures_util::StreamExt;
    use object_store::{ObjectStoreExt, aws::AmazonS3Builder, path::Path as ObjectPath};
    let (server, blocks) = (Server::start(), 64);
    server.put("a.bin", content(blocks * BLOCK));
    let megabytes = (blocks * BLOCK) as f64 / 1e6;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut shares = Vec::new();
    for _ in 0..5 {
        let mut builder = AmazonS3Builder::new().with_bucket_name(BUCKET).with_allow_http(true);
        builder = builder
            .with_endpoint(format!("http://{}", server.address))
            .with_access_key_id(KEY)
            .with_secret_access_key(SECRET);
        let store = builder.build().unwrap();
        let start = Instant::now();
        let path = ObjectPath::from("a.bin");
        let ranges = (0..blocks as u64).map(|block| block * BLOCK as u64..(block + 1) * BLOCK as u64);
        let bytes: usize = runtime.block_on(
            futures_util::stream::iter(ranges.map(|range| store.get_range(&path, range)))
                .buffer_unordered(16)
                .fold(0, async |sum, bytes| sum + bytes.unwrap().len()),
        );
        assert_eq!(bytes, blocks * BLOCK);
        let bare = megabytes / start.elapsed().as_secs_f64();
        let dir = tempfile::tempdir().unwrap();
        let remote = remote(server.address, dir.path(), 4 << 30, DEADLINE);
        let file = file(&remote, "a.bin");
        let start = Instant::now();
        (0..blocks).for_each(|block| file.read_waiting((block * BLOCK) as u64, &mut [0]).unwrap());
        let cached = megabytes / start.elapsed().as_secs_f64();
        println!("bare {bare:.0} MB/s, through the cache {cached:.0} MB/s: {:.2}", cached / bare);
        shares.push(cached / bare);
    }
    shares.sort_unstable_by(f64::total_cmp);
    assert!(shares[2] >= 0.8, "{shares:?}");
}

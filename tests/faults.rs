//! Storage that fails under a running daemon: data that is away for a while, images that are damaged and mended, cache files that are cut.

#![expect(unsafe_code, reason = "maps a file that a daemon maps")]

mod common;

use common::{DEADLINE, Daemon, refusal, sample_data, small_folder, twice_the_sample_data, until};
use mixd::client::{self, ClientError, Reason};
use mixd::spec::{Crop, FeedSpec, Mix};
use mixd::types::{Dtype, ImageSize, Place, Start};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// A batch as it arrived.
#[derive(PartialEq)]
struct Got {
    x: Vec<u8>,
    sample_id: Vec<u32>,
    label: Vec<i64>,
}

impl Got {
    fn of(batch: &client::Batch) -> Self {
        let view = batch.view();
        Self { x: view.x.to_vec(), sample_id: view.sample_id.to_vec(), label: view.label_a.to_vec() }
    }
}

/// The next batches of a feed.
fn read(feed: &mut client::Feed, batches: u64) -> Vec<Got> {
    (0..batches).map(|_| Got::of(&feed.next_batch().unwrap())).collect()
}

/// A daemon whose log can be read.
fn logging(data: &Path) -> (Daemon, Receiver<String>) {
    let mut daemon = Daemon::with(tempfile::tempdir().unwrap(), data, &[], |command| {
        command.env("RUST_LOG", "mixd=info").stderr(Stdio::piped());
    });
    let lines = BufReader::new(daemon.child.stderr.take().unwrap()).lines();
    let (sender, log) = channel();
    std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
    (daemon, log)
}

/// Reads a log up to the line with this text.
fn wait_for_line(log: &Receiver<String>, text: &str) {
    while !log.recv_timeout(DEADLINE).unwrap_or_else(|error| panic!("no «{text}»: {error}")).contains(text) {}
}

/// On 2026-11-29 data that was away for 20 ms in the first epoch ended the feed and every later one.
#[test]
fn data_that_is_away_for_a_while_costs_a_pause() {
    let data = twice_the_sample_data();
    let spec = FeedSpec { batch_size: 8, ..FeedSpec::train() };
    let (daemon, log) = logging(data.path());
    let mut feed = daemon.attach(spec).unwrap();
    let batches = feed.batches();
    let mut got = read(&mut feed, 2);
    let [train, away] = ["train", "away"].map(|name| data.path().join(name));
    std::fs::rename(&train, &away).unwrap();
    let reading = std::thread::spawn(move || {
        got.extend(read(&mut feed, 2 * batches - 2));
        got
    });
    wait_for_line(&log, "images wait to be read");
    std::fs::rename(&away, &train).unwrap();
    let got = reading.join().unwrap();
    assert_eq!(client::status(&daemon.socket()).unwrap().bad_samples, []);
    let undisturbed = Daemon::on(data.path(), &[]);
    assert!(got == read(&mut undisturbed.attach(spec).unwrap(), 2 * batches), "other batches");
}

#[test]
fn an_image_that_is_bad_is_served_once_it_was_replaced() {
    let data = small_folder(40);
    let bad = data.path().join("train/n01440764/024.png");
    let good = std::fs::read(&bad).unwrap();
    let spec = FeedSpec { batch_size: 8, mix: Mix::NONE, ..FeedSpec::train() };
    let later = FeedSpec { start: Start::At(Place { epoch: 2, index: 0 }), ..spec };
    let undisturbed = read(&mut Daemon::on(data.path(), &[]).attach(later).unwrap(), 10);
    let ids = |got: &[Got]| got.iter().flat_map(|batch| batch.sample_id.clone()).collect::<Vec<_>>();
    assert!(ids(&undisturbed).contains(&24));
    for is_damaged in [true, false] {
        let daemon = Daemon::on(data.path(), &[]);
        if is_damaged {
            std::fs::write(&bad, "not an image").unwrap();
        } else {
            std::fs::remove_file(&bad).unwrap();
        }
        let bad_samples = || client::status(&daemon.socket()).unwrap().bad_samples;
        let first = read(&mut daemon.attach(spec).unwrap(), 10);
        assert!(!ids(&first).contains(&24));
        assert_eq!(bad_samples().iter().map(|bad| bad.sample_id).collect::<Vec<_>>(), [24]);
        std::fs::write(&bad, &good).unwrap();
        assert!(read(&mut daemon.attach(later).unwrap(), 10) == undisturbed, "other batches");
        assert_eq!(bad_samples(), []);
    }
}

/// Reads a feed that fails: the batches before that, and why.
fn read_until_failure(feed: &mut client::Feed) -> (Vec<Got>, String) {
    let mut got = Vec::new();
    loop {
        match feed.next_batch() {
            Ok(batch) => got.push(Got::of(&batch)),
            Err(ClientError::Ended { failed: true, reason, .. }) => return (got, reason),
            Err(error) => panic!("not a failure of the feed: {error}"),
        }
        assert!(got.len() < 1_000, "it goes on");
    }
}

/// Changes to a file of the length given, by another program.
type Damage = fn(&File, u64) -> std::io::Result<()>;

const CUT: Damage = |file, _| file.set_len(4_096);
const CUT_AND_GROWN: Damage = |file, bytes| file.set_len(8_192).and_then(|()| file.set_len(bytes));
const OVERWRITTEN: Damage = |file, bytes| file.write_all_at(&vec![0; bytes as usize - 8_192], 8_192);

/// A mapping of a file that was cut short ended the daemon by SIGBUS; one that was cut and grown again, or overwritten, served zeros as batches.
#[test]
fn a_cache_file_that_something_changes_fails_its_feeds_alone_and_later_feeds_use_a_new_one() {
    let (data, made) = (small_folder(40), Instant::now());
    let finished = FeedSpec { batch_size: 8, ..FeedSpec::train() };
    let crop = Crop::RandomResizedCrop { scale: [0.3, 1.0], ratio: [0.75, 1.5] };
    let random = FeedSpec { crop, ..finished };
    let val = FeedSpec { batch_size: 2, ..FeedSpec::val() };
    let undisturbed = Daemon::on(data.path(), &[]);
    until("the images are old enough to be kept in files", || (made.elapsed() > Duration::from_secs(2)).then_some(()));
    let files = [(finished, "train-128x128", [random, val]), (random, "train-sources-full", [finished, val])];
    for ((spec, name, others), damage) in
        files.into_iter().flat_map(|file| [CUT, CUT_AND_GROWN, OVERWRITTEN].map(|damage| (file, damage)))
    {
        let dir = tempfile::tempdir().unwrap();
        let prefix = dir.path().join("cache");
        let cache_file = format!("--cache-file={}", prefix.display());
        // Too little for the finished views of two files.
        let options = [cache_file.as_str(), "--cache=5M"];
        let daemon = Daemon::on(data.path(), &options);
        let damage = || {
            let file = File::options().write(true).open(prefix.with_extension(name)).unwrap();
            damage(&file, file.metadata().unwrap().len()).unwrap();
        };
        let [mut feed, mut idle] = [(); 2].map(|()| daemon.attach(spec).unwrap());
        let mut others = others.map(|spec| (spec, daemon.attach(spec).unwrap()));
        let mut got = read(&mut feed, 10);
        let mut others_got = others.each_mut().map(|(_, feed)| read(feed, 1));
        damage();
        let (more, reason) = read_until_failure(&mut feed);
        assert!(
            reason.contains(name) && reason.contains("was truncated or overwritten while it was served"),
            "{reason}"
        );
        got.extend(more);
        let is_sound = |got: &[Got]| got == read(&mut undisturbed.attach(spec).unwrap(), got.len() as u64);
        assert!(is_sound(&got), "a damaged batch");
        // While a feed that waits for its trainer maps the old file.
        let mut next = daemon.attach(spec).unwrap();
        assert!(read(&mut next, 10) == got[..10], "batches of the new file");
        let stores = client::status(&daemon.socket()).unwrap().stores;
        assert!(stores.iter().all(|store| [0, store.samples].contains(&store.capacity)), "{stores:?}");
        let (old, reason) = read_until_failure(&mut idle);
        assert!(is_sound(&old) && reason.contains(name), "{reason}");
        // After a change that no feed was there to notice.
        drop(next);
        damage();
        assert!(read(&mut daemon.attach(spec).unwrap(), 10) == got[..10], "batches of the third file");
        for ((spec, feed), got) in others.iter_mut().zip(&mut others_got) {
            got.extend(read(feed, 29));
            assert!(*got == read(&mut undisturbed.attach(*spec).unwrap(), 30), "another feed's batches");
        }
        assert!(
            client::status(&daemon.socket()).unwrap().stages.iter().all(|stage| stage.threads > 0),
            "a thread ended"
        );
        drop((feed, idle, others, daemon));
        let again = Daemon::on(data.path(), &options);
        assert!(read(&mut again.attach(spec).unwrap(), 10) == got[..10], "after a restart");
        let status = client::status(&again.socket()).unwrap();
        let decoded = status.stores.iter().map(|store| store.decoded).chain(status.sources.iter().map(|it| it.decoded));
        assert_eq!(decoded.sum::<u64>(), 0, "the third file was not kept");
    }
}

/// Between the change by a `write` and its event, a batch could be made and checked; here the event never comes.
#[test]
fn what_another_program_stores_through_its_mapping_of_a_cache_file_is_never_served() {
    let (data, made) = (small_folder(40), Instant::now());
    let finished = FeedSpec { batch_size: 8, ..FeedSpec::train() };
    let crop = Crop::RandomResizedCrop { scale: [0.3, 1.0], ratio: [0.75, 1.5] };
    let undisturbed = Daemon::on(data.path(), &[]);
    until("the images are old enough to be kept in files", || (made.elapsed() > Duration::from_secs(2)).then_some(()));
    for (spec, name) in [(finished, "train-128x128"), (FeedSpec { crop, ..finished }, "train-sources-full")] {
        let dir = tempfile::tempdir().unwrap();
        let prefix = dir.path().join("cache");
        let daemon = Daemon::on(data.path(), &[format!("--cache-file={}", prefix.display()).as_str()]);
        let mut feed = daemon.attach(spec).unwrap();
        let mut got = read(&mut feed, 10);
        let file = File::options().read(true).write(true).open(prefix.with_extension(name)).unwrap();
        got.extend(read(&mut feed, 10));
        // SAFETY: the file is not truncated while it is mapped here, and bytes that another process changes are not read.
        let mut map = unsafe { memmap2::MmapMut::map_mut(&file) }.unwrap();
        map[8_192..].fill(0);
        let (more, reason) = read_until_failure(&mut feed);
        assert!(reason.contains(name) && reason.contains("overwritten"), "{reason}");
        got.extend(more);
        assert!(got == read(&mut undisturbed.attach(spec).unwrap(), got.len() as u64), "a damaged batch");
        assert!(read(&mut daemon.attach(spec).unwrap(), 10) == got[..10], "batches of the new file");
    }
}

/// A cgroup whose memory is limited; it is removed when dropped.
struct MemoryGroup {
    dir: PathBuf,
    /// The file with its limit.
    limit: &'static str,
}

impl MemoryGroup {
    /// A group below the one that this process is in; `None` where none can be made.
    fn new(name: &str, bytes: u64) -> Option<Self> {
        let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        groups.lines().find_map(|line| {
            let (controllers, own) = line.split_once(':')?.1.split_once(':')?;
            let (mount, limit) = match controllers {
                "" => ("/sys/fs/cgroup", "memory.max"),
                "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
                _ => return None,
            };
            let dir = Path::new(mount).join(own.trim_start_matches('/')).join(format!("{name}-{}", std::process::id()));
            std::fs::create_dir(&dir).ok()?;
            let group = Self { dir, limit };
            group.limit(bytes).ok().map(|()| group)
        })
    }

    fn limit(&self, bytes: u64) -> std::io::Result<()> {
        std::fs::write(self.dir.join(self.limit), bytes.to_string())
    }

    /// Has a command run in the group.
    fn confine(&self, command: &mut Command) {
        let inner = std::mem::replace(command, Command::new("sh"));
        command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(self.dir.join("cgroup.procs"));
        command.arg(inner.get_program()).args(inner.get_args());
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let empty = || std::fs::remove_dir(&self.dir).is_ok().then_some(());
        until("the group is empty", empty);
    }
}

/// `--cache auto` took half of what was available, and the rings, staging and decoders the other half and more.
#[test]
fn a_daemon_in_a_small_cgroup_is_not_killed_for_its_cache() {
    let Some(group) = MemoryGroup::new("mixd-test", 320 << 20) else {
        return common::left_out("no memory cgroup can be made here");
    };
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::with(dir, &sample_data(), &[], |command| group.confine(command));
    // 157 MB of samples, 126 MB in the ring, 31 MB of staging.
    let spec = FeedSpec { batch_size: 10, image_size: ImageSize::square(512), ..FeedSpec::train() };
    let mut feed = daemon.attach(spec).unwrap();
    for _ in 0..2 * feed.batches() {
        feed.next_batch().unwrap();
    }
    let status = client::status(&daemon.socket()).unwrap();
    assert!(status.stores[0].decoded > 20, "hardly anything was kept: {:?}", status.stores);
    // Another ring of this size has no room, which is no reason to die either.
    assert!(matches!(refusal(daemon.attach(spec)), Reason::NoRoom { .. }));
    feed.next_batch().unwrap();
}

/// On 2026-11-30 a PNG of 258 KB had a daemon killed that served it.
#[test]
fn an_image_that_memory_has_no_room_for_costs_its_row_and_not_the_daemon() {
    let Some(group) = MemoryGroup::new("mixd-test-huge", 256 << 20) else {
        return common::left_out("no memory cgroup can be made here");
    };
    let data = small_folder(40);
    let huge = data.path().join("train/n01440764/024.png");
    image::RgbImage::new(10_000, 10_000).save(&huge).unwrap();
    let daemon =
        Daemon::with(tempfile::tempdir().unwrap(), data.path(), &["--workers=2"], |command| group.confine(command));
    let finished = FeedSpec { batch_size: 8, mix: Mix::NONE, ..FeedSpec::train() };
    let random = FeedSpec { crop: Crop::RandomResizedCrop { scale: [0.3, 1.0], ratio: [0.75, 1.5] }, ..finished };
    for spec in [finished, random] {
        let mut feed = daemon.attach(spec).unwrap();
        let batches = 2 * feed.batches();
        assert!(read(&mut feed, batches).iter().all(|batch| !batch.sample_id.contains(&24)));
        let bad = client::status(&daemon.socket()).unwrap().bad_samples;
        assert!(bad.len() == 1 && bad[0].sample_id == 24, "{bad:?}");
        assert!(bad[0].cause.starts_with("needs 300 MB to decode and "), "{bad:?}");
    }
    // It is not bad for ever.
    group.limit(2 << 30).unwrap();
    let mut feed = daemon.attach(finished).unwrap();
    let batches = feed.batches();
    assert!(read(&mut feed, batches).iter().any(|batch| batch.sample_id.contains(&24)));
    assert_eq!(client::status(&daemon.socket()).unwrap().bad_samples, []);
}

/// Each feed was set against the memory that those before it had not touched yet, and the last one's ring then ended it, or the kernel all of them.
#[test]
fn feeds_that_are_opened_one_after_the_other_are_refused_or_served() {
    let Some(group) = MemoryGroup::new("mixd-test-feeds", 256 << 20) else {
        return common::left_out("no memory cgroup can be made here");
    };
    let (dir, data) = (tempfile::tempdir().unwrap(), twice_the_sample_data());
    let daemon = Daemon::with(dir, data.path(), &["--cache=0"], |command| group.confine(command));
    // 12 MB in the ring, and as many of staging.
    let (image_size, dtype) = (ImageSize::square(224), Dtype::Bf16);
    let spec = FeedSpec { batch_size: 20, image_size, dtype, slots: 2, ..FeedSpec::train() };
    let mut feeds = Vec::new();
    let refused = loop {
        match daemon.attach(FeedSpec { seed: feeds.len() as u64, ..spec }) {
            Ok(feed) => feeds.push(feed),
            refused => break refusal(refused),
        }
    };
    assert!(matches!(refused, Reason::NoRoom { .. }), "{refused:?}");
    assert!(feeds.len() > 2, "{} feeds", feeds.len());
    for feed in &mut feeds {
        (0..2 * feed.batches()).for_each(|_| drop(feed.next_batch().unwrap()));
    }
}

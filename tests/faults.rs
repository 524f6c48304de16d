//! Storage that fails under a running daemon: data that is away for a while, images that are damaged and mended, cache files that are cut.

mod common;

use common::{Daemon, small_folder, twice_the_sample_data};
use mixd::client;
use mixd::spec::{FeedSpec, Mix};
use mixd::types::{Place, Start};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{ChildStderr, Stdio};

/// A batch as it arrived.
#[derive(PartialEq)]
struct Got {
    x: Vec<u8>,
    sample_id: Vec<u32>,
    label: Vec<i64>,
}

/// The next batches of a feed.
fn read(feed: &mut client::Feed, batches: u64) -> Vec<Got> {
    let got = |_| {
        let batch = feed.next_batch().unwrap();
        let view = batch.view();
        Got { x: view.x.to_vec(), sample_id: view.sample_id.to_vec(), label: view.label_a.to_vec() }
    };
    (0..batches).map(got).collect()
}

/// A daemon whose log can be read.
fn logging(data: &Path, args: &[&str]) -> (Daemon, BufReader<ChildStderr>) {
    let mut daemon = Daemon::with(tempfile::tempdir().unwrap(), data, args, |command| {
        command.env("RUST_LOG", "mixd=info").stderr(Stdio::piped());
    });
    let log = BufReader::new(daemon.child.stderr.take().unwrap());
    (daemon, log)
}

/// Reads a log up to the line with this text, which it returns.
fn wait_for_line(log: &mut impl BufRead, text: &str) -> String {
    let mut lines = log.lines();
    let line = lines.find(|line| line.as_ref().unwrap().contains(text));
    line.unwrap_or_else(|| panic!("the daemon ended without «{text}»")).unwrap()
}

/// On 2026-11-29 data that was away for 20 ms in the first epoch ended the feed and every later one.
#[test]
fn data_that_is_away_for_a_while_costs_a_pause() {
    let data = twice_the_sample_data();
    let spec = FeedSpec { batch_size: 8, ..FeedSpec::train() };
    let (daemon, mut log) = logging(data.path(), &[]);
    let mut feed = daemon.attach(spec).unwrap();
    let batches = feed.batches();
    let mut got = read(&mut feed, 2);
    let [train, away] = ["train", "away"].map(|name| data.path().join(name));
    std::fs::rename(&train, &away).unwrap();
    let reading = std::thread::spawn(move || {
        got.extend(read(&mut feed, 2 * batches - 2));
        got
    });
    wait_for_line(&mut log, "reading is retried");
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

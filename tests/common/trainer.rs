//! Trainers in processes of their own, and what each of their batches should be.

use super::{DEADLINE, Daemon, sample_data};
use mixd::client;
use mixd::pipeline::{Options, Pipeline};
use mixd::plan::{Numbering, Sampler};
use mixd::spec::{Delivery, FeedSpec};
use mixd::types::{Place, SampleId, Start};
use rustix::process::Signal;
use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// What a trainer of these tests is told in the variable `TRAINER`.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct Orders {
    pub socket: PathBuf,
    pub spec: FeedSpec,
    /// Batches to read.
    pub batches: u64,
    /// Milliseconds that it works on each.
    pub step_ms: u64,
    /// Whether to wait for a line on standard input while holding the first batch.
    pub holds_the_first: bool,
    /// How long it waits for the next daemon.
    pub reconnect: Duration,
    /// The first sample of each shard of the data set, if it has any.
    pub shards: Vec<SampleId>,
}

impl Orders {
    pub fn new(socket: PathBuf, spec: FeedSpec, batches: u64, step_ms: u64) -> Self {
        Self { socket, spec, batches, step_ms, holds_the_first: false, reconnect: DEADLINE, shards: Vec::new() }
    }
}

/// A trainer: reads batches, checks them against the plan and their digests, and prints what it got. Test binaries that start trainers have an
/// ignored test `trainer_process` that calls it.
pub fn run() {
    let Ok(orders) = std::env::var("TRAINER") else { return };
    let Orders { socket, spec, batches, step_ms, holds_the_first, reconnect, shards } =
        serde_json::from_str(&orders).unwrap();
    let mut feed = client::attach_for(&socket, &spec, reconnect).unwrap();
    let numbering = Numbering { samples: feed.samples(), shards };
    let sampler = Sampler::new(FeedSpec { start: Start::Now, ..spec }, numbering).unwrap();
    println!("\nattached {} {}", feed.place().epoch, feed.place().index);
    for nth in 0..batches {
        let batch = match feed.next_batch() {
            Ok(batch) => batch,
            Err(error) => return println!("error {error}"),
        };
        std::thread::sleep(Duration::from_millis(step_ms));
        if holds_the_first && nth == 0 {
            println!("holding");
            std::io::stdin().lines().next().unwrap().unwrap();
        }
        let view = batch.view();
        let plan = sampler.epoch(view.head.epoch).plan(view.head.index);
        assert_eq!((view.sample_id, view.partner_id), (&plan.own()[..], &plan.partners()[..]));
        assert_eq!((view.lambda, view.partner), (&plan.lambdas()[..], &plan.partner_rows()[..]));
        assert!(view.head.digest != 0 && feed.is_intact(&batch), "torn: {} {}", view.head.epoch, view.head.index);
        println!("batch {} {} {}", view.head.epoch, view.head.index, view.head.digest);
    }
}

/// More batches than any test waits for.
pub const ENDLESS: u64 = 1_000_000;

pub struct Trainer {
    pub spec: FeedSpec,
    pub child: Child,
    /// Read as they come, so that it never has to wait for this test.
    pub lines: mpsc::Receiver<String>,
    /// Places and digests of what it has read.
    pub read: Vec<(Place, u64)>,
    /// The first batch that it was promised.
    pub start: Place,
}

impl Trainer {
    pub fn start(daemon: &Daemon, spec: FeedSpec, batches: u64, step_ms: u64) -> Self {
        Self::obey(Orders::new(daemon.socket(), spec, batches, step_ms))
    }

    pub fn obey(orders: Orders) -> Self {
        Self::within(&[], orders)
    }

    /// One that is started by another command, which ends with the trainer's.
    pub fn within(command: &[&str], orders: Orders) -> Self {
        let program = std::env::current_exe().unwrap();
        let mut words = command.iter().map(|word| (*word).into()).chain([program.into_os_string()]);
        let mut child = Command::new(words.next().expect("the program at least"))
            .args(words)
            .args(["--exact", "trainer_process", "--ignored", "--nocapture"])
            .env("TRAINER", serde_json::to_string(&orders).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (said, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| said.send(line)));
        let mut trainer = Self { spec: orders.spec, child, lines, read: Vec::new(), start: Place::default() };
        let line = trainer.line("attached ").expect("it attaches");
        let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
        trainer.start = Place { epoch: numbers[0], index: numbers[1] };
        trainer
    }

    /// The rest of the next line that begins so; `None` when it has ended, or says nothing more.
    pub fn line(&mut self, begin: &str) -> Option<String> {
        let next = || self.lines.recv_timeout(DEADLINE).ok();
        std::iter::from_fn(next).find_map(|line| line.strip_prefix(begin).map(str::to_owned))
    }

    /// Takes note of its next batch.
    pub fn batch(&mut self) -> Option<(Place, u64)> {
        let line = self.line("batch ")?;
        let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
        self.read.push((Place { epoch: numbers[0], index: numbers[1] }, numbers[2]));
        self.read.last().copied()
    }

    pub fn batches(&mut self, count: usize) {
        (0..count).for_each(|_| assert!(self.batch().is_some(), "it ended"));
    }

    /// Kills it; what it had said before counts.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        while self.batch().is_some() {}
    }

    /// Reads to its end, which must be a good one.
    pub fn finish(&mut self) {
        while self.batch().is_some() {}
        assert!(self.child.wait().unwrap().success());
    }

    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Trainer {
    fn drop(&mut self) {
        // An error says that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The same data set in this process, with one decoder and nothing kept: what every batch should be.
pub struct Oracle {
    pub pipeline: Pipeline,
    pub digests: HashMap<(String, Place), u64>,
}

impl Oracle {
    pub fn new() -> Self {
        Self::of(&sample_data())
    }

    pub fn of(data: &Path) -> Self {
        let source = mixd::source::open(&mixd::source::DataSet::at(data), &mut |_| {}).unwrap();
        Self { pipeline: Pipeline::start(source, Options::single(1 << 30)).unwrap(), digests: HashMap::new() }
    }

    pub fn digest(&mut self, spec: FeedSpec, place: Place) -> u64 {
        let spec = FeedSpec { share: None, start: Start::Now, ..spec };
        let key = (serde_json::to_string(&spec).unwrap(), place);
        let make = || self.pipeline.batch(spec, place).unwrap().view().head.digest;
        *self.digests.entry(key).or_insert_with(make)
    }

    /// Every batch that a trainer read is the right one, and, unless it may skip, none is lost, repeated or out of order.
    pub fn check(&mut self, trainer: &Trainer) {
        let Trainer { spec, read, start, .. } = trainer;
        let numbering = self.pipeline.source().numbering(spec.split);
        let sampler = Sampler::new(FeedSpec { start: Start::Now, ..*spec }, numbering).unwrap();
        let may_skip = spec.share.is_some_and(|share| share.delivery == Delivery::Latest);
        let mut next = *start;
        for &(place, digest) in read {
            assert!(place == next || may_skip && place > next, "{place} where {next} should come, of {spec:?}");
            assert_eq!(digest, self.digest(*spec, place), "{place} of {spec:?}");
            next = place.next(sampler.batches());
        }
    }
}

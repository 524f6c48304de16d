//! `mixd bench`: how fast a daemon delivers to separate trainer processes, and what share of the machine's ceiling that is.

use super::bench_ceiling::{Ceiling, DeviceMeasured, Measured};
use super::bench_trainer::{Counted, Report, Touch};
use super::options::{Cache, DataArgs, PipelineArgs};
use super::own_daemon::OwnDaemon;
use crate::client;
use crate::pipeline::in_flight;
use crate::plan::Sampler;
use crate::ring::now_ns;
use crate::spec::{FeedOptions, FeedSpec, ShareName};
use crate::status::{Mixed, Stage, Status};
use crate::types::Device;
use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

/// Measure images per second through a daemon of its own and separate trainer processes.
#[derive(Debug, Args)]
pub struct Bench {
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    pipeline: PipelineArgs,
    #[command(flatten)]
    feed: FeedOptions,
    /// Trainer processes, each with a private feed unless they --share one.
    #[arg(long, env = "MIXD_TRAINERS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    trainers: u32,
    /// Have all trainers read one shared feed of this name, and in each round one more alone before, to compare with.
    #[arg(long, env = "MIXD_SHARE", value_name = "NAME")]
    share: Option<ShareName>,
    /// In each round, have a loop in Python count alone, too: an interpreter that has the package mixd, and torch.
    #[arg(long, env = "MIXD_PYTHON", value_name = "PROGRAM")]
    python: Option<PathBuf>,
    /// Images that each trainer counts in a round, rounded up to a batch.
    #[arg(long, env = "MIXD_IMAGES", conflicts_with = "seconds", value_parser = clap::value_parser!(u64).range(1..))]
    images: Option<u64>,
    /// Seconds that each trainer counts for, over all rounds.
    #[arg(long, env = "MIXD_SECONDS", default_value_t = 5.0)]
    seconds: f64,
    /// Rounds; figures are medians over them, and ratios are taken in each.
    #[arg(long, env = "MIXD_ROUNDS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Microseconds that trainers work on each batch.
    #[arg(long, env = "MIXD_STEP_US", default_value_t = 0)]
    step_us: u64,
    /// Batches that each trainer reads before it counts [default: what is in flight; with a cache, an epoch more].
    #[arg(long, env = "MIXD_WARMUP")]
    warmup: Option<u64>,
    /// What trainers read: the header and an element of every image, or all bytes.
    #[arg(long, env = "MIXD_TOUCH", default_value = "element")]
    touch: Touch,
    /// Measure the machine's ceilings before each round: decode + resize with nothing else, writing finished batches to memory,
    /// waking a thread.
    #[arg(long, env = "MIXD_CEILING")]
    ceiling: bool,
    /// With --device cuda: have batches copied back into main memory, where trainers read them, in place of leaving them on the device.
    #[arg(long, env = "MIXD_COPY_BACK")]
    copy_back: bool,
    /// Print one line of JSON at the end.
    #[arg(long, env = "MIXD_JSON")]
    json: bool,
}

/// A process that is ended if it has not ended by itself.
struct Trainer {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Trainer {
    fn report(&mut self) -> anyhow::Result<Report> {
        let line = self.lines.next().context("a trainer ended early (its own message is above)")??;
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Trainer {
    fn drop(&mut self) {
        // An error only says that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Bench {
    pub fn run(self) -> anyhow::Result<()> {
        anyhow::ensure!(self.seconds > 0.0 && self.seconds <= 3600.0, "--seconds must be above 0 and at most 3600");
        let spec = FeedSpec { device: self.batch_device(), ..self.feed.spec()? };
        spec.validate()?;
        anyhow::ensure!(
            !self.copy_back || self.pipeline.batch_device() != Device::Cpu,
            "--copy-back is for batches that are mixed on a device (give --device cuda, too)"
        );
        anyhow::ensure!(
            self.python.is_none() || spec.device == Device::Cpu,
            "--python reads main memory only (give --copy-back, too)"
        );
        let source = self.data.open()?;
        let batches = Sampler::new(spec, source.len(spec.split))?.batches();
        let cached = self.pipeline.cache != Cache::Off;
        let in_flight = in_flight(spec.slots);
        let warmup = self.warmup.unwrap_or(in_flight + if cached { batches } else { 0 });
        let started_ns = now_ns();
        let daemon = OwnDaemon::start(&self.data.data, &self.pipeline.arguments())?;
        // Those that share a feed have the same spec; the one that reads alone, too, and it does their warming up.
        let alone = self.share.is_some().then(|| self.trainer(None, &daemon, warmup.max(1), 0, None)).transpose()?;
        let trainers = (0..self.trainers).map(|nth| {
            let seed = if self.share.is_some() { 0 } else { nth };
            self.trainer(None, &daemon, if self.share.is_some() { 0 } else { warmup.max(1) }, seed, self.share)
        });
        let python = self.python.iter().map(|python| self.trainer(Some(python), &daemon, warmup.max(1), 0, None));
        let mut trainers =
            alone.into_iter().map(Ok).chain(trainers).chain(python).collect::<anyhow::Result<Vec<_>>>()?;
        let (mut attach_ms, mut first_batch_ns) = (Vec::new(), u64::MAX);
        let in_rust = trainers.len() - usize::from(self.python.is_some());
        for (nth, trainer) in trainers.iter_mut().enumerate() {
            match trainer.report()? {
                Report::Warm { .. } if nth >= in_rust => {}
                Report::Warm { attach_ns, first_batch_ns: first } => {
                    attach_ms.push(attach_ns as f64 / 1e6);
                    first_batch_ns = first_batch_ns.min(first);
                }
                report => anyhow::bail!("a trainer counted unasked: {report:?}"),
            }
        }
        let workers = client::status(daemon.socket())?.decode_workers as usize;
        let ceiling = self.ceiling.then(|| Ceiling::new(&*source, spec, &self.pipeline, workers));
        let mut ceiling = ceiling.transpose()?;
        let rounds = (0..self.rounds)
            .map(|_| {
                let ceiling = ceiling.as_mut().map(Ceiling::measure).transpose()?;
                let (alone, others) = trainers.split_at_mut(usize::from(self.share.is_some()));
                let (together, python) = others.split_at_mut(self.trainers as usize);
                let by_itself = |trainers: &mut [Trainer]| match trainers {
                    [] => Ok(None),
                    trainers => round(&daemon, trainers).map(|round| Some(Box::new(round))),
                };
                let alone = by_itself(alone)?;
                let round = round(&daemon, together)?;
                Ok(Round { ceiling, alone, python: by_itself(python)?, ..round })
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        drop(trainers);
        drop(daemon);
        let first_batch_ms = first_batch_ns.saturating_sub(started_ns) as f64 / 1e6;
        let result = self.result(&spec, &rounds, first_batch_ms, median(attach_ms));
        super::print(|out| if self.json { writeln!(out, "{result}") } else { write!(out, "{}", table(&result)) })
    }

    /// In whose memory batches lie.
    fn batch_device(&self) -> Device {
        if self.copy_back { Device::Cpu } else { self.pipeline.batch_device() }
    }

    /// Starts a trainer, in Python where an interpreter is given.
    fn trainer(
        &self,
        python: Option<&PathBuf>,
        daemon: &OwnDaemon,
        warmup: u64,
        seed: u32,
        share: Option<ShareName>,
    ) -> anyhow::Result<Trainer> {
        let touch = match self.touch {
            Touch::Element => "element",
            Touch::All => "all",
        };
        let mut command = Command::new(python.map_or_else(super::program, |python| Ok(python.clone()))?);
        // What stands in variables has been read by this command, and is not meant for that one.
        let variables = std::env::vars_os().map(|(name, _)| name);
        variables.filter(|name| name.as_encoded_bytes().starts_with(b"MIXD_")).for_each(|name| {
            command.env_remove(name);
        });
        match python {
            Some(_) => command.args(["-m", "mixd.bench"]),
            None => command.arg("bench-trainer"),
        };
        command.arg("--socket").arg(daemon.socket());
        let options = [
            ("touch", touch.to_owned()),
            ("warmup", warmup.to_string()),
            ("images", self.images.unwrap_or(0).to_string()),
            ("seconds", (self.seconds / f64::from(self.rounds)).to_string()),
            ("step-us", self.step_us.to_string()),
            // Its daemon is not started again.
            ("reconnect", "0".to_owned()),
        ];
        command.args(options.map(|(key, value)| format!("--{key}={value}")));
        let seed = self.feed.seed.unwrap_or(0).wrapping_add(seed.into());
        let feed = FeedOptions { seed: Some(seed), ..self.feed.clone() };
        match python {
            // A loop in Python reads main memory.
            Some(_) => command.arg(format!("--feed={}", serde_json::to_string(&feed)?)),
            None => command.arg(format!("--device={}", self.batch_device())).args(feed.arguments()),
        };
        command.args(share.map(|name| format!("--share={name}")));
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start a trainer")?;
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Ok(Trainer { child, lines })
    }

    fn result(&self, spec: &FeedSpec, rounds: &[Round], first_batch_ms: f64, attach_ms: Option<f64>) -> Value {
        let warm = self.pipeline.cache != Cache::Off;
        let counted = || rounds.iter().flat_map(|round| &round.trainers);
        let over = |figure: &dyn Fn(&Round) -> Option<f64>| median(rounds.iter().filter_map(figure).collect());
        let on_device = self.batch_device() != Device::Cpu;
        let resident = self.pipeline.device_cache != Cache::Off;
        // What a batch that a device mixes must move at least: where it goes back to main memory, itself; else its samples once over the bus,
        // or, of those that are there, read and written once.
        let (sample_bytes, image_bytes) = (spec.image_size.values() as f64, spec.format().image_bytes() as f64);
        let ceiling = |round: &Round| {
            round.ceiling.as_ref().map(|at| match &at.device {
                _ if !warm && spec.renders() => ("decode + render", at.decode),
                _ if !warm => ("decode + resize", at.decode),
                _ if spec.renders() => ("render", at.render.unwrap_or_default()),
                Some(device) if !on_device => ("pinned copy from the device", device.copy_back / image_bytes),
                Some(device) if resident => ("device memory copy", device.copy / (sample_bytes + image_bytes)),
                Some(device) => ("pinned copy to the device", device.host_copy / sample_bytes),
                None => ("memory write", at.write),
            })
        };
        let moved = |of: fn(&Mixed) -> u64| over(&|round| Some(round.mixed(of) / round.mixed_images()?));
        let handoff_us: Vec<f64> = counted().flat_map(|one| one.handoff_us.clone()).collect();
        let handoffs = handoff_us.len();
        let wake_us = rounds.iter().flat_map(|round| round.ceiling.iter().flat_map(|at| at.wake_us.clone())).collect();
        let ([handoff_us_p50, handoff_us_p99], [wake_us_p50, wake_us_p99]) =
            (quantiles(handoff_us), quantiles(wake_us));
        let last = &rounds.last().expect("at least one round").after;
        let stages = stages(rounds);
        json!({
            "images_per_s": over(&|round| Some(round.images_per_s())),
            "images": counted().map(|one| one.images).sum::<u64>(),
            "seconds": rounds.iter().map(Round::seconds).sum::<f64>(),
            "rounds": rounds.iter().map(|round| json!({
                "images_per_s": round.images_per_s(), "ceiling_images_per_s": ceiling(round).map(|(_, rate)| rate),
            })).collect::<Vec<_>>(),
            "cpu_seconds": rounds.iter().map(Round::cpu_seconds).sum::<f64>(),
            "cpu_ms_per_1000_images": over(&|round| round.cpu_ms_per_1000_images()),
            "trainer_cpu_seconds": counted().map(|one| one.cpu_seconds).sum::<f64>(),
            "peak_rss_mb": last.peak_rss_bytes as f64 / 1e6,
            "store_mb": (last.stores.iter().map(|store| store.bytes).sum::<u64>() + last.sources.iter().map(|kept| kept.bytes).sum::<u64>()) as f64 / 1e6,
            "rings_mb": last.feeds.iter().map(|feed| feed.ring_bytes).sum::<u64>() as f64 / 1e6,
            "first_batch_ms": first_batch_ms,
            "attach_ms": attach_ms,
            "ceiling_images_per_s": over(&|round| Some(ceiling(round)?.1)),
            "share_of_ceiling": over(&|round| Some(round.images_per_s() / ceiling(round)?.1)),
            "ceiling": ceiling(&rounds[0]).map(|(kind, _)| json!({
                "kind": kind,
                "decode_images_per_s": over(&|round| Some(round.ceiling.as_ref()?.decode)),
                "render_images_per_s": over(&|round| round.ceiling.as_ref()?.render),
                "memory_write_images_per_s": over(&|round| Some(round.ceiling.as_ref()?.write)),
                "wake_us_p50": wake_us_p50,
                "wake_us_p99": wake_us_p99,
            })),
            "handoff_us_p50": handoff_us_p50,
            "handoff_us_p99": handoff_us_p99,
            "handoffs": handoffs,
            "share": self.share,
            "alone": over(&|round| Some(round.alone.as_ref()?.images_per_s())).map(|images_per_s| json!({
                "images_per_s": images_per_s,
                "cpu_ms_per_1000_images": over(&|round| round.alone.as_ref()?.cpu_ms_per_1000_images()),
                "slowest_trainer_of_alone": over(&|round| Some(round.slowest() / round.alone.as_ref()?.images_per_s())),
                "cpu_of_alone": over(&|round| {
                    let alone = round.alone.as_ref()?.cpu_ms_per_1000_images()?;
                    Some(round.cpu_ms_per_1000_images()? / alone)
                }),
            })),
            "python": over(&|round| Some(round.python.as_ref()?.images_per_s())).map(|images_per_s| json!({
                "images_per_s": images_per_s,
                "of_rust": over(&|round| Some(round.python.as_ref()?.images_per_s() / round.images_per_s())),
            })),
            "device": (self.pipeline.batch_device() != Device::Cpu).then(|| {
                let ceiling = |of: fn(&DeviceMeasured) -> f64| over(&|round| round.ceiling.as_ref()?.device.as_ref().map(of));
                json!({
                    "ordinal": self.pipeline.device.to_string(),
                    "name": rounds[0].ceiling.as_ref().and_then(|at| at.device.as_ref()).map(|device| device.name.clone()),
                    "resident_mb": last.stores.iter().map(|store| store.device_bytes).sum::<u64>() as f64 / 1e6,
                    "to_device_bytes_per_image": moved(|mixed| mixed.to_device_bytes),
                    "from_device_bytes_per_image": moved(|mixed| mixed.from_device_bytes),
                    // Torch's operations are not counted.
                    "on_device_bytes_per_image": moved(|mixed| mixed.on_device_bytes).filter(|&bytes| bytes > 0.0),
                    "copy_bytes_per_s": ceiling(|at| at.copy),
                    "host_copy_bytes_per_s": ceiling(|at| at.host_copy),
                    "copy_back_bytes_per_s": ceiling(|at| at.copy_back),
                    "kernel_images_per_s": ceiling(|at| at.kernel),
                    "kernel_share_of_copy": over(&|round| {
                        let device = round.ceiling.as_ref()?.device.as_ref()?;
                        Some(device.kernel * (sample_bytes + image_bytes) / device.copy)
                    }),
                })
            }),
            "bottleneck": bottleneck(&stages),
            "stages": stages,
            "trainers": self.trainers,
            "workers": last.decode_workers,
            "jpeg_decoder": last.jpeg_decoder,
            "resize": self.pipeline.resize.name(),
            "decode": self.pipeline.decode.name(),
            "mixer": last.mixer,
            "dtype": spec.dtype.name(),
            "batch_size": spec.batch_size,
            "size": spec.image_size.to_string(),
            "cache": warm,
        })
    }
}

/// A round: what trainers counted, and what the daemon did meanwhile.
struct Round {
    trainers: Vec<Counted>,
    before: Status,
    after: Status,
    ceiling: Option<Measured>,
    /// What a trainer with a feed of its own counted just before, where the others share one.
    alone: Option<Box<Round>>,
    /// What a loop in Python counted just after.
    python: Option<Box<Round>>,
}

/// Has all trainers count once.
fn round(daemon: &OwnDaemon, trainers: &mut [Trainer]) -> anyhow::Result<Round> {
    for trainer in &mut *trainers {
        writeln!(trainer.child.stdin.as_mut().expect("piped"))?;
    }
    for trainer in &mut *trainers {
        let report = trainer.report()?;
        anyhow::ensure!(matches!(report, Report::Counting), "a trainer does not begin to count: {report:?}");
    }
    let before = client::status(daemon.socket())?;
    let counted = trainers.iter_mut().map(|trainer| match trainer.report()? {
        Report::Round(counted) => Ok(counted),
        report => anyhow::bail!("a trainer has not counted: {report:?}"),
    });
    let trainers = counted.collect::<anyhow::Result<_>>()?;
    let after = client::status(daemon.socket())?;
    Ok(Round { trainers, before, after, ceiling: None, alone: None, python: None })
}

impl Round {
    fn images_per_s(&self) -> f64 {
        self.trainers.iter().map(|one| one.images as f64 / one.seconds).sum()
    }

    /// Images a second of the slowest trainer.
    fn slowest(&self) -> f64 {
        self.trainers.iter().map(|one| one.images as f64 / one.seconds).fold(f64::INFINITY, f64::min)
    }

    fn seconds(&self) -> f64 {
        self.trainers.iter().map(|one| one.seconds).fold(0.0, f64::max)
    }

    fn cpu_seconds(&self) -> f64 {
        self.after.cpu_s - self.before.cpu_s
    }

    /// What the daemon's mixers did in the round.
    fn mixed(&self, of: fn(&Mixed) -> u64) -> f64 {
        let count = |status: &Status| of(&status.mixed);
        (count(&self.after) - count(&self.before)) as f64
    }

    /// Images that the daemon mixed, if any. It runs ahead of trainers by what is in flight, so its work is set against these.
    fn mixed_images(&self) -> Option<f64> {
        Some(self.mixed(|mixed| mixed.images)).filter(|&images| images > 0.0)
    }

    fn cpu_ms_per_1000_images(&self) -> Option<f64> {
        Some(self.cpu_seconds() * 1e6 / self.mixed_images()?)
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len().checked_sub(1)? / 2;
    Some((values[middle] + values[values.len() / 2]) / 2.0)
}

/// The median and the 99th percentile.
fn quantiles(mut values: Vec<f64>) -> [Option<f64>; 2] {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1) as f64;
    [0.5, 0.99].map(|q| values.get((last * q).round() as usize).copied())
}

/// What each stage did in all rounds.
fn stages(rounds: &[Round]) -> Vec<Value> {
    let names = rounds[0].after.stages.iter().map(|stage| &stage.name);
    let stage = |(nth, name): (usize, &String)| {
        let sum = |of: fn(&Stage) -> f64| -> f64 {
            rounds.iter().map(|round| of(&round.after.stages[nth]) - of(&round.before.stages[nth])).sum()
        };
        json!({
            "name": name,
            "items": sum(|stage| stage.items as f64) as u64,
            "busy_s": sum(|stage| stage.busy_s),
            "waiting_in_s": sum(|stage| stage.waiting_in_s),
            "waiting_out_s": sum(|stage| stage.waiting_out_s),
            "threads": rounds[0].after.stages[nth].threads,
        })
    };
    names.enumerate().map(stage).collect()
}

/// The stage that is busy for the largest share of its threads' time; the trainers, or the busiest of the stages before, where the mixers mostly
/// wait for them: they do not hold anybody up then, though none may be busy on a machine that has other work.
fn bottleneck(stages: &[Value]) -> &str {
    let time = |stage: &Value, key: &str| stage[key].as_f64().unwrap_or(0.0);
    let (mix, before) = stages.split_last().expect("the daemon names its stages");
    let [busy, waiting_in, waiting_out] = ["busy_s", "waiting_in_s", "waiting_out_s"].map(|key| time(mix, key));
    if waiting_out > busy.max(waiting_in) {
        return "trainer";
    }
    let of_thread = |stage: &Value| time(stage, "busy_s") / time(stage, "threads").max(1.0);
    let slow = if waiting_in > busy { before } else { stages };
    let busiest = slow.iter().max_by(|a, b| of_thread(a).total_cmp(&of_thread(b)));
    busiest.and_then(|stage| stage["name"].as_str()).unwrap_or("unknown")
}

fn table(result: &Value) -> String {
    use std::fmt::Write as _;
    let number = |key: &str| result[key].as_f64();
    let text = |value: Option<f64>, unit: &str| value.map_or("-".to_owned(), |value| format!("{value:.1}{unit}"));
    let mut out = String::new();
    let mut row = |name: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{name:<28} {value}");
    };
    row("images/s", format!("{:.0}", number("images_per_s").unwrap_or(0.0)));
    if let (Some(ceiling), Some(share)) = (number("ceiling_images_per_s"), number("share_of_ceiling")) {
        let kind = result["ceiling"]["kind"].as_str().unwrap_or_default();
        row("share of the ceiling", format!("{:.0} % of {ceiling:.0} images/s ({kind})", share * 100.0));
    }
    if let Some(alone) = result["alone"].as_object() {
        let number = |key: &str| alone[key].as_f64().unwrap_or(0.0);
        row("one trainer alone", format!("{:.0} images/s", number("images_per_s")));
        row("  the slowest sharer's rate", format!("{:.2} of that", number("slowest_trainer_of_alone")));
        row("  daemon CPU an image", format!("{:.2} of alone", number("cpu_of_alone")));
    }
    if let Some(python) = result["python"].as_object() {
        let number = |key: &str| python[key].as_f64().unwrap_or(0.0);
        let (images_per_s, of_rust) = (number("images_per_s"), number("of_rust"));
        row("a loop in Python", format!("{images_per_s:.0} images/s, {of_rust:.2} of the trainer in Rust"));
    }
    row("images", result["images"].to_string());
    row("seconds", text(number("seconds"), " s"));
    row("daemon CPU", text(number("cpu_seconds"), " s"));
    row("  per 1,000 images", text(number("cpu_ms_per_1000_images"), " ms"));
    row("trainers' CPU", text(number("trainer_cpu_seconds"), " s"));
    let (store, rings) = (text(number("store_mb"), ""), text(number("rings_mb"), " MB"));
    row(
        "daemon's largest memory",
        format!("{}, of which store {store} and rings {rings}", text(number("peak_rss_mb"), " MB")),
    );
    row("first batch after", text(number("first_batch_ms"), " ms"));
    row("attaching", text(number("attach_ms"), " ms"));
    row("hand-off, median", text(number("handoff_us_p50"), " µs"));
    row("hand-off, 99 %", text(number("handoff_us_p99"), " µs"));
    if let (Some(p50), Some(p99)) =
        (result["ceiling"]["wake_us_p50"].as_f64(), result["ceiling"]["wake_us_p99"].as_f64())
    {
        row("  the kernel's wake-up alone", format!("{p50:.1} µs, {p99:.1} µs"));
    }
    if let Some(device) = result["device"].as_object() {
        let bytes = |key: &str| device[key].as_f64().unwrap_or(0.0);
        let (to, from) = (bytes("to_device_bytes_per_image"), bytes("from_device_bytes_per_image"));
        row("over the bus, an image", format!("{to:.0} bytes to the device, {from:.0} back"));
        if let Some(bytes) = device["on_device_bytes_per_image"].as_f64() {
            row("in its memory, an image", format!("{bytes:.0} bytes"));
        }
        row("samples kept there", format!("{:.0} MB", bytes("resident_mb")));
        if let (Some(name), Some(kernel)) = (device["name"].as_str(), device["kernel_images_per_s"].as_f64()) {
            let share = 100.0 * bytes("kernel_share_of_copy");
            row("the device", name.to_owned());
            row("  copies in its memory", format!("{:.1} GB/s, read and written", bytes("copy_bytes_per_s") / 1e9));
            let (to, back) = (bytes("host_copy_bytes_per_s"), bytes("copy_back_bytes_per_s"));
            row("  copies to it, and back", format!("{:.1} and {:.1} GB/s, pinned memory", to / 1e9, back / 1e9));
            row("  the kernel alone", format!("{kernel:.0} images/s, {share:.0} % of what copies move"));
        }
    }
    row("bottleneck", result["bottleneck"].as_str().unwrap_or_default().to_owned());
    for stage in result["stages"].as_array().into_iter().flatten() {
        let time = |key: &str| stage[key].as_f64().unwrap_or(0.0);
        let name = format!("stage {}", stage["name"].as_str().unwrap_or_default());
        let (busy, input, output) = (time("busy_s"), time("waiting_in_s"), time("waiting_out_s"));
        let items = &stage["items"];
        row(&name, format!("{items} items, busy {busy:.2} s, waiting in {input:.2} s, waiting out {output:.2} s"));
    }
    out
}

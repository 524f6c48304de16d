//! `mixd bench`: how fast a daemon delivers to separate trainer processes, and what share of the machine's ceiling that is.

use super::bench_trainer::{Counted, Report, Touch};
use super::options::{Cache, DataArgs, PipelineArgs};
use super::own_daemon::OwnDaemon;
use crate::client;
use crate::config::FeedSpec;
use crate::control::proto;
use crate::dataset::Dataset;
use crate::image::Loader;
use crate::pipeline::BATCHES_AHEAD;
use crate::ring::now_ns;
use crate::sampler::Sampler;
use crate::types::{Dtype, ImageSize, Split};
use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Measure images per second through a daemon of its own and separate trainer processes.
#[derive(Debug, Args)]
pub struct Bench {
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// Element type: f32, f16, bf16 or u8.
    #[arg(long, env = "MIXD_DTYPE", default_value = "f32")]
    dtype: Dtype,
    /// Rows a batch.
    #[arg(long, env = "MIXD_BATCH_SIZE", default_value_t = 64)]
    batch_size: u32,
    /// Side of the images, or HEIGHTxWIDTH.
    #[arg(long, env = "MIXD_SIZE", default_value = "128")]
    size: ImageSize,
    /// Slots of each ring.
    #[arg(long, env = "MIXD_SLOTS", default_value_t = 4)]
    slots: u32,
    /// Trainer processes, each with a private feed.
    #[arg(long, env = "MIXD_TRAINERS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    trainers: u32,
    /// Images that each trainer counts, rounded up to a batch.
    #[arg(long, env = "MIXD_IMAGES", conflicts_with = "seconds", value_parser = clap::value_parser!(u64).range(1..))]
    images: Option<u64>,
    /// Seconds that each trainer counts for.
    #[arg(long, env = "MIXD_SECONDS", default_value_t = 5.0)]
    seconds: f64,
    /// Batches that each trainer reads before it counts [default: what is in flight; with a cache, an epoch more].
    #[arg(long, env = "MIXD_WARMUP")]
    warmup: Option<u64>,
    /// What trainers read: the header and an element of every image, or all bytes.
    #[arg(long, env = "MIXD_TOUCH", default_value = "element")]
    touch: Touch,
    /// Measure the machine's ceilings first: decode + resize with nothing else, and writing finished batches to memory.
    #[arg(long, env = "MIXD_CEILING")]
    ceiling: bool,
    /// Print one line of JSON at the end.
    #[arg(long, env = "MIXD_JSON")]
    json: bool,
}

/// How long each ceiling is measured.
const CEILING_TIME: Duration = Duration::from_millis(1500);

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
        let spec = FeedSpec {
            batch_size: self.batch_size,
            image_size: self.size,
            dtype: self.dtype,
            slots: self.slots,
            ..FeedSpec::train()
        };
        spec.validate()?;
        let dataset = self.data.open()?;
        let batches = Sampler::new(spec, dataset.samples(spec.split).len() as u32)?.batches();
        let cached = self.pipeline.cache != Cache::Off;
        let in_flight = u64::from(self.slots) + BATCHES_AHEAD as u64 + 1;
        let warmup = self.warmup.unwrap_or(in_flight + if cached { batches } else { 0 });
        let ceiling = self.ceiling.then(|| Ceiling::measure(&dataset, &spec, self.pipeline.workers));

        let started_ns = now_ns();
        let daemon = OwnDaemon::start(&self.data.data, &self.pipeline.arguments())?;
        let mut trainers =
            (0..self.trainers).map(|nth| self.trainer(&daemon, warmup, nth)).collect::<anyhow::Result<Vec<_>>>()?;
        let mut first_batch_ns = u64::MAX;
        for trainer in &mut trainers {
            match trainer.report()? {
                Report::Warm { first_batch_ns: first } => first_batch_ns = first_batch_ns.min(first),
                Report::Done(_) => anyhow::bail!("a trainer was done before it counted"),
            }
        }
        let (before, window) = (client::status(daemon.socket())?, Instant::now());
        for trainer in &mut trainers {
            drop(trainer.child.stdin.take());
        }
        let mut counted = Vec::new();
        for trainer in &mut trainers {
            match trainer.report()? {
                Report::Done(done) => counted.push(done),
                Report::Warm { .. } => anyhow::bail!("a trainer is warm twice"),
            }
        }
        let (after, window) = (client::status(daemon.socket())?, window.elapsed());
        drop(trainers);
        drop(daemon);
        let first_batch_ms = first_batch_ns.saturating_sub(started_ns) as f64 / 1e6;
        let result = self.result(&counted, &before, &after, window, first_batch_ms, ceiling.as_ref());
        if self.json {
            println!("{result}")
        } else {
            print!("{}", table(&result))
        }
        Ok(())
    }

    fn trainer(&self, daemon: &OwnDaemon, warmup: u64, nth: u32) -> anyhow::Result<Trainer> {
        let touch = match self.touch {
            Touch::Element => "element",
            Touch::All => "all",
        };
        let mut command = Command::new(super::program()?);
        command.env_remove("MIXD_CONFIG").arg("bench-trainer").arg("--socket").arg(daemon.socket());
        let options = [
            ("touch", touch.to_owned()),
            ("warmup", warmup.to_string()),
            ("images", self.images.unwrap_or(0).to_string()),
            ("seconds", self.seconds.to_string()),
            ("batch-size", self.batch_size.to_string()),
            ("size", self.size.to_string()),
            ("dtype", self.dtype.to_string()),
            ("slots", self.slots.to_string()),
            ("seed", nth.to_string()),
        ];
        command.args(options.map(|(key, value)| format!("--{key}={value}")));
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start a trainer")?;
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Ok(Trainer { child, lines })
    }

    fn result(
        &self,
        counted: &[Counted],
        before: &proto::Status,
        after: &proto::Status,
        window: Duration,
        first_batch_ms: f64,
        ceiling: Option<&Ceiling>,
    ) -> Value {
        let images: u64 = counted.iter().map(|one| one.images).sum();
        let images_per_s: f64 = counted.iter().map(|one| one.images as f64 / one.seconds).sum();
        let seconds = counted.iter().map(|one| one.seconds).fold(0.0, f64::max);
        let cpu_seconds = after.cpu_s - before.cpu_s;
        // The daemon runs ahead of trainers by what is in flight, so its work is set against what it mixed itself.
        let mixed = |status: &proto::Status| status.stages.iter().find(|s| s.name == "mix").map_or(0, |s| s.items);
        let mixed_images = (mixed(after) - mixed(before)) as f64 * f64::from(self.batch_size);
        let mut handoff_us: Vec<f64> = counted.iter().flat_map(|one| one.handoff_us.clone()).collect();
        handoff_us.sort_by(f64::total_cmp);
        let quantile = |q: f64| {
            let last = handoff_us.len().checked_sub(1)?;
            Some(handoff_us[(last as f64 * q).round() as usize])
        };
        let stages: Vec<Value> = after.stages.iter().zip(&before.stages).map(|(a, b)| stage(a, b)).collect();
        let warm = self.pipeline.cache != Cache::Off;
        let ceiling_images_per_s = ceiling.map(|ceiling| if warm { ceiling.write } else { ceiling.decode });
        json!({
            "images_per_s": images_per_s,
            "images": images,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "cpu_ms_per_1000_images": if mixed_images > 0.0 { Some(cpu_seconds * 1e6 / mixed_images) } else { None },
            "trainer_cpu_seconds": counted.iter().map(|one| one.cpu_seconds).sum::<f64>(),
            "peak_rss_mb": after.peak_rss_bytes as f64 / 1e6,
            "first_batch_ms": first_batch_ms,
            "ceiling_images_per_s": ceiling_images_per_s,
            "share_of_ceiling": ceiling_images_per_s.map(|ceiling| images_per_s / ceiling),
            "ceiling": ceiling.map(|ceiling| json!({
                "kind": if warm { "memory write" } else { "decode + resize" },
                "decode_images_per_s": ceiling.decode,
                "memory_write_images_per_s": ceiling.write,
            })),
            "handoff_us_p50": quantile(0.5),
            "handoff_us_p99": quantile(0.99),
            "handoffs": handoff_us.len(),
            "bottleneck": bottleneck(&stages, window.as_secs_f64()),
            "stages": stages,
            "trainers": counted.len(),
            "workers": after.decode_workers,
            "mixer": after.mixer,
            "dtype": self.dtype.name(),
            "batch_size": self.batch_size,
            "size": self.size.to_string(),
            "cache": warm,
        })
    }
}

fn stage(after: &proto::Stage, before: &proto::Stage) -> Value {
    json!({
        "name": after.name,
        "items": after.items - before.items,
        "busy_s": after.busy_s - before.busy_s,
        "waiting_in_s": after.waiting_in_s - before.waiting_in_s,
        "waiting_out_s": after.waiting_out_s - before.waiting_out_s,
        "threads": after.threads,
    })
}

/// The stage that is busy for the largest share of its threads' time; the trainers, where the mixers mostly wait for them.
fn bottleneck(stages: &[Value], window_s: f64) -> String {
    let share = |stage: &Value, key: &str| {
        let threads = stage["threads"].as_f64().unwrap_or(1.0).max(1.0);
        stage[key].as_f64().unwrap_or(0.0) / (threads * window_s)
    };
    let mix = stages.iter().find(|stage| stage["name"] == "mix");
    if mix.is_some_and(|mix| share(mix, "waiting_out_s") > 0.5) {
        return "trainer".to_owned();
    }
    let busiest = stages.iter().max_by(|a, b| share(a, "busy_s").total_cmp(&share(b, "busy_s")));
    busiest.and_then(|stage| stage["name"].as_str()).unwrap_or("unknown").to_owned()
}

/// What the machine can do at best, in images a second.
struct Ceiling {
    /// Decode and resize with nothing else, on as many threads as the daemon has workers.
    decode: f64,
    /// Writing finished images to the slots of a ring, in one thread as the mixer of a feed does.
    write: f64,
}

impl Ceiling {
    fn measure(dataset: &Dataset, spec: &FeedSpec, workers: usize) -> Self {
        Self { decode: decode_ceiling(dataset, spec, workers), write: write_ceiling(spec) }
    }
}

fn decode_ceiling(dataset: &Dataset, spec: &FeedSpec, workers: usize) -> f64 {
    let samples = dataset.samples(Split::Train).len() as u64;
    let next = AtomicU64::new(0);
    // Once over the first files, so that neither the page cache nor the processor's clock starts cold.
    let run = |until: Instant| {
        let done = AtomicU64::new(0);
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    let (mut loader, mut out) = (Loader::new(), vec![0; spec.image_size.values()]);
                    while Instant::now() < until {
                        let sample = next.fetch_add(1, Ordering::Relaxed) % samples;
                        let path = dataset.path_of(Split::Train, sample as u32);
                        if loader.load(&path, spec.image_size, &mut out).is_ok() {
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        done.into_inner() as f64 / start.elapsed().as_secs_f64()
    };
    run(Instant::now() + CEILING_TIME / 5);
    run(Instant::now() + CEILING_TIME)
}

fn write_ceiling(spec: &FeedSpec) -> f64 {
    let batch_bytes = spec.batch_size as usize * spec.format().image_bytes();
    let mut slots: Vec<Vec<u8>> = (0..spec.slots).map(|_| vec![1; batch_bytes]).collect();
    let (mut images, start) = (0_u64, Instant::now());
    let mut value = 0_u8;
    while start.elapsed() < CEILING_TIME {
        for slot in &mut slots {
            value = value.wrapping_add(1);
            slot.fill(value);
            std::hint::black_box(&slot[batch_bytes / 2]);
            images += u64::from(spec.batch_size);
        }
    }
    images as f64 / start.elapsed().as_secs_f64()
}

fn table(result: &Value) -> String {
    use std::fmt::Write;
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
    row("images", result["images"].to_string());
    row("seconds", text(number("seconds"), " s"));
    row("daemon CPU", text(number("cpu_seconds"), " s"));
    row("  per 1,000 images", text(number("cpu_ms_per_1000_images"), " ms"));
    row("trainers' CPU", text(number("trainer_cpu_seconds"), " s"));
    row("daemon's largest memory", text(number("peak_rss_mb"), " MB"));
    row("first batch after", text(number("first_batch_ms"), " ms"));
    row("hand-off, median", text(number("handoff_us_p50"), " µs"));
    row("hand-off, 99 %", text(number("handoff_us_p99"), " µs"));
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

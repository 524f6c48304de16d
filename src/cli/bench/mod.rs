//! `mixd bench`: how fast a daemon delivers to separate trainer processes, and what share of the machine's ceiling that is.

mod ceiling;
mod child;
#[cfg(feature = "cuda")]
mod device_ceiling;
#[cfg(feature = "cuda")]
mod device_reader;
mod measured;
mod report;
mod result;
mod round;
mod table;
mod trainer;

pub use trainer::BenchTrainer;

use super::options::{Cache, DataArgs, PipelineArgs};
use super::own_daemon::OwnDaemon;
use crate::client;
use crate::pipeline::in_flight;
use crate::plan::Sampler;
use crate::ring::now_ns;
use crate::spec::{FeedOptions, FeedSpec, ShareName};
use crate::types::Device;
use ceiling::Ceiling;
use child::Trainer;
use clap::Args;
use report::{Report, Touch};
use round::{Round, median, round};
use std::path::PathBuf;

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
    /// Measure the machine's ceilings before each round: decoding and rendering with nothing else, rendering with the mix,
    /// writing finished batches to memory, waking a thread.
    #[arg(long, env = "MIXD_CEILING")]
    ceiling: bool,
    /// With --device cuda: have batches copied back into main memory, where trainers read them, in place of leaving them on the device.
    #[arg(long, env = "MIXD_COPY_BACK")]
    copy_back: bool,
    /// Print one line of JSON at the end.
    #[arg(long, env = "MIXD_JSON")]
    json: bool,
}

impl Bench {
    pub fn run(self) -> anyhow::Result<()> {
        anyhow::ensure!(self.seconds > 0.0 && self.seconds <= 3600.0, "--seconds must be above 0 and at most 3600");
        // Views of the largest size: rates and ceilings are those of one.
        let spec = FeedSpec { device: self.batch_device(), grow: None, ..self.feed.spec()? };
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
        let batches = Sampler::new(spec, source.numbering(spec.split))?.batches();
        let cached = self.pipeline.cache != Cache::Off;
        let in_flight = in_flight(spec.slots);
        let warmup = self.warmup.unwrap_or(in_flight + if cached { batches } else { 0 });
        let started_ns = now_ns();
        let daemon = OwnDaemon::start(&self.data, &self.pipeline.arguments())?;
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
        super::print(|out| if self.json { writeln!(out, "{result}") } else { write!(out, "{}", table::table(&result)) })
    }

    /// In whose memory batches lie.
    fn batch_device(&self) -> Device {
        if self.copy_back { Device::Cpu } else { self.pipeline.batch_device() }
    }
}

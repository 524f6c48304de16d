//! One trainer of `mixd bench`, a process of its own: reads batches, touches them and counts.

#[cfg(feature = "cuda")]
use super::device_reader::DeviceReader;
use super::report::{Counted, Report, Touch};
use crate::cli::options::JoinArgs;
use crate::client::{self, Batch, Feed};
use crate::pipeline::in_flight;
use crate::ring::now_ns;
use crate::spec::FeedOptions;
use crate::spec::FeedSpec;
use crate::types::Device;
use clap::Args;
use std::io::Write;
use std::path::PathBuf;

/// Read batches for `mixd bench`.
#[derive(Debug, Args)]
pub struct BenchTrainer {
    #[arg(long)]
    socket: PathBuf,
    #[arg(long)]
    touch: Touch,
    /// Batches to read before counting.
    #[arg(long)]
    warmup: u64,
    /// Images to count in a round; 0 for as many as the seconds allow.
    #[arg(long)]
    images: u64,
    /// Seconds to count for in a round.
    #[arg(long)]
    seconds: f64,
    /// Microseconds to work on each batch, as a trainer would.
    #[arg(long, default_value_t = 0)]
    step_us: u64,
    /// In whose memory batches lie.
    #[arg(long, default_value = "cpu")]
    device: Device,
    #[command(flatten)]
    feed: FeedOptions,
    #[command(flatten)]
    join: JoinArgs,
}

impl BenchTrainer {
    pub fn run(self) -> anyhow::Result<()> {
        let spec = FeedSpec { device: self.device, grow: None, ..self.join.spec(self.feed.spec()?)? };
        let mut reader = Reader::new(&spec)?;
        let reconnect = self.join.reconnect()?;
        let attach = || client::attach_for(&self.socket, &spec, reconnect);
        let start_ns = now_ns();
        let mut feed = attach()?;
        let attach_ns = now_ns() - start_ns;
        let mut checksum = 0_u64;
        let mut first_batch_ns = u64::MAX;
        for nth in 0..self.warmup {
            let batch = feed.next_batch()?;
            if nth == 0 {
                first_batch_ns = now_ns();
            }
            checksum ^= self.step(&batch, &reader)?;
        }
        // Who shares a feed leaves it between rounds: the others would wait for a trainer that does not read.
        let mut feed = spec.share.is_none().then_some(feed);
        say(&Report::Warm { attach_ns, first_batch_ns })?;
        // A line on standard input asks for a round.
        for line in std::io::stdin().lines() {
            line?;
            let mut reading = feed.take().map_or_else(&attach, Ok)?;
            for _ in 0..in_flight(spec.slots) {
                checksum ^= self.step(&reading.next_batch()?, &reader)?;
            }
            say(&Report::Counting)?;
            let counted = self.round(&mut reading, &mut reader, checksum)?;
            feed = spec.share.is_none().then_some(reading);
            checksum = counted.checksum;
            say(&Report::Round(counted))?;
        }
        Ok(())
    }

    fn round(&self, feed: &mut Feed, reader: &mut Reader, mut checksum: u64) -> anyhow::Result<Counted> {
        let (start, usage) = (now_ns(), crate::usage::own());
        let (mut images, mut handoff_us) = (0, Vec::with_capacity(1 << 16));
        let seconds = loop {
            let batch = next(feed, &mut handoff_us)?;
            checksum ^= self.step(&batch, reader)?;
            images += batch.view().len() as u64;
            drop(batch);
            let seconds = (now_ns() - start) as f64 / 1e9;
            if (self.images > 0 && images >= self.images) || (self.images == 0 && seconds >= self.seconds) {
                // Nothing counts that a device has not read.
                checksum ^= reader.finish()?;
                break (now_ns() - start) as f64 / 1e9;
            }
        };
        let cpu_seconds = (crate::usage::own().cpu - usage.cpu).as_secs_f64();
        Ok(Counted { images, seconds, cpu_seconds, handoff_us, checksum })
    }

    /// What a trainer does with a batch.
    fn step(&self, batch: &Batch, reader: &Reader) -> anyhow::Result<u64> {
        let done = now_ns() + self.step_us * 1_000;
        let checksum = reader.touch(batch, self.touch)?;
        while now_ns() < done {
            std::hint::spin_loop();
        }
        Ok(checksum)
    }
}

/// The next batch; where it had to be waited for, how long after its publication it was here.
fn next(feed: &mut Feed, handoff_us: &mut Vec<f64>) -> anyhow::Result<Batch> {
    let waited = !feed.is_ready();
    let batch = feed.next_batch()?;
    if waited {
        handoff_us.push(now_ns().saturating_sub(batch.header().published_ns) as f64 / 1e3);
    }
    Ok(batch)
}

/// Reads batches where they lie.
enum Reader {
    Memory,
    #[cfg(feature = "cuda")]
    Device(DeviceReader),
}

impl Reader {
    fn new(spec: &FeedSpec) -> anyhow::Result<Self> {
        match spec.device {
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => Ok(Self::Device(DeviceReader::new(ordinal, spec)?)),
            // A build without CUDA is told so when it attaches.
            _ => Ok(Self::Memory),
        }
    }

    fn touch(&self, batch: &Batch, touch: Touch) -> anyhow::Result<u64> {
        let view = batch.view();
        let header = view.head.epoch
            ^ view.head.index
            ^ view.lambda.iter().map(|lambda| u64::from(lambda.to_bits())).sum::<u64>();
        let x = match (self, view.x_on_device) {
            #[cfg(feature = "cuda")]
            (Self::Device(reader), Some(on_device)) => {
                reader.touch(batch, on_device, touch)?;
                0
            }
            _ => match touch {
                Touch::Element => view.x.iter().step_by(view.x.len() / view.len()).map(|&byte| u64::from(byte)).sum(),
                Touch::All => xxhash_rust::xxh3::xxh3_64(view.x),
            },
        };
        Ok(header.wrapping_add(x))
    }

    fn finish(&mut self) -> anyhow::Result<u64> {
        match self {
            Self::Memory => Ok(0),
            #[cfg(feature = "cuda")]
            Self::Device(reader) => Ok(reader.finish()?),
        }
    }
}

fn say(report: &Report) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, report)?;
    Ok(writeln!(out)?)
}

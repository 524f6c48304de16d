//! The result of a bench as JSON: medians over rounds, and ratios that were taken in each.

use super::Bench;
use super::measured::DeviceMeasured;
use super::round::{Round, median, typical};
use crate::cli::options::Cache;
use crate::spec::FeedSpec;
use crate::status::{Mixed, Stage};
use crate::types::Device;
use serde_json::{Value, json};

/// The rounds of a bench, of one feed spec.
struct Rounds<'a> {
    bench: &'a Bench,
    spec: &'a FeedSpec,
    rounds: &'a [Round],
}

impl Bench {
    /// The result of all rounds.
    pub(super) fn result(
        &self,
        spec: &FeedSpec,
        rounds: &[Round],
        first_batch_ms: f64,
        attach_ms: Option<f64>,
    ) -> Value {
        let of = Rounds { bench: self, spec, rounds };
        let over = |figure: &dyn Fn(&Round) -> Option<f64>| of.median(figure);
        let counted = || rounds.iter().flat_map(|round| &round.trainers);
        let handoff_us: Vec<f64> = counted().flat_map(|one| one.handoff_us.clone()).collect();
        let handoffs = handoff_us.len();
        let [handoff_us_p50, handoff_us_p99] = quantiles(handoff_us);
        let last = &rounds.last().expect("at least one round").after;
        let (stages, verdict) = (stages(rounds), typical(rounds).verdict());
        let views_bytes = last.stores.iter().map(|store| store.bytes).sum::<u64>();
        let sources_bytes = last.sources.iter().map(|kept| kept.bytes).sum::<u64>();
        json!({
            "images_per_s": over(&|round| Some(round.images_per_s())),
            "images": counted().map(|one| one.images).sum::<u64>(),
            "seconds": rounds.iter().map(Round::seconds).sum::<f64>(),
            "rounds": rounds.iter().map(|round| json!({
                "images_per_s": round.images_per_s(),
                "ceiling_images_per_s": of.ceiling(round).map(|(_, rate)| rate),
            })).collect::<Vec<_>>(),
            "cpu_seconds": rounds.iter().map(Round::cpu_seconds).sum::<f64>(),
            "cpu_ms_per_1000_images": over(&|round| round.cpu_ms_per_1000_images()),
            "trainer_cpu_seconds": counted().map(|one| one.cpu_seconds).sum::<f64>(),
            "peak_rss_mb": last.peak_rss_bytes as f64 / 1e6,
            "store_mb": (views_bytes + sources_bytes) as f64 / 1e6,
            "rings_mb": last.feeds.iter().map(|feed| feed.ring_bytes).sum::<u64>() as f64 / 1e6,
            "first_batch_ms": first_batch_ms,
            "attach_ms": attach_ms,
            "ceiling_images_per_s": over(&|round| Some(of.ceiling(round)?.1)),
            "share_of_ceiling": over(&|round| Some(round.images_per_s() / of.ceiling(round)?.1)),
            "ceiling": of.ceilings(),
            "handoff_us_p50": handoff_us_p50,
            "handoff_us_p99": handoff_us_p99,
            "handoffs": handoffs,
            "share": self.share,
            "alone": of.alone(),
            "python": over(&|round| Some(round.python.as_ref()?.images_per_s())).map(|images_per_s| json!({
                "images_per_s": images_per_s,
                "of_rust": over(&|round| Some(round.python.as_ref()?.images_per_s() / round.images_per_s())),
            })),
            "device": of.device(),
            "bottleneck": verdict.bound,
            "verdict": verdict.to_json(),
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
            "cache": self.pipeline.cache != Cache::Off,
        })
    }
}

impl Rounds<'_> {
    /// The median of a figure over the rounds that have it.
    fn median(&self, figure: &dyn Fn(&Round) -> Option<f64>) -> Option<f64> {
        median(self.rounds.iter().filter_map(figure).collect())
    }

    /// Bytes of a sample, and of a finished image.
    fn bytes(&self) -> (f64, f64) {
        (self.spec.image_size.values() as f64, self.spec.format().image_bytes() as f64)
    }

    /// The ceiling of this bench: what it is, and its images a second. What a batch that a device mixes must move at least: where it goes
    /// back to main memory, itself; else its samples once over the bus, or, of those that are there, read and written once.
    fn ceiling(&self, round: &Round) -> Option<(&'static str, f64)> {
        let (pipeline, renders) = (&self.bench.pipeline, self.spec.renders());
        let (warm, resident) = (pipeline.cache != Cache::Off, pipeline.device_cache != Cache::Off);
        let on_device = self.bench.batch_device() != Device::Cpu;
        let (sample_bytes, image_bytes) = self.bytes();
        let at = round.ceiling.as_ref()?;
        Some(match &at.device {
            _ if !warm && renders => ("decode + render", at.decode),
            _ if !warm => ("decode + resize", at.decode),
            _ if renders => ("render + mix", at.render_and_mix.unwrap_or_default()),
            Some(device) if !on_device => ("pinned copy from the device", device.copy_back / image_bytes),
            Some(device) if resident => ("device memory copy", device.copy / (sample_bytes + image_bytes)),
            Some(device) => ("pinned copy to the device", device.host_copy / sample_bytes),
            None => ("memory write", at.write),
        })
    }

    /// All ceilings of the processor; `None` where they were not measured.
    fn ceilings(&self) -> Option<Value> {
        let wake_us = self.rounds.iter().flat_map(|round| round.ceiling.iter().flat_map(|at| at.wake_us.clone()));
        let [wake_us_p50, wake_us_p99] = quantiles(wake_us.collect());
        let (kind, _) = self.ceiling(&self.rounds[0])?;
        Some(json!({
            "kind": kind,
            "decode_images_per_s": self.median(&|round| Some(round.ceiling.as_ref()?.decode)),
            "render_images_per_s": self.median(&|round| round.ceiling.as_ref()?.render),
            "render_and_mix_images_per_s": self.median(&|round| round.ceiling.as_ref()?.render_and_mix),
            "memory_write_images_per_s": self.median(&|round| Some(round.ceiling.as_ref()?.write)),
            "wake_us_p50": wake_us_p50,
            "wake_us_p99": wake_us_p99,
        }))
    }

    /// The trainer that read alone, and those that shared a feed in comparison.
    fn alone(&self) -> Option<Value> {
        let images_per_s = self.median(&|round| Some(round.alone.as_ref()?.images_per_s()))?;
        let slowest = |round: &Round| Some(round.slowest() / round.alone.as_ref()?.images_per_s());
        let cpu = |round: &Round| {
            let alone = round.alone.as_ref()?.cpu_ms_per_1000_images()?;
            Some(round.cpu_ms_per_1000_images()? / alone)
        };
        Some(json!({
            "images_per_s": images_per_s,
            "cpu_ms_per_1000_images": self.median(&|round| round.alone.as_ref()?.cpu_ms_per_1000_images()),
            "slowest_trainer_of_alone": self.median(&slowest),
            "cpu_of_alone": self.median(&cpu),
        }))
    }

    /// What moved to, from and on the device that mixes, and what it can move.
    fn device(&self) -> Option<Value> {
        let pipeline = &self.bench.pipeline;
        if pipeline.batch_device() == Device::Cpu {
            return None;
        }
        let (sample_bytes, image_bytes) = self.bytes();
        let moved = |of: fn(&Mixed) -> u64| self.median(&|round| Some(round.mixed(of) / round.mixed_images()?));
        let ceiling =
            |of: fn(&DeviceMeasured) -> f64| self.median(&|round| round.ceiling.as_ref()?.device.as_ref().map(of));
        let first = self.rounds[0].ceiling.as_ref().and_then(|at| at.device.as_ref());
        let last = &self.rounds.last().expect("at least one round").after;
        Some(json!({
            "ordinal": pipeline.device.to_string(),
            "name": first.map(|device| device.name.clone()),
            "resident_mb": last.stores.iter().map(|store| store.device_bytes).sum::<u64>() as f64 / 1e6,
            "to_device_bytes_per_image": moved(|mixed| mixed.to_device_bytes),
            "from_device_bytes_per_image": moved(|mixed| mixed.from_device_bytes),
            // Torch's operations are not counted.
            "on_device_bytes_per_image": moved(|mixed| mixed.on_device_bytes).filter(|&bytes| bytes > 0.0),
            "copy_bytes_per_s": ceiling(|at| at.copy),
            "host_copy_bytes_per_s": ceiling(|at| at.host_copy),
            "copy_back_bytes_per_s": ceiling(|at| at.copy_back),
            "kernel_images_per_s": ceiling(|at| at.kernel),
            "kernel_share_of_copy": self.median(&|round| {
                let device = round.ceiling.as_ref()?.device.as_ref()?;
                Some(device.kernel * (sample_bytes + image_bytes) / device.copy)
            }),
        }))
    }
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

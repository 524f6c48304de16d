//! A status as JSON, as `mixd status --json` prints it.

use super::{BadSample, Feed, Status, Trainer, Verdict};
use serde_json::{Value, json};

impl Status {
    /// All of it but the classes and the recipe.
    pub fn to_json(&self) -> Value {
        let s = self;
        json!({
            "pid": s.pid, "version": s.version, "data": s.data, "notes": s.notes, "uptime_s": s.uptime_s, "cpu_s": s.cpu_s,
            "peak_rss_bytes": s.peak_rss_bytes, "decode_workers": s.decode_workers, "mixer": s.mixer,
            "jpeg_decoder": s.jpeg_decoder, "decode_warnings": s.decode_warnings,
            "last_decode_warning": s.last_decode_warning.as_ref().map(bad_sample),
            "train_samples": s.train_samples, "val_samples": s.val_samples, "draining": s.draining,
            "stores": s.stores.iter().map(|x| json!({
                "split": x.split, "height": x.size.height, "width": x.size.width, "samples": x.samples, "capacity": x.capacity,
                "decoded": x.decoded, "bytes": x.bytes, "device_bytes": x.device_bytes, "view": x.view,
            })).collect::<Vec<_>>(),
            "sources": s.sources.iter().map(|x| json!({
                "split": x.split, "size": x.size, "samples": x.samples, "kept": x.kept, "decoded": x.decoded, "bytes": x.bytes,
            })).collect::<Vec<_>>(),
            "fetched": s.fetched.map(|x| json!({
                "bytes": x.bytes, "requests": x.requests, "retries": x.retries, "evictions": x.evictions,
                "cached_bytes": x.cached_bytes, "budget_bytes": x.budget_bytes,
            })),
            "feeds": s.feeds.iter().map(feed).collect::<Vec<_>>(),
            "bad_samples": s.bad_samples.iter().map(bad_sample).collect::<Vec<_>>(),
            "stages": s.stages.iter().map(|x| json!({
                "name": x.name, "items": x.items, "busy_s": x.busy_s, "waiting_in_s": x.waiting_in_s,
                "waiting_out_s": x.waiting_out_s, "threads": x.threads,
            })).collect::<Vec<_>>(),
            "read_bytes": s.read_bytes,
            "verdict": s.verdict.as_ref().map(Verdict::to_json),
        })
    }
}

impl Verdict {
    /// All of it.
    pub fn to_json(&self) -> Value {
        let Self { bound, text, seconds, images_per_s, headroom_images_per_s } = self;
        json!({
            "bound": bound, "text": text, "seconds": seconds, "images_per_s": images_per_s,
            "headroom_images_per_s": headroom_images_per_s,
        })
    }
}

fn bad_sample(x: &BadSample) -> Value {
    json!({"split": x.split, "sample_id": x.sample_id, "path": x.name, "cause": x.cause})
}

fn trainer(x: &Trainer) -> Value {
    json!({
        "pid": x.pid, "name": x.name, "reader": x.reader, "read": x.read, "skipped": x.skipped, "waited_s": x.waited_s, "lag": x.lag,
        "epoch": x.place.epoch, "index": x.place.index, "evicted": x.evicted,
    })
}

fn feed(x: &Feed) -> Value {
    json!({
        "feed_id": x.feed_id, "published": x.published, "batches": x.batches, "ring_bytes": x.ring_bytes,
        "epoch": x.next.epoch, "index": x.next.index,
        "split": x.spec.split, "batch_size": x.spec.batch_size, "dtype": x.spec.dtype, "device": x.spec.device,
        "share": x.spec.share, "trainers": x.trainers.iter().map(trainer).collect::<Vec<_>>(),
    })
}

//! What a daemon is doing, as data: its feeds and their trainers, what it keeps, what its stages have done.

mod json;

use crate::spec::FeedSpec;
use crate::types::{Class, ImageSize, Place, SampleId, Split};
use std::fmt;

/// What a daemon is doing.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// Its process id.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Where the data set is.
    pub data: String,
    /// What its user should know of how it was read, such as files that were left out.
    pub notes: Vec<String>,
    /// Seconds since its start.
    pub uptime_s: f64,
    /// Processor time, user and system, in seconds.
    pub cpu_s: f64,
    /// Largest resident set so far.
    pub peak_rss_bytes: u64,
    /// Decode threads.
    pub decode_workers: u32,
    /// What decodes JPEGs.
    pub jpeg_decoder: String,
    /// The mixer of feeds in main memory.
    pub mixer: String,
    /// Samples of the training split.
    pub train_samples: u32,
    /// Samples of the validation split.
    pub val_samples: u32,
    /// Views that are kept finished: those that do not depend on chance.
    pub stores: Vec<Store>,
    /// Decoded images that random views are rendered from, one entry a split.
    pub sources: Vec<Sources>,
    /// The feeds that are open.
    pub feeds: Vec<Feed>,
    /// Samples that failed to decode, each once; at most 1000.
    pub bad_samples: Vec<BadSample>,
    /// Images that were decoded with a warning of something that harms no pixel, each counted once.
    pub decode_warnings: u64,
    /// The last of them, with the warning.
    pub last_decode_warning: Option<BadSample>,
    /// What was fetched from object stores; not set where the data set is on a disk.
    pub fetched: Option<Fetched>,
    /// In the order of the data's way.
    pub stages: Vec<Stage>,
    /// Whether it opens no more feeds.
    pub draining: bool,
    /// What was mixed.
    pub mixed: Mixed,
    /// Recipe of feeds that name none, as TOML; the default recipe where not set.
    pub recipe: Option<String>,
    /// Classes in the order of their labels.
    pub classes: Vec<Class>,
    /// Bytes of encoded images read.
    pub read_bytes: u64,
    /// Idle time since the machine's start of the processors that the daemon may run on, in seconds.
    pub idle_cpu_s: f64,
    /// What bounds the trainers' rate.
    pub verdict: Option<Verdict>,
    /// Processors that the daemon may use: those that it may run on, or fewer by a quota.
    pub available_cpus: u32,
}

/// What bounds the rate of a daemon's trainers.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// `idle`, `measuring`, `trainer`, `plan`, `disk`, `decode`, `render` or `mix`.
    pub bound: String,
    /// A sentence, with the remedy.
    pub text: String,
    /// Seconds that it was measured over.
    pub seconds: f64,
    /// Images mixed a second.
    pub images_per_s: f64,
    /// Images a second more, about, that another worker brings (decode, render) or that mixd has room for (trainer), where that is known.
    pub headroom_images_per_s: Option<f64>,
}

/// The finished views of one split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    /// Of which split.
    pub split: Split,
    /// Size of a view.
    pub size: ImageSize,
    /// Crop and interpolation, such as `short_center:256 bilinear`.
    pub view: String,
    /// Samples of the split.
    pub samples: u32,
    /// Samples that fit the budget.
    pub capacity: u32,
    /// Samples that this daemon has decoded into it; those found in a cache file are not among them.
    pub decoded: u64,
    /// Bytes that the capacity takes when full.
    pub bytes: u64,
    /// Bytes of copies on CUDA devices.
    pub device_bytes: u64,
}

/// The decoded images of one split that random views are rendered from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// Of which split.
    pub split: Split,
    /// Samples of the split.
    pub samples: u32,
    /// Samples that are kept.
    pub kept: u32,
    /// Samples that this daemon has decoded; those found in a cache file are not among them.
    pub decoded: u64,
    /// Bytes that they take.
    pub bytes: u64,
    /// `full`, or the pixels that the short side is bounded by.
    pub size: String,
}

/// An open feed.
#[derive(Debug, Clone, PartialEq)]
pub struct Feed {
    /// Unique in the daemon's life.
    pub feed_id: u64,
    /// What it delivers.
    pub spec: FeedSpec,
    /// Batches published.
    pub published: u64,
    /// The next batch to be published.
    pub next: Place,
    /// Batches in each epoch.
    pub batches: u64,
    /// Shared memory of its ring.
    pub ring_bytes: u64,
    /// One, or all that share it.
    pub trainers: Vec<Trainer>,
}

/// A process that reads a feed. What it counts itself is 0 until its first batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Trainer {
    /// Its process id.
    pub pid: u32,
    /// Batches that it has read.
    pub read: u64,
    /// Batches that it has skipped (delivery latest).
    pub skipped: u64,
    /// Seconds for which it had nothing to read.
    pub waited_s: f64,
    /// Batches that are published and that it has not released.
    pub lag: u64,
    /// The oldest batch that it has not released.
    pub place: Place,
    /// Whether it was evicted, and is still attached.
    pub evicted: bool,
    /// Name of its script or program, as it reports it.
    pub name: String,
    /// Unique in its feed: a process may read one more than once.
    pub reader: u64,
}

/// An image that failed to decode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadSample {
    /// Of which split.
    pub split: Split,
    /// Which sample.
    pub sample_id: SampleId,
    /// Its name in the source.
    pub name: String,
    /// What the decoder reported.
    pub cause: String,
}

impl fmt::Display for BadSample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.cause)
    }
}

/// What a daemon has fetched from object stores since its start, and the disk cache that it keeps it in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fetched {
    /// Bytes of blocks that stores sent.
    pub bytes: u64,
    /// Requests for blocks, repeated ones among them.
    pub requests: u64,
    /// Requests of any kind that failed and were repeated.
    pub retries: u64,
    /// Objects that this daemon has evicted from the disk cache.
    pub evictions: u64,
    /// Bytes in the disk cache, those of other daemons that share it among them.
    pub cached_bytes: u64,
    /// The most bytes that are kept in it.
    pub budget_bytes: u64,
}

/// Counters of one stage of the pipeline since the start, over all its threads.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// `plan`, `read`, `decode`, `render` or `mix`. Reading, decoding and rendering share their threads.
    pub name: String,
    /// Samples (read, decode), views (render) or batches (others).
    pub items: u64,
    /// Seconds at work.
    pub busy_s: f64,
    /// Seconds without work.
    pub waiting_in_s: f64,
    /// Seconds with a result that nobody took.
    pub waiting_out_s: f64,
    /// Threads running now.
    pub threads: u32,
}

/// Images that were mixed so far, in whole batches, and bytes that CUDA devices moved for them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mixed {
    /// On a device or not.
    pub images: u64,
    /// From main memory.
    pub to_device_bytes: u64,
    /// To main memory.
    pub from_device_bytes: u64,
    /// Within devices' memory.
    pub on_device_bytes: u64,
}

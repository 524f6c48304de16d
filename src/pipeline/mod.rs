//! The pipeline: from a source and a feed spec to batches in a ring, over bounded channels.
//!
//! ```text
//! plan (1 thread a feed) ── samples, views ──► decode, render (N threads a daemon) ──► sample store, staging rows
//!   └─────────────── pending batches ────────► mix (1 thread a feed) ───────────────► slot
//! ```
//!
//! The plan stage runs ahead of the mix stage by two to [`BATCHES_AHEAD`] batches, so that samples are decoded and views
//! rendered while earlier batches are mixed. Its requests claim rows ([`crate::store`]); the mix stage waits for the rows of its batch to settle. What a batch
//! holds is decided by its plan and the files alone, never by who was faster.

mod ahead;
mod device;
mod feed;
mod ledger;
mod mix_stage;
mod owned_batch;
mod plan_stage;
mod reads;
mod render_stage;
mod request;
mod view;

pub use device::resolve;
pub use feed::{Feed, Seat};
pub use ledger::{BadSample, OnBadImage};
pub use owned_batch::OwnedBatch;
pub use view::Views;

use crate::cpus::Workers;
use crate::decode::{ExifOrientation, JPEG_DECODER};
use crate::memory;
use crate::mix::{Helpers, MixError, MixerKind};
use crate::plan::Sampler;
use crate::render::LoadOptions;
use crate::ring::RingError;
use crate::source::Source;
use crate::spec::{Crop, DealError, FeedSpec, SpecError};
use crate::stats::{Clock, Stats};
use crate::store::{Budget, FileError, Key, SampleStore, Settled, Sources};
use crate::types::{Device, Interpolation, Place, Split, Start};
use ledger::Ledger;
use mix_stage::MixStage;
use plan_stage::PlanStage;
use reads::Reads;
use render_stage::DecodePool;
use request::Requester;
use std::io;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};
use xxhash_rust::xxh3::Xxh3;

/// The most batches that a feed has in flight between plan and slot.
pub const BATCHES_AHEAD: usize = 4;

/// Finished batches that make the plan stage go on. Each wake-up costs the mix stage tens of microseconds, many times what a plan does.
const BATCHES_AT_ONCE: usize = 2;

/// Batches that a feed has in flight whose views are rendered for each use: no more than keep decode threads busy, so
/// that views are still in the caches when they are mixed.
fn rendered_ahead(batch_size: u32, workers: usize) -> usize {
    (1 + (16 * workers).div_ceil(batch_size as usize)).clamp(BATCHES_AT_ONCE, BATCHES_AHEAD)
}

/// Batches of a feed with `slots` slots that may be made before its trainer has read any: in the ring, on the way, in the
/// mixer's hands.
pub fn in_flight(slots: u32) -> u64 {
    u64::from(slots) + BATCHES_AHEAD as u64 + 1
}

/// How the pipeline is set up, for all feeds.
#[derive(Debug, Clone)]
pub struct Options {
    /// Decode threads.
    pub workers: Workers,
    /// Bytes of decoded samples to keep.
    pub cache_bytes: u64,
    /// Where decoded samples outlive the process: a file a split and size, whose name begins with this one.
    pub cache_file: Option<PathBuf>,
    /// How files become samples.
    pub load: LoadOptions,
    /// Which mixer.
    pub mixer: MixerKind,
    /// Where it mixes, for trainers that read main memory.
    pub device: Device,
    /// Bytes of decoded samples to keep on each CUDA device that feeds are mixed on; an eighth of its memory where not given.
    pub device_cache_bytes: Option<u64>,
    /// What happens to images that cannot be decoded.
    pub on_bad_image: OnBadImage,
}

impl Options {
    /// One decode thread, the CPU's mixer, samples in memory; a bad image ends its feed.
    pub fn single(cache_bytes: u64) -> Self {
        Self {
            workers: Workers::Count(NonZeroUsize::MIN),
            cache_bytes,
            cache_file: None,
            load: LoadOptions::default(),
            mixer: MixerKind::Cpu,
            device: Device::Cpu,
            device_cache_bytes: None,
            on_bad_image: OnBadImage::Fail,
        }
    }
}

/// Why a feed could not be opened. Feeds that run are untouched.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A value out of range.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Nothing to deliver.
    #[error(transparent)]
    Sampler(#[from] DealError),
    /// No such mixer.
    #[error(transparent)]
    Mix(#[from] MixError),
    /// No ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// No memory for samples.
    #[error("cannot map memory for samples: {0}")]
    Memory(io::Error),
    /// No file for samples.
    #[error(transparent)]
    CacheFile(#[from] FileError),
    /// A shared feed is past the batch to start with.
    #[error(
        "the shared feed has passed {start}: the next batch to come is {next} (start now or at the next epoch, or open a private feed)"
    )]
    Passed {
        /// Where the trainer would have begun.
        start: Place,
        /// What comes next.
        next: Place,
    },
}

/// Why a feed cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// An image cannot be decoded, and the policy is to fail.
    #[error("{0} (start the daemon with --on-bad-image substitute to go on without it)")]
    BadImage(BadSample),
    /// A class has no image left to stand in.
    #[error("no readable image of class `{class}` in {split}; the last that failed: {last}")]
    NoSubstitute {
        /// The class.
        class: String,
        /// Of which split.
        split: Split,
        /// One of its images.
        last: BadSample,
    },
    /// More than 5 % of the split cannot be read or decoded.
    #[error(
        "{bad} of {samples} images of {split} cannot be read or decoded, more than 5 %: `mixd status` lists them (restore them, and open the feed again)"
    )]
    TooManyBad {
        /// Images that fail now.
        bad: usize,
        /// Images of the split.
        samples: u32,
        /// Which split.
        split: Split,
    },
    /// The mixer failed.
    #[error(transparent)]
    Mix(#[from] MixError),
    /// A file that samples are kept in was damaged.
    #[error(transparent)]
    CacheFile(#[from] FileError),
    /// A thread of the feed panicked.
    #[error("the feed's {0} thread panicked: the daemon's log has its message (open the feed again, and report it)")]
    Panicked(&'static str),
    /// The feed was stopped, or the pipeline is being taken down.
    #[error("the feed was stopped")]
    Stopping,
}

/// A sample store and what it serves.
pub struct StoreEntry {
    /// Of which split.
    pub split: Split,
    /// How images become views.
    pub views: Views,
    /// The finished views; none where views are random.
    pub store: SampleStore,
    /// What random views are rendered from.
    pub sources: Option<Arc<Sources>>,
    budget: Arc<Budget>,
    /// What the rows take of it.
    budget_bytes: AtomicU64,
    /// Hash of everything but the files' content that the samples depend on.
    pixels_key: u64,
    /// The samples on CUDA devices.
    #[cfg(feature = "cuda")]
    residents: device::Residents,
}

/// Everything that feeds share.
struct Shared {
    source: Arc<dyn Source>,
    options: Options,
    ledger: Ledger,
    reads: Reads,
    stats: Stats,
    settled: Arc<Settled>,
    budget: Arc<Budget>,
    /// Set once, when the decoders are to end.
    stopping: AtomicBool,
}

/// The pipeline of one source.
pub struct Pipeline {
    shared: Arc<Shared>,
    pool: DecodePool,
    helpers: Arc<Helpers>,
    stores: Mutex<Vec<Arc<StoreEntry>>>,
    sources: Mutex<Vec<(Split, Arc<Sources>)>>,
}

impl Drop for StoreEntry {
    fn drop(&mut self) {
        self.release_budget();
    }
}

impl Pipeline {
    /// Starts the decode threads.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start(source: Arc<dyn Source>, options: Options) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            ledger: Ledger::default(),
            reads: Reads::default(),
            stats: Stats::default(),
            settled: Arc::default(),
            budget: Arc::new(Budget::watching(options.cache_bytes, memory::free)),
            stopping: AtomicBool::new(false),
            source,
            options,
        });
        let pool = DecodePool::start(&shared)?;
        // A mix thread and its helpers fill as many processors as decoding does.
        let helpers = Arc::new(Helpers::start(pool.threads() - 1)?);
        Ok(Self { shared, pool, helpers, stores: Mutex::default(), sources: Mutex::default() })
    }

    /// Where the samples come from.
    pub fn source(&self) -> &dyn Source {
        &*self.shared.source
    }

    /// Decode threads that were started.
    pub fn workers(&self) -> usize {
        self.pool.threads()
    }

    /// The set-up.
    pub fn options(&self) -> &Options {
        &self.shared.options
    }

    /// The stages' counters.
    pub fn stats(&self) -> &Stats {
        &self.shared.stats
    }

    /// The sample stores made so far.
    pub fn stores(&self) -> Vec<Arc<StoreEntry>> {
        self.stores.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Images that could not be read or decoded when they were last tried.
    pub fn bad_samples(&self) -> Vec<BadSample> {
        self.shared.ledger.list(self.source())
    }

    /// How many images were decoded with a warning of something that harms no pixel, and the last of them.
    pub fn decode_warnings(&self) -> (u64, Option<BadSample>) {
        self.shared.ledger.warnings()
    }

    /// The sampler of a valid spec over this data set.
    ///
    /// # Errors
    /// When the spec is out of range or leaves nothing to deliver.
    pub fn sampler(&self, spec: &FeedSpec) -> Result<Sampler, OpenError> {
        spec.validate()?;
        Ok(Sampler::new(*spec, self.source().numbering(spec.split))?)
    }

    /// Opens a feed whose first batch is `origin`, and starts its threads; with a seat for the trainer that asked for it. With `hold` the first batches stay in the ring until [`Feed::release_hold`].
    ///
    /// # Errors
    /// When the spec cannot be served; nothing is left behind.
    pub fn open(&self, spec: FeedSpec, origin: Place, hold: bool) -> Result<(Feed, Seat), OpenError> {
        let sampler = self.sampler(&FeedSpec { start: Start::At(origin), ..spec })?;
        check_memory(&spec)?;
        let (plan_stage, mix_stage, slots) = self.stages(spec)?;
        Feed::start(sampler, plan_stage, mix_stage, slots, hold)
    }

    /// Makes one batch, in memory of its own.
    ///
    /// # Errors
    /// When the spec cannot be served, the place does not exist, or an image fails as the policy says.
    pub fn batch(&self, mut spec: FeedSpec, place: Place) -> Result<OwnedBatch, BatchError> {
        spec.start = Start::At(place);
        let sampler = self.sampler(&spec)?;
        let (mut plan_stage, mut mix_stage, _) = self.stages(FeedSpec { device: Device::Cpu, ..spec })?;
        let plan = sampler.epoch(place.epoch).plan(place.index);
        let pending = plan_stage.request(plan, &mut Clock::start(&self.shared.stats.plan))?;
        Ok(OwnedBatch::mix(&mut mix_stage, pending)?)
    }

    fn stages(&self, spec: FeedSpec) -> Result<(PlanStage, MixStage, Option<device::Slots>), OpenError> {
        let Options { mixer: kind, device, .. } = self.shared.options;
        let entry = self.store(spec.split, Views::of(&spec))?;
        let (mixer, slots) = if spec.device != Device::Cpu || kind == MixerKind::Cuda {
            self.cuda_mixer(&spec, &entry)?
        } else {
            let rows = spec.batch_size as usize;
            (crate::mix::mixer(kind, device, spec.format(), rows, Arc::clone(&self.helpers))?, None)
        };
        let (shared, jobs, stopped) = (Arc::clone(&self.shared), self.pool.jobs(), Arc::default());
        let requester = Requester { shared, entry, jobs, stopped };
        // A mixer on a device begins with a batch while the one before is mixed.
        let on_cpu = spec.device == Device::Cpu && kind == MixerKind::Cpu;
        let ahead = match requester.entry.views.are_random() && on_cpu {
            true => rendered_ahead(spec.batch_size, self.workers()),
            false => BATCHES_AHEAD,
        };
        let (plan_stage, recycler) = PlanStage::new(requester.clone(), &spec, ahead)?;
        let mix_stage = MixStage::new(requester, mixer, spec, recycler);
        Ok((plan_stage, mix_stage, slots))
    }

    /// What every decoded pixel of a split depends on but the encoded images.
    fn pixel_settings(&self, split: Split) -> String {
        let LoadOptions { decode, exif, resize, sources: _ } = self.shared.options.load;
        let exif = if exif == ExifOrientation::Ignore { "" } else { " exif" };
        [env!("CARGO_PKG_VERSION"), JPEG_DECODER, decode.name(), resize.name(), split.name()].join(" ") + exif
    }

    /// [`StoreEntry::pixels_key`].
    fn pixels_key(&self, split: Split, views: &Views) -> u64 {
        let mut hash = Xxh3::new();
        hash.update(format!("{} {}", self.pixel_settings(split), views.size).as_bytes());
        let Views { crop, interpolation, size: _, augment: _ } = views;
        // The lesson's key is what it was before there were recipes.
        if (*crop, *interpolation) != (Crop::Squash, Interpolation::Bilinear) {
            hash.update(format!(" {crop} {interpolation}").as_bytes());
        }
        if views.are_random() {
            hash.update(format!(" source {}", self.shared.options.load.sources).as_bytes());
        }
        self.shared.source.hash_samples(split, &mut hash);
        hash.digest()
    }

    /// Hash of everything that kept sources depend on but the encoded images.
    fn sources_key(&self, split: Split) -> u64 {
        let mut hash = Xxh3::new();
        hash.update(format!("{} sources {}", self.pixel_settings(split), self.shared.options.load.sources).as_bytes());
        self.shared.source.hash_samples(split, &mut hash);
        hash.digest()
    }

    /// The file of this ending, where decoded images are kept in files.
    fn cache_path(&self, ending: &str) -> Option<PathBuf> {
        let mut path = self.shared.options.cache_file.clone()?.into_os_string();
        path.push(format!(".{ending}"));
        Some(path.into())
    }

    /// What random views of a split are rendered from, kept for the daemon's life, or until its file is damaged.
    fn sources(&self, split: Split) -> Result<Arc<Sources>, OpenError> {
        let mut all = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let mut can_keep = true;
        if let Some(at) = all.iter().position(|(of, _)| *of == split) {
            let (_, sources) = &all[at];
            if sources.check().is_ok() {
                return Ok(Arc::clone(sources));
            }
            can_keep = discarded(sources.discard());
            all.swap_remove(at);
        }
        let (samples, budget) = (self.source().len(split), Arc::clone(&self.shared.budget));
        let ending = format!("{split}-sources-{}", self.shared.options.load.sources);
        let sources = match self.cache_path(&ending).filter(|_| can_keep) {
            None => Sources::new(samples, budget).map_err(OpenError::Memory)?,
            Some(path) => Sources::in_file(&path, self.sources_key(split), samples, budget)?,
        };
        let sources = Arc::new(sources);
        all.push((split, Arc::clone(&sources)));
        Ok(sources)
    }

    /// The sources of random views that are kept so far.
    pub fn all_sources(&self) -> Vec<(Split, Arc<Sources>)> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The store of a split's views; made from what is left of the budget when it is first asked for.
    fn store(&self, split: Split, views: Views) -> Result<Arc<StoreEntry>, OpenError> {
        let mut stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        // What a feed that was refused after this left behind takes nothing of the budget.
        stores.retain(|entry| Arc::strong_count(entry) > 1 || entry.store.decoded() > 0);
        let mut can_keep = true;
        if let Some(at) = stores.iter().position(|entry| (entry.split, entry.views) == (split, views)) {
            if stores[at].check_files().is_ok() {
                return Ok(Arc::clone(&stores[at]));
            }
            can_keep = discarded(stores[at].discard());
            stores.swap_remove(at);
        }
        let pixels_key = self.pixels_key(split, &views);
        let (samples, budget) = (self.source().len(split), Arc::clone(&self.shared.budget));
        let sources = views.are_random().then(|| self.sources(split)).transpose()?;
        let room = if views.are_random() { 0 } else { budget.left() };
        let (row_bytes, settled) = (views.size.values(), Arc::clone(&self.shared.settled));
        let Views { crop, interpolation, size, augment: _ } = views;
        let ending = match (crop, interpolation) {
            (Crop::Squash, Interpolation::Bilinear) => format!("{split}-{size}"),
            _ => format!("{split}-{size}-{crop}-{interpolation}"),
        };
        let store = match self.cache_path(&ending).filter(|_| can_keep && !views.are_random()) {
            None => SampleStore::new(samples, row_bytes, room, settled).map_err(OpenError::Memory)?,
            Some(path) => {
                let key = Key { key: pixels_key, samples, row_bytes };
                SampleStore::in_file(&path, key, room, settled)?
            }
        };
        let budget_bytes = AtomicU64::new(store.bytes());
        budget.take_anyway(store.bytes());
        #[cfg(feature = "cuda")]
        let residents = device::Residents::default();
        let entry = Arc::new(StoreEntry {
            split,
            views,
            store,
            sources,
            budget,
            budget_bytes,
            pixels_key,
            #[cfg(feature = "cuda")]
            residents,
        });
        stores.push(Arc::clone(&entry));
        Ok(entry)
    }
}

/// Whether a damaged file was removed, so that there can be a new one; else samples are kept in memory.
fn discarded(outcome: Result<(), FileError>) -> bool {
    outcome
        .inspect_err(|error| tracing::warn!("a damaged cache file stays, and samples are kept in memory: {error}"))
        .is_ok()
}

/// Refuses a feed whose ring and staging main memory has no room for: the kernel would kill the daemon as they fill.
fn check_memory(spec: &FeedSpec) -> Result<(), OpenError> {
    let rows = |rows: u32, bytes: usize| u64::from(rows) * bytes as u64;
    let in_ring =
        if spec.device == Device::Cpu { rows(spec.slots * spec.batch_size, spec.format().image_bytes()) } else { 0 };
    let need = in_ring + rows(BATCHES_AHEAD as u32 * spec.samples_max(), spec.image_size.values());
    match memory::free() {
        Some(free) if free < need => Err(RingError::NoMemory { need, free }.into()),
        _ => Ok(()),
    }
}

/// Why a single batch could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// The spec cannot be served.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// An image or the mixer failed.
    #[error(transparent)]
    Feed(#[from] FeedError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Crop, Mix, Shuffle};
    use crate::store::Lookup;
    use std::path::Path;
    use std::time::{Duration, Instant};

    /// A pipeline over the sample data with one decoder.
    fn start(cache_bytes: u64) -> Pipeline {
        start_on(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/sample-data")), cache_bytes)
    }

    fn start_on(data: &Path, cache_bytes: u64) -> Pipeline {
        let source = crate::source::open(&crate::source::DataSet::at(data), &mut |_| {}).unwrap();
        Pipeline::start(source, Options::single(cache_bytes)).unwrap()
    }

    #[test]
    fn views_of_a_sample_share_one_decode() {
        let (kept, decoding) = (start(1 << 30), start(0));
        let crop = Crop::RandomResizedCrop { scale: [0.1, 0.4], ratio: [0.75, 1.5] };
        let spec = FeedSpec { batch_size: 12, views: 3, crop, mix: Mix::NONE, ..FeedSpec::train() };
        let reference = kept.batch(spec, Place::default()).unwrap();
        for round in 1..4 {
            let batch = decoding.batch(spec, Place::default()).unwrap();
            assert!(batch.view().x == reference.view().x, "round {round}");
            let [decoded, rendered] =
                [&decoding.stats().decode, &decoding.stats().render].map(|stage| stage.read().items);
            assert_eq!([decoded, rendered], [4 * round, 12 * round]);
        }
    }

    /// A file that becomes damaged below the crop goes on to be served, unless the daemon has not seen it whole yet.
    #[cfg(feature = "turbojpeg")]
    #[test]
    fn after_the_first_decode_only_the_region_is_decoded() {
        let dir = tempfile::tempdir().unwrap();
        let [file, other] = ["train", "val"].map(|split| dir.path().join(split).join("n01440764/0.JPEG"));
        let sample = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/sample-data/train/n01440764"));
        let sound = std::fs::read(std::fs::read_dir(sample).unwrap().next().unwrap().unwrap().path()).unwrap();
        for file in [&file, &other] {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, &sound).unwrap();
        }
        let crop = Crop::RandomResizedCrop { scale: [0.01, 0.01], ratio: [1.0, 1.0] };
        let spec = FeedSpec { batch_size: 1, crop, mix: Mix::NONE, ..FeedSpec::train() };
        let (seen, unseen) = (start_on(dir.path(), 0), start_on(dir.path(), 0));
        let before = seen.batch(spec, Place::default()).unwrap();
        let [top, _, height, _] = before.view().crop[0];
        assert!(top + height < 100, "a crop near the bottom: choose another seed");
        let mut damaged = sound.clone();
        let at = sound.len() - 20;
        damaged[at..at + 2].copy_from_slice(&[0xFF, 0xC4]);
        std::fs::write(&file, &damaged).unwrap();
        assert!(seen.batch(spec, Place::default()).unwrap().view().x == before.view().x);
        assert!(unseen.batch(spec, Place::default()).is_err());
    }

    #[test]
    fn a_sample_that_another_feed_claimed_and_gave_up_is_decoded_by_whoever_waits_for_it() {
        let pipeline = start(1 << 30);
        let spec = FeedSpec { batch_size: 4, mix: Mix::NONE, shuffle: Shuffle::Off, ..FeedSpec::train() };
        let start = Place { epoch: 0, index: 0 };
        let entry = pipeline.store(spec.split, Views::of(&spec)).unwrap();
        // The first row of the batch, so that it was asked for once the others are there.
        let Lookup::Claimed(claim) = entry.store.request(0, |_| true) else { panic!("not claimed") };
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| pipeline.batch(spec, start).unwrap());
            let deadline = Instant::now() + Duration::from_secs(20);
            while entry.store.decoded() < 3 {
                assert!(Instant::now() < deadline, "the others are not decoded");
                std::thread::yield_now();
            }
            drop(claim);
            assert_eq!(waiting.join().unwrap().view().sample_id, [0, 1, 2, 3]);
        });
        assert_eq!(entry.store.decoded(), 4);
    }
}

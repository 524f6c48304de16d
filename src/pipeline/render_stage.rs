//! The decode and render stage: threads that turn encoded samples, or stored sources, into rows.

use super::ledger::{Fault, FaultKind};
use super::{Shared, StoreEntry, Views};
use crate::cpus::Workers;
use crate::decode::{ImageError, RegionOf};
use crate::plan::ViewPlan;
use crate::render::{Loader, SCRATCH_BYTES_MAX};
use crate::source::Stamp;
use crate::stats::{Clock, Doing};
use crate::store::{Claim, Found, SourceClaim, Sources};
use crate::types::{ImageSize, SampleId, Split};
use crossbeam_channel::{Receiver, Sender, bounded};
use smallvec::SmallVec;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64;

/// Samples that may wait for a decoder, over all feeds. Enough to keep every thread busy between two plans.
const JOBS_MAX: usize = 1_024;
/// Views of a sample up to which its job takes no allocation: as many as a preset has.
const VIEWS: usize = 8;
/// How long the pool's end waits for images that are being decoded.
const END_TIMEOUT: Duration = Duration::from_millis(500);

/// One sample to decode, into a view that is stored finished, or into views that are each rendered for one use.
pub struct Job {
    /// Which sample.
    pub sample: SampleId,
    /// What is shown of it: one view, or several of a batch.
    pub views: SmallVec<[ViewPlan; VIEWS]>,
    /// Where to, for each view.
    pub claims: SmallVec<[Claim; VIEWS]>,
    /// Height and width of a view that is rendered for one use, at most the entry's.
    pub size: ImageSize,
    /// Of which split, and how images become views.
    pub entry: Arc<StoreEntry>,
    /// Whether the row belongs to the store.
    pub stored: bool,
    /// Whether the feed that asked for it is to end.
    pub stopped: Arc<AtomicBool>,
}

impl Job {
    /// Merges `other` into this job if both need the same sample decoded, so that it is decoded once; otherwise returns it.
    pub fn join(&mut self, other: Self) -> Option<Self> {
        let needs_decode = || self.entry.sources.as_ref().is_some_and(|sources| !sources.is_kept(self.sample));
        if self.sample != other.sample || !needs_decode() {
            return Some(other);
        }
        self.views.extend(other.views);
        self.claims.extend(other.claims);
        None
    }
}

/// The decode threads; they end when the pool is dropped and every feed's sender with it.
pub struct DecodePool {
    jobs: Option<Sender<Job>>,
    shared: Arc<Shared>,
    threads: usize,
    /// Disconnected once every thread has ended.
    ended: Receiver<()>,
}

impl DecodePool {
    /// Starts as many threads as the options say.
    pub fn start(shared: &Arc<Shared>) -> io::Result<Self> {
        let (jobs, queue) = bounded(JOBS_MAX);
        let (running, ended) = bounded(0);
        let threads = shared.options.workers.count();
        for nth in 0..threads {
            let (shared, queue, running) = (Arc::clone(shared), queue.clone(), running.clone());
            let run = move || {
                work(&shared, &queue);
                drop(running);
            };
            std::thread::Builder::new().name(format!("mixd-decode-{nth}")).spawn(run)?;
        }
        Ok(Self { jobs: Some(jobs), shared: Arc::clone(shared), threads, ended })
    }

    /// How many threads there are.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Where to send jobs.
    pub fn jobs(&self) -> Sender<Job> {
        self.jobs.clone().expect("open until dropped")
    }
}

impl Drop for DecodePool {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.jobs = None;
        // A thread may hang in a read, from a network's file system say; it must not keep the process from its end.
        let _ = self.ended.recv_timeout(END_TIMEOUT);
    }
}

fn work(shared: &Shared, queue: &Receiver<Job>) {
    if shared.options.workers == Workers::Auto {
        crate::cpus::give_way();
    }
    let mut worker = Worker::new(shared);
    while let Ok(job) = queue.recv() {
        let (sample, split) = (job.sample, job.entry.split);
        // The loader guards itself against images: a panic elsewhere costs the sample alone.
        if catch_unwind(AssertUnwindSafe(|| worker.make(job))).is_err() {
            let fault = Fault { cause: ImageError::Panicked.to_string(), kind: FaultKind::Unread };
            shared.ledger.enter(&*shared.source, split, sample, fault);
            worker = Worker::new(shared);
        }
    }
}

/// Views of a sample to render.
struct RenderRequest<'a> {
    sample: SampleId,
    plans: &'a [ViewPlan],
    views: Views,
    split: Split,
    sources: &'a Sources,
    is_wanted: &'a dyn Fn() -> bool,
}

/// The part of a row that a view takes.
fn view_bytes(claim: &mut Claim, views: Views) -> &mut [u8] {
    &mut claim.bytes()[..views.size.values()]
}

/// A decode thread's scratch.
struct Worker<'a> {
    shared: &'a Shared,
    loader: Loader,
    /// The encoded image.
    bytes: Vec<u8>,
    /// A view that is going to lie in a file: another program may change what is there before it is hashed.
    view: Vec<u8>,
    reading: Clock<'a>,
    decoding: Clock<'a>,
    rendering: Clock<'a>,
}

impl<'a> Worker<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            loader: Loader::new(shared.options.load),
            bytes: Vec::new(),
            view: Vec::new(),
            reading: Clock::start(&shared.stats.read),
            decoding: Clock::start(&shared.stats.decode),
            rendering: Clock::start(&shared.stats.render),
        }
    }

    /// Does a job, unless nobody wants it any more.
    fn make(&mut self, job: Job) {
        self.decoding.lap(Doing::WaitingIn);
        let shared = self.shared;
        // The row of a store may be another feed's, too.
        let is_wanted =
            || !shared.stopping.load(Ordering::Relaxed) && (job.stored || !job.stopped.load(Ordering::Relaxed));
        if !is_wanted() {
            return;
        }
        let Job { sample, views: ref plans, mut claims, size, ref entry, stored, .. } = job;
        claims.iter_mut().for_each(Claim::bad_on_panic);
        match &entry.sources {
            None => {
                let claim = claims.pop().expect("a claim for each view");
                self.finish(sample, entry, claim, stored, &is_wanted);
            }
            Some(sources) => {
                let views = Views { size, ..entry.views };
                self.render(
                    &RenderRequest { sample, plans, views, split: entry.split, sources, is_wanted: &is_wanted },
                    claims,
                );
            }
        }
    }

    /// Makes a view that does not depend on chance, into a row of the store or of a batch's staging.
    fn finish(
        &mut self,
        sample: SampleId,
        entry: &StoreEntry,
        mut claim: Claim,
        stored: bool,
        is_wanted: &dyn Fn() -> bool,
    ) {
        let (source, split) = (&*self.shared.source, entry.split);
        let file = entry.store.rows().file().filter(|_| stored);
        // A stamp costs a look-up in the source: only where the row may hold the sample.
        if let Some(file) = file
            && file.sample_of(claim.row()) == Some(sample)
            && let Some(stamp) = source.stamp(split, sample)
            && file.holds(claim.row(), sample, stamp, claim.bytes())
        {
            claim.ready();
            return self.decoding.lap(Doing::Busy);
        }
        if let Some(file) = file {
            file.clear(claim.row());
        }
        let Some(read) = self.read(split, sample, is_wanted) else { return };
        let views = entry.views;
        let loaded = read.and_then(|stamp| {
            let geometry = |image| views.fixed(image);
            let to = match file {
                None => claim.bytes(),
                Some(_) => {
                    self.view.resize(views.size.values(), 0);
                    &mut self.view
                }
            };
            let loaded = self.loader.load(&self.bytes, views.at_least(), geometry, views.size, to);
            loaded.map(|()| stamp).map_err(|error| undecodable(&error, &self.bytes))
        });
        self.clear();
        // Before anybody learns of it: who has its samples finds them counted.
        self.decoding.count();
        match loaded {
            Ok(stamp) => {
                self.note_warning(split, sample);
                if stored {
                    entry.store.count_decoded();
                }
                if let Some(file) = file {
                    claim.bytes().copy_from_slice(&self.view);
                    file.record(claim.row(), sample, stamp, &self.view);
                }
                self.shared.ledger.clear(source, split, sample);
                claim.ready();
            }
            Err(fault) => {
                self.shared.ledger.enter(source, split, sample, fault);
                claim.bad();
            }
        }
        if self.view.len() > SCRATCH_BYTES_MAX {
            self.view = Vec::new();
        }
        self.decoding.lap(Doing::Busy);
    }

    /// Renders views for one use each, from their source where that is kept.
    fn render(&mut self, request: &RenderRequest<'_>, mut claims: SmallVec<[Claim; VIEWS]>) {
        let RenderRequest { sample, plans, views, split, sources, is_wanted } = *request;
        // What is kept or, where nothing is, the right to keep what is decoded, if there is room.
        let kept = match sources.request(sample, || !is_wanted()) {
            Found::Ready(picture) => Ok(picture),
            Found::Full => Err(None),
            Found::Claimed(source) => {
                let stamp = || self.shared.source.stamp(split, sample);
                match source.may_be_in_file().then(stamp).flatten() {
                    Some(stamp) => source.check(stamp).map_err(Some),
                    None => Err(Some(source)),
                }
            }
            Found::GaveUp => return,
        };
        let rendered = match kept {
            Ok(picture) => {
                sources.note_size(sample, picture.size());
                self.rendering.skip();
                let rendered = plans.iter().zip(&mut claims).try_for_each(|(plan, claim)| {
                    let steps = views.random(plan, picture.size());
                    let rendered = self.loader.render(&picture, &steps, views.size, view_bytes(claim, views));
                    self.rendering.count();
                    rendered
                });
                self.rendering.lap(Doing::Busy);
                self.decoding.skip();
                rendered.map_err(|error| Fault { cause: error.to_string(), kind: FaultKind::Unread })
            }
            Err(source) => match self.render_decoded(request, &mut claims, source) {
                Some(rendered) => rendered,
                None => return,
            },
        };
        let (source, ledger) = (&*self.shared.source, &self.shared.ledger);
        let settle = match rendered {
            Ok(()) => {
                ledger.clear(source, split, sample);
                Claim::ready
            }
            Err(fault) => {
                ledger.enter(source, split, sample, fault);
                Claim::bad
            }
        };
        claims.into_iter().for_each(settle);
    }

    /// Decodes a sample, stores it if `source` is claimed, and renders its views. `None` when the request was canceled.
    fn render_decoded(
        &mut self,
        request: &RenderRequest<'_>,
        claims: &mut [Claim],
        mut source: Option<SourceClaim<'_>>,
    ) -> Option<Result<(), Fault>> {
        let RenderRequest { sample, plans, views, split, sources, is_wanted } = *request;
        let read = self.read(split, sample, is_wanted)?;
        let Self { loader, bytes, decoding, rendering, .. } = self;
        let rendered = read.and_then(|stamp| {
            // An uncached image is decoded only where its views read it. The first decode is whole: whether a file is damaged must not depend on
            // the crops drawn.
            let read = |size| views.region(plans.iter().copied(), size);
            let is_sound = sources.size(sample).is_some() && self.shared.ledger.fault(split, sample).is_none();
            let region: Option<RegionOf<'_>> = if source.is_none() && is_sound { Some(&read) } else { None };
            let rendered = loader.source_region(bytes, region, |picture, maker| {
                // Before anybody learns of it: who has its samples finds them counted.
                decoding.count();
                sources.note_size(sample, picture.size());
                if let Some(source) = source.take() {
                    source.keep(picture, stamp);
                }
                decoding.lap(Doing::Busy);
                rendering.skip();
                for (plan, claim) in plans.iter().zip(claims) {
                    let steps = views.random(plan, picture.size());
                    maker.run(picture, &steps, views.size, view_bytes(claim, views));
                    rendering.count();
                }
                rendering.lap(Doing::Busy);
                decoding.skip();
            });
            rendered.map_err(|error| undecodable(&error, bytes))
        });
        self.clear();
        match &rendered {
            Ok(()) => self.note_warning(split, sample),
            Err(_) => {
                self.decoding.count();
                self.decoding.lap(Doing::Busy);
            }
        }
        Some(rendered)
    }

    /// Counts an image that was decoded with a warning.
    fn note_warning(&self, split: Split, sample: SampleId) {
        if let Some(warning) = self.loader.warning() {
            self.shared.ledger.warn(&*self.shared.source, split, sample, warning);
        }
    }

    /// Reads an encoded image; `None` when it is no longer wanted. An error, too, where its bytes are those that failed to decode before.
    fn read(
        &mut self,
        split: Split,
        sample: SampleId,
        is_wanted: &dyn Fn() -> bool,
    ) -> Option<Result<Option<Stamp>, Fault>> {
        let Shared { source, ledger, reads, stats, .. } = self.shared;
        let known = ledger.fault(split, sample);
        self.decoding.lap(Doing::Busy);
        self.reading.skip();
        let read = reads.read(&**source, (split, sample), &mut self.bytes, known.is_some(), is_wanted);
        self.reading.lap(Doing::Busy);
        self.decoding.skip();
        let read = read?;
        if read.is_ok() {
            self.reading.count();
            stats.count_read(self.bytes.len());
        }
        let read = read.map_err(|error| Fault { cause: error.to_string(), kind: FaultKind::Unread });
        Some(read.and_then(|stamp| match known {
            Some(fault) if fault.is_of(&self.bytes) => Err(fault),
            _ => Ok(stamp),
        }))
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(SCRATCH_BYTES_MAX);
    }
}

/// The fault of encoded bytes that do not decode.
fn undecodable(error: &ImageError, bytes: &[u8]) -> Fault {
    let kind = match error {
        ImageError::Memory(_) => FaultKind::NoMemory,
        _ => FaultKind::Undecodable(xxh3_64(bytes)),
    };
    Fault { cause: error.to_string(), kind }
}

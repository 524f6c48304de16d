//! Requests for samples: where each sample of a batch is, or that it be decoded.

use super::render_stage::Job;
use super::{FeedError, Shared, StoreEntry, Views};
use crate::plan::{Erasure, ImagePlan, Plan};
use crate::store::{FileError, Lookup, MappedFile, Rows, State};
use crate::types::{CropBox, ImageSize};
use crossbeam_channel::{SendTimeoutError, Sender};
use smallvec::smallvec;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often a wait that is not woken by it looks whether the feed was stopped.
pub const STOP_INTERVAL: Duration = Duration::from_millis(100);

/// Requests samples on behalf of one feed.
#[derive(Clone)]
pub struct Requester {
    /// The source and what feeds share.
    pub shared: Arc<Shared>,
    /// The store of the feed's split and size.
    pub entry: Arc<StoreEntry>,
    /// The decode stage.
    pub jobs: Sender<Job>,
    /// Set once, when the feed is to end.
    pub stopped: Arc<AtomicBool>,
}

/// Where one sample of a batch is, or will be when its decoding settles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Location {
    /// A row of the store.
    Stored(u32),
    /// A row of the batch's own staging.
    Staged(u32),
}

/// A planned batch whose samples are on their way.
pub struct Pending {
    /// What is to be made.
    pub plan: Plan,
    /// Where the rows' own images are and, when any partner comes from elsewhere, after them the rows' partners.
    pub locations: Vec<Location>,
    /// What is erased of them, in the same order; empty where the feed erases nothing.
    pub erasures: Vec<Option<Erasure>>,
    /// Rows for samples that the store has no room for.
    pub staging: Arc<Rows>,
}

impl Pending {
    /// The memory and the row of a location.
    pub fn row<'a>(&'a self, entry: &'a StoreEntry, location: Location) -> (&'a Arc<Rows>, u32) {
        match location {
            Location::Stored(row) => (entry.store.rows(), row),
            Location::Staged(row) => (&self.staging, row),
        }
    }

    /// Whether every sample is there.
    pub fn is_there(&self, requester: &Requester) -> bool {
        let is_ready = |&location: &Location| {
            let (rows, row) = self.row(&requester.entry, location);
            rows.state(row) == State::Ready
        };
        self.locations.iter().all(is_ready)
    }

    /// Waits until `image`, asked for as row `at` and expected at `location`, is there. Returns where that is; `None` when it cannot be
    /// decoded.
    ///
    /// # Errors
    /// When the feed was stopped.
    pub fn wait_for(
        &self,
        requester: &Requester,
        image: ImagePlan,
        at: u32,
        mut location: Location,
    ) -> Result<Option<Location>, FeedError> {
        loop {
            let (rows, row) = self.row(&requester.entry, location);
            match rows.wait_settled(row, || requester.is_stopped()) {
                State::Ready => return Ok(Some(location)),
                State::Bad => return Ok(None),
                State::Claimed if requester.is_stopped() => return Err(FeedError::Stopping),
                // It was bad, and is tried again for another batch.
                State::Claimed => {}
                // Whoever had claimed it stopped before it was decoded.
                State::Empty => location = requester.request(image, self.plan.image_size, &self.staging, at)?,
            }
        }
    }
}

impl StoreEntry {
    /// Checks that what a batch was made of is what was written to the files that samples are kept in.
    ///
    /// # Errors
    /// [`FileError::Damaged`].
    pub(super) fn check_batch(&self, pending: &Pending) -> Result<(), FileError> {
        let rows = self.store.rows();
        if let Some(file) = rows.file().filter(|rows| rows.file().is_suspect()) {
            for &location in &pending.locations {
                if let Location::Stored(row) = location
                    && let Some(bytes) = rows.get(row)
                {
                    file.verify(row, bytes);
                }
            }
        }
        if let Some(sources) = &self.sources
            && sources.file().is_some_and(MappedFile::is_suspect)
        {
            let images = pending.plan.rows.iter().flat_map(|row| [row.own.sample, row.partner.sample]);
            images.for_each(|sample| sources.verify(sample));
        }
        self.check_files()
    }

    /// Checks that the files that samples are kept in were not found damaged.
    ///
    /// # Errors
    /// [`FileError::Damaged`].
    pub fn check_files(&self) -> Result<(), FileError> {
        self.store.rows().file().map_or(Ok(()), |rows| rows.file().check())?;
        self.sources.as_ref().map_or(Ok(()), |sources| sources.check())
    }

    /// Removes the damaged file of its rows, where they have one, and gives back what they take of the budget.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn discard(&self) -> Result<(), FileError> {
        self.store.rows().file().map_or(Ok(()), |rows| rows.file().discard())?;
        self.release_budget();
        Ok(())
    }

    /// Gives back what the rows take of the budget, once.
    pub fn release_budget(&self) {
        self.budget.give(self.budget_bytes.swap(0, Ordering::Relaxed));
    }
}

impl Requester {
    /// Whether the feed is to end.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Has a sample located, or decoded into the store or into staging row `staged`.
    ///
    /// # Errors
    /// When the feed was stopped or the decoders are gone.
    pub fn request(
        &self,
        image: ImagePlan,
        size: ImageSize,
        staging: &Arc<Rows>,
        staged: u32,
    ) -> Result<Location, FeedError> {
        let (location, job) = self.locate(&image, size, staging, staged);
        job.map_or(Ok(()), |job| self.send(job))?;
        Ok(location)
    }

    /// The box of a decoded image that a rendered view of this size shows; zeros where views do not depend on chance.
    pub fn crop(&self, image: &ImagePlan, size: ImageSize) -> CropBox {
        let Some(sources) = &self.entry.sources else { return CropBox::default() };
        let source = sources.size(image.sample).expect("a view that was rendered");
        Views { size, ..self.entry.views }.crop_box(&image.view, source)
    }

    /// Where a sample is, or will be once the job is done.
    pub fn locate(
        &self,
        image: &ImagePlan,
        size: ImageSize,
        staging: &Arc<Rows>,
        staged: u32,
    ) -> (Location, Option<Job>) {
        let (claim, location, stored) =
            match self.entry.store.request(image.sample, |bytes| self.entry.budget.may_grow(bytes)) {
                Lookup::Row(row) => return (Location::Stored(row), None),
                Lookup::Claimed(claim) => {
                    let row = claim.row();
                    (claim, Location::Stored(row), true)
                }
                Lookup::Full => {
                    let claim = staging.claim(staged).expect("each staging row is asked for once, or again when bad");
                    (claim, Location::Staged(staged), false)
                }
            };
        let job = Job {
            sample: image.sample,
            views: smallvec![image.view],
            claims: smallvec![claim],
            size,
            entry: Arc::clone(&self.entry),
            stored,
            stopped: Arc::clone(&self.stopped),
        };
        (location, Some(job))
    }

    /// Waits for room in the decoders' queue.
    pub fn send(&self, mut job: Job) -> Result<(), FeedError> {
        while !self.is_stopped() {
            match self.jobs.send_timeout(job, STOP_INTERVAL) {
                Ok(()) => return Ok(()),
                Err(SendTimeoutError::Timeout(unsent)) => job = unsent,
                Err(SendTimeoutError::Disconnected(_)) => break,
            }
        }
        Err(FeedError::Stopping)
    }
}

/// Scratch of one batch in flight, used again and again.
pub struct Scratch {
    /// Room for where samples are.
    pub locations: Vec<Location>,
    /// Room for what is erased.
    pub erasures: Vec<Option<Erasure>>,
    /// Rows for samples that the store has no room for.
    pub staging: Arc<Rows>,
}

impl Pending {
    /// Takes the batch apart once it is finished.
    pub fn into_scratch(self) -> (Plan, Scratch) {
        let Self { plan, locations, erasures, staging } = self;
        (plan, Scratch { locations, erasures, staging })
    }
}

//! A feed: its ring, its two threads, who joins and leaves it, and how it stops.

use super::device::Slots;
use super::mix_stage::MixStage;
use super::plan_stage::PlanStage;
use super::{BATCHES_AHEAD, OpenError, Shared};
use crate::mix::MixError;
use crate::plan::Sampler;
use crate::ring::{self, Pace, ReaderId, RingError, RingHandle};
use crate::spec::Delivery;
use crate::types::{Place, Start};
use crossbeam_channel::bounded;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// An open feed. Dropping it stops it and waits for its threads.
pub struct Feed {
    ring: RingHandle,
    sampler: Sampler,
    identity: u64,
    mixer: &'static str,
    /// The slots' images of a ring on a device: their memory, and its bytes.
    slots: Option<(Arc<File>, u64)>,
    shared: Arc<Shared>,
    stopped: Arc<AtomicBool>,
    reason: Arc<Mutex<String>>,
    /// Stands in the ring for trainers that are still to come.
    hold: Mutex<Option<ReaderId>>,
    threads: Vec<JoinHandle<()>>,
}

/// A trainer's place at a feed.
#[derive(Debug, Clone)]
pub struct Seat {
    /// Which reader of the ring it is.
    pub reader: ReaderId,
    /// Its cursor's memory.
    pub cursor: Arc<File>,
    /// The first batch that it gets.
    pub start: Place,
}

impl Feed {
    /// Makes the ring, with a seat for the trainer that opens the feed, and starts the threads. With `hold` the first batches stay
    /// in the ring until [`Feed::release_hold`].
    pub(super) fn start(
        sampler: Sampler,
        plan_stage: PlanStage,
        mix_stage: MixStage,
        slots: Option<Slots>,
        hold: bool,
    ) -> Result<(Self, Seat), OpenError> {
        let (spec, shared, stopped) = (*mix_stage.spec(), mix_stage.shared(), mix_stage.stopped());
        let pace = spec.share.map_or(Pace::PRIVATE, |share| Pace {
            delivery: share.delivery,
            max_lag: Duration::from_secs_f64(share.max_lag_s),
        });
        let (writer, ring) = ring::create(&spec.format(), spec.batch_size, spec.slots, pace)?;
        let export = |slots: Slots| Ok::<_, MixError>((Arc::new(slots.export()?.into()), slots.bytes()));
        let slots = slots.map(export).transpose()?;
        let hold = hold.then(|| ring.hold(0)).transpose()?;
        let reason = Arc::new(Mutex::new("the feed was closed".to_owned()));
        let (identity, mixer) = (mix_stage.identity(), mix_stage.mixer());
        let (hold, threads) = (Mutex::new(hold), Vec::new());
        let mut feed = Self { ring, sampler, identity, mixer, slots, shared, stopped, reason, hold, threads };
        // Before the writer runs: without a reader to wait for it would end.
        let seat = feed.join(spec.start)?;
        let (batches, planned) = bounded(BATCHES_AHEAD);
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let made = std::thread::Builder::new().name(name.to_owned()).spawn(run);
            made.map_err(|source| RingError::Io { action: "start a thread of the feed", source })
        };
        let plans = {
            let sampler = feed.sampler.clone();
            move || plan_stage.run(&sampler, &batches)
        };
        let mixes = {
            let reason = Arc::clone(&feed.reason);
            move || mix_stage.run(&planned, writer, &reason)
        };
        feed.threads = vec![spawn("mixd-mix", Box::new(mixes))?, spawn("mixd-plan", Box::new(plans))?];
        Ok((feed, seat))
    }

    /// The ring.
    pub fn ring(&self) -> &RingHandle {
        &self.ring
    }

    /// Gives another trainer a seat.
    ///
    /// # Errors
    /// When the feed has passed the batch to start with, has ended, or has no seat left.
    pub fn join(&self, start: Start) -> Result<Seat, OpenError> {
        let (origin, batches) = (self.sampler.start().number(self.batches()), u128::from(self.batches()));
        let mut number = 0;
        let choose = |published: u64| {
            let next = origin + u128::from(published);
            number = match start {
                Start::Now => next,
                Start::NextEpoch => next.div_ceil(batches) * batches,
                Start::At(place) => place.number(self.batches()),
            };
            if self.waits_for_nobody() {
                number = number.max(next);
            }
            number.checked_sub(origin).and_then(|seq| seq.try_into().ok())
        };
        let added = self.ring.add_reader(choose);
        let start = Place::of_number(number, self.batches());
        match added {
            Ok((reader, cursor)) => Ok(Seat { reader, cursor, start }),
            Err(RingError::Gone { published, .. }) => Err(OpenError::Passed { start, next: self.place(published) }),
            Err(error) => Err(error.into()),
        }
    }

    fn waits_for_nobody(&self) -> bool {
        self.sampler.spec().share.is_some_and(|share| share.delivery == Delivery::Latest)
    }

    /// Takes a trainer's seat: its leases are free.
    pub fn leave(&self, reader: ReaderId) {
        self.ring.remove_reader(reader);
    }

    /// Releases the reconnect hold.
    pub fn release_hold(&self) {
        let hold = self.hold.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(hold) = hold {
            self.ring.remove_reader(hold);
        }
    }

    /// The place of the ring's batch `seq`.
    pub fn place(&self, seq: u64) -> Place {
        Place::of_number(self.sampler.start().number(self.batches()) + u128::from(seq), self.batches())
    }

    /// Hash of everything beside its spec that its bytes depend on, but for what the files hold.
    pub fn identity(&self) -> u64 {
        self.identity
    }

    /// The mixer's name.
    pub fn mixer(&self) -> &'static str {
        self.mixer
    }

    /// The slots' images of a ring on a device: their memory, and its bytes.
    pub fn slots(&self) -> Option<(Arc<File>, u64)> {
        self.slots.clone()
    }

    /// Batches in each epoch.
    pub fn batches(&self) -> u64 {
        self.sampler.batches()
    }

    /// Publishes no more batches, and lets readers know why after the last.
    pub fn stop(&self, reason: &str) {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = reason.to_owned();
        self.wake();
    }

    fn wake(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.shared.settled.announce();
        self.ring.stop();
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.wake();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

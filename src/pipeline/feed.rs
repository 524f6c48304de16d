//! A feed: its two threads, from plans to slots, and how they stop.

use super::fetch::{Fetcher, Pending};
use super::finish::{Finisher, Labels};
use super::{BATCHES_AHEAD, FeedError, Shared};
use crate::ring::{self, ReaderId, RingError, RingHandle, RingWriter, WriterStopped};
use crate::sampler::Sampler;
use crate::stats::{Clock, Doing};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// An open feed. Dropping it stops it and waits for its threads.
pub struct Feed {
    ring: RingHandle,
    reader: (ReaderId, PathBuf),
    sampler: Sampler,
    shared: Arc<Shared>,
    stopped: Arc<AtomicBool>,
    reason: Arc<Mutex<String>>,
    threads: Vec<JoinHandle<()>>,
}

impl Feed {
    /// Makes the ring and starts the threads.
    pub(super) fn start(sampler: Sampler, fetcher: Fetcher, finisher: Finisher, dir: &Path) -> Result<Self, RingError> {
        let (spec, shared, stopped) = (*finisher.spec(), finisher.shared(), finisher.stopped());
        let (writer, ring) = ring::create(dir, &spec.format(), spec.batch_size, spec.slots)?;
        // Before the writer runs: without a reader to wait for it would overwrite what nobody has read.
        let reader = ring.add_reader()?;
        let (batches, planned) = bounded(BATCHES_AHEAD);
        let reason = Arc::new(Mutex::new("the feed was closed".to_owned()));
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let made = std::thread::Builder::new().name(name.to_owned()).spawn(run);
            made.map_err(|source| RingError::Io { action: "start a thread for", path: dir.to_owned(), source })
        };
        let plans = {
            let sampler = sampler.clone();
            move || plan(&sampler, fetcher, &batches)
        };
        let mixes = {
            let reason = Arc::clone(&reason);
            move || mix(finisher, &planned, writer, &reason)
        };
        let threads = vec![spawn("mixd-mix", Box::new(mixes))?, spawn("mixd-plan", Box::new(plans))?];
        Ok(Self { ring, reader, sampler, shared, stopped, reason, threads })
    }

    /// The ring.
    pub fn ring(&self) -> &RingHandle {
        &self.ring
    }

    /// The file of the feed's one reader's cursor.
    pub fn cursor_path(&self) -> &Path {
        &self.reader.1
    }

    /// Takes the feed's reader off its ring, whose writer must have been stopped: what the reader holds stays as it is.
    pub fn detach_reader(&self) {
        self.ring.remove_reader(self.reader.0);
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

fn plan(sampler: &Sampler, mut fetcher: Fetcher, batches: &Sender<Pending>) {
    let shared = fetcher.shared();
    let mut clock = Clock::start(&shared.stats.plan);
    let mut place = sampler.start();
    let mut epoch = sampler.epoch(place.epoch);
    loop {
        if epoch.number() != place.epoch {
            epoch = sampler.epoch(place.epoch);
        }
        let plan = epoch.plan(place.index);
        clock.lap(Doing::Busy);
        // Either fails only when the other side has ended.
        let Ok(pending) = fetcher.fetch(plan) else { return };
        if batches.send(pending).is_err() {
            return;
        }
        clock.count();
        clock.lap(Doing::WaitingOut);
        place = sampler.next(place);
    }
}

fn mix(mut finisher: Finisher, planned: &Receiver<Pending>, mut writer: RingWriter, reason: &Mutex<String>) {
    let outcome = fill(&mut finisher, planned, &mut writer);
    let (reason, failed) = match outcome {
        Stop::Ring(WriterStopped::Stopped) | Stop::Failed(FeedError::Stopping) => {
            (reason.lock().unwrap_or_else(PoisonError::into_inner).clone(), false)
        }
        Stop::Ring(WriterStopped::Evicted(why) | WriterStopped::NoSpace(why)) => (why, true),
        Stop::Failed(error) => {
            tracing::error!("a feed ends: {error}");
            (error.to_string(), true)
        }
    };
    writer.end(&reason, failed);
}

enum Stop {
    Ring(WriterStopped),
    Failed(FeedError),
}

fn fill(finisher: &mut Finisher, planned: &Receiver<Pending>, writer: &mut RingWriter) -> Stop {
    let shared = finisher.shared();
    let (mut clock, mut labels) = (Clock::start(&shared.stats.mix), Labels::default());
    loop {
        let Ok(mut pending) = planned.recv() else { return Stop::Failed(FeedError::Stopping) };
        if let Err(error) = finisher.settle(&mut pending) {
            return Stop::Failed(error);
        }
        clock.lap(Doing::WaitingIn);
        let mut slot = match writer.next_slot() {
            Ok(slot) => slot,
            Err(stopped) => return Stop::Ring(stopped),
        };
        clock.lap(Doing::WaitingOut);
        let len = pending.plan.own.len();
        if let Err(error) = finisher.mix(&pending, slot.x_mut(len), &mut labels) {
            return Stop::Failed(error);
        }
        slot.publish(&pending.plan, &labels.label_a, &labels.label_b, 0);
        finisher.recycle(pending);
        clock.count();
        clock.lap(Doing::Busy);
    }
}

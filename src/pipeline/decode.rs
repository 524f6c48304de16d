//! The decode stage: threads that turn encoded samples into rows of samples.

use super::ledger::BadSample;
use super::{Shared, StoreEntry};
use crate::cpus::Workers;
use crate::image::{Loader, SCRATCH_BYTES_MAX};
use crate::source::ReadError;
use crate::stats::{Clock, Doing};
use crate::store::Claim;
use crate::types::SampleId;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Samples that may wait for a decoder, over all feeds. Enough to keep every thread busy between two plans.
const JOBS_MAX: usize = 1_024;
/// How long the pool's end waits for images that are being decoded.
const END_TIMEOUT: Duration = Duration::from_millis(500);
/// How often a thread looks whether the machine has again what it lacked, and how often it says so.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(20);
const SHORTAGE_NOTICE: Duration = Duration::from_secs(10);

/// One sample to decode.
pub struct Job {
    /// Which.
    pub sample: SampleId,
    /// Of which split and at what size.
    pub entry: Arc<StoreEntry>,
    /// Where to.
    pub claim: Claim,
    /// Whether the row belongs to the store.
    pub stored: bool,
    /// Whether the feed that asked for it is to end.
    pub stopped: Arc<AtomicBool>,
}

/// Whether somebody may still wait for a job: the row of a store may be another feed's, too.
fn is_wanted(shared: &Shared, stored: bool, stopped: &AtomicBool) -> bool {
    !shared.stopping.load(Ordering::Relaxed) && (stored || !stopped.load(Ordering::Relaxed))
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
    let (mut loader, mut clock) = (Loader::new(shared.options.load), Clock::start(&shared.stats.decode));
    let (mut bytes, mut noticed) = (Vec::new(), None::<Instant>);
    while let Ok(job) = queue.recv() {
        clock.lap(Doing::WaitingIn);
        let Job { sample, entry, mut claim, stored, stopped } = job;
        if !is_wanted(shared, stored, &stopped) {
            continue;
        }
        let (source, split) = (&*shared.source, entry.split);
        let file = entry.store.rows().file().filter(|_| stored);
        // A stamp costs a look-up in the source: only where the row may hold the sample.
        if let Some(file) = file
            && file.sample_of(claim.row()) == Some(sample)
            && let Some(stamp) = source.stamp(split, sample)
            && file.holds(claim.row(), sample, stamp, claim.bytes())
        {
            claim.ready();
            clock.lap(Doing::Busy);
            continue;
        }
        if let Some(file) = file {
            file.clear(claim.row());
        }
        // What the machine lacks is not the image's fault: it would be replaced by another for as long as the daemon lives.
        let read = loop {
            let error = match source.read(split, sample, &mut bytes) {
                Err(error @ ReadError::DescriptorShortage(_)) => error,
                read => break Some(read),
            };
            if !is_wanted(shared, stored, &stopped) {
                break None;
            }
            if noticed.is_none_or(|at| at.elapsed() > SHORTAGE_NOTICE) {
                noticed = Some(Instant::now());
                let name = source.name(split, sample);
                tracing::warn!("images wait to be read, since the machine lacks what that takes: {name} {error}");
            }
            std::thread::sleep(SHORTAGE_PAUSE);
        };
        let Some(read) = read else { continue };
        let loaded = read.map_err(|error| error.to_string()).and_then(|stamp| {
            let loaded = loader.load(&bytes, entry.image_size, claim.bytes());
            loaded.map(|()| stamp).map_err(|error| error.to_string())
        });
        bytes.clear();
        bytes.shrink_to(SCRATCH_BYTES_MAX);
        // Before anybody learns of it: who has its samples finds them counted.
        clock.count();
        match loaded {
            Ok(stamp) => {
                if stored {
                    entry.store.count_decoded();
                }
                if let (Some(file), Some(stamp)) = (file, stamp) {
                    file.record(claim.row(), sample, stamp, claim.bytes());
                }
                claim.ready();
            }
            Err(cause) => {
                shared.ledger.enter(BadSample { split, sample_id: sample, name: source.name(split, sample), cause });
                entry.store.set_bad(sample);
                claim.bad();
            }
        }
        clock.lap(Doing::Busy);
    }
}

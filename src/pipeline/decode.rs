//! The decode stage: threads that turn files into rows of samples.

use super::ledger::BadSample;
use super::{Shared, StoreEntry};
use crate::cpus::Workers;
use crate::render::Loader;
use crate::stamp::{is_settled, stamp};
use crate::stats::{Clock, Doing};
use crate::store::Claim;
use crate::types::SampleId;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::io;
use std::path::PathBuf;
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
    let (mut path, mut noticed) = (PathBuf::new(), None::<Instant>);
    while let Ok(job) = queue.recv() {
        clock.lap(Doing::WaitingIn);
        let Job { sample, entry, mut claim, stored, stopped } = job;
        if !is_wanted(shared, stored, &stopped) {
            continue;
        }
        shared.dataset.path_into(entry.split, sample, &mut path);
        let file = entry.store.rows().file().filter(|_| stored);
        // Of the file as it is before it is read: should it change meanwhile, its stamp is not this one.
        let meta = file.and_then(|_| std::fs::metadata(&path).ok());
        let stamp = meta.filter(is_settled).map(|meta| stamp(&meta));
        if let (Some(file), Some(stamp)) = (file, stamp)
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
        let loaded = loop {
            let loaded = loader.load(&path, entry.image_size, claim.bytes());
            let Some(error) = loaded.as_ref().err().filter(|error| error.is_shortage()) else { break Some(loaded) };
            if !is_wanted(shared, stored, &stopped) {
                break None;
            }
            if noticed.is_none_or(|at| at.elapsed() > SHORTAGE_NOTICE) {
                noticed = Some(Instant::now());
                tracing::warn!(
                    "images wait to be read, since the machine lacks what that takes: {} {error}",
                    path.display()
                );
            }
            std::thread::sleep(SHORTAGE_PAUSE);
        };
        let Some(loaded) = loaded else { continue };
        // Before anybody learns of it: who has its samples finds them counted.
        clock.count();
        match loaded {
            Ok(()) => {
                if stored {
                    entry.store.count_decoded();
                }
                if let (Some(file), Some(stamp)) = (file, stamp) {
                    file.record(claim.row(), sample, stamp, claim.bytes());
                }
                claim.ready();
            }
            Err(error) => {
                let cause = error.to_string();
                shared.ledger.enter(BadSample { split: entry.split, sample_id: sample, path: path.clone(), cause });
                entry.store.set_bad(sample);
                claim.bad();
            }
        }
        clock.lap(Doing::Busy);
    }
}

//! The decode stage: threads that turn files into rows of samples.

use super::ledger::BadSample;
use super::{Shared, StoreEntry};
use crate::image::Loader;
use crate::stats::{Clock, Doing};
use crate::store::Claim;
use crate::types::SampleId;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Samples that may wait for a decoder, over all feeds. Enough to keep every thread busy between two plans.
const JOBS_MAX: usize = 1_024;

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
}

/// The decode threads; they end when the pool is dropped and every feed's sender with it.
pub struct DecodePool {
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl DecodePool {
    /// Starts as many threads as the options say.
    pub fn start(shared: &Arc<Shared>) -> io::Result<Self> {
        let (jobs, queue) = bounded(JOBS_MAX);
        let spawn = |nth| {
            let (shared, queue) = (Arc::clone(shared), queue.clone());
            let name = format!("mixd-decode-{nth}");
            std::thread::Builder::new().name(name).spawn(move || work(&shared, &queue))
        };
        let threads = (0..shared.options.workers.max(1)).map(spawn).collect::<io::Result<_>>()?;
        Ok(Self { jobs: Some(jobs), threads })
    }

    /// Where to send jobs.
    pub fn jobs(&self) -> Sender<Job> {
        self.jobs.clone().expect("open until dropped")
    }
}

impl Drop for DecodePool {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A panic in a decoder is caught in the loader; one elsewhere was reported by the panic hook.
            let _ = thread.join();
        }
    }
}

fn work(shared: &Shared, queue: &Receiver<Job>) {
    let (mut loader, mut clock) = (Loader::new(), Clock::start(&shared.stats.decode));
    while let Ok(Job { sample, entry, mut claim, stored }) = queue.recv() {
        clock.lap(Doing::WaitingIn);
        let path = shared.dataset.path_of(entry.split, sample);
        match loader.load(&path, entry.image_size, claim.bytes()) {
            Ok(()) => {
                if stored {
                    entry.store.count_decoded();
                }
                claim.ready();
            }
            Err(error) => {
                let cause = error.to_string();
                shared.ledger.enter(BadSample { split: entry.split, sample_id: sample, path, cause });
                entry.store.set_bad(sample);
                claim.bad();
            }
        }
        clock.count();
        clock.lap(Doing::Busy);
    }
}

//! Threads that help mixers with large batches.
//!
//! They exist beside the pools of the libraries because of what those cost here: batches follow each other every few hundred
//! microseconds, and a helper that has to be woken for each comes 50 µs late. One that had work again at once the last time stays
//! awake for as long.
#![expect(unsafe_code, reason = "lends a closure to threads that outlive it, for as long as it is waited for")]

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a helper looks for more work before it sleeps: about what it takes to wake one.
const AWAKE: Duration = Duration::from_micros(50);

/// Between two looks at the clock, and turns of others on this processor.
const SPIN_TURNS: u32 = 32;

type Work<'a> = dyn Fn() + Sync + 'a;

/// Threads that help whoever has work; shared by all mixers of a daemon. Dropping it ends them.
pub struct Helpers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    jobs: Mutex<Jobs>,
    /// Where helpers sleep.
    more: Condvar,
    /// Jobs that were ever offered, for helpers that are awake.
    offered: AtomicU64,
}

#[derive(Default)]
struct Jobs {
    /// Jobs that helpers may join, and how many more of them.
    open: Vec<(Arc<Job>, usize)>,
    sleeping: usize,
    ended: bool,
}

struct Job {
    work: &'static Work<'static>,
    offered: Instant,
    /// Helpers at work on it.
    inside: AtomicUsize,
    panicked: AtomicBool,
}

impl Helpers {
    /// Starts threads.
    ///
    /// # Errors
    /// When the system refuses one.
    pub fn start(count: usize) -> io::Result<Self> {
        let mut helpers = Self { shared: Arc::default(), threads: Vec::new() };
        for nth in 0..count {
            let shared = Arc::clone(&helpers.shared);
            let thread = std::thread::Builder::new().name(format!("mixd-help-{nth}"));
            helpers.threads.push(thread.spawn(move || shared.help())?);
        }
        Ok(helpers)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    /// Runs `work` here and, for as long as it runs here, in as many helpers as have time, `most` at the most. Once it returns, nobody
    /// runs it.
    ///
    /// # Panics
    /// When it panics anywhere.
    pub fn run(&self, most: usize, work: &Work<'_>) {
        // SAFETY: the lifetime is all that changes. Helpers find the job while it is open only; it is closed, and those that found it
        // are waited for, before this function is left, even by a panic (`Closing`).
        let work_of_helpers = unsafe { std::mem::transmute::<&Work<'_>, &'static Work<'static>>(work) };
        let job = Arc::new(Job {
            work: work_of_helpers,
            offered: Instant::now(),
            inside: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
        });
        let mut jobs = self.shared.jobs();
        jobs.open.push((Arc::clone(&job), most));
        let sleeping = jobs.sleeping;
        drop(jobs);
        let closing = Closing { shared: &self.shared, job: &job };
        self.shared.offered.fetch_add(1, Ordering::Release);
        (0..most.min(sleeping)).for_each(|_| self.shared.more.notify_one());
        work();
        drop(closing);
        assert!(!job.panicked.load(Ordering::Relaxed), "a helper panicked (its message is above)");
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        self.shared.jobs().ended = true;
        self.shared.offered.fetch_add(1, Ordering::Release);
        self.shared.more.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Closes a job and waits for those that are at work on it: for the end of what each has begun.
struct Closing<'a> {
    shared: &'a Shared,
    job: &'a Arc<Job>,
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.shared.jobs().open.retain(|(job, _)| !Arc::ptr_eq(job, self.job));
        wait_awake(|| self.job.inside.load(Ordering::Acquire) == 0);
    }
}

/// Waits without sleeping, but lets others run.
fn wait_awake(is_over: impl Fn() -> bool) {
    while !is_over() {
        (0..SPIN_TURNS).for_each(|_| std::hint::spin_loop());
        std::thread::yield_now();
    }
}

impl Shared {
    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a helper does until the end.
    fn help(&self) {
        let mut stay_awake = false;
        loop {
            let (idle, seen) = (Instant::now(), self.offered.load(Ordering::Acquire));
            let mut jobs = self.jobs();
            let mut joined = jobs.join();
            if joined.is_none() && stay_awake {
                drop(jobs);
                wait_awake(|| self.offered.load(Ordering::Acquire) != seen || idle.elapsed() > AWAKE);
                jobs = self.jobs();
            }
            let job = loop {
                if let Some(job) = joined.or_else(|| jobs.join()) {
                    break job;
                }
                if jobs.ended {
                    return;
                }
                jobs.sleeping += 1;
                jobs = self.more.wait(jobs).unwrap_or_else(PoisonError::into_inner);
                jobs.sleeping -= 1;
                joined = None;
            };
            drop(jobs);
            stay_awake = job.offered.saturating_duration_since(idle) < AWAKE;
            if catch_unwind(AssertUnwindSafe(job.work)).is_err() {
                job.panicked.store(true, Ordering::Relaxed);
            }
            job.inside.fetch_sub(1, Ordering::Release);
        }
    }
}

impl Jobs {
    fn join(&mut self) -> Option<Arc<Job>> {
        let (job, vacancies) = self.open.iter_mut().find(|(_, vacancies)| *vacancies > 0)?;
        *vacancies -= 1;
        job.inside.fetch_add(1, Ordering::Relaxed);
        Some(Arc::clone(job))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_works_on_what_is_over_and_everything_is_done_once() {
        let helpers = Helpers::start(3).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for round in 0..2_000_u64 {
                        // On this stack, and gone at the end of the round.
                        let (next, sum, inside) = (AtomicU64::new(0), AtomicU64::new(0), AtomicUsize::new(0));
                        helpers.run(1 + round as usize % 3, &|| {
                            inside.fetch_add(1, Ordering::Relaxed);
                            while let at @ 0..50 = next.fetch_add(1, Ordering::Relaxed) {
                                sum.fetch_add(at + round, Ordering::Relaxed);
                            }
                            inside.fetch_sub(1, Ordering::Relaxed);
                        });
                        assert_eq!((sum.into_inner(), inside.into_inner()), (1_225 + 50 * round, 0));
                    }
                });
            }
        });
    }

    #[test]
    fn helpers_come() {
        let helpers = Helpers::start(2).unwrap();
        let (inside, deadline) = (AtomicUsize::new(0), Instant::now() + Duration::from_secs(20));
        helpers.run(2, &|| {
            inside.fetch_add(1, Ordering::SeqCst);
            while inside.load(Ordering::SeqCst) < 3 && Instant::now() < deadline {
                std::thread::yield_now();
            }
        });
        assert_eq!(inside.into_inner(), 3);
    }

    #[test]
    fn a_panic_of_a_helper_is_one_of_whoever_it_helped() {
        let helpers = Helpers::start(1).unwrap();
        let (helper, caller) = (AtomicBool::new(false), std::thread::current().id());
        let deadline = Instant::now() + Duration::from_secs(20);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            helpers.run(1, &|| {
                if std::thread::current().id() != caller {
                    helper.store(true, Ordering::SeqCst);
                    panic!("on purpose");
                }
                while !helper.load(Ordering::SeqCst) && Instant::now() < deadline {
                    std::thread::yield_now();
                }
            });
        }));
        assert!(outcome.is_err() && helper.into_inner());
        // It helps the next one all the same.
        helpers.run(1, &|| {});
    }
}

//! What is fetched when: a block that a reader waits for goes before the rest of its object.
//!
//! [`Fetcher`] runs [`PARALLEL`] requests at once. Readers demand blocks, and wait a moment for them at a time (`Fetcher::read`). Where the whole set
//! fits in the disk cache, the first demand of an object also has the rest of it fetched, from that block on. Where it does not, objects that
//! are announced (`ahead.rs`) are fetched whole, from the first demand of any of them on, and kept until the announcement is dropped. A request that fails in passing is repeated with
//! exponential backoff and jitter until the store has been away for the timeout; then whoever waits gets the error, and the next demand tries anew.

use super::ahead::{Ahead, Announced};
use super::disk::{BLOCK_BYTES, Disk, Entry, block_range};
use super::object::{Block, FetchError, Object};
use super::store::{Found, Stores};
use super::trouble::{StoreError, Trouble};
use crate::status::Fetched;
use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;

/// Requests at once. One connection to a store brings some 50 to 100 MB/s.
const PARALLEL: usize = 16;
/// Of these, so many are kept free of what nobody waits for, so that a demanded block never waits for one that is not.
const DEMANDED_ONLY: usize = 4;
/// The shortest and the longest pause before a request is repeated; each is twice the one before, less up to half of it.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How often to look whether another daemon has fetched a block.
const CLAIMED_PAUSE: Duration = Duration::from_millis(20);
/// How long a failure is told to those who ask for the block: between two questions of one reader passes less.
const FAILURE_TOLD: Duration = Duration::from_secs(1);
/// How often unused entries are closed, and how often an outage is logged.
const HOUSEKEEPING: Duration = Duration::from_secs(5);
const NOTICE: Duration = Duration::from_secs(10);

/// Figures for status and tests.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes that stores sent.
    pub fetched_bytes: AtomicU64,
    /// Requests for blocks.
    pub requests: AtomicU64,
    /// Requests that failed in passing.
    pub retries: AtomicU64,
}

/// Fetches blocks. Its threads end when it is dropped.
#[derive(Debug)]
pub struct Fetcher {
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

#[derive(Debug)]
struct Shared {
    stores: Arc<Stores>,
    disk: Arc<Disk>,
    timeout: Duration,
    queue: Mutex<Queue>,
    queued: Notify,
    counters: Counters,
    noticed: Mutex<Option<Instant>>,
    /// The keys of all objects that were added, and their bytes.
    known: Mutex<HashSet<u128>>,
    known_bytes: AtomicU64,
    announced: Announced,
}

#[derive(Debug, Default)]
struct Queue {
    demanded: VecDeque<Job>,
    fills: VecDeque<Fill>,
    /// Requests for blocks that nobody waited for when they began.
    filling: usize,
    /// Jobs that pause before they are tried again.
    pausing: usize,
}

/// An object of which all is wanted.
#[derive(Debug)]
struct Fill {
    object: Arc<Object>,
    /// The block to look at next.
    next: u32,
    /// How many are left to look at.
    left: u32,
}

/// A block that is marked as being on its way.
#[derive(Debug)]
struct Job {
    object: Arc<Object>,
    block: u32,
    patience: Patience,
    /// Whether it counts as filling.
    is_fill: bool,
}

impl Fetcher {
    /// A fetcher of objects in `stores` into `disk`.
    ///
    /// # Errors
    /// When there are no threads for it.
    pub fn new(stores: Arc<Stores>, disk: Arc<Disk>, timeout: Duration) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(2).thread_name("mixd-fetch").enable_all().build()?;
        let shared = Arc::new(Shared {
            stores,
            disk,
            timeout,
            queue: Mutex::default(),
            queued: Notify::new(),
            counters: Counters::default(),
            noticed: Mutex::default(),
            known: Mutex::default(),
            known_bytes: AtomicU64::new(0),
            announced: Announced::default(),
        });
        for _ in 0..PARALLEL {
            runtime.spawn(Arc::clone(&shared).work());
        }
        let disk = Arc::clone(&shared.disk);
        runtime.spawn(async move {
            loop {
                tokio::time::sleep(HOUSEKEEPING).await;
                disk.close_idle();
            }
        });
        Ok(Self { shared, runtime: Some(runtime) })
    }

    /// An object to read.
    pub fn add(&self, found: Found) -> Arc<Object> {
        let key = Disk::key(&self.shared.stores.endpoint(&found.url), &found);
        // Both splits may have it.
        if self.shared.known.lock().unwrap_or_else(PoisonError::into_inner).insert(key) {
            self.shared.known_bytes.fetch_add(found.bytes, Ordering::Relaxed);
        }
        Arc::new(Object::new(found, key))
    }

    /// Has objects fetched whole as soon as one of them is read, those of `now` before those of `next`, and kept as long as what is returned lives.
    pub fn will_read(&self, now: Vec<Arc<Object>>, next: Vec<Arc<Object>>) -> Arc<Ahead> {
        let ahead = Arc::new(Ahead::new(now, next));
        self.shared.announced.add(&ahead);
        ahead
    }

    /// Figures.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Figures, with those of the disk cache.
    pub fn figures(&self) -> Fetched {
        let (counters, disk) = (&self.shared.counters, &self.shared.disk);
        Fetched {
            bytes: counters.fetched_bytes.load(Ordering::Relaxed),
            requests: counters.requests.load(Ordering::Relaxed),
            retries: counters.retries.load(Ordering::Relaxed),
            evictions: disk.evictions(),
            cached_bytes: disk.kept_bytes(),
            budget_bytes: disk.budget_bytes(),
        }
    }

    /// Makes a request of another kind with the same patience: until it succeeds, fails for good, or the store was away for the timeout.
    ///
    /// # Errors
    /// Then.
    pub async fn run_async<T>(&self, request: impl AsyncFn(&Stores) -> Result<T, StoreError>) -> Result<T, FetchError> {
        let mut patience = Patience::default();
        loop {
            match request(&self.shared.stores).await {
                Ok(value) => return Ok(value),
                Err(error) => tokio::time::sleep(patience.after(error, &self.shared, None)?).await,
            }
        }
    }

    /// Runs to its end what waits for stores.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.as_ref().expect("it is there until the drop").block_on(future)
    }

    /// Fills `bytes` from `offset` of an object. False where blocks have not come within `wait`: they are on their way, ask again.
    ///
    /// # Errors
    /// When they cannot be fetched.
    pub fn read(
        &self,
        object: &Arc<Object>,
        offset: u64,
        bytes: &mut [u8],
        wait: Duration,
    ) -> Result<bool, FetchError> {
        let deadline = Instant::now() + wait;
        if bytes.is_empty() {
            return Ok(true);
        }
        let last =
            offset.checked_add(bytes.len() as u64).filter(|end| *end <= object.found.bytes).ok_or(
                FetchError::Beyond { end: offset.saturating_add(bytes.len() as u64), bytes: object.found.bytes },
            )? - 1;
        let blocks = (offset / BLOCK_BYTES) as u32..=(last / BLOCK_BYTES) as u32;
        let wanted = self.shared.announced.read(object, &self.shared.disk);
        if !wanted.is_empty() {
            self.shared.queue().fills.extend(wanted.into_iter().map(|object| Fill {
                next: 0,
                left: object.count(),
                object,
            }));
            self.shared.queued.notify_waiters();
        }
        loop {
            let entry = self.shared.entry(object)?;
            let mut missing = blocks.clone().filter(|block| !entry.has(*block, &object.verified)).peekable();
            if missing.peek().is_none() {
                entry.read(bytes, offset).map_err(disk)?;
                return Ok(true);
            }
            let missing: Vec<u32> = missing.collect();
            drop(entry);
            self.demand(object, &missing);
            let mut waiting = object.blocks();
            while missing.iter().any(|block| matches!(waiting.get(block), Some(Block::OnItsWay))) {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(false);
                }
                waiting = object.arrived.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
            }
            let failed = missing.iter().find_map(|block| match waiting.get(block) {
                Some(Block::Failed(error, _)) => Some(error.clone()),
                _ => None,
            });
            if let Some(error) = failed {
                return Err(error);
            }
        }
    }

    /// Has blocks fetched before all that is not demanded, and where there is room the rest of their object after them.
    fn demand(&self, object: &Arc<Object>, missing: &[u32]) {
        let mut blocks = object.blocks();
        let mut queue = self.shared.queue();
        for &block in missing {
            let is_known = match blocks.get(&block) {
                Some(Block::OnItsWay) => true,
                // Whoever waited for it hears of it; who comes later tries anew.
                Some(Block::Failed(_, since)) => since.elapsed() < FAILURE_TOLD,
                None => false,
            };
            if !is_known {
                blocks.insert(block, Block::OnItsWay);
                let (object, patience) = (Arc::clone(object), Patience::default());
                queue.demanded.push_back(Job { object, block, patience, is_fill: false });
                self.shared.queued.notify_one();
            }
        }
        let fits = self.shared.known_bytes.load(Ordering::Relaxed) <= self.shared.disk.budget_bytes();
        if fits && !object.is_filling.swap(true, Ordering::Relaxed) {
            queue.fills.push_back(Fill { object: Arc::clone(object), next: missing[0], left: object.count() });
            self.shared.queued.notify_waiters();
        }
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        // Requests that are under way are given up; whoever reads holds a fetcher.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn disk(error: io::Error) -> FetchError {
    FetchError::Disk(Arc::new(error))
}

/// How long a request has been failing.
#[derive(Debug, Default)]
struct Patience {
    since: Option<Instant>,
    pause: Duration,
    claimed_since: Option<Instant>,
}

impl Patience {
    /// Whether a block was claimed by another daemon for as long as a store may be away.
    fn is_over_claims(&mut self, timeout: Duration) -> bool {
        self.claimed_since.get_or_insert_with(Instant::now).elapsed() >= timeout
    }

    /// How long to pause before the request is repeated that failed so.
    fn after(&mut self, error: StoreError, shared: &Shared, of: Option<&Found>) -> Result<Duration, FetchError> {
        if error.trouble != Trouble::Passing {
            return Err(FetchError::Store(error));
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() >= shared.timeout {
            return Err(FetchError::Timeout { error, timeout: shared.timeout });
        }
        shared.counters.retries.fetch_add(1, Ordering::Relaxed);
        shared.notice(&error, of);
        self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        // Those that failed together do not come back together.
        let mut random = [0];
        let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
        Ok(self.pause.mul_f64(1.0 - f64::from(random[0]) / 512.0))
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, object: &Object) -> Result<Arc<Entry>, FetchError> {
        self.disk.entry(object.key, &object.found).map_err(disk)
    }

    /// One of the requests that are made at once.
    async fn work(self: Arc<Self>) {
        loop {
            // Before the look, so that no notice is missed.
            let queued = self.queued.notified();
            let Some(mut job) = self.next() else {
                queued.await;
                continue;
            };
            let result = self.fetch(&mut job).await;
            if std::mem::take(&mut job.is_fill) {
                self.queue().filling -= 1;
            }
            match result {
                // Not in this request's place: others may be answered.
                Ok(Some(pause)) => drop(tokio::spawn(Arc::clone(&self).again(job, pause))),
                Ok(None) => job.object.settle(job.block, Ok(())),
                Err(error) => job.object.settle(job.block, Err(error)),
            }
        }
    }

    async fn again(self: Arc<Self>, job: Job, pause: Duration) {
        self.queue().pausing += 1;
        tokio::time::sleep(pause).await;
        let mut queue = self.queue();
        queue.pausing -= 1;
        queue.demanded.push_front(job);
        self.queued.notify_one();
        // Those that found too many pausing to fetch what nobody waits for.
        self.queued.notify_waiters();
    }

    /// The block to fetch next.
    fn next(&self) -> Option<Job> {
        loop {
            let (object, block) = {
                let mut queue = self.queue();
                if let Some(demanded) = queue.demanded.pop_front() {
                    // Two notices that come at once wake one.
                    if !queue.demanded.is_empty() {
                        self.queued.notify_one();
                    }
                    return Some(demanded);
                }
                // Nor is a store that is away asked for what nobody waits for.
                if queue.pausing >= PARALLEL / 2 || queue.filling >= PARALLEL - DEMANDED_ONLY {
                    return None;
                }
                let Fill { object, next: block, left } = queue.fills.front_mut()?;
                let next = (Arc::clone(object), *block);
                (*block, *left) = ((*block + 1) % object.count(), *left - 1);
                if *left == 0 {
                    queue.fills.pop_front();
                }
                queue.filling += 1;
                next
            };
            if !self.entry(&object).is_ok_and(|entry| entry.is_named(block)) {
                let mut blocks = object.blocks();
                if !matches!(blocks.get(&block), Some(Block::OnItsWay)) {
                    blocks.insert(block, Block::OnItsWay);
                    drop(blocks);
                    return Some(Job { object, block, patience: Patience::default(), is_fill: true });
                }
            }
            self.queue().filling -= 1;
        }
    }

    /// Fetches a block, or says after which pause to try again.
    async fn fetch(&self, job: &mut Job) -> Result<Option<Duration>, FetchError> {
        let Job { object, block, patience, is_fill } = job;
        let (found, block) = (&object.found, *block);
        let entry = self.entry(object)?;
        if entry.has(block, &object.verified) {
            return Ok(None);
        }
        let claim = entry.claim(block).map_err(disk)?;
        // Another daemon fetches it; one that was stopped as it did is not waited for: both write the same bytes.
        if claim.is_none() && !patience.is_over_claims(self.timeout) {
            return Ok(Some(CLAIMED_PAUSE));
        }
        // It may have been fetched between the look and the claim.
        if entry.has(block, &object.verified) {
            return Ok(None);
        }
        let range = block_range(block, found.bytes);
        let bytes = range.end - range.start;
        let room = self.disk.reserve(bytes).map_err(disk)?;
        // What nobody waits for does not pass the budget.
        if !room.in_budget && *is_fill {
            self.queue().fills.retain(|fill| !Arc::ptr_eq(&fill.object, object));
            return Ok(None);
        }
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        match self.stores.get(found, range).await {
            Ok(chunks) => {
                self.counters.fetched_bytes.fetch_add(bytes, Ordering::Relaxed);
                entry.put(block, &chunks, &object.verified).map_err(disk)?;
                drop((room, claim));
                Ok(None)
            }
            Err(error) => patience.after(error, self, Some(found)).map(Some),
        }
    }

    fn notice(&self, error: &StoreError, of: Option<&Found>) {
        let mut noticed = self.noticed.lock().unwrap_or_else(PoisonError::into_inner);
        if noticed.is_none_or(|at| at.elapsed() > NOTICE) {
            *noticed = Some(Instant::now());
            let of = of.map_or_else(String::new, |found| format!("{}: ", found.url));
            tracing::warn!("{of}{error}; retried for {} s (--store-timeout)", self.timeout.as_secs());
        }
    }
}

//! Counters of the pipeline's stages.

use crate::mix::Moved;
use crate::status::Mixed;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One stage, over all its threads.
#[derive(Debug, Default)]
pub struct Stage {
    items: AtomicU64,
    busy_ns: AtomicU64,
    waiting_in_ns: AtomicU64,
    waiting_out_ns: AtomicU64,
    threads: AtomicU64,
}

/// What a thread was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// Working.
    Busy,
    /// Waiting for something to work on.
    WaitingIn,
    /// Waiting for somebody to take the result.
    WaitingOut,
}

/// A reading of a [`Stage`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StageReading {
    /// Samples or batches done.
    pub items: u64,
    /// Time at work, summed over threads.
    pub busy: Duration,
    /// Time without work, summed over threads.
    pub waiting_in: Duration,
    /// Time with a result that nobody took, summed over threads.
    pub waiting_out: Duration,
    /// Threads running now.
    pub threads: u64,
}

impl Stage {
    /// What was counted so far.
    pub fn read(&self) -> StageReading {
        let time = |ns: &AtomicU64| Duration::from_nanos(ns.load(Relaxed));
        StageReading {
            items: self.items.load(Relaxed),
            busy: time(&self.busy_ns),
            waiting_in: time(&self.waiting_in_ns),
            waiting_out: time(&self.waiting_out_ns),
            threads: self.threads.load(Relaxed),
        }
    }
}

/// The stages of the data's way.
#[derive(Debug, Default)]
pub struct Stats {
    /// Planning and asking for samples; items are batches.
    pub plan: Stage,
    /// Reading encoded images; items are samples. Its threads are those that decode.
    pub read: Stage,
    /// Decoding, and resizing to views that are stored finished; items are samples.
    pub decode: Stage,
    /// Rendering random views; items are views. Its threads are those that decode.
    pub render: Stage,
    /// Mixing into slots; items are batches.
    pub mix: Stage,
    mixed: Mutex<Mixed>,
    read_bytes: AtomicU64,
}

impl Stats {
    /// Every stage with its name, in the order of the data's way.
    pub fn stages(&self) -> [(&'static str, &Stage); 5] {
        [
            ("plan", &self.plan),
            ("read", &self.read),
            ("decode", &self.decode),
            ("render", &self.render),
            ("mix", &self.mix),
        ]
    }

    /// Counts the bytes of an encoded image that was read.
    pub fn count_read(&self, bytes: usize) {
        self.read_bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// Bytes of encoded images read so far.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Relaxed)
    }

    /// Counts a mixed batch.
    pub fn count_mixed(&self, images: usize, moved: Moved) {
        let mut mixed = self.mixed.lock().unwrap_or_else(PoisonError::into_inner);
        mixed.images += images as u64;
        mixed.to_device_bytes += moved.to_device as u64;
        mixed.from_device_bytes += moved.from_device as u64;
        mixed.on_device_bytes += moved.on_device as u64;
    }

    /// What was mixed so far: whole batches.
    pub fn mixed(&self) -> Mixed {
        *self.mixed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Divides a thread's time between what it does: each lap ends where the next begins.
pub struct Clock<'a> {
    stage: &'a Stage,
    since: Instant,
}

impl<'a> Clock<'a> {
    /// Starts a thread's clock.
    pub fn start(stage: &'a Stage) -> Self {
        stage.threads.fetch_add(1, Relaxed);
        Self { stage, since: Instant::now() }
    }

    /// Books the time since the last lap.
    pub fn lap(&mut self, doing: Doing) {
        let now = Instant::now();
        let ns = (now - self.since).as_nanos() as u64;
        self.since = now;
        match doing {
            Doing::Busy => &self.stage.busy_ns,
            Doing::WaitingIn => &self.stage.waiting_in_ns,
            Doing::WaitingOut => &self.stage.waiting_out_ns,
        }
        .fetch_add(ns, Relaxed);
    }

    /// Leaves the time since the last lap to another clock of the thread.
    pub fn skip(&mut self) {
        self.since = Instant::now();
    }

    /// Counts a finished item.
    pub fn count(&self) {
        self.stage.items.fetch_add(1, Relaxed);
    }
}

impl Drop for Clock<'_> {
    fn drop(&mut self) {
        self.stage.threads.fetch_sub(1, Relaxed);
    }
}

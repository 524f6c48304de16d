//! The daemon's state: one pipeline, and the feeds that trainers have open.

use super::{convert, proto};
use crate::config::FeedSpec;
use crate::pipeline::{Feed, OpenError, Pipeline};
use crate::types::Split;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::watch;

/// A feed and the trainer that reads it.
struct Session {
    feed: Feed,
    spec: FeedSpec,
    pid: u32,
}

/// Why a trainer was not attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The feed cannot be served.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// No feeds are opened any more.
    #[error("the daemon is going down and opens no more feeds")]
    Draining,
}

/// A running daemon.
pub struct Daemon {
    // Declared, and so dropped, before the pipeline: feeds hold on to its decoders.
    sessions: Mutex<BTreeMap<u64, Session>>,
    pipeline: Pipeline,
    shm_dir: PathBuf,
    next_feed: AtomicU64,
    started: Instant,
    draining: watch::Sender<bool>,
    open_feeds: watch::Sender<usize>,
}

impl Daemon {
    /// A daemon whose rings lie in `shm_dir`.
    pub fn new(pipeline: Pipeline, shm_dir: PathBuf) -> Self {
        Self {
            sessions: Mutex::default(),
            pipeline,
            shm_dir,
            next_feed: AtomicU64::new(1),
            started: Instant::now(),
            draining: watch::Sender::new(false),
            open_feeds: watch::Sender::new(0),
        }
    }

    fn sessions(&self) -> MutexGuard<'_, BTreeMap<u64, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a private feed for a trainer. Blocks while memory is reserved.
    ///
    /// # Errors
    /// When the spec cannot be served or the daemon is going down; other feeds are untouched.
    pub fn attach(&self, spec: FeedSpec, pid: u32) -> Result<(u64, proto::Attached), AttachError> {
        let id = self.next_feed.fetch_add(1, Ordering::Relaxed);
        let feed = self.pipeline.open(spec, &self.shm_dir.join(id.to_string()))?;
        let dataset = self.pipeline.dataset();
        let attached = proto::Attached {
            feed_id: id,
            data_path: feed.ring().data_path().display().to_string(),
            cursor_path: feed.cursor_path().display().to_string(),
            batches: feed.batches(),
            samples: dataset.samples(spec.split).len() as u32,
            classes: dataset.classes.iter().map(convert::class).collect(),
            versions: Some(convert::versions()),
            pid: std::process::id(),
        };
        let mut sessions = self.sessions();
        // Looked at here, where `drain` either comes before or finds the feed in the list.
        if *self.draining.borrow() {
            drop(sessions);
            return Err(AttachError::Draining);
        }
        sessions.insert(id, Session { feed, spec, pid });
        self.open_feeds.send_replace(sessions.len());
        tracing::info!(feed = id, pid, split = %spec.split, batch_size = spec.batch_size, "trainer attached");
        Ok((id, attached))
    }

    /// Closes a trainer's feed; its leases are free. Blocks until the feed's threads have ended.
    pub fn detach(&self, id: u64) {
        let session = self.sessions().remove(&id);
        if let Some(session) = session {
            session.feed.stop("the trainer left");
            session.feed.detach_reader();
            tracing::info!(feed = id, pid = session.pid, published = session.feed.ring().published(), "trainer left");
            drop(session);
        }
        let sessions = self.sessions();
        self.open_feeds.send_replace(sessions.len());
    }

    /// Opens no more feeds from now on.
    pub fn drain(&self) {
        self.draining.send_replace(true);
    }

    /// Opens no more feeds, and ends those that are open after what is published.
    pub fn stop_feeds(&self, reason: &str) {
        self.drain();
        for session in self.sessions().values() {
            session.feed.stop(reason);
        }
    }

    /// Waits until no feed is open.
    pub async fn closed(&self) {
        // Fails only when the sender is gone, and `self` holds it.
        let _ = self.open_feeds.subscribe().wait_for(|&open| open == 0).await;
    }

    /// The feeds that are open.
    pub fn feeds(&self) -> Vec<proto::Feed> {
        let feed = |(&feed_id, Session { feed, spec, pid }): (&u64, &Session)| proto::Feed {
            feed_id,
            pid: *pid,
            spec: Some(convert::spec_to_proto(spec)),
            published: feed.ring().published(),
            released: feed.ring().readers().first().map_or(0, |&(_, released)| released),
            ring_bytes: feed.ring().bytes(),
        };
        self.sessions().iter().map(feed).collect()
    }

    /// What the daemon is doing.
    pub fn status(&self) -> proto::Status {
        let (dataset, options) = (self.pipeline.dataset(), self.pipeline.options());
        let usage = crate::usage::own();
        proto::Status {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            data: dataset.root.display().to_string(),
            uptime_s: self.started.elapsed().as_secs_f64(),
            cpu_s: usage.cpu.as_secs_f64(),
            peak_rss_bytes: usage.peak_rss_bytes,
            decode_workers: self.pipeline.workers() as u32,
            jpeg_decoder: crate::image::JPEG_DECODER.to_owned(),
            mixer: options.mixer.to_string(),
            train_samples: dataset.samples(Split::Train).len() as u32,
            val_samples: dataset.samples(Split::Val).len() as u32,
            stores: self.pipeline.stores().iter().map(|entry| convert::store(entry)).collect(),
            feeds: self.feeds(),
            bad_samples: self.pipeline.bad_samples().iter().map(convert::bad_sample).collect(),
            stages: self.pipeline.stats().stages().map(|(name, stage)| convert::stage(name, stage)).to_vec(),
            draining: *self.draining.borrow(),
        }
    }
}

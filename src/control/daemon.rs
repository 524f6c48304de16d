//! The daemon's state: one pipeline, and the feeds that trainers have open.

use super::history::History;
use super::totals::Totals;
use crate::escape::printable;
use crate::pipeline::{Feed, OpenError, Pipeline, Seat, StoreEntry, Views};
use crate::ring::{ReaderId, ReaderStatus, RingError};
use crate::spec::{Difference, FeedSpec, Recipe, ShareName};
use crate::stats::{Stage, StageReading};
use crate::status::{self, Status};
use crate::types::{Place, Split};
use crate::usage::NAME_MAX;
use crate::verdict::Reading;
use crate::wire::{AttachRequest, Attached, Former, SeatMemory, SeatToken};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::watch;

/// A feed and the trainers that read it.
struct Open {
    feed: Feed,
    spec: FeedSpec,
    trainers: BTreeMap<ReaderId, Trainer>,
    /// What those who opened it again knew of it; none of a feed that was not open before.
    former: Option<Former>,
}

/// What feeds are counted by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FeedKind {
    /// Name of the split.
    pub split: &'static str,
    /// Name of the share; empty for private feeds.
    pub share: String,
}

/// The most kinds that are counted apart, of feeds that are gone: names of shares are any, and metrics should be few.
const KINDS_MAX: usize = 100;

impl FeedKind {
    /// What kinds beyond [`KINDS_MAX`] are counted as.
    fn other(self) -> Self {
        Self { share: "(others)".to_owned(), ..self }
    }

    fn of(spec: &FeedSpec) -> Self {
        Self { split: spec.split.name(), share: spec.share.map_or(String::new(), |share| share.name.to_string()) }
    }
}

/// A trainer as it presented itself.
#[derive(Debug, Clone)]
struct Trainer {
    pid: u32,
    /// Of its script or program.
    name: String,
}

/// A trainer at a feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// Which feed.
    pub feed: u64,
    /// Which of its readers.
    pub reader: ReaderId,
    /// Whether the feed waits for other trainers ([`Daemon::release_hold`]).
    pub holds: bool,
    /// For which it fetches its memory.
    token: SeatToken,
}

/// Why a trainer was not attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The feed cannot be served.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A shared feed of that name is another.
    #[error(
        "the shared feed `{name}` is another one: its {} (ask for the same, or take another name)",
        Difference::list(differences)
    )]
    Differs {
        /// The share.
        name: String,
        /// Each key, with the feed's value and the one that was asked for.
        differences: Vec<Difference>,
    },
    /// A trainer that comes back finds a feed of that name which was opened by another, and from an earlier place.
    #[error(
        "the shared feed `{name}` was opened by another trainer before this one came back, and stands at {feed}, where {trainer} should \
         come (let its trainers come back first, or give new ones another name)"
    )]
    Behind {
        /// The share.
        name: String,
        /// The feed's next batch.
        feed: Place,
        /// The next of the feed that was.
        trainer: Place,
    },
    /// No feeds are opened any more.
    #[error("the daemon is going down and opens no more feeds")]
    Draining,
}

/// A running daemon.
pub struct Daemon {
    // Declared, and so dropped, before the pipeline: feeds hold on to its decoders.
    feeds: Mutex<BTreeMap<u64, Open>>,
    pipeline: Pipeline,
    /// What trainers are still to fetch.
    seats: Mutex<BTreeMap<SeatToken, SeatMemory>>,
    /// Of feeds that name none, as TOML.
    recipe: Option<String>,
    next_feed: AtomicU64,
    /// Held while a shared feed is opened, so that the next trainer finds it.
    opening: Mutex<()>,
    history: Mutex<History>,
    /// Of feeds and trainers that are gone; changed while `feeds` is locked, so that nothing counts twice.
    gone: Mutex<BTreeMap<FeedKind, Totals>>,
    started: Instant,
    draining: watch::Sender<bool>,
    open_feeds: watch::Sender<usize>,
}

impl Daemon {
    /// A daemon without feeds; clients take `recipe` for feeds that name none.
    pub fn new(pipeline: Pipeline, recipe: Option<&Recipe>) -> Self {
        Self {
            feeds: Mutex::default(),
            pipeline,
            seats: Mutex::default(),
            recipe: recipe.map(Recipe::to_toml),
            next_feed: AtomicU64::new(1),
            opening: Mutex::default(),
            history: Mutex::default(),
            gone: Mutex::default(),
            started: Instant::now(),
            draining: watch::Sender::new(false),
            open_feeds: watch::Sender::new(0),
        }
    }

    fn open_feeds(&self) -> MutexGuard<'_, BTreeMap<u64, Open>> {
        self.feeds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a feed for a trainer, or gives it a seat at a shared one. Blocks while memory is reserved. A shared feed that is opened
    /// again for the first of its former trainers goes on where it was, and keeps its first batches for the others.
    ///
    /// # Errors
    /// When the spec cannot be served or the daemon is going down; other feeds are untouched.
    pub fn attach(&self, request: AttachRequest) -> Result<(Ticket, Attached), AttachError> {
        if self.is_draining() {
            return Err(AttachError::Draining);
        }
        let AttachRequest { spec, pid, name, former, device_uuid } = request;
        let name = printable(&name).to_string().chars().take(NAME_MAX).collect();
        let trainer = Trainer { pid, name };
        // Open until the feed has it open, too.
        let (spec, _device) = crate::pipeline::resolve(spec, &device_uuid).map_err(OpenError::Mix)?;
        let Some(share) = spec.share else { return self.open(spec, trainer, None) };
        // Refused before it is compared, and where a place does not exist.
        self.pipeline.sampler(&spec)?;
        let _one_at_a_time = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        match self.join(share.name, &spec, &trainer, former)? {
            Some(joined) => Ok(joined),
            None => self.open(spec, trainer, former),
        }
    }

    /// Takes a seat at the shared feed of this name; `None` when there is none, or it is over.
    fn join(
        &self,
        name: ShareName,
        spec: &FeedSpec,
        trainer: &Trainer,
        former: Option<Former>,
    ) -> Result<Option<(Ticket, Attached)>, AttachError> {
        let mut feeds = self.open_feeds();
        let named = |open: &Open| open.spec.share.is_some_and(|share| share.name == name);
        for (&id, open) in feeds.iter_mut().filter(|(_, open)| named(open) && !open.feed.ring().is_closed()) {
            let differences = open.spec.differences(spec);
            if !differences.is_empty() {
                return Err(AttachError::Differs { name: name.to_string(), differences });
            }
            // It may take a newcomer's feed forever to get to where this trainer was.
            let next = open.feed.place(open.feed.ring().published());
            if let Some(former) = former.filter(|former| open.former.is_none() && former.next > next) {
                return Err(AttachError::Behind { name: name.to_string(), feed: next, trainer: former.next });
            }
            match open.feed.join(spec.start) {
                Err(OpenError::Ring(RingError::Closed)) => {}
                seat => return Ok(Some(self.seat(id, open, seat?, trainer.clone()))),
            }
        }
        Ok(None)
    }

    fn open(
        &self,
        spec: FeedSpec,
        trainer: Trainer,
        former: Option<Former>,
    ) -> Result<(Ticket, Attached), AttachError> {
        let id = self.next_feed.fetch_add(1, Ordering::Relaxed);
        let origin = match former {
            Some(former) => former.next,
            None => self.pipeline.sampler(&spec)?.start(),
        };
        let hold = former.is_some_and(|former| former.trainers > 1);
        let (feed, seat) = self.pipeline.open(spec, origin, hold)?;
        let mut feeds = self.open_feeds();
        // Looked at again here, where `drain` either comes before or finds the feed in the list.
        if self.is_draining() {
            drop(feeds);
            return Err(AttachError::Draining);
        }
        let open = Open { feed, spec, trainers: BTreeMap::new(), former };
        let open = feeds.entry(id).or_insert(open);
        let attached = self.seat(id, open, seat, trainer);
        self.open_feeds.send_replace(feeds.len());
        Ok(attached)
    }

    /// Enters a trainer, and keeps the memory of its seat for it.
    fn seat(&self, id: u64, open: &mut Open, seat: Seat, trainer: Trainer) -> (Ticket, Attached) {
        let Open { feed, spec, trainers, former } = open;
        let pid = trainer.pid;
        trainers.insert(seat.reader, trainer);
        let holds = former.is_some_and(|former| (trainers.len() as u32) < former.trainers);
        if !holds {
            feed.release_hold();
        }
        let token = random_token();
        let memory = SeatMemory { data: feed.ring().data(), cursor: seat.cursor, slots: feed.slots() };
        self.seats().insert(token, memory);
        let source = self.pipeline.source();
        let attached = Attached {
            feed_id: id,
            seat: token,
            batches: feed.batches(),
            samples: source.len(spec.split),
            classes: source.classes().to_vec(),
            label_sets: source.label_sets().unwrap_or_default().to_vec(),
            pid: std::process::id(),
            origin: feed.place(0),
            start: seat.start,
            mixer: feed.mixer().to_owned(),
            identity: feed.identity(),
        };
        let share = spec.share.map(|share| tracing::field::display(share.name));
        tracing::info!(feed = id, share, pid, split = %spec.split, batch_size = spec.batch_size, "trainer attached");
        (Ticket { feed: id, reader: seat.reader, holds, token }, attached)
    }

    fn seats(&self) -> MutexGuard<'_, BTreeMap<SeatToken, SeatMemory>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The memory of a seat, for the one who knows its token; once.
    pub fn take_seat(&self, token: SeatToken) -> Option<SeatMemory> {
        self.seats().remove(&token)
    }

    /// Has a feed go on without the trainers that it waits for.
    pub fn release_hold(&self, feed: u64) {
        if let Some(open) = self.open_feeds().get(&feed) {
            open.feed.release_hold();
        }
    }

    /// Takes a trainer's seat: its leases are free. The last one's feed is closed; blocks until its threads have ended.
    pub fn detach(&self, ticket: Ticket) {
        self.seats().remove(&ticket.token);
        let mut feeds = self.open_feeds();
        let Some(open) = feeds.get_mut(&ticket.feed) else { return };
        let Some(Trainer { pid, .. }) = open.trainers.remove(&ticket.reader) else { return };
        let published = open.feed.ring().published();
        tracing::info!(feed = ticket.feed, pid, published, "trainer left");
        {
            let mut gone = self.gone();
            let kind = FeedKind::of(&open.spec);
            let is_new = !gone.contains_key(&kind) && gone.len() >= KINDS_MAX;
            let totals = gone.entry(if is_new { kind.other() } else { kind }).or_default();
            let readers = open.feed.ring().readers();
            readers.iter().filter(|reader| reader.id == ticket.reader).for_each(|reader| totals.add_reader(reader));
            if open.trainers.is_empty() {
                totals.published += published;
            }
        }
        if !open.trainers.is_empty() {
            return open.feed.leave(ticket.reader);
        }
        let closed = feeds.remove(&ticket.feed);
        drop(feeds);
        if let Some(Open { feed, .. }) = closed {
            feed.stop("the trainer left");
            feed.leave(ticket.reader);
        }
        let feeds = self.open_feeds();
        self.open_feeds.send_replace(feeds.len());
    }

    /// Opens no more feeds from now on.
    pub fn drain(&self) {
        self.draining.send_replace(true);
    }

    /// Opens no more feeds, and ends those that are open after what is published.
    pub fn stop_feeds(&self, reason: &str) {
        self.drain();
        for open in self.open_feeds().values() {
            open.feed.stop(reason);
        }
    }

    /// Waits until no feed is open.
    pub async fn closed(&self) {
        // Fails only when the sender is gone, and `self` holds it.
        let _ = self.open_feeds.subscribe().wait_for(|&open| open == 0).await;
    }

    fn gone(&self) -> MutexGuard<'_, BTreeMap<FeedKind, Totals>> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What feeds of each kind have delivered, and for those that are open the largest lag of a trainer, in batches.
    pub fn totals(&self) -> BTreeMap<FeedKind, (Totals, Option<u64>)> {
        let feeds = self.open_feeds();
        let mut all: BTreeMap<_, _> =
            self.gone().iter().map(|(kind, totals)| (kind.clone(), (*totals, None))).collect();
        for Open { feed, spec, trainers, .. } in feeds.values() {
            let (totals, lag) = all.entry(FeedKind::of(spec)).or_default();
            let published = feed.ring().published();
            totals.published += published;
            for reader in feed.ring().readers().iter().filter(|reader| trainers.contains_key(&reader.id)) {
                totals.add_reader(reader);
                *lag = (*lag).max(Some(published.saturating_sub(reader.released)));
            }
        }
        all
    }

    /// Whether it opens no more feeds.
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// The feeds that are open.
    pub fn feeds(&self) -> Vec<status::Feed> {
        let feed = |(&feed_id, Open { feed, spec, trainers, .. }): (&u64, &Open)| {
            let published = feed.ring().published();
            let trainer = |reader: ReaderStatus| {
                let Trainer { pid, name } = trainers.get(&reader.id)?;
                Some(status::Trainer {
                    pid: *pid,
                    name: name.clone(),
                    reader: reader.id,
                    read: reader.read,
                    skipped: reader.skipped,
                    waited_s: reader.waited.as_secs_f64(),
                    lag: published.saturating_sub(reader.released),
                    place: feed.place(reader.released),
                    evicted: reader.evicted,
                })
            };
            status::Feed {
                feed_id,
                spec: *spec,
                published,
                next: feed.place(published),
                batches: feed.batches(),
                ring_bytes: feed.ring().bytes(),
                trainers: feed.ring().readers().into_iter().filter_map(trainer).collect(),
            }
        };
        self.open_feeds().iter().map(feed).collect()
    }

    /// What the daemon is doing.
    pub fn status(&self) -> Status {
        let counters = self.counters();
        let verdict = self.history().verdict(&Reading::of(&counters));
        let source = self.pipeline.source();
        Status {
            verdict: Some(verdict),
            notes: source.notes().iter().map(|note| printable(note).to_string()).collect(),
            bad_samples: self.pipeline.bad_samples(),
            recipe: self.recipe.clone(),
            classes: source.classes().to_vec(),
            ..counters
        }
    }

    /// Adds a reading of the counters to the history; once a second.
    pub fn record(&self) {
        self.history().record(Reading::of(&self.counters()));
    }

    /// The rates of the last minutes, as [`History::series`].
    pub fn series(&self) -> serde_json::Value {
        self.history().series()
    }

    /// What makes the batches.
    pub fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The status without its lists, which may be long, and without a verdict.
    fn counters(&self) -> Status {
        let (source, options) = (self.pipeline.source(), self.pipeline.options());
        let usage = crate::usage::own();
        let (decode_warnings, last_decode_warning) = self.pipeline.decode_warnings();
        Status {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            data: source.location(),
            notes: Vec::new(),
            uptime_s: self.started.elapsed().as_secs_f64(),
            cpu_s: usage.cpu.as_secs_f64(),
            peak_rss_bytes: usage.peak_rss_bytes,
            decode_workers: self.pipeline.workers() as u32,
            jpeg_decoder: crate::decode::JPEG_DECODER.to_owned(),
            mixer: options.mixer.to_string(),
            train_samples: source.len(Split::Train),
            val_samples: source.len(Split::Val),
            stores: self
                .pipeline
                .stores()
                .iter()
                .filter(|entry| !entry.views.are_random())
                .map(|entry| store(entry))
                .collect(),
            sources: self
                .pipeline
                .all_sources()
                .iter()
                .map(|(split, sources)| status::Sources {
                    split: *split,
                    samples: sources.samples(),
                    kept: sources.kept(),
                    decoded: sources.decoded(),
                    bytes: sources.bytes(),
                    size: options.load.sources.to_string(),
                })
                .collect(),
            feeds: self.feeds(),
            bad_samples: Vec::new(),
            decode_warnings,
            last_decode_warning,
            fetched: source.fetched(),
            stages: self.pipeline.stats().stages().map(stage).to_vec(),
            draining: self.is_draining(),
            mixed: self.pipeline.stats().mixed(),
            recipe: None,
            classes: Vec::new(),
            read_bytes: self.pipeline.stats().read_bytes(),
            idle_cpu_s: crate::usage::idle().as_secs_f64(),
            verdict: None,
            available_cpus: crate::cpus::available() as u32,
        }
    }
}

fn random_token() -> SeatToken {
    let mut token = [0; 16];
    // Blocks only while a machine boots; short only where a signal comes meanwhile, and that not below 256 bytes.
    let filled = rustix::rand::getrandom(&mut token, rustix::rand::GetRandomFlags::empty());
    assert!(filled == Ok(token.len()), "the system has no random bytes: {filled:?}");
    SeatToken(token)
}

fn store(entry: &StoreEntry) -> status::Store {
    let StoreEntry { split, views: Views { crop, interpolation, size, augment: _ }, store, .. } = entry;
    status::Store {
        split: *split,
        size: *size,
        view: format!("{crop} {interpolation}"),
        samples: store.samples(),
        capacity: store.rows().len(),
        decoded: store.decoded(),
        bytes: store.bytes(),
        device_bytes: entry.device_bytes(),
    }
}

fn stage((name, stage): (&str, &Stage)) -> status::Stage {
    let StageReading { items, busy, waiting_in, waiting_out, threads } = stage.read();
    status::Stage {
        name: name.to_owned(),
        items,
        busy_s: busy.as_secs_f64(),
        waiting_in_s: waiting_in.as_secs_f64(),
        waiting_out_s: waiting_out.as_secs_f64(),
        threads: threads as u32,
    }
}

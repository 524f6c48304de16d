//! The writing end: which slot comes next, whom to wait for, and whom to put out.
#![expect(unsafe_code, reason = "writes slots that the protocol gives to the writer alone")]

use super::READERS_MAX;
use super::layout::{BatchHeader, ENDED_FAILED, ENDED_STOPPED, EVICTED_LAG, EVICTED_UNLAWFUL, REASON_BYTES_MAX};
use super::protocol::has_room;
use super::readers::{Evicted, ReaderEntry, ReaderId, Readers, Shared};
use super::wake::{self, EVENTS_MAX, Futex, Waker, now_ns};
use crate::batch::{Head, PLAN_VERSION};
use crate::columns::Columns;
use crate::spec::Delivery;
use crate::sync::Ordering;
use crate::types::ImageSize;
use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

const _: () = assert!(READERS_MAX < EVENTS_MAX, "the writer may have to wait for any of them");

/// Why there is no slot to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriterStopped {
    /// The control plane stopped the feed.
    Stopped,
    /// Nobody reads the ring any more.
    Deserted,
    /// The last reader was evicted: its cursor failed validation.
    Evicted(String),
    /// The memory that was available when the ring was made is gone.
    NoMemory(String),
    /// For as long as a reader may keep others waiting, those that were evicted have kept all slots that nobody else needs.
    Kept,
}

/// The only writer of a ring.
pub struct RingWriter {
    pub(super) shared: Arc<Shared>,
    seq: u64,
    /// Whether each slot's memory is allocated.
    allocated: Vec<bool>,
    lag: RefCell<Lag>,
}

/// For how long readers have kept others waiting.
#[derive(Default)]
struct Lag {
    /// Which reader, with how much released, for how long.
    late: Vec<(ReaderId, u64, Duration)>,
    /// How often each reader that keeps up had looked for a batch when time was last counted.
    looks: Vec<(ReaderId, u64)>,
    /// When that was.
    counted: Option<Instant>,
}

/// The most time that counts as lag between two looks of a reader that waits, which come four times a second. Half of `max_lag` where that is less.
const LOOK_MAX: Duration = Duration::from_millis(500);

impl Lag {
    /// The time since this was last asked for which one of these readers has looked for a batch. Where all are stopped, by a signal, with their cgroup or
    /// with the machine, no reader waits.
    fn passed(&mut self, keep_up: Vec<(ReaderId, u64)>, max_lag: Duration) -> Duration {
        let now = Instant::now();
        let before = |id| self.looks.iter().find(|&&(known, _)| known == id).map(|&(_, looks)| looks);
        if !keep_up.iter().any(|&(id, looks)| before(id).is_some_and(|before| before != looks)) {
            let new: Vec<_> = keep_up.into_iter().filter(|&(id, _)| before(id).is_none()).collect();
            self.looks.extend(new);
            self.counted.get_or_insert(now);
            return Duration::ZERO;
        }
        self.looks = keep_up;
        let since = self.counted.replace(now).map_or(Duration::ZERO, |counted| now - counted);
        since.min(LOOK_MAX).min(max_lag / 2 + Duration::from_nanos(1))
    }
}

/// A reader, and its event word as it was.
type Noted = (Arc<ReaderEntry>, u32);

/// Why no slot can be written now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// Lossless: this reader has not released the batch that is as many before the next as there are slots.
    Slowest(ReaderId),
    /// Lossless: evicted readers keep all slots that nobody else needs.
    Kept,
    /// Latest: the fastest reader has not released, or another has leased, what is in any slot.
    Latest,
}

impl RingWriter {
    /// The writer of a new ring.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let allocated = vec![false; shared.data.all_slots() as usize];
        Self { shared, seq: 0, allocated, lag: RefCell::default() }
    }

    /// Waits until there is a slot for the next batch, and hands it out for writing.
    ///
    /// # Errors
    /// When the feed was stopped, or nobody reads it any more, or there is no slot, or no memory for one that is used for the first
    /// time.
    pub fn next_slot(&mut self) -> Result<SlotMut<'_>, WriterStopped> {
        // Why the last look found no slot, and the events of those that may change that, noted before it.
        let mut noted: Option<(Wait, Vec<Noted>)> = None;
        let mut kept_since = None;
        let slot = loop {
            let mut readers = self.shared.readers();
            self.judge(&mut readers)?;
            // Looked at under the lock: a feed is stopped before its last reader is taken off, and what that reader still holds
            // must not be written then.
            if self.shared.stop.load(Ordering::SeqCst) {
                return Err(WriterStopped::Stopped);
            }
            if readers.live.is_empty() {
                readers.closed = true;
                return Err(WriterStopped::Deserted);
            }
            let wait = match self.choose(&readers) {
                Ok(slot) => break slot,
                Err(wait) => wait,
            };
            kept_since = (wait == Wait::Kept).then(|| kept_since.unwrap_or_else(Instant::now));
            let is_kept_too_long = || kept_since.is_some_and(|since| since.elapsed() > self.shared.pace.max_lag);
            if is_kept_too_long() {
                return Err(WriterStopped::Kept);
            }
            match noted.take() {
                Some((before, watched)) if before == wait => {
                    drop(readers);
                    let events: Vec<_> =
                        watched.iter().map(|(reader, seen)| (reader.cursor.words().event, *seen)).collect();
                    let look_again = || is_kept_too_long() || self.evict_late();
                    self.shared.data.words().await_cursors(&events, look_again, &Futex);
                }
                // What happens from here on changes what is noted, so that it is safe to sleep if the next look finds the same.
                _ => {
                    let note = |reader: &Arc<ReaderEntry>| (Arc::clone(reader), reader.cursor.words().note());
                    noted = Some((wait, watched(&readers, wait).map(note).collect()));
                }
            }
        };
        if !self.allocated[slot as usize] {
            self.shared.data.allocate_slot(slot).map_err(|error| WriterStopped::NoMemory(error.to_string()))?;
            self.allocated[slot as usize] = true;
        }
        Ok(SlotMut { writer: self, slot })
    }

    /// Reads all cursors, and evicts the readers whose cursors fail validation.
    fn judge(&self, readers: &mut Readers) -> Result<(), WriterStopped> {
        let Readers { live, evicted, closed } = readers;
        let mut outcome = Ok(());
        live.retain(|reader| {
            let Err(why) = reader.look(self.seq, self.shared.pace.delivery) else { return true };
            let reason = format!("evicted: the trainer's cursor failed validation: {why}");
            tracing::warn!(reader = reader.id, "{reason}");
            reader.cursor.words().evict(EVICTED_UNLAWFUL);
            self.shared.count_out(reader);
            // Its leases are as little to be believed as the rest.
            evicted.push(Evicted { reader: Arc::clone(reader), kept: Vec::new() });
            outcome = Err(WriterStopped::Evicted(reason));
            false
        });
        if live.is_empty() && outcome.is_err() {
            *closed = true;
            return outcome;
        }
        Ok(())
    }

    /// Claims a slot whose batch nobody needs. Lossless: the one with the newest, which is most likely to be in the caches still, once
    /// every slot but the spare ones has its memory. Latest: the oldest, which readers are least likely to turn to.
    fn choose(&self, readers: &Readers) -> Result<u32, Wait> {
        let (words, slots) = (self.shared.data.words(), self.shared.data.slots);
        let released = |reader: &Arc<ReaderEntry>| reader.released.load(Ordering::Relaxed);
        let is_latest = self.shared.pace.delivery == Delivery::Latest;
        let needed_from = if is_latest {
            // Those that begin at a later batch do not hurry the others to it.
            let begun = readers.live.iter().map(released).filter(|&released| released <= self.seq);
            begun.max().unwrap_or(u64::MAX)
        } else {
            let slowest = readers.live.iter().min_by_key(|reader| released(reader)).expect("there is one");
            if !has_room(self.seq, released(slowest), slots) {
                return Err(Wait::Slowest(slowest.id));
            }
            released(slowest)
        };
        let is_leased = |slot| {
            let has_leased = |reader: &Arc<ReaderEntry>| reader.cursor.words().has_leased(slot);
            // Of a lossless feed, everybody else has released whatever is claimed.
            let keeps = |one: &Evicted| one.kept.contains(&slot) && has_leased(&one.reader);
            is_latest && readers.live.iter().any(has_leased) || readers.evicted.iter().any(keeps)
        };
        let mut tried = Vec::new();
        loop {
            // An empty slot counts as the oldest. Memory for all is taken at the beginning, while there is some; for spare ones at need.
            let batches = |slot: u32| words.holds[slot as usize].load(Ordering::Relaxed).wrapping_add(1);
            let order = |&slot: &u32| match is_latest {
                true => (0, batches(slot)),
                false if self.allocated[slot as usize] => (1, u64::MAX - batches(slot)),
                false => (if slot < slots { 0 } else { 2 }, slot.into()),
            };
            let is_free = |slot: &u32| batches(*slot) <= needed_from && !tried.contains(slot);
            let Some(slot) = (0..self.shared.data.all_slots()).filter(is_free).min_by_key(order) else {
                return Err(if is_latest { Wait::Latest } else { Wait::Kept });
            };
            if words.claim(slot, || is_leased(slot)) {
                return Ok(slot);
            }
            tried.push(slot);
        }
    }

    /// Evicts those that have kept others waiting at a stretch for longer than they may; whether there are any.
    pub(super) fn evict_late(&self) -> bool {
        let Shared { data, pace, .. } = &*self.shared;
        if pace.max_lag == Duration::MAX {
            return false;
        }
        let (mut readers, mut lag) = (self.shared.readers(), self.lag.borrow_mut());
        let stands = |reader: &ReaderEntry| reader.cursor.words().released();
        let is_late = |reader: &ReaderEntry| !reader.is_hold && !has_room(self.seq, stands(reader), data.slots);
        let keeps_up = |reader: &&Arc<ReaderEntry>| stands(reader) <= self.seq && !is_late(reader);
        let looks = |reader: &Arc<ReaderEntry>| (reader.id, reader.cursor.page().looks.load(Ordering::Relaxed));
        let passed = lag.passed(readers.live.iter().filter(keeps_up).map(looks).collect(), pace.max_lag);
        let before = std::mem::take(&mut lag.late);
        for reader in readers.live.iter().filter(|reader| is_late(reader)) {
            let here = (reader.id, stands(reader));
            let stood = before.iter().find(|&&(id, at, _)| (id, at) == here).map(|&(.., stood)| stood + passed);
            lag.late.push((here.0, here.1, stood.unwrap_or_default()));
        }
        let over: Vec<ReaderId> =
            lag.late.iter().filter(|&&(.., stood)| stood > pace.max_lag).map(|&(id, ..)| id).collect();
        for id in &over {
            let at = readers.live.iter().position(|reader| reader.id == *id).expect("it is late");
            let reader = readers.live.swap_remove(at);
            tracing::warn!(reader = id, "evicted: it has kept others waiting for more than {:?}", pace.max_lag);
            self.shared.count_out(&reader);
            reader.cursor.words().evict(EVICTED_LAG);
            let has_leased = |&slot: &u32| reader.cursor.words().has_leased(slot);
            let mut kept: Vec<u32> = (0..data.all_slots()).filter(has_leased).collect();
            // More than a reader can have leased is rubbish.
            if kept.len() > data.slots as usize {
                kept.clear();
            }
            readers.evicted.push(Evicted { reader, kept });
        }
        !over.is_empty()
    }

    /// Ends the feed with a reason, which readers see after the last published batch; none join any more.
    pub fn end(self, reason: &str, failed: bool) {
        let header = self.shared.data.header();
        let len = reason.floor_char_boundary(REASON_BYTES_MAX);
        for (to, from) in header.reason.iter().zip(&reason.as_bytes()[..len]) {
            to.store(*from, Ordering::Relaxed);
        }
        header.reason_len.store(len as u32, Ordering::Relaxed);
        let code = if failed { ENDED_FAILED } else { ENDED_STOPPED };
        let mut readers = self.shared.readers();
        readers.closed = true;
        let cursors = readers.all().map(|reader| reader.cursor.words());
        self.shared.data.words().end(code, cursors, &Futex);
    }

    /// What calls the readers.
    pub fn caller(&self) -> Caller {
        Caller(Arc::clone(&self.shared))
    }
}

/// Wakes readers when their batch is nearly there, so that they are awake when it is.
pub struct Caller(Arc<Shared>);

impl Caller {
    /// How long before it is published the readers should be called to the next batch, and how many they are; `None` where they
    /// wake at once.
    pub fn ahead(&self) -> Option<(Duration, usize)> {
        let wake_ns = |reader: &Arc<ReaderEntry>| reader.cursor.page().wake_ns.load(Ordering::Relaxed);
        let readers = self.0.readers();
        Some((wake::ahead(readers.live.iter().map(wake_ns).max()?)?, readers.live.len()))
    }

    /// Calls them to the batch that is published next.
    pub fn call(&self) {
        // Whoever comes or goes just now is not worth waiting for.
        let Ok(readers) = self.0.readers.try_lock() else { return };
        let data = &self.0.data;
        let cursors = readers.live.iter().map(|reader| reader.cursor.words());
        data.words().call(self.0.published(), cursors, &Waker { woke_ns: &data.header().woke_ns });
    }
}

/// Those whose doing may end a wait.
fn watched(readers: &Readers, wait: Wait) -> impl Iterator<Item = &Arc<ReaderEntry>> {
    readers.all().filter(move |reader| match wait {
        Wait::Slowest(id) => reader.id == id,
        Wait::Kept | Wait::Latest => true,
    })
}

/// A slot that is being filled. Dropping it publishes nothing; another slot may be handed out then.
pub struct SlotMut<'a> {
    writer: &'a mut RingWriter,
    slot: u32,
}

impl SlotMut<'_> {
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `next_slot` alone makes a `SlotMut`, once the slot is allocated, of the only writer (it is not `Clone`, and
        // `self` borrows it), after it claimed the slot: every live reader has released its batch (read with Acquire in `look`) or, with
        // delivery latest, has not leased it, and no evicted one keeps it; nobody can lease it until it is published. Readers that are
        // on neither list have lost their leases.
        unsafe { self.writer.shared.data.slot_mut(self.slot) }
    }

    /// The slot's number, where the images of the ring's slots lie on a device.
    pub fn on_device(&self) -> Option<u32> {
        self.writer.shared.data.on_device.then_some(self.slot)
    }

    /// The memory of `x` for `len` rows of this size, 64-byte aligned; none where it lies on a device.
    pub fn x_mut(&mut self, size: ImageSize, len: usize) -> &mut [u8] {
        let data = &self.writer.shared.data;
        let (layout, bytes) = (data.layout, data.image_bytes(size));
        &mut self.bytes()[layout.x..][..len * bytes]
    }

    /// Writes everything but `x`, whose images have this size, publishes the batch and wakes the readers.
    ///
    /// # Panics
    /// When the columns have more rows than the ring's batches.
    pub fn publish(mut self, size: ImageSize, head: Head, columns: Columns<'_>) {
        let (slot, seq, data) = (self.slot, self.writer.seq, &self.writer.shared.data);
        let (layout, rows_max) = (data.layout, data.batch_size);
        let (bytes, len) = (self.bytes(), columns.label_a.len());
        assert!(len <= rows_max as usize);
        for (at, column) in layout.columns.into_iter().zip(columns.bytes()) {
            bytes[at..][..column.len()].copy_from_slice(column);
        }
        let Head { epoch, index, batches, pad, digest_version, digest } = head;
        let header = BatchHeader {
            seq,
            epoch,
            index,
            batches,
            digest,
            published_ns: now_ns(),
            len: len as u32,
            pad,
            plan_version: PLAN_VERSION as u16,
            digest_version: digest_version as u16,
            // At most 8192.
            height: size.height as u16,
            width: size.width as u16,
        };
        bytes[..size_of::<BatchHeader>()].copy_from_slice(bytemuck::bytes_of(&header));
        self.writer.seq = seq + 1;
        let shared = &self.writer.shared;
        let (words, readers) = (shared.data.words(), shared.readers());
        // Seen by whoever sees that the batch is published.
        words.holds[slot as usize].store(seq, Ordering::Relaxed);
        let cursors = readers.all().map(|reader| reader.cursor.words());
        if words.near.load(Ordering::Relaxed) > seq {
            // Who was called and sleeps still, or again, has its time to wake measured from the call.
            words.publish(seq + 1, cursors, &Futex);
        } else {
            words.publish(seq + 1, cursors, &Waker { woke_ns: &shared.data.header().woke_ns });
        }
    }
}

//! The writing end: which slot comes next, whom to wait for, and whom to put out.
#![expect(unsafe_code, reason = "writes slots that the protocol gives to the writer alone")]

use super::READERS_MAX;
use super::layout::{BatchHeader, ENDED_FAILED, ENDED_STOPPED, EVICTED_LAG, EVICTED_UNLAWFUL, REASON_BYTES_MAX};
use super::protocol::{CursorWords, has_room};
use super::readers::{ReaderEntry, ReaderId, Readers, Shared};
use super::wake::{EVENTS_MAX, Futex, now_ns};
use crate::config::Delivery;
use crate::sampler::Plan;
use crate::sync::Ordering;
use bytemuck::cast_slice_mut;
use std::cell::Cell;
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
    /// The last reader was put out because of what its cursor said.
    Evicted(String),
    /// The file system lost the room that it had for the ring.
    NoSpace(String),
}

/// The only writer of a ring.
pub struct RingWriter {
    shared: Arc<Shared>,
    seq: u64,
    /// Whether each slot's memory is reserved.
    reserved: Vec<bool>,
    /// Who keeps others waiting, at which batch, since when.
    lagging: Cell<Option<(ReaderId, u64, Instant)>>,
}

/// How often the writer goes round all slots before it waits for leases to end.
const TRIES_MAX: u32 = 100;

/// Whom the writer has to wait for.
enum Wait {
    /// This reader has not released the oldest batch.
    Slowest(Arc<ReaderEntry>),
    /// None of these has room for another batch.
    Fastest(Vec<Arc<ReaderEntry>>),
    /// All slots are leased, by these.
    Leases(Vec<Arc<ReaderEntry>>),
}

impl RingWriter {
    /// The writer of a new ring.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let reserved = vec![false; shared.data.slots as usize];
        Self { shared, seq: 0, reserved, lagging: Cell::new(None) }
    }

    /// Waits until there is a slot for the next batch, and hands it out for writing.
    ///
    /// # Errors
    /// When the feed was stopped, or nobody reads it any more, or the slot is used for the first time and there is no memory for
    /// it.
    pub fn next_slot(&mut self) -> Result<SlotMut<'_>, WriterStopped> {
        let slot = loop {
            let (wait, changes) = {
                let mut readers = self.shared.readers();
                self.judge(&mut readers)?;
                // Looked at under the lock: a feed is stopped before its last reader is taken off, and what that reader still holds
                // must not be written then.
                if self.is_stopped() {
                    return Err(WriterStopped::Stopped);
                }
                if readers.live.is_empty() {
                    readers.closed = true;
                    return Err(WriterStopped::Deserted);
                }
                match self.choose(&readers) {
                    Ok(slot) => break slot,
                    Err(wait) => (wait, readers.changes),
                }
            };
            self.wait(&wait, changes);
        };
        if !self.reserved[slot as usize] {
            self.shared.data.reserve_slot(slot).map_err(|error| WriterStopped::NoSpace(error.to_string()))?;
            self.reserved[slot as usize] = true;
        }
        Ok(SlotMut { writer: self, slot })
    }

    fn is_stopped(&self) -> bool {
        self.shared.stop.load(Ordering::SeqCst)
    }

    /// Reads all cursors, and puts out those that say what cannot be.
    fn judge(&self, readers: &mut Readers) -> Result<(), WriterStopped> {
        let mut outcome = Ok(());
        readers.live.retain(|reader| match reader.look(self.seq, self.shared.pace.delivery) {
            Ok(()) => true,
            Err(why) => {
                let reason = format!("evicted for what the trainer's cursor says: {why}");
                tracing::warn!(reader = reader.id, "{reason}");
                // Its leases are as little to be believed as the rest.
                reader.cursor.words().evict(EVICTED_UNLAWFUL);
                self.shared.count_out(reader);
                let _ = std::fs::remove_file(&reader.path);
                outcome = Err(WriterStopped::Evicted(reason));
                false
            }
        });
        if readers.live.is_empty() && outcome.is_err() {
            readers.closed = true;
            return outcome;
        }
        Ok(())
    }

    /// Claims the slot with the oldest batch that nobody needs.
    fn choose(&self, readers: &Readers) -> Result<u32, Wait> {
        let (words, slots) = (self.shared.data.words(), self.shared.data.slots);
        let released = |reader: &Arc<ReaderEntry>| reader.released.load(Ordering::Relaxed);
        let slowest = readers.live.iter().min_by_key(|reader| released(reader)).expect("there is one");
        let (needed_from, leases): (u64, Vec<_>) = match self.shared.pace.delivery {
            Delivery::Lossless => (released(slowest), readers.evicted.iter().collect()),
            Delivery::Latest => {
                // Those that begin at a later batch do not hurry the others to it.
                let mut begun = readers.live.iter().filter(|reader| released(reader) <= self.seq).peekable();
                if begun.peek().is_some() && !begun.clone().any(|reader| has_room(self.seq, released(reader), slots)) {
                    return Err(Wait::Fastest(begun.cloned().collect()));
                }
                (u64::MAX, readers.all().collect())
            }
        };
        let mut leased = vec![false; if leases.is_empty() { 0 } else { slots as usize }];
        for _ in 0..TRIES_MAX * slots {
            // An empty slot counts as the oldest.
            let age = |slot: &u32| words.holds[*slot as usize].load(Ordering::Relaxed).wrapping_add(1);
            let free = |slot: &u32| !leased.get(*slot as usize).is_some_and(|&leased| leased);
            let Some(slot) = (0..slots).filter(free).min_by_key(age) else {
                if self.shared.pace.delivery == Delivery::Lossless {
                    break;
                }
                // There are more slots than readers: leases have moved while they were looked at.
                leased.fill(false);
                continue;
            };
            if age(&slot) > needed_from {
                return Err(Wait::Slowest(Arc::clone(slowest)));
            }
            if words.claim(slot, leases.iter().map(|reader| reader.cursor.words())) {
                return Ok(slot);
            }
            leased[slot as usize] = true;
        }
        Err(Wait::Leases(leases.into_iter().cloned().collect()))
    }

    /// Waits until what is waited for may have happened, or the readers are others than after so many `changes`.
    fn wait(&self, wait: &Wait, changes: u64) {
        let Shared { data, pace, .. } = &*self.shared;
        let (words, slots) = (data.words(), data.slots);
        let until = |readers: &[Arc<ReaderEntry>], done: &dyn Fn(&ReaderEntry) -> bool| {
            let cursors: Vec<CursorWords<'_>> = readers.iter().map(|reader| reader.cursor.words()).collect();
            let others = || self.is_stopped() || self.shared.readers().changes != changes;
            words.await_cursors(&cursors, || readers.iter().any(|reader| done(reader)) || others(), &Futex);
        };
        match wait {
            Wait::Slowest(reader) => {
                let before = reader.released.load(Ordering::Relaxed);
                let lags =
                    || pace.max_lag < Duration::MAX && !reader.is_hold && self.lag(reader, before) > pace.max_lag;
                let evicts = Cell::new(false);
                until(std::slice::from_ref(reader), &|reader| {
                    evicts.set(reader.released_now() == before && lags());
                    reader.released_now() != before || evicts.get()
                });
                if evicts.get() {
                    self.evict(reader);
                }
            }
            Wait::Fastest(readers) => until(readers, &|reader| has_room(self.seq, reader.released_now(), slots)),
            Wait::Leases(readers) => {
                tracing::warn!("every slot of a feed is leased by trainers that are evicted or slow; it waits for one");
                let leases: Vec<u32> = readers.iter().map(|reader| reader.cursor.words().leases()).collect();
                let changed = |reader: &ReaderEntry| {
                    let at = readers.iter().position(|other| other.id == reader.id).expect("one of them");
                    reader.cursor.words().leases() != leases[at]
                        || pace.delivery == Delivery::Latest && reader.leases_too_many()
                };
                until(readers, &changed);
            }
        }
    }

    /// For how long a reader that stands at `released` has kept others waiting at a stretch.
    fn lag(&self, reader: &ReaderEntry, released: u64) -> Duration {
        let now = Instant::now();
        let since = match self.lagging.get() {
            _ if !self.keeps_others_waiting(reader) => None,
            Some((id, at, since)) if (id, at) == (reader.id, released) => Some(since),
            _ => Some(now),
        };
        self.lagging.set(since.map(|since| (reader.id, released, since)));
        since.map_or(Duration::ZERO, |since| now - since)
    }

    /// Whether another reader sleeps because it has read everything.
    fn keeps_others_waiting(&self, slowest: &ReaderEntry) -> bool {
        let readers = self.shared.readers();
        let sleeps = |other: &ReaderEntry| other.cursor.words().reader_waiting.load(Ordering::Relaxed) != 0;
        // One that begins at a later batch waits for that.
        let begun = |other: &ReaderEntry| other.released.load(Ordering::Relaxed) <= self.seq;
        readers.live.iter().any(|other| other.id != slowest.id && begun(other) && sleeps(other))
    }

    /// Puts out a reader that lags; what it has leased is left alone.
    fn evict(&self, reader: &Arc<ReaderEntry>) {
        let mut readers = self.shared.readers();
        let Some(at) = readers.live.iter().position(|other| other.id == reader.id) else { return };
        let max_lag = self.shared.pace.max_lag;
        tracing::warn!(reader = reader.id, "evicted: it has kept others waiting for more than {max_lag:?}");
        let reader = readers.live.swap_remove(at);
        self.shared.count_out(&reader);
        reader.cursor.words().evict(EVICTED_LAG);
        readers.evicted.push(reader);
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
}

/// A slot that is being filled. Dropping it publishes nothing; another slot may be handed out then.
pub struct SlotMut<'a> {
    writer: &'a mut RingWriter,
    slot: u32,
}

impl SlotMut<'_> {
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `next_slot` alone makes a `SlotMut`, once the slot is reserved, of the only writer (it is not `Clone`, and
        // `self` borrows it), after it claimed the slot: every live reader has released its batch (read with Acquire in `look`) or, with
        // delivery latest, has not leased it, and neither has an evicted one; nobody can lease it until it is published. Readers that
        // are on neither list have lost their leases.
        unsafe { self.writer.shared.data.slot_mut(self.slot) }
    }

    /// The memory of `x` for `len` rows, 64-byte aligned.
    pub fn x_mut(&mut self, len: usize) -> &mut [u8] {
        let layout = self.writer.shared.data.layout;
        &mut self.bytes()[layout.x..][..len * layout.image_bytes]
    }

    /// Writes everything but `x`, publishes the batch and wakes the readers.
    ///
    /// # Panics
    /// When the plan has more rows than the ring's batches.
    pub fn publish(mut self, plan: &Plan, label_a: &[i64], label_b: &[i64], digest: u64) {
        let (slot, seq, data) = (self.slot, self.writer.seq, &self.writer.shared.data);
        let (layout, rows_max) = (data.layout, data.batch_size);
        let (bytes, len) = (self.bytes(), plan.own.len());
        assert!(len <= rows_max as usize);
        cast_slice_mut(&mut bytes[layout.label_a..][..8 * len]).copy_from_slice(label_a);
        cast_slice_mut(&mut bytes[layout.label_b..][..8 * len]).copy_from_slice(label_b);
        cast_slice_mut(&mut bytes[layout.lambda..][..4 * len]).copy_from_slice(&plan.lambda);
        cast_slice_mut(&mut bytes[layout.partner..][..4 * len]).copy_from_slice(&plan.partner_row);
        cast_slice_mut(&mut bytes[layout.sample_id..][..4 * len]).copy_from_slice(&plan.own);
        cast_slice_mut(&mut bytes[layout.partner_id..][..4 * len]).copy_from_slice(&plan.partner);
        let header = BatchHeader {
            seq,
            epoch: plan.place.epoch,
            index: plan.place.index,
            batches: plan.batches,
            digest,
            published_ns: now_ns(),
            len: len as u32,
            pad: plan.pad,
            plan_version: crate::rng::PLAN_VERSION,
            reserved: 0,
        };
        bytes[..size_of::<BatchHeader>()].copy_from_slice(bytemuck::bytes_of(&header));
        self.writer.seq = seq + 1;
        let shared = &self.writer.shared;
        let (words, readers) = (shared.data.words(), shared.readers());
        // Seen by whoever sees that the batch is published.
        words.holds[slot as usize].store(seq, Ordering::Relaxed);
        words.publish(seq + 1, readers.all().map(|reader| reader.cursor.words()), &Futex);
    }
}

//! The writing end: slots to fill, and the list of readers to wait for.
#![expect(unsafe_code, reason = "writes slots that the protocol gives to the writer alone")]

use super::READERS_MAX;
use super::layout::{BatchHeader, DataHeader, ENDED_FAILED, ENDED_STOPPED, REASON_BYTES_MAX};
use super::protocol::{CursorWords, has_room, is_lawful, slot_of};
use super::region::{CursorFile, DataFile, RingError};
use super::wake::{Futex, now_ns};
use crate::mix::Format;
use crate::sampler::Plan;
use crate::sync::Ordering;
use bytemuck::cast_slice_mut;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Number of a reader, unique in its ring.
pub type ReaderId = u64;

struct ReaderEntry {
    id: ReaderId,
    path: PathBuf,
    cursor: CursorFile,
    /// Set once, by the control plane, when the reader is gone.
    gone: AtomicBool,
    /// The last `released` that was found lawful; only the writer stores it.
    released: AtomicU64,
}

/// What writer and control plane share.
struct Shared {
    dir: PathBuf,
    data: DataFile,
    readers: Mutex<Vec<Arc<ReaderEntry>>>,
    next_reader: AtomicU64,
    stop: AtomicBool,
}

/// Why there is no slot to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriterStopped {
    /// The control plane stopped the feed.
    Stopped,
    /// The last reader was put out because of what its cursor said.
    Evicted(String),
    /// The file system lost the room that it had for the ring.
    NoSpace(String),
}

/// Makes the ring's data file in `dir`, which is made with mode 0700 and removed with the ring.
///
/// # Errors
/// When the file system lacks the room, naming bytes needed and free, or a system call fails.
pub fn create(dir: &Path, format: &Format, batch_size: u32, slots: u32) -> Result<(RingWriter, RingHandle), RingError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| RingError::Io { action: "create", path: dir.to_owned(), source })?;
    let data = DataFile::create(&dir.join("data"), DataHeader::fixed(format, batch_size, slots)).inspect_err(|_| {
        let _ = std::fs::remove_dir(dir);
    })?;
    let shared = Arc::new(Shared {
        dir: dir.to_owned(),
        data,
        readers: Mutex::default(),
        next_reader: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    Ok((RingWriter { shared: Arc::clone(&shared), seq: 0, reserved: 0 }, RingHandle(shared)))
}

impl Shared {
    fn readers(&self) -> MutexGuard<'_, Vec<Arc<ReaderEntry>>> {
        // The list is consistent between any two statements, so a panic elsewhere does not spoil it.
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn published(&self) -> u64 {
        self.data.words().published.load(Ordering::Relaxed)
    }

    fn with_cursors<R>(&self, act: impl FnOnce(&mut dyn Iterator<Item = CursorWords<'_>>) -> R) -> R {
        let readers = self.readers();
        act(&mut readers.iter().map(|reader| reader.cursor.words()))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// The control plane's hold on a ring.
#[derive(Clone)]
pub struct RingHandle(Arc<Shared>);

impl RingHandle {
    /// The file that readers map read-only.
    pub fn data_path(&self) -> PathBuf {
        self.0.dir.join("data")
    }

    /// Makes a cursor for a new reader, from which on the writer waits for it.
    ///
    /// # Errors
    /// When the ring is full of readers or the cursor cannot be made.
    pub fn add_reader(&self) -> Result<(ReaderId, PathBuf), RingError> {
        let mut readers = self.0.readers();
        if readers.len() == READERS_MAX {
            return Err(RingError::TooManyReaders(READERS_MAX));
        }
        let id = self.0.next_reader.fetch_add(1, Ordering::Relaxed);
        let path = self.0.dir.join(format!("cursor-{id}"));
        let cursor = CursorFile::create(&path)?;
        let (gone, released) = (AtomicBool::new(false), AtomicU64::new(0));
        readers.push(Arc::new(ReaderEntry { id, path: path.clone(), cursor, gone, released }));
        Ok((id, path))
    }

    /// Takes a reader off the list: its leases are free, and the writer no longer waits for it.
    pub fn remove_reader(&self, id: ReaderId) {
        let mut readers = self.0.readers();
        let Some(at) = readers.iter().position(|reader| reader.id == id) else { return };
        let reader = readers.swap_remove(at);
        drop(readers);
        reader.gone.store(true, Ordering::SeqCst);
        self.0.data.words().dismiss(reader.cursor.words(), &Futex);
        let _ = std::fs::remove_file(&reader.path);
    }

    /// Stops the writer, wherever it waits.
    pub fn stop(&self) {
        self.0.stop.store(true, Ordering::SeqCst);
        for reader in self.0.readers().iter() {
            self.0.data.words().dismiss(reader.cursor.words(), &Futex);
        }
    }

    /// Batches published so far.
    pub fn published(&self) -> u64 {
        self.0.published()
    }

    /// Readers attached, each with the batches that it has released as of the writer's last look.
    pub fn readers(&self) -> Vec<(ReaderId, u64)> {
        self.0.readers().iter().map(|reader| (reader.id, reader.released.load(Ordering::Relaxed))).collect()
    }

    /// Bytes of shared memory that the ring takes.
    pub fn bytes(&self) -> u64 {
        self.0.data.layout.file_bytes(self.0.data.slots) as u64
    }
}

/// The only writer of a ring.
pub struct RingWriter {
    shared: Arc<Shared>,
    seq: u64,
    /// Slots whose memory is reserved.
    reserved: u32,
}

impl RingWriter {
    /// Waits until every live reader has released the next slot, and hands it out for writing.
    ///
    /// # Errors
    /// When the feed was stopped, or its last reader evicted, or the slot is used for the first time and there is no memory
    /// for it.
    pub fn next_slot(&mut self) -> Result<SlotMut<'_>, WriterStopped> {
        let (seq, slots) = (self.seq, self.shared.data.slots);
        let stopped = || self.shared.stop.load(Ordering::SeqCst);
        loop {
            let slowest = {
                let readers = self.shared.readers();
                readers.iter().find(|reader| !has_room(seq, reader.released.load(Ordering::Relaxed), slots)).cloned()
            };
            // Looked at after the list: a feed is stopped before its reader is taken off, and what that reader still holds
            // must not be written then.
            if stopped() {
                return Err(WriterStopped::Stopped);
            }
            let Some(reader) = slowest else { break };
            let before = reader.released.load(Ordering::Relaxed);
            let gone = || reader.gone.load(Ordering::SeqCst) || stopped();
            // Unlawful values end the wait, too; they are judged below.
            let enough = |released| has_room(seq, released, slots) || !is_lawful(before, released, seq);
            let now = self.shared.data.words().await_room(reader.cursor.words(), enough, gone, &Futex);
            if is_lawful(before, now, seq) {
                reader.released.store(now, Ordering::Relaxed);
            } else {
                self.evict(&reader, before, now)?;
            }
        }
        let slot = slot_of(seq, slots);
        if slot >= self.reserved {
            self.shared.data.reserve_slot(slot).map_err(|error| WriterStopped::NoSpace(error.to_string()))?;
            self.reserved = slot + 1;
        }
        Ok(SlotMut(self))
    }

    fn evict(&self, reader: &ReaderEntry, before: u64, now: u64) -> Result<(), WriterStopped> {
        let published = self.seq;
        let reason = format!(
            "evicted: the trainer's cursor says {now} released where at least {before} and at most {published} can be"
        );
        tracing::warn!(reader = reader.id, "{reason}");
        RingHandle(Arc::clone(&self.shared)).remove_reader(reader.id);
        if self.shared.readers().is_empty() { Err(WriterStopped::Evicted(reason)) } else { Ok(()) }
    }

    /// Ends the feed with a reason, which readers see after the last published batch. Only the first end counts.
    pub fn end(self, reason: &str, failed: bool) {
        let header = self.shared.data.header();
        let len = reason.floor_char_boundary(REASON_BYTES_MAX);
        for (to, from) in header.reason.iter().zip(&reason.as_bytes()[..len]) {
            to.store(*from, Ordering::Relaxed);
        }
        header.reason_len.store(len as u32, Ordering::Relaxed);
        let code = if failed { ENDED_FAILED } else { ENDED_STOPPED };
        self.shared.with_cursors(|cursors| self.shared.data.words().end(code, cursors, &Futex));
    }
}

/// A slot that is being filled. Dropping it publishes nothing; the same slot is handed out again.
pub struct SlotMut<'a>(&'a mut RingWriter);

impl SlotMut<'_> {
    fn bytes(&mut self) -> &mut [u8] {
        let RingWriter { shared, seq, .. } = &*self.0;
        // SAFETY: `next_slot` alone makes a `SlotMut`, once the slot is reserved, of the only writer (it is not `Clone`, and
        // `self` borrows it), after every reader on the list released batch `seq − slots`, read with Acquire in `await_room`; readers that are no
        // longer on the list have lost their leases.
        unsafe { shared.data.slot_mut(slot_of(*seq, shared.data.slots)) }
    }

    /// The memory of `x` for `len` rows, 64-byte aligned.
    pub fn x_mut(&mut self, len: usize) -> &mut [u8] {
        let layout = self.0.shared.data.layout;
        &mut self.bytes()[layout.x..][..len * layout.image_bytes]
    }

    /// Writes everything but `x`, publishes the batch and wakes the readers.
    ///
    /// # Panics
    /// When the plan has more rows than the ring's batches.
    pub fn publish(mut self, plan: &Plan, label_a: &[i64], label_b: &[i64], digest: u64) {
        let (layout, rows_max, seq) = (self.0.shared.data.layout, self.0.shared.data.batch_size, self.0.seq);
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
        self.0.seq = seq + 1;
        let shared = &self.0.shared;
        shared.with_cursors(|cursors| shared.data.words().publish(seq + 1, cursors, &Futex));
    }
}

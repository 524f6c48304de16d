//! The reading end: leases on published batches.
#![expect(unsafe_code, reason = "reads slots in place, which the protocol keeps unwritten while leased")]

use super::layout::{BatchHeader, ENDED_FAILED};
use super::protocol::slot_of;
use super::region::{CursorFile, DataFile, RingError};
use super::wake::Futex;
use crate::batch::BatchView;
use crate::sync::Ordering;
use bytemuck::cast_slice;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

/// Which batches are out, and which of them are held.
#[derive(Debug, Default)]
struct Window {
    /// Batches released: all below it.
    released: u64,
    /// For each batch from `released` on that was leased: whether it still is.
    held: VecDeque<bool>,
}

impl Window {
    fn lease(&mut self) {
        self.held.push_back(true);
    }

    /// Gives batch `seq` back; returns the new `released` where it moved.
    fn give_back(&mut self, seq: u64) -> Option<u64> {
        self.held[(seq - self.released) as usize] = false;
        let before = self.released;
        while self.held.front() == Some(&false) {
            self.held.pop_front();
            self.released += 1;
        }
        (self.released != before).then_some(self.released)
    }
}

struct Inner {
    data: DataFile,
    cursor: CursorFile,
    window: Mutex<Window>,
    give_up: AtomicBool,
}

/// What came of waiting for a batch.
pub enum Next {
    /// The next batch.
    Batch(Lease),
    /// The feed has ended, and everything published was read.
    Ended {
        /// Why.
        reason: String,
        /// Whether it failed, rather than being stopped in order.
        failed: bool,
    },
    /// [`GiveUp::give_up`] was called.
    GaveUp,
}

/// One reader of a ring.
pub struct RingReader {
    inner: Arc<Inner>,
    next: u64,
}

/// Makes a reader stop waiting, from another thread.
#[derive(Clone)]
pub struct GiveUp(Arc<Inner>);

impl GiveUp {
    /// Ends the reader's waiting, now and later.
    pub fn give_up(&self) {
        self.0.give_up.store(true, Ordering::SeqCst);
        // The reader may be between its look and its sleep, and this process may not write the event word; then it looks
        // again at its sleep's deadline.
        use super::protocol::Sleeper;
        Futex.wake(self.0.data.words().event);
    }
}

impl RingReader {
    /// Maps a ring's data file, and the cursor that was made for this reader.
    ///
    /// # Errors
    /// When a file cannot be mapped or is not of this version.
    pub fn open(data: &Path, cursor: &Path) -> Result<Self, RingError> {
        let (data, cursor) = (DataFile::open(data)?, CursorFile::open(cursor)?);
        let inner = Inner { data, cursor, window: Mutex::default(), give_up: AtomicBool::new(false) };
        Ok(Self { inner: Arc::new(inner), next: 0 })
    }

    /// A handle that ends this reader's waiting.
    pub fn give_up_handle(&self) -> GiveUp {
        GiveUp(Arc::clone(&self.inner))
    }

    /// Whether a batch can be leased without waiting.
    pub fn is_ready(&self) -> bool {
        self.inner.data.words().published.load(Ordering::Relaxed) > self.next
    }

    /// Waits for the next batch and leases it.
    ///
    /// # Errors
    /// When this reader itself holds all slots, or the slot does not hold the batch.
    pub fn next_batch(&mut self) -> Result<Next, RingError> {
        let Inner { data, cursor, window, give_up } = &*self.inner;
        let words = data.words();
        let held = window.lock().unwrap_or_else(PoisonError::into_inner).held.len();
        if held >= data.slots as usize {
            return Err(RingError::AllLeased(data.slots));
        }
        let gave_up = || give_up.load(Ordering::SeqCst);
        if !words.await_published(self.next, cursor.words(), gave_up, &Futex) {
            return Ok(match words.ended.load(Ordering::Acquire) {
                0 => Next::GaveUp,
                code => Next::Ended { reason: data.reason(), failed: code == ENDED_FAILED },
            });
        }
        window.lock().unwrap_or_else(PoisonError::into_inner).lease();
        let lease = Lease { inner: Arc::clone(&self.inner), seq: self.next };
        self.next += 1;
        let (found, rows_max) = (lease.header(), data.batch_size);
        if found.seq != lease.seq || found.len > rows_max {
            return Err(RingError::Torn { seq: lease.seq, found: found.seq });
        }
        Ok(Next::Batch(lease))
    }
}

/// The right to read one batch in place; dropping it gives the slot back.
pub struct Lease {
    inner: Arc<Inner>,
    seq: u64,
}

impl Lease {
    fn slot(&self) -> &[u8] {
        let data = &self.inner.data;
        // SAFETY: batch `seq` is published (read with Acquire), and the writer leaves its slot alone until this reader's
        // cursor passes `seq`, which happens when this lease is dropped.
        unsafe { data.slot(slot_of(self.seq, data.slots)) }
    }

    /// The slot's header.
    pub fn header(&self) -> BatchHeader {
        *bytemuck::from_bytes(&self.slot()[..size_of::<BatchHeader>()])
    }

    /// Number of the batch in this ring, from 0.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// The batch, where it lies.
    pub fn view(&self) -> BatchView<'_> {
        let (slot, header, layout) = (self.slot(), self.header(), self.inner.data.layout);
        let (image_size, dtype, axes) = self.inner.data.images;
        let len = header.len as usize;
        BatchView {
            x: &slot[layout.x..][..len * layout.image_bytes],
            dtype,
            layout: axes,
            image_size,
            label_a: cast_slice(&slot[layout.label_a..][..8 * len]),
            label_b: cast_slice(&slot[layout.label_b..][..8 * len]),
            lambda: cast_slice(&slot[layout.lambda..][..4 * len]),
            partner: cast_slice(&slot[layout.partner..][..4 * len]),
            sample_id: cast_slice(&slot[layout.sample_id..][..4 * len]),
            partner_id: cast_slice(&slot[layout.partner_id..][..4 * len]),
            epoch: header.epoch,
            index: header.index,
            batches: header.batches,
            pad: header.pad,
            digest: header.digest,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Inner { data, cursor, window, .. } = &*self.inner;
        // The store happens under the lock: of two leases dropped at once the later count must be stored last.
        let mut window = window.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(released) = window.give_back(self.seq) {
            data.words().release(released, cursor.words(), &Futex);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::FeedSpec;
    use crate::ring::{RingHandle, RingWriter, WriterStopped, create};
    use crate::sampler::{Plan, Sampler};
    use crate::types::ImageSize;

    struct Fixture {
        writer: RingWriter,
        handle: RingHandle,
        reader: RingReader,
        id: u64,
        plans: Vec<Plan>,
        _dir: tempfile::TempDir,
    }

    fn ring(slots: u32) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let spec = FeedSpec { batch_size: 3, image_size: ImageSize { height: 5, width: 7 }, ..FeedSpec::train() };
        let sampler = Sampler::new(spec, 30).unwrap();
        let plans = (0..10).map(|index| sampler.epoch(0).plan(index)).collect();
        let (writer, handle) = create(&dir.path().join("ring"), &spec.format(), 3, slots).unwrap();
        let (id, cursor) = handle.add_reader().unwrap();
        let reader = RingReader::open(&handle.data_path(), &cursor).unwrap();
        Fixture { writer, handle, reader, id, plans, _dir: dir }
    }

    impl Fixture {
        fn write(&mut self, index: usize) {
            let mut slot = self.writer.next_slot().unwrap();
            slot.x_mut(3).fill(index as u8);
            slot.publish(&self.plans[index], &[1, 2, 3], &[4, 5, 6], 0);
        }

        fn read(&mut self) -> Lease {
            match self.reader.next_batch().unwrap() {
                Next::Batch(lease) => lease,
                _ => panic!("no batch"),
            }
        }
    }

    #[test]
    fn what_is_published_is_what_is_read() {
        let mut ring = ring(2);
        assert!(!ring.reader.is_ready());
        for index in 0..5 {
            ring.write(index);
            let (lease, plan) = (ring.read(), &ring.plans[index]);
            let view = lease.view();
            assert_eq!(view.x, vec![index as u8; 3 * 3 * 5 * 7 * 4]);
            assert_eq!((view.label_a, view.label_b), (&[1, 2, 3][..], &[4, 5, 6][..]));
            assert_eq!((view.sample_id, view.partner_id), (&plan.own[..], &plan.partner[..]));
            assert_eq!((view.lambda, view.partner), (&plan.lambda[..], &plan.partner_row[..]));
            assert_eq!((view.epoch, view.index, view.batches), (0, index as u64, 10));
            assert_eq!((view.shape(), view.x.as_ptr() as usize % 64), ([3, 3, 5, 7], 0));
        }
    }

    #[test]
    fn an_unpublished_slot_is_not_seen() {
        let mut ring = ring(2);
        ring.writer.next_slot().unwrap().x_mut(3).fill(9);
        assert!(!ring.reader.is_ready());
        ring.write(0);
        assert_eq!(ring.read().seq(), 0);
    }

    #[test]
    fn the_writer_waits_for_the_oldest_lease() {
        let mut ring = ring(2);
        ring.write(0);
        ring.write(1);
        let (first, second) = (ring.read(), ring.read());
        drop(second);
        std::thread::scope(|scope| {
            let (writer, plan) = (&mut ring.writer, &ring.plans[2]);
            let written = scope.spawn(move || {
                let mut slot = writer.next_slot().unwrap();
                slot.x_mut(3).fill(2);
                slot.publish(plan, &[0; 3], &[0; 3], 0);
            });
            assert!(first.view().x.iter().all(|&byte| byte == 0), "written while leased");
            drop(first);
            written.join().unwrap();
        });
        assert_eq!(ring.read().view().x[0], 2);
    }

    #[test]
    fn holding_every_slot_and_asking_for_more_is_refused() {
        let mut ring = ring(2);
        ring.write(0);
        ring.write(1);
        let _leases = (ring.read(), ring.read());
        assert!(matches!(ring.reader.next_batch(), Err(RingError::AllLeased(2))));
    }

    #[test]
    fn what_was_published_is_read_before_the_end() {
        let mut ring = ring(2);
        ring.write(0);
        let Fixture { writer, mut reader, .. } = ring;
        writer.end("done for today", false);
        assert!(matches!(reader.next_batch().unwrap(), Next::Batch(_)));
        let Next::Ended { reason, failed } = reader.next_batch().unwrap() else { panic!("not ended") };
        assert_eq!((reason.as_str(), failed), ("done for today", false));
    }

    #[test]
    fn a_waiting_reader_wakes_when_told_to_give_up() {
        let Fixture { mut reader, writer: _writer, .. } = ring(2);
        let handle = reader.give_up_handle();
        let waiting = std::thread::spawn(move || matches!(reader.next_batch().unwrap(), Next::GaveUp));
        handle.give_up();
        assert!(waiting.join().unwrap());
    }

    #[test]
    fn a_removed_reader_frees_the_waiting_writer() {
        let mut ring = ring(2);
        ring.write(0);
        ring.write(1);
        let (handle, id) = (ring.handle.clone(), ring.id);
        let (mut writer, plan) = (ring.writer, ring.plans.remove(2));
        let writing = std::thread::spawn(move || {
            writer.next_slot().unwrap().publish(&plan, &[0; 3], &[0; 3], 0);
        });
        handle.remove_reader(id);
        writing.join().unwrap();
        assert_eq!(handle.published(), 3);
    }

    #[test]
    fn a_stopped_writer_gets_no_slot() {
        let mut ring = ring(2);
        ring.write(0);
        ring.write(1);
        let (handle, mut writer) = (ring.handle.clone(), ring.writer);
        let writing = std::thread::spawn(move || writer.next_slot().err());
        handle.stop();
        assert_eq!(writing.join().unwrap(), Some(WriterStopped::Stopped));
    }

    #[test]
    fn a_cursor_that_lies_is_evicted() {
        for rubbish in [3, u64::MAX] {
            let mut ring = ring(2);
            ring.write(0);
            ring.write(1);
            ring.reader.inner.cursor.words().released.store(rubbish, Ordering::Release);
            assert!(matches!(ring.writer.next_slot().err(), Some(WriterStopped::Evicted(_))), "{rubbish}");
            assert!(ring.handle.readers().is_empty());
        }
    }

    #[test]
    fn files_of_another_version_are_refused() {
        let ring = ring(2);
        let path = ring.handle.data_path();
        let mut bytes = std::fs::read(&path).unwrap();
        let copy = path.with_file_name("copy");
        let cursor = path.with_file_name("cursor-0");
        bytes[8] = 9;
        std::fs::write(&copy, &bytes).unwrap();
        assert!(matches!(RingReader::open(&copy, &cursor), Err(RingError::Foreign { .. })));
        bytes[8] = 1;
        std::fs::write(&copy, &bytes[..bytes.len() - 1]).unwrap();
        assert!(matches!(RingReader::open(&copy, &cursor), Err(RingError::Foreign { .. })));
        std::fs::write(&copy, &bytes).unwrap();
        assert!(RingReader::open(&copy, &cursor).is_ok());
    }

    #[test]
    fn the_ring_leaves_no_file() {
        let Fixture { writer, handle, reader, _dir: dir, .. } = ring(2);
        drop((writer, handle, reader));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

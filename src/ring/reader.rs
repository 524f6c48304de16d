//! The reading end: leases on published batches.
#![expect(unsafe_code, reason = "reads slots in place, which the protocol keeps unwritten while leased")]

use super::device::{DeviceSlots, Mark};
use super::error::RingError;
use super::layout::{BatchHeader, ENDED_FAILED, EVICTED_UNLAWFUL, SlotLayout, bucket};
use super::region::{CursorPage, Data};
use super::view::View;
use super::wake::{Futex, Woken, now_ns};
use crate::batch::{BatchView, Head, OnDevice};
use crate::columns::{COLUMNS, Columns};
use crate::spec::Delivery;
use crate::sync::Ordering;
use crate::types::{Dtype, ImageSize, Layout, Place};
use bytemuck::Zeroable;
use std::cell::Cell;
use std::collections::VecDeque;
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How long a reader of a ring on a device stays awake for a batch before it waits for the device to give back another.
const DEVICE_PATIENCE: Duration = Duration::from_micros(200);

/// What keeps the writer from a reader's slots, for as long as any of it is there.
type Session = Arc<dyn Send + Sync>;

/// Which batches are out, and which of them are held.
#[derive(Default)]
struct Window {
    /// Batches released: all below it.
    released: u64,
    /// For each batch from `released` on that was leased: its slot, for as long as it is.
    held: VecDeque<Option<Leased>>,
    /// Batches whose leases were dropped while a device had work queued that reads them.
    queued: VecDeque<Queued>,
}

/// A batch whose slot is leased. Until it is given back, or kept in a copy, it keeps the ring mapped; its [`Lease`] does not.
struct Leased {
    slot: u32,
    _session: Session,
    _ring: Arc<Inner>,
}

/// A batch that only a device still reads.
struct Queued {
    seq: u64,
    slot: u32,
    /// What to wait for.
    marks: Vec<Box<dyn Mark>>,
}

impl Window {
    /// Leases batch `seq`; those before it that were not leased are skipped.
    fn lease(&mut self, seq: u64, leased: Leased) {
        if self.held.is_empty() {
            self.released = seq;
        }
        self.held.push_back(Some(leased));
    }

    /// Gives batch `seq` back; returns the new `released` where it moved.
    fn give_back(&mut self, seq: u64) -> Option<u64> {
        self.held[(seq - self.released) as usize] = None;
        let before = self.released;
        while self.held.front().is_some_and(Option::is_none) {
            self.held.pop_front();
            self.released += 1;
        }
        (self.released != before).then_some(self.released)
    }
}

struct Inner {
    /// How each slot is seen, from its first lease on. They map the memory of `data`, and go before it.
    views: Mutex<Vec<Option<Arc<View>>>>,
    data: Data,
    cursor: CursorPage,
    /// Where the images lie, of a ring on a device.
    device: Option<Box<dyn DeviceSlots>>,
    window: Mutex<Window>,
    give_up: AtomicBool,
    /// Set when the reader is gone, and only its leases are left.
    left: AtomicBool,
    /// The first batch for this reader.
    first: u64,
    /// The process that attached.
    pid: u32,
}

impl Inner {
    /// Whether this is the process that attached.
    fn is_ours(&self) -> bool {
        self.pid == std::process::id()
    }

    /// Gives a batch back.
    fn give_back(&self, window: &mut Window, seq: u64, slot: u32) {
        let released = window.give_back(seq);
        self.data.words().end_lease(slot, released, self.cursor.words(), &Futex);
    }

    /// Gives back the batches that the device has finished reading; with `wait` it waits for the oldest of the others. Returns whether any is left.
    fn give_back_read(&self, wait: bool) -> bool {
        let mut window = lock(&self.window);
        while let Some(queued) = window.queued.pop_front() {
            let Queued { seq, slot, ref marks } = queued;
            if !marks.iter().all(|mark| mark.is_done()) {
                if !wait {
                    window.queued.push_front(queued);
                    return true;
                }
                // Leases may be dropped meanwhile. Their end changes nothing here.
                drop(window);
                marks.iter().for_each(|mark| mark.wait());
                window = lock(&self.window);
                self.give_back(&mut window, seq, slot);
                return !window.queued.is_empty();
            }
            self.give_back(&mut window, seq, slot);
        }
        false
    }
}

/// What came of waiting for a batch.
#[expect(clippy::large_enum_variant, reason = "a batch is what comes nearly always")]
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
    /// The writer has evicted this reader.
    Evicted(Eviction),
    /// [`GiveUp::give_up`] was called.
    GaveUp,
    /// The caller asked for no more waiting.
    Interrupted,
}

/// Why a reader was evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eviction {
    /// It has kept others waiting for too long.
    Lag,
    /// Its cursor failed validation.
    Unlawful,
}

/// One reader of a ring.
pub struct RingReader {
    inner: Arc<Inner>,
    next: u64,
    /// Nanoseconds waited for the next batch so far.
    waited_ns: AtomicU64,
    session: Session,
}

/// Makes a reader stop waiting, from another thread, and knows what is left for it to read.
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

    /// Whether the writer has ended the feed, rather than died.
    pub fn has_ended(&self) -> bool {
        self.0.data.words().ended() != 0
    }

    /// Whether the writer has put this reader out.
    pub fn was_evicted(&self) -> bool {
        self.0.cursor.words().eviction() != 0
    }

    /// The first batch that no reader of this ring can read any more when the writer is dead.
    pub fn published(&self) -> u64 {
        self.0.data.words().published()
    }

    /// The first batch for this reader.
    pub fn first(&self) -> u64 {
        self.0.first
    }

    /// Readers attached to this ring.
    pub fn readers(&self) -> u32 {
        self.0.data.header().readers.load(Ordering::Relaxed)
    }
}

impl RingReader {
    /// Maps a ring's data, and the cursor that was made for this reader. `session` is dropped after the last lease: what it
    /// stands for keeps the writer from this reader's slots.
    ///
    /// # Errors
    /// When either cannot be mapped or is not of this version.
    pub fn open(data: Arc<File>, cursor: Arc<File>, session: impl Send + Sync + 'static) -> Result<Self, RingError> {
        Self::open_on_device(data, cursor, session, |_, _| Err(RingError::NoDevice))
    }

    /// [`RingReader::open`], but where the images lie on a device has `slots` open them: the bytes of a whole batch, how many slots there are.
    ///
    /// # Errors
    /// As [`RingReader::open`], and those of `slots`.
    pub fn open_on_device(
        data: Arc<File>,
        cursor: Arc<File>,
        session: impl Send + Sync + 'static,
        slots: impl FnOnce(usize, u32) -> Result<Box<dyn DeviceSlots>, RingError>,
    ) -> Result<Self, RingError> {
        let (data, cursor) = (Data::open(data)?, CursorPage::open(cursor)?);
        let device =
            data.on_device.then(|| slots(data.device_bytes(data.images.0, data.batch_size), data.slots)).transpose()?;
        let next = cursor.words().released.load(Ordering::Relaxed);
        let window = Mutex::new(Window { released: next, ..Window::default() });
        let (views, pid) = (Mutex::new(vec![None; data.all_slots() as usize]), std::process::id());
        let (give_up, left) = (AtomicBool::new(false), AtomicBool::new(false));
        let inner = Inner { views, data, cursor, device, window, give_up, left, first: next, pid };
        Ok(Self { inner: Arc::new(inner), next, waited_ns: AtomicU64::new(0), session: Arc::new(session) })
    }

    /// Keeps the batch that was leased first and is leased still, if there is one: from here on it lies in a copy of this process's own, at
    /// the very same address, and the ring goes on without it.
    ///
    /// # Errors
    /// When there is no memory for the copy, or this is another process.
    pub fn keep_oldest(&mut self) -> Result<(), RingError> {
        let Inner { views, window, pid, device, .. } = &*self.inner;
        if !self.inner.is_ours() {
            return Err(RingError::Forked(*pid));
        }
        if device.is_some() {
            return Err(RingError::OnDevice);
        }
        let mut window = lock(window);
        // The first in the window is one that is held.
        let Some(&Some(Leased { slot, .. })) = window.held.front() else { return Ok(()) };
        let mut views = lock(views);
        let view = &mut views[slot as usize];
        view.as_ref().expect("it is leased").keep()?;
        // The slot's next batch is seen through another.
        *view = None;
        let released = window.released;
        self.inner.give_back(&mut window, released, slot);
        Ok(())
    }

    /// Leaves the ring at once, and keeps the batches that are leased; of a ring on a device, leaves when the last of them is dropped. Whether
    /// it has left.
    ///
    /// # Errors
    /// As [`RingReader::keep_oldest`]; then those that are left stay leased.
    pub fn leave(mut self) -> Result<bool, RingError> {
        while self.inner.device.is_none() && !lock(&self.inner.window).held.is_empty() {
            self.keep_oldest()?;
        }
        while self.inner.give_back_read(true) {}
        let has_left = lock(&self.inner.window).held.is_empty();
        Ok(has_left)
    }

    /// A handle that ends this reader's waiting.
    pub fn give_up_handle(&self) -> GiveUp {
        GiveUp(Arc::clone(&self.inner))
    }

    /// Whether a batch can be leased without waiting.
    pub fn is_ready(&self) -> bool {
        self.inner.data.words().published.load(Ordering::Relaxed) > self.next
    }

    /// Waits for the next batch and leases it; until `interrupted`, which is asked whenever this reader is awake, every 250 ms at least,
    /// and at once after a signal's handler has run in this thread.
    ///
    /// # Errors
    /// When this reader itself holds as many slots as it can, no slot holds the batch, or this is another process.
    pub fn next_batch(&mut self, interrupted: impl Fn() -> bool) -> Result<Next, RingError> {
        let Inner { views, data, cursor, device, window, give_up, pid, .. } = &*self.inner;
        if !self.inner.is_ours() {
            return Err(RingError::Forked(*pid));
        }
        let words = data.words();
        let held_max = if data.delivery == Delivery::Latest { 1 } else { data.slots as usize };
        // What only the device still reads is waited for where nothing can come before it is given back, or nothing does come: the writer may
        // have fewer slots than the ring. It has a moment for its next batch first, since a step of the trainer's takes the device longer.
        while self.inner.give_back_read(false) {
            let moment = Instant::now() + DEVICE_PATIENCE;
            let is_full = || lock(window).held.len() >= held_max;
            while !is_full() && !self.is_ready() && Instant::now() < moment {
                std::hint::spin_loop();
            }
            if self.is_ready() && !is_full() {
                break;
            }
            self.inner.give_back_read(true);
        }
        let held = lock(window).held.len();
        match data.delivery {
            Delivery::Lossless if held >= data.slots as usize => return Err(RingError::AllLeased(data.slots)),
            Delivery::Latest if held > 0 => return Err(RingError::OneAtATime),
            _ => {}
        }
        // After a lease that failed, ordered by its fence: sync point G.
        let evicted = || cursor.words().eviction();
        // A long wait is counted while it lasts.
        let waiting_since = Cell::new(None);
        let count_wait = || {
            if let Some(since) = waiting_since.get() {
                let now = Instant::now();
                waiting_since.set(Some(now));
                let waited_ns = (now - since).as_nanos() as u64;
                count(&cursor.page().waited_ns, waited_ns);
                count(&self.waited_ns, waited_ns);
            }
        };
        let gave_up = || {
            count(&cursor.page().looks, 1);
            give_up.load(Ordering::SeqCst) || evicted() != 0 || interrupted()
        };
        let (seq, slot) = loop {
            waiting_since.set((!self.is_ready()).then(Instant::now));
            let (woke_ns, wake_ns) = (&data.header().woke_ns, &cursor.page().wake_ns);
            let woken = Woken { woke_ns, wake_ns, slept: &count_wait };
            let is_there = words.await_published(self.next, cursor.words(), gave_up, &woken);
            count_wait();
            match evicted() {
                0 => {}
                EVICTED_UNLAWFUL => return Ok(Next::Evicted(Eviction::Unlawful)),
                _ => return Ok(Next::Evicted(Eviction::Lag)),
            }
            if !is_there {
                return Ok(match words.ended() {
                    0 if give_up.load(Ordering::SeqCst) => Next::GaveUp,
                    0 => Next::Interrupted,
                    code => Next::Ended { reason: data.reason(), failed: code == ENDED_FAILED },
                });
            }
            let published = words.published();
            let sequence = match data.delivery {
                Delivery::Lossless => self.next..self.next + 1,
                // In order while it keeps up; who has fallen behind by the whole ring goes on with the newest.
                Delivery::Latest if published - self.next > u64::from(data.slots) => published - 1..published,
                Delivery::Latest => self.next..published,
            };
            let lease = |seq| Some((seq, words.lease(seq, cursor.words(), &Futex)?));
            let found = sequence.clone().find_map(lease);
            let skipped = match (found, data.delivery) {
                (Some((seq, _)), _) => seq - self.next,
                _ if evicted() != 0 => continue,
                (None, Delivery::Latest) => sequence.end - self.next,
                (None, Delivery::Lossless) => return Err(RingError::Torn { seq: self.next }),
            };
            if skipped > 0 {
                self.next += skipped;
                count(&cursor.page().skipped, skipped);
                words.release(self.next, cursor.words(), &Futex);
            }
            if let Some(found) = found {
                break found;
            }
        };
        // No slot has a new batch while this reader holds its old one.
        if lock(window).held.iter().flatten().any(|leased| leased.slot == slot) {
            return Err(RingError::Torn { seq });
        }
        let view = match &mut lock(views)[slot as usize] {
            Some(view) => Arc::clone(view),
            none => {
                let view = data.view(slot).inspect_err(|_| words.end_lease(slot, None, cursor.words(), &Futex))?;
                Arc::clone(none.insert(Arc::new(view)))
            }
        };
        let on_device = device.as_ref().map(|device| (device.ordinal(), device.address(slot)));
        let leased = Leased { slot, _session: Arc::clone(&self.session), _ring: Arc::clone(&self.inner) };
        lock(window).lease(seq, leased);
        let waited_ns = std::mem::take(self.waited_ns.get_mut());
        count(&cursor.page().read, 1);
        count(&cursor.page().waits[bucket(waited_ns)], 1);
        self.next = seq + 1;
        let (ring, streams) = (Arc::downgrade(&self.inner), Mutex::default());
        let (header, layout, images) = (BatchHeader::zeroed(), data.layout, data.images);
        let mut lease = Lease { view, ring, layout, images, header, seq, slot, on_device, streams };
        lease.header = *bytemuck::from_bytes(&lease.slot()[..size_of::<BatchHeader>()]);
        let BatchHeader { seq: found, len, height, width, published_ns, .. } = lease.header;
        if waited_ns > 0 {
            let handover_ns = now_ns().saturating_sub(published_ns);
            count(&cursor.page().handovers[bucket(handover_ns)], 1);
            count(&cursor.page().handover_ns, handover_ns);
        }
        let size = data.images.0;
        let fits = len <= data.batch_size && u32::from(height) <= size.height && u32::from(width) <= size.width;
        if found == seq && fits { Ok(Next::Batch(lease)) } else { Err(RingError::Torn { seq }) }
    }
}

impl Drop for RingReader {
    fn drop(&mut self) {
        self.inner.left.store(true, Ordering::SeqCst);
        // Nobody else would give back what the device still reads.
        if self.inner.is_ours() {
            while self.inner.give_back_read(true) {}
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds to a counter that only this reader stores.
fn count(counter: &AtomicU64, more: u64) {
    if more > 0 {
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }
}

/// The right to read one batch in place; dropping it gives the slot back.
pub struct Lease {
    view: Arc<View>,
    /// Kept by the window while the slot is leased: a copy that was kept needs no ring.
    ring: Weak<Inner>,
    layout: SlotLayout,
    images: (ImageSize, Dtype, Layout),
    /// As it was when it was checked.
    header: BatchHeader,
    seq: u64,
    slot: u32,
    /// Which device, and where the images lie there.
    on_device: Option<(u32, u64)>,
    /// Streams on which work may be queued that reads them.
    streams: Mutex<Vec<usize>>,
}

impl Lease {
    /// Says that work which reads the images may be queued on this stream of their device, an address as CUDA's interfaces have it (0 is the
    /// legacy default stream, which is always counted): when the lease is dropped the slot stays this trainer's until that work is done. Of
    /// [`ANY_STREAM`](super::ANY_STREAM), all of the device's.
    pub fn used_on(&self, stream: usize) {
        let mut streams = lock(&self.streams);
        // The legacy default stream has two names.
        if stream > 1 && !streams.contains(&stream) {
            streams.push(stream);
        }
    }

    fn slot(&self) -> &[u8] {
        // SAFETY: batch `seq` is published (read with Acquire), and the writer leaves its slot alone until this reader lets go of it
        // and its cursor passes `seq`, which happens when this lease is dropped; until then the session keeps the reader on a list. Where
        // the lease has ended before, the view was kept.
        unsafe { self.view.bytes() }
    }

    /// The slot's header.
    pub fn header(&self) -> BatchHeader {
        self.header
    }

    /// Number of the batch in this ring, from 0.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// The batch's place.
    pub fn place(&self) -> Place {
        let BatchHeader { epoch, index, .. } = self.header();
        Place { epoch, index }
    }

    /// The batch, where it lies.
    pub fn view(&self) -> BatchView<'_> {
        let (slot, header, layout, (_, dtype, axes)) = (self.slot(), self.header(), self.layout, self.images);
        let image_size = ImageSize { height: header.height.into(), width: header.width.into() };
        let len = header.len as usize;
        let bytes = len * image_size.values() * dtype.bytes();
        BatchView {
            x: &slot[layout.x..][..if self.on_device.is_some() { 0 } else { bytes }],
            x_on_device: self.on_device.map(|(ordinal, address)| OnDevice { ordinal, address, bytes }),
            dtype,
            layout: axes,
            image_size,
            columns: Columns::over(std::array::from_fn(|nth| {
                &slot[layout.columns[nth]..][..COLUMNS[nth].row_bytes * len]
            })),
            head: Head {
                epoch: header.epoch,
                index: header.index,
                batches: header.batches,
                pad: header.pad,
                digest_version: header.digest_version.into(),
                digest: header.digest,
            },
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Where the ring is gone the batch lies in a copy; and what a child was forked with is its parent's to give back.
        let Some(ring) = self.ring.upgrade().filter(|ring| ring.is_ours()) else { return };
        let Inner { window, device, left, .. } = &*ring;
        let marks = device.as_ref().map_or_else(Vec::new, |device| {
            let streams: Vec<usize> = std::iter::once(0).chain(lock(&self.streams).drain(..)).collect();
            device.mark(&streams)
        });
        // The store happens under the lock: of two leases dropped at once the later count must be stored last.
        let mut window = lock(window);
        if marks.iter().any(|mark| !mark.is_done()) {
            window.queued.push_back(Queued { seq: self.seq, slot: self.slot, marks });
            drop(window);
            // Looked at after that: either this waits, or the reader, which is being dropped, does.
            while left.load(Ordering::SeqCst) && ring.give_back_read(true) {}
        } else if !self.view.is_kept() {
            self.view.share();
            ring.give_back(&mut window, self.seq, self.slot);
        }
    }
}

#[cfg(test)]
mod tests;

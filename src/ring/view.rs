//! A slot as a reader sees it: a mapping of its own, read-only, in which three things can happen that cost the others nothing.
//!
//! *Somebody writes to it.* A tensor of torch, for one, does not know that it must not be written to, and that would be the end of the
//! process. One that lends batches to such code has its handler of SIGSEGV call [`make_private`], which maps the slot anew, privately;
//! the write then happens again, and succeeds on pages of this process's own. [`View::share`] takes that back when the lease ends.
//!
//! *Somebody keeps it*, longer than the ring can wait: [`View::keep`] puts a copy in its place, at the very same address, and the reader sees
//! the slot through another view from then on.
//!
//! *The process is forked.* Batches would change under the child's hands, so it is to call [`forget`], which leaves it nothing to read there.
#![expect(unsafe_code, reason = "maps slots, and maps them anew under references to them")]

use super::error::RingError;
use rustix::fd::BorrowedFd;
use rustix::mm::{MapFlags, MprotectFlags, MremapFlags, ProtFlags};
use rustix::mm::{mmap, mmap_anonymous, mprotect, mremap_fixed, munmap};
use std::ffi::c_void;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, TryLockError};

/// As the daemon writes it.
const SHARED: u8 = 0;
const CHANGING: u8 = 1;
/// This process has written to it.
const PRIVATE: u8 = 2;
/// A copy, for good.
const KEPT: u8 = 3;

/// A view, where a signal handler finds it: an entry of a list that only grows, used again when its view is gone.
struct Entry {
    next: *const Entry,
    /// Address of the first byte; 0 while there is no view.
    start: AtomicUsize,
    bytes: AtomicUsize,
    /// The data's descriptor, and where the slot lies in it.
    file: AtomicI32,
    offset: AtomicUsize,
    /// The process that mapped it.
    pid: AtomicU32,
    state: AtomicU8,
}

// SAFETY: `next` is set before the entry is in the list and never changes, and entries are never freed.
unsafe impl Sync for Entry {}
// SAFETY: as above.
unsafe impl Send for Entry {}

static ENTRIES: AtomicPtr<Entry> = AtomicPtr::new(std::ptr::null_mut());
/// Entries whose views are gone. Never waited for: a child that was forked may have a copy of the lock that is held for good.
static FREE: Mutex<Vec<&Entry>> = Mutex::new(Vec::new());

fn with_free_entries<T>(act: impl FnOnce(&mut Vec<&'static Entry>) -> T) -> Option<T> {
    match FREE.try_lock() {
        Ok(mut free) => Some(act(&mut free)),
        Err(TryLockError::Poisoned(free)) => Some(act(&mut free.into_inner())),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// Adds an entry to the list.
fn new_entry() -> &'static Entry {
    let mut entry = Box::new(Entry {
        next: ENTRIES.load(Ordering::Acquire),
        start: AtomicUsize::new(0),
        bytes: AtomicUsize::new(0),
        file: AtomicI32::new(-1),
        offset: AtomicUsize::new(0),
        pid: AtomicU32::new(0),
        state: AtomicU8::new(SHARED),
    });
    loop {
        let (next, new) = (entry.next.cast_mut(), Box::into_raw(entry));
        match ENTRIES.compare_exchange(next, new, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: leaked from here on, and changed by its atomics alone.
            Ok(_) => return unsafe { &*new },
            Err(now) => {
                // SAFETY: nobody has seen it.
                entry = unsafe { Box::from_raw(new) };
                entry.next = now;
            }
        }
    }
}

fn entries() -> impl Iterator<Item = &'static Entry> {
    let mut next = ENTRIES.load(Ordering::Acquire).cast_const();
    std::iter::from_fn(move || {
        // SAFETY: entries are leaked boxes, whole before they are in the list.
        let entry = unsafe { next.as_ref() }?;
        next = entry.next;
        Some(entry)
    })
}

/// The entry of the view that has this address.
fn find(address: usize) -> Option<&'static Entry> {
    entries().find(|entry| {
        let start = entry.start.load(Ordering::Acquire);
        start != 0 && address >= start && address - start < entry.bytes.load(Ordering::Relaxed)
    })
}

/// The process that leased the batch with this address, if it is one's: this one, or the one that it was forked from. Async-signal-safe.
pub fn lessee(address: usize) -> Option<u32> {
    find(address).map(|entry| entry.pid.load(Ordering::Relaxed))
}

/// Makes the slot with this address, which is leased and could not be written to, this process's own; false where there is none or the
/// system refuses. Then the write is to be tried again. Async-signal-safe.
pub fn make_private(address: usize) -> bool {
    let Some(entry) = find(address).filter(|entry| entry.pid.load(Ordering::Relaxed) == std::process::id()) else {
        return false;
    };
    if entry.state.compare_exchange(SHARED, CHANGING, Ordering::Acquire, Ordering::Relaxed).is_err() {
        // Another thread wrote to it at the same time, and what that gets is for all.
        return true;
    }
    let mapped = entry.map(MapFlags::PRIVATE, ProtFlags::READ | ProtFlags::WRITE);
    entry.state.store(if mapped { PRIVATE } else { SHARED }, Ordering::Release);
    mapped
}

/// Takes the batches of the process that this one was just forked from out of its memory: to touch one is a fault from here on. Copies
/// that were kept stay. Async-signal-safe.
pub fn forget() {
    for entry in entries().filter(|entry| entry.start.load(Ordering::Acquire) != 0) {
        let is_parents = entry.pid.load(Ordering::Relaxed) != std::process::id();
        if is_parents && entry.state.load(Ordering::Relaxed) != KEPT {
            let bytes = entry.bytes.load(Ordering::Relaxed);
            // SAFETY: the view's own pages. Whoever reads them in this process, which has no lease, ends.
            let _ = unsafe {
                mmap_anonymous(entry.address(), bytes, ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::FIXED)
            };
        }
    }
}

impl Entry {
    fn address(&self) -> *mut c_void {
        self.start.load(Ordering::Relaxed) as *mut c_void
    }

    /// Maps the slot in the view's place; false where the system refuses.
    fn map(&self, how: MapFlags, access: ProtFlags) -> bool {
        let (bytes, offset) = (self.bytes.load(Ordering::Relaxed), self.offset.load(Ordering::Relaxed) as u64);
        // SAFETY: the file outlives the view, since the ring that made it owns both.
        let file = unsafe { BorrowedFd::borrow_raw(self.file.load(Ordering::Relaxed)) };
        // SAFETY: the pages are the view's own, and keep their contents as far as this process has not written to them; no reference to them
        // lives where that is taken back, since the lease has ended.
        unsafe { mmap(self.address(), bytes, access, how | MapFlags::FIXED, file, offset) }.is_ok()
    }
}

/// One mapping of one slot.
pub struct View(&'static Entry);

impl View {
    /// Maps a slot of a ring's data, which must outlive the view.
    pub fn open(file: &File, offset: usize, bytes: usize) -> Result<Self, RingError> {
        // SAFETY: a new mapping, in a place that the system chooses, of what the file was seen to hold.
        let address = unsafe {
            mmap(std::ptr::null_mut(), bytes, ProtFlags::READ, MapFlags::SHARED, file.as_fd(), offset as u64)
        };
        let address = address.map_err(|errno| RingError::NoView { bytes, source: errno.into() })?;
        let entry = with_free_entries(Vec::pop).flatten().unwrap_or_else(new_entry);
        entry.bytes.store(bytes, Ordering::Relaxed);
        entry.file.store(file.as_raw_fd(), Ordering::Relaxed);
        entry.offset.store(offset, Ordering::Relaxed);
        entry.pid.store(std::process::id(), Ordering::Relaxed);
        entry.state.store(SHARED, Ordering::Relaxed);
        entry.start.store(address as usize, Ordering::Release);
        Ok(Self(entry))
    }

    /// A view of what is mapped already, which outlives it and stays as it is: no process is its own, so nothing is mapped in its place.
    #[cfg(test)]
    pub fn over(address: usize, bytes: usize) -> Self {
        let entry = new_entry();
        entry.bytes.store(bytes, Ordering::Relaxed);
        entry.start.store(address, Ordering::Release);
        Self(entry)
    }

    /// The slot's bytes.
    ///
    /// # Safety
    /// The slot must be leased, or the view kept, while the slice lives, and this be the process that opened the view.
    pub unsafe fn bytes(&self) -> &[u8] {
        // SAFETY: mapped for as long as `self`; the caller excludes that the writer writes to it.
        unsafe { std::slice::from_raw_parts(self.0.address().cast(), self.0.bytes.load(Ordering::Relaxed)) }
    }

    /// Shows the ring again, where this process had written to the slot. Its lease has ended.
    pub fn share(&self) {
        if self.0.state.load(Ordering::Acquire) == PRIVATE {
            // Where even this fails, whatever is read there next would be the past: better none at all.
            assert!(self.0.map(MapFlags::SHARED, ProtFlags::READ), "cannot map a batch again");
            self.0.state.store(SHARED, Ordering::Release);
        }
    }

    /// Shows what it shows for good, whatever becomes of the slot, which must be leased: a copy takes its place.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn keep(&self) -> Result<(), RingError> {
        let Entry { state, bytes, .. } = self.0;
        let (address, bytes) = (self.0.address(), bytes.load(Ordering::Relaxed));
        // Whoever writes meanwhile tries again and again.
        let before = loop {
            let before = state.load(Ordering::Relaxed);
            if before != CHANGING
                && state.compare_exchange(before, CHANGING, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                break before;
            }
            std::hint::spin_loop();
        };
        // SAFETY: the copy has as many bytes as the slot, which is leased and mapped, and takes its place with the same contents: while they
        // are copied nobody can write to them.
        let kept = unsafe {
            mprotect(address, bytes, MprotectFlags::READ)
                .and_then(|()| {
                    let access = ProtFlags::READ | ProtFlags::WRITE;
                    mmap_anonymous(std::ptr::null_mut(), bytes, access, MapFlags::PRIVATE)
                })
                .and_then(|copy| {
                    std::ptr::copy_nonoverlapping(address.cast::<u8>(), copy.cast::<u8>(), bytes);
                    mremap_fixed(copy, bytes, bytes, MremapFlags::MAYMOVE, address).inspect_err(|_| {
                        let _ = munmap(copy, bytes);
                    })
                })
        };
        if kept.is_err() && before == PRIVATE {
            // SAFETY: as it was.
            let _ = unsafe { mprotect(address, bytes, MprotectFlags::READ | MprotectFlags::WRITE) };
        }
        state.store(if kept.is_ok() { KEPT } else { before }, Ordering::Release);
        kept.map(drop).map_err(|errno| RingError::NoView { bytes, source: errno.into() })
    }

    /// Whether it is a copy.
    pub fn is_kept(&self) -> bool {
        self.0.state.load(Ordering::Acquire) == KEPT
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let (address, bytes) = (self.0.address(), self.0.bytes.load(Ordering::Relaxed));
        let is_own = self.0.pid.load(Ordering::Relaxed) == std::process::id();
        self.0.start.store(0, Ordering::Release);
        // A child that was forked has something else there, or nothing.
        if is_own {
            // SAFETY: mapped by `open`, and nobody refers to it any more.
            let _ = unsafe { munmap(address, bytes) };
            with_free_entries(|free| free.push(self.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::columns::OwnedColumns;
    use crate::plan::{Plan, Sampler};
    use crate::ring::{Lease, Next, Pace, RingHandle, RingReader, RingWriter, create};
    use crate::spec::FeedSpec;
    use crate::types::{CropBox, ImageSize};

    /// A ring of two slots with two readers.
    struct Ring {
        writer: RingWriter,
        handle: RingHandle,
        readers: Vec<RingReader>,
        plan: Plan,
    }

    impl Ring {
        fn new() -> Self {
            let spec = FeedSpec { batch_size: 2, image_size: ImageSize::square(64), ..FeedSpec::train() };
            let (writer, handle) = create(&spec.format(), 2, 2, Pace::PRIVATE).unwrap();
            let reader = |_| {
                let (_, cursor) = handle.add_reader(Some).unwrap();
                RingReader::open(handle.data(), cursor, ()).unwrap()
            };
            let readers = (0..2).map(reader).collect();
            Self { writer, handle, readers, plan: Sampler::new(spec, 8).unwrap().epoch(0).plan(0) }
        }

        /// The next batch, all of this value, as each reader has it.
        fn batch(&mut self, value: u8) -> Vec<Lease> {
            let mut slot = self.writer.next_slot().unwrap();
            let size = ImageSize::square(64);
            slot.x_mut(size, 2).fill(value);
            let mut columns = OwnedColumns::default();
            self.plan.fill(&mut columns, |_| 0, |_| CropBox::default());
            slot.publish(size, self.plan.head(), columns.view());
            let lease = |reader: &mut RingReader| match reader.next_batch(|| false).unwrap() {
                Next::Batch(lease) => lease,
                _ => panic!("no batch"),
            };
            self.readers.iter_mut().map(lease).collect()
        }
    }

    fn is_all(lease: &Lease, value: u8) -> bool {
        lease.view().x.iter().all(|&byte| byte == value)
    }

    /// Writes 99 to an element.
    fn write(lease: &Lease, at: usize) {
        let x = lease.view().x.as_ptr();
        assert!(lessee(x as usize + at) == Some(std::process::id()) && make_private(x as usize + at));
        // SAFETY: the slot is this reader's own now, and nobody else looks at this view of it meanwhile.
        unsafe { x.cast_mut().add(at).write(99) };
        assert_eq!((lease.view().x.as_ptr(), lease.view().x[at]), (x, 99));
    }

    #[test]
    fn what_a_reader_writes_is_its_own_until_its_lease_ends() {
        let mut ring = Ring::new();
        // Each slot, and the first again.
        for value in 1..=3 {
            let leases = ring.batch(value);
            write(&leases[0], 5_000);
            assert_eq!(leases[0].view().x[0], value);
            assert!(is_all(&leases[1], value));
        }
        let leases = ring.batch(4);
        assert!(leases.iter().all(|lease| is_all(lease, 4)));
        assert!(!make_private(&raw const ring as usize));
    }

    #[test]
    fn what_is_kept_stays_in_its_place_and_the_ring_goes_on() {
        let mut ring = Ring::new();
        let oldest = ring.batch(0).swap_remove(0);
        write(&oldest, 7);
        let place = oldest.view().x.as_ptr();
        // Through all slots, with some that are dropped before they would have to be kept.
        let mut held = vec![ring.batch(1).swap_remove(0)];
        for value in 2..9 {
            if value % 3 == 0 {
                drop(held.pop());
            }
            assert!(value > 2 || matches!(ring.readers[0].next_batch(|| false), Err(RingError::AllLeased(2))));
            ring.readers[0].keep_oldest().unwrap();
            let mut leases = ring.batch(value);
            assert!(leases.iter().all(|lease| is_all(lease, value)));
            held.push(leases.swap_remove(0));
        }
        let is_whole = |held: &[Lease]| held.iter().all(|lease| is_all(lease, lease.seq() as u8));
        assert!(is_whole(&held) && held.len() == 6);
        // One who leaves keeps the rest, and the other reads on.
        let leaves = ring.readers.remove(0);
        leaves.leave().unwrap();
        ring.handle.remove_reader(ring.handle.readers()[0].id);
        (9..14).for_each(|value| assert!(is_all(&ring.batch(value)[0], value)));
        assert!(is_whole(&held));
        assert_eq!((oldest.view().x.as_ptr(), oldest.view().x[7]), (place, 99));
        assert!(oldest.view().x[8..].iter().all(|&byte| byte == 0));
    }
}

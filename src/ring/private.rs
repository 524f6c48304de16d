//! Writing to a batch: the process that does gets pages of its own until its lease ends, and nobody else sees what it wrote.
//!
//! Readers map the ring read-only, so that writing to a leased batch would be the end of a process: a tensor of torch, for one, does not
//! know that it must not be written to. A process that lends batches to such code has its handler of SIGSEGV call [`make_private`], which
//! maps the slot anew, privately; the faulting write then happens again and succeeds. [`Slots::share`] takes that back when the lease
//! ends. Nothing of this costs a batch that is only read anything.
#![expect(unsafe_code, reason = "remaps slots that this process has leased")]

use super::layout::SPARES;
use super::region::RingError;
use crate::config::SLOTS_MAX;
use rustix::fd::BorrowedFd;
use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap, mmap_anonymous, mremap_fixed, munmap};
use std::ffi::c_void;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// The most slots of a ring, spare ones included.
const SLOTS: usize = (SLOTS_MAX + SPARES) as usize;

const SHARED: u8 = 0;
const CHANGING: u8 = 1;
const PRIVATE: u8 = 2;

/// The slots of one mapping, where a signal handler finds them: entries of a list that only grows, used again when their ring is gone.
struct Entry {
    next: *const Entry,
    /// Address of slot 0; 0 while no ring uses the entry.
    start: AtomicUsize,
    slot_bytes: AtomicUsize,
    slots: AtomicUsize,
    /// The data file, and where slot 0 lies in it.
    file: AtomicI32,
    offset: AtomicUsize,
    /// For each slot whether it is mapped privately.
    states: [AtomicU8; SLOTS],
}

// SAFETY: `next` is set before the entry is in the list and never changes, and entries are never freed.
unsafe impl Sync for Entry {}
// SAFETY: as above.
unsafe impl Send for Entry {}

static ENTRIES: AtomicPtr<Entry> = AtomicPtr::new(std::ptr::null_mut());
/// Held while an entry is taken.
static TAKING: Mutex<()> = Mutex::new(());

fn entries() -> impl Iterator<Item = &'static Entry> {
    let mut next = ENTRIES.load(Ordering::Acquire).cast_const();
    std::iter::from_fn(move || {
        // SAFETY: entries are leaked boxes, whole before they are in the list.
        let entry = unsafe { next.as_ref() }?;
        next = entry.next;
        Some(entry)
    })
}

/// The entry, and the number of the slot in it, that has this address.
fn find(address: usize) -> Option<(&'static Entry, usize)> {
    entries().find_map(|entry| {
        let start = entry.start.load(Ordering::Acquire);
        let slot = address.checked_sub(start)? / entry.slot_bytes.load(Ordering::Relaxed);
        (start != 0 && slot < entry.slots.load(Ordering::Relaxed)).then_some((entry, slot))
    })
}

/// Whether a slot of some ring has this address. Async-signal-safe.
pub fn is_slot(address: usize) -> bool {
    find(address).is_some()
}

/// Makes the slot with this address, which is leased and could not be written to, this process's own; false where there is none or the
/// system refuses. Then the write is to be tried again. Async-signal-safe.
pub fn make_private(address: usize) -> bool {
    let Some((entry, slot)) = find(address) else { return false };
    let state = &entry.states[slot];
    if state.compare_exchange(SHARED, CHANGING, Ordering::Acquire, Ordering::Relaxed).is_err() {
        // Another thread wrote to it at the same time, and what that gets is for all.
        return true;
    }
    let mapped = entry.map(slot, MapFlags::PRIVATE, ProtFlags::READ | ProtFlags::WRITE);
    state.store(if mapped { PRIVATE } else { SHARED }, Ordering::Release);
    mapped
}

impl Entry {
    /// Maps a slot anew in its place; false where the system refuses.
    fn map(&self, slot: usize, how: MapFlags, access: ProtFlags) -> bool {
        let slot_bytes = self.slot_bytes.load(Ordering::Relaxed);
        let address = (self.start.load(Ordering::Relaxed) + slot * slot_bytes) as *mut _;
        let offset = (self.offset.load(Ordering::Relaxed) + slot * slot_bytes) as u64;
        // SAFETY: the file outlives the entry's use, since the ring that registered it owns it.
        let file = unsafe { BorrowedFd::borrow_raw(self.file.load(Ordering::Relaxed)) };
        // SAFETY: the pages are part of this ring's own mapping, and keep their contents as far as this process has not written to them;
        // no reference to them lives where that is taken back, since the lease has ended.
        unsafe { mmap(address, slot_bytes, access, how | MapFlags::FIXED, file, offset) }
            .and_then(|address| {
                // SAFETY: what was just mapped.
                unsafe { madvise(address, slot_bytes, Advice::LinuxDontFork) }
            })
            .is_ok()
    }
}

/// The slots of one mapping, registered until this is dropped.
pub struct Slots(&'static Entry);

impl Slots {
    /// Registers `slots` slots of `slot_bytes` bytes, the first at address `start` and at `offset` in the file.
    pub fn register(start: usize, slots: usize, slot_bytes: usize, file: &File, offset: usize) -> Self {
        assert!(slots <= SLOTS);
        let _taking = TAKING.lock().unwrap_or_else(PoisonError::into_inner);
        let free = entries().find(|entry| entry.start.load(Ordering::Relaxed) == 0);
        let entry = free.unwrap_or_else(|| {
            let entry = Box::leak(Box::new(Entry {
                next: ENTRIES.load(Ordering::Relaxed),
                start: AtomicUsize::new(0),
                slot_bytes: AtomicUsize::new(1),
                slots: AtomicUsize::new(0),
                file: AtomicI32::new(-1),
                offset: AtomicUsize::new(0),
                states: [const { AtomicU8::new(SHARED) }; SLOTS],
            }));
            ENTRIES.store(entry, Ordering::Release);
            entry
        });
        entry.slot_bytes.store(slot_bytes, Ordering::Relaxed);
        entry.slots.store(slots, Ordering::Relaxed);
        entry.file.store(file.as_raw_fd(), Ordering::Relaxed);
        entry.offset.store(offset, Ordering::Relaxed);
        entry.states[..slots].iter().for_each(|state| state.store(SHARED, Ordering::Relaxed));
        entry.start.store(start, Ordering::Release);
        Self(entry)
    }

    /// Makes a slot whose lease ends show the ring again, where this process had written to it.
    pub fn share(&self, slot: u32) {
        let state = &self.0.states[slot as usize];
        if state.load(Ordering::Acquire) == PRIVATE {
            // Where even this fails, whatever is read there next would be the past: better none at all.
            assert!(self.0.map(slot as usize, MapFlags::SHARED, ProtFlags::READ), "cannot map a batch again");
            state.store(SHARED, Ordering::Release);
        }
    }

    /// Makes a leased slot show what it shows for good, whatever becomes of the ring: a copy, in the very same place.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn keep(&self, slot: u32) -> Result<(), RingError> {
        let bytes = self.0.slot_bytes.load(Ordering::Relaxed);
        let address = (self.0.start.load(Ordering::Relaxed) + slot as usize * bytes) as *mut c_void;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the copy has as many bytes as the slot, which is leased and mapped, and takes its place with the same contents.
        let kept = unsafe {
            mmap_anonymous(std::ptr::null_mut(), bytes, access, MapFlags::PRIVATE).and_then(|copy| {
                std::ptr::copy_nonoverlapping(address.cast::<u8>(), copy.cast::<u8>(), bytes);
                mremap_fixed(copy, bytes, bytes, MremapFlags::MAYMOVE, address).inspect_err(|_| {
                    let _ = munmap(copy, bytes);
                })
            })
        };
        kept.map(drop).map_err(|errno| RingError::NoCopy { bytes, source: errno.into() })
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        self.0.start.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::FeedSpec;
    use crate::ring::{Lease, Next, Pace, RingReader, create};
    use crate::sampler::Sampler;
    use crate::types::ImageSize;

    #[test]
    fn what_a_reader_writes_is_its_own_until_its_lease_ends() {
        let dir = tempfile::tempdir().unwrap();
        let spec = FeedSpec { batch_size: 2, image_size: ImageSize::square(64), ..FeedSpec::train() };
        let sampler = Sampler::new(spec, 8).unwrap();
        let (mut writer, handle) = create(&dir.path().join("ring"), &spec.format(), 2, 2, Pace::PRIVATE).unwrap();
        let mut readers = [(); 2].map(|()| {
            let (_, cursor) = handle.add_reader(Some).unwrap();
            RingReader::open(&handle.data_path(), &cursor, ()).unwrap()
        });
        let mut batch = |value: u8| {
            let mut slot = writer.next_slot().unwrap();
            slot.x_mut(2).fill(value);
            slot.publish(&sampler.epoch(0).plan(0), &[0; 2], &[0; 2], 0);
            readers.each_mut().map(|reader| match reader.next_batch(|| false).unwrap() {
                Next::Batch(lease) => lease,
                _ => panic!("no batch"),
            })
        };
        let is_all = |lease: &Lease, value: u8| lease.view().x.iter().all(|&byte| byte == value);
        // Each slot, and the first again.
        for value in 1..=3 {
            let [writes, reads] = batch(value);
            let x = writes.view().x.as_ptr();
            let address = x as usize + 5_000;
            assert!(is_slot(address) && make_private(address));
            // SAFETY: the slot is this reader's own now, and nobody else looks at this mapping of it meanwhile.
            unsafe { x.cast_mut().add(5_000).write(99) };
            assert_eq!((writes.view().x[5_000], writes.view().x[0]), (99, value));
            assert_eq!(writes.view().x.as_ptr(), x);
            assert!(is_all(&reads, value));
        }
        let [writes, reads] = batch(4);
        assert!(is_all(&writes, 4) && is_all(&reads, 4));
        assert!(!make_private(&raw const dir as usize));
        // One who leaves keeps what it has leased, written to or not, while the ring goes on.
        assert!(make_private(writes.view().x.as_ptr() as usize));
        drop(batch);
        let [leaves, mut stays] = readers;
        leaves.leave().unwrap();
        drop(reads);
        handle.remove_reader(handle.readers()[0].id);
        for value in 5..8 {
            let mut slot = writer.next_slot().unwrap();
            slot.x_mut(2).fill(value);
            slot.publish(&sampler.epoch(0).plan(0), &[0; 2], &[0; 2], 0);
            assert!(matches!(stays.next_batch(|| false).unwrap(), Next::Batch(lease) if is_all(&lease, value)));
        }
        assert!(is_all(&writes, 4));
    }
}

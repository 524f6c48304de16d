//! Memory that daemon and trainers share: sealed memfds, allocated before use and opened with their contents checked.
//!
//! A memfd has no name that could mean another one elsewhere: a trainer gets its descriptors from the daemon itself. The seals keep every
//! process from shrinking it under another's feet (a fault, SIGBUS) and, of the data, all but the daemon from writing to it. The kernel frees it
//! with its last user, however that ends.
#![expect(unsafe_code, reason = "typed views of memory that is shared between processes")]

use super::error::RingError;
use super::layout::{CURSOR_MAGIC, Cursor, DATA_MAGIC, DataHeader, LAYOUT_VERSION, PAGE_BYTES, SPARES, SlotLayout};
use super::protocol::{CursorWords, NO_BATCH, WriterWords};
use super::view::View;
use crate::memory::{self, Lack, Promise};
use crate::spec::{BATCH_SIZE_MAX, Delivery, SLOTS_MAX};
use crate::types::{Dtype, ImageSize, Layout};
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, fcntl_get_seals, ftruncate, memfd_create,
};
use rustix::io::{Errno, retry_on_intr};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Seals that readers rely on: the size stays.
const FIXED_SIZE: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// A whole memfd, mapped shared.
struct Region {
    map: Arc<MmapRaw>,
    file: Arc<File>,
    /// Of bytes that are still to be allocated. They are, slot by slot: clearing a whole ring's memory takes many times what a trainer needs
    /// to attach.
    promise: Promise,
    /// Bytes that are allocated by now.
    allocated: AtomicU64,
}

impl Region {
    /// Makes a region of `bytes` bytes with these seals, none of which may be written before [`Region::allocate`]; there must be memory for
    /// the first `promised` of them.
    fn create(name: &str, bytes: usize, promised_bytes: usize, seals: SealFlags) -> Result<Self, RingError> {
        let failed = |action| move |errno: Errno| RingError::io(action, errno);
        let promise = Promise::new(promised_bytes as u64, 0)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Kernels before 6.3 do not know that a file is not meant to be run, and newer ones log it where it is not said.
        let file = memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL).or_else(|errno| match errno {
            Errno::INVAL => memfd_create(name, flags),
            errno => Err(errno),
        });
        let file = file.map_err(failed("make shared memory"))?;
        ftruncate(&file, bytes as u64).map_err(failed("size shared memory"))?;
        let map = MmapOptions::new().map_raw(&file).map_err(|source| RingError::io("map shared memory", source))?;
        fcntl_add_seals(&file, seals).map_err(failed("seal shared memory"))?;
        Ok(Self { map: Arc::new(map), file: Arc::new(file.into()), promise, allocated: AtomicU64::new(0) })
    }

    /// Allocates a piece, once, so that no later write of it can fail.
    fn allocate(&self, from: usize, bytes: usize) -> Result<(), RingError> {
        let bytes = bytes as u64;
        // What no promise was made of, spare slots, comes last.
        let free = if self.promise.take(bytes) { memory::available() } else { memory::free().unwrap_or(u64::MAX) };
        if bytes > free {
            return Err(Lack { need: bytes, free }.into());
        }
        // Older kernels let any signal interrupt it, a debugger's too.
        retry_on_intr(|| fallocate(&self.file, FallocateFlags::empty(), from as u64, bytes))
            .map_err(|errno| RingError::io("allocate shared memory", errno))?;
        self.allocated.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Maps memory that the daemon has handed out: at least `bytes_min` bytes, of a fixed size.
    fn open(file: Arc<File>, writable: bool, bytes_min: usize) -> Result<Self, RingError> {
        if !fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(FIXED_SIZE)) {
            return Err(RingError::Foreign("it is not sealed".to_owned()));
        }
        let options = MmapOptions::new();
        let map = if writable { options.map_raw(&file) } else { options.map_raw_read_only(&file) };
        let map = map.map_err(|source| RingError::io("map shared memory", source))?;
        if map.len() < bytes_min {
            return Err(RingError::Foreign(format!("it has {} bytes where {bytes_min} are needed", map.len())));
        }
        Ok(Self { map: Arc::new(map), file, promise: Promise::default(), allocated: AtomicU64::new(0) })
    }

    /// The same mapping once more.
    #[cfg(test)]
    fn again(&self) -> Self {
        let Self { map, file, .. } = self;
        Self { map: map.clone(), file: file.clone(), promise: Promise::default(), allocated: AtomicU64::new(0) }
    }
}

/// The data, as its writer or as a reader has it.
pub struct Data {
    region: Region,
    /// Where things lie in a slot.
    pub layout: SlotLayout,
    /// Slots of the ring, spare ones not counted.
    pub slots: u32,
    /// Slots after them, for use while evicted readers keep some.
    pub spares: u32,
    /// Most rows of a batch.
    pub batch_size: u32,
    /// Who waits for whom.
    pub delivery: Delivery,
    /// Size, type and order of the images.
    pub images: (ImageSize, Dtype, Layout),
    /// Whether they lie on a CUDA device.
    pub on_device: bool,
}

impl Data {
    /// Makes the memory and stores `header` in it.
    pub fn create(header: DataHeader) -> Result<Self, RingError> {
        let images = header.images().expect("made from a format");
        let (slots, spares, batch_size) = (header.slots, header.spares, header.batch_size);
        let (layout, on_device) = (header.slot_layout(images), header.on_device != 0);
        let delivery = Delivery::ALL[header.delivery as usize];
        let promised = layout.slot_offset(slots + spares, slots);
        // Trainers cannot write to it, whatever they map.
        let seals = FIXED_SIZE | SealFlags::FUTURE_WRITE;
        let region = Region::create("mixd-ring", layout.data_bytes(slots + spares), promised, seals)?;
        region.allocate(0, layout.slot_offset(slots + spares, 0))?;
        // SAFETY: the map is page-aligned, larger than the header, writable, and no other process has the memory yet.
        unsafe { region.map.as_mut_ptr().cast::<DataHeader>().write(header) };
        let file = Self { region, layout, slots, spares, batch_size, delivery, images, on_device };
        file.words().holds.iter().for_each(|holds| holds.store(NO_BATCH, Ordering::Relaxed));
        Ok(file)
    }

    /// Maps the memory read-only and checks that it is a ring of this version and of the size that its header claims.
    pub fn open(file: Arc<File>) -> Result<Self, RingError> {
        let region = Region::open(file, false, PAGE_BYTES)?;
        let foreign = RingError::Foreign;
        // SAFETY: the map is page-aligned and holds at least a page; every bit pattern is a `DataHeader`, of which only
        // the atomic fields change after creation.
        let header = unsafe { &*region.map.as_ptr().cast::<DataHeader>() };
        if header.magic != DATA_MAGIC {
            return Err(foreign("its first bytes are not a ring's".to_owned()));
        }
        if header.layout_version != LAYOUT_VERSION {
            return Err(foreign(format!("its layout has version {}, not {LAYOUT_VERSION}", header.layout_version)));
        }
        let (slots, spares, batch_size) = (header.slots, header.spares, header.batch_size);
        let images =
            header.images().ok_or_else(|| foreign("its images are of an unknown size, dtype or layout".to_owned()))?;
        let delivery = Delivery::ALL.get(header.delivery as usize).copied();
        let delivery = delivery.ok_or_else(|| foreign("its delivery is unknown".to_owned()))?;
        // Within these bounds no size overflows.
        let is_bounded =
            (1..=SLOTS_MAX).contains(&slots) && spares <= SPARES && (1..=BATCH_SIZE_MAX).contains(&batch_size);
        let layout = is_bounded.then(|| header.slot_layout(images));
        let layout = layout.filter(|layout| region.map.len() == layout.data_bytes(slots + spares));
        let layout = layout.ok_or_else(|| foreign("its size is not what its header says".to_owned()))?;
        let on_device = header.on_device != 0;
        Ok(Self { region, layout, slots, spares, batch_size, delivery, images, on_device })
    }

    /// The same mapping once more, as a reader has it.
    #[cfg(test)]
    pub fn again(&self) -> Self {
        Self { region: self.region.again(), ..*self }
    }

    /// A slot where its writer has it.
    #[cfg(test)]
    pub fn view_in_place(&self, slot: u32) -> View {
        View::over(self.region.map.as_ptr() as usize + self.slot_offset(slot), self.layout.slot_bytes)
    }

    /// The header page.
    pub fn header(&self) -> &DataHeader {
        // SAFETY: as in `open`; the map lives as long as `self`.
        unsafe { &*self.region.map.as_ptr().cast::<DataHeader>() }
    }

    /// The words of the protocol.
    pub fn words(&self) -> WriterWords<'_> {
        let header = self.header();
        WriterWords {
            published: &header.published,
            near: &header.near,
            event: &header.event,
            ended: &header.ended,
            writer_waiting: &header.writer_waiting,
            holds: self.directory(),
        }
    }

    /// Bytes of an image of this size in a slot; 0 where images lie on a device.
    pub fn image_bytes(&self, size: ImageSize) -> usize {
        if self.on_device { 0 } else { size.values() * self.images.1.bytes() }
    }

    /// Bytes of so many images of this size on a device.
    pub fn device_bytes(&self, size: ImageSize, rows: u32) -> usize {
        rows as usize * size.values() * self.images.1.bytes()
    }

    /// Slots of the ring, spare ones included.
    pub fn all_slots(&self) -> u32 {
        self.slots + self.spares
    }

    /// Its descriptor, for a reader.
    pub fn descriptor(&self) -> Arc<File> {
        Arc::clone(&self.region.file)
    }

    /// Bytes of memory that it takes, or will before any spare slot is used.
    pub fn bytes(&self) -> u64 {
        self.region.promise.bytes() + self.region.allocated.load(Ordering::Relaxed)
    }

    /// Which batch each slot holds.
    fn directory(&self) -> &[AtomicU64] {
        // SAFETY: the file holds the header page, the directory, a word a slot, and the slots (checked when it was made or opened);
        // any bits are an `AtomicU64`, and the map lives as long as `self`.
        unsafe {
            let start = self.region.map.as_ptr().add(PAGE_BYTES).cast::<AtomicU64>();
            std::slice::from_raw_parts(start, self.all_slots() as usize)
        }
    }

    /// Why the feed ended; meaningful once `ended` was read as non-zero.
    pub fn reason(&self) -> String {
        use crate::sync::Ordering::Relaxed;
        let header = self.header();
        let len = (header.reason_len.load(Relaxed) as usize).min(header.reason.len());
        let bytes: Vec<u8> = header.reason[..len].iter().map(|byte| byte.load(Relaxed)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A slot as this reader is to see it.
    ///
    /// # Errors
    /// When the system refuses the mapping.
    pub fn view(&self, slot: u32) -> Result<View, RingError> {
        View::open(&self.region.file, self.slot_offset(slot), self.layout.slot_bytes)
    }

    fn slot_offset(&self, slot: u32) -> usize {
        assert!(slot < self.all_slots());
        self.layout.slot_offset(self.all_slots(), slot)
    }

    /// Allocates the memory of a slot, once, before it is first written; of spare ones last.
    ///
    /// # Errors
    /// When the memory that was available when the ring was made is gone, or there is none for a spare slot.
    pub fn allocate_slot(&self, slot: u32) -> Result<(), RingError> {
        self.region.allocate(self.slot_offset(slot), self.layout.slot_bytes)
    }

    /// The bytes of one slot, for its writer; readers have views.
    ///
    /// # Safety
    /// The caller must be the ring's only writer, hold no other slice of this slot, have made this ring and allocated the
    /// slot, and every live reader must have released it.
    #[expect(clippy::mut_from_ref, reason = "exclusive by the ring's protocol, not by the borrow")]
    pub unsafe fn slot_mut(&self, slot: u32) -> &mut [u8] {
        let offset = self.slot_offset(slot);
        // SAFETY: inside the writable map; exclusive by the caller's promise.
        unsafe {
            let start = self.region.map.as_mut_ptr().add(offset);
            std::slice::from_raw_parts_mut(start, self.layout.slot_bytes)
        }
    }
}

/// A reader's cursor, as that reader or as the daemon has it.
pub struct CursorPage(Region);

impl CursorPage {
    /// Makes the page of a new reader that begins at batch `seq`.
    pub fn create(seq: u64) -> Result<Self, RingError> {
        let region = Region::create("mixd-cursor", PAGE_BYTES, PAGE_BYTES, FIXED_SIZE)?;
        region.allocate(0, PAGE_BYTES)?;
        // SAFETY: page-aligned, large enough, writable, and no other process has the memory yet.
        unsafe { region.map.as_mut_ptr().cast::<Cursor>().write(Cursor::at(seq)) };
        Ok(Self(region))
    }

    /// Maps the reader's own cursor.
    pub fn open(file: Arc<File>) -> Result<Self, RingError> {
        let cursor = Self(Region::open(file, true, PAGE_BYTES)?);
        if cursor.page().magic == CURSOR_MAGIC {
            Ok(cursor)
        } else {
            Err(RingError::Foreign("its first bytes are not a cursor's".to_owned()))
        }
    }

    /// The same mapping once more.
    #[cfg(test)]
    pub fn again(&self) -> Self {
        Self(self.0.again())
    }

    /// Its descriptor, for the reader.
    pub fn descriptor(&self) -> Arc<File> {
        Arc::clone(&self.0.file)
    }

    /// Everything that a cursor says.
    pub fn page(&self) -> &Cursor {
        // SAFETY: the map holds at least a page, is page-aligned, lives as long as `self`; every bit pattern is a
        // `Cursor`, of which only the atomic fields change.
        unsafe { &*self.0.map.as_ptr().cast::<Cursor>() }
    }

    /// The words of the protocol.
    pub fn words(&self) -> CursorWords<'_> {
        let Cursor { released, event, reader_waiting, evicted, held, .. } = self.page();
        CursorWords { released, event, reader_waiting, evicted, held }
    }
}

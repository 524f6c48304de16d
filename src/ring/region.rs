//! Files on tmpfs as shared memory: reserved before use, opened with their contents checked.
#![expect(unsafe_code, reason = "typed views of memory that is shared between processes")]

use super::error::RingError;
use super::layout::{CURSOR_MAGIC, Cursor, DATA_MAGIC, DataHeader, LAYOUT_VERSION, PAGE_BYTES, SPARES, SlotLayout};
use super::protocol::{CursorWords, NO_BATCH, WriterWords};
use super::view::View;
use crate::spec::{Delivery, SLOTS_MAX};
use crate::types::{Dtype, ImageSize, Layout};
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, fallocate, fstatvfs};
use rustix::io::retry_on_intr;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes that files of this process are still going to reserve. A file's bytes are set against what is free when it is made, and
/// reserved piece by piece: clearing a whole ring's memory takes many times what a trainer needs to attach.
static PROMISED: Mutex<u64> = Mutex::new(0);

fn promised() -> MutexGuard<'static, u64> {
    PROMISED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A whole file, mapped shared.
struct Region {
    map: MmapRaw,
    file: File,
    path: PathBuf,
    /// Bytes of it among [`PROMISED`].
    promised: AtomicU64,
    /// Bytes that it takes by now.
    reserved: AtomicU64,
}

impl Region {
    /// Makes a file of `bytes` bytes, none of which may be written before [`Region::reserve`]; there must be room for the first
    /// `promised` of them.
    fn create(path: &Path, bytes: usize, promised_bytes: usize) -> Result<Self, RingError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| RingError::io("create", path, source))?;
        let map = || -> Result<MmapRaw, RingError> {
            let mut promised = promised();
            let (need, free) = (promised_bytes as u64, free_bytes(&file).saturating_sub(*promised));
            if need > free {
                let dir = path.parent().unwrap_or(path).to_owned();
                return Err(RingError::NoSpace { need, free, dir });
            }
            file.set_len(bytes as u64).map_err(|source| RingError::io("size", path, source))?;
            let map = MmapOptions::new().map_raw(&file).map_err(|source| RingError::io("map", path, source))?;
            *promised += need;
            Ok(map)
        };
        // A half-made file would be left behind.
        let map = map().inspect_err(|_| {
            let _ = std::fs::remove_file(path);
        })?;
        let promised = AtomicU64::new(promised_bytes as u64);
        Ok(Self { map, file, path: path.to_owned(), promised, reserved: AtomicU64::new(0) })
    }

    /// Reserves a piece, once, so that no later write of it can fail.
    fn reserve(&self, from: usize, bytes: usize) -> Result<(), RingError> {
        let reserve = || fallocate(&self.file, FallocateFlags::empty(), from as u64, bytes as u64);
        // Older kernels let any signal interrupt it, a debugger's too.
        let reserved = retry_on_intr(reserve);
        let bytes = bytes as u64;
        // What no promise was made of, spare slots, comes last.
        let kept = bytes.min(self.promised.load(Ordering::Relaxed));
        self.promised.fetch_sub(kept, Ordering::Relaxed);
        *promised() -= kept;
        self.reserved.fetch_add(bytes, Ordering::Relaxed);
        reserved.map_err(|errno| match errno {
            // Somebody else has taken it since the file was made.
            rustix::io::Errno::NOSPC => {
                let dir = self.path.parent().unwrap_or(&self.path).to_owned();
                RingError::NoSpace { need: bytes, free: free_bytes(&self.file), dir }
            }
            errno => RingError::io("reserve", &self.path, errno),
        })
    }

    /// Maps an existing file of at least `bytes_min` bytes.
    fn open(path: &Path, writable: bool, bytes_min: usize) -> Result<Self, RingError> {
        let io = |action| move |source| RingError::io(action, path, source);
        let file = OpenOptions::new().read(true).write(writable).open(path).map_err(io("open"))?;
        let options = MmapOptions::new();
        let map = if writable { options.map_raw(&file) } else { options.map_raw_read_only(&file) };
        let map = map.map_err(io("map"))?;
        if map.len() < bytes_min {
            let found = format!("it has {} bytes where {bytes_min} are needed", map.len());
            return Err(RingError::Foreign { path: path.to_owned(), found });
        }
        Ok(Self { map, file, path: path.to_owned(), promised: AtomicU64::new(0), reserved: AtomicU64::new(0) })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        *promised() -= *self.promised.get_mut();
    }
}

/// Bytes that the file's file system can still take; as many as there are where it has no limit.
fn free_bytes(file: &File) -> u64 {
    fstatvfs(file).map_or(0, |fs| if fs.f_blocks == 0 { u64::MAX } else { fs.f_bavail * fs.f_frsize })
}

/// The data file, as its writer or as a reader has it.
pub struct DataFile {
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

impl DataFile {
    /// Makes the file and stores `header` in it.
    pub fn create(path: &Path, header: DataHeader) -> Result<Self, RingError> {
        let images = header.images().expect("made from a format");
        let (slots, spares, batch_size) = (header.slots, header.spares, header.batch_size);
        let (layout, on_device) = (header.slot_layout(images), header.on_device != 0);
        let delivery = Delivery::ALL[header.delivery as usize];
        let promised = layout.slot_offset(slots + spares, slots);
        let region = Region::create(path, layout.file_bytes(slots + spares), promised)?;
        region.reserve(0, layout.slot_offset(slots + spares, 0))?;
        // SAFETY: the map is page-aligned, larger than the header, writable, and nobody else knows the file yet.
        unsafe { region.map.as_mut_ptr().cast::<DataHeader>().write(header) };
        let file = Self { region, layout, slots, spares, batch_size, delivery, images, on_device };
        file.words().holds.iter().for_each(|holds| holds.store(NO_BATCH, Ordering::Relaxed));
        Ok(file)
    }

    /// Maps the file read-only and checks that it is a ring of this version and of the size that its header claims.
    pub fn open(path: &Path) -> Result<Self, RingError> {
        let region = Region::open(path, false, PAGE_BYTES)?;
        let foreign = |found: String| RingError::Foreign { path: path.to_owned(), found };
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
        let images = header.images().ok_or_else(|| foreign("its dtype or layout is unknown".to_owned()))?;
        let delivery = Delivery::ALL.get(header.delivery as usize).copied();
        let delivery = delivery.ok_or_else(|| foreign("its delivery is unknown".to_owned()))?;
        let (layout, on_device) = (header.slot_layout(images), header.on_device != 0);
        if slots == 0 || slots > SLOTS_MAX || spares > SPARES || region.map.len() != layout.file_bytes(slots + spares) {
            return Err(foreign("its size is not what its header says".to_owned()));
        }
        Ok(Self { region, layout, slots, spares, batch_size, delivery, images, on_device })
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

    /// Bytes of memory that the file takes, or will before any spare slot is used.
    pub fn bytes(&self) -> u64 {
        self.region.promised.load(Ordering::Relaxed) + self.region.reserved.load(Ordering::Relaxed)
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

    /// Reserves the memory of a slot, once, before it is first written; of spare ones last.
    ///
    /// # Errors
    /// When the file system has lost the room that it had when the file was made, or has none for a spare slot.
    pub fn reserve_slot(&self, slot: u32) -> Result<(), RingError> {
        self.region.reserve(self.slot_offset(slot), self.layout.slot_bytes)
    }

    /// The bytes of one slot, for its writer; readers have views.
    ///
    /// # Safety
    /// The caller must be the ring's only writer, hold no other slice of this slot, have made this file and reserved the
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
pub struct CursorFile(Region);

impl CursorFile {
    /// Makes the file of a new reader that begins at batch `seq`.
    pub fn create(path: &Path, seq: u64) -> Result<Self, RingError> {
        let region = Region::create(path, PAGE_BYTES, PAGE_BYTES)?;
        region.reserve(0, PAGE_BYTES)?;
        // SAFETY: page-aligned, large enough, writable, and nobody else knows the file yet.
        unsafe { region.map.as_mut_ptr().cast::<Cursor>().write(Cursor::at(seq)) };
        Ok(Self(region))
    }

    /// Maps the reader's own cursor.
    pub fn open(path: &Path) -> Result<Self, RingError> {
        let file = Self(Region::open(path, true, PAGE_BYTES)?);
        if file.page().magic != CURSOR_MAGIC {
            let found = "its first bytes are not a cursor's".to_owned();
            return Err(RingError::Foreign { path: path.to_owned(), found });
        }
        Ok(file)
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

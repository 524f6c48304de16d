//! The bytes of the ring: what lies where in the data and in a cursor.
//!
//! Integers are little-endian and of fixed width. The data is one page of [`DataHeader`], then the directory (for each slot, spare
//! ones included, the number of its batch, a u64), then the slots, each a [`BatchHeader`], the columns and `x` at the offsets of
//! [`SlotLayout`]. Slots take memory from when they are first used.

use super::READERS_MAX;
use crate::columns::{COLUMNS, COUNT};
use crate::format::Format;
use crate::spec::{Delivery, SLOTS_MAX};
use crate::sync::{AtomicU32, AtomicU64};
use crate::types::{Device, Dtype, ImageSize, Layout};
use std::mem::{offset_of, size_of};
use std::sync::atomic::AtomicU8;

/// Version of everything in this file; both sides must have the same.
pub const LAYOUT_VERSION: u32 = 8;

/// First bytes of the data.
pub const DATA_MAGIC: [u8; 8] = *b"mixdring";
/// First bytes of a cursor.
pub const CURSOR_MAGIC: [u8; 8] = *b"mixdcurs";
/// Alignment of slots and of `x`, and size of the header and of a cursor.
pub const PAGE_BYTES: usize = 4096;
/// Longest reason that fits beside `ended`.
pub const REASON_BYTES_MAX: usize = 1024;

/// [`DataHeader::ended`]: the feed was stopped in order (shutdown, drain).
pub const ENDED_STOPPED: u32 = 1;
/// [`DataHeader::ended`]: the feed failed.
pub const ENDED_FAILED: u32 = 2;

/// [`Cursor::evicted`]: the reader kept others waiting for too long.
pub const EVICTED_LAG: u32 = 1;
/// [`Cursor::evicted`]: what its cursor said cannot be.
pub const EVICTED_UNLAWFUL: u32 = 2;

#[cfg(target_endian = "big")]
compile_error!("the ring's layout is little-endian");

/// First page of the data. Cache lines are kept apart by who writes them and how often.
#[repr(C)]
pub struct DataHeader {
    /// [`DATA_MAGIC`].
    pub magic: [u8; 8],
    /// [`LAYOUT_VERSION`].
    pub layout_version: u32,
    /// Slots of the ring, spare ones not counted.
    pub slots: u32,
    /// Most rows of a batch.
    pub batch_size: u32,
    /// Most rows of an image.
    pub height: u32,
    /// Most columns of an image.
    pub width: u32,
    /// 0 f32, 1 f16, 2 bf16, 3 u8.
    pub dtype: u32,
    /// 0 NCHW, 1 NHWC.
    pub layout: u32,
    /// Process id of the daemon.
    pub daemon_pid: u32,
    /// 0 lossless, 1 latest.
    pub delivery: u32,
    /// Readers attached.
    pub readers: AtomicU32,
    /// Slots after the others, for use while evicted readers keep some.
    pub spares: u32,
    /// 0 where the images lie in the slots, 1 where they lie on a CUDA device.
    pub on_device: u32,
    gap: [u8; 72],
    /// Batches published.
    pub published: AtomicU64,
    /// Event word for readers.
    pub event: AtomicU32,
    /// 0, or one of the `ENDED_…` codes.
    pub ended: AtomicU32,
    /// One more than the number of the last batch that readers were called to; 0 before.
    pub near: AtomicU64,
    /// When the writer last woke readers first for a batch, in nanoseconds of `CLOCK_MONOTONIC`.
    pub woke_ns: AtomicU64,
    gap2: [u8; 96],
    /// 1 while the writer sleeps.
    pub writer_waiting: AtomicU32,
    /// Bytes of `reason` in use; written before `ended`.
    pub reason_len: AtomicU32,
    gap3: [u8; 120],
    /// Why the feed ended, UTF-8; written before `ended`.
    pub reason: [AtomicU8; REASON_BYTES_MAX],
}

/// A reader's page.
#[repr(C)]
pub struct Cursor {
    /// [`CURSOR_MAGIC`].
    pub magic: [u8; 8],
    gap: [u8; 120],
    /// Batches released.
    pub released: AtomicU64,
    /// Event word for the writer.
    pub event: AtomicU32,
    /// 1 while the reader sleeps.
    pub reader_waiting: AtomicU32,
    gap2: [u8; 112],
    /// Batches read, for people to see.
    pub read: AtomicU64,
    /// Batches skipped, for people to see.
    pub skipped: AtomicU64,
    /// Nanoseconds for which the reader had nothing to read, for people to see.
    pub waited_ns: AtomicU64,
    /// Nanoseconds that it takes to wake the reader, about; 0 before it is known. Bounded by the writer.
    pub wake_ns: AtomicU64,
    /// How often the reader has found nothing to read while it waited: it moves four times a second at least, unless the process is stopped.
    pub looks: AtomicU64,
    gap3: [u8; 88],
    /// A bit for each slot that is leased.
    pub held: [AtomicU64; HELD_WORDS],
    /// 0, or one of the `EVICTED_…` codes; the daemon stores it.
    pub evicted: AtomicU32,
    gap4: [u8; 116],
    /// Batches by how long the reader waited for each, with the buckets of [`bucket`], for people to see.
    pub waits: [AtomicU64; BUCKETS],
    /// Batches that it waited for by the time from their publication until it had them, for people to see.
    pub handovers: [AtomicU64; BUCKETS],
    /// Sum of these times, in nanoseconds.
    pub handover_ns: AtomicU64,
}

/// Buckets of the histograms of a cursor.
pub const BUCKETS: usize = 14;

/// Longest time of a bucket, in nanoseconds: 4.1 µs, and four times the one before, to 68.7 s; the last bucket has no bound.
pub const fn bucket_max_ns(bucket: usize) -> Option<u64> {
    if bucket + 1 < BUCKETS { Some(1 << (12 + 2 * bucket)) } else { None }
}

/// The bucket of a time in nanoseconds.
pub const fn bucket(ns: u64) -> usize {
    let bits = u64::BITS - (ns.saturating_sub(1) >> 12).leading_zeros();
    let bucket = bits.div_ceil(2) as usize;
    if bucket < BUCKETS { bucket } else { BUCKETS - 1 }
}

/// Spare slots of a ring from which readers may be evicted: one for each reader but one, since most hold one batch at a time.
pub const SPARES: u32 = READERS_MAX as u32 - 1;

/// Words of [`Cursor::held`].
const HELD_WORDS: usize = (SLOTS_MAX + SPARES).div_ceil(64) as usize;

/// Start of every slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BatchHeader {
    /// Number of the batch in this ring, from 0.
    pub seq: u64,
    /// Epoch, from 0.
    pub epoch: u64,
    /// Position in the epoch, from 0.
    pub index: u64,
    /// Batches in each epoch.
    pub batches: u64,
    /// xxh3 of the batch; 0 without digests.
    pub digest: u64,
    /// When it was published, in nanoseconds of `CLOCK_MONOTONIC`.
    pub published_ns: u64,
    /// Rows in use.
    pub len: u32,
    /// Rows at the end that repeat the head of the permutation.
    pub pad: u32,
    /// [`crate::batch::PLAN_VERSION`].
    pub plan_version: u16,
    /// Which columns the digest covers ([`crate::batch::Head::digest_version`]).
    pub digest_version: u16,
    /// Height of the images, at most the ring's.
    pub height: u16,
    /// Width of the images, at most the ring's.
    pub width: u16,
}

const _: () = {
    assert!(size_of::<DataHeader>() <= PAGE_BYTES && size_of::<Cursor>() <= PAGE_BYTES);
    assert!(offset_of!(DataHeader, published) == 128 && offset_of!(DataHeader, event) == 136);
    assert!(offset_of!(DataHeader, ended) == 140 && offset_of!(DataHeader, near) == 144);
    assert!(offset_of!(DataHeader, woke_ns) == 152 && offset_of!(DataHeader, writer_waiting) == 256);
    assert!(offset_of!(DataHeader, reason_len) == 260 && offset_of!(DataHeader, reason) == 384);
    assert!(offset_of!(Cursor, released) == 128 && offset_of!(Cursor, event) == 136);
    assert!(offset_of!(Cursor, reader_waiting) == 140 && offset_of!(Cursor, read) == 256);
    assert!(
        offset_of!(Cursor, wake_ns) == 280 && offset_of!(Cursor, held) == 384 && offset_of!(Cursor, evicted) == 520
    );
    assert!(offset_of!(Cursor, waits) == 640 && offset_of!(Cursor, handover_ns) == 864);
    assert!(size_of::<BatchHeader>() == 64 && offset_of!(BatchHeader, len) == 48);
};

impl DataHeader {
    /// The header's fixed part, as the writer stores it.
    pub fn fixed(format: &Format, batch_size: u32, slots: u32, spares: u32, delivery: Delivery) -> Self {
        Self {
            magic: DATA_MAGIC,
            layout_version: LAYOUT_VERSION,
            slots,
            batch_size,
            height: format.image_size.height,
            width: format.image_size.width,
            dtype: Dtype::ALL.iter().position(|&dtype| dtype == format.dtype).expect("listed") as u32,
            layout: Layout::ALL.iter().position(|&layout| layout == format.layout).expect("listed") as u32,
            daemon_pid: std::process::id(),
            delivery: delivery as u32,
            readers: AtomicU32::new(0),
            spares,
            on_device: (format.device != Device::Cpu).into(),
            gap: [0; 72],
            published: AtomicU64::new(0),
            event: AtomicU32::new(0),
            ended: AtomicU32::new(0),
            near: AtomicU64::new(0),
            woke_ns: AtomicU64::new(0),
            gap2: [0; 96],
            writer_waiting: AtomicU32::new(0),
            reason_len: AtomicU32::new(0),
            gap3: [0; 120],
            reason: [const { AtomicU8::new(0) }; REASON_BYTES_MAX],
        }
    }

    /// Where things lie in a slot.
    pub fn slot_layout(&self, images: (ImageSize, Dtype, Layout)) -> SlotLayout {
        let image_bytes = if self.on_device == 0 { images.0.values() * images.1.bytes() } else { 0 };
        SlotLayout::new(self.batch_size as usize, image_bytes)
    }

    /// Size, type and order of the images, where there are such.
    pub fn images(&self) -> Option<(ImageSize, Dtype, Layout)> {
        let size = ImageSize { height: self.height, width: self.width };
        if ![size.height, size.width].iter().all(|side| (1..=ImageSize::SIDE_MAX).contains(side)) {
            return None;
        }
        Some((size, *Dtype::ALL.get(self.dtype as usize)?, *Layout::ALL.get(self.layout as usize)?))
    }
}

impl Cursor {
    /// A cursor at batch `seq`.
    pub fn at(seq: u64) -> Self {
        Self {
            magic: CURSOR_MAGIC,
            gap: [0; 120],
            released: AtomicU64::new(seq),
            event: AtomicU32::new(0),
            reader_waiting: AtomicU32::new(0),
            gap2: [0; 112],
            read: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            waited_ns: AtomicU64::new(0),
            wake_ns: AtomicU64::new(0),
            looks: AtomicU64::new(0),
            gap3: [0; 88],
            held: [const { AtomicU64::new(0) }; HELD_WORDS],
            evicted: AtomicU32::new(0),
            gap4: [0; 116],
            waits: [const { AtomicU64::new(0) }; BUCKETS],
            handovers: [const { AtomicU64::new(0) }; BUCKETS],
            handover_ns: AtomicU64::new(0),
        }
    }
}

/// Offsets within a slot, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotLayout {
    /// Of each column of [`COLUMNS`].
    pub columns: [usize; COUNT],
    /// The images; a multiple of [`PAGE_BYTES`].
    pub x: usize,
    /// Bytes of one image in the slot; 0 where images lie on a device.
    pub image_bytes: usize,
    /// The whole slot; a multiple of [`PAGE_BYTES`].
    pub slot_bytes: usize,
}

impl SlotLayout {
    /// The layout of slots for `batch_size` images of `image_bytes` bytes.
    pub const fn new(batch_size: usize, image_bytes: usize) -> Self {
        let (mut columns, mut end, mut column) = ([0; COUNT], size_of::<BatchHeader>(), 0);
        while column < COUNT {
            columns[column] = end;
            end += COLUMNS[column].row_bytes * batch_size;
            column += 1;
        }
        let x = end.next_multiple_of(PAGE_BYTES);
        let slot_bytes = (x + batch_size * image_bytes).next_multiple_of(PAGE_BYTES);
        Self { columns, x, image_bytes, slot_bytes }
    }

    /// Offset of slot number `slot` of `slots`, spare ones included, in the data.
    pub const fn slot_offset(&self, slots: u32, slot: u32) -> usize {
        let directory = slots as usize * size_of::<u64>();
        PAGE_BYTES + directory.next_multiple_of(PAGE_BYTES) + slot as usize * self.slot_bytes
    }

    /// Bytes of the data.
    pub const fn data_bytes(&self, slots: u32) -> usize {
        self.slot_offset(slots, slots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_header_has_the_golden_bytes() {
        let header = BatchHeader {
            seq: 1,
            epoch: 2,
            index: 3,
            batches: 4,
            digest: 0x0102_0304_0506_0708,
            published_ns: 5,
            len: 6,
            pad: 7,
            plan_version: 8,
            digest_version: 9,
            height: 10,
            width: 11,
        };
        let golden: [u8; 64] = [
            1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, //
            8, 7, 6, 5, 4, 3, 2, 1, 5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 7, 0, 0, 0, 8, 0, 9, 0, 10, 0, 11, 0,
        ];
        assert_eq!(bytemuck::bytes_of(&header), golden);
    }

    #[test]
    fn a_time_lies_in_the_first_bucket_that_is_long_enough() {
        let naive = |ns: u64| (0..BUCKETS).find(|&of| bucket_max_ns(of).is_none_or(|max| ns <= max)).unwrap();
        for shift in 0..64 {
            for ns in [(1 << shift) - 1, 1 << shift, (1 << shift) + 1] {
                assert_eq!(bucket(ns), naive(ns), "{ns}");
            }
        }
        assert_eq!((bucket(0), bucket(u64::MAX)), (0, BUCKETS - 1));
    }

    #[test]
    fn slots_of_the_seed_pipeline_lie_where_version_8_says() {
        let layout = SlotLayout::new(64, 3 * 128 * 128 * 4);
        assert_eq!(layout.columns, [64, 576, 1088, 1344, 1600, 1856, 2112, 3136, 4160]);
        assert_eq!((layout.x, layout.slot_bytes), (8192, 8192 + 12_582_912));
        assert_eq!(layout.slot_offset(4, 1), 4096 + 4096 + layout.slot_bytes);
        assert_eq!(layout.data_bytes(513), 4096 + 8192 + 513 * layout.slot_bytes);
    }

    #[test]
    fn every_array_is_aligned_for_any_batch_size() {
        for batch_size in 1..70 {
            let layout = SlotLayout::new(batch_size, 7);
            for (column, at) in COLUMNS.iter().zip(layout.columns) {
                assert!(at.is_multiple_of(column.row_bytes / column.count), "{column:?}");
                assert!(layout.x >= at + column.row_bytes * batch_size);
            }
            assert!(layout.x.is_multiple_of(64));
            assert!(layout.slot_bytes >= layout.x + 7 * batch_size);
        }
    }
}

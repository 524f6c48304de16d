//! A ring whose memory is not what the daemon wrote: a reader refuses it or reads within it.

use super::script::Script;
use mixd::batch::Head;
use mixd::columns::OwnedColumns;
use mixd::plan::Sampler;
use mixd::ring::{Lease, Next, Pace, RingHandle, RingReader, RingWriter, SlotMut, create};
use mixd::spec::{Delivery, FeedSpec};
use mixd::types::{CropBox, Dtype, ImageSize};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

pub const SIZE: ImageSize = ImageSize { height: 2, width: 3 };
const ROWS: u32 = 3;
/// Bytes of a page, of which a cursor has one.
const PAGE_BYTES: usize = 4096;

/// Makes a ring of few and small slots.
pub fn small(slots: u32, pace: Pace) -> (RingWriter, RingHandle) {
    let format = FeedSpec { image_size: SIZE, dtype: Dtype::U8, ..FeedSpec::train() }.format();
    create(&format, ROWS, slots, pace).expect("there is memory for it")
}

/// Publishes batch `seq`, whose pixels are its number.
pub fn publish(mut slot: SlotMut<'_>, seq: u64) {
    slot.x_mut(SIZE, ROWS as usize).fill(seq as u8);
    let spec = FeedSpec { batch_size: ROWS, image_size: SIZE, ..FeedSpec::train() };
    let (plan, mut columns) =
        (Sampler::new(spec, 30).expect("it has batches").epoch(0).plan(0), OwnedColumns::default());
    plan.fill(&mut columns, |_| 0, |_| CropBox::default());
    slot.publish(SIZE, Head { index: seq, ..plan.head() }, columns.view());
}

/// Takes a ring's memory with three batches, writes to it before it is opened and while it is read, and reads on.
pub fn ring(bytes: &[u8]) {
    let _ = run(&mut Script(bytes));
}

fn run(script: &mut Script<'_>) -> Option<()> {
    let flags = script.byte()?;
    let delivery = if flags & 1 == 0 { Delivery::Lossless } else { Delivery::Latest };
    let (mut writer, handle) = small(4, Pace { delivery, ..Pace::PRIVATE });
    let (_, cursor) = handle.add_reader(|_| Some(0)).expect("it is the first");
    (0..3).for_each(|seq| publish(writer.next_slot().expect("it is free"), seq));
    let pages = i64::from(flags >> 1 & 3) - 1;
    let (data, cursor) = (copy(&handle.data(), if flags & 8 == 0 { 0 } else { pages }), copy(&cursor, 0));
    let mut reader: Option<RingReader> = None;
    let mut leases: Vec<Lease> = Vec::new();
    for _ in 0..64 {
        match (script.byte()? % 6, &mut reader) {
            (0, _) => write(&data, script)?,
            (1, _) => write(&cursor, script)?,
            (2, None) => reader = RingReader::open(Arc::clone(&data), Arc::clone(&cursor), ()).ok(),
            (3, Some(reader)) => match reader.next_batch(|| true) {
                Ok(Next::Batch(lease)) => leases.push(lease),
                Ok(Next::Ended { reason, .. }) => drop(reason),
                _ => {}
            },
            (4, _) => drop(leases.pop()),
            (5, Some(reader)) => drop(reader.keep_oldest()),
            _ => {}
        }
        for lease in &leases {
            let view = lease.view();
            assert_eq!(view.x.len(), view.len() * view.image_size.values() * view.dtype.bytes());
            // Reads every byte.
            view.digest_by("any");
        }
    }
    Some(())
}

/// A copy of memory that the daemon hands out, with so many pages more or fewer, sealed as that is.
fn copy(file: &File, pages: i64) -> Arc<File> {
    let bytes = file.metadata().expect("it is open").len();
    let copy = memfd_create("fuzzed", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("there is memory for it");
    ftruncate(&copy, bytes.saturating_add_signed(pages * PAGE_BYTES as i64)).expect("there is memory for it");
    let (copy, mut content) = (File::from(copy), vec![0; bytes as usize]);
    file.read_exact_at(&mut content, 0).expect("memory is readable");
    let end = copy.metadata().expect("it is open").len().min(bytes);
    copy.write_all_at(&content[..end as usize], 0).expect("there is memory for it");
    fcntl_add_seals(&copy, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).expect("it may be sealed");
    Arc::new(copy)
}

/// Writes what the script says to memory.
pub fn write(file: &File, script: &mut Script<'_>) -> Option<()> {
    let (at, bytes) = script.patch(file.metadata().expect("it is open").len() as usize)?;
    file.write_all_at(bytes, at).expect("it is writable");
    Some(())
}

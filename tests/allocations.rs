//! Nothing is allocated per sample in the steady state: this program's allocator counts.
#![expect(unsafe_code, reason = "an allocator that counts")]

use mixd::decode::JPEG_DECODER;
use mixd::pipeline::{Options, Pipeline};
use mixd::ring::{Next, RingReader};
use mixd::spec::{FeedSpec, Recipe};
use mixd::types::{ImageSize, Place, Split};
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is the system allocator's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations for a batch of `batch_size`, in the mean over a few epochs.
fn per_batch(recipe: &str, cache_bytes: u64, batch_size: u32) -> f64 {
    let data = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/sample-data"));
    // One decode thread has seen every shape after an epoch; of two, one may sleep until the counting.
    let options = Options::single(cache_bytes);
    let pipeline =
        Pipeline::start(mixd::source::open(&mixd::source::DataSet::at(data), &mut |_| {}).unwrap(), options).unwrap();
    let spec = recipe.parse::<Recipe>().unwrap().feed(Split::Train);
    let spec = FeedSpec { batch_size, image_size: ImageSize::square(48), ..spec };
    let (feed, seat) = pipeline.open(spec, Place::default(), false).unwrap();
    let mut reader = RingReader::open(feed.ring().data(), seat.cursor, std::sync::Arc::new(())).unwrap();
    let mut read = |batches: u64| {
        for _ in 0..batches {
            assert!(matches!(reader.next_batch(|| false).unwrap(), Next::Batch(_)));
        }
    };
    // Two epochs, by which every shape was seen.
    read(2 * feed.batches() + 8);
    let (before, batches) = (ALLOCATIONS.load(Relaxed), 4 * feed.batches());
    read(batches);
    (ALLOCATIONS.load(Relaxed) - before) as f64 / batches as f64
}

#[test]
fn a_larger_batch_takes_no_more_allocations() {
    // Other decoders take a few allocations for each file, and repeats take long to show each file once.
    let with_turbo = JPEG_DECODER == "libjpeg-turbo";
    let stores = [("stored", 1 << 30), ("decoded", 0)];
    // Resizes to a fixed shape; operations, erasing and repeats; eight views of a sample.
    let recipes = ["lesson", "deit", "dino-local"];
    for recipe in &recipes[..if with_turbo { 3 } else { 1 }] {
        for &(name, cache_bytes) in &stores[..if with_turbo { 2 } else { 1 }] {
            let (small, large) = (per_batch(recipe, cache_bytes, 8), per_batch(recipe, cache_bytes, 96));
            assert!(large < small + 8.0 && small < 40.0, "{recipe}, {name}: {small} for 8 rows, {large} for 96");
        }
    }
}

//! Tests of the reading end, against a writer in the same process.

use super::*;
use crate::batch::Head;
use crate::columns::OwnedColumns;
use crate::plan::Sampler;
use crate::ring::layout::LAYOUT_VERSION;
use crate::ring::{Pace, RingHandle, RingWriter, WriterStopped, create};
use crate::spec::FeedSpec;
use crate::types::{CropBox, ImageSize};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

mod one_mapping;

#[test]
fn a_wait_is_counted_while_it_lasts() {
    let Fixture { mut reader, handle, writer, .. } = ring(4);
    let waited = || handle.readers()[0].waited;
    let reads = std::thread::scope(|scope| {
        let reading = scope.spawn(move || reader.next_batch(|| false).map(|next| matches!(next, Next::Ended { .. })));
        let start = Instant::now();
        // It looks around four times a second.
        while waited() < Duration::from_millis(400) && start.elapsed() < Duration::from_secs(20) {
            std::thread::yield_now();
        }
        // The reader ends first: the scope waits for it, whatever comes of this.
        let counted = waited();
        writer.end("enough", false);
        let ended = reading.join().unwrap();
        assert!(counted >= Duration::from_millis(400), "{counted:?}");
        ended
    });
    assert!(reads.unwrap());
}

struct Fixture {
    writer: RingWriter,
    handle: RingHandle,
    reader: RingReader,
    id: u64,
    /// What is published, beside images.
    batches: Vec<(Head, OwnedColumns)>,
}

fn open(data: Arc<File>, cursor: Arc<File>) -> Result<RingReader, RingError> {
    RingReader::open(data, cursor, ())
}

const SIZE: ImageSize = ImageSize { height: 5, width: 7 };

fn ring(slots: u32) -> Fixture {
    ring_at(slots, Pace::PRIVATE)
}

fn ring_at(slots: u32, pace: Pace) -> Fixture {
    let spec = FeedSpec { batch_size: 3, image_size: SIZE, ..FeedSpec::train() };
    let sampler = Sampler::new(spec, 30).unwrap();
    let batch = |index| {
        let (plan, mut columns) = (sampler.epoch(0).plan(index), OwnedColumns::default());
        plan.fill(
            &mut columns,
            |sample| i64::from(sample) % 7,
            |row| CropBox { top: row as i32, ..CropBox::default() },
        );
        (plan.head(), columns)
    };
    let batches = (0..10).map(batch).collect();
    let (writer, handle) = create(&spec.format(), 3, slots, pace).unwrap();
    let (id, cursor) = handle.add_reader(|_| Some(0)).unwrap();
    let reader = open(handle.data(), cursor).unwrap();
    Fixture { writer, handle, reader, id, batches }
}

impl Fixture {
    fn write(&mut self, index: usize) {
        let mut slot = self.writer.next_slot().unwrap();
        slot.x_mut(SIZE, 3).fill(index as u8);
        let (head, columns) = &self.batches[index];
        slot.publish(SIZE, *head, columns.view());
    }

    fn read(&mut self) -> Lease {
        match self.reader.next_batch(|| false).unwrap() {
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
        let (lease, plan) = (ring.read(), &ring.batches[index]);
        let view = lease.view();
        assert_eq!(view.x, vec![index as u8; 3 * 3 * 5 * 7 * 4]);
        assert_eq!((view.head, view.columns), (plan.0, plan.1.view()));
        assert_eq!((view.head.epoch, view.head.index, view.head.batches), (0, index as u64, 10));
        assert_eq!((view.shape(), view.x.as_ptr() as usize % 64), ([3, 3, 5, 7], 0));
    }
}

#[test]
fn an_unpublished_slot_is_not_seen() {
    let mut ring = ring(2);
    ring.writer.next_slot().unwrap().x_mut(SIZE, 3).fill(9);
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
        let (writer, plan) = (&mut ring.writer, &ring.batches[2]);
        let written = scope.spawn(move || {
            let mut slot = writer.next_slot().unwrap();
            slot.x_mut(SIZE, 3).fill(2);
            slot.publish(SIZE, plan.0, plan.1.view());
        });
        assert!(first.view().x.iter().all(|&byte| byte == 0), "written while leased");
        drop(first);
        written.join().unwrap();
    });
    assert_eq!(ring.read().view().x[0], 2);
}

#[test]
fn a_reader_that_keeps_up_is_served_from_as_few_slots_as_it_holds() {
    let mut ring = ring(4);
    let slots = |leases: &[Lease]| leases.iter().map(|lease| lease.slot).collect::<Vec<_>>();
    // Each once, so that it has its memory, and then the same again and again.
    for (index, slot) in [0, 1, 2, 3, 3, 3].into_iter().enumerate() {
        ring.write(index);
        assert_eq!(slots(&[ring.read()]), [slot]);
    }
    let mut held = Vec::new();
    for index in 6..8 {
        ring.write(index);
        held.push(ring.read());
    }
    assert_eq!(slots(&held), [3, 2]);
    drop(held.remove(0));
    ring.write(8);
    assert_eq!(slots(&[ring.read()]), [3]);
}

#[test]
fn holding_every_slot_and_asking_for_more_is_refused() {
    let mut ring = ring(2);
    ring.write(0);
    ring.write(1);
    let _leases = (ring.read(), ring.read());
    assert!(matches!(ring.reader.next_batch(|| false), Err(RingError::AllLeased(2))));
}

#[test]
fn what_was_published_is_read_before_the_end() {
    let mut ring = ring(2);
    ring.write(0);
    let Fixture { writer, mut reader, .. } = ring;
    writer.end("done for today", false);
    assert!(matches!(reader.next_batch(|| false).unwrap(), Next::Batch(_)));
    let Next::Ended { reason, failed } = reader.next_batch(|| false).unwrap() else { panic!("not ended") };
    assert_eq!((reason.as_str(), failed), ("done for today", false));
}

#[test]
fn a_waiting_reader_wakes_when_told_to_give_up() {
    let Fixture { mut reader, writer: _writer, .. } = ring(2);
    let handle = reader.give_up_handle();
    let waiting = std::thread::spawn(move || matches!(reader.next_batch(|| false).unwrap(), Next::GaveUp));
    handle.give_up();
    assert!(waiting.join().unwrap());
}

#[test]
fn a_reader_that_is_called_wakes_before_the_batch_is_there_and_says_how_long_that_took() {
    let mut ring = ring(2);
    let caller = ring.writer.caller();
    assert_eq!(caller.ahead(), None);
    let wake_ns = |ring: &Arc<Inner>| ring.cursor.page().wake_ns.load(Ordering::Relaxed);
    let (inner, mut reader) = (Arc::clone(&ring.reader.inner), ring.reader);
    let reading = std::thread::spawn(move || lease(&mut reader).seq());
    let deadline = Instant::now() + Duration::from_secs(20);
    while wake_ns(&inner) == 0 {
        assert!(Instant::now() < deadline, "nobody wakes");
        // A call that comes before the reader sleeps wakes nobody.
        caller.call();
        std::thread::yield_now();
    }
    assert!(!reading.is_finished());
    ring.writer.next_slot().unwrap().publish(SIZE, ring.batches[0].0, ring.batches[0].1.view());
    assert_eq!(reading.join().unwrap(), 0);
    inner.cursor.page().wake_ns.store(30_000, Ordering::Relaxed);
    assert_eq!(caller.ahead(), Some((Duration::from_micros(45), 1)));
}

#[test]
fn a_removed_reader_frees_the_waiting_writer() {
    let mut ring = ring(2);
    ring.write(0);
    ring.write(1);
    let (handle, id) = (ring.handle.clone(), ring.id);
    let (mut writer, plan) = (ring.writer, ring.batches.remove(2));
    let writing = std::thread::spawn(move || {
        writer.next_slot().unwrap().publish(SIZE, plan.0, plan.1.view());
    });
    let (other, _) = handle.add_reader(Some).unwrap();
    handle.remove_reader(id);
    writing.join().unwrap();
    assert_eq!((handle.published(), handle.readers()[0].id), (3, other));
}

fn latest() -> Pace {
    Pace { delivery: Delivery::Latest, max_lag: Duration::MAX }
}

fn next(reader: &mut RingReader) -> Next {
    reader.next_batch(|| false).unwrap()
}

fn lease(reader: &mut RingReader) -> Lease {
    match next(reader) {
        Next::Batch(lease) => lease,
        _ => panic!("no batch"),
    }
}

#[test]
fn a_reader_joins_at_the_next_batch_or_later_or_at_one_that_is_still_there() {
    let mut ring = ring(3);
    ring.write(0);
    ring.write(1);
    let join = |choose: &dyn Fn(u64) -> Option<u64>| {
        let (_, cursor) = ring.handle.add_reader(choose)?;
        open(ring.handle.data(), cursor)
    };
    let (mut there, mut now, mut later) =
        (join(&|_| Some(1)).unwrap(), join(&Some).unwrap(), join(&|published| Some(published + 1)).unwrap());
    ring.write(2);
    drop((ring.read(), ring.read()));
    ring.write(3);
    assert_eq!((lease(&mut there).seq(), lease(&mut now).seq(), lease(&mut later).seq()), (1, 2, 3));
    for gone in [Some(0), None] {
        assert!(matches!(ring.handle.add_reader(|_| gone), Err(RingError::Gone { published: 4 })));
    }
    assert_eq!(ring.handle.readers().len(), 4);
}

#[test]
fn a_reader_that_begins_later_holds_up_nobody() {
    let mut ring = ring(2);
    let (_, cursor) = ring.handle.add_reader(|_| Some(4)).unwrap();
    let mut later = open(ring.handle.data(), cursor).unwrap();
    for index in 0..5 {
        assert!(!later.is_ready());
        ring.write(index);
        assert_eq!(ring.read().seq(), index as u64);
    }
    assert_eq!(lease(&mut later).seq(), 4);
}

#[test]
fn a_hold_keeps_the_first_batches_for_those_that_are_to_come() {
    let mut ring = ring(2);
    let hold = ring.handle.hold(0).unwrap();
    ring.write(0);
    ring.write(1);
    drop((ring.read(), ring.read()));
    std::thread::scope(|scope| {
        let (writer, plan) = (&mut ring.writer, &ring.batches[2]);
        scope.spawn(move || writer.next_slot().unwrap().publish(SIZE, plan.0, plan.1.view()));
        let (_, cursor) = ring.handle.add_reader(|_| Some(0)).unwrap();
        ring.handle.remove_reader(hold);
        let mut late = open(ring.handle.data(), cursor).unwrap();
        for seq in 0..3 {
            assert_eq!(lease(&mut late).seq(), seq);
        }
    });
}

#[test]
fn the_last_reader_to_leave_ends_the_ring() {
    let mut ring = ring(2);
    ring.handle.remove_reader(ring.id);
    assert_eq!(ring.writer.next_slot().err(), Some(WriterStopped::Deserted));
    assert!(matches!(ring.handle.add_reader(Some), Err(RingError::Closed)));
}

#[test]
fn a_reader_that_keeps_others_waiting_is_evicted_and_its_leases_stay_whole() {
    let max_lag = Duration::from_millis(1);
    let mut ring = ring_at(2, Pace { delivery: Delivery::Lossless, max_lag });
    ring.write(0);
    let held = ring.read();
    let (_, cursor) = ring.handle.add_reader(Some).unwrap();
    let mut other = open(ring.handle.data(), cursor).unwrap();
    let bytes = held.view().x.to_vec();
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| (1..10).map(|_| lease(&mut other).seq()).collect::<Vec<_>>());
        let (writer, plans) = (&mut ring.writer, &ring.batches);
        scope.spawn(move || {
            for (index, plan) in plans.iter().enumerate().skip(1) {
                let mut slot = writer.next_slot().unwrap();
                slot.x_mut(SIZE, 3).fill(index as u8);
                slot.publish(SIZE, plan.0, plan.1.view());
            }
        });
        assert_eq!(reading.join().unwrap(), (1..10).collect::<Vec<_>>());
    });
    assert!(held.view().x == bytes && held.view().head.index == 0, "overwritten while leased");
    assert!(matches!(next(&mut ring.reader), Next::Evicted(Eviction::Lag)));
    let evicted: Vec<bool> = ring.handle.readers().iter().map(|reader| reader.evicted).collect();
    assert_eq!(evicted, [false, true]);
    drop(held);
    ring.handle.remove_reader(ring.id);
    assert_eq!(ring.handle.readers().len(), 1);
}

/// Looks again and again, as a reader does that waits, until it is dropped.
struct Looking(Arc<AtomicBool>);

impl Looking {
    fn of(reader: &RingReader) -> Self {
        let (inner, over) = (Arc::clone(&reader.inner), Arc::new(AtomicBool::new(false)));
        let looking = Self(Arc::clone(&over));
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                count(&inner.cursor.page().looks, 1);
                std::thread::yield_now();
            }
        });
        looking
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Another reader, which is awake between its looks, as one in Python is, so that it seldom announces that it sleeps.
fn waiting(ring: &Fixture) -> RingReader {
    let (_, cursor) = ring.handle.add_reader(Some).unwrap();
    open(ring.handle.data(), cursor).unwrap()
}

#[test]
fn readers_that_lag_at_the_same_time_are_evicted_at_the_same_time() {
    let mut ring = ring_at(2, Pace { delivery: Delivery::Lossless, max_lag: Duration::from_nanos(1) });
    let (_, cursor) = ring.handle.add_reader(Some).unwrap();
    let _lags_too = open(ring.handle.data(), cursor).unwrap();
    let mut other = waiting(&ring);
    for index in 0..2 {
        ring.write(index);
        assert_eq!(lease(&mut other).seq(), index as u64);
    }
    assert!(!ring.writer.evict_late(), "they are late from here on");
    let _looking = Looking::of(&other);
    while !ring.writer.evict_late() {}
    let evicted: Vec<bool> = ring.handle.readers().iter().map(|reader| reader.evicted).collect();
    assert_eq!(evicted, [false, true, true]);
}

#[test]
fn time_for_which_those_who_wait_are_stopped_is_no_lag() {
    let max_lag = Duration::from_millis(2);
    let mut ring = ring_at(2, Pace { delivery: Delivery::Lossless, max_lag });
    let mut other = waiting(&ring);
    for index in 0..2 {
        ring.write(index);
        assert_eq!(lease(&mut other).seq(), index as u64);
    }
    let since = Instant::now();
    while since.elapsed() < 10 * max_lag {
        assert!(!ring.writer.evict_late());
    }
    count(&other.inner.cursor.page().looks, 1);
    assert!(!ring.writer.evict_late(), "it runs again, and the time before does not count");
    let _looking = Looking::of(&other);
    while !ring.writer.evict_late() {}
}

#[test]
fn while_evicted_readers_keep_slots_others_use_the_spare_ones_and_if_these_are_kept_too_the_ring_ends() {
    let mut ring = ring_at(63, Pace { delivery: Delivery::Lossless, max_lag: Duration::from_millis(1) });
    let mut other = waiting(&ring);
    let _looking = Looking::of(&other);
    ring.handle.remove_reader(ring.id);
    let mut kept = Vec::new();
    for _ in 0..2 {
        let (_, cursor) = ring.handle.add_reader(Some).unwrap();
        let mut hoarder = open(ring.handle.data(), cursor).unwrap();
        for index in 0..63 {
            ring.write(index % 10);
            kept.push((index % 10, lease(&mut hoarder)));
            drop(lease(&mut other));
        }
    }
    assert_eq!(ring.writer.next_slot().err(), Some(WriterStopped::Kept));
    let is_whole = |(index, lease): &(usize, Lease)| lease.view().x.iter().all(|&byte| byte == *index as u8);
    assert!(kept.iter().all(is_whole), "overwritten while leased");
    // One lease less is enough to go on.
    kept.pop();
    ring.write(9);
    assert_eq!(lease(&mut other).seq(), 126);
}

#[test]
fn the_fastest_reader_of_the_latest_misses_nothing_while_others_hold_slots() {
    let mut ring = ring_at(4, latest());
    let join = || {
        let (_, cursor) = ring.handle.add_reader(Some).unwrap();
        open(ring.handle.data(), cursor).unwrap()
    };
    let mut stalled = [join(), join()];
    ring.write(0);
    let _held = lease(&mut stalled[0]);
    assert_eq!(ring.read().seq(), 0);
    ring.write(1);
    let _held_too = lease(&mut stalled[1]);
    std::thread::scope(|scope| {
        let (writer, plans) = (&mut ring.writer, &ring.batches);
        scope.spawn(move || {
            for plan in &plans[2..] {
                writer.next_slot().unwrap().publish(SIZE, plan.0, plan.1.view());
            }
        });
        for seq in 1..10 {
            std::thread::yield_now();
            assert_eq!(lease(&mut ring.reader).seq(), seq);
        }
    });
}

#[test]
fn a_reader_of_the_latest_does_not_wait_awake_for_a_batch_that_no_slot_holds() {
    let mut ring = ring_at(3, latest());
    ring.write(0);
    // As the writer leaves it that is killed while it fills the slot of the newest batch.
    assert!(ring.writer.shared.data.words().claim(0, || false));
    let handle = ring.reader.give_up_handle();
    let reading =
        std::thread::spawn(move || (matches!(ring.reader.next_batch(|| false).unwrap(), Next::GaveUp), ring.reader));
    while ring.handle.readers()[0].released == 0 {
        std::thread::yield_now();
    }
    handle.give_up();
    let (gave_up, _reader) = reading.join().unwrap();
    assert!(gave_up && ring.handle.readers()[0].skipped == 1);
}

#[test]
fn a_slow_reader_of_the_latest_skips_and_holds_up_nobody() {
    let mut ring = ring_at(3, latest());
    let (_, cursor) = ring.handle.add_reader(Some).unwrap();
    let mut slow = open(ring.handle.data(), cursor).unwrap();
    ring.write(0);
    let held = lease(&mut slow);
    assert!(matches!(slow.next_batch(|| false), Err(RingError::OneAtATime)));
    assert_eq!(ring.read().seq(), 0);
    for index in 1..9 {
        ring.write(index);
        assert_eq!(ring.read().seq(), index as u64);
    }
    assert!(held.view().x.iter().all(|&byte| byte == 0) && held.view().head.index == 0, "overwritten while leased");
    drop(held);
    assert_eq!(lease(&mut slow).seq(), 8);
    ring.write(9);
    assert_eq!(lease(&mut slow).seq(), 9);
    let [fast, slow] = ring.handle.readers()[..] else { panic!("two readers") };
    assert_eq!((fast.read, fast.skipped, slow.read, slow.skipped), (9, 0, 3, 7));
    // A slot for each reader, and one to write.
    assert!(matches!(ring.handle.add_reader(Some), Err(RingError::TooFewSlots { slots: 3, readers: 3 })));
}

#[test]
fn the_fastest_reader_of_the_latest_sets_the_pace_whoever_that_is() {
    let mut ring = ring_at(3, latest());
    ring.write(0);
    ring.write(1);
    ring.write(2);
    std::thread::scope(|scope| {
        let (writer, plan) = (&mut ring.writer, &ring.batches[3]);
        // Nobody has read anything, so the writer waits; then one joins who has room.
        scope.spawn(move || writer.next_slot().unwrap().publish(SIZE, plan.0, plan.1.view()));
        let (_, cursor) = ring.handle.add_reader(Some).unwrap();
        let mut other = open(ring.handle.data(), cursor).unwrap();
        assert_eq!(lease(&mut other).seq(), 3);
    });
}

#[test]
fn a_reader_of_the_latest_that_leases_several_slots_is_evicted() {
    let mut ring = ring_at(3, latest());
    ring.write(0);
    ring.reader.inner.cursor.words().held[0].store(0b11, Ordering::Relaxed);
    assert!(matches!(ring.writer.next_slot().err(), Some(WriterStopped::Evicted(_))));
    assert!(matches!(next(&mut ring.reader), Next::Evicted(Eviction::Unlawful)));
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
        assert!(ring.handle.readers()[0].evicted && ring.handle.is_closed());
    }
}

/// Sealed memory with these bytes.
fn sealed(bytes: &[u8]) -> Arc<File> {
    let file = File::from(memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap());
    file.write_all_at(bytes, 0).unwrap();
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).unwrap();
    Arc::new(file)
}

#[test]
fn memory_of_another_version_or_size_or_without_seals_is_refused() {
    let ring = ring(2);
    let (data, (_, cursor)) = (ring.handle.data(), ring.handle.add_reader(Some).unwrap());
    let mut bytes = vec![0; data.metadata().unwrap().len() as usize];
    data.read_exact_at(&mut bytes, 0).unwrap();
    let is_refused = |data| matches!(open(data, Arc::clone(&cursor)), Err(RingError::Foreign(_)));
    assert!(!is_refused(sealed(&bytes)));
    assert!(is_refused(sealed(&bytes[..bytes.len() - 1])));
    bytes[8] = LAYOUT_VERSION as u8 + 1;
    assert!(is_refused(sealed(&bytes)));
    bytes[8] = LAYOUT_VERSION as u8;
    let unsealed = File::from(memfd_create("test", MemfdFlags::empty()).unwrap());
    unsealed.write_all_at(&bytes, 0).unwrap();
    assert!(is_refused(Arc::new(unsealed)));
}

#[test]
fn a_trainer_can_neither_write_to_the_data_nor_shrink_what_it_was_given() {
    let ring = ring(2);
    let (data, (_, cursor)) = (ring.handle.data(), ring.handle.add_reader(Some).unwrap());
    for file in [&data, &cursor] {
        for bytes in [0, 1 << 30] {
            assert!(file.set_len(bytes).is_err());
        }
    }
    assert!(data.write_all_at(b"x", 0).is_err());
    // Nor through the descriptor opened anew.
    let again = format!("/proc/self/fd/{}", data.as_raw_fd());
    if let Ok(again) = std::fs::OpenOptions::new().read(true).write(true).open(again) {
        assert!(again.write_all_at(b"x", 0).is_err() && memmap2::MmapOptions::new().map_raw(&again).is_err());
    }
    assert!(memmap2::MmapOptions::new().map_raw(&*data).is_err());
}

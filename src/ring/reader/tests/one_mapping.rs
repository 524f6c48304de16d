//! A writer and its readers as threads of one process, for ThreadSanitizer (`make tsan`). It identifies memory by address, so these readers
//! work in the writer's mapping: through mappings of their own, as in [`RingReader::open`], every race would stay hidden. It models no fences,
//! and the slots need none. Rings are used as processes use them, down to the futexes.

use super::*;
use crate::ring::ReaderId;
use std::thread;

/// Batches of a feed, at least.
const BATCHES: u64 = if cfg!(mixd_tsan) { 20_000 } else { 2_000 };
/// How often a reader of the lossless feed is evicted.
const EVICTIONS: u64 = if cfg!(mixd_tsan) { 50 } else { 5 };
const SLOTS: u32 = 5;
const DEADLINE: Duration = Duration::from_secs(120);

/// A reader at the next batch, and each slot in the writer's mapping.
struct Joined {
    id: ReaderId,
    reader: RingReader,
    slots: Vec<Arc<View>>,
}

/// Joins, if the feed has not ended. The header, the cursor and, unless it `keeps` batches, the slots are seen in the writer's
/// mapping. What is kept is replaced at its address, so slots must be mapped for it.
fn join(handle: &RingHandle, keeps: bool) -> Option<Joined> {
    let id = match handle.add_reader(Some) {
        Ok((id, _)) => id,
        Err(RingError::Closed) => return None,
        Err(error) => panic!("{error}"),
    };
    let data = handle.0.data.again();
    let cursor = handle.0.readers().live.iter().find(|reader| reader.id == id).unwrap().cursor.again();
    let slots: Vec<_> = (0..data.all_slots()).map(|slot| Arc::new(data.view_in_place(slot))).collect();
    let views = slots.iter().map(|view| (!keeps).then(|| Arc::clone(view))).collect();
    let next = cursor.words().released.load(Ordering::Relaxed);
    let inner = Inner {
        views: Mutex::new(views),
        data,
        cursor,
        device: None,
        window: Mutex::new(Window { released: next, ..Window::default() }),
        give_up: AtomicBool::new(false),
        left: AtomicBool::new(false),
        first: next,
        pid: std::process::id(),
    };
    Some(Joined {
        id,
        reader: RingReader { inner: Arc::new(inner), next, waited_ns: AtomicU64::new(0), session: Arc::new(()) },
        slots,
    })
}

fn is_whole(lease: &Lease) -> bool {
    let (seq, header) = (lease.seq(), lease.header());
    header.seq == seq && header.index == seq % 10 && lease.view().x.iter().all(|&byte| byte == seq as u8)
}

/// Writes batches until `enough`, [`BATCHES`] at least, and ends the feed.
fn write(mut writer: RingWriter, batches: &[(Head, OwnedColumns)], enough: &AtomicBool) {
    let (mut seq, deadline) = (0, Instant::now() + DEADLINE);
    while seq < BATCHES || !enough.load(Ordering::Relaxed) {
        assert!(Instant::now() < deadline, "not enough");
        let mut slot = writer.next_slot().unwrap();
        slot.x_mut(SIZE, 3).fill(seq as u8);
        let (head, columns) = &batches[seq as usize % batches.len()];
        slot.publish(SIZE, *head, columns.view());
        seq += 1;
    }
    writer.end("all are written", false);
}

/// Reads a lossless feed to its end, with two leases at a time; joins again where the machine was so slow that it was evicted.
fn read_lossless(handle: &RingHandle, keeps: bool) {
    while let Some(Joined { id, mut reader, slots }) = join(handle, keeps) {
        let (mut held, mut seq) = (VecDeque::<Lease>::new(), reader.next);
        let is_over = loop {
            if held.len() == 2 && keeps {
                // SAFETY: the slot is leased.
                let in_place = unsafe { slots[held[0].slot as usize].bytes() };
                assert!(in_place == held[0].slot());
                reader.keep_oldest().unwrap();
                assert!(held.pop_front().is_some_and(|kept| is_whole(&kept)));
            } else if held.len() == 2 {
                // In order and out of it.
                drop(held.remove(seq as usize / 2 % 2));
            }
            match next(&mut reader) {
                Next::Batch(lease) => {
                    assert!(lease.seq() == seq && is_whole(&lease));
                    held.push_back(lease);
                    seq += 1;
                }
                Next::Ended { failed: false, .. } => break true,
                Next::Evicted(Eviction::Lag) => break false,
                _ => panic!("neither ended nor evicted"),
            }
            assert!(held.iter().all(is_whole));
        };
        held.clear();
        handle.remove_reader(id);
        if is_over {
            assert_eq!(seq, handle.published());
            return;
        }
    }
}

/// Is evicted with a batch leased, again and again. The others read on meanwhile, and after the lease has ended.
fn stall(handle: &RingHandle, enough: &AtomicBool) {
    let deadline = Instant::now() + DEADLINE;
    for _ in 0..EVICTIONS {
        let Joined { id, mut reader, .. } = join(handle, false).unwrap();
        // Where the machine is slow it may be evicted before.
        let held = match next(&mut reader) {
            Next::Batch(lease) => Some(lease),
            _ => None,
        };
        while reader.inner.cursor.words().eviction() == 0 {
            assert!(Instant::now() < deadline, "not evicted");
            // As if those that wait for this one were awake.
            handle.0.readers().live.iter().for_each(|reader| count(&reader.cursor.page().looks, 1));
            thread::yield_now();
        }
        let published = || reader.inner.data.words().published.load(Ordering::Relaxed);
        let go_on = |check: &dyn Fn() -> bool| {
            let until = published() + 2 * u64::from(SLOTS);
            while published() < until {
                assert!(Instant::now() < deadline && check(), "overwritten while leased, or nobody reads on");
                thread::yield_now();
            }
        };
        go_on(&|| held.as_ref().is_none_or(is_whole));
        drop(held);
        go_on(&|| true);
        handle.remove_reader(id);
    }
    enough.store(true, Ordering::Relaxed);
}

/// Reads a feed of the latest to its end, and each batch so many times.
fn read_latest(handle: &RingHandle, times: usize) {
    let Joined { mut reader, .. } = join(handle, false).unwrap();
    let mut seq = reader.next;
    loop {
        match next(&mut reader) {
            Next::Batch(lease) => {
                assert!(lease.seq() >= seq && (0..times).all(|_| is_whole(&lease)));
                seq = lease.seq() + 1;
            }
            Next::Ended { failed: false, .. } => break,
            _ => panic!("not ended"),
        }
    }
    assert_eq!(seq, handle.published(), "the last batch was overwritten by none");
}

/// Starts the writer and these readers, and lets the first batches pass once all have joined.
fn run(pace: Pace, enough: &AtomicBool, readers: [&(dyn Fn(&RingHandle) + Sync); 3]) {
    let Fixture { writer, handle, reader: _reader, id, batches } = ring_at(SLOTS, pace);
    thread::scope(|scope| {
        let handle = &handle;
        for read in readers {
            scope.spawn(move || read(handle));
        }
        let deadline = Instant::now() + DEADLINE;
        while handle.readers().len() < 1 + readers.len() {
            assert!(Instant::now() < deadline, "not joined");
            thread::yield_now();
        }
        scope.spawn(|| write(writer, &batches, enough));
        handle.remove_reader(id);
    });
}

#[test]
fn in_one_mapping_readers_of_a_lossless_feed_read_whole_batches_while_one_is_evicted() {
    let enough = AtomicBool::new(false);
    let pace = Pace { delivery: Delivery::Lossless, max_lag: Duration::from_millis(20) };
    let stalls = |handle: &RingHandle| stall(handle, &enough);
    run(pace, &enough, [&|handle| read_lossless(handle, false), &|handle| read_lossless(handle, true), &stalls]);
}

#[test]
fn in_one_mapping_readers_of_a_feed_of_the_latest_read_whole_batches_up_to_the_last() {
    let readers: [&(dyn Fn(&RingHandle) + Sync); 3] =
        [&|handle| read_latest(handle, 1), &|handle| read_latest(handle, 3), &|handle| read_latest(handle, 30)];
    run(latest(), &AtomicBool::new(true), readers);
}

//! A trainer that writes to its cursor what it likes: it is evicted or harms itself only.

use super::ring::{publish, small, write};
use super::script::Script;
use mixd::ring::{Next, Pace, RingReader};
use mixd::spec::Delivery;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

const SLOTS: u32 = 4;
/// Where `released` stands in a cursor (src/ring/layout.rs).
const RELEASED_AT: u64 = 128;

/// One reader reads every batch, another writes to its cursor; the first gets them all, whole and in order.
pub fn cursor(bytes: &[u8]) {
    let _ = run(&mut Script(bytes));
}

fn run(script: &mut Script<'_>) -> Option<()> {
    let flags = script.byte()?;
    let delivery = if flags & 1 == 0 { Delivery::Lossless } else { Delivery::Latest };
    let max_lag = if flags & 2 == 0 { Duration::MAX } else { Duration::from_secs(60) };
    let (mut writer, handle) = small(SLOTS, Pace { delivery, max_lag });
    let caller = writer.caller();
    let (_, cursor) = handle.add_reader(|_| Some(0)).expect("there is room");
    let mut reader = RingReader::open(handle.data(), cursor, ()).expect("it is whole");
    let (mut hostile, mut cursor) = handle.add_reader(|_| Some(0)).expect("there is room");
    for seq in 0..32_u64 {
        for _ in 0..script.byte()? % 4 {
            write(&cursor, script)?;
        }
        // Whoever has not released a batch that is needed is waited for.
        let released = released(&cursor);
        let is_evicted = |id| handle.readers().iter().any(|reader| reader.id == id && reader.evicted);
        if delivery == Delivery::Lossless && released <= seq && seq - released >= SLOTS.into() && !is_evicted(hostile) {
            handle.remove_reader(hostile);
            (hostile, cursor) = handle.add_reader(|_| Some(seq)).expect("there is room");
        }
        let _ = caller.ahead();
        publish(writer.next_slot().expect("a reader is left, and has released all"), seq);
        caller.call();
        match reader.next_batch(|| true) {
            Ok(Next::Batch(lease)) => {
                let view = lease.view();
                assert!(lease.seq() == seq && view.head.index == seq && view.x.iter().all(|&value| value == seq as u8));
            }
            Ok(_) => panic!("batch {seq} does not come"),
            Err(error) => panic!("batch {seq}: {error}"),
        }
        assert!(!is_evicted(0), "the wrong one was evicted");
    }
    Some(())
}

fn released(cursor: &File) -> u64 {
    let mut bytes = [0; 8];
    cursor.read_exact_at(&mut bytes, RELEASED_AT).expect("memory is readable");
    u64::from_le_bytes(bytes)
}

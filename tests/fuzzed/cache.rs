//! Cache files that were changed behind the daemon's back: an image is believed only where it is the one that was kept.

use super::script::Script;
use mixd::decode::Picture;
use mixd::store::{Budget, Found, Key, RowsFile, Sources};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

const SAMPLES: u32 = 3;
const BUDGET_BYTES: u64 = 1 << 12;
const STAMP: u64 = 9;
const ROWS: Key = Key { key: 7, samples: SAMPLES, row_bytes: 64 };

/// Keeps images in a file, changes its bytes, shortens or lengthens it, and asks for the images again.
pub fn cache(bytes: &[u8]) {
    let dir = super::folder();
    let [sources, rows] = ["sources", "rows"].map(|name| dir.path().join(name));
    for sample in 0..SAMPLES {
        ask(&open_sources(&sources), sample);
    }
    let kept = RowsFile::open(&rows, ROWS, SAMPLES).expect("it is new");
    kept.record(1, 2, Some(STAMP), &[3; 64]);
    drop(kept);
    let mut script = Script(bytes);
    for path in [&sources, &rows] {
        let _ = change(path, &mut script);
    }
    let reopened = open_sources(&sources);
    for sample in 0..SAMPLES {
        ask(&reopened, sample);
        ask(&reopened, sample);
    }
    let rows = RowsFile::open(&rows, ROWS, SAMPLES).expect("whatever it holds");
    assert!((0..SAMPLES).all(|row| rows.sample_of(row).is_none_or(|sample| sample < SAMPLES)));
}

fn open_sources(path: &Path) -> Sources {
    Sources::in_file(path, 7, SAMPLES, Arc::new(Budget::new(BUDGET_BYTES))).expect("whatever it holds")
}

/// Finds a sample, or keeps it.
fn ask(sources: &Sources, sample: u32) {
    let values = vec![sample as u8; 5 * 4 * 3];
    let is_right = |found: Picture<'_>| assert!((found.width, found.height) == (5, 4) && found.to_rgb() == values);
    match sources.request(sample, || false) {
        Found::Ready(found) => is_right(found),
        Found::Claimed(claim) => match claim.check(STAMP) {
            Ok(found) => is_right(found),
            Err(claim) => claim.keep(&Picture::new(5, 4, 3, &values), Some(STAMP)),
        },
        Found::Full | Found::GaveUp => {}
    }
}

/// Makes up to 8 changes to a file.
fn change(path: &Path, script: &mut Script<'_>) -> Option<()> {
    let file = std::fs::File::options().read(true).write(true).open(path).expect("it is there");
    for _ in 0..script.byte()? % 9 {
        let length = file.metadata().expect("it is open").len();
        if script.byte()? == 0 {
            file.set_len(script.number()?.into()).expect("it has room");
        } else if length > 0 {
            let (at, bytes) = script.patch(length as usize)?;
            file.write_all_at(bytes, at).expect("it has room");
        }
    }
    Some(())
}

//! What tells whether a file or folder is as it was.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::{SystemTime, UNIX_EPOCH};
use xxhash_rust::xxh3::xxh3_64;

/// What changed this little ago may change again without its times moving, which tick every few milliseconds.
const SETTLED_NS: i128 = 1_000_000_000;

/// A hash of which file it is, its size and its times; never 0. The change time is the system's: no program can set it.
pub fn stamp(meta: &Metadata) -> u64 {
    let times = [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()].map(|time| time as u64);
    let numbers = [meta.dev(), meta.ino(), meta.size(), times[0], times[1], times[2], times[3]];
    xxh3_64(bytemuck::cast_slice(&numbers)).max(1)
}

/// Whether its stamp tells any later change.
pub fn is_settled(meta: &Metadata) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as i128);
    now - (i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec())) > SETTLED_NS
}

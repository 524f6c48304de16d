//! Shards: indexed the same when they are opened again, and every sample's bytes are bytes of the shard.

use super::archive::{listed, with_checksums};
use mixd::source::{DataSet, open};
use mixd::types::Split;

/// What stands between a shard and its index file in an input.
const INDEX: &[u8] = b"\nIDX\n";

/// Indexes a shard, perhaps with an index file beside it, and reads its samples.
pub fn shard(bytes: &[u8]) {
    let dir = super::folder();
    let set = dir.path().join("set");
    std::fs::create_dir(&set).expect("the folder is writable");
    let (shard, index) = match bytes.windows(INDEX.len()).position(|window| window == INDEX) {
        Some(at) => (with_checksums(&bytes[..at]), Some(&bytes[at + INDEX.len()..])),
        None => (with_checksums(bytes), None),
    };
    std::fs::write(set.join("train.tar"), &shard).expect("the folder is writable");
    if let Some(index) = index {
        std::fs::write(set.join("train.idx"), index).expect("the folder is writable");
    }
    let set = DataSet { cache_dir: Some(dir.path().join("cache")), ..DataSet::at(&set) };
    let open = || open(&set, &mut |_| {});
    match (open(), open()) {
        (Ok(first), Ok(again)) => {
            assert_eq!(listed(&*first), listed(&*again));
            assert_eq!(first.notes(), again.notes());
            let mut bytes = Vec::new();
            for sample in 0..first.len(Split::Train) {
                first.read(Split::Train, sample, &mut bytes).expect("it was indexed");
                let is_part = bytes.is_empty() || shard.windows(bytes.len()).any(|window| window == bytes);
                assert!(is_part, "sample {sample} has bytes of its own");
                assert!(!first.label_name(first.label(Split::Train, sample)).is_empty());
            }
        }
        (Err(first), Err(again)) => {
            assert_eq!(first.to_string(), again.to_string());
            assert!(!first.to_string().contains(char::is_control), "{first:?}");
        }
        (first, again) => panic!("opened once only: {:?}, {:?}", first.err(), again.err()),
    }
}

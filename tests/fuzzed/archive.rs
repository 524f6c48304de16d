//! Archives: unpacked below one folder, and indexed the same when they are opened again.

use mixd::source::{DataSet, Source, open};
use mixd::types::Split;
use std::path::Path;

const BLOCK_BYTES: usize = 512;

/// Unpacks a tar, gzipped or not, twice, and reads its samples.
pub fn archive(bytes: &[u8]) {
    let dir = super::folder();
    let (path, cache) = (dir.path().join("set.tar"), dir.path().join("cache"));
    std::fs::write(&path, with_checksums(bytes)).expect("the folder is writable");
    let set = DataSet { cache_dir: Some(cache.clone()), ..DataSet::at(&path) };
    let open = || open(&set, &mut |_| {});
    let first = open();
    let names = std::fs::read_dir(dir.path()).expect("the folder is there").map(|entry| entry.unwrap().file_name());
    assert!(names.into_iter().all(|name| name == "set.tar" || name == "cache"), "written outside of the cache");
    match (first, open()) {
        (Ok(first), Ok(again)) => {
            assert_eq!(listed(&*first), listed(&*again));
            assert!(Path::new(&first.location()).starts_with(&cache));
            let mut bytes = Vec::new();
            for &split in Split::ALL {
                for sample in 0..first.len(split) {
                    first.read(split, sample, &mut bytes).expect("it was unpacked");
                    assert!(!first.label_name(first.label(split, sample)).is_empty());
                }
            }
        }
        (Err(first), Err(again)) => assert_eq!(first.to_string(), again.to_string()),
        (first, again) => panic!("opened once only: {:?}, {:?}", first.err(), again.err()),
    }
}

/// The names of all samples.
pub fn listed(source: &dyn Source) -> Vec<String> {
    let names = |&split: &Split| (0..source.len(split)).map(move |sample| source.name(split, sample));
    Split::ALL.iter().flat_map(names).collect()
}

/// The bytes with the checksum of every block that looks like a tar's header put right, which a fuzzer does not find.
pub fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for block in bytes.chunks_exact_mut(BLOCK_BYTES).filter(|block| block[257..].starts_with(b"ustar")) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().copied().map(u32::from).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    bytes
}

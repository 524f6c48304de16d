//! Tables of images: whatever they say of themselves, what is indexed is read, or an error.

use mixd::source::{DataSet, open};
use mixd::types::Split;

/// Opens a table twice, Parquet by its first bytes, else Arrow, and reads its images.
pub fn table(bytes: &[u8]) {
    let dir = super::folder();
    let path = dir.path().join(if bytes.starts_with(b"PAR1") { "set.parquet" } else { "set.arrow" });
    std::fs::write(&path, bytes).expect("the folder is writable");
    let set = DataSet { cache_dir: Some(dir.path().join("cache")), ..DataSet::at(&path) };
    let open = || open(&set, &mut |_| {});
    match (open(), open()) {
        (Ok(first), Ok(again)) => {
            let (mut image, mut same) = (Vec::new(), Vec::new());
            assert!(first.len(Split::Train) as usize <= bytes.len() && first.len(Split::Val) == 0);
            for sample in 0..first.len(Split::Train).min(1_000) {
                let [first, again] = [(&first, &mut image), (&again, &mut same)].map(|(source, into)| {
                    let class = source.label(Split::Train, sample);
                    assert!((class as usize) < source.classes().len());
                    (source.read(Split::Train, sample, into).is_ok(), class)
                });
                assert_eq!(first, again);
                assert!(!first.0 || image == same);
            }
        }
        (Err(first), Err(again)) => assert_eq!(first.to_string(), again.to_string()),
        (first, again) => panic!("opened once only: {:?}, {:?}", first.err(), again.err()),
    }
}

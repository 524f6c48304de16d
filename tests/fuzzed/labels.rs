//! Tables of labels: whatever stands in them, a data set that is the same when it is opened again, or an error without control characters.

use mixd::source::{DataSet, open};
use mixd::types::Split;

/// Images that a table may name.
const IMAGES: [&str; 4] = ["1.jpg", "2.png", "train/3.jpg", "val/4.jpg"];

/// Reads a table by itself or as `metadata.jsonl`, as its first byte says, beside images.
pub fn labels(bytes: &[u8]) {
    let Some((&how, table)) = bytes.split_first() else { return };
    let dir = super::folder();
    for image in IMAGES {
        let path = dir.path().join(image);
        std::fs::create_dir_all(path.parent().expect("in the folder")).expect("the folder is writable");
        std::fs::write(path, image).expect("the folder is writable");
    }
    let name = ["metadata.csv", "metadata.jsonl", "table.tsv"][usize::from(how) % 3];
    std::fs::write(dir.path().join(name), table).expect("the folder is writable");
    let labels = (how % 2 == 0 || name == "table.tsv").then(|| dir.path().join(name));
    let set = DataSet { cache_dir: Some(dir.path().join("cache")), labels, ..DataSet::at(dir.path()) };
    let open = || open(&set, &mut |_| {});
    match (open(), open()) {
        (Ok(first), Ok(again)) => {
            let mut image = Vec::new();
            for &split in Split::ALL {
                assert_eq!(first.len(split), again.len(split));
                for sample in 0..first.len(split) {
                    let label = first.label(split, sample);
                    assert_eq!(label, again.label(split, sample));
                    assert!(!first.label_name(label).is_empty());
                    first.read(split, sample, &mut image).expect("it is there");
                    assert_eq!(image, first.name(split, sample).as_bytes());
                }
            }
        }
        (Err(first), Err(again)) => {
            assert_eq!(first.to_string(), again.to_string());
            assert!(!first.to_string().contains(char::is_control), "{first:?}");
        }
        (first, again) => panic!("opened once only: {:?}, {:?}", first.err(), again.err()),
    }
}

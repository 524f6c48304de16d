//! CIFAR's and MNIST's binaries: whatever their headers say, every sample is an image of the size that they gave, or the set is refused.

use mixd::source::{DataSet, open};
use mixd::types::Split;

/// What stands between the files of an input.
const NEXT: &[u8] = b"\nNEXT\n";
const MNIST: [&str; 4] =
    ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"];
const CIFAR: [&str; 3] = ["data_batch_1.bin", "test_batch.bin", "batches.meta.txt"];

/// Opens files as MNIST's or CIFAR's, as the first byte says.
pub fn binaries(bytes: &[u8]) {
    let Some((&how, mut rest)) = bytes.split_first() else { return };
    let dir = super::folder();
    let (kind, names) = if how % 2 == 0 { ("mnist", &MNIST[..]) } else { ("cifar10", &CIFAR[..]) };
    for name in names {
        let end = rest.windows(NEXT.len()).position(|window| window == NEXT);
        let (file, next) = end.map_or((rest, &[][..]), |at| (&rest[..at], &rest[at + NEXT.len()..]));
        std::fs::write(dir.path().join(name), file).expect("the folder is writable");
        rest = next;
    }
    let data = format!("{kind}:{}", dir.path().to_str().expect("plain letters"));
    let set = DataSet { cache_dir: Some(dir.path().join("cache")), ..DataSet::at(data.as_ref()) };
    match open(&set, &mut |_| {}) {
        Ok(source) => {
            let mut image = Vec::new();
            for &split in Split::ALL {
                assert!(source.len(split) as usize <= bytes.len());
                for sample in 0..source.len(split) {
                    assert!((source.label(split, sample) as usize) < source.classes().len());
                    source.read(split, sample, &mut image).expect("it is there");
                    assert!(image.starts_with(b"P5\n") || image.starts_with(b"P6\n"));
                }
            }
        }
        Err(error) => assert!(!error.to_string().contains(char::is_control), "{error:?}"),
    }
}

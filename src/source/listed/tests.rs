//! Folders with tables, and ImageNet's, as sources.

use super::super::{DataSet, open};
use super::*;
use std::sync::Arc;
use tempfile::TempDir;

/// A folder of files, each with its path as its content where nothing else is given.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let file = dir.path().join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, if text.is_empty() { path } else { text }).unwrap();
    }
    dir
}

fn opened(dir: &TempDir, change: impl FnOnce(&mut DataSet)) -> Result<Arc<dyn Source>, DatasetError> {
    let mut set = DataSet::at(dir.path());
    change(&mut set);
    open(&set, &mut |_| {})
}

/// `name:label` of each sample; that its bytes are those of its file is checked.
fn shown(source: &dyn Source, split: Split) -> Vec<String> {
    let mut bytes = Vec::new();
    let each = (0..source.len(split)).map(|sample| {
        let name = source.name(split, sample);
        source.read(split, sample, &mut bytes).unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes), name);
        format!("{name}:{}", source.label_name(source.label(split, sample)))
    });
    each.collect()
}

#[test]
fn a_folder_has_the_labels_of_its_metadata() {
    let table = "file_name,label\nb.jpg,dog\nsub/a.png,cat\n";
    let dir = folder(&[("metadata.csv", table), ("b.jpg", ""), ("sub/a.png", "")]);
    let source = opened(&dir, |_| {}).unwrap();
    assert_eq!(shown(&*source, Split::Train), ["b.jpg:dog", "sub/a.png:cat"]);
    assert!(source.len(Split::Val) == 0 && source.label_sets().is_none() && source.notes().is_empty());
    assert_eq!(source.classes().iter().map(|class| &*class.id).collect::<Vec<_>>(), ["cat", "dog"]);
}

#[test]
fn splits_have_tables_of_their_own_or_a_column_or_folders() {
    let [train, val] = [
        "{\"file_name\": \"1.jpg\", \"label\": 1}\n{\"file_name\": \"2.jpg\", \"label\": 0}",
        "{\"file_name\": \"1.jpg\", \"label\": 1}",
    ];
    let apart = folder(&[
        ("train/metadata.jsonl", train),
        ("train/1.jpg", ""),
        ("train/2.jpg", ""),
        ("validation/metadata.jsonl", val),
        ("validation/1.jpg", ""),
        ("test/metadata.jsonl", val),
        ("test/1.jpg", ""),
    ]);
    let source = opened(&apart, |_| {}).unwrap();
    assert_eq!(shown(&*source, Split::Train), ["train/1.jpg:1", "train/2.jpg:0"]);
    assert_eq!(shown(&*source, Split::Val), ["validation/1.jpg:1"]);
    let source = opened(&apart, |set| set.splits = "val=test".parse().unwrap()).unwrap();
    assert_eq!(shown(&*source, Split::Val), ["test/1.jpg:1"]);
    let column = "file,label,split\n1.jpg,a,train\n2.jpg,a,valid\n";
    let column = folder(&[("metadata.csv", column), ("1.jpg", ""), ("2.jpg", "")]);
    assert_eq!(shown(&*opened(&column, |_| {}).unwrap(), Split::Val), ["2.jpg:a"]);
    let folders = "train/x/1.jpg,a\nval/x/2.jpg,a\n";
    let folders = folder(&[("labels.csv", folders), ("train/x/1.jpg", ""), ("val/x/2.jpg", "")]);
    let source = opened(&folders, |set| set.labels = Some(set.data.join("labels.csv"))).unwrap();
    assert_eq!(
        [Split::Train, Split::Val].map(|split| shown(&*source, split)),
        [["train/x/1.jpg:a"], ["val/x/2.jpg:a"]]
    );
}

#[test]
fn a_test_split_is_for_validation_where_there_is_no_other() {
    let with = |rows: &str| {
        let table = format!("file,label,split\n1.jpg,a,train\n{rows}");
        folder(&[("metadata.csv", &table), ("1.jpg", ""), ("2.jpg", ""), ("3.jpg", "")])
    };
    let (both, alone) = (with("2.jpg,a,val\n3.jpg,a,test\n"), with("2.jpg,a,test\n3.jpg,a,test\n"));
    let source = opened(&both, |_| {}).unwrap();
    assert_eq!(shown(&*source, Split::Val), ["2.jpg:a"]);
    assert_eq!(source.notes(), ["images of the test split left out: 1 (--splits val=test takes them)"]);
    let source = opened(&alone, |_| {}).unwrap();
    assert_eq!(shown(&*source, Split::Val), ["2.jpg:a", "3.jpg:a"]);
    assert_eq!(source.notes(), ["images of the test split taken for validation: 2"]);
    let source = opened(&both, |set| set.splits = "val=test".parse().unwrap()).unwrap();
    assert_eq!(shown(&*source, Split::Val), ["3.jpg:a"]);
    assert_eq!(source.notes(), ["1 file ignored: 1 image of another split"]);
    let refused = |set: fn(&mut DataSet), rows| opened(&with(rows), set).unwrap_err().to_string();
    let error = refused(|_| {}, "2.jpg,a,fold\u{1b}3\n");
    assert!(error.contains("has the split `fold\\x1b3`") && error.contains("--splits"), "{error}");
    let error = refused(|set| set.splits = "val=fold9".parse().unwrap(), "2.jpg,a,fold3\n");
    assert!(error.contains("has no image of the split `fold9`"), "{error}");
}

#[test]
fn images_with_several_labels_have_sets_of_them() {
    let table = "image_name,tags\n1,haze primary\n2,primary haze\n3,\n4,water\n";
    let dir = folder(&[("tags.csv", table), ("1.jpg", ""), ("2.jpg", ""), ("3.jpg", ""), ("4.jpg", "")]);
    let source = opened(&dir, |set| set.labels = Some(set.data.join("tags.csv"))).unwrap();
    assert_eq!(
        shown(&*source, Split::Train),
        ["1.jpg:haze + primary", "2.jpg:haze + primary", "3.jpg:no label", "4.jpg:water"]
    );
    assert_eq!(source.label_sets().unwrap(), [&[0, 1][..], &[], &[2]].map(LabelSet::from));
    let labels: Vec<_> = (0..4).map(|sample| source.label(Split::Train, sample)).collect();
    assert_eq!(labels, [0, 0, 1, 2]);
}

#[test]
fn what_does_not_match_is_said() {
    let table = "file,label\n1.jpg,a\ngone.jpg,a\n";
    let dir = folder(&[("metadata.csv", table), ("1.jpg", ""), ("2.jpg", ""), ("x.txt", "text")]);
    let source = opened(&dir, |_| {}).unwrap();
    assert_eq!(shown(&*source, Split::Train), ["1.jpg:a"]);
    let notes = source.notes().join("\n");
    assert_eq!(
        notes,
        "3 files ignored: 1 not an image, 1 image that no table names, 1 file of a table that is not there"
    );
    let refused = |files: &[(&str, &str)]| opened(&folder(files), |_| {}).unwrap_err().to_string();
    let error = refused(&[("metadata.csv", "file,label\n2.jpg,a\n"), ("1.jpg", "")]);
    assert!(error.contains("names no image") && error.contains("2.jpg is not there"), "{error}");
    let error = refused(&[("metadata.csv", "file,label\n1.jpg,a\n1.jpg,b\n"), ("1.jpg", "")]);
    assert!(error.contains("names 1.jpg twice"), "{error}");
    let error =
        refused(&[("metadata.csv", "file,label,split\n1.jpg,a,train\n2.jpg,b,val\n"), ("1.jpg", ""), ("2.jpg", "")]);
    assert!(error.contains("`b`") && error.contains("2.jpg"), "{error}");
    let error = refused(&[("metadata.csv", "file,width\n1.jpg,a\n,"), ("1.jpg", "")]);
    assert!(error.contains("metadata.csv names no file in line 3"), "{error}");
}

#[test]
fn imagenet_is_read_as_it_is_packed() {
    let solution = "ImageId,PredictionString\nILSVRC2012_val_00000001,n02 1 2 3 4 n02 5 6 7 8\n\
                    ILSVRC2012_val_00000002,n01 85 1 499 272\n";
    let names = "n01 tench, Tinca tinca\nn02 goldfish, Carassius auratus\n";
    let dir = folder(&[
        ("LOC_val_solution.csv", solution),
        ("LOC_synset_mapping.txt", names),
        ("ILSVRC/Data/CLS-LOC/train/n01/n01_7.JPEG", "train/n01/n01_7.JPEG"),
        ("ILSVRC/Data/CLS-LOC/train/n02/n02_3.JPEG", "train/n02/n02_3.JPEG"),
        ("ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG", "val/ILSVRC2012_val_00000001.JPEG"),
        ("ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000002.JPEG", "val/ILSVRC2012_val_00000002.JPEG"),
        ("ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000003.JPEG", "val/ILSVRC2012_val_00000003.JPEG"),
        ("ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG", ""),
    ]);
    for below in ["", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"] {
        let source = opened(&dir, |set| set.data.push(below)).unwrap();
        assert_eq!(
            shown(&*source, Split::Train),
            ["train/n01/n01_7.JPEG:tench", "train/n02/n02_3.JPEG:goldfish"],
            "{below}"
        );
        assert_eq!(
            shown(&*source, Split::Val),
            ["val/ILSVRC2012_val_00000001.JPEG:goldfish", "val/ILSVRC2012_val_00000002.JPEG:tench"]
        );
        assert_eq!(source.notes(), ["1 file ignored: 1 image that no table names"]);
    }
    std::fs::remove_file(dir.path().join("LOC_val_solution.csv")).unwrap();
    let error = opened(&dir, |_| {}).unwrap_err().to_string();
    assert!(error.contains("cannot read") && error.contains("LOC_val_solution.csv"), "{error}");
}

#[test]
fn a_changed_table_changes_what_a_feed_is_and_not_what_its_pixels_are() {
    let dir = folder(&[("metadata.csv", "file,label\n1.jpg,a\n2.jpg,b\n"), ("1.jpg", ""), ("2.jpg", "")]);
    let identity = || {
        let source = opened(&dir, |_| {}).unwrap();
        let [mut samples, mut labels] = [Xxh3::new(), Xxh3::new()];
        source.hash_samples(Split::Train, &mut samples);
        source.hash_labels(Split::Train, &mut labels);
        (samples.digest(), labels.digest())
    };
    let before = identity();
    assert_eq!(identity(), before);
    std::fs::write(dir.path().join("metadata.csv"), "file,label\n1.jpg,b\n2.jpg,a\n").unwrap();
    let after = identity();
    assert!(after.0 == before.0 && after.1 != before.1);
    // The same numbers, of other classes.
    std::fs::write(dir.path().join("metadata.csv"), "file,label\n1.jpg,c\n2.jpg,a\n").unwrap();
    assert!(identity().0 == before.0 && identity().1 != after.1);
}

/// Nine folders, each with links to the others: endlessly many, if each way to one were walked.
#[test]
fn links_that_lead_to_links_end_the_walk() {
    let dir = folder(&[("metadata.csv", "file,label\n0/1.jpg,a\n"), ("0/1.jpg", "")]);
    (0..9).for_each(|at| std::fs::create_dir_all(dir.path().join(at.to_string())).unwrap());
    for (at, to) in (0..9).flat_map(|at| (0..9).map(move |to| (at, to))).filter(|(at, to)| at != to) {
        std::os::unix::fs::symlink(format!("../{to}"), dir.path().join(format!("{at}/to{to}"))).unwrap();
    }
    let error = opened(&dir, |_| {}).unwrap_err();
    assert!(matches!(error, DatasetError::TooManyLinks { .. }), "{error}");
}

//! Tables that pyarrow and `datasets` wrote (`scripts/make-tables.py`), against their rows.

use super::super::located::IndexedFile;
use super::super::{DataSet, Source, Split, Splits};
use super::cells::Cell;
use super::columns::Named;
use super::index::{columns, index};
use super::pages::Pages;
use super::{Tables, packed, unpacked};
use crate::escape::escaped;
use crate::fixtures::golden;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// For each split of `datasets`, images and the names of their classes.
type Oracle = BTreeMap<String, Vec<(Vec<u8>, String)>>;

fn json<T: serde::de::DeserializeOwned>(path: &str) -> T {
    serde_json::from_slice(&std::fs::read(golden().join("tables").join(path)).unwrap()).unwrap()
}

fn oracle() -> Oracle {
    let rows: BTreeMap<String, Vec<(String, String)>> = json("rows.json");
    let decoded =
        |rows: Vec<(String, String)>| rows.into_iter().map(|(image, class)| (from_hex(&image), class)).collect();
    rows.into_iter().map(|(split, rows)| (split, decoded(rows))).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect()
}

fn files(folder: &str) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(golden().join("tables").join(folder)).unwrap();
    let mut files: Vec<PathBuf> =
        listed.map(|entry| entry.unwrap().path()).filter(|path| super::layout::is_table(path)).collect();
    files.sort_unstable();
    assert!(!files.is_empty(), "{folder}");
    files
}

fn open(set: &DataSet, cache: &Path) -> Result<Tables, String> {
    Tables::open(set, cache, None).map_err(|error| error.to_string()).map(|tables| tables.expect("there are tables"))
}

fn opened(path: &Path) -> Result<Tables, String> {
    open(&DataSet::at(path), tempfile::tempdir().unwrap().path())
}

/// What is read of a split, backwards, so that pages are taken in another order than they lie.
fn rows(source: &Tables, split: Split) -> Vec<(Vec<u8>, String)> {
    let mut bytes = vec![7; 3];
    let mut row = |sample| {
        source.read(split, sample, &mut bytes).unwrap();
        (bytes.clone(), source.label_name(source.label(split, sample)))
    };
    let mut rows: Vec<_> = (0..source.len(split)).rev().map(&mut row).collect();
    rows.reverse();
    rows
}

#[test]
fn every_way_of_writing_a_table_gives_its_rows() {
    let expected = &oracle()["train"];
    for file in files("variants") {
        let source = opened(&file).unwrap();
        let found = rows(&source, Split::Train);
        assert_eq!(found.len(), expected.len(), "{}", escaped(&file));
        // Integers without names are their own.
        let names = |class: &str| source.classes().iter().position(|known| known.name == class).unwrap().to_string();
        let is_numbered = source.classes()[0].name == "0";
        for (row, ((image, class), (expected, name))) in found.iter().zip(expected).enumerate() {
            assert!(image == expected, "{} row {row}", escaped(&file));
            let number = ["apple", "birch", "cedar"].iter().position(|known| known == name).unwrap();
            assert!(if is_numbered { names(class) == number.to_string() } else { class == name }, "{}", escaped(&file));
        }
        assert_eq!((source.len(Split::Val), source.classes().len()), (0, 3));
        let has_coded = source.coded.iter().any(|pages| !pages.is_empty());
        assert_eq!(
            source.notes().iter().any(|note| note.contains("compressed pages")),
            has_coded,
            "{:?}",
            source.notes()
        );
        let is_unlabelled = read_all(&file).unwrap() > found.len();
        assert_eq!(
            source.notes().iter().any(|note| note == "3 rows of train ignored: 3 without a label"),
            is_unlabelled
        );
    }
}

#[test]
fn some_tables_are_read_in_place_and_others_by_page() {
    let kinds = files("variants")
        .iter()
        .map(|file| opened(file).unwrap().coded.iter().all(BTreeMap::is_empty))
        .collect::<Vec<_>>();
    assert!(
        kinds.iter().filter(|in_place| **in_place).count() >= 5
            && kinds.iter().filter(|in_place| !**in_place).count() >= 5
    );
}

/// Others leave alone what pages may take, until they have taken it.
#[test]
fn memory_for_pages_is_promised_where_there_are_any() {
    for file in files("variants") {
        let Ok(source) = opened(&file) else { continue };
        let is_coded = source.coded.iter().any(|pages| !pages.is_empty());
        let (budget, promised) = (source.pages.budget_bytes() as u64, source.pages.promised_bytes());
        assert!(budget == promised && is_coded == (budget > 0), "{budget} {promised}");
        rows(&source, Split::Train);
        assert_eq!(source.pages.promised_bytes() < budget, is_coded);
    }
}

#[test]
fn a_data_set_of_the_hub_and_a_saved_one_have_the_same_rows() {
    let (oracle, root) = (oracle(), golden().join("tables"));
    for folder in ["hub", "saved"] {
        let source = opened(&root.join(folder)).unwrap();
        for (split, of) in [(Split::Train, "train"), (Split::Val, "test")] {
            assert_eq!(rows(&source, split), oracle[of], "{folder}");
        }
        assert!(source.notes().iter().any(|note| note.contains("`test` is used for val")), "{:?}", source.notes());
        let classes: Vec<_> = source.classes().iter().map(|class| (&*class.id, &*class.name)).collect();
        assert_eq!(classes, [("0", "apple"), ("1", "birch"), ("2", "cedar")]);
        assert_eq!(source.location(), escaped(&root.join(folder)).to_string());
    }
    let source = opened(&root.join("hub")).unwrap();
    assert_eq!(source.name(Split::Train, 7), "data/train-00001-of-00002.parquet/1");
}

#[test]
fn splits_are_named_by_their_names_or_by_places() {
    let hub = golden().join("tables/hub");
    let counts = |splits: &str| {
        let splits: Splits = splits.parse().unwrap();
        let set = DataSet { splits, ..DataSet::at(&hub) };
        let cache = tempfile::tempdir().unwrap();
        open(&set, cache.path()).map(|source| [source.len(Split::Train), source.len(Split::Val)])
    };
    assert_eq!(counts("train=test,val=train"), Ok([6, 12]));
    assert_eq!(counts("train=data/train-00001-of-00002.parquet"), Ok([6, 6]));
    assert_eq!(counts(&format!("val={}", escaped(&hub.join("data")))), Ok([12, 18]));
    let error = counts("val=dev").unwrap_err();
    assert!(error.contains("no split or tables `dev`") && error.contains("test, train"), "{error}");
}

#[test]
fn patterns_name_tables_and_a_single_file_is_for_training() {
    let hub = golden().join("tables/hub");
    let counts =
        |pattern: &str| opened(&hub.join(pattern)).map(|source| [source.len(Split::Train), source.len(Split::Val)]);
    assert_eq!(counts("data/*.parquet"), Ok([12, 6]));
    assert_eq!(counts("data/train-{00000..00001}-of-00002.parquet"), Ok([12, 0]));
    assert_eq!(counts("{data,other}/[st]rain-0000[0-9]-of-*.parquet"), Ok([12, 0]));
    let [train, test] =
        ["train-00001-of-00002", "test-*"].map(|name| format!("{}/{name}.parquet", hub.join("data").display()));
    assert_eq!(counts(&format!("{train}::{test}")), Ok([6, 6]));
    let error = counts("data/test-*.parquet").unwrap_err();
    assert!(error.contains("no training split; splits that are there: test"), "{error}");
    assert_eq!(counts("data/test-00000-of-00001.parquet"), Ok([6, 0]));
    assert!(counts("data/*.arrow").unwrap_err().contains("matches no file"));
    assert!(counts("data/{gone,test-00000-of-00001}.parquet").unwrap_err().contains("gone.parquet, which is no file"));
}

#[test]
fn what_cannot_be_used_is_refused_by_name() {
    let reasons: BTreeMap<String, String> = json("refused/refused.json");
    let files = files("refused");
    assert_eq!(files.len(), reasons.len());
    for file in files {
        let error = opened(&file).unwrap_err();
        let words = &reasons[file.file_stem().unwrap().to_str().unwrap()];
        assert!(error.contains(words) && error.starts_with(&*escaped(&file).to_string()), "{words}: {error}");
    }
}

/// Indexes a table and reads all of its images, whatever comes of it.
fn read_all(path: &Path) -> Result<usize, String> {
    let meta = path.metadata().unwrap();
    let file = File::open(path).unwrap();
    let indexed = IndexedFile::new(path.to_owned(), String::new(), &meta);
    let chosen = columns(&indexed, Named::default()).map_err(|flaw| flaw.to_string())?;
    let rows = index(&indexed, &chosen).map_err(|flaw| flaw.to_string())?;
    let pages: Vec<_> = rows
        .coded
        .iter()
        .map(|page| {
            page.decode(&mut |at, bytes: &mut [u8]| -> Result<(), super::ReadError> {
                Ok(file.read_exact_at(bytes, at)?)
            })
        })
        .collect();
    let mut read = 0;
    for cell in rows.images {
        read += usize::from(match cell {
            // An index says nothing but what lies in the file.
            Cell::InPlace(place) => {
                assert!(place.offset + u64::from(place.bytes) <= meta.len());
                true
            }
            Cell::Coded(page, nth) => pages[page as usize].as_ref().is_ok_and(|page| page.get(nth).is_some()),
            Cell::Null => false,
        });
    }
    Ok(read)
}

#[test]
fn damaged_tables_are_errors_and_cut_ones_are_refused() {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let tables = [files("variants"), files("hub/data"), files("saved/train")].concat();
    for table in tables {
        let whole = std::fs::read(&table).unwrap();
        let path = dir.path().join(table.file_name().unwrap());
        std::fs::write(&path, &whole).unwrap();
        assert!(read_all(&path).is_ok_and(|read| read > 0));
        let file = File::options().write(true).open(&path).unwrap();
        for (at, &byte) in whole.iter().enumerate() {
            let changed = if at % 2 == 0 { !byte } else { byte ^ 1 << (at / 2 % 8) };
            file.write_all_at(&[changed], at as u64).unwrap();
            let _ = read_all(&path);
            file.write_all_at(&[byte], at as u64).unwrap();
        }
        for len in (0..whole.len() as u64).rev().step_by(5) {
            file.set_len(len).unwrap();
            assert!(read_all(&path).is_err(), "{} cut to {len} bytes", escaped(&table));
        }
    }
}

#[test]
fn coded_pages_of_an_index_are_as_they_were_or_none() {
    let mut count = 0;
    for file in files("variants") {
        let mut source = opened(&file).unwrap();
        let (numbers, bytes) = (packed(&source.coded), file.metadata().unwrap().len());
        assert_eq!(unpacked(&numbers, [bytes].into_iter()).as_ref(), Some(&source.coded));
        assert_eq!(unpacked(&numbers, [bytes; 2].into_iter()), None);
        assert_eq!(unpacked(&numbers[..numbers.len() - 1], [bytes].into_iter()), None);
        let mut read = Vec::new();
        for at in 0..numbers.len() {
            for other in [0, 1, 3, 255, 256, bytes, u64::from(u32::MAX), u64::MAX] {
                let mut changed = numbers.clone();
                changed[at] = other;
                let Some(coded) = unpacked(&changed, [bytes].into_iter()) else { continue };
                // Whatever a stranger wrote into an index.
                (source.coded, source.pages) = (coded, Pages::new(true));
                (0..source.len(Split::Train)).for_each(|sample| _ = source.read(Split::Train, sample, &mut read));
                count += 1;
            }
        }
    }
    assert!(count > 100, "{count}");
}

#[test]
fn a_table_that_changes_while_it_is_served_gives_no_bytes() {
    let dir = tempfile::tempdir().unwrap();
    for table in files("variants") {
        let path = dir.path().join(table.file_name().unwrap());
        std::fs::copy(&table, &path).unwrap();
        let (source, mut bytes) = (opened(&path).unwrap(), Vec::new());
        source.read(Split::Train, 0, &mut bytes).unwrap();
        let whole = std::fs::read(&path).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(whole.len() as u64 - 1).unwrap();
        // Though the page be kept.
        let error = source.read(Split::Train, 0, &mut bytes).unwrap_err();
        assert!(matches!(error, super::ReadError::FileChanged { .. }), "{error}");
        assert_eq!(source.stamp(Split::Train, 0), None);
    }
}

#[test]
fn stamps_tell_changes_once_a_table_has_settled() {
    for table in [&files("variants")[0], &files("saved/train")[0]] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(table.file_name().unwrap());
        std::fs::copy(table, &path).unwrap();
        let (source, mut bytes) = (opened(&path).unwrap(), Vec::new());
        let deadline = Instant::now() + Duration::from_secs(20);
        let stamp = loop {
            match source.read(Split::Train, 2, &mut bytes).unwrap() {
                Some(stamp) => break stamp,
                None => assert!(Instant::now() < deadline, "never settled"),
            }
            std::thread::yield_now();
        };
        assert_eq!(source.stamp(Split::Train, 2), Some(stamp));
    }
}

#[test]
fn an_index_is_remembered_until_a_table_changes() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = |nth: usize| dir.path().join(format!("train-{nth:05}-of-00100.parquet"));
    let mut tables = files("variants").into_iter().filter(|file| file.extension().unwrap() == "parquet");
    let in_place = tables.find(|file| opened(file).unwrap().coded.iter().all(BTreeMap::is_empty)).unwrap();
    (0..100).for_each(|nth| _ = std::fs::copy(&in_place, file(nth)).unwrap());
    let set = DataSet::at(dir.path());
    let first = open(&set, cache.path()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while std::fs::read_dir(cache.path()).unwrap().next().is_none() {
        assert!(Instant::now() < deadline, "never remembered");
        open(&set, cache.path()).unwrap();
    }
    let again = open(&set, cache.path()).unwrap();
    assert_eq!((again.len(Split::Train), rows(&again, Split::Train)), (1_200, rows(&first, Split::Train)));
    assert_eq!(again.classes(), first.classes());
    // What is not looked at again is not seen to be damaged; what has changed is.
    let saved = std::fs::read_dir(cache.path()).unwrap().next().unwrap().unwrap().path();
    let bytes = std::fs::read(&saved).unwrap();
    let changed = std::fs::read(file(50)).unwrap();
    std::fs::write(file(50), &changed[1..]).unwrap();
    assert!(open(&set, cache.path()).unwrap_err().contains("train-00050-of-00100.parquet"));
    std::fs::write(file(50), changed).unwrap();
    let other = DataSet { label_key: Some("gone".to_owned()), ..set };
    assert!(open(&other, cache.path()).unwrap_err().contains("`gone`"), "another column, and the same index");
    assert_eq!(std::fs::read(&saved).unwrap(), bytes);
}

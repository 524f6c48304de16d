//! The layouts and archives of the wild set, each with its outcome (its README).

use super::*;
use crate::escape::escaped;
use crate::fixtures::wild;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::{Duration, Instant};

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The bytes of a percent-encoded text.
fn decoded(text: &Value) -> OsString {
    let (text, mut bytes) = (text.as_str().unwrap().as_bytes(), Vec::new());
    let mut at = 0;
    while at < text.len() {
        if text[at] == b'%' {
            bytes.push(u8::from_str_radix(std::str::from_utf8(&text[at + 1..at + 3]).unwrap(), 16).unwrap());
            at += 3;
        } else {
            bytes.push(text[at]);
            at += 1;
        }
    }
    OsString::from_vec(bytes)
}

/// Makes a layout below `out`; returns its data set.
fn make(wild: &Path, layout: &Value, out: &Path) -> PathBuf {
    let steps = layout["make"].as_array().unwrap();
    for step in steps {
        let path = out.join(decoded(if step["to"].is_null() { &step["folder"] } else { &step["to"] }));
        let folder = if step["folder"].is_null() { path.parent().unwrap() } else { &path };
        std::fs::create_dir_all(folder).unwrap();
        if let Some(from) = step["copy"].as_str() {
            std::fs::write(&path, std::fs::read(wild.join(from)).unwrap()).unwrap();
        } else if let Some(to) = step["link"].as_str() {
            symlink(to.replace("{OUT}", out.to_str().unwrap()), &path).unwrap();
        } else if let Some(text) = step["text"].as_str() {
            std::fs::write(&path, text).unwrap();
        }
    }
    for step in steps {
        if let Some(mode) = step["mode"].as_str() {
            let mode = u32::from_str_radix(mode, 8).unwrap();
            std::fs::set_permissions(out.join(decoded(&step["folder"])), PermissionsExt::from_mode(mode)).unwrap();
        }
    }
    out.join("set")
}

/// Runs as a user for whom no folder's mode is bent.
fn unprivileged<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if rustix::process::geteuid().is_root() {
                let nobody = rustix::fs::Uid::from_raw(65_534);
                // Of this thread alone: it ends with it.
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            }
            run()
        });
        thread.join().unwrap()
    })
}

/// Whether a text holds one of the alternatives of each entry as a whole word, once the data set's own path is taken out.
fn has_words(text: &str, words: &Value, data: &Path) -> bool {
    let text = text.replace(data.to_str().unwrap(), "");
    let is_word = |char: Option<char>| char.is_some_and(|char| char.is_alphanumeric() || char == '_');
    let has = |word: &str| {
        text.match_indices(word)
            .any(|(at, _)| !is_word(text[..at].chars().next_back()) && !is_word(text[at + word.len()..].chars().next()))
    };
    words.as_array().unwrap().iter().all(|words| words.as_str().unwrap().split('|').any(has))
}

/// Name and class of each sample of a split, as they must be.
fn listed(split: &Value) -> Vec<(String, String)> {
    let pair = |pair: &Value| (escaped(&decoded(&pair[0])).to_string(), decoded(&pair[1]).into_string().unwrap());
    split.as_array().unwrap().iter().map(pair).collect()
}

fn found(source: &dyn Source, split: Split) -> Vec<(String, String)> {
    let pair = |sample| (source.name(split, sample), source.classes()[source.label(split, sample) as usize].id.clone());
    (0..source.len(split)).map(pair).collect()
}

#[test]
fn every_layout_of_the_wild_set_has_its_outcome() {
    let Some(wild) = wild() else { return };
    let layouts = json(&wild.join("layouts.json"));
    for layout in layouts["layouts"].as_array().unwrap() {
        let (name, out) = (layout["name"].as_str().unwrap(), tempfile::tempdir().unwrap());
        std::fs::set_permissions(out.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let data = make(&wild, layout, out.path());
        let set = DataSet { cache_dir: Some(out.path().join("cache")), ..DataSet::at(&data) };
        let since = Instant::now();
        let opened = unprivileged(|| open(&set, &mut |_| {}));
        let limit = Duration::from_secs(layout["limit_s"].as_u64().unwrap_or(20));
        assert!(since.elapsed() < limit, "{name}: {:?}", since.elapsed());
        let may = |outcome: &str| layout["outcome"].as_str().unwrap().split("-or-").any(|one| one == outcome);
        let source = match opened {
            Ok(source) if may("accepted") => source,
            Err(error) if may("refused") && has_words(&error.to_string(), &layout["words"], &data) => continue,
            opened => {
                panic!("{name}: {opened:?}, {}", opened.as_ref().err().map_or(String::new(), ToString::to_string))
            }
        };
        let classes: Vec<_> = source.classes().iter().map(|class| class.id.clone()).collect();
        assert_eq!(serde_json::to_value(classes).unwrap(), layout["classes"], "{name}");
        assert_eq!(found(&*source, Split::Train), listed(&layout["train"]), "{name}");
        match &layout["validation"] {
            Value::Null => assert_eq!(source.len(Split::Val), 0, "{name}"),
            validation => assert_eq!(found(&*source, Split::Val), listed(validation), "{name}"),
        }
        let notes = source.notes().join("\n");
        if let Some(folder) = layout["folder"].as_str() {
            assert!(notes.contains(&format!("{folder}/ is the validation split")), "{name}: {notes}");
        }
        let said = match layout["kind"].as_str().unwrap() {
            "file links" => "1 file ignored: 1 broken link",
            "link cycle" => "3 folders ignored: 3 links to folders that contain them",
            "unreadable folder" => "1 folder ignored: 1 cannot be read",
            "empty class" => "class folders without images: train/cow, val/cow",
            _ => "",
        };
        assert!(notes.contains(said), "{name}: {notes}");
        let mut bytes = Vec::new();
        for &split in Split::ALL {
            for sample in 0..source.len(split) {
                source.read(split, sample, &mut bytes).unwrap();
            }
        }
    }
}

#[test]
fn an_unreadable_folder_in_a_split_is_an_error() {
    let out = tempfile::tempdir().unwrap();
    std::fs::set_permissions(out.path(), PermissionsExt::from_mode(0o755)).unwrap();
    for folder in ["train/a", "train/b"] {
        std::fs::create_dir_all(out.path().join(folder)).unwrap();
        std::fs::write(out.path().join(folder).join("1.jpg"), "").unwrap();
    }
    std::fs::set_permissions(out.path().join("train/b"), PermissionsExt::from_mode(0o0)).unwrap();
    let set = DataSet { cache_dir: Some(out.path().join("cache")), ..DataSet::at(out.path()) };
    let error = unprivileged(|| open(&set, &mut |_| {})).unwrap_err().to_string();
    assert!(error.contains("train/b") && error.contains("denied"), "{error}");
}

#[test]
fn every_archive_of_the_wild_set_has_its_outcome() {
    let Some(wild) = wild() else { return };
    let folder = wild.join("archives");
    for archive in json(&folder.join("archives.json"))["archives"].as_array().unwrap() {
        let (path, out) = (folder.join(archive["file"].as_str().unwrap()), tempfile::tempdir().unwrap());
        let set = DataSet { cache_dir: Some(out.path().join("cache")), ..DataSet::at(&path) };
        let expected = match archive["expected"].as_array() {
            None => {
                let error = open(&set, &mut |_| {}).unwrap_err().to_string();
                assert!(error.contains(path.to_str().unwrap()), "not named: {error}");
                assert!(has_words(&error, &archive["words"], &path), "{error}");
                continue;
            }
            Some(expected) => expected,
        };
        // Unpacked, and found unpacked.
        for _ in 0..2 {
            let source = open(&set, &mut |_| {}).unwrap_or_else(|error| panic!("{error}"));
            let mut ours = Vec::new();
            for &split in Split::ALL {
                for sample in 0..source.len(split) {
                    let (name, mut bytes) = (source.name(split, sample), Vec::new());
                    source.read(split, sample, &mut bytes).unwrap();
                    let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
                    let from = name.find(&format!("{split}/")).unwrap();
                    ours.push((name[from..].to_owned(), hash));
                }
            }
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let mut expected: Vec<_> = expected.iter().map(|pair| (text(&pair[0]), text(&pair[1]))).collect();
            expected.sort_unstable();
            assert_eq!(ours, expected, "{}", escaped(&path));
            if !archive["absent"].is_null() {
                let said = format!(
                    "in the archive: {0} files ignored: {0} links out",
                    archive["absent"].as_array().unwrap().len()
                );
                assert!(source.notes().iter().any(|note| note.contains(&said)), "{:?}", source.notes());
            }
        }
        let left: Vec<_> = std::fs::read_dir(out.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["cache"], "written beside the cache");
    }
}

#[test]
fn an_image_folder_stays_one_whatever_lies_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let write = |path: &str, content: &str| {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    };
    write("train/cat/1.jpg", "cat");
    write("train/dog/2.jpg", "dog");
    write("val/cat/3.jpg", "val");
    for (path, content) in [
        ("set.tar", "no tar"),
        ("train/set.tar", "no tar"),
        ("features/embeddings.parquet", "no table"),
        ("metadata.csv", "file_name,caption\ntrain/cat/1.jpg,a cat\n"),
        ("metadata.csv", "file_name,width,height\ntrain/cat/1.jpg,10,10\n"),
        ("metadata.csv", "no table"),
        ("test/metadata.csv", "file_name,label\n4.jpg,cat\n"),
    ] {
        write(path, content);
        let source = open(&DataSet::at(dir.path()), &mut |_| {}).unwrap_or_else(|error| panic!("{path}: {error}"));
        let labels: Vec<String> =
            (0..source.len(Split::Train)).map(|sample| source.label_name(source.label(Split::Train, sample))).collect();
        assert_eq!(
            (labels, source.len(Split::Val)),
            (vec!["cat".to_owned(), "dog".to_owned()], 1),
            "{path}: {content}"
        );
        std::fs::remove_file(dir.path().join(path)).unwrap();
    }
    write("metadata.csv", "file_name,label\ntrain/cat/1.jpg,other\n");
    let source = open(&DataSet::at(dir.path()), &mut |_| {}).unwrap();
    assert_eq!(source.label_name(source.label(Split::Train, 0)), "other");
}

/// Nine folders, each with links to the others: endlessly many, if each way to one were walked.
#[test]
fn links_that_lead_to_links_end_the_walk() {
    let dir = tempfile::tempdir().unwrap();
    let class = |at: usize| dir.path().join(format!("train/{at}"));
    (0..9).for_each(|at| std::fs::create_dir_all(class(at)).unwrap());
    std::fs::write(class(0).join("1.jpg"), "").unwrap();
    for (at, to) in (0..9).flat_map(|at| (0..9).map(move |to| (at, to))).filter(|(at, to)| at != to) {
        std::os::unix::fs::symlink(format!("../{to}"), class(at).join(format!("to{to}"))).unwrap();
    }
    let set = DataSet { cache_dir: Some(dir.path().join("cache")), ..DataSet::at(dir.path()) };
    let error = open(&set, &mut |_| {}).unwrap_err();
    assert!(matches!(error, DatasetError::TooManyLinks { .. }), "{error}");
}

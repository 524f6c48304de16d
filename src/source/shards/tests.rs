use super::super::{ReadError, Source};
use super::*;
use ::tar::{Builder, EntryType, Header};
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A folder with shards and another for the cache.
struct Set {
    dir: tempfile::TempDir,
}

/// Writes a tar of these files.
fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

impl Set {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("set")).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("set").join(name)
    }

    fn with(self, name: &str, files: &[(&str, &[u8])]) -> Self {
        self.with_bytes(name, &tar(files))
    }

    fn with_bytes(self, name: &str, bytes: &[u8]) -> Self {
        std::fs::write(self.path(name), bytes).unwrap();
        self
    }

    fn data_set(&self) -> DataSet {
        DataSet::at(&self.path(""))
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    fn open(&self) -> Result<Located, DatasetError> {
        open(&self.data_set(), &self.cache(), None).map(|source| source.expect("shards"))
    }

    fn refused(&self) -> String {
        self.open().unwrap_err().to_string()
    }
}

/// Name, label and content of every sample of a split.
fn samples(source: &Located, split: Split) -> Vec<(String, u32, String)> {
    let read = |sample| {
        let mut bytes = Vec::new();
        source.read(split, sample, &mut bytes).unwrap();
        (source.name(split, sample), source.label(split, sample), String::from_utf8(bytes).unwrap())
    };
    (0..source.len(split)).map(read).collect()
}

fn listed(samples: &[(String, u32, String)]) -> Vec<(&str, u32, &str)> {
    samples.iter().map(|(name, label, content)| (&**name, *label, &**content)).collect()
}

#[test]
fn samples_come_in_the_order_of_the_shards() {
    let set = Set::new()
        .with(
            "train-0.tar",
            &[("a.jpg", b"A"), ("a.cls", b"3\n"), ("b.txt", b"no"), ("b.cls", b" 0"), ("b.JPEG", b"BB")],
        )
        .with("train-1.tar", &[("__meta__/x.jpg", b"-"), ("d/a.cls", b"1"), ("d/a.png", b"D"), ("d/a.b.jpg", b"-")])
        .with("val-0.tar", &[("c.cls", b"2"), ("c.webp", b"C")]);
    let source = set.open().unwrap();
    let (train, val) = (samples(&source, Split::Train), samples(&source, Split::Val));
    assert_eq!(
        listed(&train),
        [("train-0.tar/a.jpg", 3, "A"), ("train-0.tar/b.JPEG", 0, "BB"), ("train-1.tar/d/a.png", 1, "D")]
    );
    assert_eq!(listed(&val), [("val-0.tar/c.webp", 2, "C")]);
    let ids: Vec<_> = source.classes().iter().map(|class| &*class.id).collect();
    assert_eq!(ids, ["0", "1", "2", "3"]);
    assert!(source.notes().is_empty(), "{:?}", source.notes());
}

#[test]
fn labels_are_in_json_too() {
    let names = [
        ("a.jpg", &b""[..]),
        ("a.json", br#"{"label": "tench", "n": 4}"#),
        ("b.jpg", b""),
        ("b.json", br#"{"label": "cat", "n": 2.0}"#),
    ];
    let set = Set::new().with("train.tar", &names).with("val.tar", &names[..2]);
    let source = set.open().unwrap();
    assert_eq!(source.classes().iter().map(|class| &*class.id).collect::<Vec<_>>(), ["cat", "tench"]);
    let labels = |source: &Located| (0..2).map(|sample| source.label(Split::Train, sample)).collect::<Vec<_>>();
    assert_eq!((labels(&source), source.label(Split::Val, 0)), (vec![1, 0], 1));
    let by_key = DataSet { label_key: Some("n".into()), ..set.data_set() };
    let source = open(&by_key, &set.cache(), None).unwrap().unwrap();
    assert_eq!((labels(&source), source.classes().len()), (vec![4, 2], 5));
    let unknown = Set::new().with("train.tar", &names[..2]).with("val.tar", &names);
    assert!(unknown.refused().contains("class `cat`"), "{}", unknown.refused());
}

#[test]
fn a_list_of_labels_is_a_set_and_then_a_single_label_is_a_set_of_one() {
    let sets = |source: &Located, split| -> Vec<Vec<String>> {
        let sets = source.label_sets().unwrap();
        let ids = |label: u32| sets[label as usize].iter().map(|&class| source.classes()[class as usize].id.clone());
        (0..source.len(split)).map(|sample| ids(source.label(split, sample)).collect()).collect()
    };
    let names = Set::new()
        .with("train-0.tar", &[("a.jpg", b""), ("a.json", br#"{"label": "tench"}"#)])
        .with(
            "train-1.tar",
            &[
                ("b.jpg", b""),
                ("b.json", br#"{"label": ["tench", "cat", "tench"]}"#),
                ("c.jpg", b""),
                ("c.json", br#"{"label": []}"#),
                ("d.jpg", b""),
                ("d.json", br#"{"label": ["tench"]}"#),
            ],
        )
        .with("val-0.tar", &[("e.jpg", b""), ("e.json", br#"{"label": ["cat"]}"#)]);
    let source = names.open().unwrap();
    assert_eq!(sets(&source, Split::Train), [&["tench"][..], &["cat", "tench"], &[], &["tench"]]);
    assert_eq!(sets(&source, Split::Val), [["cat"]]);
    // Equal sets have one number, in the order of their first samples.
    let labels: Vec<_> = (0..4).map(|sample| source.label(Split::Train, sample)).collect();
    assert_eq!((labels, source.label(Split::Val, 0), source.label_sets().unwrap().len()), (vec![0, 1, 2, 0], 3, 4));
    let unknown = names.with("val-1.tar", &[("f.jpg", b""), ("f.json", br#"{"label": ["cat", "cow"]}"#)]);
    assert!(unknown.refused().contains("class `cow`"), "{}", unknown.refused());

    let integers = Set::new()
        .with("train.tar", &[("a.jpg", b""), ("a.json", br#"{"label": [3, 1.0]}"#), ("b.jpg", b""), ("b.cls", b"0")])
        .with("val.tar", &[("c.jpg", b""), ("c.json", br#"{"label": [4, 0]}"#)]);
    let source = integers.open().unwrap();
    assert_eq!(sets(&source, Split::Train), [&["1", "3"][..], &["0"]]);
    assert_eq!((sets(&source, Split::Val), source.classes().len()), (vec![vec!["0".into(), "4".into()]], 5));
    assert!(source.notes()[0].contains("larger than any of training"), "{:?}", source.notes());
}

#[test]
fn samples_that_lack_something_are_counted() {
    let set = Set::new().with(
        "train.tar",
        &[
            ("a.jpg", b""),
            ("a.cls", b"0"),
            ("b.jpg", b""),
            ("c.cls", b"1"),
            ("d.jpg", b""),
            ("d.cls", b"-1"),
            ("README", b""),
            ("._a.jpg", b""),
            ("e.0.jpg", b""),
            ("e.1.jpg", b""),
            ("e.cls", b"0"),
            ("f.txt", b" 7 "),
            ("f.x.png", b""),
            ("g.jpg", b""),
            ("g.cls", b"1"),
            ("g.__bad__", b"cut"),
        ],
    );
    let source = set.open().unwrap();
    assert_eq!((source.len(Split::Train), source.label(Split::Train, 1)), (2, 7));
    let notes = source.notes().join("; ");
    for note in [
        "5 samples ignored",
        "1 marked `__bad__`",
        "1 without an image",
        "1 with several images",
        "1 without a label",
        "1 with a label below 0",
        "2 files in shards ignored: 1 without an extension, 1 hidden",
        "no validation shards",
    ] {
        assert!(notes.contains(note), "{note}: {notes}");
    }
}

#[test]
fn what_has_no_labels_is_refused_with_its_fields() {
    for (files, expected) in [
        (
            &[("a.jpg", &b""[..]), ("a.txt", b"a photo")][..],
            &["no training sample has a label", "jpg, txt", "--label-key"][..],
        ),
        (&[("a.jpg", b""), ("a.json", br#"{"class": 3}"#)], &["json has the keys class", "--label-key"]),
        (&[("a.jpg", b""), ("a.label.pyd", b"cos\nsystem\n")], &["`a.label.pyd`", "pickle"]),
        (&[("a.wav", b""), ("a.cls", b"1")], &["cls, wav", "images are jpg"]),
        (&[("a.jpg", b""), ("a.cls", b"cat")], &["`a.cls`", "`cat` is no integer"]),
        (&[("a.jpg", b""), ("a.cls", b"99999999")], &["`a.cls`", "largest label"]),
        (&[("a.jpg", b""), ("a.json", br#"{"label": [1, -2]}"#)], &["`a.json`", "-2, in a list of labels, is below 0"]),
        (&[("a.jpg", b""), ("a.json", br#"{"label": [[1]]}"#)], &["`a.json`", "a list within the list"]),
        (&[("a.jpg", b""), ("a.json", br#"{"label": [1, null]}"#)], &["`a.json`", "no integer, no name"]),
        (&[("a.jpg", b""), ("a.json", br#"{"label": [1, "x"]}"#)], &["some labels are integers"]),
        (&[("a.jpg", b""), ("a.json", br#"{"label": []}"#)], &["every list of labels", "is empty"]),
        (&[("a.jpg", b""), ("a.json", br#"{"label": "#)], &["`a.json`", "EOF"]),
        (&[("a.jpg", b""), ("a.cls", &[b'1'; 2_000])], &["2000 bytes"]),
        (
            &[("a.jpg", b""), ("a.cls", b"1"), ("b.jpg", b""), ("b.json", br#"{"label": "x"}"#)],
            &["some labels are integers"],
        ),
        (&[("a.jpg", b""), ("a.JPG", b"")], &["two files `a.JPG`"]),
        (&[], &["hold no samples"]),
    ] {
        let error = Set::new().with("train.tar", files).refused();
        expected.iter().for_each(|part| assert!(error.contains(part), "{part}: {error}"));
    }
    let mixed = Set::new()
        .with("train-0.tar", &[("a.jpg", b""), ("a.cls", b"1")])
        .with("train-1.tar", &[("a.jpg", b""), ("a.json", br#"{"label": "x"}"#)]);
    assert!(mixed.refused().contains("train-0.tar are integers, those of"), "{}", mixed.refused());
}

#[test]
fn names_of_classes_lie_beside_the_shards() {
    let files: [(&str, &[u8]); 2] = [("a.jpg", b""), ("a.cls", b"1")];
    let set = Set::new()
        .with("train.tar", &files)
        .with("val.tar", &files)
        .with_bytes("classnames.txt", b"tench\ngolf ball\ncat\n");
    assert_eq!(set.open().unwrap().label_name(1), "golf ball");
    let set = set.with_bytes("classnames.txt", b"tench\n");
    let source = set.open().unwrap();
    assert_eq!([0, 1].map(|label| source.label_name(label)), ["tench", "1"]);
    assert!(source.notes()[0].contains("1 class names"), "{:?}", source.notes());
}

#[test]
fn long_names_are_read_in_every_format_and_what_is_no_file_is_passed_over() {
    let long = format!("{}/0001", "long".repeat(60));
    let mut builder = Builder::new(Vec::new());
    let mut add = |name: &str, kind: EntryType, content: &[u8], pax: Option<&str>| {
        if let Some(path) = pax {
            builder.append_pax_extensions([("path", path.as_bytes()), ("mtime", b"1.5")]).unwrap();
        }
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        if kind == EntryType::Symlink {
            header.set_link_name("0001.jpg").unwrap();
        }
        builder.append_data(&mut header, name, content).unwrap();
    };
    add("folder/", EntryType::Directory, b"", None);
    add(&format!("{long}.jpg"), EntryType::Regular, b"gnu", None);
    add("ignored", EntryType::Regular, b"5", Some(&format!("{long}.cls")));
    add("link.jpg", EntryType::Symlink, b"", None);
    add("x", EntryType::Regular, b"pax", Some("pax.jpg"));
    add("pax.cls", EntryType::Continuous, b"4", None);
    let set = Set::new().with_bytes("train.tar", &builder.into_inner().unwrap());
    let found = samples(&set.open().unwrap(), Split::Train);
    assert_eq!(listed(&found), [(&*format!("train.tar/{long}.jpg"), 5, "gnu"), ("train.tar/pax.jpg", 4, "pax")]);
}

/// The bytes with a field of the header at `at` replaced, and its checksum right.
fn patched(mut bytes: Vec<u8>, at: usize, field: usize, value: &[u8]) -> Vec<u8> {
    bytes[at + field..at + field + value.len()].copy_from_slice(value);
    bytes[at + 148..at + 156].fill(b' ');
    let sum: u32 = bytes[at..at + 512].iter().map(|byte| u32::from(*byte)).sum();
    bytes[at + 148..at + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    bytes
}

/// A shard that begins with an extension of 2 MiB.
fn long_extension(kind: &[u8]) -> Vec<u8> {
    let content = vec![b'x'; 2 << 20];
    patched(tar(&[("x", &content), ("a.jpg", b"A"), ("a.cls", b"1")]), 0, 156, kind)
}

#[test]
fn damaged_shards_are_refused_naming_shard_and_place() {
    let whole = tar(&[("a.jpg", &[b'x'; 700]), ("a.cls", b"1"), ("b.jpg", b"y"), ("b.cls", b"0")]);
    let (size, kind) = (124, 156);
    let mut sum = whole.clone();
    sum[1_536 + 148] ^= 1;
    for (bytes, expected) in [
        (whole[..1_000].to_vec(), "is cut: the entry at byte 0 "),
        (whole[..2_048].to_vec(), "is cut: the entry at byte 1536 "),
        (whole[..1_700].to_vec(), "is cut: the entry at byte 1536 "),
        (sum, "no valid header at byte 1536"),
        (patched(whole.clone(), 0, size, b"77777777777\0"), "is cut: the entry at byte 0 "),
        (patched(whole.clone(), 1_536, size, &[0xFF; 12]), "is cut: the entry at byte 1536 "),
        (
            patched(whole.clone(), 1_536, size, b"\x80\0\0\0\x7F\xFF\xFF\xFF\xFF\xFF\xFF\xFF"),
            "is cut: the entry at byte 1536 ",
        ),
        (patched(whole.clone(), 1_536, size, b"-0000000001\0"), "no valid header at byte 1536"),
        (patched(whole.clone(), 0, kind, b"S"), "sparse file at byte 0"),
        (patched(whole.clone(), 0, kind, b"x"), "no valid header at byte 0"),
        (long_extension(b"x"), "attributes of 2097152 bytes at byte 0"),
        (long_extension(b"L"), "attributes of 2097152 bytes at byte 0"),
        (
            patched(tar(&[("x", &[b'n'; 5_000]), ("a.jpg", b"A"), ("a.cls", b"1")]), 0, 156, b"L"),
            "a name of 5000 bytes",
        ),
        (long_extension(b"g"), "attributes of 2097152 bytes at byte 0"),
        (b"\x1F\x8B\x08".iter().chain(&[7; 600]).copied().collect(), "compressed (gzip)"),
        (b"\x28\xB5\x2F\xFD".iter().chain(&[7; 600]).copied().collect(), "compressed (zstd)"),
        (b"<html>".iter().chain(&[b' '; 600]).copied().collect(), "is no tar"),
    ] {
        let error = Set::new().with_bytes("train.tar", &bytes).refused();
        assert!(error.contains("set/train.tar ") && error.contains(expected), "{expected}: {error}");
    }
    // Between two entries nothing but the missing end tells.
    let source = Set::new().with_bytes("train.tar", &whole[..2_560]).open().unwrap();
    assert!(
        source.len(Split::Train) == 1 && source.notes()[0].contains("lack the blocks that end"),
        "{:?}",
        source.notes()
    );
}

#[test]
fn more_samples_than_memory_takes_are_refused() {
    let set = Set::new().with("train.tar", &[("a.jpg", b"x"), ("a.cls", b"1"), ("b.jpg", b"y"), ("b.cls", b"0")]);
    let path = set.path("train.tar");
    let file = IndexedFile::new(path.clone(), "train.tar".into(), &path.metadata().unwrap());
    let of = |free| shard::index(&file, 0, None, &Room::new(free)).map(|index| index.samples.len());
    assert_eq!(of(|| Some(1_000)).unwrap(), 2);
    assert_eq!(of(|| None).unwrap(), 2);
    assert!(matches!(of(|| Some(50)), Err(Fault::NoMemory { need: 90, free: 50 })), "{:?}", of(|| Some(50)));
    // Those of other shards count.
    let room = Room::new(|| Some(100));
    assert!(shard::index(&file, 0, None, &room).is_ok() && shard::index(&file, 0, None, &room).is_err());
}

/// An index as wds2idx writes it, of these samples' fields, offsets and sizes.
fn index_file(version: &str, samples: &[&str]) -> Vec<u8> {
    format!("{version} {}\n{}\n", samples.len(), samples.join("\n")).into_bytes()
}

#[test]
fn index_files_of_dali_are_used_where_they_fit() {
    let shard = tar(&[("x.jpg", b"A"), ("x.cls", b"1"), ("y.jpg", b"B"), ("y.cls", b"0")]);
    let set = Set::new().with_bytes("train-0.tar", &shard);
    let named = ["jpg 512 1 x.jpg cls 1536 1 x.cls", "jpg 2560 1 y.jpg cls 3584 1 y.cls"];
    let (walked, short) =
        (samples(&set.open().unwrap(), Split::Train), ["jpg 512 1 cls 1536 1", "jpg 2560 1 cls 3584 1"]);
    for (index, used) in [
        (index_file("v1.2", &named), Some(2)),
        (index_file("v1.1", &short), Some(2)),
        // Proof that it is used: a sample less.
        (index_file("v1.2", &named[..1]), Some(1)),
        (index_file("v1.1", &short[..1]), Some(1)),
        (index_file("v1.3", &named[..1]), None),
        (index_file("v1.2", &short[..1]), None),
        (b"v1.2 2\njpg 512 1 x.jpg cls 1536 1 x.cls\n".to_vec(), None),
        (index_file("v1.2", &["jpg 512 2 x.jpg cls 1536 1 x.cls"]), None),
        (index_file("v1.2", &["jpg 1024 1 x.jpg cls 1536 1 x.cls"]), None),
        (index_file("v1.2", &["jpg 512 1 x.jpg cls 1536 99999 x.cls"]), None),
        (index_file("v1.2", &["jpg 512 18446744073709551615 x.jpg cls 1536 1 x.cls"]), None),
        (index_file("v1.2", &["jpg 100 1 x.jpg cls 1536 1 x.cls"]), None),
        (b"\xFF\xFE".to_vec(), None),
    ] {
        std::fs::write(set.path("train-0.idx"), &index).unwrap();
        let source = set.open().unwrap();
        let expected = &walked[..used.unwrap_or(2)];
        let shown = String::from_utf8_lossy(&index);
        assert_eq!(samples(&source, Split::Train), expected, "{shown}");
        assert_eq!(source.notes().iter().any(|note| note.contains("do not fit")), used.is_none(), "{shown}");
    }
    // One that is older than its shard.
    std::fs::write(set.path("train-0.idx"), index_file("v1.2", &named[..1])).unwrap();
    let time = std::time::SystemTime::now() - Duration::from_secs(100);
    File::options().write(true).open(set.path("train-0.idx")).unwrap().set_modified(time).unwrap();
    assert_eq!(samples(&set.open().unwrap(), Split::Train), walked);
}

/// A shard of `count` samples with keys as ImageNet's.
fn large(count: usize) -> Vec<u8> {
    let names: Vec<_> = (0..count).map(|nth| format!("n01440764_{nth:05}_n01440764")).collect();
    let files: Vec<_> = names.iter().flat_map(|name| [format!("{name}.jpg"), format!("{name}.cls")]).collect();
    let content = |name: &String| if name.ends_with("cls") { &b"7"[..] } else { b"content" };
    tar(&files.iter().map(|name| (&**name, content(name))).collect::<Vec<_>>())
}

#[test]
fn an_index_is_remembered_until_a_shard_changes() {
    let set = Set::new().with_bytes("train-0.tar", &large(1_000)).with("val-0.tar", &[("a.png", b""), ("a.cls", b"1")]);
    let deadline = Instant::now() + Duration::from_secs(20);
    let saved = loop {
        set.open().unwrap();
        match std::fs::read_dir(set.cache()).into_iter().flatten().flatten().next() {
            Some(file) => break file.path(),
            None => assert!(Instant::now() < deadline, "never remembered"),
        }
        std::thread::yield_now();
    };
    // Proof that it is what is read: another label in it.
    let places = places::find(&set.data_set()).unwrap().unwrap();
    let (files, metas) = files(&places).unwrap();
    let (key, is_lasting) = key(&places, None, &files, &metas);
    let mut contents = Contents::load(&saved, &key, files.len()).unwrap();
    let mut marked = Contents::default();
    contents.splits[0].iter().for_each(|sample| marked.splits[0].push(Location { label: 3, ..sample }).unwrap());
    contents.splits[0] = marked.splits[0].clone();
    contents.save(&saved, &key);
    let source = set.open().unwrap();
    assert!(is_lasting && source.label(Split::Train, 999) == 3 && source.len(Split::Val) == 1);
    let bytes_per_sample = source.index_bytes() as f64 / 1_001.0;
    assert!(bytes_per_sample <= 64.0, "{bytes_per_sample} bytes per sample");
    // Another content of the same size.
    std::fs::write(set.path("train-0.tar"), large(1_000)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while set.open().unwrap().label(Split::Train, 999) == 3 {
        assert!(Instant::now() < deadline, "the change is never seen");
    }
}

#[test]
fn a_shard_that_changes_while_it_is_served_gives_no_bytes() {
    let files: [(&str, &[u8]); 4] = [("a.jpg", b"AAAA"), ("a.cls", b"0"), ("b.jpg", b"BBBB"), ("b.cls", b"0")];
    let set = Set::new().with("train-0.tar", &files).with("train-1.tar", &files);
    let source = set.open().unwrap();
    let mut bytes = Vec::new();
    source.read(Split::Train, 1, &mut bytes).unwrap();
    assert_eq!(bytes, b"BBBB");
    std::fs::write(set.path("train-0.tar"), &tar(&files)[..3_000]).unwrap();
    let other = tar(&[("c.jpg", b"a longer name's content"), ("c.cls", b"0")]);
    std::fs::write(set.path("new"), other).unwrap();
    std::fs::rename(set.path("new"), set.path("train-1.tar")).unwrap();
    for (sample, shard) in [(0, "train-0.tar"), (1, "train-0.tar"), (2, "train-1.tar"), (3, "train-1.tar")] {
        let error = source.read(Split::Train, sample, &mut bytes).unwrap_err();
        assert!(matches!(&error, ReadError::FileChanged { path } if path.ends_with(shard)), "{error}");
        assert_eq!(source.stamp(Split::Train, sample), None);
    }
}

/// Fields of a sample: name, path, content.
type Fields<'a> = Vec<(String, &'a str, &'a [u8])>;

/// What webdataset makes of these files, said once more: group neighbours by key, then take the first image field and the label.
fn naive(files: &[(String, Vec<u8>)]) -> Vec<(String, u32, Vec<u8>)> {
    let mut groups: Vec<(String, Fields)> = Vec::new();
    for (path, content) in files {
        let (folder, base) = path.rsplit_once('/').map_or(("", &**path), |(folder, base)| (folder, base));
        let Some((stem, field)) = base.split_once('.').filter(|_| !(path.starts_with("__") && folder.ends_with("__")))
        else {
            continue;
        };
        let key = format!("{folder}/{stem}");
        if groups.last().is_none_or(|(last, _)| *last != key) {
            groups.push((key, Vec::new()));
        }
        groups.last_mut().unwrap().1.push((field.to_ascii_lowercase(), path, content));
    }
    let sample = |(_, fields): (String, Fields)| {
        let field = |name: &str| fields.iter().find(|(field, ..)| field == name);
        let (_, path, image) = ["jpg", "png", "webp"].iter().find_map(|name| field(name))?;
        let label = match field("cls") {
            Some((_, _, text)) => std::str::from_utf8(text).unwrap().trim().parse().unwrap(),
            None => {
                serde_json::from_slice::<serde_json::Value>(field("json")?.2).unwrap()["label"].as_u64().unwrap() as u32
            }
        };
        Some(((*path).to_owned(), label, image.to_vec()))
    };
    groups.into_iter().filter_map(sample).collect()
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    #[test]
    fn shards_match_naive(
        parts in proptest::collection::vec((0_u32..3, 0_usize..6, 0_usize..1_500, 0_u32..9), 1..40),
    ) {
        let mut files: Vec<(String, Vec<u8>)> = Vec::new();
        let mut key = 0;
        for (step, field, length, label) in parts {
            // Two files of three belong to the sample before.
            key += usize::from(step == 0);
            let folder = ["", "a/", "b.c/", "__m__/"][key % 4];
            let (field, content) = match field {
                0 => ("jpg", vec![label as u8; length]),
                1 => ("PNG", vec![label as u8; length]),
                2 => ("cls", format!("{label}\n").into_bytes()),
                3 => ("json", format!(r#"{{"label": {label}, "other": "{}"}}"#, "x".repeat(length)).into_bytes()),
                4 => ("mask.npy", vec![0; length]),
                _ => ("webp", vec![label as u8; length]),
            };
            let name = format!("{folder}{key}.{field}");
            // Two files of one field in a sample are an error of their own.
            if files.iter().all(|(other, _)| *other != name) {
                files.push((name, content));
            }
        }
        let expected = naive(&files);
        let entries: Vec<(&str, &[u8])> = files.iter().map(|(name, content)| (&**name, &**content)).collect();
        let set = Set::new().with("train.tar", &entries);
        match set.open() {
            Ok(source) => {
                let found = samples(&source, Split::Train).into_iter();
                let found = found.map(|(name, label, content)| (name.replacen("train.tar/", "", 1), label, content.into_bytes()));
                proptest::prop_assert_eq!(found.collect::<Vec<_>>(), expected);
            }
            Err(error) => proptest::prop_assert!(expected.is_empty(), "{}", error),
        }
    }
}

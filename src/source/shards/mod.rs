//! WebDataset shards: tars of samples, indexed by their headers and read in place (docs/datasets.md).
//!
//! [`open`] finds the shards (`places.rs`), indexes each (`shard.rs`, by way of `tar.rs` or DALI's index in `dali.rs`, `group.rs` and `label.rs`) in
//! threads of its own, or loads the index of all of them from the cache folder, and gives labels to the samples.

mod buckets;
mod dali;
mod fault;
mod group;
mod label;
mod names;
mod places;
mod reader;
mod shard;
mod tar;

use super::bucket::Bucket;
use super::located::{Contents, FindPublished, IndexedFile, Located, Location, Publication, Remembered};
use super::tally::line;
use super::vocabulary::{Mixed, Sets, Vocabulary, Written};
use super::{DataSet, DatasetError};
use crate::escape::escaped;
use crate::memory;
use crate::stamp::{is_settled, stamp};
use crate::types::Split;
pub use fault::Fault;
use names::Beside;
use places::Places;
use shard::{LabelKind, LeftOut, Raw, Room, ShardIndex, raw};
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// The version of how shards become samples; another one indexes anew.
const VERSION: &[u8] = b"webdataset 2\0";
/// Indexing waits for storage more than it computes.
const THREADS_MIN: usize = 4;
const THREADS_MAX: usize = 16;

/// The shards that `set` names; `None` when it names something else.
///
/// # Errors
/// When they cannot be used.
pub fn open(set: &DataSet, cache_dir: &Path, bucket: Option<&mut Bucket>) -> Result<Option<Located>, DatasetError> {
    let Some(shards) = find(set, bucket)? else {
        return Ok(None);
    };
    let label_key = set.label_key.as_deref();
    let (mut contents, _) = shards.contents(label_key, cache_dir)?;
    let Shards { places, files, .. } = shards;
    for (&split, expected) in Split::ALL.iter().zip(places.expected) {
        let found = u64::from(contents.splits[split as usize].len());
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            contents
                .notes
                .push(format!("the shards of {split} have {found} samples, where their info file counts {expected}"));
        }
    }
    contents.notes.extend(places.notes);
    name_classes(&mut contents, &places.beside, label_key);
    let source = Located::new(places.location, files, contents);
    tracing::debug!("the index of the shards takes {} bytes", source.index_bytes());
    Ok(Some(source))
}

/// The index of the shards that `set` names, to be published beside them; `None` when it names none.
///
/// # Errors
/// When they cannot be used.
pub fn publication(set: &DataSet, cache_dir: &Path, bucket: &mut Bucket) -> Result<Option<Publication>, DatasetError> {
    let Some(shards) = find(set, Some(bucket))? else {
        return Ok(None);
    };
    // Whatever was published before.
    let shards = Shards { published: None, ..shards };
    let (contents, key) = shards.contents(set.label_key.as_deref(), cache_dir)?;
    Ok(Some(Publication { contents, key }))
}

/// The shards of a set.
struct Shards {
    places: Places,
    /// Training first.
    files: Vec<IndexedFile>,
    /// Of those that are files of this machine.
    metas: Vec<Metadata>,
    /// Of those that are in an object store.
    published: Option<FindPublished>,
}

impl Shards {
    /// Their index and its key, remembered, published or made.
    fn contents(&self, label_key: Option<&str>, cache_dir: &Path) -> Result<(Contents, Vec<u8>), DatasetError> {
        let (places, files) = (&self.places, &self.files);
        let (key, is_lasting) = key(places, label_key, files, &self.metas);
        let saved = cache_dir.join(format!("shards-{:016x}", name_of(places, label_key)));
        let remembered =
            Remembered { location: places.location.clone(), saved, key, published: self.published.as_ref() };
        if let Some((contents, ())) = remembered.load(files.iter(), |_| Some(()))? {
            return Ok((contents, remembered.key));
        }
        tracing::info!("indexing {} shards of {}", files.len(), places.location);
        let contents = index(places, files, label_key)?;
        if is_lasting {
            remembered.save(&contents, files.iter());
        }
        Ok((contents, remembered.key))
    }
}

fn find(set: &DataSet, bucket: Option<&mut Bucket>) -> Result<Option<Shards>, DatasetError> {
    if let Some(bucket) = bucket {
        let Some(places) = buckets::find(set, bucket)? else {
            return Ok(None);
        };
        let files = places.shards.iter().flatten().map(|path| bucket.file(path)).collect();
        return Ok(Some(Shards { places, files, metas: Vec::new(), published: Some(bucket.published()) }));
    }
    let Some(places) = places::find(set)? else {
        return Ok(None);
    };
    let (files, metas) = files(&places)?;
    Ok(Some(Shards { places, files, metas, published: None }))
}

/// The shards of both splits, training first.
fn files(places: &Places) -> Result<(Vec<IndexedFile>, Vec<Metadata>), DatasetError> {
    let (mut files, mut metas) = (Vec::new(), Vec::new());
    for path in places.shards.iter().flatten() {
        let meta = path.metadata().map_err(DatasetError::io("look at", path))?;
        if !meta.is_file() {
            return Err(DatasetError::Shard { path: path.clone(), fault: Fault::NotAFile });
        }
        let name = path.strip_prefix(&places.base).unwrap_or(path).to_string_lossy().into_owned();
        files.push(IndexedFile::new(path.clone(), name, &meta));
        metas.push(meta);
    }
    Ok((files, metas))
}

/// What the index depends on, and whether a later change of that cannot go unnoticed.
fn key(places: &Places, label_key: Option<&str>, files: &[IndexedFile], metas: &[Metadata]) -> (Vec<u8>, bool) {
    let mut key = VERSION.to_vec();
    let mut is_lasting = true;
    key.extend(label_key.unwrap_or_default().bytes().chain([0]));
    let mut metas = metas.iter();
    for (paths, split) in places.shards.iter().zip(Split::ALL) {
        key.extend(split.name().bytes().chain([0]));
        key.extend((paths.len() as u64).to_le_bytes());
        for (path, meta) in paths.iter().zip(metas.by_ref()) {
            key.extend(path.as_os_str().as_bytes().iter().chain(&[0]));
            let index = dali::beside(path, meta).map(|(_, index)| index);
            for meta in [Some(meta), index.as_ref()] {
                key.extend(meta.map_or(0, stamp).to_le_bytes());
                is_lasting &= meta.is_none_or(is_settled);
            }
        }
    }
    // Addresses, ETags and sizes say all of remote shards.
    for (file, stamp) in files.iter().filter_map(|file| file.remote_stamp().map(|stamp| (file, stamp))) {
        key.extend(file.path.as_os_str().as_bytes().iter().chain(&[0]));
        key.extend(stamp.to_le_bytes());
    }
    (key, is_lasting)
}

/// Tells the saved indexes of different sets apart.
fn name_of(places: &Places, label_key: Option<&str>) -> u64 {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    hash.update(label_key.unwrap_or_default().as_bytes());
    for paths in &places.shards {
        hash.update(&[0]);
        paths.iter().for_each(|path| {
            hash.update(path.as_os_str().as_bytes());
            hash.update(&[0]);
        });
    }
    hash.digest()
}

/// Indexes all shards. The first of them that has a fault is named, whatever the threads do.
fn index(places: &Places, files: &[IndexedFile], label_key: Option<&str>) -> Result<Contents, DatasetError> {
    let (next, has_failed, indexes) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new(Vec::new()));
    let room = Room::new(memory::free);
    let work = || {
        while !has_failed.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(file) = files.get(number) else { return };
            let index = shard::index(file, number as u32, label_key, &room);
            has_failed.fetch_or(index.is_err(), Ordering::Relaxed);
            indexes.lock().unwrap_or_else(PoisonError::into_inner).push((number, index));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).clamp(THREADS_MIN, THREADS_MAX);
    std::thread::scope(|scope| {
        for _ in 0..threads.min(files.len()) {
            scope.spawn(work);
        }
    });
    let mut indexes = indexes.into_inner().unwrap_or_else(PoisonError::into_inner);
    indexes.sort_unstable_by_key(|(number, _)| *number);
    let refused = |number: usize, fault| DatasetError::Shard { path: files[number].path.clone(), fault };
    let indexes = indexes.into_iter().map(|(number, index)| index.map_err(|fault| refused(number, fault)));
    merge(places, indexes.collect::<Result<_, _>>()?)
}

/// The samples of all shards with labels in one vocabulary.
fn merge(places: &Places, indexes: Vec<ShardIndex>) -> Result<Contents, DatasetError> {
    let shards_refused = |cause: String| DatasetError::Shards { location: places.location.clone(), cause };
    let mut left_out = LeftOut::default();
    indexes.iter().for_each(|index| left_out += index.left_out.clone());
    let train_shards = places.shards[Split::Train as usize].len();
    let (train, val) = indexes.split_at(train_shards);
    if train.iter().all(|index| index.samples.len() == 0) {
        return Err(shards_refused(left_out.why_nothing()));
    }
    let vocabulary = Vocabulary::of(train.iter().flat_map(written), val.iter().flat_map(written));
    let vocabulary = vocabulary.map_err(|Mixed| {
        let [integers, names] = [LabelKind::Integers, LabelKind::Names].map(|kind| {
            let number = indexes.iter().position(|index| index.kind == Some(kind)).unwrap_or(0);
            escaped(path_of(places, number))
        });
        shards_refused(format!(
            "the labels of {integers} are integers, those of {names} names (--label-key may name another key)"
        ))
    })?;
    let mut contents = Contents { notes: left_out.notes(), ..Contents::default() };
    contents.notes.extend(vocabulary.note());
    if vocabulary.classes.is_empty() {
        return Err(shards_refused("every list of labels in the training shards is empty".to_owned()));
    }
    // Where one sample has a list, the label of any other is a set of one.
    let is_multi = indexes.iter().any(|index| !index.sets.as_slice().is_empty());
    let mut sets = Sets::default();
    for (number, index) in indexes.iter().enumerate() {
        let split = if number < train_shards { Split::Train } else { Split::Val };
        let label = |name: &String| {
            vocabulary.label(Written::Name(name.as_bytes())).ok_or_else(|| {
                let path = escaped(path_of(places, number));
                shards_refused(format!("class `{}` of {path} has no training sample", fault::shown(name.as_bytes())))
            })
        };
        let labels = index.names.iter().map(label).collect::<Result<Vec<_>, _>>()?;
        let label_of = |one: u32| if index.kind == Some(LabelKind::Names) { labels[one as usize] } else { one };
        let mut numbers = vec![None; index.sets.as_slice().len()];
        for sample in index.samples.iter() {
            let label = match raw(sample.label) {
                Raw::One(one) if is_multi => sets.number(vec![label_of(one)]),
                Raw::One(one) => label_of(one),
                Raw::Several(set) => *numbers[set as usize].get_or_insert_with(|| {
                    sets.number(index.sets.as_slice()[set as usize].iter().map(|&one| label_of(one)).collect())
                }),
            };
            let pushed = contents.splits[split as usize].push(Location { label, ..sample });
            pushed.map_err(|_| DatasetError::Shard { path: path_of(places, number).to_owned(), fault: Fault::Full })?;
        }
    }
    contents.classes = vocabulary.classes;
    contents.label_sets = is_multi.then(|| sets.into_sets());
    Ok(contents)
}

/// The labels of a shard as they are written: names once, numbers for each sample.
fn written(index: &ShardIndex) -> impl Iterator<Item = Written<'_>> {
    let are_numbers = index.kind == Some(LabelKind::Integers);
    let numbers = are_numbers.then(|| {
        let of_samples = index.samples.iter().filter_map(|sample| match raw(sample.label) {
            Raw::One(one) => Some(one),
            Raw::Several(_) => None,
        });
        let of_sets = index.sets.as_slice().iter().flat_map(|set| set.iter().copied());
        of_samples.chain(of_sets).map(Written::Number)
    });
    index.names.iter().map(|name| Written::Name(name.as_bytes())).chain(numbers.into_iter().flatten())
}

fn path_of(places: &Places, number: usize) -> &Path {
    places.shards.iter().flatten().nth(number).expect("a shard of the set")
}

/// Gives classes that are numbers the names that lie beside the shards.
fn name_classes(contents: &mut Contents, beside: &Beside, label_key: Option<&str>) {
    let are_integers = contents.classes.iter().enumerate().all(|(label, class)| class.id == label.to_string());
    let Some(named) = beside.class_names(label_key).filter(|_| are_integers) else { return };
    for (class, name) in contents.classes.iter_mut().zip(&named).filter(|(_, name)| !name.is_empty()) {
        class.name = escaped(name).to_string();
    }
    let (named, labels) = (named.len(), contents.classes.len());
    if named < labels {
        contents.notes.push(format!(
            "{named} class names lie beside the shards, which have labels up to {}: the others have none",
            labels - 1
        ));
    }
}

impl LeftOut {
    /// Why there is no sample at all.
    fn why_nothing(&self) -> String {
        let list = |names: &std::collections::BTreeSet<String>| {
            names.iter().map(|name| &**name).collect::<Vec<_>>().join(", ")
        };
        if let Some(name) = self.pickle.clone().filter(|_| self.no_label > 0) {
            return Fault::Pickled { name }.to_string();
        }
        let fields = list(&self.fields);
        if self.no_label > 0 {
            let keys = if self.json_keys.is_empty() {
                String::new()
            } else {
                format!(", json has the keys {}", list(&self.json_keys))
            };
            return format!(
                "no training sample has a label: the fields are {fields}{keys} (a label is `cls`, an integer as text, or `json` with `label`; \
                 --label-key names another key of json)"
            );
        }
        if fields.is_empty() {
            return "the training shards hold no samples, which are files such as 0001.jpg and 0001.cls".to_owned();
        }
        format!(
            "no training sample has an image and a label of 0 or more: the fields are {fields} (images are jpg, png, webp or alike)"
        )
    }

    /// What a user should know of that.
    fn notes(&self) -> Vec<String> {
        let samples = [
            (self.no_image, ["without an image"; 2]),
            (self.marked, ["marked `__bad__`"; 2]),
            (self.several_images, ["with several images, none of them `jpg`"; 2]),
            (self.no_label, ["without a label"; 2]),
            (self.negative, ["with a label below 0"; 2]),
        ];
        let files = [(self.keyless, ["without an extension"; 2]), (self.hidden, ["hidden"; 2])];
        let unended = || format!("{} shards lack the blocks that end a tar, so samples may be missing", self.unended);
        let misfits = || format!("{} index files (.idx) do not fit their shards and are not used", self.misfits);
        [
            line(["sample", "samples"], &samples),
            line(["file in shards", "files in shards"], &files),
            (self.unended > 0).then(unended),
            (self.misfits > 0).then(misfits),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

#[cfg(test)]
mod tests;

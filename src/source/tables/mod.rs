//! Tables with a column of images, as Hugging Face writes them (Parquet, and Arrow where `save_to_disk` wrote them), as a source: a sample is a row.
//!
//! Images that lie in a file as they are become samples of [`Located`]. Those in a coded page are samples of it, too, which begin where the page does
//! and whose length is their number in it: no other sample begins there. To read one, its page is decoded, and kept for a while.

mod arrow;
mod cells;
mod columns;
#[cfg(test)]
mod hostile_tests;
mod index;
mod layout;
mod pages;
mod parquet;
mod places;
#[cfg(test)]
mod tests;

use super::bucket::Bucket;
use super::flaw::Flaw;
use super::located::{Contents, FindPublished, Located, Location, Publication, Remembered, Samples};
use super::tally::line;
use super::vocabulary::{CLASSES_MAX, Mixed, Vocabulary, Written};
use super::{Ahead, Class, DataSet, DatasetError, ENCODED_BYTES_MAX, ReadError, Source, Stamp};
use crate::escape::escaped;
use crate::status::Fetched;
use crate::types::{ClassId, SampleId, Split};
use cells::Cell;
use columns::{Chosen, Named};
use index::{Labels, Rows};
use layout::Found;
use pages::Pages;
use parquet::CodedPage;
use places::{Part, Places};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// The most threads that index files: they mostly wait for the disk.
const THREADS_MAX: usize = 8;

/// Tables of images and labels.
#[derive(Debug)]
pub struct Tables {
    located: Located,
    coded: Coded,
    pages: Pages,
}

/// For each file, its coded pages by their offset.
type Coded = Vec<BTreeMap<u64, CodedPage>>;

/// What is to be indexed.
struct Layout {
    /// For people.
    location: String,
    /// The same, for errors.
    data: PathBuf,
    /// What names of files are relative to.
    root: PathBuf,
    /// The files of each split, by [`Split`].
    files: [Vec<PathBuf>; Split::ALL.len()],
    notes: Vec<String>,
}

impl Tables {
    /// The tables of a data set; none where it has none.
    pub(super) fn open(
        set: &DataSet,
        cache_dir: &Path,
        bucket: Option<&mut Bucket>,
    ) -> Result<Option<Self>, DatasetError> {
        let published = bucket.as_ref().map(|bucket| bucket.published());
        let mut places = bucket.map_or(Places::Disk, Places::Store);
        let Some(layout) = lay_out(set, &mut places)? else {
            return Ok(None);
        };
        let parts = layout.parts(&places)?;
        let Indexed { mut contents, coded, .. } = indexed(&layout, &parts, set, cache_dir, published.as_ref())?;
        let page_count: usize = coded.iter().map(BTreeMap::len).sum();
        let pages = Pages::new(page_count > 0);
        if page_count > 0 {
            let (why, mib) =
                ("to read an image its page is decompressed (docs/datasets.md)", pages.budget_bytes() >> 20);
            contents
                .notes
                .push(format!("images lie in {page_count} compressed pages: {why}; up to {mib} MiB of pages are kept"));
        }
        contents.notes.extend(layout.notes);
        let files = parts.into_iter().map(|part| part.file).collect();
        let located = Located::new(layout.location, files, contents);
        Ok(Some(Self { located, coded, pages }))
    }

    /// The index of the tables in a store, to be published beside them; none where there are none.
    pub(super) fn publication(
        set: &DataSet,
        cache_dir: &Path,
        bucket: &mut Bucket,
    ) -> Result<Option<Publication>, DatasetError> {
        let mut places = Places::Store(bucket);
        let Some(layout) = lay_out(set, &mut places)? else {
            return Ok(None);
        };
        // Whatever was published before.
        let indexed = indexed(&layout, &layout.parts(&places)?, set, cache_dir, None)?;
        Ok(Some(Publication { contents: indexed.contents, key: indexed.key }))
    }

    /// The page that a sample is in, if it must be decoded.
    fn coded(&self, place: Location<'_>) -> Option<&CodedPage> {
        self.coded[place.file as usize].get(&place.offset)
    }

    fn read_coded(
        &self,
        place: Location<'_>,
        coded: &CodedPage,
        bytes: &mut Vec<u8>,
    ) -> Result<Option<Stamp>, ReadError> {
        let files = self.located.files();
        // Of a file that has changed no page is served, though it be kept.
        let stamp = files.read(place.file, place.offset, &mut [])?;
        let page = self.pages.get((place.file, place.offset), || {
            coded.decode(&mut |at, into: &mut [u8]| files.read(place.file, at, into).map(drop))
        })?;
        let gone =
            || ReadError::Io(io::Error::new(io::ErrorKind::InvalidData, "its page has fewer values than it had"));
        let image = page.get(place.length).ok_or_else(gone)?;
        if image.len() as u64 > ENCODED_BYTES_MAX {
            return Err(ReadError::TooLarge { bytes: image.len() as u64 });
        }
        bytes.clear();
        bytes.extend_from_slice(image);
        Ok(stamp)
    }
}

impl From<Flaw> for ReadError {
    fn from(flaw: Flaw) -> Self {
        Self::Io(io::Error::new(io::ErrorKind::InvalidData, format!("its file {flaw}")))
    }
}

impl Source for Tables {
    fn location(&self) -> String {
        self.located.location()
    }

    fn classes(&self) -> &[Class] {
        self.located.classes()
    }

    fn fetched(&self) -> Option<Fetched> {
        self.located.fetched()
    }

    fn len(&self, split: Split) -> u32 {
        self.located.len(split)
    }

    fn label(&self, split: Split, sample: SampleId) -> ClassId {
        self.located.label(split, sample)
    }

    fn shards(&self, split: Split) -> Vec<SampleId> {
        self.located.shards(split)
    }

    fn will_read(&self, split: Split, now: &[SampleId], next: &[SampleId]) -> Option<Ahead> {
        self.located.will_read(split, now, next)
    }

    /// The file and the row.
    fn name(&self, split: Split, sample: SampleId) -> String {
        self.located.name(split, sample)
    }

    fn read(&self, split: Split, sample: SampleId, bytes: &mut Vec<u8>) -> Result<Option<Stamp>, ReadError> {
        let place = self.located.get(split, sample);
        match self.coded(place) {
            Some(coded) => self.read_coded(place, coded, bytes),
            None => self.located.read(split, sample, bytes),
        }
    }

    fn stamp(&self, split: Split, sample: SampleId) -> Option<Stamp> {
        self.located.stamp(split, sample)
    }

    fn hash_samples(&self, split: Split, hash: &mut Xxh3) {
        self.located.hash_samples(split, hash);
    }

    fn hash_labels(&self, split: Split, hash: &mut Xxh3) {
        self.located.hash_labels(split, hash);
    }

    fn notes(&self) -> &[String] {
        self.located.notes()
    }
}

fn flawed(path: &Path) -> impl Fn(Flaw) -> DatasetError + '_ {
    |flaw| DatasetError::Unusable { path: path.to_owned(), cause: flaw.to_string() }
}

/// The files of both splits; none where the data set has no tables.
fn lay_out(set: &DataSet, places: &mut Places<'_>) -> Result<Option<Layout>, DatasetError> {
    let Some((root, found)) = places.find(set)? else {
        return Ok(None);
    };
    let found = found.unwrap_or_default();
    let data = places.location(set);
    let location =
        if let Places::Disk = places { escaped(&data).to_string() } else { data.to_string_lossy().into_owned() };
    let mut layout = Layout { location, data, root, files: Default::default(), notes: Vec::new() };
    let mut used = BTreeSet::new();
    for &split in Split::ALL {
        let place = set.splits.of(split);
        let name = match place {
            Some(place) => found.splits.keys().find(|name| *name == place),
            None => default_split(split, &found),
        };
        layout.files[split as usize] = match (name, place) {
            (Some(name), _) => {
                used.insert(name.clone());
                found.splits[name].clone()
            }
            (None, Some(place)) => places.files_at(&layout.root, place)?,
            (None, None) => Vec::new(),
        };
        let default = if split == Split::Train { "train" } else { "validation" };
        if let Some(name) = name.filter(|name| place.is_none() && *name != default) {
            layout.notes.push(format!("the split `{name}` is used for {split}"));
        }
    }
    if layout.files.iter().all(Vec::is_empty) && found.splits.is_empty() {
        return Ok(None);
    }
    check(&layout, &found, set)?;
    let left: Vec<&str> = found.splits.keys().filter(|name| !used.contains(*name)).map(String::as_str).collect();
    if !left.is_empty() {
        layout.notes.push(format!("splits that are not used: {} (see --splits)", left.join(", ")));
    }
    let others = (found.others as u64, ["whose name tells no split", "whose names tell no split"]);
    layout.notes.extend(line(["table", "tables"], &[others]));
    Ok(Some(layout))
}

/// The split that is used where none is given: for validation the test split, too.
fn default_split(split: Split, found: &Found) -> Option<&String> {
    let wanted: &[&str] = if split == Split::Train { &["train"] } else { &["validation", "test"] };
    let known = wanted.iter().find_map(|wanted| layout::standing_for(wanted, found.splits.keys()));
    // The only split of a set is for training, unless its name says otherwise.
    let is_only = split == Split::Train && found.splits.len() == 1;
    known.or_else(|| found.splits.keys().next().filter(|name| is_only && !layout::is_known(name)))
}

/// A data set must have training images, and every split that was named.
fn check(layout: &Layout, found: &Found, set: &DataSet) -> Result<(), DatasetError> {
    for &split in Split::ALL {
        if !layout.files[split as usize].is_empty() {
            continue;
        }
        let names: Vec<&str> = found.splits.keys().map(String::as_str).collect();
        let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        let cause = match set.splits.of(split) {
            Some(place) => {
                format!("has no split or tables `{place}`; splits that are there: {there} (--splits)")
            }
            None if split == Split::Train => {
                format!("has no training split; splits that are there: {there} (choose one with --splits train=NAME)")
            }
            None => continue,
        };
        return Err(DatasetError::Unusable { path: layout.data.clone(), cause });
    }
    Ok(())
}

impl Layout {
    /// The tables of both splits, training first.
    fn parts(&self, places: &Places<'_>) -> Result<Vec<Part>, DatasetError> {
        let paths =
            Split::ALL.iter().flat_map(|&split| self.files[split as usize].iter().map(move |path| (split, path)));
        paths.map(|(split, path)| places.part(split, path, &self.root)).collect()
    }
}

/// What is known of tables.
struct Indexed {
    contents: Contents,
    coded: Coded,
    /// Of which files and options it is.
    key: Vec<u8>,
}

/// The index of these tables: remembered, published, or made.
fn indexed(
    layout: &Layout,
    parts: &[Part],
    set: &DataSet,
    cache_dir: &Path,
    published: Option<&FindPublished>,
) -> Result<Indexed, DatasetError> {
    let named = Named { image: set.image_key.as_deref(), label: set.label_key.as_deref() };
    let mut key = format!("tables 2\0{:?}\0{:?}\0", named.image, named.label).into_bytes();
    for Part { split, file, stamp, .. } in parts {
        key.extend_from_slice(file.path.as_os_str().as_bytes());
        key.extend_from_slice(format!("\0{split}\0{stamp}\0").as_bytes());
    }
    let paths: Vec<&[u8]> = parts.iter().map(|part| part.file.path.as_os_str().as_bytes()).collect();
    let saved = cache_dir.join(format!("tables-{:016x}", xxh3_64(&paths.join(&0))));
    let remembered = Remembered { location: layout.location.clone(), saved, key, published };
    let fits = |contents: &Contents| unpacked(&contents.extra, parts.iter().map(|part| part.file.bytes()));
    if let Some((contents, coded)) = remembered.load(parts.iter().map(|part| &part.file), fits)? {
        return Ok(Indexed { contents, coded, key: remembered.key });
    }
    let (mut contents, coded) = index_all(parts, named)?;
    contents.extra = packed(&coded);
    if parts.iter().all(|part| part.is_lasting) {
        remembered.save(&contents, parts.iter().map(|part| &part.file));
    }
    Ok(Indexed { contents, coded, key: remembered.key })
}

/// Coded pages as numbers: for each file how many, then each.
fn packed(coded: &Coded) -> Vec<u64> {
    let of_file = |pages: &BTreeMap<u64, CodedPage>| {
        std::iter::once(pages.len() as u64).chain(pages.values().flat_map(CodedPage::words)).collect::<Vec<_>>()
    };
    coded.iter().flat_map(of_file).collect()
}

/// The coded pages of files of these sizes that [`packed`] made numbers of; `None` where these are not such numbers.
fn unpacked(mut numbers: &[u64], files_bytes: impl Iterator<Item = u64>) -> Option<Coded> {
    let mut coded = Vec::new();
    for file_bytes in files_bytes {
        let (&count, rest) = numbers.split_first()?;
        let words = usize::try_from(count).ok()?.checked_mul(CodedPage::WORDS)?;
        let (pages, rest) = rest.split_at_checked(words)?;
        let pages = pages.chunks_exact(CodedPage::WORDS).map(|words| CodedPage::from_words(words, file_bytes));
        coded.push(pages.map(|page| page.map(|page| (page.offset(), page))).collect::<Option<_>>()?);
        numbers = rest;
    }
    numbers.is_empty().then_some(coded)
}

/// The index of all files, and the coded pages of each.
fn index_all(parts: &[Part], named: Named<'_>) -> Result<(Contents, Coded), DatasetError> {
    let Part { file: first, .. } = &parts[0];
    let chosen = index::columns(first, named).map_err(flawed(&first.path))?;
    let tables = index_each(parts, &chosen)?;
    let vocabulary = vocabulary(parts, &tables, &chosen)?;
    let mut contents = Contents { notes: vocabulary.note().into_iter().collect(), ..Contents::default() };
    let (mut coded_pages, mut unlabelled) = (Vec::<BTreeMap<u64, CodedPage>>::new(), [0_u64; Split::ALL.len()]);
    for (number, (Part { split, file, .. }, rows)) in parts.iter().zip(tables).enumerate() {
        let samples = &mut contents.splits[*split as usize];
        unlabelled[*split as usize] += push(samples, number as u32, &file.path, &rows, &vocabulary)?;
        coded_pages.push(rows.coded.iter().map(|page| (page.offset(), *page)).collect());
    }
    for (split, &count) in Split::ALL.iter().zip(&unlabelled) {
        let rows = ["row", "rows"].map(|what| format!("{what} of {split}"));
        contents.notes.extend(line([&rows[0], &rows[1]], &[(count, ["without a label"; 2])]));
    }
    if contents.splits[Split::Train as usize].len() == 0 {
        let cause = format!(
            "has no labelled row for training in the column `{}` (choose another with --label-key)",
            chosen.label
        );
        return Err(DatasetError::Unusable { path: first.path.clone(), cause });
    }
    contents.classes = vocabulary.classes;
    Ok((contents, coded_pages))
}

/// Indexes files, several at once: most of the time passes in waiting for lengths from the disk.
fn index_each(parts: &[Part], chosen: &Chosen) -> Result<Vec<Rows>, DatasetError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).saturating_mul(2);
    let (next, done) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads.min(THREADS_MAX).min(parts.len()) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(Part { file, .. }) = parts.get(number) else {
                        return;
                    };
                    let rows = index::index(file, chosen).map_err(flawed(&file.path));
                    let has_failed = rows.is_err();
                    done.lock().expect("no thread panics").insert(number, rows);
                    if has_failed {
                        // The others end, too.
                        next.store(parts.len(), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    done.into_inner().expect("no thread panics").into_values().collect()
}

/// The vocabulary: classes that the columns' description lists, else what the labels are.
fn vocabulary(parts: &[Part], tables: &[Rows], chosen: &Chosen) -> Result<Vocabulary, DatasetError> {
    let limit = chosen.class_names.as_ref().map_or(i64::from(CLASSES_MAX), |names| names.len() as i64);
    for (Part { file, .. }, rows) in parts.iter().zip(tables) {
        if let Labels::Integers(labels) = &rows.labels
            && let Some(row) = labels.iter().position(|label| *label >= limit)
        {
            let cause = format!(
                "has the label {} in row {row}, where {} is the largest there can be (choose another column with --label-key)",
                labels[row],
                limit - 1
            );
            return Err(DatasetError::Unusable { path: file.path.clone(), cause });
        }
    }
    if let Some(names) = &chosen.class_names {
        return Ok(Vocabulary::listed(names.iter().cloned()));
    }
    let of = |wanted: Split| {
        let of_split = parts.iter().zip(tables).filter(move |(part, _)| part.split == wanted);
        of_split.flat_map(|(_, rows)| rows.labels.written())
    };
    Vocabulary::of(of(Split::Train), of(Split::Val)).map_err(|Mixed| {
        let cause = format!("has integers in the column `{}`, and other files have texts", chosen.label);
        DatasetError::Unusable { path: parts[0].file.path.clone(), cause }
    })
}

/// Adds a table's rows to its split's samples; returns how many were left out, since they have no label.
fn push(
    samples: &mut Samples,
    file: u32,
    path: &Path,
    rows: &Rows,
    vocabulary: &Vocabulary,
) -> Result<u64, DatasetError> {
    let refused = |cause: String| DatasetError::Unusable { path: path.to_owned(), cause };
    let label = |name: &String| vocabulary.label(Written::Name(name.as_bytes()));
    let of_names: Vec<Option<ClassId>> = match &rows.labels {
        Labels::Integers(_) => Vec::new(),
        Labels::Texts(names, _) => names.iter().map(label).collect(),
    };
    let mut unlabelled = 0;
    for (row, cell) in rows.images.iter().enumerate() {
        let label = match &rows.labels {
            Labels::Integers(labels) => ClassId::try_from(labels[row]).ok(),
            Labels::Texts(names, of) => of[row]
                .map(|text| {
                    of_names[text as usize].ok_or_else(|| {
                        let name = &names[text as usize];
                        refused(format!("has the label `{name}` in row {row}, which no training row has"))
                    })
                })
                .transpose()?,
        };
        let Some(label) = label else {
            unlabelled += 1;
            continue;
        };
        let name = row.to_string();
        let (offset, length) = match *cell {
            Cell::InPlace(place) => (place.offset, place.bytes),
            Cell::Coded(page, nth) => (rows.coded[page as usize].offset(), nth),
            Cell::Null => return Err(refused(format!("has no image in row {row}"))),
        };
        let sample = Location { file, offset, length, label, name: name.as_bytes() };
        samples.push(sample).map_err(|_| refused("has more rows than a data set may have: 4 billion".to_owned()))?;
    }
    Ok(unlabelled)
}

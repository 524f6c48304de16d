//! The index of one shard.

use super::super::located::{Full, IndexedFile, Location, Opened, Samples};
use super::super::vocabulary::Sets;
use super::dali;
use super::fault::{Fault, shown};
use super::group::{Groups, Role, Sample, role};
use super::label::{Found, Image, Label, image, label, pickle};
use super::reader::Reader;
use super::tar::{Entries, Entry};
use std::collections::{BTreeSet, HashMap};
use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};

/// Marks the label of a sample with a list of labels: the rest is the number of its set. Labels themselves are smaller.
const SEVERAL: u32 = 1 << 31;
/// Bytes of a sample beside its name, with what lists reserve as they grow.
const SAMPLE_BYTES: u64 = 40;
/// Bytes of a set of labels beside these, in the list of sets and in the map to their numbers.
const SET_BYTES: u64 = 96;
/// How far an index grows between two looks at the memory.
const LOOK_BYTES: u64 = 16 << 20;
/// Names of fields and keys that are kept for an error's text.
const NAMES_KEPT: usize = 24;

/// How labels are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelKind {
    /// As integers, which are the labels.
    Integers,
    /// As names of classes.
    Names,
}

/// What is written of a sample's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Raw {
    /// An integer, or a position in the shard's names.
    One(u32),
    /// The number of one of the shard's sets.
    Several(u32),
}

/// What the label of a sample in [`ShardIndex::samples`] means.
pub fn raw(label: u32) -> Raw {
    if label < SEVERAL { Raw::One(label) } else { Raw::Several(label - SEVERAL) }
}

/// What a shard holds.
#[derive(Debug, Default)]
pub struct ShardIndex {
    /// Its samples. Their labels are for [`raw`].
    pub samples: Samples,
    /// The distinct lists of labels: integers, or positions in `names`.
    pub sets: Sets,
    /// Unknown where there is no sample.
    pub kind: Option<LabelKind>,
    /// The names of classes, in the order of their first samples.
    pub names: Vec<String>,
    /// What was left out, and why.
    pub left_out: LeftOut,
}

/// Files and samples that are not served.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Samples without an image.
    pub no_image: u64,
    /// Samples that are marked as bad.
    pub marked: u64,
    /// Samples with several images, none of which is called `jpg` or alike.
    pub several_images: u64,
    /// Samples with an image and no label.
    pub no_label: u64,
    /// Samples whose label is below 0.
    pub negative: u64,
    /// Files without an extension.
    pub keyless: u64,
    /// Files whose name begins with a dot.
    pub hidden: u64,
    /// Shards without the blocks that end a tar.
    pub unended: u64,
    /// Index files that do not fit their shards.
    pub misfits: u64,
    /// A pickle in a sample without a label.
    pub pickle: Option<String>,
    /// Fields of the samples that lack something.
    pub fields: BTreeSet<String>,
    /// Keys of their `json`.
    pub json_keys: BTreeSet<String>,
}

impl AddAssign for LeftOut {
    fn add_assign(&mut self, other: Self) {
        for (ours, theirs) in [
            (&mut self.no_image, other.no_image),
            (&mut self.marked, other.marked),
            (&mut self.several_images, other.several_images),
            (&mut self.no_label, other.no_label),
            (&mut self.negative, other.negative),
            (&mut self.keyless, other.keyless),
            (&mut self.hidden, other.hidden),
            (&mut self.unended, other.unended),
            (&mut self.misfits, other.misfits),
        ] {
            *ours += theirs;
        }
        self.pickle = self.pickle.take().or(other.pickle);
        keep(&mut self.fields, other.fields);
        keep(&mut self.json_keys, other.json_keys);
    }
}

fn keep(kept: &mut BTreeSet<String>, more: impl IntoIterator<Item = String>) {
    more.into_iter().for_each(|name| {
        if kept.len() < NAMES_KEPT {
            kept.insert(name);
        }
    });
}

/// Indexes the shard that is `number` of its set. `label_key` is the key of the label in `json`.
///
/// # Errors
/// When the shard is no whole tar, changes meanwhile, or a label cannot be read.
pub fn index(file: &IndexedFile, number: u32, label_key: Option<&str>, room: &Room) -> Result<ShardIndex, Fault> {
    let opened = file.open().map_err(Fault::Io)?;
    let mut reader = Reader::new(&opened, opened.bytes().map_err(Fault::Io)?);
    let mut indexer = Indexer { number, label_key, room, taken: 0, ids: HashMap::new(), index: ShardIndex::default() };
    // Of an object all blocks are read anyhow, since the labels lie between the images.
    let meta = if let Opened::Local(local) = &opened { Some(local.metadata().map_err(Fault::Io)?) } else { None };
    let beside = meta.and_then(|meta| dali::beside(&file.path, &meta));
    let listed = beside.map(|(path, _)| dali::entries(&path, &mut reader));
    let mut groups = Groups::default();
    if let Some(Some(entries)) = listed {
        for entry in &entries {
            indexer.add(entry, &mut groups, &mut reader)?;
        }
    } else {
        indexer.index.left_out.misfits += u64::from(listed.is_some());
        let (mut entries, mut entry) = (Entries::default(), Entry::default());
        while entries.next(&mut reader, &mut entry)? {
            indexer.add(&entry, &mut groups, &mut reader)?;
        }
        indexer.index.left_out.unended += u64::from(!entries.is_ended());
    }
    if let Some(sample) = groups.last() {
        indexer.sample(sample, &mut reader)?;
    }
    room.take(indexer.taken)?;
    if !opened.is_as_indexed(file) {
        return Err(Fault::Changing);
    }
    Ok(indexer.index)
}

/// Memory for the indexes of all shards, which is looked at as they grow.
#[derive(Debug)]
pub struct Room {
    /// Bytes that the indexes take.
    taken: AtomicU64,
    free: fn() -> Option<u64>,
}

impl Room {
    /// Room as `free` says.
    pub fn new(free: fn() -> Option<u64>) -> Self {
        Self { taken: AtomicU64::new(0), free }
    }

    /// Counts bytes that an index has taken.
    fn take(&self, bytes: u64) -> Result<(), Fault> {
        // Once more for the index of the whole set, which is made of those of the shards.
        let need = self.taken.fetch_add(bytes, Ordering::Relaxed) + bytes;
        match (self.free)() {
            Some(free) if free < need => Err(Fault::NoMemory { need, free }),
            _ => Ok(()),
        }
    }
}

struct Indexer<'a> {
    number: u32,
    label_key: Option<&'a str>,
    room: &'a Room,
    /// Bytes that were not counted yet.
    taken: u64,
    /// Positions in the index's `names`.
    ids: HashMap<String, u32>,
    index: ShardIndex,
}

impl Indexer<'_> {
    fn add(&mut self, entry: &Entry, groups: &mut Groups, reader: &mut Reader<'_>) -> Result<(), Fault> {
        match role(&entry.name) {
            Role::Field { key, name } => match groups.add(key, name, entry)? {
                Some(sample) => self.sample(sample, reader),
                None => Ok(()),
            },
            Role::Meta => Ok(()),
            Role::Hidden => {
                self.index.left_out.hidden += 1;
                Ok(())
            }
            Role::Keyless => {
                self.index.left_out.keyless += 1;
                Ok(())
            }
        }
    }

    fn sample(&mut self, sample: &Sample, reader: &mut Reader<'_>) -> Result<(), Fault> {
        let fields = || sample.fields.iter().map(|field| shown(field.name.as_bytes()));
        let left_out = &mut self.index.left_out;
        if sample.is_marked_bad() {
            left_out.marked += 1;
            return Ok(());
        }
        let image = match image(sample) {
            Image::At(entry) => entry,
            other => {
                let count = if other == Image::Nothing { &mut left_out.no_image } else { &mut left_out.several_images };
                *count += 1;
                keep(&mut left_out.fields, fields());
                return Ok(());
            }
        };
        let label = match label(sample, self.label_key, reader)? {
            Found::Label(label) => self.number_of(label, image)?,
            Found::Several(labels) => {
                let numbers: Vec<u32> =
                    labels.into_iter().map(|label| self.number_of(label, image)).collect::<Result<_, _>>()?;
                let (known, bytes) = (self.index.sets.as_slice().len(), SET_BYTES + 4 * numbers.len() as u64);
                let set = self.index.sets.number(numbers);
                if set >= SEVERAL {
                    return Err(Fault::Full);
                }
                self.taken += if set as usize == known { bytes } else { 0 };
                SEVERAL + set
            }
            Found::Negative => {
                left_out.negative += 1;
                return Ok(());
            }
            Found::Nothing(json_keys) => {
                left_out.no_label += 1;
                if left_out.pickle.is_none() {
                    left_out.pickle = pickle(sample).map(|entry| shown(&entry.name));
                }
                keep(&mut left_out.fields, fields());
                keep(&mut left_out.json_keys, json_keys.iter().map(|key| shown(key.as_bytes())));
                return Ok(());
            }
        };
        self.taken += SAMPLE_BYTES + image.name.len() as u64;
        if self.taken >= LOOK_BYTES {
            self.room.take(std::mem::take(&mut self.taken))?;
        }
        let location = Location {
            file: self.number,
            offset: image.offset,
            length: u32::try_from(image.bytes).unwrap_or(u32::MAX),
            label,
            name: &image.name,
        };
        self.index.samples.push(location).map_err(|Full| Fault::Full)
    }

    fn number_of(&mut self, label: Label, image: &Entry) -> Result<u32, Fault> {
        let kind = if matches!(label, Label::Integer(_)) { LabelKind::Integers } else { LabelKind::Names };
        if *self.index.kind.get_or_insert(kind) != kind {
            let cause = "some labels are integers, others names (--label-key may name another key)".to_owned();
            return Err(Fault::BadLabel { name: shown(&image.name), cause });
        }
        Ok(match label {
            Label::Integer(number) => number,
            Label::Name(name) => *self.ids.entry(name).or_insert_with_key(|name| {
                self.index.names.push(name.clone());
                self.index.names.len() as u32 - 1
            }),
        })
    }
}

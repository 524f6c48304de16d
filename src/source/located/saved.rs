//! An index of located samples on disk: loaded as long as its key is the same.
//!
//! The file is [`MAGIC`], the key, the samples of both splits as plain arrays in the machine's byte order, what else the format needs, the classes, the
//! sets of labels, the notes, and the hash of all that. Each part begins with its length. It is written as a stream, and read straight into the index.
//!
//! An index may come from a stranger, beside the objects of a store: memory is taken as bytes come, and one that does not hold together is none.

use super::super::Class;
use super::samples::Samples;
use crate::escape::escaped;
use crate::types::{LabelSet, Split};
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;
use xxhash_rust::xxh3::Xxh3;

/// First bytes of a file of this version.
const MAGIC: &[u8] = b"mixd located 3\0";
/// Fewer samples are indexed as fast as they are read.
const SAMPLES_MIN: u32 = 1_000;
const BUFFER_BYTES: usize = 1 << 20;
/// Memory that is taken ahead of the bytes that fill it.
const AHEAD_BYTES: usize = 64 << 20;
/// The most bytes of the classes, and of the notes, which take several times as much memory.
const TEXTS_BYTES_MAX: usize = 64 << 20;

/// What an index holds beside the files, which its key names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Contents {
    /// The samples of each split, by [`Split`].
    pub splits: [Samples; Split::ALL.len()],
    /// What else the format needs to know of the samples.
    pub extra: Vec<u64>,
    /// The vocabulary.
    pub classes: Vec<Class>,
    /// Where samples have several labels: the sets that their labels are numbers of.
    pub label_sets: Option<Vec<LabelSet>>,
    /// What was noticed while indexing.
    pub notes: Vec<String>,
}

impl Contents {
    /// The index in `file`, of `files` files; `None` when there is none of this key, or it is damaged.
    pub fn load(file: &Path, key: &[u8], files: usize) -> Option<Self> {
        let file = File::open(file).ok()?;
        let bytes = file.metadata().ok()?.len();
        Self::read(file, bytes, key, files)
    }

    /// The index in the `bytes` bytes of `input`, of `files` files; `None` when it is of another key, or damaged.
    pub fn read(input: impl Read, bytes: u64, key: &[u8], files: usize) -> Option<Self> {
        let mut input = Input { inner: BufReader::with_capacity(BUFFER_BYTES, input), hash: Xxh3::new(), left: bytes };
        let mut magic = [0; MAGIC.len()];
        input.fill(&mut magic)?;
        if magic != MAGIC || input.part::<u8>(key.len())? != key {
            return None;
        }
        let mut contents = Self::default();
        for samples in &mut contents.splits {
            *samples = Samples {
                offsets: input.part(usize::MAX)?,
                lengths: input.part(usize::MAX)?,
                labels: input.part(usize::MAX)?,
                names: input.part(usize::MAX)?,
                name_ends: input.part(usize::MAX)?,
                runs: input.part(usize::MAX)?,
            };
        }
        contents.extra = input.part(usize::MAX)?;
        let classes: Vec<(String, String)> = input.json()?;
        contents.classes = classes.into_iter().map(|(id, name)| Class { id, name }).collect();
        contents.label_sets = input.json()?;
        contents.notes = input.json()?;
        // Nothing of it is believed before the hash has proved that the file is whole.
        let expected = input.hash.digest().to_le_bytes();
        let mut found = [0; size_of::<u64>()];
        input.fill(&mut found)?;
        (found == expected && input.left == 0 && contents.is_sound(files)).then_some(contents)
    }

    /// Whether all of it fits together, and `files` files.
    fn is_sound(&self, files: usize) -> bool {
        let sets = self.label_sets.as_deref();
        let labels = sets.map_or(self.classes.len(), <[_]>::len);
        sets.unwrap_or_default().iter().flatten().all(|&class| (class as usize) < self.classes.len())
            && self.splits.iter().all(|samples| samples.is_sound(files, labels))
    }

    /// Saves the index, if it is worth it. A failure only costs the next start.
    pub fn save(&self, file: &Path, key: &[u8]) {
        if self.splits.iter().map(|samples| u64::from(samples.len())).sum::<u64>() >= u64::from(SAMPLES_MIN) {
            self.save_always(file, key);
        }
    }

    /// Saves the index however small: one that took a network to make. A failure only costs the next start.
    pub fn save_always(&self, file: &Path, key: &[u8]) {
        let written = file.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| self.write_whole(file, key));
        if let Err(error) = written {
            tracing::debug!("the index is not remembered in {}: {error}", escaped(&file));
        }
    }

    /// Writes the index to a file that is whole as soon as it has its name.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_whole(&self, file: &Path, key: &[u8]) -> io::Result<()> {
        let partial = file.with_extension(format!("{}.partial", std::process::id()));
        let written =
            File::create(&partial).and_then(|new| self.write(new, key)).and_then(|()| std::fs::rename(&partial, file));
        written.inspect_err(|_| _ = std::fs::remove_file(&partial))
    }

    fn write(&self, file: File, key: &[u8]) -> io::Result<()> {
        let mut output = Output { inner: BufWriter::with_capacity(BUFFER_BYTES, file), hash: Xxh3::new() };
        output.put(MAGIC)?;
        output.part(key)?;
        for samples in &self.splits {
            let Samples { offsets, lengths, labels, names, name_ends, runs } = samples;
            output.part(offsets)?;
            output.part(lengths)?;
            output.part(labels)?;
            output.part(names)?;
            output.part(name_ends)?;
            output.part(runs)?;
        }
        output.part(&self.extra)?;
        let classes: Vec<(&str, &str)> = self.classes.iter().map(|class| (&*class.id, &*class.name)).collect();
        output.part(&serde_json::to_vec(&classes)?)?;
        output.part(&serde_json::to_vec(&self.label_sets)?)?;
        output.part(&serde_json::to_vec(&self.notes)?)?;
        let hash = output.hash.digest();
        output.inner.write_all(&hash.to_le_bytes())?;
        output.inner.flush()
    }
}

struct Output<W> {
    inner: W,
    hash: Xxh3,
}

impl<W: Write> Output<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.inner.write_all(bytes)
    }

    fn part<T: bytemuck::NoUninit>(&mut self, values: &[T]) -> io::Result<()> {
        self.put(&(values.len() as u64).to_le_bytes())?;
        self.put(bytemuck::cast_slice(values))
    }
}

struct Input<R> {
    inner: R,
    hash: Xxh3,
    /// Bytes of the file that are left.
    left: u64,
}

impl<R: Read> Input<R> {
    fn fill(&mut self, bytes: &mut [u8]) -> Option<()> {
        self.left = self.left.checked_sub(bytes.len() as u64)?;
        self.inner.read_exact(bytes).ok()?;
        self.hash.update(bytes);
        Some(())
    }

    fn json<T: DeserializeOwned>(&mut self) -> Option<T> {
        serde_json::from_slice(&self.part::<u8>(TEXTS_BYTES_MAX)?).ok()
    }

    /// An array of at most `length_max` values.
    fn part<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(&mut self, length_max: usize) -> Option<Vec<T>> {
        let mut length = [0; size_of::<u64>()];
        self.fill(&mut length)?;
        let length = usize::try_from(u64::from_le_bytes(length)).ok().filter(|length| *length <= length_max)?;
        if (length as u64).checked_mul(size_of::<T>() as u64)? > self.left {
            return None;
        }
        let mut values = Vec::new();
        while values.len() < length {
            let start = values.len();
            values.resize(length.min(start + AHEAD_BYTES / size_of::<T>()), T::zeroed());
            self.fill(bytemuck::cast_slice_mut(&mut values[start..]))?;
        }
        Some(values)
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::Location;
    use super::*;

    fn contents(count: u32) -> Contents {
        let classes = ["a", "b\n"].map(|id| Class { id: id.into(), name: format!("{id}!") }).to_vec();
        let label_sets = Some(vec![LabelSet::from([0, 1]), LabelSet::from([])]);
        let mut contents = Contents { classes, label_sets, ..Contents::default() };
        for nth in 0..count {
            let name = nth.to_string();
            let sample = Location { file: nth / 9, offset: 512, length: nth, label: nth % 2, name: name.as_bytes() };
            contents.splits[nth as usize % 2].push(sample).unwrap();
        }
        contents
    }

    #[test]
    fn an_index_is_loaded_by_its_key_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("deeper/index");
        let contents = contents(1_500);
        contents.save(&file, b"key");
        assert_eq!(Contents::load(&file, b"key", 167), Some(contents));
        assert_eq!(Contents::load(&file, b"kez", 167), None);
        assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "something was left");
    }

    #[test]
    fn a_damaged_index_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("index");
        contents(1_000).save(&file, b"key");
        let whole = std::fs::read(&file).unwrap();
        // The lengths of the first parts lie in the first bytes.
        for at in (0..64).chain([whole.len() / 2, whole.len() - 9, whole.len() - 1]) {
            for bit in [1, 0x80] {
                let mut bytes = whole.clone();
                bytes[at] ^= bit;
                std::fs::write(&file, bytes).unwrap();
                assert_eq!(Contents::load(&file, b"key", 167), None, "byte {at}");
            }
        }
        std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
        assert_eq!(Contents::load(&file, b"key", 167), None);
    }

    #[test]
    fn a_small_index_is_not_saved() {
        let dir = tempfile::tempdir().unwrap();
        contents(999).save(&dir.path().join("index"), b"key");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_index_that_does_not_hold_together_is_none() {
        let whole = contents(1_500);
        let read = |contents: &Contents, files| {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("index");
            contents.write_whole(&file, b"key").unwrap();
            Contents::load(&file, b"key", files)
        };
        assert_eq!(read(&whole, 167), Some(whole.clone()));
        assert_eq!(read(&whole, 166), None, "a file that is not there");
        let changes: [fn(&mut Contents); 13] = [
            |contents| contents.classes.truncate(1),
            |contents| contents.label_sets.as_mut().unwrap().truncate(1),
            |contents| _ = contents.splits[0].offsets.pop(),
            |contents| contents.splits[0].lengths.push(1),
            |contents| contents.splits[0].labels[7] = 2,
            |contents| _ = contents.splits[1].labels.pop(),
            |contents| _ = contents.splits[0].names.pop(),
            |contents| contents.splits[0].names.push(b'x'),
            |contents| contents.splits[0].name_ends.swap(3, 4),
            |contents| contents.splits[0].runs.clear(),
            |contents| contents.splits[0].runs[0][0] = 1,
            |contents| contents.splits[0].runs.swap(1, 2),
            |contents| contents.splits[0].runs.push([5_000, 3]),
        ];
        for (nth, change) in changes.into_iter().enumerate() {
            let mut changed = whole.clone();
            change(&mut changed);
            assert_eq!(read(&changed, 167), None, "change {nth}");
        }
    }

    #[test]
    fn memory_is_not_taken_for_what_an_index_only_claims() {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([3_u64.to_le_bytes().as_slice(), b"key", &(1_u64 << 40).to_le_bytes()].concat());
        // However large its store says that it is.
        assert_eq!(Contents::read(&bytes[..], 1 << 50, b"key", 1), None);
    }
}

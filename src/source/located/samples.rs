//! Where samples lie in their files, packed: 20 bytes and the name a sample.

use crate::types::{ClassId, SampleId};
use std::fmt;

/// The samples of one split, file after file.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Samples {
    /// First byte of each sample in its file.
    pub(super) offsets: Vec<u64>,
    /// Bytes of each sample; `u32::MAX` where they are more.
    pub(super) lengths: Vec<u32>,
    pub(super) labels: Vec<ClassId>,
    /// Names, end to end.
    pub(super) names: Vec<u8>,
    /// For each sample, where its name ends in `names`; it begins where the previous one ends.
    pub(super) name_ends: Vec<u32>,
    /// For each file that has samples, in their order: the first sample, and the file's number.
    pub(super) runs: Vec<[u32; 2]>,
}

/// A sample's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location<'a> {
    /// The number of its file.
    pub file: u32,
    /// Its first byte in the file.
    pub offset: u64,
    /// Its bytes; `u32::MAX` where they are more.
    pub length: u32,
    /// Its class.
    pub label: ClassId,
    /// Its name within the file.
    pub name: &'a [u8],
}

/// There are more samples, or longer names, than 32 bits can count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl Samples {
    /// Appends a sample. Samples of one file come one after another.
    ///
    /// # Errors
    /// When the split is full.
    pub fn push(&mut self, sample: Location) -> Result<(), Full> {
        let id = u32::try_from(self.offsets.len()).map_err(|_| Full)?;
        let name_end = u32::try_from(self.names.len() + sample.name.len()).map_err(|_| Full)?;
        if self.runs.last().is_none_or(|&[_, file]| file != sample.file) {
            self.runs.push([id, sample.file]);
        }
        self.offsets.push(sample.offset);
        self.lengths.push(sample.length);
        self.labels.push(sample.label);
        self.names.extend_from_slice(sample.name);
        self.name_ends.push(name_end);
        Ok(())
    }

    /// Whether every sample has a place in one of `files` files, a label below `label_count`, and a name.
    pub fn is_sound(&self, files: usize, label_count: usize) -> bool {
        let Self { offsets, lengths, labels, names, name_ends, runs } = self;
        let count = offsets.len();
        let are_counted =
            u32::try_from(count).is_ok() && [lengths, labels, name_ends].iter().all(|all| all.len() == count);
        are_counted
            && labels.iter().all(|&label| (label as usize) < label_count)
            && name_ends.is_sorted()
            && name_ends.last().map_or(0, |&end| end as usize) == names.len()
            && runs.first().map_or(count == 0, |&[first, _]| first == 0)
            && runs.is_sorted_by(|a, b| a[0] < b[0])
            && runs.iter().all(|&[first, file]| (first as usize) < count && (file as usize) < files)
    }

    /// Number of samples.
    pub fn len(&self) -> u32 {
        self.offsets.len() as u32
    }

    /// Where a sample is.
    ///
    /// # Panics
    /// When there is no such sample.
    pub fn get(&self, sample: SampleId) -> Location<'_> {
        let at = sample as usize;
        let run = self.runs.partition_point(|&[first, _]| first <= sample) - 1;
        let start = if at == 0 { 0 } else { self.name_ends[at - 1] as usize };
        Location {
            file: self.runs[run][1],
            offset: self.offsets[at],
            length: self.lengths[at],
            label: self.labels[at],
            name: &self.names[start..self.name_ends[at] as usize],
        }
    }

    /// The class of a sample.
    pub fn label(&self, sample: SampleId) -> ClassId {
        self.labels[sample as usize]
    }

    /// All samples, in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = Location<'_>> {
        (0..self.len()).map(|sample| self.get(sample))
    }

    /// Bytes that are allocated.
    pub fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.offsets.capacity() * size_of::<u64>()
            + (self.lengths.capacity() + self.labels.capacity() + self.name_ends.capacity()) * size_of::<u32>()
            + self.names.capacity()
            + self.runs.capacity() * size_of::<[u32; 2]>()
    }

    /// Frees what pushing reserved.
    pub fn shrink_to_fit(&mut self) {
        let Self { offsets, lengths, labels, names, name_ends, runs } = self;
        offsets.shrink_to_fit();
        [lengths, labels, name_ends].into_iter().for_each(Vec::shrink_to_fit);
        names.shrink_to_fit();
        runs.shrink_to_fit();
    }
}

/// By its size: a list of a million names helps nobody.
impl fmt::Debug for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Samples").field("len", &self.len()).field("bytes", &self.bytes()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_give_back_what_was_pushed() {
        let pushed: Vec<_> = [(0, 512, "a"), (0, 1_024, ""), (3, 0, "ccc"), (3, 1 << 40, "\u{e9}"), (4, 7, "e")]
            .into_iter()
            .zip(0..)
            .map(|((file, offset, name), label)| Location { file, offset, length: 9, label, name: name.as_bytes() })
            .collect();
        let mut samples = Samples::default();
        pushed.iter().for_each(|&sample| samples.push(sample).unwrap());
        assert_eq!((samples.len(), samples.iter().collect::<Vec<_>>()), (5, pushed));
        assert_eq!(samples.label(3), 3);
    }

    /// ImageNet-1k by its counts and the form of its keys in public shards.
    #[test]
    fn a_sample_of_imagenet_takes_at_most_64_bytes() {
        let mut samples = Samples::default();
        for nth in 0..1_281_167_u32 {
            let (class, image) = (1_440_764 + nth % 1_000 * 14_000, 10_000 + nth / 1_000);
            let name = format!("n{class:08}_{image}_n{class:08}");
            let (file, offset) = (nth / 1_000, u64::from(nth % 1_000) * 111_000);
            let sample = Location { file, offset, length: 110_000, label: nth % 1_000, name: name.as_bytes() };
            samples.push(sample).unwrap();
        }
        samples.shrink_to_fit();
        let bytes_per_sample = samples.bytes() as f64 / f64::from(samples.len());
        println!("{bytes_per_sample:.1} bytes per sample");
        assert!(bytes_per_sample <= 64.0, "{bytes_per_sample} bytes per sample");
    }
}

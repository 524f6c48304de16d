//! A part of a source: fewer samples, and a validation split made of training samples.
//!
//! What is chosen depends on the samples' names and no random number, so it is the same in each run and on each machine, and images that
//! are added change little of it. The vocabulary stays that of all training samples.

use super::{Ahead, Class, DatasetError, Fraction, ReadError, Selection, Source, Stamp};
use crate::escape::escaped;
use crate::status::Fetched;
use crate::types::{ClassId, LabelSet, SampleId, Split};
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// The samples of another source that were chosen.
#[derive(Debug)]
pub struct Subset {
    inner: Arc<dyn Source>,
    /// What each split consists of.
    parts: [Part; Split::ALL.len()],
    notes: Vec<String>,
}

/// The samples of one split.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    /// The split of the other source that they are from.
    split: Split,
    /// Their ids there, ascending; all of them where not set.
    ids: Option<Vec<SampleId>>,
}

impl Subset {
    /// Chooses from `inner`.
    ///
    /// # Errors
    /// When a list names what is not there, or there is nothing to set aside as the validation split.
    pub fn new(inner: Arc<dyn Source>, selection: &Selection) -> Result<Self, DatasetError> {
        let Selection { samples, holdout, max_samples } = selection;
        let mut notes = inner.notes().to_vec();
        let parts = [Split::Train, Split::Val].map(|split| Part { split, ids: None });
        let mut subset = Self { inner, parts, notes: Vec::new() };
        if let Some(list) = samples {
            subset.choose(list)?;
            notes.push(format!("{} of {} (--samples)", subset.counts(), subset.all()));
        }
        if let Some(holdout) = *holdout {
            subset.hold_out(holdout)?;
            notes.push(format!("{} set aside of the training images (--holdout {holdout})", subset.len(Split::Val)));
        }
        if let Some(most) = *max_samples {
            let before = subset.counts();
            subset.cut(most);
            notes.push(format!("{} of {before} (--max-samples {most})", subset.counts()));
        }
        subset.notes = notes;
        Ok(subset)
    }

    /// Keeps the samples that the file `list` names.
    fn choose(&mut self, list: &Path) -> Result<(), DatasetError> {
        let refused = |cause: String| DatasetError::Samples { path: list.to_owned(), cause };
        let text = std::fs::read_to_string(list).map_err(DatasetError::io("read", list))?;
        let lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty());
        let mut wanted: HashMap<String, u32> = lines.map(|line| (line.to_owned(), 0)).collect();
        for part in &mut self.parts {
            let is_wanted = |&id: &SampleId| {
                let name = self.inner.name(part.split, id);
                // A list may have the files' own names, as those that are published for ImageNet do.
                let own = name.rsplit('/').next().expect("one part");
                let count = if wanted.contains_key(&name) { wanted.get_mut(&name) } else { wanted.get_mut(own) };
                count.map(|count| *count += 1).is_some()
            };
            let ids: Vec<SampleId> = (0..self.inner.len(part.split)).filter(is_wanted).collect();
            part.ids = (!ids.is_empty()).then_some(ids);
        }
        let of_count = |is_it: fn(u32) -> bool| -> Vec<&str> {
            let mut names: Vec<_> =
                wanted.iter().filter(|&(_, &count)| is_it(count)).map(|(name, _)| name.as_str()).collect();
            names.sort_unstable();
            names
        };
        if let missing @ [first, ..] = &*of_count(|count| count == 0) {
            return Err(refused(format!(
                "{} of its names are not in the data set, e.g. {}",
                missing.len(),
                escaped(*first)
            )));
        }
        if let [first, ..] = *of_count(|count| count > 1) {
            return Err(refused(format!("{} is the name of several samples: use their paths", escaped(first))));
        }
        if wanted.is_empty() {
            return Err(refused("it names no sample".to_owned()));
        }
        Ok(())
    }

    /// Makes a part of each training class, or where samples have several labels of each set of labels, the validation split.
    fn hold_out(&mut self, holdout: Fraction) -> Result<(), DatasetError> {
        let location = self.inner.location();
        let samples = self.len(Split::Val);
        if samples > 0 {
            let example = self.name(Split::Val, 0);
            return Err(DatasetError::HoldoutBesideVal { location, holdout, samples, example });
        }
        let sets = self.label_sets().map(<[_]>::len);
        let mut by_class = vec![Vec::new(); sets.unwrap_or(self.classes().len())];
        for id in self.ids(Split::Train) {
            let class = self.inner.label(Split::Train, id) as usize;
            by_class[class].push((self.hash(Split::Train, id), id));
        }
        if sets.is_some() {
            // Most sets of labels may have an image or two: one of each would be more than was asked for.
            let (large, small): (Vec<_>, Vec<_>) =
                by_class.into_iter().partition(|of_set| holdout.has_one_of(of_set.len()));
            by_class = large;
            by_class.push(small.concat());
        }
        let [mut train, mut val] = [Vec::new(), Vec::new()];
        for mut class in by_class {
            class.sort_unstable();
            let (aside, rest) = class.split_at(holdout.of(class.len()));
            val.extend(aside.iter().map(|&(_, id)| id));
            train.extend(rest.iter().map(|&(_, id)| id));
        }
        if val.is_empty() {
            return Err(DatasetError::NothingToHoldOut { location, holdout });
        }
        self.parts = [train, val].map(|mut ids| {
            ids.sort_unstable();
            Part { split: Split::Train, ids: Some(ids) }
        });
        Ok(())
    }

    /// Keeps at most so many samples of each split.
    fn cut(&mut self, most: NonZeroU32) {
        for &split in Split::ALL {
            if self.len(split) > most.get() {
                let from = self.parts[split as usize].split;
                let mut hashed: Vec<_> = self.ids(split).map(|id| (self.hash(from, id), id)).collect();
                hashed.sort_unstable();
                let mut ids: Vec<_> = hashed.into_iter().take(most.get() as usize).map(|(_, id)| id).collect();
                ids.sort_unstable();
                self.parts[split as usize].ids = Some(ids);
            }
        }
    }

    /// The samples of a split, by their ids in the other source.
    fn ids(&self, split: Split) -> impl Iterator<Item = SampleId> {
        (0..self.len(split)).map(move |sample| self.of(split, sample).1)
    }

    /// What chance a sample has to be chosen.
    fn hash(&self, split: Split, id: SampleId) -> u64 {
        xxh3_64(self.inner.name(split, id).as_bytes())
    }

    /// A sample's split and id in the other source.
    fn of(&self, split: Split, sample: SampleId) -> (Split, SampleId) {
        let part = &self.parts[split as usize];
        (part.split, part.ids.as_ref().map_or(sample, |ids| ids[sample as usize]))
    }

    fn counts(&self) -> String {
        format!("{} training and {} validation images", self.len(Split::Train), self.len(Split::Val))
    }

    fn all(&self) -> String {
        format!("{} and {}", self.inner.len(Split::Train), self.inner.len(Split::Val))
    }
}

impl Source for Subset {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn classes(&self) -> &[Class] {
        self.inner.classes()
    }

    fn label_sets(&self) -> Option<&[LabelSet]> {
        self.inner.label_sets()
    }

    fn len(&self, split: Split) -> u32 {
        let part = &self.parts[split as usize];
        part.ids.as_ref().map_or_else(|| self.inner.len(part.split), |ids| ids.len() as u32)
    }

    fn label(&self, split: Split, sample: SampleId) -> ClassId {
        let (split, id) = self.of(split, sample);
        self.inner.label(split, id)
    }

    fn name(&self, split: Split, sample: SampleId) -> String {
        let (split, id) = self.of(split, sample);
        self.inner.name(split, id)
    }

    fn read(&self, split: Split, sample: SampleId, bytes: &mut Vec<u8>) -> Result<Option<Stamp>, ReadError> {
        let (split, id) = self.of(split, sample);
        self.inner.read(split, id, bytes)
    }

    fn stamp(&self, split: Split, sample: SampleId) -> Option<Stamp> {
        let (split, id) = self.of(split, sample);
        self.inner.stamp(split, id)
    }

    /// Those of the other source that have a sample left.
    fn shards(&self, split: Split) -> Vec<SampleId> {
        let Part { split, ids } = &self.parts[split as usize];
        let mut shards = self.inner.shards(*split);
        if let Some(ids) = ids {
            shards.iter_mut().for_each(|first| *first = ids.partition_point(|id| id < first) as u32);
            // A shard that begins where the next one does, or at the end, is empty.
            shards.dedup();
            shards.retain(|&first| (first as usize) < ids.len());
        }
        shards
    }

    fn will_read(&self, split: Split, now: &[SampleId], next: &[SampleId]) -> Option<Ahead> {
        let inner = |firsts: &[SampleId]| firsts.iter().map(|&first| self.of(split, first).1).collect::<Vec<_>>();
        self.inner.will_read(self.parts[split as usize].split, &inner(now), &inner(next))
    }

    fn fetched(&self) -> Option<Fetched> {
        self.inner.fetched()
    }

    fn hash_samples(&self, split: Split, hash: &mut Xxh3) {
        let part = &self.parts[split as usize];
        self.inner.hash_samples(part.split, hash);
        for id in part.ids.iter().flatten() {
            hash.update(&id.to_le_bytes());
        }
    }

    /// Those of samples that were left out, too: what remains of the split has labels of the same vocabulary.
    fn hash_labels(&self, split: Split, hash: &mut Xxh3) {
        self.inner.hash_labels(self.parts[split as usize].split, hash);
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DataSet, open};
    use super::*;
    use std::collections::BTreeSet;

    /// A set of 40 images of `a`, 20 of `b` and one of `c`; its validation images where wanted.
    fn set(val: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let train = [("a", 40), ("b", 20), ("c", 1)].into_iter();
        let train =
            train.flat_map(|(class, count)| (0..count).map(move |nth| format!("train/{class}/{class}{nth}.jpg")));
        for path in train.chain(val.iter().map(|path| format!("val/{path}"))) {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, path.file_name().unwrap().as_encoded_bytes()).unwrap();
        }
        dir
    }

    fn chosen(dir: &Path, selection: Selection) -> Result<Arc<dyn Source>, DatasetError> {
        open(&DataSet { selection, cache_dir: Some(dir.join(".cache")), ..DataSet::at(dir) }, &mut |_| {})
    }

    fn holdout(part: &str) -> Selection {
        Selection { holdout: Some(part.parse().unwrap()), ..Selection::default() }
    }

    fn names(source: &dyn Source, split: Split) -> Vec<String> {
        (0..source.len(split)).map(|sample| source.name(split, sample)).collect()
    }

    fn identity(source: &dyn Source, split: Split) -> u64 {
        let mut hash = Xxh3::new();
        source.hash_samples(split, &mut hash);
        hash.digest()
    }

    #[test]
    fn a_part_of_each_class_is_set_aside_and_reads_as_what_it_is() {
        let dir = set(&[]);
        let whole = chosen(dir.path(), Selection::default()).unwrap();
        let source = chosen(dir.path(), holdout("0.25")).unwrap();
        let [train, val] = [Split::Train, Split::Val].map(|split| names(&*source, split));
        let of = |names: &[String], class: &str| names.iter().filter(|name| name.starts_with(class)).count();
        let counts = ["train/a", "train/b", "train/c"].map(|class| (of(&train, class), of(&val, class)));
        assert_eq!(counts, [(30, 10), (15, 5), (1, 0)]);
        let all: BTreeSet<_> = train.iter().chain(&val).cloned().collect();
        assert_eq!(all.into_iter().collect::<Vec<_>>(), {
            let mut names = names(&*whole, Split::Train);
            names.sort_unstable();
            names
        });
        for (split, names) in [(Split::Train, &train), (Split::Val, &val)] {
            let mut bytes = Vec::new();
            for (sample, name) in (0..).zip(names) {
                source.read(split, sample, &mut bytes).unwrap();
                assert!(name.ends_with(std::str::from_utf8(&bytes).unwrap()), "{name}");
                assert_eq!(source.classes()[source.label(split, sample) as usize].id, name[6..7]);
            }
        }
        assert_ne!(identity(&*source, Split::Train), identity(&*whole, Split::Train));
        assert_ne!(identity(&*source, Split::Train), identity(&*source, Split::Val));
        assert_eq!(source.notes(), ["15 set aside of the training images (--holdout 0.25)"]);
    }

    /// Labels of several classes: sets of many images are divided, those of a few together.
    #[test]
    fn a_holdout_of_several_labels_is_of_each_set() {
        let dir = tempfile::tempdir().unwrap();
        let label = |nth: usize| match nth {
            0..40 => "cat|dog".to_owned(),
            40..60 => "dog".to_owned(),
            // A set each.
            _ => format!("cat|x{nth}"),
        };
        let rows: Vec<_> = (0..100).map(|nth| format!("{nth}.jpg,{}\n", label(nth))).collect();
        (0..100).for_each(|nth| std::fs::write(dir.path().join(format!("{nth}.jpg")), "").unwrap());
        std::fs::write(dir.path().join("metadata.csv"), format!("file,labels\n{}", rows.concat())).unwrap();
        let source = chosen(dir.path(), holdout("0.1")).unwrap();
        let mut found = [0; 3];
        for sample in 0..source.len(Split::Val) {
            let name = source.name(Split::Val, sample);
            let nth: usize = name.strip_suffix(".jpg").unwrap().parse().unwrap();
            found[[0..40, 40..60, 60..100].iter().position(|of| of.contains(&nth)).unwrap()] += 1;
        }
        assert_eq!(found, [4, 2, 4]);
        assert_eq!(source.len(Split::Train), 90);
    }

    #[test]
    fn images_that_are_added_leave_most_of_a_holdout_as_it_was() {
        let dir = set(&[]);
        let before: BTreeSet<_> =
            names(&*chosen(dir.path(), holdout("0.25")).unwrap(), Split::Val).into_iter().collect();
        for nth in 0..4 {
            std::fs::write(dir.path().join(format!("train/a/new{nth}.jpg")), "").unwrap();
        }
        let after: BTreeSet<_> =
            names(&*chosen(dir.path(), holdout("0.25")).unwrap(), Split::Val).into_iter().collect();
        assert_eq!(after.len(), before.len() + 1);
        let kept = after.intersection(&before).count();
        assert!(kept + 4 >= before.len(), "{kept} of {}", before.len());
    }

    #[test]
    fn a_holdout_beside_a_validation_split_or_of_nothing_is_refused() {
        let error = chosen(set(&["a/1.jpg"]).path(), holdout("0.1")).unwrap_err().to_string();
        assert!(error.contains("val/a/1.jpg") && error.contains("--holdout 0.1"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("train/a")).unwrap();
        std::fs::write(dir.path().join("train/a/1.jpg"), "").unwrap();
        let error = chosen(dir.path(), holdout("0.1")).unwrap_err();
        assert!(matches!(error, DatasetError::NothingToHoldOut { .. }), "{error}");
    }

    #[test]
    fn at_most_so_many_samples_are_taken_with_classes_in_proportion() {
        let dir = set(&["a/1.jpg", "b/2.jpg"]);
        let most = |most| {
            chosen(dir.path(), Selection { max_samples: NonZeroU32::new(most), ..Selection::default() }).unwrap()
        };
        let (whole, source) = (most(1_000), most(30));
        assert_eq!((source.len(Split::Train), source.len(Split::Val)), (30, 2));
        let train = names(&*source, Split::Train);
        assert!(train.is_sorted() && names(&*most(30), Split::Train) == train);
        let of_a = train.iter().filter(|name| name.starts_with("train/a")).count();
        assert!((15..=25).contains(&of_a), "{of_a} of 30, where 20 are expected");
        assert_eq!(source.classes().len(), 3, "the vocabulary is that of all");
        assert_eq!(identity(&*source, Split::Val), identity(&*whole, Split::Val));
        assert_eq!(
            identity(&*whole, Split::Train),
            identity(&*chosen(dir.path(), Selection::default()).unwrap(), Split::Train)
        );
    }

    #[test]
    fn a_list_chooses_by_paths_and_by_file_names() {
        let dir = set(&["a/1.jpg", "b/2.jpg"]);
        let list = dir.path().join("list.txt");
        let of = |text: &str| {
            std::fs::write(&list, text).unwrap();
            chosen(dir.path(), Selection { samples: Some(list.clone()), ..Selection::default() })
        };
        let source = of("b3.jpg\r\ntrain/a/a7.jpg\n\n").unwrap();
        assert_eq!(names(&*source, Split::Train), ["train/a/a7.jpg", "train/b/b3.jpg"]);
        assert_eq!(source.len(Split::Val), 2, "a split of which none is named stays whole");
        assert_eq!(names(&*of("val/b/2.jpg\na1.jpg").unwrap(), Split::Val), ["val/b/2.jpg"]);
        for (text, why) in [("a1.jpg\nx\x1b.jpg\n", "x\\x1b.jpg"), ("\n", "names no sample")] {
            let error = of(text).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("list.txt"), "{error}");
        }
        std::fs::write(dir.path().join("train/b/a1.jpg"), "").unwrap();
        assert!(of("a1.jpg").unwrap_err().to_string().contains("several samples"));
    }

    #[test]
    fn a_part_has_the_shards_of_which_it_has_samples() {
        /// Shards of 10, 1, 20 and 4 samples.
        #[derive(Debug)]
        struct Sharded(std::sync::Mutex<Vec<Vec<SampleId>>>);

        impl Source for Sharded {
            fn location(&self) -> String {
                "here".to_owned()
            }
            fn classes(&self) -> &[Class] {
                &[]
            }
            fn len(&self, _: Split) -> u32 {
                35
            }
            fn label(&self, _: Split, _: SampleId) -> ClassId {
                0
            }
            fn name(&self, _: Split, sample: SampleId) -> String {
                sample.to_string()
            }
            fn shards(&self, _: Split) -> Vec<SampleId> {
                vec![0, 10, 11, 31]
            }
            fn will_read(&self, _: Split, now: &[SampleId], next: &[SampleId]) -> Option<Ahead> {
                self.0.lock().unwrap().extend([now.to_vec(), next.to_vec()]);
                None
            }
            fn read(&self, _: Split, _: SampleId, _: &mut Vec<u8>) -> Result<Option<Stamp>, ReadError> {
                unreachable!()
            }
            fn stamp(&self, _: Split, _: SampleId) -> Option<Stamp> {
                None
            }
            fn hash_samples(&self, _: Split, _: &mut Xxh3) {}
        }

        let inner = Arc::new(Sharded(std::sync::Mutex::default()));
        for (ids, shards) in [
            (vec![0, 9, 10, 30, 34], vec![0, 2, 3, 4]),
            (vec![9, 12, 13], vec![0, 1]),
            (vec![11, 33], vec![0, 1]),
            (vec![34], vec![0]),
            (vec![], vec![]),
        ] {
            let part = Part { split: Split::Train, ids: Some(ids.clone()) };
            let subset = Subset { inner: inner.clone(), parts: [part.clone(), part], notes: Vec::new() };
            assert_eq!(subset.shards(Split::Train), shards, "{ids:?}");
            subset.will_read(Split::Val, &shards, &shards[..shards.len().min(1)]);
            let own: Vec<SampleId> = shards.iter().map(|&first| ids[first as usize]).collect();
            let announced = std::mem::take(&mut *inner.0.lock().unwrap());
            assert_eq!(announced, [own.clone(), own[..own.len().min(1)].to_vec()]);
        }
    }
}

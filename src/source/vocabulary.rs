//! The vocabulary of a data set: which classes its labels name, and the label of each.
//!
//! Each source reads labels in its own way and hands them over as they are written: [`Written`]. Those are numbers, which are the labels, or names,
//! whose labels are their places among the names that training has, sorted by bytes. Labels of validation that training has not are refused by the
//! source, which knows where they stand. Where an image has several labels, its label is the number of their set: [`Sets`].

use super::{Class, classes};
use crate::escape::escaped;
use crate::types::{ClassId, LabelSet};
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use xxhash_rust::xxh3::Xxh3;

/// A data set has fewer classes than this: labels that are numbers count them.
pub const CLASSES_MAX: u32 = 1 << 20;

/// A label as a data set writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written<'a> {
    /// The label itself.
    Number(u32),
    /// The name of a class, of any bytes.
    Name(&'a [u8]),
}

/// Some labels of a data set are numbers, and others names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mixed;

/// The classes of a data set, and which label is which.
#[derive(Debug)]
pub struct Vocabulary {
    /// In the order of their labels.
    pub classes: Vec<Class>,
    /// Names of classes by their labels, sorted by bytes; `None` where numbers are the labels.
    names: Option<Vec<Box<[u8]>>>,
    /// Whether validation has a number that is larger than any of training.
    exceeds_training: bool,
}

impl Vocabulary {
    /// Of all labels of the training and of the validation split. Names are those of training. Numbers are those up to the largest of both splits:
    /// numbers that are left out are classes, too.
    ///
    /// # Errors
    /// When some are numbers, others names.
    pub fn of<'a>(
        training: impl IntoIterator<Item = Written<'a>>,
        validation: impl IntoIterator<Item = Written<'a>>,
    ) -> Result<Self, Mixed> {
        let (mut names, mut has_names, mut in_train, mut in_val) = (BTreeSet::new(), false, None, None);
        for written in training {
            match written {
                Written::Number(number) => in_train = in_train.max(Some(number)),
                Written::Name(name) => has_names |= names.insert(name),
            }
        }
        for written in validation {
            match written {
                Written::Number(number) => in_val = in_val.max(Some(number)),
                Written::Name(_) => has_names = true,
            }
        }
        match in_train.max(in_val) {
            Some(_) if has_names => Err(Mixed),
            Some(last) => Ok(Self { exceeds_training: in_val > in_train, ..Self::numbers(last) }),
            None => Ok(Self::sorted(names)),
        }
    }

    /// Of names alone.
    pub fn of_names<'a>(training: impl Iterator<Item = &'a [u8]>) -> Self {
        Self::sorted(training.collect())
    }

    /// Of texts, which are numbers where all are written as whole numbers are, and else names.
    pub fn of_texts<'a>(training: impl Iterator<Item = &'a str> + Clone) -> Self {
        let numbers: Option<Vec<u32>> = training.clone().map(number).collect();
        match numbers.and_then(|numbers| numbers.into_iter().max()) {
            Some(last) => Self::numbers(last),
            None => Self::of_names(training.map(str::as_bytes)),
        }
    }

    /// Of classes that are listed: labels are numbers, positions in the list.
    pub fn listed(names: impl Iterator<Item = String>) -> Self {
        let class = |(id, name): (usize, String)| Class { id: id.to_string(), name: escaped(&name).to_string() };
        Self { classes: names.enumerate().map(class).collect(), names: None, exceeds_training: false }
    }

    fn numbers(last: u32) -> Self {
        Self::listed((0..=last).map(|number| number.to_string()))
    }

    fn sorted(names: BTreeSet<&[u8]>) -> Self {
        let class = |name: &&[u8]| {
            let id = String::from_utf8_lossy(name).into_owned();
            let readable = classes::readable(&id).map(str::to_owned);
            Class { name: readable.unwrap_or_else(|| escaped(OsStr::from_bytes(name)).to_string()), id }
        };
        let classes = names.iter().map(class).collect();
        Self { classes, names: Some(names.into_iter().map(Box::from).collect()), exceeds_training: false }
    }

    /// The label; `None` when it is none of the vocabulary.
    pub fn label(&self, written: Written<'_>) -> Option<ClassId> {
        match (written, &self.names) {
            (Written::Number(number), None) => Some(number).filter(|&number| (number as usize) < self.classes.len()),
            (Written::Name(name), Some(names)) => {
                names.binary_search_by(|known| (**known).cmp(name)).ok().map(|at| at as ClassId)
            }
            _ => None,
        }
    }

    /// The label of a text, which is a number or a name as [`of_texts`](Self::of_texts) has it.
    pub fn label_of_text(&self, text: &str) -> Option<ClassId> {
        self.label(match &self.names {
            None => Written::Number(number(text)?),
            Some(_) => Written::Name(text.as_bytes()),
        })
    }

    /// What a user should know.
    pub fn note(&self) -> Option<String> {
        self.exceeds_training.then(|| "some labels of validation are larger than any of training".to_owned())
    }
}

/// A text that is written as a whole number is.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|&number: &u32| number < CLASSES_MAX && number.to_string() == text)
}

/// The distinct sets of labels of a data set with several labels an image, in the order of their first use.
#[derive(Debug, Default)]
pub struct Sets {
    sets: Vec<LabelSet>,
    numbers: HashMap<LabelSet, u32>,
}

impl Sets {
    /// The number of a set of labels.
    pub fn number(&mut self, mut labels: Vec<ClassId>) -> u32 {
        labels.sort_unstable();
        labels.dedup();
        let (sets, set) = (&mut self.sets, LabelSet::from(labels));
        *self.numbers.entry(set).or_insert_with_key(|set| {
            sets.push(set.clone());
            sets.len() as u32 - 1
        })
    }

    /// Those so far, by their numbers.
    pub fn as_slice(&self) -> &[LabelSet] {
        &self.sets
    }

    /// All of them.
    pub fn into_sets(self) -> Vec<LabelSet> {
        self.sets
    }
}

/// Feeds the labels of a split's samples to its identity, with the classes, and the sets that labels are numbers of.
pub fn hash_labels(labels: &[ClassId], classes: &[Class], sets: Option<&[LabelSet]>, hash: &mut Xxh3) {
    hash.update(bytemuck::cast_slice(labels));
    for class in classes {
        hash.update(class.id.as_bytes());
        hash.update(&[0]);
    }
    for set in sets.unwrap_or_default() {
        hash.update(bytemuck::cast_slice(set));
        hash.update(&ClassId::MAX.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(vocabulary: Vocabulary) -> Vec<String> {
        vocabulary.classes.into_iter().map(|class| class.id).collect()
    }

    fn up_to(last: u32) -> Vec<String> {
        (0..=last).map(|number| number.to_string()).collect()
    }

    #[test]
    fn texts_are_numbers_where_all_are_written_so() {
        let of = |texts: &[&str]| ids(Vocabulary::of_texts(texts.iter().copied()));
        assert_eq!(of(&["b", "a", "b", "10"]), ["10", "a", "b"]);
        assert_eq!(of(&["3", "1", "10"]), up_to(10));
        assert_eq!(of(&["02", "1"]), ["02", "1"]);
        assert_eq!(of(&["4000000000", "1"]), ["1", "4000000000"]);
        let names = Vocabulary::of_texts(["dog", "7"].into_iter());
        assert_eq!(["dog", "7", "cow"].map(|text| names.label_of_text(text)), [Some(1), Some(0), None]);
        let numbers = Vocabulary::of_texts(["2", "0"].into_iter());
        assert_eq!(["1", "3", "01", "dog"].map(|text| numbers.label_of_text(text)), [Some(1), None, None, None]);
    }

    #[test]
    fn names_are_those_of_training_and_numbers_those_of_both_splits() {
        use Written::{Name, Number};
        let names = Vocabulary::of([Name(b"b"), Name(b"\xFF"), Name(b"a\n"), Name(b"b")], [Name(b"c")]).unwrap();
        assert_eq!(
            [&b"a\n"[..], b"b", b"\xFF", b"c"].map(|name| names.label(Name(name))),
            [Some(0), Some(1), Some(2), None]
        );
        assert_eq!((names.label(Number(0)), names.note()), (None, None));
        let shown: Vec<_> = names.classes.iter().map(|class| (&*class.id, &*class.name)).collect();
        assert_eq!(shown, [("a\n", "a\\n"), ("b", "b"), ("\u{FFFD}", "\\xff")]);
        let numbers = Vocabulary::of([Number(1), Number(4)], [Number(6)]).unwrap();
        assert!(numbers.note().is_some_and(|note| note.contains("larger than any of training")));
        assert_eq!([6, 7].map(|number| numbers.label(Number(number))), [Some(6), None]);
        assert_eq!((numbers.label(Name(b"1")), ids(numbers)), (None, up_to(6)));
        assert_eq!(Vocabulary::of([Number(4)], [Number(4)]).unwrap().note(), None);
        for mixed in [[Number(1), Name(b"1")], [Name(b"1"), Number(1)]] {
            assert_eq!(Vocabulary::of(mixed, []).unwrap_err(), Mixed);
            assert_eq!(Vocabulary::of([mixed[0]], [mixed[1]]).unwrap_err(), Mixed);
        }
    }

    #[test]
    fn classes_that_are_listed_are_numbered() {
        let listed = Vocabulary::listed(["ant".to_owned(), "bee".to_owned()].into_iter());
        let shown: Vec<_> = listed.classes.iter().map(|class| (&*class.id, &*class.name)).collect();
        assert_eq!(shown, [("0", "ant"), ("1", "bee")]);
        assert_eq!([1, 2].map(|number| listed.label(Written::Number(number))), [Some(1), None]);
    }

    #[test]
    fn equal_sets_have_one_number() {
        let mut sets = Sets::default();
        let numbers = [vec![2, 1], vec![], vec![1, 2, 1], vec![1]].map(|labels| sets.number(labels));
        assert_eq!(numbers, [0, 1, 0, 2]);
        assert_eq!(sets.into_sets(), [LabelSet::from([1, 2]), LabelSet::from([]), LabelSet::from([1])]);
    }
}

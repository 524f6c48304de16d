//! Classes and labels from the texts that a table gives.

use super::{Class, classes};
use crate::escape::printable;
use crate::types::{ClassId, LabelSet};
use std::collections::HashMap;

/// Above this, numbers are names: a label counts the classes.
const NUMBER_MAX: u32 = 1 << 20;

/// The classes of a data set, by the texts that name them.
#[derive(Debug, Default)]
pub struct Vocabulary {
    /// In the order of their labels.
    pub classes: Vec<Class>,
    labels: HashMap<String, ClassId>,
}

impl Vocabulary {
    /// Of the labels of the training split: sorted by their bytes; where all are whole numbers, each is its own label, and numbers that are left out
    /// are classes, too.
    pub fn of<'a>(texts: impl Iterator<Item = &'a str> + Clone) -> Self {
        let number =
            |text: &str| text.parse().ok().filter(|&number: &u32| number < NUMBER_MAX && number.to_string() == *text);
        let numbers: Option<Vec<u32>> = texts.clone().map(number).collect();
        let ids: Vec<String> = match numbers.and_then(|numbers| numbers.into_iter().max()) {
            Some(last) => (0..=last).map(|number| number.to_string()).collect(),
            None => {
                let mut ids: Vec<&str> = texts.collect();
                ids.sort_unstable();
                ids.dedup();
                ids.into_iter().map(str::to_owned).collect()
            }
        };
        let class = |id: &String| {
            let name = classes::readable(id).map_or_else(|| printable(id).to_string(), str::to_owned);
            Class { name, id: id.clone() }
        };
        let classes = ids.iter().map(class).collect();
        Self { classes, labels: ids.into_iter().zip(0..).collect() }
    }

    /// The label of a text.
    pub fn label(&self, text: &str) -> Option<ClassId> {
        self.labels.get(text).copied()
    }
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

    /// All of them.
    pub fn into_sets(self) -> Vec<LabelSet> {
        self.sets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_and_numbers_are_themselves() {
        let ids = |texts: &[&str]| {
            let vocabulary = Vocabulary::of(texts.iter().copied());
            vocabulary.classes.into_iter().map(|class| class.id).collect::<Vec<_>>()
        };
        assert_eq!(ids(&["b", "a", "b", "10"]), ["10", "a", "b"]);
        assert_eq!(ids(&["3", "1", "10"]), (0..=10).map(|number: u32| number.to_string()).collect::<Vec<_>>());
        // Not written as numbers are.
        assert_eq!(ids(&["02", "1"]), ["02", "1"]);
        assert_eq!(ids(&["4000000000", "1"]), ["1", "4000000000"]);
        let vocabulary = Vocabulary::of(["dog", "cat"].into_iter());
        assert_eq!((vocabulary.label("dog"), vocabulary.label("cow")), (Some(1), None));
    }

    #[test]
    fn equal_sets_have_one_number() {
        let mut sets = Sets::default();
        let numbers = [vec![2, 1], vec![], vec![1, 2, 1], vec![1]].map(|labels| sets.number(labels));
        assert_eq!(numbers, [0, 1, 0, 2]);
        assert_eq!(sets.into_sets(), [LabelSet::from([1, 2]), LabelSet::from([]), LabelSet::from([1])]);
    }
}

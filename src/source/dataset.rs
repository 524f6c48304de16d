//! A data set as its user names it.

use super::remote::{StoreOptions, Url};
use crate::types::{ParseError, Split};
use std::fmt;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What to open. All of it but the cache folder decides which samples there are.
#[derive(Debug, Clone, Default)]
pub struct DataSet {
    /// A folder, an archive, or a pattern of shards, which may be in an object store.
    pub data: PathBuf,
    /// Where its splits are.
    pub splits: Splits,
    /// A table of files and their labels, relative to the folder.
    pub labels: Option<PathBuf>,
    /// The column of a Parquet or Arrow table that holds the images, where more than one might.
    pub image_key: Option<String>,
    /// What holds the labels, where that is not one of the usual names: a column, or a key in the `json` of a shard's samples.
    pub label_key: Option<String>,
    /// Which of its samples count.
    pub selection: Selection,
    /// Where archives are unpacked and walks remembered; the user's cache folder, or `$MIXD_CACHE_DIR`, where not given.
    pub cache_dir: Option<PathBuf>,
    /// How objects are fetched, and where they are kept.
    pub store: StoreOptions,
}

impl DataSet {
    /// What is at a path, with its splits where they are by custom.
    pub fn at(path: &Path) -> Self {
        Self { data: path.to_owned(), ..Self::default() }
    }

    /// The address in an object store that it names first, if it names one, without what may be secret in it.
    pub fn remote_location(&self) -> Option<String> {
        let splits = Split::ALL.iter().filter_map(|&split| self.splits.of(split));
        let text = self.data.to_str().into_iter().chain(splits).find(|text| Url::is_url(text))?;
        Some(Url::shown(text))
    }
}

/// Which samples of a data set count, in this order of choices.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Selection {
    /// A file with a name of a sample in each line: only these. A split of which it names none stays whole.
    pub samples: Option<PathBuf>,
    /// How much of each training class is the validation split, where there is no other.
    pub holdout: Option<Fraction>,
    /// At most so many samples of each split, chosen by a hash of their names.
    pub max_samples: Option<NonZeroU32>,
}

/// A part of a whole: more than 0 and less than 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fraction(f64);

impl Fraction {
    /// How many of `count` it is, rounded; at least one and at most all but one, or none of fewer than two.
    pub fn of(self, count: usize) -> usize {
        if count < 2 { 0 } else { ((count as f64 * self.0).round() as usize).clamp(1, count - 1) }
    }

    /// Whether one of `count` is no more than it.
    pub fn has_one_of(self, count: usize) -> bool {
        count as f64 * self.0 >= 1.0
    }
}

impl FromStr for Fraction {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let part = text.parse().ok().filter(|part: &f64| *part > 0.0 && *part < 1.0).map(Self);
        part.ok_or_else(|| ParseError {
            what: "fraction",
            found: text.to_owned(),
            expected: "a number between 0 and 1, such as 0.1",
        })
    }
}

impl fmt::Display for Fraction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where splits are, as `train=PLACE,val=PLACE`. A place is a name in the data set, or a path of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Splits([Option<String>; Split::ALL.len()]);

impl Splits {
    /// The place that was given for a split.
    pub fn of(&self, split: Split) -> Option<&str> {
        self.0[split as usize].as_deref()
    }
}

impl FromStr for Splits {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let refused = || ParseError {
            what: "list of splits",
            found: text.to_owned(),
            expected: "train=PLACE, val=PLACE, or both with a comma between them",
        };
        // Patterns of shards hold commas, too: a place ends where the other split begins.
        let start = |split: Split| {
            let key = format!("{split}=");
            let at = if text.starts_with(&key) { Some(0) } else { text.find(&format!(",{key}")).map(|at| at + 1) };
            at.map(|at| (at, at + key.len(), split))
        };
        let mut starts: Vec<_> = Split::ALL.iter().filter_map(|&split| start(split)).collect();
        starts.sort_unstable();
        if starts.first().is_none_or(|&(at, ..)| at != 0) {
            return Err(refused());
        }
        let mut splits = Self::default();
        for (nth, &(_, begin, split)) in starts.iter().enumerate() {
            let end = starts.get(nth + 1).map_or(text.len(), |&(at, ..)| at - 1);
            let place = text.get(begin..end).filter(|place| !place.is_empty()).ok_or_else(refused)?;
            splits.0[split as usize] = Some(place.to_owned());
        }
        Ok(splits)
    }
}

impl fmt::Display for Splits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let given = Split::ALL.iter().filter_map(|&split| self.of(split).map(|place| (split, place)));
        for (nth, (split, place)) in given.enumerate() {
            write!(f, "{}{split}={place}", if nth == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fraction_takes_one_at_least_and_leaves_one() {
        for text in ["0", "1", "-0.1", "1.5", "NaN", "inf", "x", ""] {
            assert!(text.parse::<Fraction>().is_err(), "{text}");
        }
        for (part, counts) in [("0.1", [0, 1, 1, 1, 10]), ("0.5", [0, 1, 2, 5, 50]), ("0.999", [0, 1, 2, 9, 99])] {
            let part: Fraction = part.parse().unwrap();
            assert_eq!([1, 2, 3, 10, 100].map(|count| part.of(count)), counts, "{part}");
        }
    }

    #[test]
    fn splits_are_read_and_written() {
        for (text, train, val) in [
            ("train=a,val=b", Some("a"), Some("b")),
            ("val=test", None, Some("test")),
            ("val=v-{0,1}.tar,train=/x/t-{00..11}.tar", Some("/x/t-{00..11}.tar"), Some("v-{0,1}.tar")),
        ] {
            let splits: Splits = text.parse().unwrap();
            assert_eq!((splits.of(Split::Train), splits.of(Split::Val)), (train, val), "{text}");
            assert_eq!(splits.to_string().parse(), Ok(splits));
        }
        for text in ["", "train", "train=", "train=,val=b", "a,train=b", "test=a"] {
            assert!(text.parse::<Splits>().is_err(), "{text}");
        }
    }
}

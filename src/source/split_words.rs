//! The words that name splits in files' and folders' names and in tables, wherever a data set's format has none of its own.

use crate::types::Split;

/// Words of a kind, lower case, with the split that they stand for; those of a later kind of one split count where an earlier kind is missing.
pub const KINDS: [(Split, &[&str]); 3] = [
    (Split::Train, &["train", "training"]),
    (Split::Val, &["val", "valid", "validation", "dev"]),
    (Split::Val, &["test", "testing", "eval", "evaluation"]),
];

/// The kind of [`KINDS`] whose words number the test split.
pub const TEST: usize = 2;

/// The kind that a word is of, whatever its letters' case.
pub fn kind(word: &str) -> Option<usize> {
    KINDS.iter().position(|(_, words)| words.iter().any(|known| word.eq_ignore_ascii_case(known)))
}

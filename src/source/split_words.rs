//! The words that name splits in files' and folders' names and in tables, wherever a data set's format has none of its own.

use crate::types::Split;

/// Words of a kind, lower case, with the split that they stand for; those of a later kind of one split count where an earlier kind is missing.
pub const KINDS: [(Split, &[&str]); 3] = [
    (Split::Train, &["train", "training"]),
    (Split::Val, &["val", "valid", "validation", "dev"]),
    (Split::Val, &["test", "testing", "eval", "evaluation"]),
];

/// Folders beside an image folder's `train` that are its validation split where there is no `val`, in this order. They are fewer than the words, and
/// written so exactly: a folder of images called `dev` or `Test` may as well be something else.
pub const VAL_FOLDERS: [&str; 4] = ["valid", "validation", "Val", "test"];

/// The kind of [`KINDS`] whose words number the test split.
pub const TEST: usize = 2;

/// The kind that a word is of, whatever its letters' case.
pub fn kind(word: &str) -> Option<usize> {
    KINDS.iter().position(|(_, words)| words.iter().any(|known| word.eq_ignore_ascii_case(known)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_validation_are_words_for_it_and_those_of_tests_come_last() {
        let kinds = VAL_FOLDERS.map(|folder| kind(folder).unwrap());
        assert!(kinds.is_sorted() && kinds.iter().all(|&kind| KINDS[kind].0 == Split::Val), "{kinds:?}");
    }
}

//! Failed requests to stores, and what they mean for the next attempt.

/// What a failure means for the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The store or the way to it: retry.
    Passing,
    /// There is no such object.
    Missing,
    /// It is not the object that was found.
    Changed,
    /// The store will not answer this request otherwise.
    Final,
}

/// What is said of answers to a request for a range that have no range, and of those that make no sense.
pub const WHOLE_FILE: &str = "the server answers requests for a range with the whole file";
/// The same of answers that make no sense.
pub const MISUNDERSTOOD: &str = "the store's answer cannot be understood";

/// Why a request failed; its text holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct StoreError {
    /// What to do about it.
    pub trouble: Trouble,
    text: String,
}

impl StoreError {
    /// Whether the store answered what was not asked.
    pub fn is_misunderstood(&self) -> bool {
        [WHOLE_FILE, MISUNDERSTOOD].contains(&&*self.text)
    }

    /// An error of a given meaning.
    pub fn new(trouble: Trouble, text: impl Into<String>) -> Self {
        Self { trouble, text: text.into() }
    }
}

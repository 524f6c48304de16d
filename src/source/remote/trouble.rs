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

/// Why a request failed; its text holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct StoreError {
    /// What to do about it.
    pub trouble: Trouble,
    text: String,
}

impl StoreError {
    /// An error of a given meaning.
    pub fn new(trouble: Trouble, text: impl Into<String>) -> Self {
        Self { trouble, text: text.into() }
    }
}

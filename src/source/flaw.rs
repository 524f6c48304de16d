//! What is wrong with a file, as the end of a sentence that begins with its path.

use std::borrow::Cow;
use std::fmt;
use std::io;

/// What is wrong, such as «is no Parquet file: too short».
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw(Cow<'static, str>);

impl Flaw {
    /// A flaw in words that were put together.
    pub fn new(words: String) -> Self {
        Self(words.into())
    }
}

impl From<&'static str> for Flaw {
    fn from(words: &'static str) -> Self {
        Self(words.into())
    }
}

impl From<io::Error> for Flaw {
    fn from(error: io::Error) -> Self {
        Self(format!("cannot be read: {error}").into())
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

//! How a feed is shared between trainers.

use crate::types::{ParseError, named};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Seconds that a trainer may be allowed to keep others waiting: a day.
pub const MAX_LAG_S_MAX: f64 = 86_400.0;

/// Who waits for whom in a shared feed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Delivery {
    /// Every trainer sees every batch once and in order; the slowest sets the pace.
    #[default]
    Lossless,
    /// Nobody waits for a slower trainer: the fastest sets the pace, and the others skip what they miss.
    Latest,
}
named!(Delivery, "delivery", "lossless or latest", Lossless = "lossless", Latest = "latest");

/// Name of a shared feed: 1 to [`ShareName::LEN_MAX`] letters, digits, `-`, `_` and `.`.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ShareName {
    bytes: [u8; Self::LEN_MAX],
    len: u8,
}

impl ShareName {
    /// The longest name, in bytes.
    pub const LEN_MAX: usize = 64;
}

impl std::ops::Deref for ShareName {
    type Target = str;
    fn deref(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len.into()]).expect("made of ASCII")
    }
}

impl FromStr for ShareName {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if text.is_empty() || text.len() > Self::LEN_MAX || !text.bytes().all(allowed) {
            let expected = "1 to 64 letters, digits, `-`, `_` and `.`";
            return Err(ParseError { what: "name of a shared feed", found: text.to_owned(), expected });
        }
        let mut bytes = [0; Self::LEN_MAX];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self { bytes, len: text.len() as u8 })
    }
}

impl TryFrom<String> for ShareName {
    type Error = ParseError;
    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<ShareName> for String {
    fn from(name: ShareName) -> Self {
        (*name).to_owned()
    }
}

impl fmt::Debug for ShareName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for ShareName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self)
    }
}

/// How a feed is shared: trainers that name the same share, with equal specs, read the same slots.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Which feed.
    pub name: ShareName,
    /// Who waits for whom.
    pub delivery: Delivery,
    /// Seconds, above 0 and at most [`MAX_LAG_S_MAX`], for which a trainer of a lossless feed may keep others waiting for one batch
    /// before it is evicted. Waiting is sampled four times a second, so that values below a second take up to 0.75 s longer.
    pub max_lag_s: f64,
}

impl Share {
    /// The default of [`Share::max_lag_s`]: long enough to validate or to save.
    pub const MAX_LAG_S: f64 = 300.0;

    /// A lossless share whose trainers may keep others waiting for [`Share::MAX_LAG_S`].
    pub fn new(name: ShareName) -> Self {
        Self { name, delivery: Delivery::default(), max_lag_s: Self::MAX_LAG_S }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_shares_are_short_and_plain() {
        let name: ShareName = "sweep-1.a_B".parse().unwrap();
        assert_eq!((&*name, serde_json::to_string(&name).unwrap().as_str()), ("sweep-1.a_B", "\"sweep-1.a_B\""));
        for text in ["", "a b", "a/b", "ä", &"x".repeat(65)] {
            assert!(text.parse::<ShareName>().is_err(), "{text}");
        }
    }
}

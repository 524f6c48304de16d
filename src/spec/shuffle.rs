//! In which order an epoch has its samples (docs/spec/batches.md#plans).

use crate::types::ParseError;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

/// The order of an epoch's samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shuffle {
    /// That of the index, in every epoch.
    Off,
    /// A new one each epoch, of all samples.
    Global,
    /// A new one each epoch: shards in a random order, so many at a time, and the samples of these shuffled.
    Shards(NonZeroU32),
}

impl fmt::Display for Shuffle {
    /// `false`, `global` or `shards:COUNT`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("false"),
            Self::Global => f.write_str("global"),
            Self::Shards(count) => write!(f, "shards:{count}"),
        }
    }
}

impl FromStr for Shuffle {
    type Err = ParseError;
    /// Its text, or `true` for `global`.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let shards = || text.strip_prefix("shards:").and_then(|count| count.parse().ok()).map(Self::Shards);
        match text {
            "false" => Ok(Self::Off),
            "true" | "global" => Ok(Self::Global),
            _ => shards().ok_or_else(|| ParseError {
                what: "shuffle",
                found: text.to_owned(),
                expected: "true or global, false, or shards:COUNT such as shards:8",
            }),
        }
    }
}

impl Serialize for Shuffle {
    /// A truth value, or `shards:COUNT`.
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off | Self::Global => to.serialize_bool(*self == Self::Global),
            Self::Shards(_) => to.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Shuffle {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Value;
        impl Visitor<'_> for Value {
            type Value = Shuffle;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false, or a text such as shards:8")
            }
            fn visit_bool<E: Error>(self, value: bool) -> Result<Shuffle, E> {
                Ok(if value { Shuffle::Global } else { Shuffle::Off })
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Shuffle, E> {
                text.parse().map_err(E::custom)
            }
        }
        from.deserialize_any(Value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_one_text_and_one_json_and_is_read_from_both() {
        let eight = Shuffle::Shards(NonZeroU32::new(8).unwrap());
        for (shuffle, text, json) in [
            (Shuffle::Off, "false", "false"),
            (Shuffle::Global, "global", "true"),
            (eight, "shards:8", r#""shards:8""#),
        ] {
            assert_eq!((shuffle.to_string().as_str(), text.parse()), (text, Ok(shuffle)));
            assert_eq!(serde_json::to_string(&shuffle).unwrap(), json);
            assert_eq!(serde_json::from_str::<Shuffle>(json).unwrap(), shuffle);
        }
        assert_eq!("true".parse(), Ok(Shuffle::Global));
        for text in ["shards:0", "shards", "shards:-1", "yes", ""] {
            assert!(text.parse::<Shuffle>().unwrap_err().to_string().contains("shards:8"), "{text}");
        }
    }
}

//! What other ranks have read of an epoch before a feed goes on with it.

use crate::types::ParseError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The head of an epoch's order that ranks of another world size have read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Consumed {
    /// The epoch, below 2⁵⁵.
    pub epoch: u64,
    /// Samples over all ranks, each repeat counted; fewer than the epoch has.
    pub samples: u32,
}

impl fmt::Display for Consumed {
    /// `EPOCH,SAMPLES`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.epoch, self.samples)
    }
}

impl FromStr for Consumed {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let parts = text.split_once(',').and_then(|(epoch, samples)| {
            Some(Self { epoch: epoch.trim().parse().ok()?, samples: samples.trim().parse().ok()? })
        });
        parts.ok_or_else(|| ParseError {
            what: "consumed part of an epoch",
            found: text.to_owned(),
            expected: "EPOCH,SAMPLES such as 3,4096",
        })
    }
}

//! In place of `client.rs` where the feature `cloud` is not built in: there are no remote files.

use super::super::{ReadError, Stamp};

/// Nothing is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoteFile {}

#[expect(missing_docs, clippy::missing_errors_doc, reason = "they are client.rs's, and cannot be called")]
impl RemoteFile {
    pub fn location(&self) -> String {
        match *self {}
    }
    pub fn bytes(&self) -> u64 {
        match *self {}
    }
    pub fn stamp(&self) -> Stamp {
        match *self {}
    }
    pub fn read(&self, _: u64, _: &mut [u8]) -> Result<(), ReadError> {
        match *self {}
    }
    pub fn read_waiting(&self, _: u64, _: &mut [u8]) -> Result<(), ReadError> {
        match *self {}
    }
}

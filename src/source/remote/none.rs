//! In place of `client.rs` where the feature `cloud` is not built in: there are no remote files.

use super::super::{Ahead, ReadError, Stamp};
use crate::status::Fetched;

/// Nothing is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoteFile {}

#[expect(missing_docs, reason = "they are client.rs's, and cannot be called")]
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
    pub fn will_read(_: &[Self], _: &[Self]) -> Option<Ahead> {
        None
    }
    pub fn fetched(&self) -> Fetched {
        match *self {}
    }
    pub fn read(&self, _: u64, _: &mut [u8]) -> Result<(), ReadError> {
        match *self {}
    }
    pub fn read_waiting(&self, _: u64, _: &mut [u8]) -> Result<(), ReadError> {
        match *self {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::{DataSet, DatasetError, open};
    use std::path::Path;

    #[test]
    fn addresses_are_refused_by_name_with_the_remedy() {
        for (data, splits) in [
            ("s3://b/train-{0..9}.tar", ""),
            ("https://h/a.tar?sig=secret", ""),
            ("here", "train=gs://b/a.tar,val=az://c/b.tar"),
        ] {
            let splits = if splits.is_empty() { Default::default() } else { splits.parse().unwrap() };
            let error = open(&DataSet { splits, ..DataSet::at(Path::new(data)) }, &mut |_| {}).unwrap_err();
            let text = error.to_string();
            assert!(
                matches!(error, DatasetError::NoCloud(_)) && text.contains("://") && text.contains("`cloud`"),
                "{text}"
            );
            assert!(!text.contains("secret"), "{text}");
        }
    }
}

//! How objects are fetched and kept, as users say it.

use crate::types::{ParseError, parse_bytes};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Where fetched objects are kept, and how much of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskCache {
    /// A folder, which daemons may share.
    pub dir: PathBuf,
    /// The most bytes that are kept in it.
    pub bytes: u64,
}

impl FromStr for DiskCache {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let refused = || ParseError {
            what: "disk cache",
            found: text.to_owned(),
            expected: "DIR:SIZE, such as /scratch/mixd:200G, of at least 64M",
        };
        let (dir, size) = text.rsplit_once(':').filter(|(dir, _)| !dir.is_empty()).ok_or_else(refused)?;
        let bytes = parse_bytes(size).filter(|bytes| *bytes >= Self::BYTES_MIN).ok_or_else(refused)?;
        Ok(Self { dir: dir.into(), bytes })
    }
}

impl fmt::Display for DiskCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.dir.to_string_lossy(), self.bytes)
    }
}

impl DiskCache {
    /// The least that is useful: blocks in flight take as much.
    pub const BYTES_MIN: u64 = 64 << 20;
}

/// How objects are fetched and kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreOptions {
    /// Where they are kept; a folder in the cache folder where not given, of at most half of what is free on its disk.
    pub disk_cache: Option<DiskCache>,
    /// How long a store that does not answer is waited for.
    pub timeout: Duration,
}

impl StoreOptions {
    /// Longer than the restart of a gateway or the loss of a network link, shorter than a night.
    pub const TIMEOUT: Duration = Duration::from_secs(300);
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { disk_cache: None, timeout: Self::TIMEOUT }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_caches_are_read_and_written() {
        let cache: DiskCache = "/a:b/c:2G".parse().unwrap();
        assert_eq!(cache, DiskCache { dir: "/a:b/c".into(), bytes: 2 << 30 });
        assert_eq!(cache.to_string().parse(), Ok(cache));
        for text in ["", "/a", "/a:", ":2G", "/a:1M", "/a:much", "/a:99999999999G"] {
            assert!(text.parse::<DiskCache>().is_err(), "{text}");
        }
    }
}

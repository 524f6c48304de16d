//! Patterns of file names, as `--data` and `--splits` take them: several joined by `::`, braces in each (`braces.rs`), and wildcards in the
//! names that the braces stand for (`globs.rs`). The same rules hold for paths and for addresses of objects.

mod braces;
mod globs;

pub use globs::is_glob;
#[cfg(feature = "cloud")]
pub use globs::matches;
use std::io;
use std::path::{Path, PathBuf};

/// What separates patterns that are given as one.
const SEPARATOR: &str = "::";

/// A pattern that stands for no names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// Which of the patterns joined by `::`. It may hold a secret.
    pub part: String,
    /// What is wrong, without the pattern.
    pub cause: String,
}

/// Whether a text has braces or wildcards, or is several patterns.
pub fn is_pattern(text: &str) -> bool {
    is_glob(text) || text.contains(['{', '}']) || text.contains(SEPARATOR)
}

/// The patterns that `pattern` joins.
pub fn parts(pattern: &str) -> impl Iterator<Item = &str> {
    pattern.split(SEPARATOR)
}

/// The names that `pattern` stands for, in its order. They may have wildcards, which only who can list the files resolves: [`files`], for local ones.
///
/// # Errors
/// When braces do not pair, or stand for too many names.
pub fn names(pattern: &str) -> Result<Vec<String>, Malformed> {
    let mut names = Vec::new();
    for part in parts(pattern) {
        let malformed = |cause| Malformed { part: part.to_owned(), cause };
        names.extend(braces::expand(part).map_err(malformed)?);
        if names.len() > braces::NAMES_MAX {
            return Err(malformed(braces::too_many()));
        }
    }
    Ok(names)
}

/// The local files and folders that one of the [`names`] stands for, which begins from `base`: what is called so, else what its wildcards match,
/// sorted by bytes. `None` where it has no wildcard and nothing is called so.
///
/// # Errors
/// When a folder that the name goes through cannot be listed.
pub fn files(base: &Path, name: &str) -> io::Result<Option<Vec<PathBuf>>> {
    let path = base.join(name);
    Ok(if path.exists() {
        Some(vec![path])
    } else if is_glob(name) {
        Some(globs::glob(base, Path::new(name))?)
    } else {
        None
    })
}

/// The folder that a pattern begins from, as a part of it: all ahead of the first component that is a pattern and not there under that name. A file's
/// name is never part of it; empty where the pattern has no folder.
pub fn folder(pattern: &str) -> &str {
    let first = parts(pattern).next().unwrap_or_default();
    let is_folder = |folder: &str| !is_pattern(folder) || Path::new(folder).exists();
    let mut ends = first.rmatch_indices('/').map(|(at, _)| at);
    ends.find(|&at| is_folder(&first[..at])).map_or("", |at| &first[..at.max(1)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_patterns_stand_for_the_names_of_each() {
        assert_eq!(names("a{2..1}.tar::b-*.tar").unwrap(), ["a2.tar", "a1.tar", "b-*.tar"]);
        let malformed = names("a::x{0..3").unwrap_err();
        assert_eq!((&*malformed.part, malformed.cause.contains("x{")), ("x{0..3", false));
        assert!(names(&["{1..1000000}"; 2].join("::")).is_err());
    }

    #[test]
    fn a_name_is_what_is_called_so_before_it_is_a_wildcard() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("[b]");
        std::fs::create_dir(&base).unwrap();
        for name in ["[1].tar", "1.tar", "2.tar"] {
            std::fs::write(base.join(name), "").unwrap();
        }
        let found = |name: &str| {
            let found = files(&base, name).unwrap()?;
            Some(
                found
                    .iter()
                    .map(|path| path.strip_prefix(&base).unwrap().to_str().unwrap().to_owned())
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(found("[1].tar").unwrap(), ["[1].tar"]);
        // The folder's own name is no pattern.
        assert_eq!(found("[12].tar").unwrap(), ["1.tar", "2.tar"]);
        assert_eq!((found("x*").unwrap().len(), found("x")), (0, None));
    }

    #[test]
    fn the_folder_of_a_pattern_is_what_goes_before_its_wildcards() {
        for (pattern, expected) in [
            ("a/b/t-{0..9}.tar", "a/b"),
            ("a/b*/c/t.tar", "a"),
            ("/a*/t.tar", "/"),
            ("/t.tar", "/"),
            ("t-*.tar", ""),
            ("a/t.tar::b/*.tar", "a"),
            ("s3://b/a/t-*.tar", "s3://b/a"),
        ] {
            assert_eq!(folder(pattern), expected, "{pattern}");
        }
        let dir = tempfile::tempdir().unwrap();
        let there = dir.path().join("x[1]");
        std::fs::create_dir(&there).unwrap();
        let pattern = there.join("t-*.tar");
        assert_eq!(Path::new(folder(pattern.to_str().unwrap())), there);
    }
}

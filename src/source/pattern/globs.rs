//! Names with `*`, `?` and `[…]` in them, and the files that they match.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Whether a name has a wildcard.
pub fn is_glob(name: &str) -> bool {
    name.contains(['*', '?', '['])
}

/// The paths below `base` that match, sorted by their bytes. A wildcard matches within one component, and no leading dot. What `base` is called is
/// no pattern; an absolute pattern begins from the root.
///
/// # Errors
/// When a folder that the pattern names cannot be listed.
pub fn glob(base: &Path, pattern: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![base.to_owned()];
    for part in pattern.components() {
        let name = part.as_os_str().to_str().filter(|name| matches!(part, Component::Normal(_)) && is_glob(name));
        let Some(name) = name else {
            found.iter_mut().for_each(|path| path.push(part));
            continue;
        };
        let mut next = Vec::new();
        for folder in &found {
            let listed = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            let entries = match std::fs::read_dir(listed) {
                Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&error.kind()) => {
                    continue;
                }
                entries => entries?,
            };
            for entry in entries {
                let entry: OsString = entry?.file_name();
                if matches_name(name.as_bytes(), entry.as_bytes()) {
                    next.push(folder.join(entry));
                }
            }
        }
        found = next;
    }
    found.retain(|path| path.exists());
    found.sort_unstable_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    Ok(found)
}

/// Whether the whole name of an object matches, component by component, as [`glob`] has it.
#[cfg(any(feature = "cloud", test))]
pub fn matches(pattern: &str, path: &str) -> bool {
    let (mut patterns, mut names) = (pattern.split('/'), path.split('/'));
    loop {
        match (patterns.next(), names.next()) {
            (Some(pattern), Some(name)) if matches_name(pattern.as_bytes(), name.as_bytes()) => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}

/// Whether a component matches. A leading dot must be in the pattern.
fn matches_name(pattern: &[u8], name: &[u8]) -> bool {
    (pattern.starts_with(b".") || !name.starts_with(b".")) && matches_bytes(pattern, name)
}

/// Whether `name` matches. Only the last `*` is ever tried anew, so that the time is that of the product of the lengths.
fn matches_bytes(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        let one = match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
                continue;
            }
            Some(b'?') => Some(1),
            Some(b'[') => match set(&pattern[p..], name[n]) {
                Some((length, true)) => Some(length),
                Some(_) => None,
                // Without its end it is a bracket.
                None => (name[n] == b'[').then_some(1),
            },
            Some(byte) => (*byte == name[n]).then_some(1),
            None => None,
        };
        match (one, star) {
            (Some(length), _) => (p, n) = (p + length, n + 1),
            (None, Some((at, from))) => {
                star = Some((at, from + 1));
                (p, n) = (at + 1, from + 1);
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// The length of the set `[…]` that `pattern` begins with, and whether `byte` is in it.
fn set(pattern: &[u8], byte: u8) -> Option<(usize, bool)> {
    let negated = pattern.get(1).is_some_and(|sign| [b'!', b'^'].contains(sign));
    let start = if negated { 2 } else { 1 };
    // A bracket that comes first is one of the set.
    let end = pattern.iter().skip(start + 1).position(|byte| *byte == b']')? + start + 1;
    let (mut members, mut found) = (&pattern[start..end], false);
    while let [first, rest @ ..] = members {
        match rest {
            [b'-', last, rest @ ..] => {
                found |= (*first..=*last).contains(&byte);
                members = rest;
            }
            _ => {
                found |= *first == byte;
                members = rest;
            }
        }
    }
    Some((end + 1, found != negated))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_the_shell_has_it() {
        for (pattern, yes, no) in [
            ("*.tar", "a.tar .tar", "a.tarx tar"),
            ("t-?.tar", "t-1.tar", "t-.tar t-12.tar"),
            ("t-[0-3x].tar", "t-0.tar t-3.tar t-x.tar", "t-4.tar t--.tar"),
            ("[!a]*", "b bc", "a ab"),
            ("[]a]", "] a", "b"),
            ("a[", "a[", "a"),
            ("*a*b*", "ab xaxbx aab", "ba"),
            ("a*b*c", "abc axbxc abcbc", "abcb"),
        ] {
            yes.split(' ')
                .for_each(|name| assert!(matches_bytes(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}"));
            no.split(' ')
                .for_each(|name| assert!(!matches_bytes(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}"));
        }
        assert!(!matches_bytes(&b"a*".repeat(50), &b"a".repeat(49)));
    }

    #[test]
    fn a_wildcard_matches_within_one_component() {
        assert!(matches("a/*-[0-9].tar", "a/t-1.tar") && matches("*/x", "a/x") && matches(".*", ".a"));
        assert!(
            !matches("a/*.tar", "a/b/c.tar") && !matches("*", "a/b") && !matches("*/*", "a") && !matches("*", ".a")
        );
    }

    #[test]
    fn files_are_found_in_the_order_of_their_bytes() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b/2.tar", "b/10.tar", "a/1.tar", "a/.3.tar", "a/1.txt", "c.tar"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let found = |pattern: &str| -> Vec<String> {
            let names = glob(dir.path(), Path::new(pattern)).unwrap().into_iter();
            names.map(|path| path.strip_prefix(dir.path()).unwrap().to_str().unwrap().to_owned()).collect()
        };
        assert_eq!(found("*/*.tar"), ["a/1.tar", "b/10.tar", "b/2.tar"]);
        assert_eq!(found("[ab]/1*"), ["a/1.tar", "a/1.txt", "b/10.tar"]);
        assert_eq!(found("*.tar"), ["c.tar"]);
        assert!(found("x*/*.tar").is_empty() && found("a*/x.tar").is_empty());
    }
}

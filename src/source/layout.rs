//! Which split and class the images of a folder belong to, by the names of the folders on their path (docs/spec/index.md).

use crate::types::Split;
use std::ops::Range;

/// How the folders of splits are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// By their names, wherever they are.
    Named {
        /// The name of each split's folder; of none that is elsewhere.
        names: [Option<Vec<u8>>; Split::ALL.len()],
        /// A name of the validation split that counts where the others decide nothing.
        alias: Option<&'static str>,
    },
    /// One folder is a split.
    At {
        /// Which one.
        split: Split,
        /// Bytes of its path.
        len: usize,
    },
}

/// Where the images of a folder belong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Their split.
    pub split: Split,
    /// Bytes of the path of the set: the folder that the splits are in.
    pub set: usize,
    /// Their class, as a part of the path.
    pub class: Range<usize>,
}

impl Layout {
    /// Where the images of `folder` belong, a path relative to the root.
    pub fn place(&self, folder: &[u8]) -> Option<Placed> {
        match self {
            Self::At { split, len } => {
                let start = if *len == 0 { 0 } else { len + 1 };
                let below = folder.get(start..).filter(|below| !below.is_empty())?;
                let class = start..start + below.iter().position(|&byte| byte == b'/').unwrap_or(below.len());
                Some(Placed { split: *split, set: 0, class })
            }
            Self::Named { names, alias } => {
                let by_name = |component: &[u8]| {
                    Split::ALL.iter().copied().find(|&split| names[split as usize].as_deref() == Some(component))
                };
                let by_alias = |component: &[u8]| (Some(component) == alias.map(str::as_bytes)).then_some(Split::Val);
                place(folder, by_name).or_else(|| place(folder, by_alias))
            }
        }
    }

    /// Whether `folder` is a split or in one.
    pub fn is_in_split(&self, folder: &[u8]) -> bool {
        match self {
            Self::At { .. } => true,
            Self::Named { names, alias } => components(folder).any(|range| {
                let component = &folder[range];
                names.iter().flatten().any(|name| name == component) || Some(component) == alias.map(str::as_bytes)
            }),
        }
    }
}

/// The innermost component that is named after a split and has a folder below it decides; that folder is the class.
fn place(folder: &[u8], split_of: impl Fn(&[u8]) -> Option<Split>) -> Option<Placed> {
    let (mut set, mut found, mut above) = (None, None, None);
    for range in components(folder) {
        if let Some((split, start)) = above.take() {
            let set = *set.get_or_insert(start);
            found = Some(Placed { split, set, class: range.clone() });
        }
        above = split_of(&folder[range.clone()]).map(|split| (split, range.start.saturating_sub(1)));
    }
    found
}

/// Where the components of a path are in it.
fn components(path: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    path.split(|&byte| byte == b'/').map(move |part| {
        let range = start..start + part.len();
        start = range.end + 1;
        range
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(layout: &Layout, folder: &str) -> Option<(Split, String, String)> {
        let Placed { split, set, class } = layout.place(folder.as_bytes())?;
        Some((split, folder[..set].to_owned(), folder[class].to_owned()))
    }

    #[test]
    fn the_innermost_split_with_a_class_below_it_decides() {
        let names = [Some(b"train".to_vec()), Some(b"val".to_vec())];
        let layout = Layout::Named { names, alias: Some("test") };
        for (folder, expected) in [
            ("train/a", Some((Split::Train, "", "a"))),
            ("train/a/b/c", Some((Split::Train, "", "a"))),
            ("x/y/val/a/b", Some((Split::Val, "x/y", "a"))),
            ("train/train/a", Some((Split::Train, "", "a"))),
            ("train/val", Some((Split::Train, "", "val"))),
            ("train/val/a", Some((Split::Val, "", "a"))),
            ("x/test/a/b", Some((Split::Val, "x", "a"))),
            ("test/train/a", Some((Split::Train, "test", "a"))),
            ("train", None),
            ("", None),
            ("xtrain/a", None),
            ("Train/a", None),
        ] {
            let expected = expected.map(|(split, set, class)| (split, set.to_owned(), class.to_owned()));
            assert_eq!(shown(&layout, folder), expected, "{folder}");
        }
    }

    #[test]
    fn the_first_folder_below_a_split_s_own_folder_is_the_class() {
        for (len, folder, class) in
            [(4, "/a/b/cat/train/dog", Some("cat")), (0, "cat/x", Some("cat")), (0, "", None), (4, "/a/b", None)]
        {
            let layout = Layout::At { split: Split::Val, len };
            let expected = class.map(|class| (Split::Val, String::new(), class.to_owned()));
            assert_eq!(shown(&layout, folder), expected, "{folder}");
        }
    }
}

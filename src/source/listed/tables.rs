//! Tables of labels: where they are, and the images that they name, each in the split that they give.

use super::super::label_table::Table;
use super::super::split_words::{KINDS, kind};
use super::super::tally::{Ignored, Tally};
use super::super::{DataSet, DatasetError, Splits};
use super::found::{Entry, Found, images, stem};
use crate::escape::escaped;
use crate::types::Split;
use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Tables that are found by themselves.
const TABLES: [&str; 2] = ["metadata.csv", "metadata.jsonl"];

/// What a split's name means.
enum Named {
    /// A position in [`KINDS`].
    Kind(usize),
    /// A split that is not asked for.
    NotAskedFor,
    /// No split.
    Nothing,
}

fn named(name: &str, set: &DataSet) -> Named {
    let kind_of = |split: Split| KINDS.iter().position(|(of, _)| *of == split).expect("each has words");
    if let Some(&split) = Split::ALL.iter().find(|&&split| set.splits.of(split) == Some(name)) {
        return Named::Kind(kind_of(split));
    }
    match kind(name) {
        Some(kind) if set.splits.of(KINDS[kind].0).is_none() => Named::Kind(kind),
        None if set.splits == Splits::default() => Named::Nothing,
        _ => Named::NotAskedFor,
    }
}

/// A table, the folder that its files are relative to, and the kind of split that it is of.
pub type TableAt = (PathBuf, PathBuf, Option<usize>);

/// The tables of a folder.
pub fn tables(set: &DataSet, root: &Path) -> Result<Vec<TableAt>, DatasetError> {
    if let Some(labels) = &set.labels {
        return Ok(vec![(labels.clone(), root.to_owned(), None)]);
    }
    let table_in = |folder: &Path| TABLES.iter().map(|name| folder.join(name)).find(|table| table.is_file());
    if let Some(table) = table_in(root) {
        return Ok(vec![(table, root.to_owned(), None)]);
    }
    let mut tables = Vec::new();
    for entry in std::fs::read_dir(root).map_err(DatasetError::io("list", root))?.flatten() {
        if let (Some(table), Some(name)) = (table_in(&entry.path()), entry.file_name().to_str())
            && let Named::Kind(kind) = named(name, set)
        {
            tables.push((table, entry.path(), Some(kind)));
        }
    }
    // Of several words for a split one counts.
    tables.sort_unstable_by_key(|(_, folder, kind)| (*kind, folder.clone()));
    tables.dedup_by_key(|(.., kind)| *kind);
    Ok(tables)
}

/// The images that tables name; `by_custom` as [`Table::read`] has it.
pub fn of_tables(root: &Path, tables: &[TableAt], set: &DataSet, by_custom: bool) -> Result<Found, DatasetError> {
    let mut found = Found { entries: Vec::new(), is_multi: false, notes: Vec::new() };
    let mut tally = Tally::default();
    for (nth, (path, folder, kind)) in tables.iter().enumerate() {
        let refused = |cause: String| DatasetError::Labels { path: path.clone(), cause };
        let table = Table::read(path, set.label_key.as_deref(), by_custom)?;
        if nth > 0 && table.is_multi != found.is_multi {
            return Err(refused(
                "has several labels an image where another table of the set has one, or the other way round".to_owned(),
            ));
        }
        found.is_multi = table.is_multi;
        let there = images(folder, path, &mut tally)?;
        let prefix = folder.strip_prefix(root).unwrap_or(Path::new("")).as_os_str().as_bytes().to_vec();
        let by_stem: HashMap<&[u8], &Vec<u8>> = there.iter().map(|path| (stem(path), path)).collect();
        let (mut missing, mut listed) = (None, 0);
        for row in table.rows {
            let name = row.file.as_bytes();
            let is_there = there.binary_search_by(|path| path.as_slice().cmp(name)).is_ok();
            let file = if is_there { Some(name) } else { by_stem.get(name).map(|path| path.as_slice()) };
            let Some(file) = file else {
                tally.file(Ignored::NotThere);
                missing.get_or_insert(row.file);
                continue;
            };
            listed += 1;
            let by_name = match (kind, &row.split) {
                (Some(kind), _) => Named::Kind(*kind),
                (None, Some(name)) => match named(name, set) {
                    Named::Nothing => {
                        let name = escaped(name);
                        return Err(refused(format!(
                            "has the split `{name}` (use train and val, or name them with --splits train=NAME,val=NAME)"
                        )));
                    }
                    known => known,
                },
                (None, None) => {
                    let folders = row.file.split('/').rev().skip(1);
                    let mut known =
                        folders.map(|name| named(name, set)).filter(|named| matches!(named, Named::Kind(_)));
                    known.next().unwrap_or(Named::Kind(0))
                }
            };
            match by_name {
                Named::Kind(kind) => {
                    let path = if prefix.is_empty() { file.to_vec() } else { [&prefix, &b"/"[..], file].concat() };
                    found.entries.push(Entry { path, labels: row.labels, kind });
                }
                _ => tally.file(Ignored::OtherSplit),
            }
        }
        if let (0, Some(missing)) = (listed, missing) {
            return Err(refused(format!(
                "names no image of {}: {} is not there (names are relative to that folder)",
                escaped(&folder),
                escaped(&missing)
            )));
        }
        (listed..there.len() as u64).for_each(|_| tally.file(Ignored::Unnamed));
    }
    for &split in Split::ALL {
        if let Some(place) = set.splits.of(split).filter(|_| found.entries.iter().all(|entry| entry.split() != split)) {
            let cause = format!("has no image of the split `{}` (--splits)", escaped(place));
            return Err(DatasetError::Labels { path: tables[0].0.clone(), cause });
        }
    }
    found.notes = tally.notes();
    Ok(found)
}

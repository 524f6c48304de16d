//! Index files as DALI's `wds2idx` writes them: for each sample a line with field, offset, size and, since version 1.2, the name of each file.

use super::super::tar_block::header;
use super::fault::Fault;
use super::reader::Reader;
use super::tar::{BLOCK_BYTES, Entry};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The most bytes of an index file; one of a shard of ten thousand samples has half a megabyte.
const INDEX_BYTES_MAX: u64 = 256 << 20;
/// One in so many headers is compared with what an index says of it, beside the first and the last.
const COMPARED_EVERY: usize = 64;

/// The index file beside `shard`, if it is there and not older than `meta`, the shard's metadata.
pub fn beside(shard: &Path, meta: &Metadata) -> Option<(PathBuf, Metadata)> {
    let name = shard.file_name()?.to_str()?;
    // wds2idx cuts the name at its first dot.
    let short =
        name.split('.').next().filter(|stem| !stem.is_empty()).map(|stem| shard.with_file_name(format!("{stem}.idx")));
    let found = |path: PathBuf| path.metadata().ok().filter(Metadata::is_file).map(|index| (path, index));
    let (path, index) = short.and_then(found).or_else(|| found(shard.with_extension("idx")))?;
    let time = |meta: &Metadata| (meta.mtime(), meta.mtime_nsec());
    (time(&index) >= time(meta)).then_some((path, index))
}

/// The files that an index names; `None` where it cannot be read or does not fit the shard, which is then read without it.
pub fn entries(index: &Path, reader: &mut Reader<'_>) -> Option<Vec<Entry>> {
    if index.metadata().ok()?.len() > INDEX_BYTES_MAX {
        return None;
    }
    let text = std::fs::read_to_string(index).ok()?;
    let mut lines = text.lines();
    let (version, samples) = lines.next()?.split_once(' ')?;
    let is_named = match version {
        "v1.1" => false,
        "v1.2" => true,
        _ => return None,
    };
    let mut entries = Vec::new();
    let mut found = 0;
    for line in lines {
        let mut words = line.split_ascii_whitespace();
        while let Some(field) = words.next() {
            let [offset, bytes] = [words.next()?.parse().ok()?, words.next()?.parse().ok()?];
            let mut entry = Entry { name: Vec::new(), offset, bytes };
            if is_named {
                let name = words.next()?;
                name.strip_suffix(field)?.strip_suffix('.')?;
                entry.name.extend_from_slice(name.as_bytes());
            }
            entries.push(entry);
        }
        found += 1;
    }
    // A shard's entries neither overlap nor lie beyond its end.
    let is_in_order =
        |pair: &[Entry]| pair[0].offset.checked_add(pair[0].bytes).is_some_and(|end| end <= pair[1].offset);
    let last = entries.last()?;
    let fits = samples.trim().parse() == Ok(found)
        && entries.windows(2).all(is_in_order)
        && last.offset.checked_add(last.bytes).is_some_and(|end| end <= reader.file_bytes());
    if !fits {
        return None;
    }
    let count = entries.len();
    for (nth, entry) in entries.iter_mut().enumerate() {
        let is_compared = !is_named || nth % COMPARED_EVERY == 0 || nth + 1 == count;
        if is_compared {
            let name = compared(entry, reader).ok()??;
            if !is_named {
                entry.name = name;
            }
        }
    }
    Some(entries)
}

/// The name in an entry's header, if that has the size that the index says.
fn compared(entry: &Entry, reader: &mut Reader<'_>) -> Result<Option<Vec<u8>>, Fault> {
    let Some(at) = entry.offset.checked_sub(BLOCK_BYTES).filter(|at| at % BLOCK_BYTES == 0) else {
        return Ok(None);
    };
    let header = header(reader.get(at, BLOCK_BYTES)?);
    let fits = |header: &tar::Header| header.entry_type().is_file() && header.entry_size().ok() == Some(entry.bytes);
    Ok(header.filter(fits).map(|header| header.path_bytes().into_owned()))
}

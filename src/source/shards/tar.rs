//! The regular files of a tar, by its headers alone: content is passed over, not read.
//!
//! What counts as a file, and where the tar ends, is as Python's `tarfile` has it, through which webdataset reads. Nothing is allocated by what a
//! header says before it is checked against the file's size and a limit.

use super::super::compression::packer;
use super::super::tar_block;
use super::fault::{EXTENSION_BYTES_MAX, Fault, NAME_BYTES_MAX};
use super::reader::Reader;
use tar::{EntryType, Header, PaxExtensions};

/// Bytes of a header, as a distance.
pub const BLOCK_BYTES: u64 = tar_block::BLOCK_BYTES as u64;

/// A regular file in a tar.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entry {
    /// Its path in the tar.
    pub name: Vec<u8>,
    /// First byte of its content.
    pub offset: u64,
    /// Bytes of its content.
    pub bytes: u64,
}

/// A walk over the headers.
#[derive(Debug, Default)]
pub struct Entries {
    position: u64,
    /// Whether a block of zeros ended it.
    is_ended: bool,
}

/// What headers before an entry's own say of it.
#[derive(Default)]
struct Extension {
    name: Option<Vec<u8>>,
    bytes: Option<u64>,
}

impl Entries {
    /// Puts the next regular file into `entry`; false at the end.
    ///
    /// # Errors
    /// When what is there is no entry, or not whole, or the file cannot be read.
    pub fn next(&mut self, reader: &mut Reader<'_>, entry: &mut Entry) -> Result<bool, Fault> {
        let mut extension = Extension::default();
        loop {
            let at = self.position;
            let Some(header) = self.header(reader)? else {
                return Ok(false);
            };
            let kind = header.entry_type();
            let size = match extension.bytes {
                // A list of attributes and a long name have sizes of their own.
                Some(bytes) if !is_extension(kind) => bytes,
                _ => header.entry_size().map_err(|_| Fault::NotAnEntry { offset: at })?,
            };
            let content = at + BLOCK_BYTES;
            let end = content.checked_add(size).filter(|end| *end <= reader.file_bytes());
            let has_content = !matches!(
                kind,
                EntryType::Link
                    | EntryType::Symlink
                    | EntryType::Char
                    | EntryType::Block
                    | EntryType::Directory
                    | EntryType::Fifo
            );
            let end = if has_content { end.ok_or(Fault::Cut { offset: at })? } else { content };
            self.position = end.next_multiple_of(BLOCK_BYTES);
            match kind {
                EntryType::GNULongName => {
                    let mut name = extended(reader, at, size)?.to_vec();
                    name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
                    extension.name = Some(name);
                }
                EntryType::GNULongLink => {}
                EntryType::XHeader => read_attributes(extended(reader, at, size)?, at, &mut extension)?,
                EntryType::XGlobalHeader => {
                    let mut global = Extension::default();
                    read_attributes(extended(reader, at, size)?, at, &mut global)?;
                    if global.name.is_some() || global.bytes.is_some() {
                        return Err(Fault::GlobalAttributes { offset: at });
                    }
                }
                EntryType::GNUSparse => return Err(Fault::Sparse { offset: at }),
                EntryType::Regular | EntryType::Continuous => {
                    entry.name.clear();
                    match &extension.name {
                        Some(name) => entry.name.extend_from_slice(name),
                        None => entry.name.extend_from_slice(&header.path_bytes()),
                    }
                    // Names are kept: a sample's in the index, others until the sample is whole.
                    if entry.name.len() > NAME_BYTES_MAX {
                        return Err(Fault::LongName { offset: at, bytes: entry.name.len() });
                    }
                    (entry.offset, entry.bytes) = (content, size);
                    // A folder as the first tars wrote it.
                    if !entry.name.ends_with(b"/") {
                        return Ok(true);
                    }
                    extension = Extension::default();
                }
                _ => extension = Extension::default(),
            }
        }
    }

    /// Whether the walk has come to a block that ends a tar; a tar without one may have lost entries.
    pub fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// The header at the current position; `None` at the end.
    fn header(&mut self, reader: &mut Reader<'_>) -> Result<Option<Header>, Fault> {
        let at = self.position;
        let left = reader.file_bytes().saturating_sub(at);
        if left < BLOCK_BYTES {
            let rest = reader.get(at.min(reader.file_bytes()), left)?;
            return if rest.iter().all(|byte| *byte == 0) { Ok(None) } else { Err(Fault::Cut { offset: at }) };
        }
        let block = reader.get(at, BLOCK_BYTES)?;
        if block.iter().all(|byte| *byte == 0) {
            self.is_ended = true;
            return Ok(None);
        }
        tar_block::header(block).map(Some).ok_or_else(|| match (at, packer(block)) {
            (0, Some(kind)) => Fault::Compressed { kind },
            _ => Fault::NotAnEntry { offset: at },
        })
    }
}

fn is_extension(kind: EntryType) -> bool {
    matches!(kind, EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader | EntryType::XGlobalHeader)
}

/// The content of an extension whose header is at `at`, which was found to be in the file.
fn extended<'a>(reader: &'a mut Reader<'_>, at: u64, size: u64) -> Result<&'a [u8], Fault> {
    if size > EXTENSION_BYTES_MAX {
        return Err(Fault::LongExtension { offset: at, bytes: size });
    }
    reader.get(at + BLOCK_BYTES, size)
}

fn read_attributes(content: &[u8], at: u64, extension: &mut Extension) -> Result<(), Fault> {
    let broken = || Fault::NotAnEntry { offset: at };
    for attribute in PaxExtensions::new(content) {
        let attribute = attribute.map_err(|_| broken())?;
        match attribute.key_bytes() {
            b"path" => extension.name = Some(attribute.value_bytes().to_vec()),
            b"size" => {
                let text = attribute.value().map_err(|_| broken())?;
                extension.bytes = Some(text.parse().map_err(|_| broken())?);
            }
            key if key.starts_with(b"GNU.sparse.") => return Err(Fault::Sparse { offset: at }),
            _ => {}
        }
    }
    Ok(())
}

//! A Parquet file's footer: its columns, its row groups, and what its writer noted.

use super::super::super::flaw::Flaw;
use super::super::super::located::Opened;
use super::thrift::{Compact, Field, Malformed};

/// First and last bytes of a file.
const MAGIC: &[u8; 4] = b"PAR1";
/// Last bytes of a file whose footer is encrypted.
const MAGIC_ENCRYPTED: &[u8; 4] = b"PARE";
/// The footer's length and the magic bytes behind it.
const TAIL_BYTES: u64 = 8;
/// The longest footer that is read. A file of 100,000 row groups has half of it.
const FOOTER_BYTES_MAX: u64 = 128 << 20;

/// The most bytes of all leaves' paths: a structure's name stands in the path of each leaf in it.
const PATH_BYTES_MAX: usize = 64 << 20;
/// The most columns and structures of a schema, and the most row groups and columns in them: an empty one takes a byte of a footer, and more in memory.
const ELEMENTS_MAX: usize = 1 << 16;
const CHUNKS_MAX: usize = 1 << 22;

/// How bytes of a column are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Physical {
    /// 32-bit integers.
    Int32,
    /// 64-bit integers.
    Int64,
    /// Byte strings of any length.
    Bytes,
    /// Anything else.
    Other,
}

/// A column whose values are no structures: a leaf of the schema's tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// The names of the structures around it, from the outermost, and its own.
    pub path: Vec<String>,
    /// How its values are stored.
    pub physical: Physical,
    /// Whether they are declared to be text.
    pub is_text: bool,
    /// The definition level of a value that is there: how many of the path may be null.
    pub level_max: u8,
    /// Whether it has any number of values a row.
    pub is_repeated: bool,
}

/// A column of a row group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Where its first page begins.
    pub offset: u64,
    /// Bytes of its pages, with their headers.
    pub bytes: u64,
    /// The number of the compression in the format's definition.
    pub codec: i64,
    /// How many values are null, where the writer counted them.
    pub nulls: Option<u64>,
}

/// A row group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowGroup {
    /// Its rows.
    pub rows: u64,
    /// A chunk for each leaf.
    pub chunks: Vec<Chunk>,
}

/// A footer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    /// Columns.
    pub leaves: Vec<Leaf>,
    /// Row groups.
    pub row_groups: Vec<RowGroup>,
    /// What Hugging Face's `datasets` noted of the columns: JSON.
    pub huggingface: Option<String>,
}

/// Reads the footer of a file of `file_bytes` bytes.
///
/// # Errors
/// When it is no Parquet file, or a damaged one.
pub fn read(file: &Opened, file_bytes: u64) -> Result<Footer, Flaw> {
    let mut tail = [0; TAIL_BYTES as usize];
    let whole = file_bytes.checked_sub(TAIL_BYTES + MAGIC.len() as u64);
    let Some(room) = whole else {
        return Err(Flaw::from("is no Parquet file: too short"));
    };
    file.read_exact_at(&mut tail, file_bytes - TAIL_BYTES)?;
    let (len, magic) = (u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]])), &tail[4..]);
    if magic == MAGIC_ENCRYPTED {
        return Err(Flaw::from("has an encrypted footer (write it without encryption)"));
    }
    if magic != MAGIC {
        return Err(Flaw::from("is no whole Parquet file: it does not end with PAR1 (copy it again)"));
    }
    if len > room || len > FOOTER_BYTES_MAX {
        return Err(Flaw::new(format!("has a footer of {len} bytes, which cannot be: the file has {file_bytes}")));
    }
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, file_bytes - TAIL_BYTES - len)?;
    let footer = parse(&bytes).map_err(|_| Flaw::from("has a damaged footer (copy it again)"))?;
    check(&footer, file_bytes)?;
    Ok(footer)
}

/// Chunks must lie within the file, and a file has no more rows than bytes: memory for a row is taken before its value is seen.
fn check(footer: &Footer, file_bytes: u64) -> Result<(), Flaw> {
    let mut rows: u64 = 0;
    for (nth, group) in footer.row_groups.iter().enumerate() {
        rows = rows.saturating_add(group.rows);
        if group.chunks.len() != footer.leaves.len() {
            let (found, expected) = (group.chunks.len(), footer.leaves.len());
            return Err(Flaw::new(format!("row group {nth} has {found} columns, the schema {expected}")));
        }
        let is_within = |chunk: &Chunk| chunk.offset.checked_add(chunk.bytes).is_some_and(|end| end <= file_bytes);
        if let Some(chunk) = group.chunks.iter().find(|chunk| !is_within(chunk)) {
            let Chunk { offset, bytes, .. } = chunk;
            return Err(Flaw::new(format!(
                "row group {nth} has {bytes} bytes at {offset}, beyond the file's {file_bytes} (copy it again)"
            )));
        }
    }
    if rows > file_bytes {
        return Err(Flaw::new(format!("says that it has {rows} rows in {file_bytes} bytes")));
    }
    Ok(())
}

/// An element of the schema, which lists a tree depth first.
#[derive(Default)]
struct Element {
    name: String,
    physical: Option<i64>,
    /// 0: required, 1: optional, 2: repeated.
    repetition: i64,
    children: u64,
    is_text: bool,
}

fn parse(bytes: &[u8]) -> Result<Footer, Malformed> {
    let (mut elements, mut row_groups, mut huggingface) = (Vec::new(), Vec::new(), None);
    let mut chunks = 0;
    Compact::new(bytes).structure(&mut |compact, field| {
        match field.id {
            2 => compact.structures(field, &mut |compact| {
                elements.push(element(compact)?);
                if elements.len() > ELEMENTS_MAX { Err(Malformed::Invalid) } else { Ok(()) }
            })?,
            4 => compact.structures(field, &mut |compact| {
                let group = row_group(compact)?;
                chunks += 1 + group.chunks.len();
                row_groups.push(group);
                if chunks > CHUNKS_MAX { Err(Malformed::Invalid) } else { Ok(()) }
            })?,
            5 => compact.structures(field, &mut |compact| {
                let (key, value) = note(compact)?;
                if key == b"huggingface" {
                    huggingface = String::from_utf8(value.to_vec()).ok();
                }
                Ok(())
            })?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(Footer { leaves: leaves(&elements)?, row_groups, huggingface })
}

fn element(compact: &mut Compact<'_>) -> Result<Element, Malformed> {
    let mut element = Element::default();
    compact.structure(&mut |compact, field| {
        match field.id {
            1 => element.physical = Some(compact.int(field)?),
            3 => element.repetition = compact.int(field)?,
            4 => element.name = String::from_utf8_lossy(compact.bytes(field)?).into_owned(),
            5 => element.children = compact.size(field)?,
            // The older annotation: UTF8 and JSON.
            6 => element.is_text |= matches!(compact.int(field)?, 0 | 19),
            // The newer one: a union, of which the first is the string and the twelfth JSON.
            10 => compact.inner(field, &mut |_, kind: Field| {
                element.is_text |= matches!(kind.id, 1 | 12);
                Ok(false)
            })?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(element)
}

fn note<'a>(compact: &mut Compact<'a>) -> Result<(&'a [u8], &'a [u8]), Malformed> {
    let (mut key, mut value): (&[u8], &[u8]) = (&[], &[]);
    compact.structure(&mut |compact, field| {
        match field.id {
            1 => key = compact.bytes(field)?,
            2 => value = compact.bytes(field)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok((key, value))
}

fn row_group(compact: &mut Compact<'_>) -> Result<RowGroup, Malformed> {
    let (mut rows, mut chunks) = (0, Vec::new());
    compact.structure(&mut |compact, field| {
        match field.id {
            1 => compact.structures(field, &mut |compact| {
                let mut found = None;
                compact.structure(&mut |compact, field| {
                    if field.id == 3 {
                        found = Some(chunk(compact, field)?);
                    }
                    Ok(field.id == 3)
                })?;
                // A chunk without metadata is encrypted, or in another file.
                chunks.push(found.ok_or(Malformed::Invalid)?);
                if chunks.len() > ELEMENTS_MAX { Err(Malformed::Invalid) } else { Ok(()) }
            })?,
            3 => rows = compact.size(field)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(RowGroup { rows, chunks })
}

fn chunk(compact: &mut Compact<'_>, field: Field) -> Result<Chunk, Malformed> {
    let mut chunk = Chunk { offset: 0, bytes: 0, codec: 0, nulls: None };
    let mut dictionary = None;
    compact.inner(field, &mut |compact, field| {
        match field.id {
            4 => chunk.codec = compact.int(field)?,
            7 => chunk.bytes = compact.size(field)?,
            9 => chunk.offset = compact.size(field)?,
            11 => dictionary = Some(compact.size(field)?),
            12 => compact.inner(field, &mut |compact, field| {
                if field.id == 3 {
                    chunk.nulls = Some(compact.size(field)?);
                }
                Ok(field.id == 3)
            })?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    // Some writers say 0 where there is none.
    if let Some(dictionary) = dictionary.filter(|&at| at > 0) {
        chunk.offset = chunk.offset.min(dictionary);
    }
    Ok(chunk)
}

/// The leaves of the tree; its root has no name that matters.
fn leaves(elements: &[Element]) -> Result<Vec<Leaf>, Malformed> {
    /// A structure whose children are being listed.
    struct Open<'a> {
        name: &'a str,
        left: u64,
        optional: u8,
        is_repeated: bool,
    }
    let (mut leaves, mut path_bytes) = (Vec::new(), 0);
    let Some(root) = elements.first() else {
        return Err(Malformed::Invalid);
    };
    let mut open = vec![Open { name: "", left: root.children, optional: 0, is_repeated: false }];
    for element in &elements[1..] {
        while open.last().is_some_and(|parent| parent.left == 0) {
            open.pop();
        }
        let parent = open.last_mut().ok_or(Malformed::Invalid)?;
        parent.left -= 1;
        let is_optional = u8::from(element.repetition != 0);
        let optional = parent.optional.checked_add(is_optional).ok_or(Malformed::Invalid)?;
        let is_repeated = parent.is_repeated || element.repetition == 2;
        if element.children > 0 {
            open.push(Open { name: &element.name, left: element.children, optional, is_repeated });
            continue;
        }
        let names = open[1..].iter().map(|parent| parent.name).chain([&*element.name]);
        path_bytes += names.clone().map(|name| name.len() + size_of::<String>()).sum::<usize>();
        if path_bytes > PATH_BYTES_MAX {
            return Err(Malformed::Invalid);
        }
        leaves.push(Leaf {
            path: names.map(str::to_owned).collect(),
            physical: match element.physical {
                Some(1) => Physical::Int32,
                Some(2) => Physical::Int64,
                Some(6) => Physical::Bytes,
                _ => Physical::Other,
            },
            is_text: element.is_text,
            level_max: optional,
            is_repeated,
        });
    }
    // A structure that says to have more children than follow.
    if open.iter().any(|parent| parent.left > 0) { Err(Malformed::Invalid) } else { Ok(leaves) }
}

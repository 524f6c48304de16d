//! Pages of a column: their headers, found one behind the other, and their bytes.

use super::super::super::flaw::Flaw;
use super::super::super::located::Opened;
use super::codec;
use super::footer::Chunk;
use super::thrift::{Compact, Malformed};
use crate::memory::{Lack, Promise};

/// What a page's header is looked for in at first; statistics may make it longer.
const HEADER_BYTES: u64 = 1 << 10;
/// The longest header.
const HEADER_BYTES_MAX: u64 = 16 << 20;
/// The most bytes of a page that is decompressed, which takes its memory.
pub const PAGE_BYTES_MAX: u64 = 512 << 20;

/// A page that takes more than this is decoded only where memory has room for it.
const LARGE_BYTES: u64 = 16 << 20;
/// Memory that a value's place takes, and finding it.
const VALUE_BYTES: u64 = 48;

/// Fills a slice from an offset of a file.
pub type ReadAt<'a, E> = dyn FnMut(u64, &mut [u8]) -> Result<(), E> + 'a;

/// What a page holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The values that others refer to.
    Dictionary,
    /// Levels behind their length, then values; all of it compressed.
    Data,
    /// Levels of lengths that the header gives, then values, which alone are compressed.
    DataV2 {
        /// Bytes of repetition levels.
        repetition_bytes: u32,
        /// Bytes of definition levels, behind them.
        definition_bytes: u32,
    },
}

/// How values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// One behind the other; byte strings with their lengths before them.
    Plain,
    /// As numbers of a dictionary's entries.
    Dictionary,
}

/// A page of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// What it holds.
    pub kind: Kind,
    /// How its values are written.
    pub encoding: Encoding,
    /// Values, with those that are null.
    pub values: u32,
    /// Where its bytes begin, behind the header.
    pub offset: u64,
    /// How many they are in the file.
    pub bytes: u32,
    /// How many they are once decompressed.
    pub plain_bytes: u32,
    /// The number of their compression; 0 is none.
    pub codec: u8,
}

/// Fields of a header, as they are found.
#[derive(Default)]
struct Header {
    kind: i64,
    bytes: u64,
    plain_bytes: u64,
    values: u64,
    encoding: i64,
    repetition_bytes: u64,
    definition_bytes: u64,
    /// The encoding of levels, where it is given.
    levels: i64,
    is_stored: bool,
}

/// The encoding of levels: the hybrid of run lengths and packed bits.
const LEVELS: i64 = 3;

/// The pages of a chunk that have values, a dictionary first.
///
/// # Errors
/// When the chunk holds anything else, or an encoding that is not read.
pub fn pages(file: &Opened, chunk: &Chunk, rows: u64) -> Result<Vec<Page>, Flaw> {
    let codec = codec::check(chunk.codec)?;
    let (mut at, end) = (chunk.offset, chunk.offset + chunk.bytes);
    let (mut pages, mut values) = (Vec::new(), 0);
    while at < end && values < rows {
        let (header, len) = header(file, at, end)?;
        let offset = at + len;
        at = offset.checked_add(header.bytes).filter(|&next| next <= end).ok_or_else(|| {
            Flaw::new(format!("has a page of {} bytes at {at}, beyond its column's end (copy it again)", header.bytes))
        })?;
        let Some(page) = page(&header, offset, codec)? else {
            continue;
        };
        if page.kind != Kind::Dictionary {
            values += u64::from(page.values);
        } else if !pages.is_empty() {
            return Err(Flaw::from("has a dictionary behind a column's values"));
        } else if u64::from(page.values) > rows {
            // It takes memory for each, and a compressed one may say any number.
            return Err(Flaw::new(format!(
                "has a dictionary of {} values for {rows} rows (write it anew)",
                page.values
            )));
        }
        pages.push(page);
    }
    if values != rows {
        return Err(Flaw::new(format!("has {values} values in a column's pages, where its row group has {rows} rows")));
    }
    Ok(pages)
}

/// The header at `at`, and its length.
fn header(file: &Opened, at: u64, end: u64) -> Result<(Header, u64), Flaw> {
    let (mut window, mut bytes) = (HEADER_BYTES, Vec::new());
    loop {
        bytes.resize(window.min(end - at) as usize, 0);
        file.read_exact_at(&mut bytes, at)?;
        let mut compact = Compact::new(&bytes);
        match parse(&mut compact) {
            Ok(header) => return Ok((header, compact.position() as u64)),
            Err(Malformed::Short) if window < end - at && window < HEADER_BYTES_MAX => window *= 8,
            Err(_) => return Err(Flaw::new(format!("has no page at {at}, where one should be (copy it again)"))),
        }
    }
}

fn parse(compact: &mut Compact<'_>) -> Result<Header, Malformed> {
    let mut header = Header { kind: -1, levels: LEVELS, ..Header::default() };
    compact.structure(&mut |compact, field| {
        match field.id {
            1 => header.kind = compact.int(field)?,
            2 => header.plain_bytes = compact.size(field)?,
            3 => header.bytes = compact.size(field)?,
            5 => compact.inner(field, &mut |compact, field| {
                match field.id {
                    1 => header.values = compact.size(field)?,
                    2 => header.encoding = compact.int(field)?,
                    3 => header.levels = compact.int(field)?,
                    _ => return Ok(false),
                }
                Ok(true)
            })?,
            7 => compact.inner(field, &mut |compact, field| {
                match field.id {
                    1 => header.values = compact.size(field)?,
                    2 => header.encoding = compact.int(field)?,
                    _ => return Ok(false),
                }
                Ok(true)
            })?,
            8 => compact.inner(field, &mut |compact, field| {
                match field.id {
                    1 => header.values = compact.size(field)?,
                    4 => header.encoding = compact.int(field)?,
                    5 => header.definition_bytes = compact.size(field)?,
                    6 => header.repetition_bytes = compact.size(field)?,
                    7 => header.is_stored = !compact.truth(field)?,
                    _ => return Ok(false),
                }
                Ok(true)
            })?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(header)
}

/// A page by its header; none where it has no values.
fn page(header: &Header, offset: u64, codec: u8) -> Result<Option<Page>, Flaw> {
    let too_large = |_| Flaw::new(format!("has a page of more than 4 GiB at {offset}"));
    let kind = match header.kind {
        0 => Kind::Data,
        1 => return Ok(None),
        2 => Kind::Dictionary,
        3 => Kind::DataV2 {
            repetition_bytes: u32::try_from(header.repetition_bytes).map_err(too_large)?,
            definition_bytes: u32::try_from(header.definition_bytes).map_err(too_large)?,
        },
        kind => return Err(Flaw::new(format!("has a page of an unknown kind, {kind}, before {offset}"))),
    };
    let encoding = match (header.encoding, kind) {
        (0, _) | (2, Kind::Dictionary) => Encoding::Plain,
        (2 | 8, _) => Encoding::Dictionary,
        (other, _) => {
            let name = match other {
                5 => "DELTA_BINARY_PACKED",
                6 => "DELTA_LENGTH_BYTE_ARRAY",
                7 => "DELTA_BYTE_ARRAY",
                9 => "BYTE_STREAM_SPLIT",
                _ => "unknown",
            };
            return Err(Flaw::new(format!(
                "has values in the encoding {name}, which is not read (write it with the encoding PLAIN)"
            )));
        }
    };
    if kind == Kind::Data && header.levels != LEVELS {
        return Err(Flaw::from("has levels in the outdated encoding BIT_PACKED (write it with a newer writer)"));
    }
    Ok(Some(Page {
        kind,
        encoding,
        values: u32::try_from(header.values).map_err(too_large)?,
        offset,
        bytes: u32::try_from(header.bytes).map_err(too_large)?,
        plain_bytes: u32::try_from(header.plain_bytes).map_err(too_large)?,
        codec: if header.is_stored { codec::NONE } else { codec },
    }))
}

impl Page {
    /// How many numbers say all of one.
    pub const WORDS: usize = 7;

    /// All of it.
    pub fn words(&self) -> [u64; Self::WORDS] {
        let (kind, levels) = match self.kind {
            Kind::Dictionary => (0, 0),
            Kind::Data => (1, 0),
            Kind::DataV2 { repetition_bytes, definition_bytes } => {
                (2, u64::from(repetition_bytes) << 32 | u64::from(definition_bytes))
            }
        };
        let encoding = u64::from(self.encoding == Encoding::Dictionary);
        let sizes = [self.values, self.bytes, self.plain_bytes].map(u64::from);
        let coding = encoding << 8 | u64::from(self.codec);
        [kind, levels, coding, self.offset, sizes[0], sizes[1], sizes[2]]
    }

    /// The page of these [`Self::WORDS`] numbers, if they are those of one in a file of `file_bytes` bytes.
    pub fn from_words(words: &[u64], file_bytes: u64) -> Option<Self> {
        let &[kind, levels, coding, offset, values, bytes, plain_bytes] = words else {
            return None;
        };
        let kind = match kind {
            0 => Kind::Dictionary,
            1 => Kind::Data,
            2 => Kind::DataV2 { repetition_bytes: (levels >> 32) as u32, definition_bytes: levels as u32 },
            _ => return None,
        };
        let encoding = match coding >> 8 {
            0 => Encoding::Plain,
            1 => Encoding::Dictionary,
            _ => return None,
        };
        let [values, bytes, plain_bytes] = [values, bytes, plain_bytes].map(|size| u32::try_from(size).ok());
        let codec = codec::check(i64::from(coding as u8)).ok()?;
        // As for what a file says of itself: no more values than bytes.
        let is_within = offset.checked_add(bytes?.into()).is_some_and(|end| end <= file_bytes);
        (is_within && u64::from(values?) <= file_bytes).then_some(())?;
        Some(Self { kind, encoding, values: values?, offset, bytes: bytes?, plain_bytes: plain_bytes?, codec })
    }

    /// Memory for it and its values, where that is much.
    fn room(&self) -> Result<Option<Promise>, Flaw> {
        let need = u64::from(self.bytes) + u64::from(self.plain_bytes) + VALUE_BYTES * u64::from(self.values);
        let promise = (need > LARGE_BYTES).then(|| Promise::new(need, 0)).transpose();
        promise.map_err(|Lack { need, free }| {
            Flaw::new(format!(
                "has a page that takes {need} bytes of memory, and {free} are free (free some, or write smaller row groups)"
            ))
        })
    }

    /// Its bytes, decompressed.
    ///
    /// # Errors
    /// When they cannot be read, or are not what the header says.
    pub fn load<E: From<Flaw>>(&self, read: &mut ReadAt<'_, E>) -> Result<Vec<u8>, E> {
        let limit = u64::from(self.plain_bytes.max(self.bytes));
        if limit > PAGE_BYTES_MAX {
            return Err(E::from(Flaw::new(format!(
                "has a page of {limit} bytes, more than the {PAGE_BYTES_MAX} that are read at once (write smaller row groups)"
            ))));
        }
        let _room = self.room()?;
        let mut stored = vec![0; self.bytes as usize];
        read(self.offset, &mut stored)?;
        if self.codec == codec::NONE {
            return Ok(stored);
        }
        let level_bytes = match self.kind {
            Kind::DataV2 { repetition_bytes, definition_bytes } => {
                u64::from(repetition_bytes) + u64::from(definition_bytes)
            }
            _ => 0,
        };
        let plain_bytes = u64::from(self.plain_bytes).checked_sub(level_bytes);
        let parts = stored.split_at_checked(level_bytes as usize).zip(plain_bytes);
        let ((levels, values), plain_bytes) = parts.ok_or(Flaw::from("has levels that are longer than their page"))?;
        Ok(codec::decompress(self.codec, values, plain_bytes as usize, levels)?)
    }
}

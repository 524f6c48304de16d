//! Arrow files as Hugging Face's `datasets` saves them: streams of record batches, whose values lie uncompressed one behind the other.
//!
//! A stream is a schema, then batches, each a message (a length, a FlatBuffer) and a body of buffers. The file format, which has the same between
//! magic bytes and a footer, is read, too.

mod flat;
mod schema;

use super::super::flaw::Flaw;
use super::super::located::Opened;
use super::cells::{Cell, Column, Place};
use flat::Flat;
use schema::{Leaf, Numbers, Schema, Values};

/// First bytes of the file format, padded to eight.
const MAGIC: &[u8; 6] = b"ARROW1";
/// What begins a message; older writers leave it out.
const CONTINUATION: u32 = u32::MAX;
/// The longest message, without its body.
const MESSAGE_BYTES_MAX: u64 = 64 << 20;

/// Kinds of messages.
const SCHEMA: u8 = 1;
const RECORD_BATCH: u8 = 3;

/// An Arrow file that is open.
pub struct Arrow {
    file: Opened,
    file_bytes: u64,
    schema: Schema,
    /// Where the first message behind the schema begins.
    batches: u64,
}

/// A message, and its body's place in the file.
struct Message {
    bytes: Vec<u8>,
    body: u64,
    body_bytes: u64,
}

/// A record batch.
struct Batch<'a> {
    table: Flat<'a>,
    rows: u64,
    body: u64,
    body_bytes: u64,
}

fn damaged() -> Flaw {
    Flaw::from("has a damaged record batch (copy it again)")
}

impl Arrow {
    /// Opens a file of `file_bytes` bytes.
    ///
    /// # Errors
    /// When it is no Arrow file, or a damaged one.
    pub fn open(file: Opened, file_bytes: u64) -> Result<Self, Flaw> {
        let mut magic = [0; MAGIC.len()];
        let has_magic = file.read_exact_at(&mut magic, 0).is_ok() && magic == *MAGIC;
        let start = if has_magic { 8 } else { 0 };
        let end = file_bytes.checked_sub(MAGIC.len() as u64);
        if has_magic && !end.is_some_and(|end| file.read_exact_at(&mut magic, end).is_ok() && magic == *MAGIC) {
            return Err(Flaw::from("is no whole Arrow file: it does not end with ARROW1 (copy it again)"));
        }
        let mut opened = Self { file, file_bytes, schema: Schema::default(), batches: 0 };
        let (message, next) = opened.message(start)?.ok_or("is no Arrow file: it is empty")?;
        let root = Flat::root(&message.bytes)?;
        if root.byte(1)? != SCHEMA {
            return Err(Flaw::from("is no Arrow file: it does not begin with a schema"));
        }
        opened.schema = schema::read(root.table(2)?.ok_or("has no schema")?)?;
        opened.batches = next;
        Ok(opened)
    }

    /// Its columns.
    pub fn columns(&self) -> Vec<Column> {
        self.schema.columns.clone()
    }

    /// How many rows its batches say they have.
    ///
    /// # Errors
    /// When a batch is damaged.
    pub fn rows(&self) -> Result<u64, Flaw> {
        let mut rows = 0;
        self.batches(&mut |batch| {
            rows += batch.rows;
            Ok(())
        })?;
        Ok(rows)
    }

    /// What Hugging Face's `datasets` noted of the columns: JSON.
    pub fn huggingface(&self) -> Option<&str> {
        self.schema.huggingface.as_deref()
    }

    /// The message at `at`, and where the next one is; none at the end of the stream.
    fn message(&self, at: u64) -> Result<Option<(Message, u64)>, Flaw> {
        let cut = || Flaw::new(format!("ends within a message at {at} (copy it again)"));
        let word = |at: u64| -> Result<u32, Flaw> {
            let mut word = [0; 4];
            if at.checked_add(4).is_none_or(|end| end > self.file_bytes) {
                return Err(cut());
            }
            self.file.read_exact_at(&mut word, at)?;
            Ok(u32::from_le_bytes(word))
        };
        let (mut bytes, mut start) = (word(at)?, at + 4);
        if bytes == CONTINUATION {
            (bytes, start) = (word(start)?, start + 4);
        }
        if bytes == 0 {
            return Ok(None);
        }
        let (bytes, left) = (u64::from(bytes), self.file_bytes - start);
        if bytes > MESSAGE_BYTES_MAX {
            return Err(Flaw::new(format!("is no Arrow file: a message of {bytes} bytes at {at}")));
        }
        if bytes > left {
            return Err(cut());
        }
        let mut message = Message { bytes: vec![0; bytes as usize], body: start + bytes, body_bytes: 0 };
        self.file.read_exact_at(&mut message.bytes, start)?;
        message.body_bytes = u64::try_from(Flat::root(&message.bytes)?.long(3)?).map_err(|_| damaged())?;
        let next = message.body.checked_add(message.body_bytes).filter(|&end| end <= self.file_bytes);
        Ok(Some((message, next.ok_or_else(cut)?)))
    }

    /// Calls `each` with every record batch.
    fn batches(&self, each: &mut dyn FnMut(&Batch<'_>) -> Result<(), Flaw>) -> Result<(), Flaw> {
        let (mut at, mut rows) = (self.batches, 0_u64);
        while let Some((message, next)) = self.message(at)? {
            at = next;
            let root = Flat::root(&message.bytes)?;
            if root.byte(1)? != RECORD_BATCH {
                continue;
            }
            let table = root.table(2)?.ok_or_else(damaged)?;
            if table.table(3)?.is_some() {
                return Err(Flaw::from("has compressed record batches (save it without compression)"));
            }
            let batch = Batch {
                table,
                rows: u64::try_from(table.long(0)?).map_err(|_| damaged())?,
                body: message.body,
                body_bytes: message.body_bytes,
            };
            // Memory for a row is taken before its value is seen.
            rows = rows.saturating_add(batch.rows);
            if rows > self.file_bytes {
                return Err(Flaw::new(format!("says that it has {rows} rows in {} bytes", self.file_bytes)));
            }
            each(&batch)?;
        }
        Ok(())
    }

    /// Where the byte strings of a leaf are.
    ///
    /// # Errors
    /// When its batches are damaged.
    pub fn strings(&self, leaf: usize) -> Result<Vec<Cell>, Flaw> {
        let leaf = self.schema.leaves[leaf];
        let Values::Strings(width) = leaf.values else {
            return Err(Flaw::from("has no byte strings in that column"));
        };
        let mut cells = Vec::new();
        self.batches(&mut |batch| {
            let there = batch.validity(&self.file, &leaf)?;
            let (start, len) = batch.buffer(leaf.place.buffer + 2)?;
            let rows = batch.rows as usize;
            // A batch without rows may have no offsets at all.
            let offsets =
                batch.load(&self.file, leaf.place.buffer + 1, if rows == 0 { 0 } else { (rows + 1) * width })?;
            let mut offsets = offsets.chunks_exact(width).map(|bytes| match bytes.try_into() {
                Ok(four) => u64::from(u32::from_le_bytes(four)),
                Err(_) => u64::from_le_bytes(bytes.try_into().expect("eight bytes")),
            });
            let mut from = offsets.next().unwrap_or(0);
            for (nth, to) in offsets.enumerate() {
                let bytes = to.checked_sub(from).filter(|_| to <= len).ok_or_else(damaged)?;
                // More than can be said is more than is read.
                let place = Place { offset: start + from, bytes: u32::try_from(bytes).unwrap_or(u32::MAX) };
                cells.push(if there(nth) { Cell::InPlace(place) } else { Cell::Null });
                from = to;
            }
            Ok(())
        })?;
        Ok(cells)
    }

    /// The integers of a leaf; none where there is none.
    ///
    /// # Errors
    /// When its batches are damaged.
    pub fn integers(&self, leaf: usize) -> Result<Vec<Option<i64>>, Flaw> {
        let leaf = self.schema.leaves[leaf];
        let Values::Integers { bytes: width, is_signed } = leaf.values else {
            return Err(Flaw::from("has no integers in that column"));
        };
        let mut all = Vec::new();
        self.batches(&mut |batch| {
            let there = batch.validity(&self.file, &leaf)?;
            let values = batch.load(&self.file, leaf.place.buffer + 1, batch.rows as usize * width)?;
            for (nth, value) in values.chunks_exact(width).enumerate() {
                let fill = if is_signed && value[width - 1] & 0x80 != 0 { 0xFF } else { 0 };
                let mut whole = [fill; 8];
                whole[..width].copy_from_slice(value);
                all.push(there(nth).then(|| i64::from_le_bytes(whole)));
            }
            Ok(())
        })?;
        Ok(all)
    }

    /// Calls `each` with the texts of a leaf; none where there is none.
    ///
    /// # Errors
    /// When its batches are damaged.
    pub fn texts(&self, leaf: usize, each: &mut dyn FnMut(Option<&[u8]>)) -> Result<(), Flaw> {
        let mut text = Vec::new();
        for cell in self.strings(leaf)? {
            let Cell::InPlace(Place { offset, bytes }) = cell else {
                each(None);
                continue;
            };
            // A place lies within the file.
            text.resize(bytes as usize, 0);
            self.file.read_exact_at(&mut text, offset)?;
            each(Some(&text));
        }
        Ok(())
    }
}

impl Batch<'_> {
    /// Where a buffer lies in the file, and its length.
    fn buffer(&self, number: usize) -> Result<(u64, u64), Flaw> {
        let buffers = self.table.vector(2, 16)?;
        if number >= buffers.len {
            return Err(damaged());
        }
        let [offset, len] = buffers.pair(number)?.map(u64::try_from);
        let (Ok(offset), Ok(len)) = (offset, len) else {
            return Err(damaged());
        };
        let is_within = offset.checked_add(len).is_some_and(|end| end <= self.body_bytes);
        if is_within { Ok((self.body + offset, len)) } else { Err(damaged()) }
    }

    /// The first `len` bytes of a buffer.
    fn load(&self, file: &Opened, number: usize, len: usize) -> Result<Vec<u8>, Flaw> {
        let (start, there) = self.buffer(number)?;
        if len as u64 > there {
            return Err(damaged());
        }
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, start)?;
        Ok(bytes)
    }

    /// Which values of a leaf are there.
    fn validity(&self, file: &Opened, leaf: &Leaf) -> Result<impl Fn(usize) -> bool + use<>, Flaw> {
        let mut bits = Vec::new();
        for Numbers { node, buffer } in [Some(leaf.place), leaf.parent].into_iter().flatten() {
            let nodes = self.table.vector(1, 16)?;
            if node >= nodes.len {
                return Err(damaged());
            }
            let [rows, nulls] = nodes.pair(node)?;
            if rows as u64 != self.rows {
                return Err(damaged());
            }
            if nulls != 0 {
                bits.push(self.load(file, buffer, (self.rows as usize).div_ceil(8))?);
            }
        }
        Ok(move |nth: usize| bits.iter().all(|bits| bits[nth / 8] >> (nth % 8) & 1 != 0))
    }
}

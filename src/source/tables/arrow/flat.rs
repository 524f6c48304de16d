//! FlatBuffers, read from a slice: what the messages of Arrow files are written in.
//!
//! Every offset is checked where it is followed. Tables may be shared, so whoever walks a tree counts what it visits.

use super::super::super::flaw::Flaw;

/// A table of a buffer.
#[derive(Clone, Copy)]
pub struct Flat<'a> {
    buffer: &'a [u8],
    /// Where its fields' offsets are counted from.
    at: usize,
    /// Offsets of its fields, two bytes each.
    fields: &'a [u8],
}

/// A vector of a buffer: its elements lie within the buffer.
#[derive(Clone, Copy)]
pub struct Vector<'a> {
    buffer: &'a [u8],
    at: usize,
    /// Elements.
    pub len: usize,
}

fn damaged() -> Flaw {
    Flaw::from("has a damaged message (copy it again)")
}

fn bytes<const N: usize>(buffer: &[u8], at: usize) -> Result<[u8; N], Flaw> {
    let found = buffer.get(at..).and_then(<[u8]>::first_chunk);
    found.copied().ok_or_else(damaged)
}

/// Where the offset at `at` leads.
fn follow(buffer: &[u8], at: usize) -> Result<usize, Flaw> {
    at.checked_add(u32::from_le_bytes(bytes(buffer, at)?) as usize).ok_or_else(damaged)
}

impl<'a> Flat<'a> {
    /// The outermost table of a buffer.
    pub fn root(buffer: &'a [u8]) -> Result<Self, Flaw> {
        Self::new(buffer, follow(buffer, 0)?)
    }

    fn new(buffer: &'a [u8], at: usize) -> Result<Self, Flaw> {
        let back = i32::from_le_bytes(bytes(buffer, at)?);
        let table = usize::try_from(at as i64 - i64::from(back)).map_err(|_| damaged())?;
        let len = usize::from(u16::from_le_bytes(bytes(buffer, table)?));
        // Its own length and the table's come first.
        let fields = buffer.get(table..).and_then(|rest| rest.get(4..len)).ok_or_else(damaged)?;
        Ok(Self { buffer, at, fields })
    }

    /// Where a field lies; none where it has its default.
    fn field(&self, number: usize) -> Option<usize> {
        let offset = self.fields.get(number * 2..)?.first_chunk().copied().map(u16::from_le_bytes)?;
        (offset != 0).then(|| self.at + usize::from(offset))
    }

    fn scalar<const N: usize>(&self, number: usize) -> Result<Option<[u8; N]>, Flaw> {
        self.field(number).map(|at| bytes(self.buffer, at)).transpose()
    }

    pub fn byte(&self, number: usize) -> Result<u8, Flaw> {
        Ok(self.scalar(number)?.map_or(0, u8::from_le_bytes))
    }

    pub fn short(&self, number: usize) -> Result<i16, Flaw> {
        Ok(self.scalar(number)?.map_or(0, i16::from_le_bytes))
    }

    pub fn int(&self, number: usize) -> Result<i32, Flaw> {
        Ok(self.scalar(number)?.map_or(0, i32::from_le_bytes))
    }

    pub fn long(&self, number: usize) -> Result<i64, Flaw> {
        Ok(self.scalar(number)?.map_or(0, i64::from_le_bytes))
    }

    /// A field that is a table.
    pub fn table(&self, number: usize) -> Result<Option<Self>, Flaw> {
        self.field(number).map(|at| Self::new(self.buffer, follow(self.buffer, at)?)).transpose()
    }

    /// A field that is a vector, of elements of `size` bytes.
    pub fn vector(&self, number: usize, size: usize) -> Result<Vector<'a>, Flaw> {
        let Some(at) = self.field(number) else {
            return Ok(Vector { buffer: &[], at: 0, len: 0 });
        };
        let start = follow(self.buffer, at)?;
        let len = u32::from_le_bytes(bytes(self.buffer, start)?) as usize;
        let at = start + 4;
        let end = len.checked_mul(size).and_then(|bytes| at.checked_add(bytes));
        end.filter(|&end| end <= self.buffer.len()).ok_or_else(damaged)?;
        Ok(Vector { buffer: self.buffer, at, len })
    }

    /// A field that is a text; empty where there is none.
    pub fn text(&self, number: usize) -> Result<&'a [u8], Flaw> {
        let vector = self.vector(number, 1)?;
        vector.buffer.get(vector.at..vector.at + vector.len).ok_or_else(damaged)
    }
}

impl<'a> Vector<'a> {
    /// An element that is a table; the vector's elements have 4 bytes.
    pub fn table(&self, nth: usize) -> Result<Flat<'a>, Flaw> {
        Flat::new(self.buffer, follow(self.buffer, self.at + nth * 4)?)
    }

    /// An element that is two long integers; the vector's elements have 16 bytes.
    pub fn pair(&self, nth: usize) -> Result<[i64; 2], Flaw> {
        let at = self.at + nth * 16;
        Ok([i64::from_le_bytes(bytes(self.buffer, at)?), i64::from_le_bytes(bytes(self.buffer, at + 8)?)])
    }
}

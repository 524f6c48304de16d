//! Thrift's compact protocol, read from a slice: what Parquet's footers and page headers are written in.
//!
//! Lengths and counts are never trusted: a byte string is a slice of the input, and whoever reads a list pushes its elements one by one, each of
//! which takes at least one byte of the input.

/// The most structures and lists within each other. Parquet's own have six levels.
const DEPTH_MAX: u32 = 24;

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// They end within it. More of them may help.
    Short,
    /// A value of another type than the format has there, or no value at all.
    Invalid,
}

/// The type of a value in the encoding of struct fields and list elements.
type Kind = u8;
const TRUE: Kind = 1;
const FALSE: Kind = 2;
const DOUBLE: Kind = 7;
const BINARY: Kind = 8;
const STRUCT: Kind = 12;

/// A field of a structure.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its number in the format's definition.
    pub id: i16,
    kind: Kind,
}

/// A reader over a slice.
pub struct Compact<'a> {
    all: &'a [u8],
    at: usize,
    depth: u32,
}

impl<'a> Compact<'a> {
    pub fn new(all: &'a [u8]) -> Self {
        Self { all, at: 0, depth: 0 }
    }

    /// Bytes that have been read.
    pub fn position(&self) -> usize {
        self.at
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        let byte = *self.all.get(self.at).ok_or(Malformed::Short)?;
        self.at += 1;
        Ok(byte)
    }

    fn unsigned(&mut self) -> Result<u64, Malformed> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Malformed::Invalid)
    }

    fn signed(&mut self) -> Result<i64, Malformed> {
        let number = self.unsigned()?;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    fn slice(&mut self) -> Result<&'a [u8], Malformed> {
        let len = usize::try_from(self.unsigned()?).map_err(|_| Malformed::Invalid)?;
        let end = self.at.checked_add(len).ok_or(Malformed::Invalid)?;
        let slice = self.all.get(self.at..end).ok_or(Malformed::Short)?;
        self.at = end;
        Ok(slice)
    }

    /// Reads a structure: calls `each` for every field, which reads it, or else returns `false` to have it skipped.
    ///
    /// # Errors
    /// Those of `each`, and when the bytes are no structure.
    pub fn structure(
        &mut self,
        each: &mut dyn FnMut(&mut Self, Field) -> Result<bool, Malformed>,
    ) -> Result<(), Malformed> {
        self.deeper()?;
        let mut id: i16 = 0;
        loop {
            let head = self.byte()?;
            if head == 0 {
                break;
            }
            id = match head >> 4 {
                0 => i16::try_from(self.signed()?).map_err(|_| Malformed::Invalid)?,
                step => id.checked_add(i16::from(step)).ok_or(Malformed::Invalid)?,
            };
            let field = Field { id, kind: head & 0x0F };
            if !each(self, field)? {
                self.skip(field.kind, false)?;
            }
        }
        self.depth -= 1;
        Ok(())
    }

    fn deeper(&mut self) -> Result<(), Malformed> {
        self.depth += 1;
        if self.depth > DEPTH_MAX { Err(Malformed::Invalid) } else { Ok(()) }
    }

    /// A field that is a structure.
    pub fn inner(
        &mut self,
        field: Field,
        each: &mut dyn FnMut(&mut Self, Field) -> Result<bool, Malformed>,
    ) -> Result<(), Malformed> {
        if field.kind != STRUCT {
            return Err(Malformed::Invalid);
        }
        self.structure(each)
    }

    /// A field that is an integer.
    pub fn int(&mut self, field: Field) -> Result<i64, Malformed> {
        match field.kind {
            3 => self.byte().map(|byte| i64::from(byte as i8)),
            4..=6 => self.signed(),
            _ => Err(Malformed::Invalid),
        }
    }

    /// A field that is an integer of 0 or more.
    pub fn size(&mut self, field: Field) -> Result<u64, Malformed> {
        u64::try_from(self.int(field)?).map_err(|_| Malformed::Invalid)
    }

    /// A field that is true or false.
    pub fn truth(&mut self, field: Field) -> Result<bool, Malformed> {
        match field.kind {
            TRUE => Ok(true),
            FALSE => Ok(false),
            _ => Err(Malformed::Invalid),
        }
    }

    /// A field that is a string of bytes.
    pub fn bytes(&mut self, field: Field) -> Result<&'a [u8], Malformed> {
        if field.kind == BINARY { self.slice() } else { Err(Malformed::Invalid) }
    }

    /// A field that is a list of structures: calls `each` to read every one.
    pub fn structures(
        &mut self,
        field: Field,
        each: &mut dyn FnMut(&mut Self) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        let (kind, count) = self.list(field)?;
        if kind != STRUCT && count > 0 {
            return Err(Malformed::Invalid);
        }
        (0..count).try_for_each(|_| each(self))
    }

    fn list(&mut self, field: Field) -> Result<(Kind, u64), Malformed> {
        if !matches!(field.kind, 9 | 10) {
            return Err(Malformed::Invalid);
        }
        self.list_head()
    }

    fn list_head(&mut self) -> Result<(Kind, u64), Malformed> {
        let head = self.byte()?;
        let count = if head >> 4 == 15 { self.unsigned()? } else { u64::from(head >> 4) };
        Ok((head & 0x0F, count))
    }

    /// Skips a value; in lists and maps a truth value takes a byte, as a field it is in its type.
    fn skip(&mut self, kind: Kind, in_list: bool) -> Result<(), Malformed> {
        match kind {
            TRUE | FALSE if !in_list => Ok(()),
            TRUE..=3 => self.byte().map(drop),
            4..=6 => self.unsigned().map(drop),
            DOUBLE => (0..8).try_for_each(|_| self.byte().map(drop)),
            BINARY => self.slice().map(drop),
            9 | 10 => {
                self.deeper()?;
                let (kind, count) = self.list_head()?;
                (0..count).try_for_each(|_| self.skip(kind, true))?;
                self.depth -= 1;
                Ok(())
            }
            11 => {
                self.deeper()?;
                let count = self.unsigned()?;
                if count > 0 {
                    let kinds = self.byte()?;
                    for _ in 0..count {
                        self.skip(kinds >> 4, true)?;
                        self.skip(kinds & 0x0F, true)?;
                    }
                }
                self.depth -= 1;
                Ok(())
            }
            STRUCT => self.structure(&mut |_, _| Ok(false)),
            _ => Err(Malformed::Invalid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_asked_for_is_skipped() {
        // 1: i32 -3; 2: list of two structures, one empty and one with a map and a double; 3: true; 21: "ab".
        let bytes = [
            &[0x15, 5, 0x19, 0x2C, 0, 0x1B, 1, 0x85, 1, b'k', 2, 0x17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x11][..],
            &[0x08, 42, 2, b'a', b'b', 0],
        ]
        .concat();
        let read = |bytes: &[u8]| {
            let (mut compact, mut number, mut text) = (Compact::new(bytes), 0, Vec::new());
            compact.structure(&mut |compact, field| {
                match field.id {
                    1 => number = compact.int(field)?,
                    21 => text = compact.bytes(field)?.to_vec(),
                    _ => return Ok(false),
                }
                Ok(true)
            })?;
            Ok((number, text, compact.position()))
        };
        assert_eq!(read(&bytes), Ok((-3, b"ab".to_vec(), bytes.len())));
        for len in 0..bytes.len() {
            assert_eq!(read(&bytes[..len]), Err(Malformed::Short), "{len}");
        }
    }

    #[test]
    fn no_depth_and_no_count_is_trusted() {
        let nested = [0x1C; 1_000];
        assert_eq!(Compact::new(&nested).structure(&mut |_, _| Ok(false)), Err(Malformed::Invalid));
        // A list that says to have 2^62 integers, or as many truth values.
        for kind in [0xF5, 0xF1] {
            let list = [0x19, kind, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x3F, 2];
            assert_eq!(Compact::new(&list).structure(&mut |_, _| Ok(false)), Err(Malformed::Short));
        }
    }
}

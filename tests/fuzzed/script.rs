//! Bytes as a script of small steps.

/// What is left of a script.
pub struct Script<'a>(pub &'a [u8]);

impl<'a> Script<'a> {
    /// The next byte; `None` at the end.
    pub fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    /// The next two bytes as a number.
    pub fn number(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes([self.byte()?, self.byte()?]))
    }

    /// A place below `end`, and up to 15 bytes to write there.
    pub fn patch(&mut self, end: usize) -> Option<(u64, &'a [u8])> {
        let (at, len) = (usize::from(self.number()?), usize::from(self.byte()? % 16));
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        let at = at % end;
        Some((at as u64, &bytes[..len.min(end - at)]))
    }
}

//! Small reads at rising offsets of a file, through a window that grows while they follow each other.
//!
//! Between large images only a page is read for each header; where headers lie close together, many come with one call.

use super::super::located::Opened;
use super::fault::Fault;

const WINDOW_BYTES_MIN: usize = 4 << 10;
const WINDOW_BYTES_MAX: usize = 128 << 10;

/// A file of a known size.
#[derive(Debug)]
pub struct Reader<'a> {
    file: &'a Opened,
    file_bytes: u64,
    window: Vec<u8>,
    /// Offset of the window's first byte.
    start: u64,
    /// Bytes that the next window is to have if it follows this one.
    next_bytes: usize,
}

impl<'a> Reader<'a> {
    /// Reads `file`.
    pub fn new(file: &'a Opened, file_bytes: u64) -> Self {
        Self { file, file_bytes, window: Vec::new(), start: 0, next_bytes: WINDOW_BYTES_MIN }
    }

    /// The file's size when it was opened.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// `length` bytes from `offset`, which must be in the file; the caller bounds the length.
    ///
    /// # Errors
    /// When they cannot be read; a file that has become shorter is one that is [`Fault::Cut`].
    pub fn get(&mut self, offset: u64, length: u64) -> Result<&[u8], Fault> {
        let length = length as usize;
        let window_end = self.start + self.window.len() as u64;
        let is_inside = offset >= self.start && offset + length as u64 <= window_end;
        if !is_inside {
            let follows = (self.start..=window_end).contains(&offset);
            let bytes = if follows { self.next_bytes } else { WINDOW_BYTES_MIN };
            self.next_bytes = (2 * bytes).min(WINDOW_BYTES_MAX);
            self.window.resize(bytes.max(length), 0);
            self.start = offset;
            let read = self.file.read_up_to(&mut self.window, offset);
            self.window.truncate(*read.as_ref().unwrap_or(&0));
            if read.map_err(Fault::Io)? < length {
                return Err(Fault::Cut { offset });
            }
        }
        let at = (offset - self.start) as usize;
        Ok(&self.window[at..at + length])
    }
}

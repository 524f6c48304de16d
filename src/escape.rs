//! Names and causes as people may see them: on a terminal, in a log, in an error.
//!
//! A name may hold any byte but `/` and 0. Printed as it is, it could move a terminal's cursor, or begin a line of the log that mixd never wrote.

use std::ffi::OsStr;
use std::fmt::{self, Display, Formatter, Write};
use std::os::unix::ffi::OsStrExt;

/// What prints a name on one line: control characters, marks that reorder text, bytes that are not UTF-8 and backslashes are escaped as in a
/// Rust string (`\n`, `\x1b`, `\xe9`, `\u{202e}`, `\\`). Different names stay different.
pub fn escaped<T: AsRef<OsStr> + ?Sized>(name: &T) -> Escaped<'_> {
    Escaped { text: name.as_ref(), backslashes: true }
}

/// The same of a text that is no name, such as a decoder's words on a file: its backslashes stay as they are.
pub fn printable(text: &str) -> Escaped<'_> {
    Escaped { text: OsStr::new(text), backslashes: false }
}

/// A text that prints as [`escaped`] or [`printable`] describes.
#[derive(Debug, Clone, Copy)]
pub struct Escaped<'a> {
    text: &'a OsStr,
    backslashes: bool,
}

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for chunk in self.text.as_bytes().utf8_chunks() {
            for char in chunk.valid().chars() {
                match char {
                    '\\' if !self.backslashes => f.write_char(char)?,
                    '\\' | '\n' | '\r' | '\t' => write!(f, "{}", char.escape_default())?,
                    char if char.is_ascii_control() => write!(f, "\\x{:02x}", char as u32)?,
                    char if char.is_control() || reorders(char) => write!(f, "{}", char.escape_unicode())?,
                    char => f.write_char(char)?,
                }
            }
            chunk.invalid().iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))?;
        }
        Ok(())
    }
}

/// Whether a character breaks a line, or shows text in another order than it has.
fn reorders(char: char) -> bool {
    matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_prints_on_one_line_and_names_stay_different() {
        for (name, shown) in [
            (&b"train/cat/\xC3\xA9t\xC3\xA9 1.jpg"[..], "train/cat/\u{e9}t\u{e9} 1.jpg"),
            (b"a\nb\r\tc", "a\\nb\\r\\tc"),
            (b"\x1b[31m\x07\x00\x7f", "\\x1b[31m\\x07\\x00\\x7f"),
            (b"caf\xe9.jpg", "caf\\xe9.jpg"),
            (b"caf\\xe9.jpg", "caf\\\\xe9.jpg"),
            ("\u{9b}31m \u{202e}gpj \u{2028}\u{85}".as_bytes(), "\\u{9b}31m \\u{202e}gpj \\u{2028}\\u{85}"),
        ] {
            let text = escaped(OsStr::from_bytes(name)).to_string();
            assert_eq!(text, shown);
            assert!(!text.chars().any(|char| char.is_control() || reorders(char)), "{text:?}");
        }
        assert_eq!(printable("a\\xe9\x1b[31m\n").to_string(), "a\\xe9\\x1b[31m\\n");
    }
}

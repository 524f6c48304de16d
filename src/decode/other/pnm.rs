//! PBM, PGM and PPM, by a reader of our own: `image` rounds levels otherwise than Pillow does (its `PpmImagePlugin.py`).

use super::Shape;
use crate::decode::output::Output;
use crate::decode::{ImageError, check_size};
use crate::types::ImageSize;

/// Digits of a number at most, in Pillow.
const DIGITS_MAX: usize = 10;

/// What a file's header tells.
struct Header<'a> {
    size: ImageSize,
    /// Numbers, not bytes.
    is_text: bool,
    channels: usize,
    /// The value of white, or `None` of a bitmap, where 1 is black.
    white: Option<u32>,
    data: &'a [u8],
}

fn damaged(cause: &str) -> ImageError {
    ImageError::Decode(cause.to_owned())
}

fn cut() -> ImageError {
    damaged("the file is cut off: rows are missing")
}

/// As Python has it.
fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0B
}

/// Bytes without comments, which reach from `#` to the end of the line and part no number.
struct Text<'a>(&'a [u8]);

impl Iterator for Text<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        loop {
            let (first, rest) = self.0.split_first()?;
            self.0 = rest;
            if *first != b'#' {
                return Some(*first);
            }
            let end = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
            self.0 = end.map_or(&[], |end| &rest[end + 1..]);
        }
    }
}

impl Text<'_> {
    /// The next number, with the one white space behind it.
    fn number(&mut self) -> Result<u32, ImageError> {
        let first = self.find(|byte| !is_space(*byte)).ok_or_else(cut)?;
        let (mut digits, mut number) = (0, 0_u64);
        let mut next = Some(first);
        while let Some(byte) = next.filter(|byte| !is_space(*byte)) {
            digits += 1;
            if !byte.is_ascii_digit() || digits > DIGITS_MAX {
                return Err(damaged("what should be a number is none"));
            }
            number = 10 * number + u64::from(byte - b'0');
            next = self.next();
        }
        u32::try_from(number).map_err(|_| damaged("a number is too large"))
    }
}

/// Whether a file begins as one of these formats does.
pub fn is_pnm(file: &[u8]) -> bool {
    matches!(file, [b'P', b'1'..=b'6', space, ..] if is_space(*space))
}

fn header(file: &[u8]) -> Result<Header<'_>, ImageError> {
    let kind = file[1] - b'0';
    let mut text = Text(&file[2..]);
    let (width, height) = check_size(text.number()?, text.number()?)?;
    let white = if matches!(kind, 1 | 4) { None } else { Some(text.number()?) };
    if white.is_some_and(|white| white == 0 || white > 65_535) {
        return Err(damaged("its levels are not 1 to 65535"));
    }
    let channels = if matches!(kind, 3 | 6) { 3 } else { 1 };
    Ok(Header { size: ImageSize { height, width }, is_text: kind < 4, channels, white, data: text.0 })
}

/// The size in the file's header.
pub fn size(file: &[u8]) -> Result<ImageSize, ImageError> {
    header(file).map(|header| header.size)
}

/// A value of `white` levels as a byte: rounded to the nearest, ties to even. Gray of more than 255 levels is stretched to 65535, then clipped.
fn level(value: u32, white: u32, channels: usize) -> u8 {
    let most = if white > 255 && channels == 1 { 65_535.0 } else { 255.0 };
    // Saturates.
    (f64::from(value) / f64::from(white) * most).round_ties_even() as u8
}

fn bits(header: &Header, values: &mut [u8]) -> Result<(), ImageError> {
    if header.is_text {
        let mut bits = Text(header.data).filter(|byte| !is_space(*byte)).map(|byte| match byte {
            b'0' => Ok(255),
            b'1' => Ok(0),
            _ => Err(damaged("a bit is neither 0 nor 1")),
        });
        for value in values {
            *value = bits.next().ok_or_else(cut)??;
        }
        // Pillow looks at what follows, too.
        return bits.try_for_each(|bit| bit.map(drop));
    }
    let width = header.size.width as usize;
    let row_bytes = width.div_ceil(8);
    for (y, row) in values.chunks_exact_mut(width).enumerate() {
        let packed = header.data.get(y * row_bytes..(y + 1) * row_bytes).ok_or_else(cut)?;
        for (x, value) in row.iter_mut().enumerate() {
            *value = if packed[x / 8] << (x % 8) & 0x80 == 0 { 255 } else { 0 };
        }
    }
    Ok(())
}

fn levels(header: &Header, white: u32, values: &mut [u8]) -> Result<(), ImageError> {
    if header.is_text {
        let mut text = Text(header.data);
        for value in values {
            let number = text.number()?;
            if number > white {
                return Err(damaged("a value is larger than its levels allow"));
            }
            *value = level(number, white, header.channels);
        }
    } else if white > 255 {
        let pairs = header.data.get(..2 * values.len()).ok_or_else(cut)?;
        for (value, pair) in values.iter_mut().zip(pairs.chunks_exact(2)) {
            *value = level(u16::from_be_bytes([pair[0], pair[1]]).into(), white, header.channels);
        }
    } else {
        values.copy_from_slice(header.data.get(..values.len()).ok_or_else(cut)?);
        if white < 255 {
            let table: [u8; 256] = std::array::from_fn(|value| level(value as u32, white, header.channels));
            values.iter_mut().for_each(|value| *value = table[usize::from(*value)]);
        }
    }
    Ok(())
}

/// Decodes a file.
pub fn decode(file: &[u8], output: &mut Output) -> Result<Shape, ImageError> {
    let header = header(file)?;
    let ImageSize { height, width } = header.size;
    let bytes = width as usize * height as usize * header.channels;
    let values = output.room(bytes, 0)?;
    values.truncate(bytes);
    match header.white {
        None => bits(&header, values)?,
        Some(white) => levels(&header, white, values)?,
    }
    Ok(Shape { width, height, channels: header.channels })
}

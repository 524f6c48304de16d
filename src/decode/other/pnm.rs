//! PBM, PGM and PPM, scaled as Pillow scales them (`PpmImagePlugin.py` of 11.3); `image` rounds ties differently.

use super::samples::{gray, sample};
use super::{Shape, malformed, truncated};
use crate::decode::output::Output;
use crate::decode::{ImageError, check_size};
use crate::types::ImageSize;

/// The longest number that Pillow parses.
const DIGITS_MAX: usize = 10;

/// The header's fields.
struct Header<'a> {
    size: ImageSize,
    /// Whether the raster is ASCII (P1 to P3), not binary.
    is_plain: bool,
    channels: usize,
    /// The largest value, 1 to 65535; `None` for a bitmap, where 1 is black.
    maxval: Option<u32>,
    raster: &'a [u8],
}

/// Whitespace of Python's `bytes.split`.
fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0B
}

/// Iterates over ASCII without comments, which run from `#` to the end of the line; as in Pillow, they do not end a number.
struct Ascii<'a>(&'a [u8]);

impl Iterator for Ascii<'_> {
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

impl Ascii<'_> {
    /// Parses the next number, and consumes the whitespace byte that ends it.
    fn number(&mut self) -> Result<u32, ImageError> {
        let first = self.find(|byte| !is_space(*byte)).ok_or_else(truncated)?;
        let (mut digits, mut number) = (0, 0_u64);
        let mut next = Some(first);
        while let Some(byte) = next.filter(|byte| !is_space(*byte)) {
            digits += 1;
            if !byte.is_ascii_digit() || digits > DIGITS_MAX {
                return Err(malformed("expected a decimal number"));
            }
            number = 10 * number + u64::from(byte - b'0');
            next = self.next();
        }
        u32::try_from(number).map_err(|_| malformed("a number is too large"))
    }
}

/// Whether a file begins with the magic number of PBM, PGM or PPM.
pub fn is_pnm(file: &[u8]) -> bool {
    matches!(file, [b'P', b'1'..=b'6', space, ..] if is_space(*space))
}

fn header(file: &[u8]) -> Result<Header<'_>, ImageError> {
    let kind = file[1] - b'0';
    let mut ascii = Ascii(&file[2..]);
    let (width, height) = check_size(ascii.number()?, ascii.number()?)?;
    let maxval = if matches!(kind, 1 | 4) { None } else { Some(ascii.number()?) };
    if maxval.is_some_and(|maxval| maxval == 0 || maxval > 65_535) {
        return Err(malformed("its maxval is not between 1 and 65535"));
    }
    let channels = if matches!(kind, 3 | 6) { 3 } else { 1 };
    Ok(Header { size: ImageSize { height, width }, is_plain: kind < 4, channels, maxval, raster: ascii.0 })
}

/// The size in the file's header.
pub fn size(file: &[u8]) -> Result<ImageSize, ImageError> {
    header(file).map(|header| header.size)
}

/// Scales a value to 8 bits, rounding half to even. Gray with a `maxval` above 255 is scaled to 16 bits instead, and saturates at 255, as Pillow's mode I does.
fn scale(value: u32, maxval: u32, channels: usize) -> u8 {
    let most = if maxval > 255 && channels == 1 { 65_535.0 } else { 255.0 };
    (f64::from(value) / f64::from(maxval) * most).round_ties_even() as u8
}

fn decode_bitmap(header: &Header, values: &mut [u8]) -> Result<(), ImageError> {
    if header.is_plain {
        let mut bits = Ascii(header.raster).filter(|byte| !is_space(*byte)).map(|byte| match byte {
            b'0' => Ok(255),
            b'1' => Ok(0),
            _ => Err(malformed("a bit is neither 0 nor 1")),
        });
        for value in values {
            *value = bits.next().ok_or_else(truncated)??;
        }
        // Pillow validates trailing bytes, too.
        return bits.try_for_each(|bit| bit.map(drop));
    }
    let width = header.size.width as usize;
    let row_bytes = width.div_ceil(8);
    for (y, row) in values.chunks_exact_mut(width).enumerate() {
        let packed = header.raster.get(y * row_bytes..(y + 1) * row_bytes).ok_or_else(truncated)?;
        row.iter_mut().enumerate().for_each(|(x, value)| *value = gray(1 - sample(packed, 1, x), 1));
    }
    Ok(())
}

fn decode_values(header: &Header, maxval: u32, values: &mut [u8]) -> Result<(), ImageError> {
    if header.is_plain {
        let mut ascii = Ascii(header.raster);
        for value in values {
            let number = ascii.number()?;
            if number > maxval {
                return Err(malformed("a value exceeds maxval"));
            }
            *value = scale(number, maxval, header.channels);
        }
    } else if maxval > 255 {
        let pairs = header.raster.get(..2 * values.len()).ok_or_else(truncated)?;
        for (value, pair) in values.iter_mut().zip(pairs.chunks_exact(2)) {
            *value = scale(u16::from_be_bytes([pair[0], pair[1]]).into(), maxval, header.channels);
        }
    } else {
        values.copy_from_slice(header.raster.get(..values.len()).ok_or_else(truncated)?);
        if maxval < 255 {
            let table: [u8; 256] = std::array::from_fn(|value| scale(value as u32, maxval, header.channels));
            values.iter_mut().for_each(|value| *value = table[usize::from(*value)]);
        }
    }
    Ok(())
}

/// Decodes a file: gray (1 value a pixel) for PBM and PGM, RGB for PPM.
pub fn decode(file: &[u8], output: &mut Output) -> Result<Shape, ImageError> {
    let header = header(file)?;
    let ImageSize { height, width } = header.size;
    let bytes = width as usize * height as usize * header.channels;
    let values = output.room(bytes, 0)?;
    values.truncate(bytes);
    match header.maxval {
        None => decode_bitmap(&header, values)?,
        Some(maxval) => decode_values(&header, maxval, values)?,
    }
    Ok(Shape { width, height, channels: header.channels })
}

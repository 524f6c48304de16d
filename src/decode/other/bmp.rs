//! BMP, by a reader of our own: `image` widens 5 and 6 bits otherwise than Pillow does, and leaves pixels transparent that a run skips.

use super::samples::{Palette, sample};
use super::{Shape, malformed, truncated};
use crate::decode::output::Output;
use crate::decode::{ImageError, check_size};
use crate::types::ImageSize;

/// How pixels lie in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pixels {
    /// Indices of 1, 4 or 8 bits.
    Indices(u32),
    /// Runs of indices of 4 or 8 bits.
    Runs(u32),
    /// Two bytes with so many bits of green.
    Sixteen(u32),
    /// Three or four bytes a pixel; which of them are red, green and blue.
    Bytes(usize, [usize; 3]),
}

/// The fields of the file header and the info header.
struct Header<'a> {
    size: ImageSize,
    top_down: bool,
    pixels: Pixels,
    /// From the first color on, of a paletted file; of so many colors, of so many bytes.
    palette: (&'a [u8], usize, usize),
    data: &'a [u8],
}

fn unsupported(what: String) -> ImageError {
    ImageError::Decode(format!("BMPs {what} are not supported (save it with 24 bits)"))
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u32, ImageError> {
    let bytes = bytes.get(at..at + 2).ok_or_else(|| malformed("the file is cut off in its header"))?;
    Ok(u16::from_le_bytes([bytes[0], bytes[1]]).into())
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, ImageError> {
    Ok(u16_at(bytes, at)? | u16_at(bytes, at + 2)? << 16)
}

/// Where the masks of red, green and blue lie in four bytes, or `None` where that is no whole byte.
fn bytes_of(masks: [u32; 3]) -> Option<[usize; 3]> {
    let mut places = [0; 3];
    for (place, mask) in places.iter_mut().zip(masks) {
        *place = (0..4).find(|byte| mask == 0xFF << (8 * byte))?;
    }
    Some(places)
}

/// The layouts with masks that Pillow knows, and other orders of whole bytes.
fn by_masks(bits: u32, masks: [u32; 4]) -> Option<Pixels> {
    let [red, green, blue, alpha] = masks;
    match (bits, [red, green, blue]) {
        (16, [0x7C00, 0x3E0, 0x1F]) => Some(Pixels::Sixteen(5)),
        (16, [0xF800, 0x7E0, 0x1F]) => Some(Pixels::Sixteen(6)),
        (24, [0xFF_0000, 0xFF00, 0xFF]) => Some(Pixels::Bytes(3, [2, 1, 0])),
        (32, [0, 0, 0]) if alpha == 0 => Some(Pixels::Bytes(4, [2, 1, 0])),
        (32, rgb) => bytes_of(rgb).map(|places| Pixels::Bytes(4, places)),
        _ => None,
    }
}

fn header(file: &[u8]) -> Result<Header<'_>, ImageError> {
    let (offset, header_bytes) = (u32_at(file, 10)?, u32_at(file, 14)?);
    let end = 14 + header_bytes as usize;
    let is_core = header_bytes == 12;
    if !matches!(header_bytes, 12 | 40 | 52 | 56 | 64 | 108 | 124) {
        return Err(unsupported(format!("with a header of {header_bytes} bytes")));
    }
    let (width, height, bits) = if is_core {
        (u16_at(file, 18)?, u16_at(file, 20)? as i32, u16_at(file, 24)?)
    } else {
        (u32_at(file, 18)?, u32_at(file, 22)? as i32, u16_at(file, 28)?)
    };
    let (width, rows) = check_size(width, height.unsigned_abs())?;
    let (compression, colors) = if is_core { (0, 0) } else { (u32_at(file, 30)?, u32_at(file, 46)?) };
    let mut palette_at = end;
    let pixels = match (compression, bits) {
        (0, 1 | 4 | 8) => Pixels::Indices(bits),
        (0, 16) => Pixels::Sixteen(5),
        (0, 24 | 32) => Pixels::Bytes(bits as usize / 8, [2, 1, 0]),
        (1, 8) => Pixels::Runs(8),
        (2, 4) => Pixels::Runs(4),
        (3, 16 | 24 | 32) => {
            // In the header from version 2 on, else behind it; the fourth from version 3 on.
            let at = 14 + 40;
            let alpha = if header_bytes >= 56 { u32_at(file, at + 12)? } else { 0 };
            palette_at = palette_at.max(at + 12);
            let masks = [u32_at(file, at)?, u32_at(file, at + 4)?, u32_at(file, at + 8)?, alpha];
            by_masks(bits, masks).ok_or_else(|| unsupported(format!("of {bits} bits with masks {masks:x?}")))?
        }
        _ => return Err(unsupported(format!("of {bits} bits with compression {compression}"))),
    };
    let entry_bytes = if is_core { 3 } else { 4 };
    let (mut colors, mut data_at) = (colors as usize, offset as usize);
    if matches!(pixels, Pixels::Indices(_) | Pixels::Runs(_)) {
        colors = if colors == 0 { 1 << bits } else { colors };
        // Files whose offset leaves the palette out.
        if data_at == end {
            data_at += 4 * colors;
        }
    }
    if offset == 0 {
        data_at = palette_at + entry_bytes * colors;
    }
    Ok(Header {
        size: ImageSize { height: rows, width },
        top_down: height < 0,
        pixels,
        palette: (file.get(palette_at..).ok_or_else(truncated)?, colors, entry_bytes),
        data: file.get(data_at..).ok_or_else(truncated)?,
    })
}

/// The size in the file's header.
pub fn size(file: &[u8]) -> Result<ImageSize, ImageError> {
    header(file).map(|header| header.size)
}

/// Decodes a file; alpha is dropped.
pub fn decode(file: &[u8], output: &mut Output) -> Result<Shape, ImageError> {
    let Header { size, top_down, pixels, palette, data } = header(file)?;
    let (width, height) = (size.width as usize, size.height as usize);
    let (colors, count, entry_bytes) = palette;
    let palette =
        Palette::new(colors.chunks_exact(entry_bytes).take(count).map(|color| [color[2], color[1], color[0]]));
    if let Pixels::Runs(bits) = pixels {
        let values = output.room(3 * width * height, 0)?;
        values.truncate(3 * width * height);
        values[..width * height].fill(0);
        runs(data, bits, top_down, size, &mut values[..width * height])?;
        palette.expand(values, width * height);
        return Ok(Shape { width: size.width, height: size.height, channels: 3 });
    }
    let bits = match pixels {
        Pixels::Indices(bits) | Pixels::Runs(bits) => bits as usize,
        Pixels::Sixteen(_) => 16,
        Pixels::Bytes(bytes, _) => 8 * bytes,
    };
    let used = (width * bits).div_ceil(8);
    let stride = used.next_multiple_of(4);
    // The last row may lack its padding.
    if data.len() < stride * (height - 1) + used {
        return Err(truncated());
    }
    let values = output.room(3 * width * height, 0)?;
    values.truncate(3 * width * height);
    for (y, row) in values.chunks_exact_mut(3 * width).enumerate() {
        let y = if top_down { y } else { height - 1 - y };
        let from = &data[y * stride..][..used];
        match pixels {
            Pixels::Indices(bits) | Pixels::Runs(bits) => {
                for (nth, pixel) in row.chunks_exact_mut(3).enumerate() {
                    pixel.copy_from_slice(&palette.color(sample(from, bits, nth)));
                }
            }
            Pixels::Sixteen(green_bits) => {
                for (pixel, from) in row.chunks_exact_mut(3).zip(from.chunks_exact(2)) {
                    let value = u32::from(u16::from_le_bytes([from[0], from[1]]));
                    let channel = |first: u32, bits: u32| {
                        let max = (1 << bits) - 1;
                        (((value >> first) & max) * 255 / max) as u8
                    };
                    pixel.copy_from_slice(&[channel(5 + green_bits, 5), channel(5, green_bits), channel(0, 5)]);
                }
            }
            Pixels::Bytes(bytes, [red, green, blue]) => {
                for (pixel, from) in row.chunks_exact_mut(3).zip(from.chunks_exact(bytes)) {
                    pixel.copy_from_slice(&[from[red], from[green], from[blue]]);
                }
            }
        }
    }
    Ok(Shape { width: size.width, height: size.height, channels: 3 })
}

/// Writes the indices of a file of runs; those that it skips stay as they are. Runs that reach beyond their row are cut there.
fn runs(data: &[u8], bits: u32, top_down: bool, size: ImageSize, indices: &mut [u8]) -> Result<(), ImageError> {
    let (width, height) = (size.width as usize, size.height as usize);
    let (mut x, mut y, mut at) = (0_usize, 0_usize, 0_usize);
    while y < height && (y < height - 1 || x < width) {
        let Some(&[count, value]) = data.get(at..at + 2).and_then(|pair| pair.first_chunk::<2>()) else { break };
        at += 2;
        match (count, value) {
            (0, 0) => (x, y) = (0, y + 1),
            (0, 1) => break,
            (0, 2) => {
                let Some(&[right, up]) = data.get(at..at + 2).and_then(|pair| pair.first_chunk::<2>()) else { break };
                at += 2;
                (x, y) = (x + usize::from(right), y + usize::from(up));
            }
            _ => {
                let is_literal = count == 0;
                let count = usize::from(if is_literal { value } else { count });
                let bytes = if is_literal { (count * bits as usize).div_ceil(8) } else { 1 };
                let from = if is_literal { data.get(at..at + bytes) } else { data.get(at - 1..at) };
                let Some(from) = from else { break };
                let row = if top_down { y } else { height - 1 - y };
                let row = &mut indices[row * width..][..width];
                for (nth, to) in row.iter_mut().skip(x).take(count).enumerate() {
                    // A run of 4 bits alternates between two pixels.
                    *to = sample(from, bits, if is_literal { nth } else { nth % (8 / bits as usize) });
                }
                x += count;
                if is_literal {
                    at += bytes.next_multiple_of(2);
                }
            }
        }
    }
    if y * width + x.min(width) < width * height {
        return Err(truncated());
    }
    Ok(())
}

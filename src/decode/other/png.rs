//! PNG, row by row: all that is asked of a file is that its pixels are there, whatever of its end is missing.

use super::samples::{Palette, clipped, gray, sample};
use super::{Shape, truncated};
use crate::decode::output::Output;
use crate::decode::{ImageError, check_size};
use crate::types::ImageSize;
use png::{BitDepth, ColorType, Decoder, Limits, Reader};
use std::io::Cursor;

/// Bytes that a file may hold beside pixels.
const OTHER_BYTES: usize = 16 << 20;

type Png<'a> = Reader<Cursor<&'a [u8]>>;

fn failed(error: png::DecodingError) -> ImageError {
    let cut = matches!(&error, png::DecodingError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof);
    if cut { truncated() } else { ImageError::Decode(error.to_string()) }
}

fn open(file: &[u8]) -> Result<(Png<'_>, u32, u32), ImageError> {
    let mut decoder = Decoder::new_with_limits(Cursor::new(file), Limits { bytes: OTHER_BYTES });
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let header = decoder.read_header_info().map_err(failed)?;
    let (width, height) = check_size(header.width, header.height)?;
    // A large image's row is taken from the limit, too.
    let row_bytes = header.raw_row_length();
    decoder.set_limits(Limits { bytes: OTHER_BYTES + 4 * row_bytes });
    Ok((decoder.read_info().map_err(failed)?, width, height))
}

/// The size in the file's header.
pub fn size(file: &[u8]) -> Result<ImageSize, ImageError> {
    open(file).map(|(_, width, height)| ImageSize { height, width })
}

/// Decodes a file's first picture: alpha is dropped, of 16 bits the high byte is taken, but gray without alpha is clipped.
pub fn decode(file: &[u8], output: &mut Output) -> Result<Shape, ImageError> {
    let (mut reader, width, height) = open(file)?;
    let (color, depth) = (reader.info().color_type, reader.info().bit_depth);
    let palette = reader.info().palette.as_deref().unwrap_or_default();
    let palette = Palette::new(palette.chunks_exact(3).map(|color| [color[0], color[1], color[2]]));
    let channels = if matches!(color, ColorType::Grayscale | ColorType::GrayscaleAlpha) { 1 } else { 3 };
    let (columns, rows) = (width as usize, height as usize);
    let row_bytes = reader.output_line_size(width).ok_or(ImageError::TooLarge { width, height })?;
    let bytes = columns * rows * channels;
    // The passes of an interlaced file are put together before pixels are made of them.
    let own_bytes = if reader.info().interlaced { row_bytes * rows } else { 0 };
    let values = output.room(bytes, own_bytes)?;
    values.truncate(bytes);
    let convert = |from: &[u8], to: &mut [u8]| convert(from, to, color, depth, &palette);
    if reader.info().interlaced {
        let mut raw = vec![0; own_bytes];
        let bits = (color.samples() * depth as usize) as u8;
        for _ in 0..interlaced_rows(width, height) {
            let row = reader.next_interlaced_row().map_err(failed)?.ok_or_else(truncated)?;
            let png::InterlaceInfo::Adam7(pass) = row.interlace() else { return Err(truncated()) };
            png::expand_interlaced_row(&mut raw, row_bytes, row.data(), pass, bits);
        }
        for (from, to) in raw.chunks_exact(row_bytes).zip(values.chunks_exact_mut(columns * channels)) {
            convert(from, to);
        }
    } else {
        for to in values.chunks_exact_mut(columns * channels) {
            let row = reader.next_row().map_err(failed)?.ok_or_else(truncated)?;
            convert(row.data(), to);
        }
    }
    Ok(Shape { width, height, channels })
}

/// Rows in all passes of Adam7. What follows the last of them may be missing, so it is not asked for another.
fn interlaced_rows(width: u32, height: u32) -> u32 {
    // First column, first row, rows a step.
    let passes = [(0, 0, 8), (4, 0, 8), (0, 4, 8), (2, 0, 4), (0, 2, 4), (1, 0, 2), (0, 1, 2)];
    let rows = passes.map(
        |(left, top, step): (u32, u32, u32)| {
            if width > left && height > top { (height - top).div_ceil(step) } else { 0 }
        },
    );
    rows.iter().sum()
}

/// Makes a row of pixels from the file's samples.
fn convert(from: &[u8], to: &mut [u8], color: ColorType, depth: BitDepth, palette: &Palette) {
    let bits = depth as u32;
    let step = if depth == BitDepth::Sixteen { 2 } else { 1 };
    let stride = color.samples() * step;
    match color {
        ColorType::Grayscale if bits < 8 => {
            to.iter_mut().enumerate().for_each(|(nth, to)| *to = gray(sample(from, bits, nth), bits));
        }
        ColorType::Grayscale if bits == 16 => {
            to.iter_mut().zip(from.chunks_exact(2)).for_each(|(to, from)| *to = clipped(from[0], from[1]));
        }
        ColorType::Grayscale | ColorType::GrayscaleAlpha => {
            to.iter_mut().zip(from.chunks_exact(stride)).for_each(|(to, from)| *to = from[0]);
        }
        ColorType::Indexed => {
            for (nth, to) in to.chunks_exact_mut(3).enumerate() {
                to.copy_from_slice(&palette.color(sample(from, bits, nth)));
            }
        }
        ColorType::Rgb | ColorType::Rgba => {
            for (to, from) in to.chunks_exact_mut(3).zip(from.chunks_exact(stride)) {
                (to[0], to[1], to[2]) = (from[0], from[step], from[2 * step]);
            }
        }
    }
}

//! WebP, which crate `image` reads as Pillow does. It knows the names of other formats, too.

use super::{Shape, truncated};
use crate::decode::output::Output;
use crate::decode::{ImageError, check_size};
use crate::types::ImageSize;
use ::image::{ColorType, ImageDecoder, ImageReader, Limits};
use std::borrow::Cow;
use std::io::{Cursor, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Bytes that `image` may take beside the image: for a row, or for what a file holds beside pixels.
const OTHER_BYTES: usize = 16 << 20;

/// The limits that `image` has by itself, lowered to so many bytes.
fn limits(bytes: usize) -> Limits {
    let mut limits = Limits::default();
    limits.max_alloc = limits.max_alloc.map(|most| most.min(bytes as u64));
    limits
}

/// A reader for the format that the content is in.
fn reader(file: &[u8]) -> Result<ImageReader<Cursor<&[u8]>>, ImageError> {
    let mut reader = ImageReader::new(Cursor::new(file)).with_guessed_format().expect("memory is readable");
    reader.limits(limits(OTHER_BYTES));
    if reader.format().is_none() { Err(ImageError::UnknownFormat) } else { Ok(reader) }
}

fn failed(error: ::image::ImageError) -> ImageError {
    let is_cut = matches!(&error, ::image::ImageError::IoError(error) if error.kind() == ErrorKind::UnexpectedEof);
    if is_cut { truncated() } else { ImageError::Decode(error.to_string()) }
}

/// The size in the file's header.
pub fn size(file: &[u8]) -> Result<ImageSize, ImageError> {
    let (width, height) = reader(file)?.into_dimensions().map_err(failed)?;
    check_size(width, height).map(|(width, height)| ImageSize { height, width })
}

/// An animated WebP whose first frame is not to be blended with the canvas, on which there is nothing: blending, `image` rounds.
fn unblended(file: &[u8]) -> Cow<'_, [u8]> {
    if !(file.starts_with(b"RIFF") && file.get(8..12) == Some(b"WEBP")) {
        return Cow::Borrowed(file);
    }
    let mut at = 12;
    while let Some(head) = file.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        // Behind the frame's place, size and duration.
        let flags = at + 8 + 15;
        if &head[..4] == b"ANMF" && flags < file.len() {
            let mut file = file.to_vec();
            file[flags] |= 2;
            return Cow::Owned(file);
        }
        at = at.saturating_add(8).saturating_add(length.next_multiple_of(2));
    }
    Cow::Borrowed(file)
}

/// Decodes a file.
pub fn decode(file: &[u8], output: &mut Output) -> Result<Shape, ImageError> {
    let file = unblended(file);
    let reader = reader(&file)?;
    let mut decoder = reader.into_decoder().map_err(failed)?;
    let (width, height) = check_size(decoder.dimensions().0, decoder.dimensions().1)?;
    let color = decoder.color_type();
    let pixels = width as usize * height as usize;
    let bytes = pixels * usize::from(color.bytes_per_pixel());
    // The decoder buffers the image twice more.
    let own_bytes = 2 * bytes;
    let raw = output.room(bytes, own_bytes)?;
    decoder.set_limits(limits(bytes + own_bytes + OTHER_BYTES)).map_err(failed)?;
    raw.truncate(bytes);
    raw.fill(0);
    // image-webp 0.2 panics on some damaged files.
    let read = catch_unwind(AssertUnwindSafe(|| decoder.read_image(raw)));
    read.map_err(|_| ImageError::Panicked)?.map_err(failed)?;
    match color {
        ColorType::Rgb8 => {}
        // Drops alpha without blending. In place, forwards: a pixel is never overwritten before it is read.
        ColorType::Rgba8 => (0..pixels).for_each(|pixel| raw.copy_within(4 * pixel..4 * pixel + 3, 3 * pixel)),
        other => return Err(ImageError::Decode(format!("pixels of type {other:?} are not supported"))),
    }
    raw.truncate(pixels * 3);
    Ok(Shape { width, height, channels: 3 })
}

//! Formats that crate `image` reads as Pillow does.

use super::Shape;
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
    ImageError::Decode(if is_cut { "the file is cut off: rows are missing".to_owned() } else { error.to_string() })
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

/// Makes bytes of gray values of 16 bits, in place. `image` has stretched them to 65535, as Pillow does before it clips.
fn clip(raw: &mut [u8]) {
    for pixel in 0..raw.len() / 2 {
        raw[pixel] = u16::from_ne_bytes([raw[2 * pixel], raw[2 * pixel + 1]]).min(255) as u8;
    }
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
    // They hold the image once more, WebP twice.
    let own_bytes = 2 * bytes;
    let raw = output.room(bytes, own_bytes)?;
    decoder.set_limits(limits(bytes + own_bytes + OTHER_BYTES)).map_err(failed)?;
    raw.truncate(bytes);
    raw.fill(0);
    // image-webp 0.2 panics on some damaged files.
    let read = catch_unwind(AssertUnwindSafe(|| decoder.read_image(raw)));
    read.map_err(|_| ImageError::Panicked)?.map_err(failed)?;
    // Alpha is dropped, not blended; of 16 bits the high byte is taken, but gray alone is clipped (native byte order, as `image` writes them).
    let high = if cfg!(target_endian = "little") { 1 } else { 0 };
    let (channels, stride, step, first) = match color {
        ColorType::L8 => (1, 1, 1, 0),
        ColorType::La8 => (1, 2, 1, 0),
        ColorType::Rgb8 => (3, 3, 1, 0),
        ColorType::Rgba8 => (3, 4, 1, 0),
        ColorType::L16 => (1, 2, 2, 0),
        ColorType::La16 => (1, 4, 2, high),
        ColorType::Rgb16 => (3, 6, 2, high),
        ColorType::Rgba16 => (3, 8, 2, high),
        other => return Err(ImageError::Decode(format!("pixels of type {other:?} are not supported"))),
    };
    if color == ColorType::L16 {
        clip(raw);
    } else if stride != channels {
        // Forwards in place: a value never lands behind where it was read.
        for pixel in 0..pixels {
            for channel in 0..channels {
                raw[pixel * channels + channel] = raw[pixel * stride + channel * step + first];
            }
        }
    }
    raw.truncate(pixels * channels);
    Ok(Shape { width, height, channels })
}

#[cfg(test)]
mod tests {
    use crate::decode::Decoder;

    /// Pillow 11.3 and 13.0: `Image.open(…).convert("RGB")` of these values.
    #[test]
    fn gray_of_16_bits_is_stretched_and_clipped() {
        let values = [0_u16, 1, 200, 255, 256, 300, 1_000, 0x1234, 0x80FF, 65_535];
        for (maxval, expected) in [
            (65_535, [0, 1, 200, 255, 255, 255, 255, 255, 255, 255]),
            (1_000, [0, 66, 255, 255, 255, 255, 255, 255, 255, 255]),
            (4_095, [0, 16, 255, 255, 255, 255, 255, 255, 255, 255]),
        ] {
            let kept = values.map(|value| value.min(maxval));
            let raw = [format!("P5 # of a camera\n10 1\n{maxval}\n").as_bytes(), &kept.map(u16::to_be_bytes).concat()]
                .concat();
            let text = format!("P2\n10 1\n{maxval}\n{}\n", kept.map(|value| value.to_string()).join(" "));
            for file in [raw, text.into_bytes()] {
                let mut decoder = Decoder::default();
                let picture = decoder.decode(&file, None).unwrap().to_rgb();
                assert_eq!(picture.chunks(3).map(|pixel| pixel[0]).collect::<Vec<_>>(), expected, "{maxval}");
            }
        }
    }
}

//! GIF: the first frame on a canvas of its own, in Pillow's colors.

use super::samples::Palette;
use super::{Shape, malformed, truncated};
use crate::decode::output::Output;
use crate::decode::{ImageError, check_size};
use crate::types::ImageSize;
use gif::{ColorOutput, DecodeOptions, Decoder, Frame, MemoryLimit};

fn failed(error: gif::DecodingError) -> ImageError {
    let is_cut = match &error {
        gif::DecodingError::Io(error) => error.kind() == std::io::ErrorKind::UnexpectedEof,
        gif::DecodingError::UnexpectedEof => true,
        // Its words for a frame whose data end before its rows do.
        error => error.to_string() == "image truncated",
    };
    if is_cut { truncated() } else { ImageError::Decode(error.to_string()) }
}

fn open(file: &[u8]) -> Result<Decoder<&[u8]>, ImageError> {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    // Pillow skips what it does not know between blocks.
    options.allow_unknown_blocks(true);
    // It decodes into memory of ours.
    options.set_memory_limit(MemoryLimit::Bytes(std::num::NonZeroU64::MIN));
    options.read_info(file).map_err(failed)
}

/// Reads up to the first frame's pixels; with the canvas: the screen, grown to hold the frame.
fn first_frame<'a>(decoder: &'a mut Decoder<&[u8]>) -> Result<(&'a Frame<'static>, ImageSize), ImageError> {
    let screen = [decoder.width(), decoder.height()];
    let frame = decoder.next_frame_info().map_err(failed)?;
    let frame = frame.ok_or_else(|| malformed("the file is cut off: it has no frame"))?;
    if frame.width == 0 || frame.height == 0 {
        return Err(ImageError::Empty { width: frame.width.into(), height: frame.height.into() });
    }
    let side = |screen: u16, first: u16, length: u16| u32::from(screen).max(u32::from(first) + u32::from(length));
    let (width, height) =
        check_size(side(screen[0], frame.left, frame.width), side(screen[1], frame.top, frame.height))?;
    Ok((frame, ImageSize { height, width }))
}

/// The size of the canvas.
pub fn size(file: &[u8]) -> Result<ImageSize, ImageError> {
    first_frame(&mut open(file)?).map(|(_, size)| size)
}

/// Decodes the first frame. What it leaves of the canvas has the color of the transparent index if there is one, else of index 0.
pub fn decode(file: &[u8], output: &mut Output) -> Result<Shape, ImageError> {
    let mut decoder = open(file)?;
    let (frame, ImageSize { height, width }) = first_frame(&mut decoder)?;
    let [left, top, frame_width, frame_height] = [frame.left, frame.top, frame.width, frame.height].map(usize::from);
    let free = frame.transparent.unwrap_or(0);
    let palette = decoder.palette().map_err(failed)?;
    let palette = Palette::new(palette.chunks_exact(3).map(|color| [color[0], color[1], color[2]]));
    let bytes = width as usize * height as usize * 3;
    let frame_bytes = frame_width * frame_height;
    let values = output.room(bytes, frame_bytes)?;
    values.truncate(bytes);
    let mut indices = vec![0; frame_bytes];
    decoder.read_into_buffer(&mut indices).map_err(failed)?;
    let row_bytes = width as usize * 3;
    for (y, row) in values.chunks_exact_mut(row_bytes).enumerate() {
        let inside = y.checked_sub(top).filter(|y| *y < frame_height);
        if inside.is_none() || frame_width < width as usize {
            row.chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(&palette.color(free)));
        }
        let Some(y) = inside else { continue };
        let indices = &indices[y * frame_width..][..frame_width];
        for (pixel, index) in row[left * 3..].chunks_exact_mut(3).zip(indices) {
            pixel.copy_from_slice(&palette.color(*index));
        }
    }
    Ok(Shape { width, height, channels: 3 })
}

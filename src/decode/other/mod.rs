//! Every format but JPEG, told by its first bytes.

mod bmp;
mod by_image;
mod gif;
mod png;
mod pnm;
mod samples;
mod tiff;

#[cfg(test)]
mod tests;

use super::ImageError;
use super::orientation::Orientation;
use super::output::Output;
use crate::types::ImageSize;

/// The pixels that a decode left in an [`Output`], row by row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Pixels a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Values a pixel: 1 (gray) or 3 (R, G, B).
    pub channels: usize,
}

fn malformed(cause: &str) -> ImageError {
    ImageError::Decode(cause.to_owned())
}

/// The error of a file that ends before its last row.
fn truncated() -> ImageError {
    malformed("the file is cut off: rows are missing")
}

/// Who reads a file.
enum Format {
    Bmp,
    Gif,
    Png,
    Pnm,
    Tiff,
    /// WebP, which crate `image` reads as Pillow does, and what is no image.
    Other,
}

impl Format {
    fn of(file: &[u8]) -> Self {
        match file {
            [b'B', b'M', ..] => Self::Bmp,
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Self::Gif,
            [0x89, b'P', b'N', b'G', ..] => Self::Png,
            file if pnm::is_pnm(file) => Self::Pnm,
            [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Self::Tiff,
            _ => Self::Other,
        }
    }
}

/// Decodes a file of any format but JPEG into `output`, as it lies in the file.
///
/// # Errors
/// When the content is unknown, damaged, cut off, of a kind that is not supported or too large.
pub fn decode(file: &[u8], output: &mut Output) -> Result<Shape, ImageError> {
    match Format::of(file) {
        Format::Bmp => bmp::decode(file, output),
        Format::Gif => gif::decode(file, output),
        Format::Png => png::decode(file, output),
        Format::Pnm => pnm::decode(file, output),
        Format::Tiff => tiff::decode(file, output),
        Format::Other => by_image::decode(file, output),
    }
}

/// The size of the picture that [`decode`] makes, from the file's header.
///
/// # Errors
/// As [`decode`], of the header.
pub fn size(file: &[u8]) -> Result<ImageSize, ImageError> {
    match Format::of(file) {
        Format::Bmp => bmp::size(file),
        Format::Gif => gif::size(file),
        Format::Png => png::size(file),
        Format::Pnm => pnm::size(file),
        Format::Tiff => tiff::size(file),
        Format::Other => by_image::size(file),
    }
}

/// The orientation that a format has apart from Exif: TIFF's own tag, which Pillow applies always.
pub fn own_orientation(file: &[u8]) -> Orientation {
    if matches!(Format::of(file), Format::Tiff) { tiff::orientation_of(file) } else { Orientation::UPRIGHT }
}

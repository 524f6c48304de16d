//! Every format but JPEG, told by its first bytes.

mod by_image;

use super::ImageError;
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

/// Decodes a file of any format but JPEG into `output`.
///
/// # Errors
/// When the content is unknown, damaged, cut off, of a kind that is not supported or too large.
pub fn decode(file: &[u8], output: &mut Output) -> Result<Shape, ImageError> {
    by_image::decode(file, output)
}

/// The size of the picture that [`decode`] makes, from the file's header.
///
/// # Errors
/// As [`decode`], of the header.
pub fn size(file: &[u8]) -> Result<ImageSize, ImageError> {
    by_image::size(file)
}

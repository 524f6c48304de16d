//! A decoded image, or a box of one.

use crate::types::{CropBox, ImageSize};

/// Which box of an image is wanted, by the image's size; `None` for all of it.
pub type RegionOf<'a> = &'a dyn Fn(ImageSize) -> Option<CropBox>;

/// A decoded image, or a box of one.
#[derive(Debug, Clone, Copy)]
pub struct Picture<'a> {
    /// Pixels a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Values a pixel: 1 (gray) or 3 (R, G, B).
    pub channels: usize,
    /// Pixels from the start of a row to the start of the next one, at least `width`.
    pub stride: u32,
    /// The values from the first pixel on, row by row; at least up to the last pixel of the last row, and possibly more.
    pub values: &'a [u8],
    /// How many eighths of pixels of a row, and of rows, show the image: all, unless the last ones of a scaled JPEG reach beyond it.
    pub extent: [u32; 2],
}

impl<'a> Picture<'a> {
    /// A picture with contiguous rows whose image reaches to its edges.
    pub fn new(width: u32, height: u32, channels: usize, values: &'a [u8]) -> Self {
        Self { width, height, channels, stride: width, values, extent: [8 * width, 8 * height] }
    }

    /// Its size in pixels.
    pub fn size(&self) -> ImageSize {
        ImageSize { height: self.height, width: self.width }
    }

    /// The box of `height` × `width` pixels at (`top`, `left`), over the same memory.
    ///
    /// # Panics
    /// When the box is empty or reaches beyond the picture.
    pub fn crop(&self, top: u32, left: u32, height: u32, width: u32) -> Self {
        let inside = |start: u32, length: u32, whole: u32| length > 0 && start < whole && length <= whole - start;
        assert!(
            inside(top, height, self.height) && inside(left, width, self.width),
            "the box {height}x{width} at ({top}, {left}) does not lie in {}",
            self.size()
        );
        let first = (top as usize * self.stride as usize + left as usize) * self.channels;
        let extent = |start: u32, length: u32, whole: u32| whole.saturating_sub(8 * start).clamp(1, 8 * length);
        let extent = [extent(left, width, self.extent[0]), extent(top, height, self.extent[1])];
        Self { width, height, values: &self.values[first..], extent, ..*self }
    }

    /// The values of row `y`.
    pub fn row(&self, y: usize) -> &'a [u8] {
        &self.values[y * self.stride as usize * self.channels..][..self.width as usize * self.channels]
    }

    /// The rows, from the first on.
    pub fn rows(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let this = *self;
        (0..this.height as usize).map(move |y| this.row(y))
    }

    /// The pixels as contiguous RGB.
    pub fn to_rgb(&self) -> Vec<u8> {
        let rows = self.rows().flatten().copied();
        match self.channels {
            1 => rows.flat_map(|gray| [gray; 3]).collect(),
            _ => rows.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crop_of_a_crop_is_a_box_of_the_picture() {
        let values: Vec<u8> = (0..5 * 7 * 3).collect();
        let picture = Picture { extent: [8 * 6 + 3, 8 * 5], ..Picture::new(7, 5, 3, &values) };
        let crop = picture.crop(1, 2, 4, 5).crop(1, 1, 3, 4);
        assert_eq!((crop.width, crop.height, crop.stride, crop.extent), (4, 3, 7, [8 * 3 + 3, 8 * 3]));
        let expected = (2..5).flat_map(|y| (y * 7 + 3) * 3..(y * 7 + 7) * 3).collect::<Vec<u8>>();
        assert_eq!(crop.to_rgb(), expected);
        assert_eq!(picture.crop(0, 0, 5, 7).extent, picture.extent);
    }

    #[test]
    #[should_panic(expected = "does not lie in 5x7")]
    fn a_crop_beyond_the_picture_is_refused() {
        Picture::new(7, 5, 1, &[0; 35]).crop(3, 0, 3, 1);
    }
}

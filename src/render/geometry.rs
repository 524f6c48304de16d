//! Which pixels of a decoded picture an output shows: crops, resizes, centre crops and padding, as pure data (docs/spec/recipes.md#crops).

use super::window::Window;
use crate::types::{CropBox, ImageSize, Interpolation, PadMode};

/// From a decoded image to an output: crop `source`, resize it to `resized`, take the window of the output there, flip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// The box of the decoded image that is resized; lies inside the image.
    pub source: CropBox,
    /// The size that `source` is resized to. The filter does not reach beyond `source`.
    pub resized: ImageSize,
    /// Row and column of the resized image where the output begins. Outputs outside the resized image are padding.
    pub window: (i32, i32),
    /// What padding is.
    pub pad: PadMode,
    /// The filter.
    pub interpolation: Interpolation,
    /// Whether the output is mirrored horizontally, after everything else.
    pub flip: bool,
    /// See [`Geometry::crop_box`].
    pub(super) crop: CropBox,
}

impl Geometry {
    /// Resizes the whole `image` to `out`, whatever its aspect ratio.
    pub fn squash(image: ImageSize, out: ImageSize, interpolation: Interpolation) -> Self {
        Self::resized_crop(whole(image), out, interpolation)
    }

    /// Resizes the whole `image` to `resize`, then crops `out` at its centre. Where `resize` is smaller than `out`, the image is padded with 0.
    pub fn squash_center(image: ImageSize, resize: ImageSize, out: ImageSize, interpolation: Interpolation) -> Self {
        let window = (center(resize.height, out.height), center(resize.width, out.width));
        Self { window, ..Self::squash(image, resize, interpolation) }
    }

    /// Resizes the short side of `image` to `resize` pixels and keeps the aspect ratio, then crops `out` at the centre. Where the resized image is
    /// smaller than `out`, it is padded with 0.
    pub fn short_center(image: ImageSize, resize: u32, out: ImageSize, interpolation: Interpolation) -> Self {
        let ImageSize { height, width } = image;
        let short = u64::from(height.min(width));
        // The longest axis that a window's i32 start can address: reached by images of millions to one, which nothing resizes as a whole.
        let long = (u64::from(resize) * u64::from(height.max(width)) / short).min(i32::MAX as u64) as u32;
        let resized = match height <= width {
            true => ImageSize { height: resize, width: long },
            false => ImageSize { height: long, width: resize },
        };
        Self::squash_center(image, resized, out, interpolation)
    }

    /// Resizes the box `crop` of the decoded image to `out`.
    pub fn resized_crop(crop: CropBox, out: ImageSize, interpolation: Interpolation) -> Self {
        let (window, pad, flip) = ((0, 0), PadMode::Constant, false);
        Self { source: crop, resized: out, window, pad, interpolation, flip, crop }
    }

    /// Pads `image` by `pad` pixels on every side, then crops `out` at row `top` and column `left` of the padded image.
    ///
    /// On an axis on which the padded image is smaller than `out`, the place is ignored and the image is centred; the fill of `mode` covers
    /// the rest.
    pub fn pad_crop(image: ImageSize, pad: u32, mode: PadMode, top: u32, left: u32, out: ImageSize) -> Self {
        let start = |length: u32, at: u32, out: u32| {
            let padded = i64::from(length) + 2 * i64::from(pad);
            let at = if padded < i64::from(out) { -((i64::from(out) - padded) / 2) } else { i64::from(at) };
            (at - i64::from(pad)) as i32
        };
        let window = (start(image.height, top, out.height), start(image.width, left, out.width));
        let crop = CropBox { top: window.0, left: window.1, height: out.height, width: out.width };
        Self { window, pad: mode, crop, ..Self::squash(image, image, Interpolation::Bilinear) }
    }

    /// The same, mirrored horizontally or not.
    pub fn flipped(self, flip: bool) -> Self {
        Self { flip, ..self }
    }

    /// The box of the decoded image that a recipe's plan reports: the crop; the whole image for a squash or a centre crop; for a padded crop the
    /// output's box, which may reach beyond the image.
    pub fn crop_box(&self) -> CropBox {
        self.crop
    }

    /// The window of the horizontal axis for `outputs` pixels a row.
    pub(super) fn across(&self, outputs: u32) -> Window {
        Window { resized: self.resized.width, start: self.window.1, outputs, pad: self.pad, flip: self.flip }
    }

    /// The window of the vertical axis for `outputs` rows.
    pub(super) fn down(&self, outputs: u32) -> Window {
        Window { resized: self.resized.height, start: self.window.0, outputs, pad: self.pad, flip: false }
    }
}

/// All of an image.
fn whole(image: ImageSize) -> CropBox {
    CropBox { top: 0, left: 0, height: image.height, width: image.width }
}

/// Where a centre crop of `out` begins in `length` pixels: the half rounded to even; negative where padding comes first (torchvision's `center_crop`).
fn center(length: u32, out: u32) -> i32 {
    match length.checked_sub(out) {
        Some(rest) => (rest / 2 + u32::from(rest % 4 == 3)) as i32,
        None => -(((out - length) / 2) as i32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(height: u32, width: u32) -> ImageSize {
        ImageSize { height, width }
    }

    #[test]
    fn halves_are_rounded_to_even_and_padding_is_smaller_before() {
        let starts: Vec<i32> = (0..9).map(|rest| center(100 + rest, 100)).collect();
        assert_eq!(starts, [0, 0, 1, 2, 2, 2, 3, 4, 4]);
        assert_eq!([99, 98, 97].map(|length| center(length, 100)), [0, -1, -1]);
    }

    #[test]
    fn the_short_side_is_resized_and_the_long_one_truncated() {
        let of = |image| Geometry::short_center(image, 256, size(224, 192), Interpolation::Bicubic);
        assert_eq!(of(size(333, 500)).resized, size(256, 384));
        assert_eq!(of(size(500, 333)).resized, size(384, 256));
        assert_eq!(of(size(500, 333)).window, (80, 32));
        assert_eq!(of(size(500, 333)).crop_box(), whole(size(500, 333)));
        assert_eq!(of(size(1, 100_000_000)).resized.width, i32::MAX as u32);
    }

    #[test]
    fn a_padded_crop_names_its_box_in_the_image() {
        let of = |pad, out| Geometry::pad_crop(size(32, 32), pad, PadMode::Reflect, 1, 7, out);
        assert_eq!(of(4, size(32, 32)).crop_box(), CropBox { top: -3, left: 3, height: 32, width: 32 });
        // Too small on one axis: centred there.
        assert_eq!(of(4, size(45, 32)).window, (-6, 3));
        assert!(of(4, size(32, 32)).flipped(true).flip);
    }
}

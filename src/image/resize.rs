//! Bilinear, antialiased resizing to exactly H × W, and from interleaved pixels to planes.

use super::decode::Picture;
use super::exact::Exact;
use crate::types::{ImageSize, ParseError, named};
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::{InnerPixel, U8, U8x3};
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use std::fmt;
use std::str::FromStr;

/// Which resize.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ResizeKind {
    /// Pillow's pixels to the bit (SPEC §2).
    #[default]
    Exact,
    /// fast_image_resize: 16-bit weights, within 2 levels of Pillow.
    Fast,
}
named!(ResizeKind, "resize", "exact or fast", Exact = "exact", Fast = "fast");

/// Scratch for resizing.
#[derive(Default)]
pub struct Resize {
    kind: ResizeKind,
    exact: Exact,
    fast: Resizer,
    interleaved: Vec<u8>,
}

impl Resize {
    /// Without scratch as yet.
    pub fn new(kind: ResizeKind) -> Self {
        Self { kind, ..Self::default() }
    }

    /// Resizes `picture` to `size` into the planes of `out`, u8 `[3, H, W]`; gray fills all three.
    pub fn run(&mut self, picture: &Picture<'_>, size: ImageSize, out: &mut [u8]) {
        let Picture { channels, values, .. } = *picture;
        let same = picture.is(size);
        match (self.kind, channels) {
            (_, 1) if same => out[..values.len()].copy_from_slice(values),
            (_, _) if same => planes(values, size, out),
            (ResizeKind::Exact, _) => self.exact.run(picture, size, out),
            (ResizeKind::Fast, 1) => resize::<U8>(&mut self.fast, picture, size, &mut out[..size.pixels()]),
            (ResizeKind::Fast, _) => {
                self.interleaved.resize(size.values(), 0);
                resize::<U8x3>(&mut self.fast, picture, size, &mut self.interleaved);
                planes(&self.interleaved, size, out);
            }
        }
        if channels == 1 {
            let (first, rest) = out.split_at_mut(size.pixels());
            rest.chunks_exact_mut(size.pixels()).for_each(|other| other.copy_from_slice(first));
        }
    }
}

fn planes(interleaved: &[u8], size: ImageSize, out: &mut [u8]) {
    let (red, rest) = out.split_at_mut(size.pixels());
    let (green, blue) = rest.split_at_mut(size.pixels());
    for (((pixel, r), g), b) in interleaved.chunks_exact(3).zip(red).zip(green).zip(blue) {
        (*r, *g, *b) = (pixel[0], pixel[1], pixel[2]);
    }
}

fn resize<P>(resizer: &mut Resizer, picture: &Picture<'_>, size: ImageSize, out: &mut [u8])
where
    P: InnerPixel + fast_image_resize::PixelTrait + Default,
{
    let from = TypedImageRef::<P>::from_buffer(picture.width, picture.height, picture.values).expect("sizes agree");
    let mut to = TypedImage::<P>::from_buffer(size.width, size.height, out).expect("sizes agree");
    let [width, height] = picture.extent.map(|eighths| f64::from(eighths) / 8.0);
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear))
        .use_alpha(false)
        .crop(0.0, 0.0, width, height);
    resizer.resize_typed(&from, &mut to, &options).expect("both images have pixels");
}

#[cfg(test)]
mod tests {
    use super::super::naive;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn resize_matches_naive(
            (width, height, eighths) in (1_u32..90, 1_u32..90, prop_oneof![Just(8), 1_u32..8]), to_width in 1_u32..80,
            to_height in 1_u32..50, gray: bool, seed: u8,
        ) {
            let channels = if gray { 1 } else { 3 };
            let count = (width * height) as usize * channels;
            let values: Vec<u8> = (0..count).map(|n| (n * 37 + n / 7 * 11) as u8 ^ seed).collect();
            // An image that ends within the last pixels.
            let extent = [width, height].map(|pixels| 8 * (pixels - 1) + eighths);
            let picture = Picture { extent, ..Picture::new(width, height, channels, &values) };
            let size = ImageSize { height: to_height, width: to_width };
            let oracle = naive::resize(&picture, size);
            let mut ours = vec![0; size.values()];
            Resize::new(ResizeKind::Exact).run(&picture, size, &mut ours);
            prop_assert_eq!(&ours, &oracle);
            Resize::new(ResizeKind::Fast).run(&picture, size, &mut ours);
            for (at, (ours, oracle)) in ours.iter().zip(oracle).enumerate() {
                prop_assert!(ours.abs_diff(oracle) <= 2, "value {}: {} for {}", at, ours, oracle);
            }
        }
    }
}

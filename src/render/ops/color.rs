//! Operations on the three channels of each pixel, and the sharpening of each channel.
#![expect(unsafe_code, reason = "calls functions compiled for instruction sets that were detected at run time")]

use crate::render::each_level::each_level;
use crate::render::level::Level;
use crate::types::ImageSize;

/// Pillow's L of a pixel: ITU-R 601-2 luma in 16-bit fixed point.
#[inline(always)]
fn luma(r: u8, g: u8, b: u8) -> u8 {
    ((19_595 * u32::from(r) + 38_470 * u32::from(g) + 7_471 * u32::from(b) + 32_768) >> 16) as u8
}

/// `d + f·(c − d)`, clipped and truncated (Pillow's `Image.blend`).
#[inline(always)]
pub fn blend(d: u8, c: u8, f: f32) -> u8 {
    let from = f32::from(d);
    truncated(from + f * (f32::from(c) - from))
}

/// A number clipped to 0..=255, without its fraction; what `as u8` gives, in fewer instructions.
#[inline(always)]
#[expect(clippy::manual_clamp, reason = "what is no number becomes 0")]
pub fn truncated(value: f32) -> u8 {
    // SAFETY: in 0..=255; of what is no number `max` makes 0.
    unsafe { value.max(0.0).min(255.0).to_int_unchecked::<i32>() as u8 }
}

/// The three planes of an image.
#[inline(always)]
pub fn channels(planes: &mut [u8]) -> [&mut [u8]; 3] {
    let pixels = planes.len() / 3;
    let (red, rest) = planes.split_at_mut(pixels);
    let (green, blue) = rest.split_at_mut(pixels);
    [red, green, &mut blue[..pixels]]
}

/// Mean of the luma, rounded (half up).
pub fn mean_luma(level: Level, planes: &[u8]) -> u8 {
    let pixels = planes.len() / 3;
    (sum_of_luma(level, planes) as f64 / pixels as f64 + 0.5) as u8
}

each_level! {
    /// Sum of the luma of all pixels.
    fn sum_of_luma(planes: &[u8]) -> u64 {
        let pixels = planes.len() / 3;
        let (red, rest) = planes.split_at(pixels);
        let (green, blue) = rest.split_at(pixels);
        let mut sum = 0;
        // Blocks whose sum fits 32 bits.
        for ((red, green), blue) in red.chunks(1 << 16).zip(green.chunks(1 << 16)).zip(blue.chunks(1 << 16)) {
            let lumas = red.iter().zip(green).zip(blue).map(|((&r, &g), &b)| u32::from(luma(r, g, b)));
            sum += u64::from(lumas.sum::<u32>());
        }
        sum
    }

    /// The luma in all three channels.
    pub fn grayscale(planes: &mut [u8]) {
        let [red, green, blue] = channels(planes);
        for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
            let luma = luma(*r, *g, *b);
            (*r, *g, *b) = (luma, luma, luma);
        }
    }

    /// Blends each pixel with its luma.
    pub fn saturate(planes: &mut [u8], factor: f32) {
        let [red, green, blue] = channels(planes);
        for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
            let luma = luma(*r, *g, *b);
            (*r, *g, *b) = (blend(luma, *r, factor), blend(luma, *g, factor), blend(luma, *b, factor));
        }
    }

    /// Blends `before`, u8 `[3, H, W]`, with its 3×3 smoothed self into `after`.
    pub fn sharpen(before: &[u8], size: ImageSize, factor: f32, after: &mut [u8]) {
        let (width, height) = (size.width as usize, size.height as usize);
        if width < 3 || height < 3 {
            return after.copy_from_slice(before);
        }
        for (before, after) in before.chunks_exact(width * height).zip(after.chunks_exact_mut(width * height)) {
            for y in 1..height - 1 {
                let row = |y: usize| &before[y * width..][..width];
                let (above, here, below) = (row(y - 1), row(y), row(y + 1));
                let inner = width - 2;
                let out = &mut after[y * width + 1..][..inner];
                let (b0, b1, b2) = (&below[..inner], &below[1..][..inner], &below[2..][..inner]);
                let (h0, h1, h2) = (&here[..inner], &here[1..][..inner], &here[2..][..inner]);
                let (a0, a1, a2) = (&above[..inner], &above[1..][..inner], &above[2..][..inner]);
                for x in 0..inner {
                    let of = |row: &[u8]| u16::from(row[x]);
                    let around = of(a0) + of(a1) + of(a2) + of(h0) + of(h2) + of(b0) + of(b1) + of(b2);
                    // Pillow adds thirteenths and ½ in f32, and truncates. No sum comes nearer to a whole number than 1/26, and f32 errs by 4e-5.
                    let smooth = (around + 5 * of(h1) + 6) / 13;
                    out[x] = blend(smooth as u8, h1[x], factor);
                }
            }
        }
    }
}

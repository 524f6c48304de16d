//! Shears and translations by parts of a pixel: each row is sampled along itself, so that a filter needs four neighbours of it at most, where
//! `sampled.rs` takes four rows of four.
//!
//! All pixels of a row lie at one distance from a pixel, but for rounding. So a row has four weights, and is computed in f32, whose error is below
//! [`ERROR`]; blocks with a value that comes that near to a whole number, where truncation decides, are computed anew with the operations of
//! `sampled.rs`, in the same order. Hence the same bits.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calls functions compiled for instruction sets that were detected at run time")
)]

use super::affine::Affine;
use super::each_level::each_level;
use super::sampled::{Image, between, cubic};
use crate::operation::WarpFilter;
use crate::render::level::Level;
use std::ops::Range;

/// Pixels that are computed together.
const BLOCK: usize = 32;

/// More than f32 errs: by 2⁻²⁴ of every weight (their sizes sum to 2), product and sum, all of numbers below 512.
const ERROR: f32 = 1.0 / 4096.0;

/// Distances from a whole number above which rounding leaves all places of a row between the same neighbours.
const APART: f64 = 1e-6;

/// Samples rows along themselves into `after`, of a warp that moves rows only: pixel (x, y) shows the place `x + ½ + b·(y + ½) + c` of its row.
pub fn run(level: Level, image: &Image<'_>, affine: &Affine, filter: WarpFilter, after: &mut [u8]) {
    let pixels = image.width * image.height;
    for y in 0..image.height {
        let row = Row {
            image,
            moved: affine.b * (y as f64 + 0.5),
            offset: affine.c,
            is_cubic: filter == WarpFilter::Bicubic,
        };
        let inside = row.inside();
        let even = row.even(&inside);
        for channel in 0..3 {
            let before = &image.planes[channel * pixels + y * image.width..][..image.width];
            let out = &mut after[channel * pixels + y * image.width..][..image.width];
            out[..inside.start].fill(image.fill[channel]);
            out[inside.end..].fill(image.fill[channel]);
            row.sample(before, inside.start..even.pixels.start, out);
            row.sample(before, even.pixels.end..inside.end, out);
            let mut next = even.pixels.start;
            while next < even.pixels.end {
                // The last block computes pixels of the one before once more.
                let first = next.min(even.pixels.end - BLOCK);
                next = first + BLOCK;
                let taps = before[(first as i64 + even.left - 1) as usize..].first_chunk().expect("pixels of the row");
                let out = out[first..].first_chunk_mut().expect("pixels of the row");
                if weigh(level, &even.weights, taps, out) && !even.is_exact {
                    let left = first as f64 + even.left as f64;
                    filter_block(level, &row, first, left, taps, out);
                }
            }
        }
    }
}

/// A row that is sampled.
struct Row<'a> {
    image: &'a Image<'a>,
    moved: f64,
    offset: f64,
    is_cubic: bool,
}

/// The pixels of a row that lie at one distance from the pixel left of their place.
struct Even {
    /// Those of which all neighbours are of the image; none where rounding may decide which these are, and none that fill no block.
    pixels: Range<usize>,
    /// The pixel left of the place of pixel 0.
    left: i64,
    /// Weights of the neighbours but the second, which has what is missing to 1.
    weights: [f32; 3],
    /// Whether f32 does not err: places are whole sixteenths.
    is_exact: bool,
}

impl Row<'_> {
    fn even(&self, inside: &Range<usize>) -> Even {
        let moved = self.moved + self.offset;
        let (left, width) = (moved.floor(), self.image.width as i64);
        let d = moved - left;
        let first_of = |place: i64| (place - left as i64).clamp(inside.start as i64, inside.end as i64);
        let (first, end) = (first_of(1), first_of(width - 2));
        let is_even = d > APART && d < 1.0 - APART && end - first >= BLOCK as i64;
        let weights = if self.is_cubic {
            // Keys' cubic with a = −1 (`cubic`).
            [-d * (1.0 - d) * (1.0 - d), d * (1.0 + d - d * d), -d * d * (1.0 - d)]
        } else {
            [0.0, d, 0.0]
        };
        Even {
            pixels: if is_even { first as usize..end as usize } else { inside.start..inside.start },
            left: left as i64,
            weights: weights.map(|weight| weight as f32),
            is_exact: [self.moved, self.offset].iter().all(|part| (16.0 * part).fract() == 0.0),
        }
    }

    /// The place of pixel `x`.
    #[inline(always)]
    fn place(&self, x: usize) -> f64 {
        (x as f64 + 0.5 + self.moved) + self.offset
    }

    /// Pixels whose places are of the image.
    fn inside(&self) -> Range<usize> {
        // Places only grow.
        let from = |place: f64| {
            let (mut low, mut high) = (0, self.image.width);
            while low < high {
                let middle = (low + high) / 2;
                if self.place(middle) < place { low = middle + 1 } else { high = middle }
            }
            low
        };
        from(0.0)..from(self.image.width as f64)
    }

    /// Samples some pixels as `sampled.rs` does: along the other axis places lie on pixels, of which the filters make that pixel's value.
    fn sample(&self, before: &[u8], pixels: Range<usize>, out: &mut [u8]) {
        for x in pixels {
            let place = self.place(x) - 0.5;
            let left = if place < 0.0 { -1 } else { place as i32 };
            let d = place - f64::from(left);
            out[x] = if self.is_cubic {
                cubic(self.image.columns(before, left - 1), d) as u8
            } else {
                between(self.image.columns(before, left), d) as u8
            };
        }
    }
}

each_level! {
    /// Computes a block in f32, each pixel from four of `taps`, and says whether any may be wrong.
    fn weigh(weights: &[f32; 3], taps: &[u8; BLOCK + 3], out: &mut [u8; BLOCK]) -> bool {
        let [w1, w3, w4] = *weights;
        let mut doubts = 0;
        for nth in 0..BLOCK {
            let of = |tap: usize| i32::from(taps[nth + tap]);
            let (base, u1, u3, u4) = (of(1), of(0) - of(1), of(2) - of(1), of(3) - of(1));
            let (p1, p3, p4) = (w1 * u1 as f32, w3 * u3 as f32, w4 * u4 as f32);
            let value = base as f32 + ((p1 + p3) + p4);
            // SAFETY: a number of three digits.
            let whole = unsafe { value.to_int_unchecked::<i32>() };
            out[nth] = whole.clamp(0, 255) as u8;
            let is_near = ((value - whole as f32).abs() - 0.5).abs() > 0.5 - ERROR;
            // Among equal pixels the value is exact.
            let is_flat = (p1 == 0.0) & (p3 == 0.0) & (p4 == 0.0);
            doubts |= i32::from(is_near & !is_flat);
        }
        doubts != 0
    }

    /// Samples the block from pixel `first` on, the place of which is between the second and the third of `taps`; `left` is the second one's.
    fn filter_block(row: &Row<'_>, first: usize, left: f64, taps: &[u8; BLOCK + 3], out: &mut [u8; BLOCK]) {
        for nth in 0..BLOCK {
            let d = row.place(first + nth) - 0.5 - (left + nth as f64);
            let of = |tap: usize| i32::from(taps[nth + tap]);
            let (v1, v2, v3, v4) = (of(0), of(1), of(2), of(3));
            // As `sampled.rs` has it: the coefficients of bytes are whole numbers.
            let value = if row.is_cubic {
                let (p2, p3, p4) = (v3 - v1, 2 * (v1 - v2) + v3 - v4, v2 - v1 + v4 - v3);
                f64::from(v2) + d * (f64::from(p2) + d * (f64::from(p3) + d * f64::from(p4)))
            } else {
                f64::from(v2) + f64::from(v3 - v2) * d
            };
            // SAFETY: a number of three digits, as distances are below 1.
            out[nth] = unsafe { value.to_int_unchecked::<i32>() }.clamp(0, 255) as u8;
        }
    }
}

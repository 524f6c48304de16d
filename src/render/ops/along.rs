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
use super::sampled::{Image, between, cubic};
use crate::operation::WarpFilter;
use crate::render::each_level::each_level;
use crate::render::level::Level;
use std::ops::Range;

/// Pixels that are computed together.
const BLOCK: usize = 32;

/// More than f32 errs: each weight (their sizes sum to 1.1), product and sum by 2⁻²⁴ of a number below 512, together by 1.5e-4.
const ERROR: f32 = 1.0 / 4096.0;

/// Distances from a whole number above which rounding leaves all places of a row between the same neighbours.
const APART: f64 = 1e-6;

/// Pixels before a row that a filter may take, all like its first; as many follow it, like its last.
const EDGE: usize = 2;

/// Samples rows along themselves into `after`, of a warp that moves rows only: pixel (x, y) shows the place `x + ½ + b·(y + ½) + c` of its row.
pub fn run(
    level: Level,
    image: &Image<'_>,
    affine: &Affine,
    filter: WarpFilter,
    scratch: &mut Scratch,
    after: &mut [u8],
) {
    let Image { planes, width, height, fill } = *image;
    let Scratch { before, made } = scratch;
    before.resize(EDGE + width + EDGE + BLOCK, 0);
    made.resize(width + BLOCK, 0);
    for y in 0..height {
        let row = Row { moved: affine.b * (y as f64 + 0.5), offset: affine.c, is_cubic: filter == WarpFilter::Bicubic };
        let inside = row.inside(width);
        let even = if inside.is_empty() { None } else { row.even() };
        let rows =
            planes[y * width..].chunks(width).step_by(height).zip(after[y * width..].chunks_mut(width).step_by(height));
        for ((from, out), fill) in rows.zip(fill) {
            out[..inside.start].fill(fill);
            out[inside.end..].fill(fill);
            before[..EDGE].fill(from[0]);
            before[EDGE..][..width].copy_from_slice(from);
            before[EDGE + width..].fill(from[width - 1]);
            let Some(even) = &even else {
                row.sample(before, inside.clone(), out);
                continue;
            };
            for first in inside.clone().step_by(BLOCK) {
                let left = first as i64 + even.left;
                let taps = before[(left - 1 + EDGE as i64) as usize..].first_chunk().expect("a block beyond the edge");
                let made = made[first..].first_chunk_mut().expect("a block beyond the row");
                if weigh(level, &even.weights, taps, made) && !even.is_exact {
                    filter_block(level, &row, first, left as f64, taps, made);
                }
            }
            out[inside.clone()].copy_from_slice(&made[inside.clone()]);
        }
    }
}

/// A row with its edges, and what is made of it.
#[derive(Default)]
pub struct Scratch {
    before: Vec<u8>,
    made: Vec<u8>,
}

/// A row that is sampled.
struct Row {
    moved: f64,
    offset: f64,
    is_cubic: bool,
}

/// How a row is sampled whose places all lie at one distance from the pixel left of them.
struct Even {
    /// The pixel left of the place of pixel 0.
    left: i64,
    /// Weights of the neighbours but the second, which has what is missing to 1.
    weights: [f32; 3],
    /// Whether f32 does not err: places are whole sixteenths.
    is_exact: bool,
}

impl Row {
    /// The place of pixel `x`.
    #[inline(always)]
    fn place(&self, x: usize) -> f64 {
        (x as f64 + 0.5 + self.moved) + self.offset
    }

    /// Pixels whose places are of the image.
    fn inside(&self, width: usize) -> Range<usize> {
        // Places only grow.
        let first_from = |place: f64| {
            let mut first = (place - self.moved - self.offset).clamp(0.0, width as f64) as usize;
            while first > 0 && self.place(first - 1) >= place {
                first -= 1;
            }
            while first < width && self.place(first) < place {
                first += 1;
            }
            first
        };
        first_from(0.0)..first_from(width as f64)
    }

    /// None where rounding may decide between which pixels a place lies.
    fn even(&self) -> Option<Even> {
        let shift = self.moved + self.offset;
        let left = floor(shift);
        let d = shift - left as f64;
        let weights = if self.is_cubic {
            // Keys' cubic with a = −1 (`cubic`).
            [-d * (1.0 - d) * (1.0 - d), d * (1.0 + d - d * d), -d * d * (1.0 - d)]
        } else {
            [0.0, d, 0.0]
        };
        (APART..1.0 - APART).contains(&d).then(|| Even {
            left,
            weights: weights.map(|weight| weight as f32),
            is_exact: [self.moved, self.offset].iter().all(|part| 16.0 * part == floor(16.0 * part) as f64),
        })
    }

    /// Samples some pixels as `sampled.rs` does: along the other axis places lie on pixels, of which the filters make that pixel's value.
    fn sample(&self, before: &[u8], pixels: Range<usize>, out: &mut [u8]) {
        for x in pixels {
            let place = self.place(x) - 0.5;
            let left = floor(place);
            let d = place - left as f64;
            let taps = &before[(left + EDGE as i64 - 1) as usize..];
            let of = |tap: usize| f64::from(taps[tap]);
            let value = if self.is_cubic { cubic([of(0), of(1), of(2), of(3)], d) } else { between([of(1), of(2)], d) };
            out[x] = value as u8;
        }
    }
}

/// The whole number below, in fewer instructions than of numbers of any size.
fn floor(number: f64) -> i64 {
    let whole = number as i64;
    if whole as f64 > number { whole - 1 } else { whole }
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
    fn filter_block(row: &Row, first: usize, left: f64, taps: &[u8; BLOCK + 3], out: &mut [u8; BLOCK]) {
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

//! Shears and translations by parts of a pixel: each row is sampled along itself, so that a filter needs four neighbours of it at most, where
//! `sampled.rs` takes four rows of four. The same operations in the same order, and so the same bits: along the other axis a place lies on
//! a pixel, of which the filters make that pixel's value.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calls functions compiled for instruction sets that were detected at run time")
)]

use super::affine::Affine;
use super::each_level::each_level;
use super::sampled::{Image, between, cubic};
use crate::operation::WarpFilter;
use crate::render::level::Level;

/// Pixels whose places are found together.
const BLOCK: usize = 16;

/// Samples rows along themselves into `after`, of a warp that moves rows only: pixel (x, y) shows the place `x + ½ + b·(y + ½) + c` of its row.
pub fn run(level: Level, image: &Image<'_>, affine: &Affine, filter: WarpFilter, after: &mut [u8]) {
    sample_rows(level, image, affine, filter == WarpFilter::Bicubic, after);
}

each_level! {
    fn sample_rows(image: &Image<'_>, affine: &Affine, is_cubic: bool, after: &mut [u8]) {
        let Image { planes, width, height, fill } = *image;
        let pixels = width * height;
        for y in 0..height {
            let moved = affine.b * (y as f64 + 0.5);
            let mut next = 0;
            while next < width {
                // The last block may show pixels of the one before once more.
                let first = if next + BLOCK > width { width.saturating_sub(BLOCK) } else { next };
                next = first + BLOCK;
                let count = BLOCK.min(width);
                let (mut left, mut distance, mut inside) = ([0_i32; BLOCK], [0.0_f64; BLOCK], [false; BLOCK]);
                for nth in 0..BLOCK {
                    let place = ((first + nth) as f64 + 0.5 + moved) + affine.c;
                    inside[nth] = place >= 0.0 && place < width as f64;
                    let place = place - 0.5;
                    let before = place.floor();
                    left[nth] = before as i32;
                    distance[nth] = place - before;
                }
                // Rounding may have a place repeat, or leave one out.
                let mut is_even = true;
                for nth in 1..BLOCK {
                    is_even &= left[nth] == left[0].wrapping_add(nth as i32);
                }
                let is_within = is_even && left[0] >= 1 && i64::from(left[0]) + BLOCK as i64 + 2 <= width as i64;
                for channel in 0..3 {
                    let row = &planes[channel * pixels + y * width..][..width];
                    let out = &mut after[channel * pixels + y * width + first..][..count];
                    if is_within {
                        let taps = &row[left[0] as usize - 1..][..BLOCK + 3];
                        let out: &mut [u8; BLOCK] = out.try_into().expect("as many");
                        for nth in 0..BLOCK {
                            let [v1, v2, v3, v4] = [taps[nth], taps[nth + 1], taps[nth + 2], taps[nth + 3]];
                            let (v1, v2, v3, v4) = (i32::from(v1), i32::from(v2), i32::from(v3), i32::from(v4));
                            let d = distance[nth];
                            // As `sampled.rs` has it: the coefficients of bytes are whole numbers.
                            let value = if is_cubic {
                                let (p2, p3, p4) = (v3 - v1, 2 * (v1 - v2) + v3 - v4, v2 - v1 + v4 - v3);
                                f64::from(v2) + d * (f64::from(p2) + d * (f64::from(p3) + d * f64::from(p4)))
                            } else {
                                f64::from(v2) + f64::from(v3 - v2) * d
                            };
                            // SAFETY: a number of three digits, as distances are below 1.
                            out[nth] = unsafe { value.to_int_unchecked::<i32>() }.clamp(0, 255) as u8;
                        }
                    } else {
                        for nth in 0..count {
                            out[nth] = if !inside[nth] {
                                fill[channel]
                            } else if is_cubic {
                                cubic(image.columns(row, left[nth] - 1), distance[nth]) as u8
                            } else {
                                between(image.columns(row, left[nth]), distance[nth]) as u8
                            };
                        }
                    }
                }
            }
        }
    }
}

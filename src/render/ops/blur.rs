//! Pillow's Gaussian blur: three box blurs along the rows, then three along the columns, each rounded to bytes.
//!
//! A box blur runs down the columns, a row of sums at a time; the blurs along the rows do the same over the transposed plane.
#![expect(unsafe_code, reason = "calls functions compiled for instruction sets that were detected at run time")]

use super::each_level::each_level;
use crate::render::level::Level;
use crate::types::ImageSize;

/// Two planes, and the sums of a row.
#[derive(Default)]
pub struct Scratch {
    planes: [Vec<u8>; 2],
    sums: Vec<u32>,
}

impl Scratch {
    /// Frees scratch above `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        if self.planes[0].capacity() > bytes {
            *self = Self::default();
        }
    }
}

/// One box: whole pixels on either side of the middle one, and weights of 2⁻²⁴.
#[derive(Debug, Clone, Copy)]
struct Kernel {
    radius: usize,
    /// Of each whole pixel.
    whole: u32,
    /// Of the two beyond them.
    edge: u32,
}

impl Kernel {
    /// The box three of which approximate a Gaussian of `sigma` (Gwosdek et al. 2011, as Pillow computes it).
    fn of(sigma: f64) -> Self {
        let sigma = sigma as f32;
        let variance = sigma * sigma / 3.0;
        let length = (12.0 * f64::from(variance) + 1.0).sqrt() as f32;
        let l = ((length - 1.0) / 2.0).floor();
        let fraction = (2.0 * l + 1.0) * (l * (l + 1.0) - 3.0 * variance) / (6.0 * (variance - (l + 1.0) * (l + 1.0)));
        let radius = l + fraction;
        let whole = (16_777_216.0_f32 / (radius * 2.0 + 1.0)) as u32;
        let pixels = 2 * radius as u32 + 1;
        Self { radius: radius as usize, whole, edge: ((1 << 24) - pixels * whole) / 2 }
    }
}

/// Blurs each of `planes`, u8 `[3, H, W]`.
pub fn gaussian(level: Level, sigma: f64, size: ImageSize, planes: &mut [u8], scratch: &mut Scratch) {
    let (width, height, kernel) = (size.width as usize, size.height as usize, Kernel::of(sigma));
    let Scratch { planes: [first, second], sums } = scratch;
    first.resize(width * height, 0);
    second.resize(width * height, 0);
    sums.resize(width.max(height), 0);
    for plane in planes.chunks_exact_mut(width * height) {
        transpose(level, plane, width, first);
        box_blur(level, first, height, kernel, sums, second);
        box_blur(level, second, height, kernel, sums, first);
        box_blur(level, first, height, kernel, sums, second);
        transpose(level, second, height, plane);
        box_blur(level, plane, width, kernel, sums, first);
        box_blur(level, first, width, kernel, sums, second);
        box_blur(level, second, width, kernel, sums, plane);
    }
}

each_level! {
    /// Makes rows of `width` values columns.
    fn transpose(from: &[u8], width: usize, to: &mut [u8]) {
        const TILE: usize = 16;
        let height = from.len() / width;
        for top in (0..height).step_by(TILE) {
            for left in (0..width).step_by(TILE) {
                let (bottom, right) = ((top + TILE).min(height), (left + TILE).min(width));
                if bottom - top == TILE && right - left == TILE {
                    let mut tile = [[0; TILE]; TILE];
                    for (y, row) in tile.iter_mut().enumerate() {
                        row.copy_from_slice(&from[(top + y) * width + left..][..TILE]);
                    }
                    for x in 0..TILE {
                        let column: [u8; TILE] = std::array::from_fn(|y| tile[y][x]);
                        to[(left + x) * height + top..][..TILE].copy_from_slice(&column);
                    }
                    continue;
                }
                for x in left..right {
                    for y in top..bottom {
                        to[x * height + y] = from[y * width + x];
                    }
                }
            }
        }
    }

    /// Blurs down the columns of rows of `width` values. The first and the last row repeat beyond the edges.
    fn box_blur(from: &[u8], width: usize, kernel: Kernel, sums: &mut [u32], to: &mut [u8]) {
        let (last, sums) = (from.len() / width - 1, &mut sums[..width]);
        let row = |y: isize| &from[y.clamp(0, last as isize) as usize * width..][..width];
        let radius = kernel.radius as isize;
        sums.fill(0);
        for y in -radius..=radius {
            sums.iter_mut().zip(row(y)).for_each(|(sum, &value)| *sum += u32::from(value));
        }
        for (y, out) in (0..).zip(to.chunks_exact_mut(width)) {
            // The sums are of the rows `y − radius ..= y + radius`.
            let (above, below, first) = (row(y - radius - 1), row(y + radius + 1), row(y - radius));
            for ((((out, sum), &above), &below), &first) in out.iter_mut().zip(&mut *sums).zip(above).zip(below).zip(first) {
                let edges = u32::from(above) + u32::from(below);
                *out = ((kernel.whole * *sum + kernel.edge * edges + (1 << 23)) >> 24) as u8;
                *sum = *sum + u32::from(below) - u32::from(first);
            }
        }
    }
}

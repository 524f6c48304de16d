//! Pillow's Gaussian blur: three box blurs along the rows, then three along the columns, each rounded to bytes.
//!
//! A box blur runs down the columns, a strip of them with its sums in registers; the blurs along the rows do the same over the transposed plane.
#![expect(unsafe_code, reason = "calls functions compiled for instruction sets that were detected at run time")]

use super::transpose::transpose;
use crate::render::each_level::each_level;
use crate::render::level::Level;
use crate::types::ImageSize;

/// Two planes.
#[derive(Default)]
pub struct Scratch {
    planes: [Vec<u8>; 2],
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
        assert!(pixels * 255 <= u16::MAX.into(), "sums have 16 bits");
        Self { radius: radius as usize, whole, edge: ((1 << 24) - pixels * whole) / 2 }
    }

    /// What the box makes of the sum of its whole pixels and that of the two beyond, times 2²⁴, rounded when its lower bits are cut off.
    #[inline(always)]
    fn blur(self, sum: u32, edges: u32) -> u32 {
        self.whole * sum + self.edge * edges + (1 << 23)
    }
}

/// Blurs each of `planes`, u8 `[3, H, W]`.
pub fn gaussian(level: Level, sigma: f64, size: ImageSize, planes: &mut [u8], scratch: &mut Scratch) {
    let (width, height, kernel) = (size.width as usize, size.height as usize, Kernel::of(sigma));
    let Scratch { planes: [first, second] } = scratch;
    first.resize(width * height, 0);
    second.resize(width * height, 0);
    for plane in planes.chunks_exact_mut(width * height) {
        transpose(plane, width, height, first);
        box_blur(level, first, height, kernel, second);
        box_blur(level, second, height, kernel, first);
        box_blur(level, first, height, kernel, second);
        transpose(second, height, width, plane);
        box_blur(level, plane, width, kernel, first);
        box_blur(level, first, width, kernel, second);
        box_blur(level, second, width, kernel, plane);
    }
}

each_level! {
    /// Blurs down the columns of rows of `width` values. The first and the last row repeat beyond the edges.
    fn box_blur(from: &[u8], width: usize, kernel: Kernel, to: &mut [u8]) {
        // The last strip overlaps the one before. Plain loops: `for_each` on a StepBy is not inlined, and so not compiled for the level.
        if width >= 64 {
            for left in (0..width).step_by(64) {
                blur_strip::<16>(from, width, left.min(width - 64), kernel, to);
            }
        } else if width >= 16 {
            for left in (0..width).step_by(16) {
                blur_strip::<4>(from, width, left.min(width - 16), kernel, to);
            }
        } else {
            for left in 0..width {
                blur_column(from, width, left, kernel, to);
            }
        }
    }
}

/// Blurs `4 * WORDS` columns from `left` on; their running sums stay in registers. SIMD within a register: a u32 holds four neighbouring pixels, split into
/// two u32 of two 16-bit lanes each (even pixels, odd pixels). Converting bytes to u32 vectors and back would cost more than the blur itself.
#[inline(always)]
fn blur_strip<const WORDS: usize>(from: &[u8], width: usize, left: usize, kernel: Kernel, to: &mut [u8]) {
    let (last, radius) = ((from.len() / width - 1) as isize, kernel.radius as isize);
    let row = |y: isize| {
        let row = &from[y.clamp(0, last) as usize * width + left..][..4 * WORDS];
        let words: [u32; WORDS] = bytemuck::pod_read_unaligned(row);
        [words.map(|word| word & 0x00FF_00FF), words.map(|word| (word >> 8) & 0x00FF_00FF)]
    };
    // Of the rows `y − radius ..= y + radius`.
    let mut sums = [[0_u32; WORDS]; 2];
    for y in -radius..=radius {
        let values = row(y);
        sums.iter_mut().flatten().zip(values.as_flattened()).for_each(|(sum, values)| *sum += values);
    }
    let mut above = row(-radius - 1);
    for y in 0..=last {
        let (first, below) = (row(y - radius), row(y + radius + 1));
        let mut out = [0_u32; WORDS];
        for parity in 0..2 {
            for (at, out) in out.iter_mut().enumerate() {
                let (sums, edges) = (&mut sums[parity][at], above[parity][at] + below[parity][at]);
                // The results are the upper bytes.
                let lower = kernel.blur(*sums & 0xFFFF, edges & 0xFFFF) >> 24;
                let upper = kernel.blur(*sums >> 16, edges >> 16) & 0xFF00_0000;
                *out |= (lower | (upper >> 8)) << (8 * parity);
                *sums = *sums + below[parity][at] - first[parity][at];
            }
        }
        above = first;
        to[y as usize * width + left..][..4 * WORDS].copy_from_slice(bytemuck::cast_slice(&out));
    }
}

/// Blurs one column of an image that has no room for a strip.
fn blur_column(from: &[u8], width: usize, left: usize, kernel: Kernel, to: &mut [u8]) {
    let (last, radius) = ((from.len() / width - 1) as isize, kernel.radius as isize);
    let value = |y: isize| u32::from(from[y.clamp(0, last) as usize * width + left]);
    let mut sum: u32 = (-radius..=radius).map(value).sum();
    for y in 0..=last {
        let (above, first, below) = (value(y - radius - 1), value(y - radius), value(y + radius + 1));
        to[y as usize * width + left] = (kernel.blur(sum, above + below) >> 24) as u8;
        sum = sum + below - first;
    }
}

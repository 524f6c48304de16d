//! What stands in erased boxes (docs/spec/batches.md#erased): numbers that the processor and a device make alike.

use crate::format::Format;
use crate::plan::Erasure;
use crate::spec::EraseMode;
use crate::types::{Cut, Dtype};
use std::sync::LazyLock;

/// Quantiles of N(0, 1) in the table.
pub const QUANTILES: usize = 1 << 12;

/// N(0, 1) at (i + ½)/4096.
static NORMAL: LazyLock<[f32; QUANTILES]> = LazyLock::new(|| {
    let mut table = [0.0; QUANTILES];
    for upper in 0..QUANTILES / 2 {
        let value = normal_quantile((upper as f64 + 0.5) / QUANTILES as f64 + 0.5) as f32;
        (table[QUANTILES / 2 + upper], table[QUANTILES / 2 - 1 - upper]) = (value, -value);
    }
    table
});

/// The value of N(0, 1) that is exceeded with probability 1 − `p`, by bisection; `p` is at least ½ and not above 1 − 1e-15.
fn normal_quantile(p: f64) -> f64 {
    let (mut low, mut high) = (0.0, 8.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        let above = 0.5 * libm::erfc(middle * std::f64::consts::FRAC_1_SQRT_2);
        *(if above > 1.0 - p { &mut low } else { &mut high }) = middle;
    }
    low
}

/// Random bits for a number of an erasure: a finalizer of MurmurHash3 over key and index.
#[inline(always)]
pub fn bits(key: u32, index: u32) -> u32 {
    let mut hash = index.wrapping_mul(0x9E37_79B1) ^ key;
    hash = (hash ^ hash >> 16).wrapping_mul(0x85EB_CA6B);
    hash = (hash ^ hash >> 13).wrapping_mul(0xC2B2_AE35);
    hash ^ hash >> 16
}

/// What stands in erased boxes of a format.
pub struct Fills {
    /// Of each channel, for noise: quantiles of N(0, 1); of u8 batches as levels, `255·(z·std + mean)`, rounded and clamped.
    pub noise: [Box<[f32; QUANTILES]>; 3],
    /// Of each channel, for constants: 0, or its level.
    pub constant: [f32; 3],
}

impl Fills {
    /// Those of this format.
    pub fn new(format: &Format) -> Self {
        let value = |channel: usize, z: f32| match format.dtype {
            Dtype::U8 => {
                let level = 255.0 * (z * format.std[channel] + format.mean[channel]);
                level.clamp(0.0, 255.0).round_ties_even()
            }
            _ => z,
        };
        let noise = [0, 1, 2].map(|channel| Box::new(NORMAL.map(|z| value(channel, z))));
        Self { noise, constant: [0, 1, 2].map(|channel| value(channel, 0.0)) }
    }

    /// Writes what stands in a box of a channel, the box's `nth` of its view, to the values whose first one has `index` in the view.
    #[inline(always)]
    pub fn write(&self, erasure: &Erasure, nth: usize, channel: usize, index: usize, out: &mut [f32]) {
        let noise = &self.noise[channel];
        match erasure.mode {
            EraseMode::Const => out.fill(self.constant[channel]),
            EraseMode::Rand => out.fill(noise[quantile(erasure.key, (3 * nth + channel) as u32)]),
            EraseMode::Pixel => {
                for (first, out) in (index as u32..).step_by(TOGETHER).zip(out.chunks_mut(TOGETHER)) {
                    let quantiles: [usize; TOGETHER] =
                        std::array::from_fn(|at| quantile(erasure.key, first + at as u32));
                    out.iter_mut().zip(quantiles).for_each(|(out, quantile)| *out = noise[quantile]);
                }
            }
        }
    }
}

/// Quantiles that are drawn before they are looked up: so compilers draw them in vectors.
const TOGETHER: usize = 16;

/// A random quantile's place in the table.
#[inline(always)]
fn quantile(key: u32, index: u32) -> usize {
    (bits(key, index) >> 20) as usize
}

/// Intersection of `columns` of row `y` with a box; empty if they do not overlap.
pub fn overlap(cut: &Cut, y: usize, columns: &std::ops::Range<usize>) -> std::ops::Range<usize> {
    let (left, right) = (columns.start.max(cut.left as usize), columns.end.min(cut.right as usize));
    if (cut.top as usize..cut.bottom as usize).contains(&y) && left < right { left..right } else { 0..0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_the_normal_law_s() {
        let table = NORMAL.map(f64::from);
        // Of Python's statistics.NormalDist().inv_cdf.
        for (at, expected) in [(0, -3.668_329_285), (2048, 0.000_305_985), (3072, 0.674_873_939), (4095, 3.668_329_285)]
        {
            assert!((table[at] - expected).abs() < 3e-7 * expected.abs().max(1e-3), "{at}: {}", table[at]);
        }
        assert!(table.windows(2).all(|pair| pair[0] < pair[1]));
        let mean_square = table.iter().map(|z| z * z).sum::<f64>() / QUANTILES as f64;
        assert!((mean_square - 1.0).abs() < 1e-3, "{mean_square}");
    }

    #[test]
    fn noise_is_even_and_neighbours_are_independent() {
        let z: Vec<f64> = (0..200_000).map(|index| f64::from(NORMAL[(bits(7, index) >> 20) as usize])).collect();
        let n = z.len() as f64;
        let mean = z.iter().sum::<f64>() / n;
        let variance = z.iter().map(|z| z * z).sum::<f64>() / n;
        assert!(mean.abs() < 4.0 / n.sqrt() && (variance - 1.0).abs() < 0.015, "{mean}, {variance}");
        for distance in [1, 2, 3, 128, 224, 224 * 224] {
            let pairs = z.iter().zip(&z[distance..]);
            let covariance = pairs.map(|(a, b)| a * b).sum::<f64>() / n;
            assert!(covariance.abs() < 4.5 / n.sqrt(), "{distance}: {covariance}");
        }
        // Of another key.
        let covariance =
            z.iter().zip(0..).map(|(z, index)| z * f64::from(NORMAL[(bits(8, index) >> 20) as usize])).sum::<f64>() / n;
        assert!(covariance.abs() < 4.5 / n.sqrt(), "{covariance}");
    }
}

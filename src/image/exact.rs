//! SPEC §2's integer resize, which is Pillow's (up to 11.3) to the bit: a triangle filter with 22-bit weights, along the rows first, the
//! result as u8, then along the columns.
//!
//! A weight has too many bits for the multiplications of 16-bit pairs that processors are fast at. So it is split, `w = 2¹¹·high + low`,
//! and so is the sum: `Σ w·u = 2¹¹·Σ high·u + Σ low·u`, still exact. Between the passes channels lie in planes, where they stay.
#![expect(
    unsafe_code,
    reason = "vector instructions that were detected at run time, and their unaligned loads and stores"
)]

use super::decode::Picture;
use crate::types::ImageSize;
use std::collections::HashMap;

/// Axes that are remembered; a data set of photos has a few hundred shapes.
const AXES_MAX: usize = 512;
/// Bits of a weight's fraction.
const FRACTION: u32 = 22;

/// Scratch for resizing, and the weights of the shapes that were seen.
#[derive(Default)]
pub struct Exact {
    /// By inputs, eighths of inputs that show the image, and outputs.
    axes: HashMap<(u32, u32, u32), Axis>,
    /// Rows that were resized along themselves: for each row of the picture its channels, one after the other.
    narrow: Vec<u8>,
    /// The last rows of a picture, with room for loads that reach beyond them.
    #[cfg(target_arch = "x86_64")]
    tail: Vec<u8>,
}

impl Exact {
    /// Resizes `picture` to `size` into the first `picture.channels` planes of `out`.
    pub fn run(&mut self, picture: &Picture<'_>, size: ImageSize, out: &mut [u8]) {
        let [width, height] = picture.extent;
        let (across, down) = ((picture.width, width, size.width), (picture.height, height, size.height));
        if self.axes.len() + 2 > AXES_MAX {
            self.axes.clear();
        }
        for key in [across, down] {
            self.axes.entry(key).or_insert_with(|| Axis::new(key));
        }
        let (across, down) = (&self.axes[&across], &self.axes[&down]);
        let narrow_row = across.outputs() * picture.channels;
        self.narrow.resize(narrow_row * picture.height as usize, 0);
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the machine has the feature.
            unsafe {
                match picture.channels {
                    3 => avx2::along_rows(picture, across, &mut self.narrow, &mut self.tail),
                    _ => along_rows(picture, across, &mut self.narrow),
                }
                avx2::along_columns(&self.narrow, across.outputs(), picture.channels, down, out);
            }
            return;
        }
        along_rows(picture, across, &mut self.narrow);
        along_columns(&self.narrow, across.outputs(), picture.channels, down, out);
    }
}

/// The weights of an axis.
struct Axis {
    /// For each output its first input.
    first: Vec<u32>,
    /// Inputs of an axis.
    inputs: usize,
    /// Weights of each output: a multiple of 4, filled up with zeros.
    taps: usize,
    /// `[output][tap]`: the weights.
    weights: Vec<i32>,
    /// `[output][tap / 4]`: the weights again, split, as pairs of 16 bits.
    #[cfg(target_arch = "x86_64")]
    split: Vec<avx2::Four>,
}

impl Axis {
    fn new((inputs, eighths, outputs): (u32, u32, u32)) -> Self {
        let scale = f64::from(eighths) / 8.0 / f64::from(outputs);
        let reach = scale.max(1.0);
        let weights_of = |output: usize| {
            let center = (output as f64 + 0.5) * scale;
            let begin = (center - reach + 0.5).max(0.0) as usize;
            let end = ((center + reach + 0.5) as usize).min(inputs as usize);
            let weight = |input: usize| (1.0 - ((input as f64 - center + 0.5) / reach).abs()).max(0.0);
            let sum: f64 = (begin..end).map(weight).sum();
            let weight = |input: usize| (weight(input) / sum * f64::from(1 << FRACTION) + 0.5) as i32;
            let weights: Vec<i32> = (begin..end).map(weight).collect();
            // Without the zeros at its ends.
            let zeros = weights.iter().take_while(|weight| **weight == 0).count();
            let last = weights.iter().rposition(|weight| *weight != 0).expect("the nearest input has weight");
            (begin + zeros, weights[zeros..=last].to_vec())
        };
        let outputs: Vec<(usize, Vec<i32>)> = (0..outputs as usize).map(weights_of).collect();
        let taps = outputs.iter().map(|(_, weights)| weights.len()).max().unwrap_or(0).next_multiple_of(4);
        let first = outputs.iter().map(|(first, _)| *first as u32).collect();
        let filled = |weights: &[i32]| (0..taps).map(|tap| weights.get(tap).copied().unwrap_or(0)).collect::<Vec<_>>();
        let weights: Vec<i32> = outputs.iter().flat_map(|(_, weights)| filled(weights)).collect();
        #[cfg(target_arch = "x86_64")]
        let split = weights.chunks_exact(4).map(avx2::Four::new).collect();
        Self {
            first,
            inputs: inputs as usize,
            taps,
            weights,
            #[cfg(target_arch = "x86_64")]
            split,
        }
    }

    fn outputs(&self) -> usize {
        self.first.len()
    }

    /// One output from its inputs.
    #[inline(always)]
    fn apply(&self, output: usize, value: impl Fn(usize) -> u8) -> u8 {
        let first = self.first[output] as usize;
        let weights = &self.weights[output * self.taps..][..self.taps.min(self.inputs - first)];
        let sum: i32 = weights.iter().enumerate().map(|(tap, weight)| weight * i32::from(value(first + tap))).sum();
        // At most 255: the weights of an output add up to 2²², give or take their rounding.
        ((sum + (1 << (FRACTION - 1))) >> FRACTION) as u8
    }
}

/// The first pass, for any processor.
fn along_rows(picture: &Picture<'_>, axis: &Axis, narrow: &mut [u8]) {
    let (width, channels) = (picture.width as usize, picture.channels);
    for (row, narrow) in
        picture.values.chunks_exact(width * channels).zip(narrow.chunks_exact_mut(axis.outputs() * channels))
    {
        for (channel, plane) in narrow.chunks_exact_mut(axis.outputs()).enumerate() {
            for (output, value) in plane.iter_mut().enumerate() {
                *value = axis.apply(output, |input| row[input * channels + channel]);
            }
        }
    }
}

/// The second pass, for any processor.
fn along_columns(narrow: &[u8], width: usize, channels: usize, axis: &Axis, out: &mut [u8]) {
    for (channel, plane) in out.chunks_exact_mut(width * axis.outputs()).take(channels).enumerate() {
        for (output, row) in plane.chunks_exact_mut(width).enumerate() {
            for (x, value) in row.iter_mut().enumerate() {
                *value = axis.apply(output, |input| narrow[(input * channels + channel) * width + x]);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{Axis, FRACTION, Picture};
    use std::arch::x86_64::*;

    /// Bytes beyond the last pixel of a row that loads may reach: three taps of weight 0 and the rest of 16 bytes.
    const BEYOND: usize = 16;
    /// Rows that are resized together, two in a vector.
    const ROWS: usize = 8;
    /// Bits of the low part of a split weight.
    const LOW: i32 = 11;

    /// The weights of four neighbouring taps, each split; two taps' 16-bit parts in an element.
    #[derive(Clone, Copy)]
    pub struct Four {
        /// Of the first two taps and of the last two.
        high: [i32; 2],
        /// The same.
        low: [i32; 2],
    }

    impl Four {
        /// Splits four weights.
        pub fn new(weights: &[i32]) -> Self {
            let pair = |part: fn(i32) -> i32, at: usize| part(weights[at]) | part(weights[at + 1]) << 16;
            let both = |part| [pair(part, 0), pair(part, 2)];
            Self { high: both(|weight| weight >> LOW), low: both(|weight| weight & ((1 << LOW) - 1)) }
        }
    }

    /// The rounded outputs of split sums.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn rounded(high: __m256i, low: __m256i) -> __m256i {
        let sum = _mm256_add_epi32(_mm256_slli_epi32::<LOW>(high), low);
        let half = _mm256_set1_epi32(1 << (FRACTION - 1));
        _mm256_srai_epi32::<{ FRACTION as i32 }>(_mm256_add_epi32(sum, half))
    }

    /// The first pass over R, G, B.
    #[target_feature(enable = "avx2")]
    pub fn along_rows(picture: &Picture<'_>, axis: &Axis, narrow: &mut [u8], tail: &mut Vec<u8>) {
        let (stride, outputs) = (picture.width as usize * 3, axis.outputs());
        assert_eq!(axis.inputs * 3, stride);
        for (nth, narrow) in narrow.chunks_mut(ROWS * 3 * outputs).enumerate() {
            let rows = &picture.values[nth * ROWS * stride..];
            if rows.len() >= ROWS * stride + BEYOND {
                some_rows(rows, stride, axis, narrow);
            } else {
                // The last rows: too few, or nothing behind them.
                tail.clear();
                tail.extend_from_slice(&rows[..rows.len().min(ROWS * stride)]);
                tail.resize(ROWS * stride + BEYOND, 0);
                some_rows(tail, stride, axis, narrow);
            }
        }
    }

    /// [`ROWS`] rows at `values`, of which as many as `narrow` has room for are kept.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn some_rows(values: &[u8], stride: usize, axis: &Axis, narrow: &mut [u8]) {
        let (outputs, fours) = (axis.outputs(), axis.taps / 4);
        assert!(values.len() >= ROWS * stride + BEYOND);
        let zero = _mm256_setzero_si256();
        // r0 r1 g0 g1 b0 b1 · · r2 r3 g2 g3 b2 b3 · · of four pixels, for each of two rows.
        let pairs = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 3, 1, 4, 2, 5, -1, -1, 6, 9, 7, 10, 8, 11, -1, -1));
        // Of four outputs r g b · all r, all g, all b.
        let planes = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
        for at in (0..outputs).step_by(4) {
            let mut results = [[zero; 4]; ROWS / 2];
            #[expect(clippy::needless_range_loop, reason = "indexes two arrays crosswise")]
            for nth in 0..4 {
                let output = (at + nth).min(outputs - 1);
                let first = axis.first[output] as usize;
                let (mut high, mut low) = ([zero; ROWS / 2], [zero; ROWS / 2]);
                for (four, input) in axis.split[output * fours..][..fours].iter().zip((first..).step_by(4)) {
                    // Only weights of 0 are left.
                    if input >= axis.inputs {
                        break;
                    }
                    let (high_01, high_23) = (_mm256_set1_epi32(four.high[0]), _mm256_set1_epi32(four.high[1]));
                    let (low_01, low_23) = (_mm256_set1_epi32(four.low[0]), _mm256_set1_epi32(four.low[1]));
                    for two in 0..ROWS / 2 {
                        // SAFETY: `input` is a pixel of the row, so the 16 bytes of the later row end before the end of
                        // `values`, which reaches BEYOND bytes past the last row (asserted above).
                        let pixels = unsafe {
                            let start = values.as_ptr().add(2 * two * stride + input * 3);
                            _mm256_loadu2_m128i(start.add(stride).cast(), start.cast())
                        };
                        let pixels = _mm256_shuffle_epi8(pixels, pairs);
                        let (first_two, last_two) =
                            (_mm256_unpacklo_epi8(pixels, zero), _mm256_unpackhi_epi8(pixels, zero));
                        let of =
                            |a, b| _mm256_add_epi32(_mm256_madd_epi16(first_two, a), _mm256_madd_epi16(last_two, b));
                        high[two] = _mm256_add_epi32(high[two], of(high_01, high_23));
                        low[two] = _mm256_add_epi32(low[two], of(low_01, low_23));
                    }
                }
                for two in 0..ROWS / 2 {
                    results[two][nth] = rounded(high[two], low[two]);
                }
            }
            for (two, [a, b, c, d]) in results.into_iter().enumerate() {
                let bytes = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
                let mut lanes = [0_u8; 32];
                // SAFETY: 32 bytes for 32 bytes.
                unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), _mm256_shuffle_epi8(bytes, planes)) };
                let count = (outputs - at).min(4);
                for (lane, row) in lanes.chunks_exact(16).zip(2 * two..) {
                    let Some(row) = narrow.get_mut(row * 3 * outputs..(row + 1) * 3 * outputs) else { break };
                    for (plane, values) in row.chunks_exact_mut(outputs).zip(lane.chunks_exact(4)) {
                        // Four at once, but for the last.
                        match count {
                            4 => plane[at..at + 4].copy_from_slice(values),
                            _ => plane[at..].copy_from_slice(&values[..count]),
                        }
                    }
                }
            }
        }
    }

    /// The second pass.
    #[target_feature(enable = "avx2")]
    pub fn along_columns(narrow: &[u8], width: usize, channels: usize, axis: &Axis, out: &mut [u8]) {
        if width < 32 {
            return super::along_columns(narrow, width, channels, axis, out);
        }
        assert_eq!(narrow.len(), axis.inputs * channels * width);
        for (channel, plane) in out.chunks_exact_mut(width * axis.outputs()).take(channels).enumerate() {
            for (output, row) in plane.chunks_exact_mut(width).enumerate() {
                // The last 32 values may overlap those before.
                let starts = (0..width - 31).step_by(32).chain((!width.is_multiple_of(32)).then_some(width - 32));
                for x in starts {
                    let column = |input: usize| {
                        // Behind the last row only weights of 0 follow.
                        let at = (input.min(axis.inputs - 1) * channels + channel) * width + x;
                        let values = &narrow[at..at + 32];
                        // SAFETY: the slice has 32 bytes.
                        unsafe { _mm256_loadu_si256(values.as_ptr().cast()) }
                    };
                    let values = thirty_two(axis, output, column);
                    let to = &mut row[x..x + 32];
                    // SAFETY: the slice has 32 bytes.
                    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), values) };
                }
            }
        }
    }

    /// One output of 32 neighbouring columns.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn thirty_two(axis: &Axis, output: usize, column: impl Fn(usize) -> __m256i) -> __m256i {
        let (zero, fours) = (_mm256_setzero_si256(), axis.taps / 4);
        let (mut high, mut low) = ([zero; 4], [zero; 4]);
        let four = |tap: usize| &axis.split[output * fours + tap / 4];
        for tap in (0..axis.taps).step_by(2) {
            let first = axis.first[output] as usize + tap;
            if first >= axis.inputs {
                break;
            }
            let (a, b) = (column(first), column(first + 1));
            let (ab, cd) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
            let pairs = [
                _mm256_unpacklo_epi8(ab, zero),
                _mm256_unpackhi_epi8(ab, zero),
                _mm256_unpacklo_epi8(cd, zero),
                _mm256_unpackhi_epi8(cd, zero),
            ];
            let weights_high = _mm256_set1_epi32(four(tap).high[tap / 2 % 2]);
            let weights_low = _mm256_set1_epi32(four(tap).low[tap / 2 % 2]);
            for (nth, pair) in pairs.into_iter().enumerate() {
                high[nth] = _mm256_add_epi32(high[nth], _mm256_madd_epi16(pair, weights_high));
                low[nth] = _mm256_add_epi32(low[nth], _mm256_madd_epi16(pair, weights_low));
            }
        }
        let [a, b, c, d] = std::array::from_fn(|nth| rounded(high[nth], low[nth]));
        _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d))
    }
}

#[cfg(test)]
mod tests {
    use super::super::naive;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn without_vectors_it_is_the_same(width in 1_u32..60, height in 1_u32..60, to_width in 1_u32..40, to_height in 1_u32..40) {
            let values: Vec<u8> = (0..width * height * 3).map(|at| (at * 73 + at / 5 * 19) as u8).collect();
            let picture = Picture::new(width, height, 3, &values);
            let size = ImageSize { height: to_height, width: to_width };
            let (across, down) = (Axis::new((width, 8 * width, to_width)), Axis::new((height, 8 * height, to_height)));
            let mut narrow = vec![0; (to_width * height * 3) as usize];
            let mut ours = vec![0; size.values()];
            along_rows(&picture, &across, &mut narrow);
            along_columns(&narrow, to_width as usize, 3, &down, &mut ours);
            prop_assert_eq!(ours, naive::resize(&picture, size));
        }
    }
}

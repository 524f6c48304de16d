//! The two passes of the exact resize, and deinterleaving, on AVX2.
#![expect(unsafe_code, reason = "unaligned loads and stores of vectors")]

use super::axis::Axis;
use super::weights::{FRACTION, Four, LOW};
use crate::decode::Picture;
use std::arch::x86_64::*;

/// Bytes beyond the last pixel of a row that loads may reach: three taps of weight 0 and the rest of 16 bytes.
const BEYOND: usize = 16;
/// Rows that are resized together, two in a vector.
pub const ROWS: usize = 8;
/// The rounded outputs of split sums. A low sum of thousands of taps may wrap around; the whole sum is below 2³¹ again.
#[inline]
#[target_feature(enable = "avx2")]
fn rounded(high: __m256i, low: __m256i) -> __m256i {
    let sum = _mm256_add_epi32(_mm256_slli_epi32::<{ LOW as i32 }>(high), low);
    let half = _mm256_set1_epi32(1 << (FRACTION - 1));
    _mm256_srai_epi32::<{ FRACTION as i32 }>(_mm256_add_epi32(sum, half))
}

/// The first pass over R, G, B, of at least 4 outputs. `narrow` has room for a multiple of [`ROWS`] rows; those beyond the picture's get
/// values of no use.
#[target_feature(enable = "avx2")]
pub fn along_rows(picture: &Picture<'_>, axis: &Axis, narrow: &mut [u8], tail: &mut Vec<u8>) {
    let (stride, row_bytes) = (picture.stride as usize * 3, picture.width as usize * 3);
    assert_eq!(axis.inputs, picture.width as usize);
    for (nth, narrow) in narrow.chunks_exact_mut(ROWS * 3 * axis.outputs()).enumerate() {
        let rows = &picture.values[nth * ROWS * stride..];
        let (rows, stride) = if rows.len() >= (ROWS - 1) * stride + row_bytes + BEYOND {
            (rows, stride)
        } else {
            // The last rows: too few, or nothing behind them.
            tail.clear();
            picture.rows().skip(nth * ROWS).take(ROWS).for_each(|row| tail.extend_from_slice(row));
            tail.resize(ROWS * row_bytes + BEYOND, 0);
            (tail.as_slice(), row_bytes)
        };
        match axis.used {
            0..=2 => some_rows::<1>(rows, stride, axis, narrow),
            3..=4 => some_rows::<2>(rows, stride, axis, narrow),
            _ => some_rows::<0>(rows, stride, axis, narrow),
        }
    }
}

/// [`ROWS`] rows at `values`. `PAIRS`: the pairs of taps of every output, 1 or 2; 0 where there are more.
#[inline]
#[target_feature(enable = "avx2")]
fn some_rows<const PAIRS: usize>(values: &[u8], stride: usize, axis: &Axis, narrow: &mut [u8]) {
    let (outputs, fours) = (axis.outputs(), axis.taps / 4);
    assert!(values.len() >= (ROWS - 1) * stride + axis.inputs * 3 + BEYOND);
    assert!(narrow.len() == ROWS * 3 * outputs && outputs >= 4);
    assert!(axis.split.len() == outputs * fours && (PAIRS == 0 || axis.used <= 2 * PAIRS));
    let zero = _mm256_setzero_si256();
    // As 16 bits r0 r1 g0 g1 b0 b1 · · of the first two of four pixels, and of the last two, for each of two rows.
    let first_two =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    let last_two =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
    // Of four outputs r g b · all r, all g, all b.
    let planes = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    // The last four outputs may overlap those before.
    let starts = (0..outputs - 3).step_by(4).chain((!outputs.is_multiple_of(4)).then_some(outputs - 4));
    for at in starts {
        if at % 16 == 0 {
            // What the next rows are made of: about a line of each, wherever it lies; asking for memory that is not
            // there does nothing.
            let next = values.as_ptr().wrapping_add(ROWS * stride + axis.first[at] as usize * 3);
            (0..ROWS).for_each(|row| _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(row * stride).cast()));
        }
        let mut results = [[zero; 4]; ROWS / 2];
        #[expect(clippy::needless_range_loop, reason = "indexes two arrays crosswise")]
        for nth in 0..4 {
            let output = at + nth;
            let first = axis.first[output] as usize;
            let (mut high, mut low) = ([zero; ROWS / 2], [zero; ROWS / 2]);
            let mut add = |four: &Four, input: usize| {
                // Beyond the inputs only weights of 0 are left.
                if input >= axis.inputs {
                    return;
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
                    let pair = _mm256_shuffle_epi8(pixels, first_two);
                    high[two] = _mm256_add_epi32(high[two], _mm256_madd_epi16(pair, high_01));
                    low[two] = _mm256_add_epi32(low[two], _mm256_madd_epi16(pair, low_01));
                    if PAIRS != 1 {
                        let pair = _mm256_shuffle_epi8(pixels, last_two);
                        high[two] = _mm256_add_epi32(high[two], _mm256_madd_epi16(pair, high_23));
                        low[two] = _mm256_add_epi32(low[two], _mm256_madd_epi16(pair, low_23));
                    }
                }
            };
            if PAIRS > 0 {
                add(&axis.split[output * fours], first);
            } else {
                let taps = &axis.split[output * fours..][..fours];
                taps.iter().zip((first..).step_by(4)).for_each(|(four, input)| add(four, input));
            }
            for two in 0..ROWS / 2 {
                results[two][nth] = rounded(high[two], low[two]);
            }
        }
        for (two, [a, b, c, d]) in results.into_iter().enumerate() {
            let bytes = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
            let bytes = _mm256_shuffle_epi8(bytes, planes);
            let lanes = [_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes)];
            for (lane, row) in lanes.into_iter().zip(2 * two..) {
                // SAFETY: the row is below ROWS and `at + 4 <= outputs`, so that the last 4 bytes end within `narrow`, whose
                // length was asserted above.
                unsafe {
                    let to = narrow.as_mut_ptr().add(row * 3 * outputs + at);
                    to.cast::<i32>().write_unaligned(_mm_extract_epi32::<0>(lane));
                    to.add(outputs).cast::<i32>().write_unaligned(_mm_extract_epi32::<1>(lane));
                    to.add(2 * outputs).cast::<i32>().write_unaligned(_mm_extract_epi32::<2>(lane));
                }
            }
        }
    }
}

/// The second pass, of at least 32 columns.
#[target_feature(enable = "avx2")]
pub fn along_columns(narrow: &[u8], width: usize, channels: usize, axis: &Axis, out: &mut [u8]) {
    assert!(width >= 32 && narrow.len() >= axis.inputs * channels * width);
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
    for tap in (0..axis.used).step_by(2) {
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

/// Where the 16 values of a channel lie in the three vectors of 16 pixels; in reverse order where `flip`.
const fn picks(channel: usize, flip: bool) -> [[i8; 16]; 3] {
    let mut picks = [[-1; 16]; 3];
    let mut at = 0;
    while at < 16 {
        let from = 3 * (if flip { 15 - at } else { at }) + channel;
        picks[from / 16][at] = (from % 16) as i8;
        at += 1;
    }
    picks
}

/// The same for each channel.
const PICKS: [[[[i8; 16]; 3]; 3]; 2] =
    [[picks(0, false), picks(1, false), picks(2, false)], [picks(0, true), picks(1, true), picks(2, true)]];

/// From at least 16 interleaved pixels to planes, in reverse order where `flip`.
#[target_feature(enable = "avx2")]
pub fn deinterleave(row: &[u8], flip: bool, planes: [&mut [u8]; 3]) {
    let pixels = planes[0].len();
    assert!(pixels >= 16 && row.len() == 3 * pixels && planes.iter().all(|plane| plane.len() == pixels));
    // SAFETY: each array has 16 bytes.
    let load = |from: &[i8; 16]| unsafe { _mm_loadu_si128(from.as_ptr().cast()) };
    let picks = PICKS[usize::from(flip)].map(|channel| channel.map(|of| load(&of)));
    let [red, green, blue] = planes;
    // The last 16 pixels may overlap those before.
    let starts = (0..pixels - 15).step_by(16).chain((!pixels.is_multiple_of(16)).then_some(pixels - 16));
    for at in starts {
        // SAFETY: `at + 16 <= pixels`, and the row has three bytes a pixel (asserted above).
        let from = unsafe {
            let start = row.as_ptr().add(3 * at);
            [0, 16, 32].map(|offset| _mm_loadu_si128(start.add(offset).cast()))
        };
        let to = if flip { pixels - 16 - at } else { at };
        for (plane, [a, b, c]) in [&mut *red, &mut *green, &mut *blue].into_iter().zip(picks) {
            let (a, b, c) = (_mm_shuffle_epi8(from[0], a), _mm_shuffle_epi8(from[1], b), _mm_shuffle_epi8(from[2], c));
            // SAFETY: `to + 16 <= pixels`, each plane's length (asserted above).
            unsafe { _mm_storeu_si128(plane.as_mut_ptr().add(to).cast(), _mm_or_si128(_mm_or_si128(a, b), c)) };
        }
    }
}

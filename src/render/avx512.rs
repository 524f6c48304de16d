//! The two passes of the exact resize with AVX-512: 16 sums at a time, whose inputs a permutation of bytes (VBMI) picks
//! from a row as it lies, interleaved, and whose products are added as they are made (VNNI).
#![expect(unsafe_code, reason = "unaligned and masked loads and stores of vectors")]

use super::axis::Axis;
use super::weights::{BLOCK, FRACTION, LOW, STEP};
use crate::decode::Picture;
use std::arch::x86_64::*;
use std::ops::Range;

/// Rows of the first pass after which the second makes what it can of them, while they are in the first-level cache.
/// Whole groups.
const CHUNK: usize = 2 * ROWS;
/// Rows between what the first pass reads and what it asks for from memory.
const AHEAD: usize = 8;
/// Rows whose results are packed together. The first pass writes whole groups.
pub const ROWS: usize = 4;
/// The most taps of the second pass: of more, the sum of the low parts could overflow.
const TAPS_MAX: usize = 4_096;
/// Of each 32 bits those bytes that pixels are put in, as 16-bit numbers.
const EVEN: u64 = 0x5555_5555_5555_5555;

/// Whether the second pass of this file does.
pub fn suits_columns(width: usize, axis: &Axis) -> bool {
    width >= STEP && axis.used <= TAPS_MAX
}

/// Both passes, where both suit.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
pub fn resize(picture: &Picture<'_>, across: &Axis, down: &Axis, narrow: &mut [u8], out: &mut [u8]) {
    let (width, mut made, mut done) = (across.outputs(), 0, 0);
    while made < down.inputs {
        let rows = made..(made + CHUNK).min(down.inputs);
        made = rows.end;
        along_rows(picture, across, rows, narrow);
        let begun = done;
        let is_made = |output: usize| (down.first[output] as usize + down.used).min(down.inputs) <= made;
        while done < down.outputs() && is_made(done) {
            done += 1;
        }
        along_columns(narrow, width, picture.channels, down, begun..done, out);
    }
}

/// The first pass over some rows of an axis that [suits](Blocks::suit). `narrow` has room for whole groups of [`ROWS`]
/// rows from the first row of the picture on; a group that is not full is filled with the last row.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
pub fn along_rows(picture: &Picture<'_>, axis: &Axis, rows: Range<usize>, narrow: &mut [u8]) {
    let far = axis.blocks.span * picture.channels > 64;
    match (picture.channels, axis.blocks.pairs, far) {
        (3, 1, false) => some_rows::<3, 1, false>(picture, axis, rows, narrow),
        (3, 2, false) => some_rows::<3, 2, false>(picture, axis, rows, narrow),
        (3, 3, false) => some_rows::<3, 3, false>(picture, axis, rows, narrow),
        (3, 4, false) => some_rows::<3, 4, false>(picture, axis, rows, narrow),
        (3, _, false) => some_rows::<3, 5, false>(picture, axis, rows, narrow),
        (3, 1, true) => some_rows::<3, 1, true>(picture, axis, rows, narrow),
        (3, 2, true) => some_rows::<3, 2, true>(picture, axis, rows, narrow),
        (3, 3, true) => some_rows::<3, 3, true>(picture, axis, rows, narrow),
        (3, 4, true) => some_rows::<3, 4, true>(picture, axis, rows, narrow),
        (3, _, true) => some_rows::<3, 5, true>(picture, axis, rows, narrow),
        (_, 1, _) => some_rows::<1, 1, true>(picture, axis, rows, narrow),
        (_, 2, _) => some_rows::<1, 2, true>(picture, axis, rows, narrow),
        (_, 3, _) => some_rows::<1, 3, true>(picture, axis, rows, narrow),
        (_, 4, _) => some_rows::<1, 4, true>(picture, axis, rows, narrow),
        _ => some_rows::<1, 5, true>(picture, axis, rows, narrow),
    }
}

/// The low bits of a mask of so many bytes.
fn low_bits(bytes: usize) -> u64 {
    u64::MAX.checked_shl(bytes as u32).map_or(u64::MAX, |above| !above)
}

/// The first pass of pictures of `CHANNELS` channels by `PAIRS` pairs of taps; `FAR`: where a block's inputs may lie in
/// two vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
fn some_rows<const CHANNELS: usize, const PAIRS: usize, const FAR: bool>(
    picture: &Picture<'_>,
    axis: &Axis,
    rows: Range<usize>,
    narrow: &mut [u8],
) {
    let (outputs, blocks) = (axis.outputs(), &axis.blocks);
    let (stride, height) = (picture.stride as usize * CHANNELS, picture.height as usize);
    let row_bytes = axis.inputs * CHANNELS;
    assert!(picture.channels == CHANNELS && blocks.pairs == PAIRS && blocks.suit(CHANNELS));
    assert!(rows.end <= height && picture.values.len() >= (height - 1) * stride + row_bytes);
    assert!(narrow.len() >= rows.end.next_multiple_of(ROWS) * CHANNELS * outputs);
    let (values, narrow) = (picture.values.as_ptr(), narrow.as_mut_ptr());
    let zero = _mm512_setzero_si512();
    let half = _mm512_set1_epi32(1 << (FRACTION - 1));
    // Of four rows' packed results, four outputs of each in turn: all of the first row, and so on.
    let by_rows = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (block, weights) in blocks.blocks.iter().zip(blocks.weights.chunks_exact(PAIRS)) {
        let (mut high, mut low) = ([zero; PAIRS], [zero; PAIRS]);
        for pair in 0..PAIRS {
            // SAFETY: an array of 16 words is a vector.
            (high[pair], low[pair]) = unsafe {
                (
                    _mm512_loadu_si512(weights[pair][0].as_ptr().cast()),
                    _mm512_loadu_si512(weights[pair][1].as_ptr().cast()),
                )
            };
        }
        // SAFETY: an array of 64 bytes is a vector.
        let inputs = unsafe { _mm512_loadu_si512(block.inputs.as_ptr().cast()) };
        let bytes = if CHANNELS == 3 { _mm512_add_epi8(inputs, _mm512_add_epi8(inputs, inputs)) } else { inputs };
        let mut picks = [[zero; PAIRS]; CHANNELS];
        for (channel, picks) in picks.iter_mut().enumerate() {
            for (pair, picks) in picks.iter_mut().enumerate() {
                *picks = _mm512_add_epi8(bytes, _mm512_set1_epi8((channel + 2 * CHANNELS * pair) as i8));
            }
        }
        assert!(block.input < axis.inputs && block.output + BLOCK <= outputs);
        let start = block.input * CHANNELS;
        let left = row_bytes - start;
        let masks = [low_bits(left), low_bits(left.saturating_sub(64))];
        for group in rows.clone().step_by(ROWS) {
            let mut windows = [[zero; 2]; ROWS];
            for (nth, window) in windows.iter_mut().enumerate() {
                // SAFETY: the row is one of the picture's, and bytes beyond it are not read (asserted above).
                unsafe {
                    let from = values.add((group + nth).min(height - 1) * stride + start);
                    // What the next chunk reads; beyond the picture this does nothing.
                    _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD * stride).cast());
                    window[0] = _mm512_maskz_loadu_epi8(masks[0], from.cast());
                    if FAR {
                        window[1] = _mm512_maskz_loadu_epi8(masks[1], from.wrapping_add(64).cast());
                    }
                }
            }
            for channel in 0..CHANNELS {
                let mut sums = [zero; ROWS];
                for (sum, window) in sums.iter_mut().zip(&windows) {
                    let (mut pairs, mut of_low) = ([zero; PAIRS], half);
                    for pair in 0..PAIRS {
                        let picks = picks[channel][pair];
                        pairs[pair] = if FAR {
                            _mm512_maskz_permutex2var_epi8(EVEN, window[0], picks, window[1])
                        } else {
                            _mm512_maskz_permutexvar_epi8(EVEN, picks, window[0])
                        };
                        of_low = _mm512_dpwssd_epi32(of_low, pairs[pair], low[pair]);
                    }
                    *sum = _mm512_srai_epi32::<LOW>(of_low);
                    for pair in 0..PAIRS {
                        *sum = _mm512_dpwssd_epi32(*sum, pairs[pair], high[pair]);
                    }
                    *sum = _mm512_srai_epi32::<LOW>(*sum);
                }
                let [a, b, c, d] = sums;
                let bytes = _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
                let bytes = _mm512_permutexvar_epi32(by_rows, bytes);
                let of_rows = [
                    _mm512_castsi512_si128(bytes),
                    _mm512_extracti32x4_epi32::<1>(bytes),
                    _mm512_extracti32x4_epi32::<2>(bytes),
                    _mm512_extracti32x4_epi32::<3>(bytes),
                ];
                for (nth, bytes) in of_rows.into_iter().enumerate() {
                    let at = ((group + nth) * CHANNELS + channel) * outputs + block.output;
                    // SAFETY: `narrow` has room for whole groups, and the block ends with the row (asserted above).
                    unsafe { _mm_storeu_si128(narrow.add(at).cast(), bytes) };
                }
            }
        }
    }
}

/// The second pass of some outputs, of an axis that [suits](suits_columns).
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub fn along_columns(narrow: &[u8], width: usize, channels: usize, axis: &Axis, outputs: Range<usize>, out: &mut [u8]) {
    match axis.used {
        0..=2 => some_columns::<1>(narrow, width, channels, axis, outputs, out),
        3..=4 => some_columns::<2>(narrow, width, channels, axis, outputs, out),
        _ => some_columns::<0>(narrow, width, channels, axis, outputs, out),
    }
}

/// `PAIRS`: the pairs of taps of every output, 1 or 2; 0 where there are more.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn some_columns<const PAIRS: usize>(
    narrow: &[u8],
    width: usize,
    channels: usize,
    axis: &Axis,
    outputs: Range<usize>,
    out: &mut [u8],
) {
    let fours = axis.taps / 4;
    let pairs = if PAIRS > 0 { PAIRS } else { axis.used.div_ceil(2) };
    assert!(suits_columns(width, axis) && axis.used <= 2 * pairs && 2 * pairs <= axis.taps);
    assert!(narrow.len() >= axis.inputs * channels * width && out.len() >= channels * axis.outputs() * width);
    assert!(outputs.end <= axis.outputs());
    let (zero, half) = (_mm512_setzero_si512(), _mm512_set1_epi32(1 << (FRACTION - 1)));
    let tail = (!width.is_multiple_of(STEP)).then_some(width - STEP);
    for output in outputs {
        let (first, split) = (axis.first[output] as usize, &axis.split[output * fours..][..fours]);
        for channel in 0..channels {
            // The last 64 values may overlap those before.
            let mut x = 0;
            loop {
                let (mut low, mut high) = ([half; 4], [zero; 4]);
                for pair in 0..pairs {
                    // Behind the last row only weights of 0 follow.
                    let row = (first + 2 * pair).min(axis.inputs - 1);
                    let after = (row + 1).min(axis.inputs - 1);
                    // SAFETY: both rows are among the inputs, and `x + STEP <= width` (asserted above).
                    let (a, b) = unsafe {
                        let column = |row: usize| narrow.as_ptr().add((row * channels + channel) * width + x).cast();
                        (_mm512_loadu_si512(column(row)), _mm512_loadu_si512(column(after)))
                    };
                    let weights_high = _mm512_set1_epi32(split[pair / 2].high[pair % 2]);
                    let weights_low = _mm512_set1_epi32(split[pair / 2].low[pair % 2]);
                    let (ab, cd) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
                    let both = [
                        _mm512_unpacklo_epi8(ab, zero),
                        _mm512_unpackhi_epi8(ab, zero),
                        _mm512_unpacklo_epi8(cd, zero),
                        _mm512_unpackhi_epi8(cd, zero),
                    ];
                    for (nth, both) in both.into_iter().enumerate() {
                        low[nth] = _mm512_dpwssd_epi32(low[nth], both, weights_low);
                        if PAIRS == 1 {
                            low[nth] = _mm512_dpwssd_epi32(_mm512_srai_epi32::<LOW>(low[nth]), both, weights_high);
                        } else {
                            high[nth] = _mm512_dpwssd_epi32(high[nth], both, weights_high);
                        }
                    }
                }
                for (low, high) in low.iter_mut().zip(high) {
                    if PAIRS != 1 {
                        *low = _mm512_add_epi32(_mm512_srai_epi32::<LOW>(*low), high);
                    }
                    *low = _mm512_srai_epi32::<LOW>(*low);
                }
                let [a, b, c, d] = low;
                let bytes = _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
                let at = (channel * axis.outputs() + output) * width + x;
                // SAFETY: the plane has the output's row (asserted above), and `x + STEP <= width`.
                unsafe { _mm512_storeu_si512(out.as_mut_ptr().add(at).cast(), bytes) };
                x += STEP;
                if x + STEP > width {
                    match tail {
                        Some(tail) if x < width => x = tail,
                        _ => break,
                    }
                }
            }
        }
    }
}

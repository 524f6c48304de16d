//! The CPU mixer's run of values with AVX-512: the operations of `mix_values`, 64 at a time, in registers from load to store; u8 by a
//! table; and channels put in turn.

use super::avx2::ahead;
use super::{Element, Factors};
use crate::types::Dtype;
use std::arch::x86_64::*;

/// Values of a step.
const STEP: usize = 64;

/// Mixes neighbouring values of one channel in whole steps, and says how many. May `stream` only where `out` begins aligned to 64 bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
pub fn mix_steps<E: Element>(
    own: &[u8],
    partner: Option<&[u8]>,
    factors: &Factors<'_>,
    stream: bool,
    out: &mut [E],
) -> usize {
    match (partner, factors.table, stream) {
        (Some(partner), Some(table), true) => table_steps::<E, true>(own, partner, table, out),
        (Some(partner), Some(table), false) => table_steps::<E, false>(own, partner, table, out),
        (Some(partner), None, true) => steps::<E, true, true>(own, partner, factors, out),
        (Some(partner), None, false) => steps::<E, true, false>(own, partner, factors, out),
        (None, _, true) => steps::<E, false, true>(own, own, factors, out),
        (None, _, false) => steps::<E, false, false>(own, own, factors, out),
    }
    out.len() / STEP * STEP
}

/// The steps of a run; without closures in the loop, which would not be compiled for this instruction set.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
fn steps<E: Element, const MIXED: bool, const STREAM: bool>(
    own: &[u8],
    partner: &[u8],
    factors: &Factors<'_>,
    out: &mut [E],
) {
    assert!(own.len() == out.len() && partner.len() == out.len());
    let (a, b, c) = (_mm512_set1_ps(factors.own), _mm512_set1_ps(factors.partner), _mm512_set1_ps(factors.offset));
    for at in (0..out.len() / STEP * STEP).step_by(STEP) {
        let (own, partner) = (own[at..].as_ptr(), partner[at..].as_ptr());
        ahead::<MIXED>(own, partner);
        let mut values = [a; STEP / 16];
        for (nth, value) in values.iter_mut().enumerate() {
            // SAFETY: both slices have the length of `out` (asserted above), and the step ends before it.
            let (own, partner) = unsafe { (numbers(own.add(16 * nth)), numbers(partner.add(16 * nth))) };
            *value = _mm512_mul_ps(a, own);
            if MIXED {
                *value = _mm512_add_ps(*value, _mm512_mul_ps(b, partner));
            }
            if E::DTYPE != Dtype::U8 {
                *value = _mm512_add_ps(*value, c);
            }
        }
        // SAFETY: as above; what is streamed begins aligned, and a step of any type is a multiple of a vector.
        unsafe { store::<E, STREAM>(values, out.as_mut_ptr().add(at).cast()) };
    }
}

/// Sixteen bytes as numbers.
///
/// # Safety
/// They must be readable.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn numbers(bytes: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(bytes.cast()) }))
}

/// Stores [`STEP`] mixed values as elements.
///
/// # Safety
/// `to` must be writable for as many elements, and aligned to a vector if they are streamed.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn store<E: Element, const STREAM: bool>([a, b, c, d]: [__m512; 4], to: *mut __m512i) {
    match E::DTYPE {
        Dtype::F32 => {
            for (nth, values) in [a, b, c, d].into_iter().enumerate() {
                // SAFETY: 64 elements are four vectors.
                unsafe { put::<STREAM>(to.add(nth), _mm512_castps_si512(values)) };
            }
        }
        Dtype::F16 => {
            for (nth, [low, high]) in [[a, b], [c, d]].into_iter().enumerate() {
                // SAFETY: 64 elements are two vectors.
                unsafe { put::<STREAM>(to.add(nth), half(low, high)) };
            }
        }
        Dtype::Bf16 => {
            for (nth, [low, high]) in [[a, b], [c, d]].into_iter().enumerate() {
                // Rounds to nearest even, whatever the mode, and no value is denormal (`Factors::new`).
                // SAFETY: vectors of the same size; 64 elements are two of them.
                unsafe {
                    let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                    put::<STREAM>(to.add(nth), both);
                }
            }
        }
        Dtype::U8 => {
            for (nth, values) in [a, b, c, d].into_iter().enumerate() {
                // Rounds to nearest even, as the processor does by default and Rust relies on.
                let bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(values));
                // SAFETY: 64 elements are one vector, or four of a quarter.
                unsafe { _mm_storeu_si128(to.cast::<__m128i>().add(nth), bytes) };
            }
        }
    }
}

/// 32 values as f16: to nearest, ties to even.
#[inline]
#[target_feature(enable = "avx512f")]
fn half(low: __m512, high: __m512) -> __m512i {
    let low = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(low);
    let high = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(high);
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
}

/// Stores one vector, past the caches or not.
///
/// # Safety
/// `to` must be writable for a vector, and aligned to it if it is streamed.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn put<const STREAM: bool>(to: *mut __m512i, vector: __m512i) {
    // SAFETY: the caller's promise.
    unsafe {
        match STREAM {
            true => _mm512_stream_si512(to, vector),
            false => _mm512_storeu_si512(to, vector),
        }
    }
}

/// The products of a weight with every difference of two bytes, rounded: `u` mixed with `v` is `v` ± the product of the weight with
/// `|u − v|`, rounded to nearest. None where one of them lies so near the middle of two integers that rounding errors, or evenness,
/// decide: those of `mix_values` are below 2⁻¹⁵, as four roundings of numbers below 256.
#[target_feature(enable = "avx512f")]
pub fn table(weight: f32) -> Option<[u8; 256]> {
    let mut table = [0; 256];
    let mut clear = true;
    for (difference, product) in table.iter_mut().enumerate() {
        let exact = weight * difference as f32;
        let rounded = exact.round_ties_even();
        clear &= (exact - rounded).abs() < 0.5 - 1.0 / 16_384.0;
        *product = rounded as u8;
    }
    clear.then_some(table)
}

/// The steps of a run of bytes, by the table of the row's weight.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn table_steps<E: Element, const STREAM: bool>(own: &[u8], partner: &[u8], table: &[u8; 256], out: &mut [E]) {
    let out: &mut [u8] = bytemuck::cast_slice_mut(out);
    assert!(own.len() == out.len() && partner.len() == out.len());
    let table = table.as_ptr().cast::<__m512i>();
    // SAFETY: a table is four vectors.
    let [a, b, c, d] = unsafe {
        [
            _mm512_loadu_si512(table),
            _mm512_loadu_si512(table.add(1)),
            _mm512_loadu_si512(table.add(2)),
            _mm512_loadu_si512(table.add(3)),
        ]
    };
    for at in (0..out.len() / STEP * STEP).step_by(STEP) {
        let (own, partner) = (own[at..].as_ptr(), partner[at..].as_ptr());
        ahead::<true>(own, partner);
        // SAFETY: both slices have the length of `out` (asserted above), and the step ends before it.
        let (u, v) = unsafe { (_mm512_loadu_si512(own.cast()), _mm512_loadu_si512(partner.cast())) };
        let difference = _mm512_sub_epi8(_mm512_max_epu8(u, v), _mm512_min_epu8(u, v));
        let below_128 = _mm512_permutex2var_epi8(a, difference, b);
        let above = _mm512_permutex2var_epi8(c, difference, d);
        let product = _mm512_mask_mov_epi8(below_128, _mm512_movepi8_mask(difference), above);
        let less = _mm512_sub_epi8(v, product);
        let mixed = _mm512_mask_add_epi8(less, _mm512_cmpge_epu8_mask(u, v), v, product);
        // SAFETY: as above; what is streamed begins aligned.
        unsafe { put::<STREAM>(out.as_mut_ptr().add(at).cast(), mixed) };
    }
}

/// Puts the elements of three channels in turn, a pixel's together, in whole vectors, and says for how many pixels. May `stream`
/// only where `out` begins aligned to 64 bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub fn interleave<E: Element>([red, green, blue]: [&[E]; 3], stream: bool, out: &mut [E]) -> usize {
    assert!(3 * red.len() == out.len() && red.len() == green.len() && red.len() == blue.len());
    let step = 64 / size_of::<E>();
    let turns = const { turns(size_of::<E>()) };
    let whole = red.len() / step * step;
    for at in (0..whole).step_by(step) {
        // SAFETY: the three have the same length (asserted above), and the step, a vector of each, ends before it.
        let (red, green, blue) = unsafe {
            (
                _mm512_loadu_si512(red.as_ptr().add(at).cast()),
                _mm512_loadu_si512(green.as_ptr().add(at).cast()),
                _mm512_loadu_si512(blue.as_ptr().add(at).cast()),
            )
        };
        for (nth, (order, blues)) in turns.iter().enumerate() {
            // SAFETY: an order is a vector.
            let order = unsafe { _mm512_loadu_si512(order.as_ptr().cast()) };
            let two = _mm512_permutex2var_epi8(red, order, green);
            let three = _mm512_mask_permutexvar_epi8(two, *blues, order, blue);
            // SAFETY: `out` has three vectors for a step; what is streamed begins aligned.
            unsafe {
                let to = out.as_mut_ptr().add(3 * at).cast::<__m512i>().add(nth);
                if stream { put::<true>(to, three) } else { put::<false>(to, three) }
            }
        }
    }
    whole
}

/// For each of three vectors of interleaved elements of some bytes: which byte of its channel's vector each byte is (from 64 on: of the
/// second channel's), and which are the third channel's.
const fn turns(element: usize) -> [([u8; 64], u64); 3] {
    let mut turns = [([0; 64], 0); 3];
    let mut at = 0;
    while at < 3 * 64 {
        let (pixel, channel) = (at / element / 3, at / element % 3);
        let byte = pixel * element + at % element;
        turns[at / 64].0[at % 64] = (byte + if channel == 1 { 64 } else { 0 }) as u8;
        if channel == 2 {
            turns[at / 64].1 |= 1 << (at % 64);
        }
        at += 1;
    }
    turns
}

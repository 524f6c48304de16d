//! The CPU mixer's run of values with AVX2: the operations of `mix_values`, 32 at a time, in registers from load to store.

use super::lines::lines;
use super::{AHEAD, Element, Factors};
use crate::types::Dtype;
use std::arch::x86_64::*;

/// Values of a step.
const STEP: usize = 32;

/// Mixes neighbouring values of one channel in whole steps, and says how many. May `stream` only where `out` begins aligned to 64 bytes.
#[target_feature(enable = "avx2,f16c")]
pub fn mix_steps<E: Element>(
    own: &[u8],
    partner: Option<&[u8]>,
    factors: &Factors<'_>,
    stream: bool,
    out: &mut [E],
) -> usize {
    match (partner, stream) {
        (Some(partner), true) => steps::<E, true, true>(own, partner, factors, out),
        (Some(partner), false) => steps::<E, true, false>(own, partner, factors, out),
        (None, true) => steps::<E, false, true>(own, own, factors, out),
        (None, false) => steps::<E, false, false>(own, own, factors, out),
    }
    out.len() / STEP * STEP
}

/// Copies values `first..first + out.len()` of a plane whose lines are flipped.
#[target_feature(enable = "avx2")]
pub fn flip(plane: &[u8], width: usize, first: usize, out: &mut [u8]) {
    for (line, columns, at) in lines(width, first, out.len()) {
        reverse(&plane[line * width..][width - columns.end..width - columns.start], &mut out[at..at + columns.len()]);
    }
}

/// Copies bytes in reverse order.
#[inline]
#[target_feature(enable = "avx2")]
fn reverse(from: &[u8], to: &mut [u8]) {
    assert_eq!(from.len(), to.len());
    let within_halves = _mm256_broadcastsi128_si256(_mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    let whole = to.len() / STEP * STEP;
    for at in (0..whole).step_by(STEP) {
        // SAFETY: both slices have this length (asserted above), and the step ends before it.
        unsafe {
            let bytes = _mm256_loadu_si256(from.as_ptr().add(from.len() - at - STEP).cast());
            let halves = _mm256_shuffle_epi8(bytes, within_halves);
            _mm256_storeu_si256(to.as_mut_ptr().add(at).cast(), _mm256_permute2x128_si256::<1>(halves, halves));
        }
    }
    let rest = from.len() - whole;
    for (to, &from) in to[whole..].iter_mut().zip(from[..rest].iter().rev()) {
        *to = from;
    }
}

/// Asks for what a later step reads: the processor itself begins anew at every page.
#[inline]
pub fn ahead<const MIXED: bool>(own: *const u8, partner: *const u8) {
    // SAFETY: SSE is part of x86-64, and prefetching reads nothing, wherever it points.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(own.wrapping_add(AHEAD).cast());
        if MIXED {
            _mm_prefetch::<_MM_HINT_T0>(partner.wrapping_add(AHEAD).cast());
        }
    }
}

/// Has what was streamed be seen before whatever is stored after this.
pub fn fence() {
    // SAFETY: SSE is part of x86-64.
    unsafe { _mm_sfence() };
}

/// The steps of a run; without closures in the loop, which would not be compiled for this instruction set.
#[target_feature(enable = "avx2,f16c")]
fn steps<E: Element, const MIXED: bool, const STREAM: bool>(
    own: &[u8],
    partner: &[u8],
    factors: &Factors<'_>,
    out: &mut [E],
) {
    assert!(own.len() == out.len() && partner.len() == out.len());
    let (a, b, c) = (_mm256_set1_ps(factors.own), _mm256_set1_ps(factors.partner), _mm256_set1_ps(factors.offset));
    // SAFETY: as many bytes as are read.
    let order = const { order(E::DTYPE) }.map(|bytes| unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) });
    for at in (0..out.len() / STEP * STEP).step_by(STEP) {
        ahead::<MIXED>(own[at..].as_ptr(), partner[at..].as_ptr());
        // SAFETY: all three slices have this length (asserted above), and the step ends before it.
        let (own, partner) = unsafe { (load::<E>(own.as_ptr().add(at)), load::<E>(partner.as_ptr().add(at))) };
        let mut values = [a; STEP / 8];
        for (nth, value) in values.iter_mut().enumerate() {
            *value = _mm256_mul_ps(a, numbers(own[nth / 2], order[nth]));
            if MIXED {
                *value = _mm256_add_ps(*value, _mm256_mul_ps(b, numbers(partner[nth / 2], order[nth])));
            }
            if E::DTYPE != Dtype::U8 {
                *value = _mm256_add_ps(*value, c);
            }
        }
        // SAFETY: as above; what is streamed begins aligned, and a step of any type is a multiple of a vector.
        unsafe { store::<E, STREAM>(values, out.as_mut_ptr().add(at).cast()) };
    }
}

/// The 32 bytes of a step as sources of its first two vectors and its last two: 16 bytes in both halves; for u8, whose values are
/// packed again half by half, all of them.
///
/// # Safety
/// `bytes` must be readable for 32 bytes.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load<E: Element>(bytes: *const u8) -> [__m256i; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        match E::DTYPE {
            Dtype::U8 => [_mm256_loadu_si256(bytes.cast()); 2],
            _ => [0, 16].map(|at| _mm256_broadcastsi128_si256(_mm_loadu_si128(bytes.add(at).cast()))),
        }
    }
}

/// For each vector of a step, which byte of each half of its source becomes a number's lowest. Vectors hold neighbouring values;
/// those of bf16 every other one, and those of u8 four from each half, so that they are packed without being put in order.
const fn order(dtype: Dtype) -> [[i8; 32]; STEP / 8] {
    let mut order = [[-1; 32]; STEP / 8];
    let mut at = 0;
    while at < STEP {
        let (vector, nth) = (at / 8, at % 8);
        let byte = match dtype {
            Dtype::F32 | Dtype::F16 => 8 * (vector % 2) + nth,
            Dtype::Bf16 => 2 * nth + vector % 2,
            Dtype::U8 => 4 * vector + nth % 4,
        };
        order[vector][4 * nth] = byte as i8;
        at += 1;
    }
    order
}

/// Eight bytes of a source as numbers.
#[inline]
#[target_feature(enable = "avx2")]
fn numbers(source: __m256i, order: __m256i) -> __m256 {
    _mm256_cvtepi32_ps(_mm256_shuffle_epi8(source, order))
}

/// Stores [`STEP`] mixed values as elements.
///
/// # Safety
/// `to` must be writable for as many elements, and aligned to a vector if they are streamed.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn store<E: Element, const STREAM: bool>([a, b, c, d]: [__m256; 4], to: *mut __m256i) {
    match E::DTYPE {
        Dtype::F32 => {
            for (nth, values) in [a, b, c, d].into_iter().enumerate() {
                // SAFETY: 32 elements are four vectors.
                unsafe { put::<STREAM>(to.add(nth), _mm256_castps_si256(values)) };
            }
        }
        Dtype::F16 => {
            let ab = _mm256_set_m128i(half(b), half(a));
            let cd = _mm256_set_m128i(half(d), half(c));
            // SAFETY: 32 elements are two vectors.
            unsafe {
                put::<STREAM>(to, ab);
                put::<STREAM>(to.add(1), cd);
            }
        }
        // SAFETY: as for f16.
        Dtype::Bf16 => unsafe {
            put::<STREAM>(to, bf16(a, b));
            put::<STREAM>(to.add(1), bf16(c, d));
        },
        Dtype::U8 => {
            // Rounds to nearest even, as the processor does by default and Rust relies on.
            let ab = _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
            let cd = _mm256_packs_epi32(_mm256_cvtps_epi32(c), _mm256_cvtps_epi32(d));
            // SAFETY: 32 elements are one vector.
            unsafe { put::<STREAM>(to, _mm256_packus_epi16(ab, cd)) };
        }
    }
}

/// Stores one vector, past the caches or not.
///
/// # Safety
/// `to` must be writable for a vector, and aligned to it if it is streamed.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn put<const STREAM: bool>(to: *mut __m256i, vector: __m256i) {
    // SAFETY: the caller's promise.
    unsafe {
        match STREAM {
            true => _mm256_stream_si256(to, vector),
            false => _mm256_storeu_si256(to, vector),
        }
    }
}

/// Eight values as f16: to nearest, ties to even.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn half(values: __m256) -> __m128i {
    _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(values)
}

/// Eight values and those between them as bf16: to nearest, ties to even.
#[inline]
#[target_feature(enable = "avx2")]
fn bf16(even: __m256, odd: __m256) -> __m256i {
    _mm256_blend_epi16::<0b1010_1010>(_mm256_srli_epi32::<16>(rounded(even)), rounded(odd))
}

/// Eight values, rounded so that their upper halves are bf16.
#[inline]
#[target_feature(enable = "avx2")]
fn rounded(values: __m256) -> __m256i {
    let bits = _mm256_castps_si256(values);
    let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
    _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd)
}

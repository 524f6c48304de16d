//! The CPU mixer's run of values with AVX2: the operations of `mix_values`, 32 at a time, in registers from load to store.

use super::{Element, Factors, mix_values};
use crate::types::Dtype;
use std::arch::x86_64::*;

/// Values of a step.
const STEP: usize = 32;

/// Mixes neighbouring values of one channel.
#[target_feature(enable = "avx2,f16c")]
pub fn mix_run<E: Element>(own: &[u8], partner: Option<&[u8]>, factors: Factors, stream: bool, out: &mut [E]) {
    // What is streamed must be aligned to vectors.
    let stream = stream && out.as_ptr().cast::<__m256i>().is_aligned();
    match (partner, stream) {
        (Some(partner), true) => steps::<E, true, true>(own, partner, factors, out),
        (Some(partner), false) => steps::<E, true, false>(own, partner, factors, out),
        (None, true) => steps::<E, false, true>(own, own, factors, out),
        (None, false) => steps::<E, false, false>(own, own, factors, out),
    }
    let whole = out.len() / STEP * STEP;
    mix_values(&own[whole..], partner.map(|partner| &partner[whole..]), factors, &mut out[whole..]);
}

/// Has what was streamed be seen before whatever is stored after this.
pub fn fence() {
    // SAFETY: SSE is part of x86-64.
    unsafe { _mm_sfence() };
}

/// The whole steps of a run; without closures in the loop, which would not be compiled for this instruction set.
#[target_feature(enable = "avx2,f16c")]
fn steps<E: Element, const MIXED: bool, const STREAM: bool>(
    own: &[u8],
    partner: &[u8],
    factors: Factors,
    out: &mut [E],
) {
    assert!(own.len() == out.len() && partner.len() == out.len());
    let (a, b, c) = (_mm256_set1_ps(factors.own), _mm256_set1_ps(factors.partner), _mm256_set1_ps(factors.offset));
    for at in (0..out.len() / STEP * STEP).step_by(STEP) {
        let mut values = [a; STEP / 8];
        for (eighth, value) in values.iter_mut().enumerate() {
            // SAFETY: all three slices have this length (asserted above), and the step ends before it.
            unsafe {
                *value = _mm256_mul_ps(a, eight(own.as_ptr().add(at + 8 * eighth)));
                if MIXED {
                    *value = _mm256_add_ps(*value, _mm256_mul_ps(b, eight(partner.as_ptr().add(at + 8 * eighth))));
                }
            }
            *value = _mm256_add_ps(*value, c);
        }
        // SAFETY: as above; what is streamed begins aligned, and a step of any type is a multiple of a vector.
        unsafe { store::<E, STREAM>(values, out.as_mut_ptr().add(at).cast()) };
    }
}

/// Eight bytes as numbers.
///
/// # Safety
/// `bytes` must be readable for 8 bytes.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn eight(bytes: *const u8) -> __m256 {
    // SAFETY: the caller's promise.
    _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(bytes.cast()) }))
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
            // Packing works on halves: four values of a, b, c, d each, and then their other four.
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let abcd = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(ab, cd), order);
            // SAFETY: 32 elements are one vector.
            unsafe { put::<STREAM>(to, abcd) };
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

/// Sixteen values as bf16: to nearest, ties to even.
#[inline]
#[target_feature(enable = "avx2")]
fn bf16(a: __m256, b: __m256) -> __m256i {
    // Packing works on halves: their order is put right after.
    _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(upper(a), upper(b)))
}

/// The upper halves of eight values, rounded.
#[inline]
#[target_feature(enable = "avx2")]
fn upper(values: __m256) -> __m256i {
    let bits = _mm256_castps_si256(values);
    let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
    _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF))))
}

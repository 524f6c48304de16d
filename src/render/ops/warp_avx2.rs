//! The filters of `warp.rs` for four pixels at a time, where everything that these read lies in the image. The same operations in the same
//! order, and so the same bits.
#![expect(unsafe_code, reason = "vectors of AVX2; gathers whose places are checked first")]

use super::affine::Affine;
use super::warp::Image;
use std::arch::x86_64::*;

/// Pixels that are sampled at once.
const LANES: usize = 4;

/// Samples pixels of row `y` from column `x` on into `after`, four at a time, as long as all four lie outside the image or well inside.
/// Returns how many.
///
/// The machine must have AVX2.
pub fn run(image: &Image<'_>, affine: &Affine, is_bicubic: bool, y: usize, x: usize, after: &mut [u8]) -> usize {
    let pixels = image.width * image.height;
    assert!(image.planes.len() == 3 * pixels && after.len() == 3 * pixels && y < image.height && x < image.width);
    // SAFETY: a level with AVX2 exists only where the machine has it.
    unsafe {
        match is_bicubic {
            true => sample::<true>(image, affine, y, x, after),
            false => sample::<false>(image, affine, y, x, after),
        }
    }
}

#[target_feature(enable = "avx2")]
fn sample<const BICUBIC: bool>(image: &Image<'_>, affine: &Affine, y: usize, x: usize, after: &mut [u8]) -> usize {
    let Image { planes, width, height, fill } = *image;
    let (pixels, Affine { a, b, c, d, e, f }) = (width * height, *affine);
    let (half, yc) = (_mm256_set1_pd(0.5), y as f64 + 0.5);
    let (width_pd, height_pd, zero) =
        (_mm256_set1_pd(width as f64), _mm256_set1_pd(height as f64), _mm256_setzero_pd());
    // Four bytes are loaded of each row that is read, from the first column on.
    let before = i32::from(BICUBIC);
    let (first, rows) = (_mm_set1_epi32(before), 2 + 2 * before);
    let (last_x, last_y) = (_mm_set1_epi32(width as i32 - 4 + before), _mm_set1_epi32(height as i32 - rows + before));
    let mut done = 0;
    while x + done + LANES <= width {
        let at = (x + done) as f64;
        let xc = _mm256_add_pd(_mm256_setr_pd(at, at + 1.0, at + 2.0, at + 3.0), half);
        // (a·x + b·y) + c, each rounded.
        let place = |factor: f64, other: f64, offset: f64| {
            let sum = _mm256_add_pd(_mm256_mul_pd(_mm256_set1_pd(factor), xc), _mm256_set1_pd(other * yc));
            _mm256_add_pd(sum, _mm256_set1_pd(offset))
        };
        let (xin, yin) = (place(a, b, c), place(d, e, f));
        let inside = |place, end| {
            _mm256_and_pd(_mm256_cmp_pd::<_CMP_GE_OQ>(place, zero), _mm256_cmp_pd::<_CMP_LT_OQ>(place, end))
        };
        let inside = _mm256_movemask_pd(_mm256_and_pd(inside(xin, width_pd), inside(yin, height_pd)));
        let out = y * width + x + done;
        if inside == 0 {
            for (channel, fill) in fill.into_iter().enumerate() {
                after[channel * pixels + out..][..LANES].fill(fill);
            }
            done += LANES;
            continue;
        }
        if inside != 0b1111 {
            break;
        }
        let (xin, yin) = (_mm256_sub_pd(xin, half), _mm256_sub_pd(yin, half));
        let (x0, y0) = (_mm256_floor_pd(xin), _mm256_floor_pd(yin));
        let (dx, dy) = (_mm256_sub_pd(xin, x0), _mm256_sub_pd(yin, y0));
        let (x0, y0) = (_mm256_cvttpd_epi32(x0), _mm256_cvttpd_epi32(y0));
        let outside = |place, last| _mm_or_si128(_mm_cmpgt_epi32(first, place), _mm_cmpgt_epi32(place, last));
        if _mm_movemask_epi8(_mm_or_si128(outside(x0, last_x), outside(y0, last_y))) != 0 {
            break;
        }
        // Of the first byte that is read.
        let column = _mm_sub_epi32(x0, first);
        let from = _mm_add_epi32(_mm_mullo_epi32(_mm_sub_epi32(y0, first), _mm_set1_epi32(width as i32)), column);
        for channel in 0..3 {
            let plane = &planes[channel * pixels..][..pixels];
            let row = |nth: usize| {
                // SAFETY: rows and columns were checked: `nth` is less than `rows`, and four bytes from the column on are of the row.
                let taps = unsafe { _mm_i32gather_epi32::<1>(plane.as_ptr().add(nth * width).cast(), from) };
                if BICUBIC { cubic_of_bytes(taps, dx) } else { between_bytes(taps, dx) }
            };
            let value = if BICUBIC {
                cubic([row(0), row(1), row(2), row(3)], dy)
            } else {
                let (above, below) = (row(0), row(1));
                _mm256_add_pd(above, _mm256_mul_pd(_mm256_sub_pd(below, above), dy))
            };
            // Truncated; the packs clip to 0..=255.
            let words = _mm256_cvttpd_epi32(value);
            let bytes = _mm_packus_epi16(_mm_packs_epi32(words, words), _mm_setzero_si128());
            let bytes = _mm_cvtsi128_si32(bytes).to_le_bytes();
            after[channel * pixels + out..][..LANES].copy_from_slice(&bytes);
        }
        done += LANES;
    }
    done
}

/// One of the four bytes of each lane.
#[target_feature(enable = "avx2")]
fn byte<const SHIFT: i32>(taps: __m128i) -> __m128i {
    _mm_and_si128(_mm_srli_epi32::<SHIFT>(taps), _mm_set1_epi32(255))
}

/// `first + (second − first)·d` of the first two of four bytes.
#[target_feature(enable = "avx2")]
fn between_bytes(taps: __m128i, d: __m256d) -> __m256d {
    let (first, second) = (byte::<0>(taps), byte::<8>(taps));
    let difference = _mm256_cvtepi32_pd(_mm_sub_epi32(second, first));
    _mm256_add_pd(_mm256_cvtepi32_pd(first), _mm256_mul_pd(difference, d))
}

/// The cubic of four bytes, whose coefficients are whole numbers.
#[target_feature(enable = "avx2")]
fn cubic_of_bytes(taps: __m128i, d: __m256d) -> __m256d {
    let (v1, v2, v3, v4) = (byte::<0>(taps), byte::<8>(taps), byte::<16>(taps), _mm_srli_epi32::<24>(taps));
    let (p2, v1_v2, v3_v4) = (_mm_sub_epi32(v3, v1), _mm_sub_epi32(v1, v2), _mm_sub_epi32(v3, v4));
    let p3 = _mm_add_epi32(_mm_add_epi32(v1_v2, v1_v2), v3_v4);
    let p4 = _mm_sub_epi32(_mm_setzero_si128(), _mm_add_epi32(v1_v2, v3_v4));
    horner([v2, p2, p3, p4].map(|p| _mm256_cvtepi32_pd(p)), d)
}

#[target_feature(enable = "avx2")]
fn cubic([v1, v2, v3, v4]: [__m256d; 4], d: __m256d) -> __m256d {
    let negative = _mm256_xor_pd(v1, _mm256_set1_pd(-0.0));
    let p2 = _mm256_add_pd(negative, v3);
    let p3 = _mm256_sub_pd(_mm256_add_pd(_mm256_mul_pd(_mm256_set1_pd(2.0), _mm256_sub_pd(v1, v2)), v3), v4);
    let p4 = _mm256_add_pd(_mm256_sub_pd(_mm256_add_pd(negative, v2), v3), v4);
    horner([v2, p2, p3, p4], d)
}

/// `p1 + d·(p2 + d·(p3 + d·p4))`.
#[target_feature(enable = "avx2")]
fn horner([p1, p2, p3, p4]: [__m256d; 4], d: __m256d) -> __m256d {
    let inner = _mm256_add_pd(p3, _mm256_mul_pd(d, p4));
    let inner = _mm256_add_pd(p2, _mm256_mul_pd(d, inner));
    _mm256_add_pd(p1, _mm256_mul_pd(d, inner))
}

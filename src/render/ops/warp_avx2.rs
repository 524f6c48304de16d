//! The filters of `sampled.rs` in vectors: the channels of a pixel side by side, four pixels' places at a time. The same operations in the same
//! order, each rounded, and so the same bits; pixels whose taps reach beyond the image are left to it.
#![expect(unsafe_code, reason = "vectors of AVX2; loads whose places are checked first")]

use super::affine::Affine;
use super::sampled::Image;
use crate::operation::WarpFilter;
use std::arch::x86_64::*;

/// Pixels whose places are found at once.
const LANES: usize = 4;

/// Whether an image is wide enough.
pub fn serves(image: &Image<'_>) -> bool {
    image.width >= LANES
}

/// Samples every pixel into `after`; `pixels` are the image's, u8 `[H, W, 4]`. The machine must have AVX2.
pub fn run(image: &Image<'_>, pixels: &[[u8; 4]], affine: &Affine, filter: WarpFilter, after: &mut [u8]) {
    let count = image.width * image.height;
    assert!(serves(image) && pixels.len() == count && image.planes.len() == 3 * count && after.len() == 3 * count);
    // SAFETY: a level with AVX2 exists only where the machine has it.
    unsafe {
        match filter {
            WarpFilter::Bicubic => warp::<4>(image, pixels, affine, filter, after),
            _ => warp::<2>(image, pixels, affine, filter, after),
        }
    }
}

/// With `TAPS` columns and rows a pixel.
#[target_feature(enable = "avx2")]
fn warp<const TAPS: usize>(
    image: &Image<'_>,
    pixels: &[[u8; 4]],
    affine: &Affine,
    filter: WarpFilter,
    after: &mut [u8],
) {
    let Image { width, height, fill, .. } = *image;
    let count = width * height;
    for y in 0..height {
        for x in (0..width).step_by(LANES) {
            // The last block may show pixels of the one before once more.
            let x = x.min(width - LANES);
            let block = Block::<TAPS>::at(image, affine, x, y);
            let out = y * width + x;
            if block.within > 0 {
                let mut colors = [_mm_setzero_si128(); LANES];
                for (lane, color) in colors.iter_mut().enumerate() {
                    let (first, dx, dy) = (block.first[lane] as usize, block.dx[lane], block.dy[lane]);
                    // SAFETY: the first taps are of the image, and so are the others, right of them and below.
                    *color = unsafe { sample::<TAPS>(pixels, width, first, dx, dy) };
                }
                // Clipped to 0..=255 by the packs; four times four bytes, of which every fourth is a channel's.
                let [a, b, c, d] = colors;
                let bytes = _mm_packus_epi16(_mm_packs_epi32(a, b), _mm_packs_epi32(c, d));
                let order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, -1, -1, -1, -1);
                let mut planes = [0_u8; 16];
                // SAFETY: an array of 16 bytes.
                unsafe { _mm_storeu_si128(planes.as_mut_ptr().cast(), _mm_shuffle_epi8(bytes, order)) };
                for (channel, values) in planes.chunks_exact(LANES).take(3).enumerate() {
                    after[channel * count + out..][..LANES].copy_from_slice(values);
                }
            }
            let mut rest = !block.within & ((1 << LANES) - 1);
            while rest != 0 {
                let lane = rest.trailing_zeros() as usize;
                rest &= rest - 1;
                let place = if block.inside >> lane & 1 == 1 { affine.place(width, height, x + lane, y) } else { None };
                for (channel, fill) in fill.into_iter().enumerate() {
                    after[channel * count + out + lane] =
                        place.map_or(fill, |place| image.sample(filter, channel, place));
                }
            }
        }
    }
}

/// Where four pixels come from.
struct Block<const TAPS: usize> {
    /// Bits of those that show the image.
    inside: u32,
    /// Bits of those all of whose taps are of the image.
    within: u32,
    /// Numbers of the first taps; 0 where not all are of the image.
    first: [u32; LANES],
    /// Distances from the pixel before the place.
    dx: [f64; LANES],
    dy: [f64; LANES],
}

impl<const TAPS: usize> Block<TAPS> {
    #[target_feature(enable = "avx2")]
    fn at(image: &Image<'_>, affine: &Affine, x: usize, y: usize) -> Self {
        let Affine { a, b, c, d, e, f } = *affine;
        let (half, x, yc) = (_mm256_set1_pd(0.5), x as f64, y as f64 + 0.5);
        let xc = _mm256_add_pd(_mm256_setr_pd(x, x + 1.0, x + 2.0, x + 3.0), half);
        // (a·x + b·y) + c, each rounded as `Affine::place` has it.
        let place = |factor: f64, other: f64, offset: f64| {
            let sum = _mm256_add_pd(_mm256_mul_pd(_mm256_set1_pd(factor), xc), _mm256_set1_pd(other * yc));
            _mm256_add_pd(sum, _mm256_set1_pd(offset))
        };
        let (xs, ys) = (place(a, b, c), place(d, e, f));
        let inside = |place: __m256d, length: usize| {
            let begins = _mm256_cmp_pd::<_CMP_GE_OQ>(place, _mm256_setzero_pd());
            let ends = _mm256_cmp_pd::<_CMP_LT_OQ>(place, _mm256_set1_pd(length as f64));
            _mm256_and_pd(begins, ends)
        };
        let inside = _mm256_movemask_pd(_mm256_and_pd(inside(xs, image.width), inside(ys, image.height))) as u32;
        // The pixel before each place, and the distance from there.
        let (xs, ys) = (_mm256_sub_pd(xs, half), _mm256_sub_pd(ys, half));
        let (x0, y0) = (_mm256_floor_pd(xs), _mm256_floor_pd(ys));
        let (dx, dy) = (_mm256_sub_pd(xs, x0), _mm256_sub_pd(ys, y0));
        let before = _mm_set1_epi32(TAPS as i32 / 2 - 1);
        let (x0, y0) = (_mm_sub_epi32(_mm256_cvttpd_epi32(x0), before), _mm_sub_epi32(_mm256_cvttpd_epi32(y0), before));
        let outside = |first: __m128i, length: usize| {
            let last = _mm_set1_epi32(length as i32 - TAPS as i32);
            _mm_or_si128(_mm_cmpgt_epi32(_mm_setzero_si128(), first), _mm_cmpgt_epi32(first, last))
        };
        let outside = _mm_or_si128(outside(x0, image.width), outside(y0, image.height));
        let within = !_mm_movemask_ps(_mm_castsi128_ps(outside)) as u32 & inside;
        let first = _mm_add_epi32(_mm_mullo_epi32(y0, _mm_set1_epi32(image.width as i32)), x0);
        let first = _mm_andnot_si128(outside, first);
        // SAFETY: vectors and arrays of the same size, of which all bits are valid.
        let first = unsafe { std::mem::transmute::<__m128i, [u32; LANES]>(first) };
        // SAFETY: as above.
        let array = |distances| unsafe { std::mem::transmute::<__m256d, [f64; LANES]>(distances) };
        let (dx, dy) = (array(dx), array(dy));
        Self { inside, within, first, dx, dy }
    }
}

/// The channels of a pixel, truncated.
///
/// # Safety
/// `pixels` has `TAPS` rows of `TAPS` pixels from `first` on, or `first` is 0 and the result is not used.
#[target_feature(enable = "avx2")]
unsafe fn sample<const TAPS: usize>(pixels: &[[u8; 4]], width: usize, first: usize, dx: f64, dy: f64) -> __m128i {
    let (dx, dy) = (_mm256_set1_pd(dx), _mm256_set1_pd(dy));
    // A place that is not used may have fewer rows.
    let width = if first + (TAPS - 1) * width + TAPS <= pixels.len() { width } else { 0 };
    let mut rows = [_mm256_setzero_pd(); TAPS];
    for (nth, row) in rows.iter_mut().enumerate() {
        // SAFETY: all taps are of the image; without rows below the first, there are four pixels of it.
        let from = unsafe { pixels.as_ptr().add(first + nth * width) };
        let channels = |bytes: __m128i| _mm_cvtepu8_epi32(bytes);
        *row = if TAPS == 4 {
            // SAFETY: as above.
            let taps = unsafe { _mm_loadu_si128(from.cast()) };
            let (v1, v2) = (channels(taps), channels(_mm_srli_si128::<4>(taps)));
            let (v3, v4) = (channels(_mm_srli_si128::<8>(taps)), channels(_mm_srli_si128::<12>(taps)));
            // The coefficients of bytes are whole numbers.
            let (v1_v2, v3_v4) = (_mm_sub_epi32(v1, v2), _mm_sub_epi32(v3, v4));
            let p3 = _mm_add_epi32(_mm_slli_epi32::<1>(v1_v2), v3_v4);
            let p4 = _mm_sub_epi32(_mm_setzero_si128(), _mm_add_epi32(v1_v2, v3_v4));
            let double = |p: __m128i| _mm256_cvtepi32_pd(p);
            horner(double(v2), double(_mm_sub_epi32(v3, v1)), double(p3), double(p4), dx)
        } else {
            // SAFETY: as above.
            let taps = unsafe { _mm_loadl_epi64(from.cast()) };
            let (left, right) = (channels(taps), channels(_mm_srli_si128::<4>(taps)));
            let difference = _mm256_cvtepi32_pd(_mm_sub_epi32(right, left));
            _mm256_add_pd(_mm256_cvtepi32_pd(left), _mm256_mul_pd(difference, dx))
        };
    }
    _mm256_cvttpd_epi32(match rows[..] {
        [v1, v2, v3, v4] => {
            let (negative, two) = (_mm256_xor_pd(v1, _mm256_set1_pd(-0.0)), _mm256_set1_pd(2.0));
            let p3 = _mm256_sub_pd(_mm256_add_pd(_mm256_mul_pd(two, _mm256_sub_pd(v1, v2)), v3), v4);
            let p4 = _mm256_add_pd(_mm256_sub_pd(_mm256_add_pd(negative, v2), v3), v4);
            horner(v2, _mm256_add_pd(negative, v3), p3, p4, dy)
        }
        [above, below, ..] => _mm256_add_pd(above, _mm256_mul_pd(_mm256_sub_pd(below, above), dy)),
        _ => unreachable!("two or four rows"),
    })
}

/// `p1 + d·(p2 + d·(p3 + d·p4))`.
#[target_feature(enable = "avx2")]
fn horner(p1: __m256d, p2: __m256d, p3: __m256d, p4: __m256d, d: __m256d) -> __m256d {
    let inner = _mm256_add_pd(p3, _mm256_mul_pd(d, p4));
    let inner = _mm256_add_pd(p2, _mm256_mul_pd(d, inner));
    _mm256_add_pd(p1, _mm256_mul_pd(d, inner))
}

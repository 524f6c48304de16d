//! The filters of `sampled.rs` in vectors: the channels of a pixel side by side, four pixels' places at a time. The same operations in the same
//! order, each rounded, and so the same bits; pixels whose taps reach beyond the image are left to it.
#![expect(unsafe_code, reason = "vectors of AVX2; loads whose places are checked first")]

use super::affine::Affine;
use super::sampled::Image;
use crate::operation::WarpFilter;
use crate::render::level::Level;
use std::arch::x86_64::*;

/// Pixels whose places are found at once.
const LANES: usize = 4;

/// Whether an image is wide enough.
pub fn serves(image: &Image<'_>) -> bool {
    image.width >= LANES
}

/// Samples every pixel into `after`; `pixels` are the image's, u8 `[H, W, 4]`. The level must have AVX2.
pub fn run(level: Level, image: &Image<'_>, pixels: &[[u8; 4]], affine: &Affine, filter: WarpFilter, after: &mut [u8]) {
    let count = image.width * image.height;
    assert!(serves(image) && pixels.len() == count && image.planes.len() == 3 * count && after.len() == 3 * count);
    // SAFETY: a level with AVX2 exists only where the machine has it.
    unsafe {
        match (level, filter) {
            (Level::Avx512, WarpFilter::Bicubic) => avx512::warp::<4>(image, pixels, affine, filter, after),
            (Level::Avx512, _) => avx512::warp::<2>(image, pixels, affine, filter, after),
            (_, WarpFilter::Bicubic) => avx2::warp::<4>(image, pixels, affine, filter, after),
            (_, _) => avx2::warp::<2>(image, pixels, affine, filter, after),
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

/// Warps by two pixels at a time: their eight channels as numbers of f64, `Doubles` of a module, with their arithmetic.
macro_rules! warps {
    ($(#[$doc:meta])* $name:ident, $features:literal, $($prelude:tt)*) => {
        $(#[$doc])*
        mod $name {
            use super::*;

            $($prelude)*

            /// With `TAPS` columns and rows a pixel.
            #[target_feature(enable = $features)]
            pub fn warp<const TAPS: usize>(
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
                            // SAFETY: the first taps are of the image, and so are the others, right of them and below.
                            let pair = |lane: usize| unsafe { sample::<TAPS>(pixels, width, &block, lane) };
                            let colors = [pair(0), pair(2)];
                            // Clipped to 0..=255 by the packs; four times four bytes, of which every fourth is a channel's.
                            let [ab, cd] = colors.map(|pair| _mm_packs_epi32(_mm256_castsi256_si128(pair), _mm256_extracti128_si256::<1>(pair)));
                            let bytes = _mm_packus_epi16(ab, cd);
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


            /// The channels of the two pixels from `lane` on, truncated.
            ///
            /// # Safety
            /// `pixels` has `TAPS` rows of `TAPS` pixels from each first one on, or that is 0 and its result is not used.
            #[target_feature(enable = $features)]
            unsafe fn sample<const TAPS: usize>(pixels: &[[u8; 4]], width: usize, block: &Block<TAPS>, lane: usize) -> __m256i {
                let places = [block.first[lane] as usize, block.first[lane + 1] as usize];
                let (dx, dy) = (of_pair(block.dx[lane], block.dx[lane + 1]), of_pair(block.dy[lane], block.dy[lane + 1]));
                // A place that is not used may have fewer rows.
                let steps = places.map(|first| if first + (TAPS - 1) * width + TAPS <= pixels.len() { width } else { 0 });
                let mut rows = [of_pair(0.0, 0.0); TAPS];
                for (nth, row) in rows.iter_mut().enumerate() {
                    let taps = [0, 1].map(|one| {
                        // SAFETY: all taps are of the image; without rows below the first, there are four pixels of it.
                        unsafe {
                            let from = pixels.as_ptr().add(places[one] + nth * steps[one]).cast();
                            if TAPS == 4 { _mm_loadu_si128(from) } else { _mm_loadl_epi64(from) }
                        }
                    });
                    let taps = _mm256_set_m128i(taps[1], taps[0]);
                    // The channels of one tap of both, as numbers.
                    let numbers = |tap: i64| {
                        let first = 0x8080_8000_i64 + tap * 4 | (0x8080_8001_i64 + tap * 4) << 32;
                        _mm256_shuffle_epi8(taps, _mm256_setr_epi64x(first, first + 0x2_0000_0002, first, first + 0x2_0000_0002))
                    };
                    *row = if TAPS == 4 {
                        let (v1, v2, v3, v4) = (numbers(0), numbers(1), numbers(2), numbers(3));
                        // The coefficients of bytes are whole numbers.
                        let (v1_v2, v3_v4) = (_mm256_sub_epi32(v1, v2), _mm256_sub_epi32(v3, v4));
                        let p3 = _mm256_add_epi32(_mm256_slli_epi32::<1>(v1_v2), v3_v4);
                        let p4 = _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_add_epi32(v1_v2, v3_v4));
                        horner(doubles(v2), doubles(_mm256_sub_epi32(v3, v1)), doubles(p3), doubles(p4), dx)
                    } else {
                        let (left, right) = (numbers(0), numbers(1));
                        add(doubles(left), mul(doubles(_mm256_sub_epi32(right, left)), dx))
                    };
                }
                truncated(match rows[..] {
                    [v1, v2, v3, v4] => {
                        let p3 = sub(add(mul(of_pair(2.0, 2.0), sub(v1, v2)), v3), v4);
                        let p4 = add(sub(sub(v2, v1), v3), v4);
                        horner(v2, sub(v3, v1), p3, p4, dy)
                    }
                    [above, below, ..] => add(above, mul(sub(below, above), dy)),
                    _ => unreachable!("two or four rows"),
                })
            }

            /// `p1 + d·(p2 + d·(p3 + d·p4))`.
            #[target_feature(enable = $features)]
            fn horner(p1: Doubles, p2: Doubles, p3: Doubles, p4: Doubles, d: Doubles) -> Doubles {
                add(p1, mul(d, add(p2, mul(d, add(p3, mul(d, p4))))))
            }
        }
    };
}

warps! {
    /// In two vectors of four numbers.
    avx2, "avx2",
    type Doubles = [__m256d; 2];

    #[target_feature(enable = "avx2")]
    fn of_pair(first: f64, second: f64) -> Doubles {
        [_mm256_set1_pd(first), _mm256_set1_pd(second)]
    }

    #[target_feature(enable = "avx2")]
    fn doubles(numbers: __m256i) -> Doubles {
        [_mm256_cvtepi32_pd(_mm256_castsi256_si128(numbers)), _mm256_cvtepi32_pd(_mm256_extracti128_si256::<1>(numbers))]
    }

    #[target_feature(enable = "avx2")]
    fn truncated([first, second]: Doubles) -> __m256i {
        _mm256_set_m128i(_mm256_cvttpd_epi32(second), _mm256_cvttpd_epi32(first))
    }

    #[target_feature(enable = "avx2")]
    fn add(a: Doubles, b: Doubles) -> Doubles {
        [_mm256_add_pd(a[0], b[0]), _mm256_add_pd(a[1], b[1])]
    }

    #[target_feature(enable = "avx2")]
    fn sub(a: Doubles, b: Doubles) -> Doubles {
        [_mm256_sub_pd(a[0], b[0]), _mm256_sub_pd(a[1], b[1])]
    }

    #[target_feature(enable = "avx2")]
    fn mul(a: Doubles, b: Doubles) -> Doubles {
        [_mm256_mul_pd(a[0], b[0]), _mm256_mul_pd(a[1], b[1])]
    }
}

warps! {
    /// In one vector of eight numbers.
    avx512, "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi",
    type Doubles = __m512d;

    #[target_feature(enable = "avx512f")]
    fn of_pair(first: f64, second: f64) -> Doubles {
        _mm512_insertf64x4::<1>(_mm512_set1_pd(first), _mm256_set1_pd(second))
    }

    #[target_feature(enable = "avx512f")]
    fn doubles(numbers: __m256i) -> Doubles {
        _mm512_cvtepi32_pd(numbers)
    }

    #[target_feature(enable = "avx512f")]
    fn truncated(numbers: Doubles) -> __m256i {
        _mm512_cvttpd_epi32(numbers)
    }

    #[target_feature(enable = "avx512f")]
    fn add(a: Doubles, b: Doubles) -> Doubles {
        _mm512_add_pd(a, b)
    }

    #[target_feature(enable = "avx512f")]
    fn sub(a: Doubles, b: Doubles) -> Doubles {
        _mm512_sub_pd(a, b)
    }

    #[target_feature(enable = "avx512f")]
    fn mul(a: Doubles, b: Doubles) -> Doubles {
        _mm512_mul_pd(a, b)
    }
}

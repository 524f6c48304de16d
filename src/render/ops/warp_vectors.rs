//! The filters of `sampled.rs` in vectors: the channels of a pixel side by side, four pixels' places at a time.
//!
//! Places are computed in f64, each operation rounded as there; what the filters make of them in f32, with an error below [`ERROR`]. A value that
//! comes that near to a whole number, where truncation decides, is left to `sampled.rs`, and so are pixels whose taps reach beyond the image.
//! Hence the same bits.
#![expect(unsafe_code, reason = "vectors of AVX2 and AVX-512; loads whose places are checked first")]

use super::affine::Affine;
use super::sampled::Image;
use crate::operation::WarpFilter;
use crate::render::level::Level;
use std::arch::x86_64::*;

/// Pixels whose places are found at once.
const LANES: usize = 4;

/// More than f32 errs. A row errs by 2e-4 at most: its four weights together by 4·2⁻²⁴ of values up to 255, and eight products and sums of
/// numbers below 512 by 2⁻¹⁶ each. Rows, whose weights' sizes sum to at most 1.5, err together by 3e-4; their weights, products and sums by 2e-4.
const ERROR: f32 = 1.0 / 1024.0;

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
    dx: __m128,
    dy: __m128,
}

impl<const TAPS: usize> Block<TAPS> {
    #[inline]
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
        Self { inside, within, first, dx: _mm256_cvtpd_ps(dx), dy: _mm256_cvtpd_ps(dy) }
    }
}

/// Warps by some pixels at a time: their channels as f32 in one vector of a module, with its arithmetic.
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
                        if block.inside == 0 {
                            for (channel, fill) in fill.into_iter().enumerate() {
                                after[channel * count + out..][..LANES].fill(fill);
                            }
                            continue;
                        }
                        let place = |lane: usize| affine.place(width, height, x + lane, y);
                        if block.within > 0 {
                            let mut values = [[0_i32; 4]; LANES];
                            let mut doubts = 0;
                            for (nth, values) in values.as_chunks_mut().0.iter_mut().enumerate() {
                                let lane = nth * PIXELS;
                                // SAFETY: the first taps are of the image, and so are the others, right of them and below.
                                doubts |= unsafe { sample::<TAPS>(pixels, width, &block, lane, values) } << (4 * lane);
                            }
                            for (channel, bytes) in planes(&values).chunks_exact(LANES).take(3).enumerate() {
                                after[channel * count + out..][..LANES].copy_from_slice(bytes);
                            }
                            while doubts != 0 {
                                let (lane, channel) =
                                    (doubts.trailing_zeros() as usize / 4, doubts.trailing_zeros() as usize % 4);
                                doubts &= doubts - 1;
                                if let Some(place) = place(lane) {
                                    after[channel * count + out + lane] = image.sample(filter, channel, place);
                                }
                            }
                        }
                        let mut rest = !block.within & ((1 << LANES) - 1);
                        while rest != 0 {
                            let lane = rest.trailing_zeros() as usize;
                            rest &= rest - 1;
                            let place = place(lane);
                            for (channel, fill) in fill.into_iter().enumerate() {
                                after[channel * count + out + lane] =
                                    place.map_or(fill, |place| image.sample(filter, channel, place));
                            }
                        }
                    }
                }
            }

            /// Writes the channels of the pixels from `lane` on, truncated, and returns a bit for each that may be wrong.
            ///
            /// # Safety
            /// `pixels` has `TAPS` rows of `TAPS` pixels from each first one on.
            #[target_feature(enable = $features)]
            unsafe fn sample<const TAPS: usize>(
                pixels: &[[u8; 4]],
                width: usize,
                block: &Block<TAPS>,
                lane: usize,
                values: &mut [[i32; 4]; PIXELS],
            ) -> u32 {
                let mut rows = [of_bytes([_mm_setzero_si128(); PIXELS]); TAPS];
                for (nth, row) in rows.iter_mut().enumerate() {
                    let mut taps = [_mm_setzero_si128(); PIXELS];
                    for (pixel, taps) in taps.iter_mut().enumerate() {
                        let first = block.first[lane + pixel] as usize;
                        // SAFETY: all taps are of the image.
                        *taps = unsafe {
                            let from = pixels.as_ptr().add(first + nth * width);
                            if TAPS == 4 {
                                _mm_loadu_si128(from.cast())
                            } else {
                                _mm_set1_epi64x(from.cast::<i64>().read_unaligned())
                            }
                        };
                    }
                    *row = of_bytes(taps);
                }
                let (across, down) = (weights::<TAPS>(of_pixels(block.dx, lane)), weights::<TAPS>(of_pixels(block.dy, lane)));
                // Too large by `ERROR`: Pillow's value lies within twice that below, so that only what is so little above a whole number is in doubt.
                let mut value = of(ERROR);
                for (row, weight) in rows.iter().zip(down) {
                    let mut sum = mul(across[0], number(*row, 0));
                    for tap in 1..TAPS {
                        sum = mul_add(across[tap], number(*row, tap as i64), sum);
                    }
                    value = mul_add(weight, sum, value);
                }
                let mut doubts = write_truncated(value, values);
                if doubts != 0 {
                    // Among equal pixels the value is theirs, and truncated right.
                    let mut others = unlike(rows[0], rows[0]);
                    for row in &rows[1..] {
                        others = or(others, unlike(*row, rows[0]));
                    }
                    doubts &= any_tap(others);
                }
                doubts
            }

            /// The taps' weights at a distance from the second of four, or from the first of two.
            #[target_feature(enable = $features)]
            fn weights<const TAPS: usize>(d: Numbers) -> [Numbers; TAPS] {
                let e = sub(of(1.0), d);
                let mut weights = [e; TAPS];
                if let [first, second, third, fourth] = &mut weights[..] {
                    // Keys' cubic with a = −1.
                    let (minus_first, minus_fourth) = (mul(mul(d, e), e), mul(mul(d, d), e));
                    (*first, *fourth) = (sub(of(0.0), minus_first), sub(of(0.0), minus_fourth));
                    (*second, *third) = (add(e, minus_first), add(d, minus_fourth));
                } else {
                    weights[1] = d;
                }
                weights
            }
        }
    };
}

/// A mask of bytes, of two channels from `first` on of a tap, as numbers.
fn channels(tap: i64, first: i64) -> i64 {
    let byte = 4 * tap + first;
    0x8080_8000 | byte | (0x8080_8000 | (byte + 1)) << 32
}

/// Four pixels' values, clipped to 0..=255: of each channel four bytes.
#[target_feature(enable = "avx2")]
fn planes(values: &[[i32; 4]; LANES]) -> [u8; 16] {
    // SAFETY: four vectors of four numbers.
    let [a, b, c, d] = values.each_ref().map(|pixel| unsafe { _mm_loadu_si128(pixel.as_ptr().cast()) });
    let bytes = _mm_packus_epi16(_mm_packs_epi32(a, b), _mm_packs_epi32(c, d));
    let order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let mut planes = [0; 16];
    // SAFETY: an array of 16 bytes.
    unsafe { _mm_storeu_si128(planes.as_mut_ptr().cast(), _mm_shuffle_epi8(bytes, order)) };
    planes
}

warps! {
    /// Two pixels.
    avx2, "avx2",
    const PIXELS: usize = 2;
    type Numbers = __m256;
    type Bytes = __m256i;

    #[target_feature(enable = "avx2")]
    fn of_bytes(pixels: [__m128i; PIXELS]) -> Bytes {
        _mm256_set_m128i(pixels[1], pixels[0])
    }

    /// Each pixel's number of four, `PIXELS` of them from `lane` on, for all its channels.
    #[target_feature(enable = "avx2")]
    fn of_pixels(numbers: __m128, lane: usize) -> Numbers {
        let of = if lane == 0 { _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1) } else { _mm256_setr_epi32(2, 2, 2, 2, 3, 3, 3, 3) };
        _mm256_permutevar8x32_ps(_mm256_castps128_ps256(numbers), of)
    }

    /// The channels of one tap.
    #[target_feature(enable = "avx2")]
    fn number(taps: Bytes, tap: i64) -> Numbers {
        let channels = _mm256_broadcastsi128_si256(_mm_set_epi64x(channels(tap, 2), channels(tap, 0)));
        _mm256_cvtepi32_ps(_mm256_shuffle_epi8(taps, channels))
    }

    /// Writes numbers truncated, and returns a bit for each that is in doubt; what is below 1 becomes 0 either way.
    #[target_feature(enable = "avx2")]
    fn write_truncated(numbers: Numbers, values: &mut [[i32; 4]; PIXELS]) -> u32 {
        let whole = _mm256_cvttps_epi32(numbers);
        // SAFETY: an array of eight numbers.
        unsafe { _mm256_storeu_si256(values.as_mut_ptr().cast(), whole) };
        let near = _mm256_cmp_ps::<_CMP_LT_OQ>(sub(numbers, _mm256_cvtepi32_ps(whole)), of(2.0 * ERROR));
        _mm256_movemask_ps(_mm256_and_ps(near, _mm256_cmp_ps::<_CMP_GE_OQ>(numbers, of(1.0)))) as u32
    }

    /// Bits in which taps are unlike the first of `like`.
    #[target_feature(enable = "avx2")]
    fn unlike(taps: Bytes, like: Bytes) -> Bytes {
        _mm256_xor_si256(taps, _mm256_shuffle_epi32::<0>(like))
    }

    #[target_feature(enable = "avx2")]
    fn or(a: Bytes, b: Bytes) -> Bytes {
        _mm256_or_si256(a, b)
    }

    /// A bit for each channel of a pixel that has bits in any tap.
    #[target_feature(enable = "avx2")]
    fn any_tap(bits: Bytes) -> u32 {
        let bits = or(bits, _mm256_shuffle_epi32::<0b01_00_11_10>(bits));
        let bits = or(bits, _mm256_shuffle_epi32::<0b10_11_00_01>(bits));
        let none = _mm256_cmp_ps::<_CMP_EQ_OQ>(number(bits, 0), of(0.0));
        !_mm256_movemask_ps(none) as u32 & 0xFF
    }

    #[target_feature(enable = "avx2")]
    fn of(number: f32) -> Numbers {
        _mm256_set1_ps(number)
    }

    #[target_feature(enable = "avx2")]
    fn add(a: Numbers, b: Numbers) -> Numbers {
        _mm256_add_ps(a, b)
    }

    #[target_feature(enable = "avx2")]
    fn sub(a: Numbers, b: Numbers) -> Numbers {
        _mm256_sub_ps(a, b)
    }

    #[target_feature(enable = "avx2")]
    fn mul(a: Numbers, b: Numbers) -> Numbers {
        _mm256_mul_ps(a, b)
    }

    #[target_feature(enable = "avx2")]
    fn mul_add(a: Numbers, b: Numbers, c: Numbers) -> Numbers {
        add(mul(a, b), c)
    }
}

warps! {
    /// Four pixels.
    avx512, "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi",
    const PIXELS: usize = 4;
    type Numbers = __m512;
    type Bytes = __m512i;

    #[target_feature(enable = "avx512f")]
    fn of_bytes([a, b, c, d]: [__m128i; PIXELS]) -> Bytes {
        let (first, last) = (_mm256_set_m128i(b, a), _mm256_set_m128i(d, c));
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), last)
    }

    #[target_feature(enable = "avx512f")]
    fn of_pixels(numbers: __m128, _: usize) -> Numbers {
        let of = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
        _mm512_permutexvar_ps(of, _mm512_castps128_ps512(numbers))
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    fn number(taps: Bytes, tap: i64) -> Numbers {
        let channels = _mm512_broadcast_i32x4(_mm_set_epi64x(channels(tap, 2), channels(tap, 0)));
        _mm512_cvtepi32_ps(_mm512_shuffle_epi8(taps, channels))
    }

    #[target_feature(enable = "avx512f")]
    fn write_truncated(numbers: Numbers, values: &mut [[i32; 4]; PIXELS]) -> u32 {
        let whole = _mm512_cvttps_epi32(numbers);
        // SAFETY: an array of sixteen numbers.
        unsafe { _mm512_storeu_si512(values.as_mut_ptr().cast(), whole) };
        let near = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(sub(numbers, _mm512_cvtepi32_ps(whole)), of(2.0 * ERROR));
        u32::from(near & _mm512_cmp_ps_mask::<_CMP_GE_OQ>(numbers, of(1.0)))
    }

    #[target_feature(enable = "avx512f")]
    fn unlike(taps: Bytes, like: Bytes) -> Bytes {
        _mm512_xor_si512(taps, _mm512_shuffle_epi32::<0>(like))
    }

    #[target_feature(enable = "avx512f")]
    fn or(a: Bytes, b: Bytes) -> Bytes {
        _mm512_or_si512(a, b)
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    fn any_tap(bits: Bytes) -> u32 {
        let bits = or(bits, _mm512_shuffle_epi32::<0b01_00_11_10>(bits));
        let bits = or(bits, _mm512_shuffle_epi32::<0b10_11_00_01>(bits));
        u32::from(_mm512_cmp_ps_mask::<_CMP_NEQ_OQ>(number(bits, 0), of(0.0)))
    }

    #[target_feature(enable = "avx512f")]
    fn of(number: f32) -> Numbers {
        _mm512_set1_ps(number)
    }

    #[target_feature(enable = "avx512f")]
    fn add(a: Numbers, b: Numbers) -> Numbers {
        _mm512_add_ps(a, b)
    }

    #[target_feature(enable = "avx512f")]
    fn sub(a: Numbers, b: Numbers) -> Numbers {
        _mm512_sub_ps(a, b)
    }

    #[target_feature(enable = "avx512f")]
    fn mul(a: Numbers, b: Numbers) -> Numbers {
        _mm512_mul_ps(a, b)
    }

    #[target_feature(enable = "avx512f")]
    fn mul_add(a: Numbers, b: Numbers, c: Numbers) -> Numbers {
        _mm512_fmadd_ps(a, b, c)
    }
}

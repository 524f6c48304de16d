//! Transposed planes.
#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "vectors of SSE2, which x86-64 has"))]

/// Side of a tile.
const TILE: usize = 16;

/// Transposes each plane of `from`, of `width` columns, into `to`.
///
/// # Panics
/// When `to` has another length, or planes are not of `width` times `height` bytes.
pub fn transpose(from: &[u8], width: usize, height: usize, to: &mut [u8]) {
    assert!(from.len() == to.len() && from.len().is_multiple_of(width * height));
    for (from, to) in from.chunks_exact(width * height).zip(to.chunks_exact_mut(width * height)) {
        for top in (0..height).step_by(TILE) {
            for left in (0..width).step_by(TILE) {
                let (bottom, right) = (height.min(top + TILE), width.min(left + TILE));
                #[cfg(target_arch = "x86_64")]
                if (bottom - top, right - left) == (TILE, TILE) {
                    tile(&from[top * width + left..], width, &mut to[left * height + top..], height);
                    continue;
                }
                for y in top..bottom {
                    for x in left..right {
                        to[x * height + y] = from[y * width + x];
                    }
                }
            }
        }
    }
}

/// Transposes 16 × 16 bytes of rows that begin `width` bytes apart into such that begin `height` apart.
#[cfg(target_arch = "x86_64")]
fn tile(from: &[u8], width: usize, to: &mut [u8], height: usize) {
    use std::arch::x86_64::*;
    assert!(from.len() >= 15 * width + TILE && to.len() >= 15 * height + TILE);
    // SAFETY: SSE2 is part of x86-64; each row of 16 bytes lies in the slice.
    let mut rows: [__m128i; TILE] =
        std::array::from_fn(|nth| unsafe { _mm_loadu_si128(from.as_ptr().add(nth * width).cast()) });
    // A perfect shuffle of the rows, four times: log2 of their number.
    for _ in 0..4 {
        let before = rows;
        for nth in 0..TILE / 2 {
            // SAFETY: as above.
            unsafe {
                rows[2 * nth] = _mm_unpacklo_epi8(before[nth], before[nth + TILE / 2]);
                rows[2 * nth + 1] = _mm_unpackhi_epi8(before[nth], before[nth + TILE / 2]);
            }
        }
    }
    for (nth, row) in rows.into_iter().enumerate() {
        // SAFETY: as above.
        unsafe { _mm_storeu_si128(to.as_mut_ptr().add(nth * height).cast(), row) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn columns_become_rows(width in 1_usize..70, height in 1_usize..70, planes in 1_usize..3, seed: u8) {
            let from: Vec<u8> = (0..planes * width * height).map(|at| (at as u8).wrapping_mul(37) ^ (at >> 8) as u8 ^ seed).collect();
            let mut to = vec![0; from.len()];
            transpose(&from, width, height, &mut to);
            for (at, &value) in to.iter().enumerate() {
                let (plane, place) = (at / (width * height), at % (width * height));
                let (x, y) = (place / height, place % height);
                prop_assert_eq!(value, from[plane * width * height + y * width + x]);
            }
        }
    }
}

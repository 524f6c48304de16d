//! An image that is sampled between its pixels, with Pillow's filters.

use super::affine::At;
use crate::operation::WarpFilter;

/// An image that is sampled.
pub struct Image<'a> {
    /// u8 `[3, H, W]`.
    pub planes: &'a [u8],
    pub width: usize,
    pub height: usize,
    /// The colour outside.
    pub fill: [u8; 3],
}

impl Image<'_> {
    /// What a filter makes of a channel at a place.
    pub fn sample(&self, filter: WarpFilter, channel: usize, at: At) -> u8 {
        let pixels = self.width * self.height;
        let plane = &self.planes[channel * pixels..][..pixels];
        match filter {
            WarpFilter::Bilinear => self.bilinear(plane, at),
            _ => self.bicubic(plane, at),
        }
    }

    /// Row `y` of a plane.
    fn row<'p>(&self, plane: &'p [u8], y: usize) -> &'p [u8] {
        &plane[y * self.width..][..self.width]
    }

    /// Pixels of a row from column `x` on, repeated beyond the edges.
    fn columns<const N: usize>(&self, row: &[u8], x: i32) -> [f64; N] {
        std::array::from_fn(|nth| f64::from(row[(x + nth as i32).clamp(0, self.width as i32 - 1) as usize]))
    }

    /// Two columns of two rows; a row below the image is the one above it.
    fn bilinear(&self, plane: &[u8], at: At) -> u8 {
        let last = self.height as i32 - 1;
        let row = |y: i32| between(self.columns(self.row(plane, y.clamp(0, last) as usize), at.x), at.dx);
        let above = row(at.y);
        let below = if (0..=last).contains(&(at.y + 1)) { row(at.y + 1) } else { above };
        between([above, below], at.dy) as u8
    }

    /// Four columns of four rows; a row outside is the one before it.
    fn bicubic(&self, plane: &[u8], at: At) -> u8 {
        let last = self.height as i32 - 1;
        let row = |y: i32| cubic(self.columns(self.row(plane, y.clamp(0, last) as usize), at.x - 1), at.dx);
        let mut rows = [row(at.y - 1); 4];
        for nth in 1..4 {
            let y = at.y - 1 + nth as i32;
            rows[nth] = if (0..=last).contains(&y) { row(y) } else { rows[nth - 1] };
        }
        cubic(rows, at.dy) as u8
    }
}

/// The value at distance `d` from the first of two.
#[inline(always)]
pub fn between([a, b]: [f64; 2], d: f64) -> f64 {
    a + (b - a) * d
}

/// Keys' cubic with a = −1, as Pillow's warps compute it.
#[inline(always)]
pub fn cubic([v1, v2, v3, v4]: [f64; 4], d: f64) -> f64 {
    let (p1, p2, p3, p4) = (v2, -v1 + v3, 2.0 * (v1 - v2) + v3 - v4, -v1 + v2 - v3 + v4);
    p1 + d * (p2 + d * (p3 + d * p4))
}

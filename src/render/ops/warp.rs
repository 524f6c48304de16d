//! Warps: each output pixel samples the image at its place, with Pillow's filters.

use super::affine::{Affine, Placement};
#[cfg(target_arch = "x86_64")]
use super::warp_avx2;
use crate::operation::{WarpFilter, Warping};
use crate::render::level::Level;
use crate::types::ImageSize;

/// Warps `before` into `after`, both u8 `[3, H, W]`.
pub fn warp(level: Level, before: &[u8], placement: &Placement, warping: &Warping, size: ImageSize, after: &mut [u8]) {
    let (width, height) = (size.width as usize, size.height as usize);
    let planes = || before.chunks_exact(width * height);
    match *placement {
        Placement::Same => after.copy_from_slice(before),
        Placement::Half => {
            for (before, after) in planes().zip(after.chunks_exact_mut(width * height)) {
                after.iter_mut().zip(before.iter().rev()).for_each(|(after, before)| *after = *before);
            }
        }
        Placement::Quarter => gather(before, after, width, height, |x, y| x * width + width - 1 - y),
        Placement::ThreeQuarters => gather(before, after, width, height, |x, y| (height - 1 - x) * width + y),
        Placement::Affine(affine) => {
            let image = Image { planes: before, width, height, fill: warping.fill };
            match warping.filter {
                WarpFilter::Nearest if affine.b == 0.0 && affine.d == 0.0 => along_axes(&image, &affine, after),
                WarpFilter::Nearest => nearest(&image, &affine, after),
                WarpFilter::Bilinear => {
                    interpolate(level, &image, &affine, after, |plane, at| bilinear(plane, &image, at), false);
                }
                WarpFilter::Bicubic => {
                    interpolate(level, &image, &affine, after, |plane, at| bicubic(plane, &image, at), true);
                }
            }
        }
    }
}

/// An image that is sampled.
pub struct Image<'a> {
    /// u8 `[3, H, W]`.
    pub planes: &'a [u8],
    pub width: usize,
    pub height: usize,
    /// The colour outside.
    pub fill: [u8; 3],
}

/// Fills each plane with the pixels that `index` names for column and row.
fn gather(before: &[u8], after: &mut [u8], width: usize, height: usize, index: impl Fn(usize, usize) -> usize) {
    for (before, after) in before.chunks_exact(width * height).zip(after.chunks_exact_mut(width * height)) {
        for (y, row) in after.chunks_exact_mut(width).enumerate() {
            row.iter_mut().enumerate().for_each(|(x, out)| *out = before[index(x, y)]);
        }
    }
}

/// The nearest pixels of an image that moves and stretches along its axes: coordinates are added up, and truncated.
fn along_axes(image: &Image<'_>, affine: &Affine, after: &mut [u8]) {
    let Image { planes, width, height, fill } = *image;
    let pixel = |at: f64, length: usize| (at >= 0.0 && at < length as f64).then_some(at as usize);
    let mut yo = affine.f + affine.e * 0.5;
    for y in 0..height {
        let row = pixel(yo, height);
        let mut xo = affine.c + affine.a * 0.5;
        let mut x = 0;
        while x < width {
            // Where one pixel follows the other, a run is a copy.
            let column = pixel(xo, width);
            let first = x;
            let mut next = column;
            while x < width && next == column.map(|column| column + x - first) {
                x += 1;
                xo += affine.a;
                next = pixel(xo, width);
            }
            for (channel, fill) in fill.into_iter().enumerate() {
                let plane = channel * width * height;
                let out = &mut after[plane + y * width + first..][..x - first];
                match row.zip(column) {
                    None => out.fill(fill),
                    Some((row, column)) => out.copy_from_slice(&planes[plane + row * width + column..][..x - first]),
                }
            }
        }
        yo += affine.e;
    }
}

/// The nearest pixels in 16.16 fixed point.
fn nearest(image: &Image<'_>, affine: &Affine, after: &mut [u8]) {
    let Image { planes, width, height, fill } = *image;
    let fix = |value: f64| (value * 65_536.0 + 0.5).floor() as i32;
    let Affine { a, b, c, d, e, f } = *affine;
    let [a0, a1, a3, a4] = [a, b, d, e].map(fix);
    let (mut x_of_row, mut y_of_row) = (fix(c + a * 0.5 + b * 0.5), fix(f + d * 0.5 + e * 0.5));
    let pixels = width * height;
    let (red, rest) = after.split_at_mut(pixels);
    let (green, blue) = rest.split_at_mut(pixels);
    let rows = red.chunks_exact_mut(width).zip(green.chunks_exact_mut(width)).zip(blue.chunks_exact_mut(width));
    for ((red, green), blue) in rows {
        let (mut xx, mut yy) = (x_of_row, y_of_row);
        for ((red, green), blue) in red.iter_mut().zip(green).zip(blue) {
            // Negative ones become large.
            let (x, y) = ((xx >> 16) as usize, (yy >> 16) as usize);
            (*red, *green, *blue) = if x < width && y < height {
                let at = y * width + x;
                (planes[at], planes[pixels + at], planes[2 * pixels + at])
            } else {
                (fill[0], fill[1], fill[2])
            };
            (xx, yy) = (xx + a0, yy + a3);
        }
        (x_of_row, y_of_row) = (x_of_row + a1, y_of_row + a4);
    }
}

/// A place between pixels: the pixel left of it and above, and the distance from there.
#[derive(Debug, Clone, Copy)]
pub struct At {
    x: i32,
    y: i32,
    dx: f64,
    dy: f64,
}

/// Fills each plane with what `sample` makes of a plane at a place.
fn interpolate(
    level: Level,
    image: &Image<'_>,
    affine: &Affine,
    after: &mut [u8],
    sample: impl Fn(&[u8], At) -> u8,
    is_bicubic: bool,
) {
    let Image { planes, width, height, fill } = *image;
    let (pixels, Affine { a, b, c, d, e, f }) = (width * height, *affine);
    for y in 0..height {
        let yc = y as f64 + 0.5;
        let mut x = 0;
        while x < width {
            #[cfg(target_arch = "x86_64")]
            if level.has_avx2() {
                // Those that take all their pixels from the image, many at a time.
                x += warp_avx2::run(image, affine, is_bicubic, y, x, after);
                if x == width {
                    break;
                }
            }
            let xc = x as f64 + 0.5;
            let (xin, yin) = (a * xc + b * yc + c, d * xc + e * yc + f);
            let is_inside = xin >= 0.0 && xin < width as f64 && yin >= 0.0 && yin < height as f64;
            let (xin, yin) = (xin - 0.5, yin - 0.5);
            let (x0, y0) = (xin.floor(), yin.floor());
            let place = At { x: x0 as i32, y: y0 as i32, dx: xin - x0, dy: yin - y0 };
            for (channel, fill) in fill.into_iter().enumerate() {
                after[channel * pixels + y * width + x] =
                    if is_inside { sample(&planes[channel * pixels..][..pixels], place) } else { fill };
            }
            x += 1;
        }
    }
}

/// Pixels of a row from column `x` on, repeated beyond the edges.
#[inline(always)]
fn columns<const N: usize>(plane: &[u8], width: usize, x: i32, y: usize) -> [f64; N] {
    let row = &plane[y * width..][..width];
    std::array::from_fn(|nth| f64::from(row[(x + nth as i32).clamp(0, width as i32 - 1) as usize]))
}

/// Two columns of two rows; a row below the image is the one above it.
fn bilinear(plane: &[u8], image: &Image<'_>, at: At) -> u8 {
    let (last, width) = (image.height as i32 - 1, image.width);
    let between = |[a, b]: [f64; 2], d: f64| a + (b - a) * d;
    let row = |y: i32| between(columns(plane, width, at.x, y.clamp(0, last) as usize), at.dx);
    let above = row(at.y);
    let below = if (0..=last).contains(&(at.y + 1)) { row(at.y + 1) } else { above };
    between([above, below], at.dy) as u8
}

/// Four columns of four rows; a row outside is the one before it.
fn bicubic(plane: &[u8], image: &Image<'_>, at: At) -> u8 {
    let (last, width) = (image.height as i32 - 1, image.width);
    let row = |y: i32| cubic(columns(plane, width, at.x - 1, y.clamp(0, last) as usize), at.dx);
    let mut rows = [row(at.y - 1); 4];
    for nth in 1..4 {
        let y = at.y - 1 + nth as i32;
        rows[nth] = if (0..=last).contains(&y) { row(y) } else { rows[nth - 1] };
    }
    cubic(rows, at.dy) as u8
}

/// Keys' cubic with a = −1, as Pillow's warps compute it.
#[inline(always)]
fn cubic([v1, v2, v3, v4]: [f64; 4], d: f64) -> f64 {
    let (p1, p2, p3, p4) = (v2, -v1 + v3, 2.0 * (v1 - v2) + v3 - v4, -v1 + v2 - v3 + v4);
    p1 + d * (p2 + d * (p3 + d * p4))
}

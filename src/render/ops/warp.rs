//! Warps: each output pixel samples the image at its place.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calls functions compiled for instruction sets that were detected at run time")
)]

use super::affine::{Affine, Placement};
use super::along;
use super::sampled::Image;
use super::transpose::transpose;
#[cfg(target_arch = "x86_64")]
use super::warp_vectors;
use crate::operation::{WarpFilter, Warping};
use crate::render::each_level::each_level;
use crate::render::level::Level;
use crate::types::ImageSize;

/// A copy of the image that is warped.
#[derive(Default)]
pub struct Scratch {
    /// u8 `[3, H, W]`, or transposed.
    planes: Vec<u8>,
    /// What is made of transposed planes.
    turned: Vec<u8>,
    /// u8 `[H, W, 4]`.
    pixels: Vec<[u8; 4]>,
    rows: along::Scratch,
}

impl Scratch {
    /// Frees scratch above `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        if self.planes.capacity() > bytes {
            *self = Self::default();
        }
    }
}

/// Warps `planes`, u8 `[3, H, W]`.
pub fn warp(
    level: Level,
    placement: &Placement,
    warping: &Warping,
    size: ImageSize,
    planes: &mut [u8],
    scratch: &mut Scratch,
) {
    if *placement == Placement::Same {
        return;
    }
    let (width, height) = (size.width as usize, size.height as usize);
    let Scratch { planes: before, turned, pixels, rows } = scratch;
    let Warping { filter, fill } = *warping;
    if let Placement::Affine(affine) = placement
        && affine.moves_columns()
        // Whole pixels of columns are copied as they lie.
        && (affine.d != 0.0 || filter != WarpFilter::Nearest)
    {
        // What rows do is faster: each is read from its beginning.
        before.resize(planes.len(), 0);
        turned.resize(planes.len(), 0);
        transpose(planes, width, height, before);
        let image = Image { planes: before, width: height, height: width, fill };
        move_rows(level, &image, &affine.transposed(), filter, rows, turned);
        return transpose(turned, height, width, planes);
    }
    before.clear();
    before.extend_from_slice(planes);
    let image = Image { planes: before, width, height, fill };
    match *placement {
        Placement::Same => {}
        Placement::Half => turn(&image, planes, |x, y| (height - 1 - y) * width + width - 1 - x),
        Placement::Quarter => turn(&image, planes, |x, y| x * width + width - 1 - y),
        Placement::ThreeQuarters => turn(&image, planes, |x, y| (height - 1 - x) * width + y),
        Placement::Affine(affine)
            if affine.moves_by_pixels() || filter == WarpFilter::Nearest && affine.b == 0.0 && affine.d == 0.0 =>
        {
            shift(&image, &affine, planes);
        }
        Placement::Affine(affine) if affine.moves_rows() => move_rows(level, &image, &affine, filter, rows, planes),
        Placement::Affine(affine) => match filter {
            WarpFilter::Nearest => {
                interleave(level, before, pixels);
                let [red, green, blue] = fill;
                pixels.push([red, green, blue, 0]);
                nearest(level, &image, pixels, &affine, planes);
            }
            #[cfg(target_arch = "x86_64")]
            filter if level.has_avx2() && warp_vectors::serves(&image) => {
                interleave(level, before, pixels);
                warp_vectors::run(level, &image, pixels, &affine, filter, planes);
            }
            filter => interpolate(&image, &affine, filter, planes),
        },
    }
}

/// Moves each row along itself.
fn move_rows(
    level: Level,
    image: &Image<'_>,
    affine: &Affine,
    filter: WarpFilter,
    scratch: &mut along::Scratch,
    after: &mut [u8],
) {
    match filter {
        WarpFilter::Nearest => slide_rows(image, affine, after),
        filter => along::run(level, image, affine, filter, scratch, after),
    }
}

/// Fills each plane with the pixels that `index` names for column and row.
fn turn(image: &Image<'_>, after: &mut [u8], index: impl Fn(usize, usize) -> usize) {
    let pixels = image.width * image.height;
    for (before, after) in image.planes.chunks_exact(pixels).zip(after.chunks_exact_mut(pixels)) {
        for (y, row) in after.chunks_exact_mut(image.width).enumerate() {
            row.iter_mut().enumerate().for_each(|(x, out)| *out = before[index(x, y)]);
        }
    }
}

/// Neighbouring outputs of an axis, and where the first of them comes from.
#[derive(Debug, Clone, Copy)]
struct Run {
    outputs: usize,
    from: Option<usize>,
}

/// The most runs of an axis: one for each power of two at which rounding may skip a pixel, and two outside.
const RUNS_MAX: usize = 32;

/// Runs of an axis of `length` pixels along which the image moves by `offset`. Pillow adds coordinates up, and truncates them.
fn runs(offset: f64, length: usize) -> ([Run; RUNS_MAX], usize) {
    let pixel = |at: f64| (at >= 0.0 && at < length as f64).then_some(at as usize);
    let (mut runs, mut count) = ([Run { outputs: 0, from: None }; RUNS_MAX], 0);
    let mut at = offset + 0.5;
    for _ in 0..length {
        let (from, last) = (pixel(at), runs[count]);
        if last.outputs > 0 && from != last.from.map(|from| from + last.outputs) {
            count += 1;
        }
        let run = &mut runs[count];
        *run = Run { outputs: run.outputs + 1, from: if run.outputs == 0 { from } else { run.from } };
        at += 1.0;
    }
    (runs, count + 1)
}

/// Moves an image along its axes by pixels, the nearest ones.
fn shift(image: &Image<'_>, affine: &Affine, after: &mut [u8]) {
    let Image { planes, width, height, fill } = *image;
    let ((across, across_count), (down, down_count)) = (runs(affine.c, width), runs(affine.f, height));
    for (channel, fill) in fill.into_iter().enumerate() {
        let before = &planes[channel * width * height..][..width * height];
        let mut rows = after[channel * width * height..].chunks_exact_mut(width);
        for run in &down[..down_count] {
            for (nth, row) in rows.by_ref().take(run.outputs).enumerate() {
                let Some(from) = run.from else {
                    row.fill(fill);
                    continue;
                };
                let (before, mut row) = (&before[(from + nth) * width..][..width], row);
                for run in &across[..across_count] {
                    let (out, rest) = row.split_at_mut(run.outputs);
                    match run.from {
                        Some(from) => out.copy_from_slice(&before[from..from + run.outputs]),
                        None => out.fill(fill),
                    }
                    row = rest;
                }
            }
        }
    }
}

each_level! {
    /// The nearest pixels in 16.16 fixed point. `pixels` are the image's, u8 `[H, W, 4]`, and one more of the color outside.
    fn nearest(image: &Image<'_>, pixels: &[[u8; 4]], affine: &Affine, after: &mut [u8]) {
        /// Pixels whose places are found together.
        const BLOCK: usize = 64;
        let Image { width, height, .. } = *image;
        let fix = |value: f64| (value * 65_536.0 + 0.5).floor() as i32;
        let Affine { a, b, c, d, e, f } = *affine;
        let (a0, a1, a3, a4) = (fix(a), fix(b), fix(d), fix(e));
        let (x_first, y_first) = (fix(c + a * 0.5 + b * 0.5), fix(f + d * 0.5 + e * 0.5));
        let outside = (width * height) as u32;
        let (red, rest) = after.split_at_mut(width * height);
        let (green, blue) = rest.split_at_mut(width * height);
        for y in 0..height {
            let (x_row, y_row) = (x_first + a1 * y as i32, y_first + a4 * y as i32);
            for first in (0..width).step_by(BLOCK) {
                let count = BLOCK.min(width - first);
                let (mut places, mut colors) = ([0_u32; BLOCK], [[0_u8; 4]; BLOCK]);
                for (at, to) in (first as i32..).zip(&mut places) {
                    let (x, y) = (x_row.wrapping_add(a0.wrapping_mul(at)) >> 16, y_row.wrapping_add(a3.wrapping_mul(at)) >> 16);
                    // Negative ones become large.
                    let is_inside = (x as u32) < width as u32 && (y as u32) < height as u32;
                    let place = (y as u32).wrapping_mul(width as u32).wrapping_add(x as u32);
                    *to = if is_inside { place } else { outside };
                }
                for (color, &place) in colors.iter_mut().zip(&places) {
                    *color = pixels[place as usize];
                }
                let out = y * width + first..y * width + first + count;
                let (red, green, blue) = (&mut red[out.clone()], &mut green[out.clone()], &mut blue[out]);
                for nth in 0..count {
                    (red[nth], green[nth], blue[nth]) = (colors[nth][0], colors[nth][1], colors[nth][2]);
                }
            }
        }
    }
}

/// Moves each row along itself by whole pixels, in the same fixed point.
fn slide_rows(image: &Image<'_>, affine: &Affine, after: &mut [u8]) {
    let fix = |value: f64| (value * 65_536.0 + 0.5).floor() as i32;
    let first = fix(affine.c + 0.5 + affine.b * 0.5);
    for y in 0..image.height {
        slide(image, first.wrapping_add(fix(affine.b).wrapping_mul(y as i32)) >> 16, y, after);
    }
}

/// Fills row `y` with that row of the image from column `left` on.
fn slide(image: &Image<'_>, left: i32, y: usize, after: &mut [u8]) {
    let Image { planes, width, height, fill } = *image;
    // The outputs that show the image; none of a row outside.
    let first = usize::try_from(-left).unwrap_or(0).min(width);
    let end = usize::try_from(width as i32 - left).unwrap_or(0).clamp(first, width);
    let from = if first < end { (first as i32 + left) as usize } else { 0 };
    for (channel, fill) in fill.into_iter().enumerate() {
        let row = (channel * height + y) * width;
        let out = &mut after[row..][..width];
        out[..first].fill(fill);
        out[first..end].copy_from_slice(&planes[row + from..][..end - first]);
        out[end..].fill(fill);
    }
}

/// Fills each plane with what a filter makes of a plane, a pixel at a time.
fn interpolate(image: &Image<'_>, affine: &Affine, filter: WarpFilter, after: &mut [u8]) {
    let Image { width, height, fill, .. } = *image;
    for y in 0..height {
        for x in 0..width {
            let place = affine.place(width, height, x, y);
            for (channel, fill) in fill.into_iter().enumerate() {
                let value = place.map_or(fill, |place| image.sample(filter, channel, place));
                after[channel * width * height + y * width + x] = value;
            }
        }
    }
}

each_level! {
    /// The three values of each pixel side by side, and a zero.
    fn interleave(planes: &[u8], pixels: &mut Vec<[u8; 4]>) {
        let (red, rest) = planes.split_at(planes.len() / 3);
        let (green, blue) = rest.split_at(red.len());
        pixels.clear();
        pixels.extend(red.iter().zip(green).zip(blue).map(|((&r, &g), &b)| [r, g, b, 0]));
    }
}

//! The oracle: a geometry's output (docs/spec/pixels.md#resize, docs/spec/recipes.md#crops), one value at a time.

use super::Geometry;
use crate::decode::Picture;
use crate::types::{ImageSize, Interpolation, PadMode};

fn filter(interpolation: Interpolation, x: f64) -> f64 {
    let (x, a) = (x.abs(), -0.5);
    match interpolation {
        Interpolation::Bilinear => (1.0 - x).max(0.0),
        Interpolation::Bicubic if x < 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
        Interpolation::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * a,
        Interpolation::Bicubic => 0.0,
    }
}

/// The weights of output `i` of an axis `n → m` whose image is `eighths` of inputs long, as first input and 22-bit fixed-point factors.
fn weights(i: u32, n: u32, eighths: u32, m: u32, interpolation: Interpolation) -> (usize, Vec<i64>) {
    let s = f64::from(eighths) / 8.0 / f64::from(m);
    let r = s.max(1.0);
    let c = (f64::from(i) + 0.5) * s;
    let support = if interpolation == Interpolation::Bilinear { 1.0 } else { 2.0 };
    let lo = (c - support * r + 0.5).max(0.0) as usize;
    let hi = ((c + support * r + 0.5) as usize).min(n as usize);
    let w: Vec<f64> = (lo..hi).map(|k| filter(interpolation, (k as f64 - c + 0.5) / r)).collect();
    let sum: f64 = w.iter().sum();
    let half = |w: f64| if w < 0.0 { -0.5 } else { 0.5 };
    (lo, w.iter().map(|w| (w / sum * f64::from(1 << 22) + half(*w)) as i64).collect())
}

/// Resizes one line; an axis of equal sizes stays.
fn line(values: &[u8], eighths: u32, m: u32, interpolation: Interpolation) -> Vec<u8> {
    let one = |i: u32| {
        if eighths == 8 * m {
            return values[i as usize];
        }
        let (lo, w) = weights(i, values.len() as u32, eighths, m, interpolation);
        let sum: i64 = w.iter().zip(&values[lo..]).map(|(w, u)| w * i64::from(*u)).sum();
        ((sum + (1 << 21)) >> 22).clamp(0, 255) as u8
    };
    (0..m).map(one).collect()
}

/// The pixel of a line of `length` pixels that lies at `at`, if any.
fn inside(mut at: i64, length: i64, pad: PadMode) -> Option<usize> {
    while pad == PadMode::Reflect && !(0..length).contains(&at) {
        at = if length == 1 { 0 } else { at.abs() };
        at = if at >= length { 2 * (length - 1) - at } else { at };
    }
    (0..length).contains(&at).then_some(at as usize)
}

/// Crop; resize columns, then rows, as u8 between; pad and cut the window out; flip. Planar.
pub fn render(picture: &Picture<'_>, geometry: &Geometry, size: ImageSize) -> Vec<u8> {
    let Geometry { source, resized, window, pad, interpolation, flip, .. } = *geometry;
    let crop = picture.crop(source.top as u32, source.left as u32, source.height, source.width);
    let mut out = Vec::new();
    for channel in 0..3 {
        let channel = if crop.channels == 1 { 0 } else { channel };
        let at = |x: usize, y: usize| crop.values[(y * crop.stride as usize + x) * crop.channels + channel];
        let rows: Vec<Vec<u8>> = (0..crop.height as usize)
            .map(|y| {
                let row: Vec<u8> = (0..crop.width as usize).map(|x| at(x, y)).collect();
                line(&row, crop.extent[0], resized.width, interpolation)
            })
            .collect();
        let columns: Vec<Vec<u8>> = (0..resized.width as usize)
            .map(|x| {
                let column: Vec<u8> = rows.iter().map(|row| row[x]).collect();
                line(&column, crop.extent[1], resized.height, interpolation)
            })
            .collect();
        for y in 0..size.height {
            for x in 0..size.width {
                let x = if flip { size.width - 1 - x } else { x };
                let row = inside(i64::from(window.0) + i64::from(y), i64::from(resized.height), pad);
                let column = inside(i64::from(window.1) + i64::from(x), i64::from(resized.width), pad);
                out.push(row.zip(column).map_or(0, |(row, column)| columns[column][row]));
            }
        }
    }
    out
}

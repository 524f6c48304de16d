//! The oracle: SPEC §2's integer resize, one value at a time.

use super::decode::Picture;
use crate::types::ImageSize;

/// The weights of output `i` of an axis `n → m` whose image is `eighths` of inputs long, as first input and 22-bit fixed-point factors.
fn weights(i: u32, n: u32, eighths: u32, m: u32) -> (usize, Vec<i64>) {
    let s = f64::from(eighths) / 8.0 / f64::from(m);
    let r = s.max(1.0);
    let c = (f64::from(i) + 0.5) * s;
    let lo = (c - r + 0.5).max(0.0) as usize;
    let hi = ((c + r + 0.5) as usize).min(n as usize);
    let w: Vec<f64> = (lo..hi).map(|k| (1.0 - ((k as f64 - c + 0.5) / r).abs()).max(0.0)).collect();
    let sum: f64 = w.iter().sum();
    (lo, w.iter().map(|w| (w / sum * f64::from(1 << 22) + 0.5) as i64).collect())
}

fn apply(first: usize, weights: &[i64], value: impl Fn(usize) -> u8) -> u8 {
    let sum: i64 = weights.iter().enumerate().map(|(k, w)| w * i64::from(value(first + k))).sum();
    ((sum + (1 << 21)) >> 22).clamp(0, 255) as u8
}

/// Columns first, then rows, as u8 between; planar.
pub fn resize(picture: &Picture<'_>, size: ImageSize) -> Vec<u8> {
    let Picture { width, height, channels, values, extent } = *picture;
    let mut out = Vec::new();
    for channel in 0..3 {
        let channel = if channels == 1 { 0 } else { channel };
        let source = |x: usize, y: usize| values[(y * width as usize + x) * channels + channel];
        let mut narrow = vec![0; size.width as usize * height as usize];
        for x in 0..size.width {
            let (first, w) = weights(x, width, extent[0], size.width);
            for y in 0..height as usize {
                narrow[y * size.width as usize + x as usize] = if extent[0] == 8 * size.width {
                    source(x as usize, y)
                } else {
                    apply(first, &w, |k| source(k, y))
                };
            }
        }
        for y in 0..size.height {
            let (first, w) = weights(y, height, extent[1], size.height);
            for x in 0..size.width as usize {
                let at = |y: usize| narrow[y * size.width as usize + x];
                out.push(if extent[1] == 8 * size.height { at(y as usize) } else { apply(first, &w, at) });
            }
        }
    }
    out
}

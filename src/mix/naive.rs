//! The oracle: docs/spec/batches.md#mixing, one value at a time, every operation rounded by itself.

use super::Row;
use super::erase::{Fills, bits};
use crate::format::Format;
use crate::plan::Erasure;
use crate::spec::EraseMode;
use crate::types::{Cut, Dtype, Layout};

/// The finished images of `rows`, as the bytes that a mixer should write.
pub fn mix(format: &Format, rows: &[Row<'_>]) -> Vec<u8> {
    let (pixels, width) = (format.image_size.pixels(), format.image_size.width as usize);
    let mut out = vec![0; rows.len() * format.image_bytes()];
    let fills = Fills::new(format);
    for (row, image) in rows.iter().zip(out.chunks_exact_mut(format.image_bytes())) {
        for channel in 0..3 {
            let norm = |u: u8| (f32::from(u) / 255.0 - format.mean[channel]) / format.std[channel];
            for pixel in 0..pixels {
                let (y, x) = (pixel / width, pixel % width);
                let value = |sample: &[u8], flip: bool| {
                    sample[channel * pixels + y * width + if flip { width - 1 - x } else { x }]
                };
                let (own, partner) = (value(row.own.bytes, row.flip), value(row.partner.bytes, row.partner_flip));
                let covers = |cut: &Cut| {
                    (cut.top..cut.bottom).contains(&(y as u32)) && (cut.left..cut.right).contains(&(x as u32))
                };
                let inside = row.cut.as_ref().is_some_and(covers);
                // What stands in the last box of an erasure that covers the pixel.
                let fill = |erasure: Option<&Erasure>| {
                    let erasure = erasure?;
                    let nth = erasure.boxes().iter().rposition(covers)?;
                    let noise =
                        |index: usize| fills.noise[channel][bits(erasure.key, index as u32) as usize / (1 << 20)];
                    Some(match erasure.mode {
                        EraseMode::Const => fills.constant[channel],
                        EraseMode::Rand => noise(3 * nth + channel),
                        EraseMode::Pixel => noise(channel * pixels + pixel),
                    })
                };
                let (own_fill, partner_fill) = (fill(row.own.erasure), fill(row.partner.erasure));
                let (own, own_fill) = if inside { (partner, partner_fill) } else { (own, own_fill) };
                let mix = |of: &dyn Fn(u8) -> f32| {
                    let (a, b) = (own_fill.unwrap_or(of(own)), partner_fill.unwrap_or(of(partner)));
                    fill(row.erasure).unwrap_or(row.weight * a + (1.0 - row.weight) * b)
                };
                let at = match format.layout {
                    Layout::Nchw => channel * pixels + pixel,
                    Layout::Nhwc => pixel * 3 + channel,
                } * format.dtype.bytes();
                let normed = mix(&norm);
                match format.dtype {
                    Dtype::F32 => image[at..at + 4].copy_from_slice(&normed.to_ne_bytes()),
                    Dtype::F16 => image[at..at + 2].copy_from_slice(&half::f16::from_f32(normed).to_ne_bytes()),
                    Dtype::Bf16 => image[at..at + 2].copy_from_slice(&half::bf16::from_f32(normed).to_ne_bytes()),
                    Dtype::U8 => image[at] = mix(&f32::from).round_ties_even() as u8,
                }
            }
        }
    }
    out
}

/// The values of a finished batch as f64.
pub fn values(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    let pairs = bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    match dtype {
        Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap()).into()).collect(),
        Dtype::F16 => pairs.map(|b| half::f16::from_ne_bytes(b).to_f64()).collect(),
        Dtype::Bf16 => pairs.map(|b| half::bf16::from_ne_bytes(b).to_f64()).collect(),
        Dtype::U8 => bytes.iter().map(|&b| b.into()).collect(),
    }
}

/// Asserts the tolerance of single values (docs/spec/golden.md#tolerances): u8 exact, f32 within 7e-7, f16 and bf16 within that or one unit in the last place.
pub fn assert_close(dtype: Dtype, ours: &[u8], expected: &[u8], context: &str) {
    assert_eq!(ours.len(), expected.len(), "{context}");
    for (at, (a, b)) in values(dtype, ours).iter().zip(values(dtype, expected)).enumerate() {
        let near = match dtype {
            Dtype::F32 => (a - b).abs() <= 7e-7,
            Dtype::U8 => *a == b,
            Dtype::F16 | Dtype::Bf16 => (a - b).abs() <= 7e-7 || ulps(ours, expected, at) <= 1,
        };
        assert!(near, "{context}: value {at}: {a} for {b}");
    }
}

/// Asserts the tolerance (docs/spec/golden.md#tolerances) of how many f16 or bf16 values may differ at all. It holds of many different values: with few
/// pixels, or a λ that repeats, one value at the edge of rounding stands for a large share.
pub fn assert_rarely_off(dtype: Dtype, ours: &[u8], expected: &[u8], context: &str) {
    let (a, b) = (values(dtype, ours), values(dtype, expected));
    let off = a.iter().zip(&b).filter(|(a, b)| (*a - *b).abs() > 7e-7).count();
    let share_max = if dtype == Dtype::F16 { 0.002 } else { 0.001 };
    assert!(off as f64 <= share_max * a.len() as f64, "{context}: {off} of {} differ", a.len());
}

/// Distance in units of the last place: the bits of numbers of equal sign are ordered like the numbers.
fn ulps(ours: &[u8], expected: &[u8], at: usize) -> u32 {
    let bits = |bytes: &[u8]| i32::from(i16::from_ne_bytes([bytes[2 * at], bytes[2 * at + 1]]));
    (bits(ours) - bits(expected)).unsigned_abs()
}

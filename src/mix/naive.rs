//! The oracle: SPEC §4, one value at a time, every operation rounded by itself.

use super::{Format, Row};
use crate::types::{Dtype, Layout};

/// The finished images of `rows`, as the bytes that a mixer should write.
pub fn mix(format: &Format, rows: &[Row<'_>]) -> Vec<u8> {
    let pixels = format.image_size.pixels();
    let mut out = vec![0; rows.len() * format.image_bytes()];
    for (row, image) in rows.iter().zip(out.chunks_exact_mut(format.image_bytes())) {
        for channel in 0..3 {
            let norm = |u: u8| (f32::from(u) / 255.0 - format.mean[channel]) / format.std[channel];
            for pixel in 0..pixels {
                let (own, partner) = (row.own[channel * pixels + pixel], row.partner[channel * pixels + pixel]);
                let mix = |a: f32, b: f32| row.lambda * a + (1.0 - row.lambda) * b;
                let at = match format.layout {
                    Layout::Nchw => channel * pixels + pixel,
                    Layout::Nhwc => pixel * 3 + channel,
                } * format.dtype.bytes();
                let normed = mix(norm(own), norm(partner));
                match format.dtype {
                    Dtype::F32 => image[at..at + 4].copy_from_slice(&normed.to_ne_bytes()),
                    Dtype::F16 => image[at..at + 2].copy_from_slice(&half::f16::from_f32(normed).to_ne_bytes()),
                    Dtype::Bf16 => image[at..at + 2].copy_from_slice(&half::bf16::from_f32(normed).to_ne_bytes()),
                    Dtype::U8 => image[at] = mix(f32::from(own), f32::from(partner)).round_ties_even() as u8,
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

/// Asserts SPEC §8's tolerance between a mixer's bytes and the expected ones.
pub fn assert_close(dtype: Dtype, ours: &[u8], expected: &[u8], context: &str) {
    assert_eq!(ours.len(), expected.len(), "{context}");
    let (a, b) = (values(dtype, ours), values(dtype, expected));
    // Distance in units of the last place: the bits of equal signs are ordered like the values.
    let ulps = |at: usize| match dtype {
        Dtype::F16 | Dtype::Bf16 => {
            let bits = |bytes: &[u8]| i32::from(i16::from_ne_bytes([bytes[2 * at], bytes[2 * at + 1]]));
            (bits(ours) - bits(expected)).unsigned_abs()
        }
        _ => u32::MAX,
    };
    let mut off = 0;
    for (at, (a, b)) in a.iter().zip(&b).enumerate() {
        let near = (a - b).abs() <= 7e-7;
        match dtype {
            Dtype::F32 => assert!(near, "{context}: value {at}: {a} for {b}"),
            // A tie may fall either way when the arithmetic differs; one level, and rarely.
            Dtype::U8 => assert!((a - b).abs() <= 1.0, "{context}: value {at}: {a} for {b}"),
            _ => assert!(near || ulps(at) <= 1, "{context}: value {at}: {a} for {b}"),
        }
        off += usize::from(a != b && !(dtype != Dtype::U8 && near));
    }
    let share = match dtype {
        Dtype::F32 | Dtype::U8 => 0.0,
        Dtype::Bf16 => 0.001,
        Dtype::F16 => 0.002,
    };
    // The share is that of many values; in few of them chance adds its four standard deviations.
    let expected = share * a.len() as f64;
    assert!(off as f64 <= expected + 4.0 * expected.sqrt(), "{context}: {off} of {} differ", a.len());
}

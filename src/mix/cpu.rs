//! The CPU mixer: one fused pass from u8 planes to the finished batch.
//!
//! With `s = 1/(255·std)`, a value is `(A·u_own + B·u_partner) + C`, where `A = λ·s`, `B = (1−λ)·s`, `C = −mean/std`: SPEC §4's
//! formula rearranged, within 4e-7 of it. For u8 `A = λ`, `B = 1−λ`, `C = 0`: SPEC's own operations. Every operation is rounded by
//! itself (no fused multiply-add), so that every instruction set gives the same bits: one source, compiled for each.
#![expect(unsafe_code, reason = "calls functions compiled for instruction sets that were detected at run time")]

use super::{Format, MixError, Mixer, Row};
use crate::types::{Dtype, Layout};
use bytemuck::cast_slice_mut;
use half::slice::HalfFloatSliceExt;

/// Pixels of one channel that are mixed at a time: their f32 values stay in the first-level cache.
const CHUNK: usize = 512;

/// Instruction sets that the pass is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    /// What every processor of the target has.
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// Those that this machine has, best last.
    fn available() -> Vec<Self> {
        let mut levels = vec![Self::Baseline];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") {
                levels.push(Self::Avx2);
            }
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
                levels.push(Self::Avx512);
            }
        }
        levels
    }
}

/// Mixes on the processor, in the calling thread.
pub struct CpuMixer {
    format: Format,
    level: Level,
}

impl CpuMixer {
    /// A mixer with the best instruction set that the machine has.
    pub fn new(format: Format) -> Self {
        Self { format, level: *Level::available().last().expect("the baseline is always there") }
    }
}

impl Mixer for CpuMixer {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn mix(&mut self, rows: &[Row<'_>], out: &mut [u8]) -> Result<(), MixError> {
        assert_eq!(out.len(), rows.len() * self.format.image_bytes());
        for (row, image) in rows.iter().zip(out.chunks_exact_mut(self.format.image_bytes())) {
            mix_row(self.level, &self.format, row, image);
        }
        Ok(())
    }
}

/// Mixes one row into its image.
fn mix_row(level: Level, format: &Format, row: &Row<'_>, image: &mut [u8]) {
    match level {
        Level::Baseline => pass(format, row, image),
        // SAFETY: `Level::available` lists it only where the machine has the features.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { pass_avx2(format, row, image) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { pass_avx512(format, row, image) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn pass_avx2(format: &Format, row: &Row<'_>, image: &mut [u8]) {
    pass(format, row, image);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn pass_avx512(format: &Format, row: &Row<'_>, image: &mut [u8]) {
    pass(format, row, image);
}

/// Factors of one channel of one row.
#[derive(Clone, Copy)]
struct Factors {
    own: f32,
    partner: f32,
    offset: f32,
}

impl Factors {
    fn new(format: &Format, lambda: f32, channel: usize) -> Self {
        if format.dtype == Dtype::U8 {
            return Self { own: lambda, partner: 1.0 - lambda, offset: 0.0 };
        }
        let (mean, std) = (f64::from(format.mean[channel]), f64::from(format.std[channel]));
        let (scale, lambda) = (1.0 / (255.0 * std), f64::from(lambda));
        let (own, partner) = ((lambda * scale) as f32, ((1.0 - lambda) * scale) as f32);
        Self { own, partner, offset: (-mean / std) as f32 }
    }
}

#[inline(always)]
fn pass(format: &Format, row: &Row<'_>, image: &mut [u8]) {
    match format.dtype {
        Dtype::F32 => pass_as::<f32>(format, row, cast_slice_mut(image)),
        Dtype::F16 => pass_as::<F16>(format, row, cast_slice_mut(image)),
        Dtype::Bf16 => pass_as::<Bf16>(format, row, cast_slice_mut(image)),
        Dtype::U8 => pass_as::<u8>(format, row, image),
    }
}

#[inline(always)]
fn pass_as<E: Element>(format: &Format, row: &Row<'_>, image: &mut [E]) {
    let pixels = format.image_size.pixels();
    let factors: [Factors; 3] = std::array::from_fn(|channel| Factors::new(format, row.lambda, channel));
    let planes = |sample: &[u8]| assert_eq!(sample.len(), 3 * pixels);
    planes(row.own);
    // A partner of weight 0 adds an exact 0: it need not be read.
    let partner = (row.lambda != 1.0).then_some(row.partner);
    partner.map(planes);
    match format.layout {
        Layout::Nchw => {
            for (channel, plane) in image.chunks_exact_mut(pixels).enumerate() {
                let plane_of = |sample: &'_ [u8]| channel * pixels..channel * pixels + sample.len() / 3;
                let own = &row.own[plane_of(row.own)];
                let partner = partner.map(|partner| &partner[plane_of(partner)]);
                for (nth, out) in plane.chunks_mut(CHUNK).enumerate() {
                    let here = nth * CHUNK..nth * CHUNK + out.len();
                    E::mix(&own[here.clone()], partner.map(|partner| &partner[here]), factors[channel], out);
                }
            }
        }
        Layout::Nhwc => {
            let mut planar = [[E::ZERO; CHUNK]; 3];
            for (nth, out) in image.chunks_mut(3 * CHUNK).enumerate() {
                let len = out.len() / 3;
                for (channel, values) in planar.iter_mut().enumerate() {
                    let first = channel * pixels + nth * CHUNK;
                    let here = first..first + len;
                    let partner = partner.map(|partner| &partner[here.clone()]);
                    E::mix(&row.own[here.clone()], partner, factors[channel], &mut values[..len]);
                }
                let [red, green, blue] = &planar;
                for (((pixel, &r), &g), &b) in out.chunks_exact_mut(3).zip(red).zip(green).zip(blue) {
                    (pixel[0], pixel[1], pixel[2]) = (r, g, b);
                }
            }
        }
    }
}

/// The one formula.
#[inline(always)]
fn mix_f32(own: &[u8], partner: Option<&[u8]>, factors: Factors, out: &mut [f32]) {
    let Factors { own: a, partner: b, offset: c } = factors;
    match partner {
        Some(partner) => {
            for ((out, &u), &v) in out.iter_mut().zip(own).zip(partner) {
                *out = (a * f32::from(u) + b * f32::from(v)) + c;
            }
        }
        None => {
            for (out, &u) in out.iter_mut().zip(own) {
                *out = a * f32::from(u) + c;
            }
        }
    }
}

/// An element type of finished batches.
trait Element: bytemuck::Pod {
    const ZERO: Self;

    /// Mixes at most [`CHUNK`] values of one channel.
    fn mix(own: &[u8], partner: Option<&[u8]>, factors: Factors, out: &mut [Self]);
}

impl Element for f32 {
    const ZERO: Self = 0.0;

    #[inline(always)]
    fn mix(own: &[u8], partner: Option<&[u8]>, factors: Factors, out: &mut [Self]) {
        mix_f32(own, partner, factors, out);
    }
}

use half::{bf16 as Bf16, f16 as F16};

impl Element for F16 {
    const ZERO: Self = Self::ZERO;

    #[inline(always)]
    fn mix(own: &[u8], partner: Option<&[u8]>, factors: Factors, out: &mut [Self]) {
        let mut values = [0.0; CHUNK];
        let values = &mut values[..out.len()];
        mix_f32(own, partner, factors, values);
        out.convert_from_f32_slice(values);
    }
}

impl Element for Bf16 {
    const ZERO: Self = Self::ZERO;

    #[inline(always)]
    fn mix(own: &[u8], partner: Option<&[u8]>, factors: Factors, out: &mut [Self]) {
        let mut values = [0.0; CHUNK];
        let values = &mut values[..out.len()];
        mix_f32(own, partner, factors, values);
        for (out, value) in out.iter_mut().zip(values) {
            // To nearest, ties to even; the values are finite, so no NaN has to be kept one.
            let bits = value.to_bits();
            *out = Self::from_bits(((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) as u16);
        }
    }
}

impl Element for u8 {
    const ZERO: Self = 0;

    #[inline(always)]
    fn mix(own: &[u8], partner: Option<&[u8]>, factors: Factors, out: &mut [Self]) {
        /// 1.5·2²³: adding it rounds a small positive number to an integer, ties to even, in the lowest bits.
        const ROUND: f32 = 12_582_912.0;
        let mut values = [0.0; CHUNK];
        let values = &mut values[..out.len()];
        mix_f32(own, partner, factors, values);
        for (out, value) in out.iter_mut().zip(values) {
            *out = (*value + ROUND).to_bits() as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Case, case};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_instruction_set_gives_the_same_bits(case in case()) {
            let mix = |level| {
                let mut out = case.out();
                for (row, image) in case.rows().iter().zip(out.chunks_exact_mut(case.format.image_bytes())) {
                    mix_row(level, &case.format, row, image);
                }
                out.to_vec()
            };
            let baseline = mix(Level::Baseline);
            for level in Level::available() {
                prop_assert_eq!(&mix(level), &baseline, "{:?}", level);
            }
        }

        #[test]
        fn a_partner_of_weight_0_need_not_be_read(case in case()) {
            let Case { format, .. } = case;
            let sample = &case.samples[0];
            let mix = |partner| {
                let mut out = vec![0_u64; format.image_bytes().div_ceil(8)];
                let image = &mut bytemuck::cast_slice_mut(&mut out)[..format.image_bytes()];
                pass(&format, &Row { own: sample, partner, lambda: 1.0, partner_row: 0 }, image);
                image.to_vec()
            };
            prop_assert_eq!(mix(&[]), mix(sample));
        }
    }
}

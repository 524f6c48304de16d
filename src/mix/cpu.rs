//! The CPU mixer: one fused pass from u8 planes to the finished batch.
//!
//! With `s = 1/(255·std)`, a value is `(A·u_own + B·u_partner) + C`, where `A = λ·s`, `B = (1−λ)·s`, `C = −mean/std`: SPEC §4's
//! formula rearranged, within 4e-7 of it. For u8 `A = λ`, `B = 1−λ`, `C = 0`: SPEC's own operations. Every operation is rounded by
//! itself (no fused multiply-add), so that every instruction set gives the same bits.
//!
//! Batches that go round a ring larger than the caches are stored past them: a line that is written whole need not be read first.
#![expect(unsafe_code, reason = "calls functions compiled for instruction sets that were detected at run time")]

#[cfg(target_arch = "x86_64")]
#[path = "avx2.rs"]
mod avx2;

use super::{Format, Helpers, MixError, Mixer, Row, compose};
use crate::types::{Dtype, Layout};
use bytemuck::cast_slice_mut;
use half::{bf16 as Bf16, f16 as F16};
use std::sync::{Mutex, PoisonError};

/// Pixels that are mixed before they are interleaved (NHWC): three channels of them stay in the first-level cache.
const CHUNK: usize = 512;

/// Pixels of a channel that are flipped or cut before they are mixed: own and partner stay in the first-level cache. A multiple of a
/// vector of every type.
const COMPOSED: usize = 2_048;

/// Instruction sets that the pass is written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// What every processor of the target has.
    Baseline,
    /// AVX2 and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Level {
    /// Those that this machine has, best last.
    pub fn available() -> Vec<Self> {
        let mut levels = vec![Self::Baseline];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
            levels.push(Self::Avx2);
        }
        levels
    }

    /// The best that this machine has.
    pub fn best() -> Self {
        *Self::available().last().expect("the baseline is always there")
    }

    /// Copies values `first..first + out.len()` of a plane whose lines are flipped.
    pub(super) fn flip(self, plane: &[u8], width: usize, first: usize, out: &mut [u8]) {
        match self {
            Self::Baseline => {
                for (line, columns, at) in compose::lines(width, first, out.len()) {
                    let from = &plane[line * width..][width - columns.end..width - columns.start];
                    out[at..at + columns.len()].iter_mut().zip(from.iter().rev()).for_each(|(to, &from)| *to = from);
                }
            }
            // SAFETY: `available` lists it only where the machine has the features.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { avx2::flip(plane, width, first, out) },
        }
    }
}

/// Mixes on the processor, in the calling thread and, where the batch is worth it, in those that help.
pub struct CpuMixer {
    format: Format,
    level: Level,
    /// Whether to store past the caches.
    stream: bool,
    /// Bytes that a thread mixes before it takes more.
    part_bytes: usize,
    helpers: Helpers,
}

/// Bytes of a part: small, so that no thread waits long for the last.
const PART_BYTES: usize = 1 << 20;

impl CpuMixer {
    /// A mixer with the best instruction set that the machine has, for batches that go round `ring_bytes` of memory.
    pub fn new(format: Format, ring_bytes: usize, helpers: Helpers) -> Self {
        Self {
            format,
            level: Level::best(),
            stream: ring_bytes > crate::cpus::last_level_cache_bytes(),
            part_bytes: PART_BYTES,
            helpers,
        }
    }

    /// The same mixer with another instruction set; it gives the same bits.
    ///
    /// # Panics
    /// When the machine does not have it.
    pub fn at(self, level: Level) -> Self {
        assert!(Level::available().contains(&level), "this machine has no {level:?}");
        Self { level, ..self }
    }
}

impl Mixer for CpuMixer {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn mix(&mut self, rows: &[Row<'_>], out: &mut [u8]) -> Result<(), MixError> {
        let Self { format, level, stream, part_bytes, ref helpers } = *self;
        assert_eq!(out.len(), rows.len() * format.image_bytes());
        let part_rows = (part_bytes / format.image_bytes()).max(1);
        let parts = rows.len().div_ceil(part_rows);
        let work = Mutex::new(rows.chunks(part_rows).zip(out.chunks_mut(part_rows * format.image_bytes())));
        let take = || work.lock().unwrap_or_else(PoisonError::into_inner).next();
        let mix = || {
            while let Some((rows, images)) = take() {
                for (row, image) in rows.iter().zip(images.chunks_exact_mut(format.image_bytes())) {
                    mix_row(level, &format, row, stream, image);
                }
            }
            // Streamed bytes must be seen before the batch is published, which a Release store does not see to.
            #[cfg(target_arch = "x86_64")]
            avx2::fence();
        };
        match helpers {
            Some(helpers) => helpers.in_place_scope(|scope| {
                for _ in 0..helpers.current_num_threads().min(parts / 2) {
                    scope.spawn(|_| mix());
                }
                mix();
            }),
            None => mix(),
        }
        Ok(())
    }
}

/// Mixes one row into its image.
fn mix_row(level: Level, format: &Format, row: &Row<'_>, stream: bool, image: &mut [u8]) {
    match format.dtype {
        Dtype::F32 => mix_row_as::<f32>(level, format, row, stream, cast_slice_mut(image)),
        Dtype::F16 => mix_row_as::<F16>(level, format, row, stream, cast_slice_mut(image)),
        Dtype::Bf16 => mix_row_as::<Bf16>(level, format, row, stream, cast_slice_mut(image)),
        Dtype::U8 => mix_row_as::<u8>(level, format, row, stream, image),
    }
}

fn mix_row_as<E: Element>(level: Level, format: &Format, row: &Row<'_>, stream: bool, image: &mut [E]) {
    let pixels = format.image_size.pixels();
    assert_eq!(row.own.len(), 3 * pixels);
    // A partner of weight 0 adds an exact 0: it need not be read.
    let mixed = row.lambda != 1.0;
    let factors: [Factors; 3] = std::array::from_fn(|channel| Factors::new(format, row.lambda, channel));
    let (own_changes, partner_changes) = (compose::changes_own(row), mixed && row.partner_flip);
    let run = |channel: usize, first: usize, stream: bool, out: &mut [E]| {
        if own_changes || partner_changes {
            return mix_composed(level, format, row, (channel, first), factors[channel], stream, out);
        }
        let here = channel * pixels + first..channel * pixels + first + out.len();
        mix_run(level, &row.own[here.clone()], mixed.then(|| &row.partner[here]), factors[channel], stream, out);
    };
    match format.layout {
        Layout::Nchw => {
            image.chunks_exact_mut(pixels).enumerate().for_each(|(channel, plane)| run(channel, 0, stream, plane));
        }
        Layout::Nhwc => {
            let mut planar = [[E::of(0.0); CHUNK]; 3];
            for (nth, out) in image.chunks_mut(3 * CHUNK).enumerate() {
                let len = out.len() / 3;
                planar
                    .iter_mut()
                    .enumerate()
                    .for_each(|(channel, run_of)| run(channel, nth * CHUNK, false, &mut run_of[..len]));
                let [red, green, blue] = &planar;
                for (((pixel, &r), &g), &b) in out.chunks_exact_mut(3).zip(red).zip(green).zip(blue) {
                    (pixel[0], pixel[1], pixel[2]) = (r, g, b);
                }
            }
        }
    }
}

/// Mixes values of a channel of a row that is flipped or cut, from a position on. Apart, since other rows have no use for its memory,
/// which takes longer to clear than a small image to mix.
#[inline(never)]
fn mix_composed<E: Element>(
    level: Level,
    format: &Format,
    row: &Row<'_>,
    (channel, first): (usize, usize),
    factors: Factors,
    stream: bool,
    out: &mut [E],
) {
    let (mut own, mut partner) = ([0; COMPOSED], [0; COMPOSED]);
    for (nth, out) in out.chunks_mut(COMPOSED).enumerate() {
        let (first, len) = (first + nth * COMPOSED, out.len());
        compose::own(level, row, format.image_size, channel, first, &mut own[..len]);
        let partner = (row.lambda != 1.0).then(|| {
            compose::partner(level, row, format.image_size, channel, first, &mut partner[..len]);
            &partner[..len]
        });
        mix_run(level, &own[..len], partner, factors, stream, out);
    }
}

/// Mixes neighbouring values of one channel.
fn mix_run<E: Element>(
    level: Level,
    own: &[u8],
    partner: Option<&[u8]>,
    factors: Factors,
    stream: bool,
    out: &mut [E],
) {
    match level {
        Level::Baseline => mix_values(own, partner, factors, out),
        // SAFETY: `Level::available` lists it only where the machine has the features.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { avx2::mix_run(own, partner, factors, stream, out) },
    }
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

/// The one formula, for any processor.
fn mix_values<E: Element>(own: &[u8], partner: Option<&[u8]>, factors: Factors, out: &mut [E]) {
    let Factors { own: a, partner: b, offset: c } = factors;
    match partner {
        Some(partner) => {
            for ((out, &u), &v) in out.iter_mut().zip(own).zip(partner) {
                *out = E::of((a * f32::from(u) + b * f32::from(v)) + c);
            }
        }
        None => {
            for (out, &u) in out.iter_mut().zip(own) {
                *out = E::of(a * f32::from(u) + c);
            }
        }
    }
}

/// An element type of finished batches.
trait Element: bytemuck::Pod {
    /// The type of a batch of them.
    const DTYPE: Dtype;

    /// A mixed value, rounded to nearest, ties to even.
    fn of(value: f32) -> Self;
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;

    #[inline(always)]
    fn of(value: f32) -> Self {
        value
    }
}

impl Element for F16 {
    const DTYPE: Dtype = Dtype::F16;

    #[inline(always)]
    fn of(value: f32) -> Self {
        Self::from_f32(value)
    }
}

impl Element for Bf16 {
    const DTYPE: Dtype = Dtype::Bf16;

    #[inline(always)]
    fn of(value: f32) -> Self {
        // The values are finite, so no NaN has to be kept one.
        let bits = value.to_bits();
        Self::from_bits(((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) as u16)
    }
}

impl Element for u8 {
    const DTYPE: Dtype = Dtype::U8;

    #[inline(always)]
    fn of(value: f32) -> Self {
        /// 1.5·2²³: adding it rounds a small positive number to an integer, ties to even, in the lowest bits.
        const ROUND: f32 = 12_582_912.0;
        (value + ROUND).to_bits() as u8
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
            let mix = |level, stream| {
                let mut out = case.out();
                for (row, image) in case.rows().iter().zip(out.chunks_exact_mut(case.format.image_bytes())) {
                    mix_row(level, &case.format, row, stream, image);
                }
                out.to_vec()
            };
            let baseline = mix(Level::Baseline, false);
            for level in Level::available() {
                for stream in [false, true] {
                    prop_assert_eq!(&mix(level, stream), &baseline, "{:?}", level);
                }
            }
        }

        #[test]
        fn helpers_change_nothing(case in case(), threads in 1_usize..4) {
            let rows: Vec<Row<'_>> = case.rows().iter().cycle().take(300).copied().collect();
            let mix = |helpers| {
                let mut out = vec![0_u64; (rows.len() * case.format.image_bytes()).div_ceil(8)];
                let bytes = &mut bytemuck::cast_slice_mut(&mut out)[..rows.len() * case.format.image_bytes()];
                CpuMixer { part_bytes: 1_000, ..CpuMixer::new(case.format, 0, helpers) }.mix(&rows, bytes).unwrap();
                out
            };
            prop_assert_eq!(mix(crate::mix::helpers(threads).unwrap()), mix(None));
        }

        #[test]
        fn a_partner_of_weight_0_need_not_be_read(case in case()) {
            let Case { format, .. } = case;
            let sample = &case.samples[0];
            let mix = |partner| {
                let mut out = vec![0_u64; format.image_bytes().div_ceil(8)];
                let image = &mut bytemuck::cast_slice_mut(&mut out)[..format.image_bytes()];
                mix_row(Level::Baseline, &format, &Row::new(sample, partner, 1.0), false, image);
                image.to_vec()
            };
            prop_assert_eq!(mix(&[]), mix(sample));
        }
    }
}

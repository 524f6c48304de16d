//! The CPU mixer: one fused pass from u8 planes to the finished batch.
//!
//! With `s = 1/(255·std)`, a value is `(A·u_own + B·u_partner) + C`, where `A = λ·s`, `B = (1−λ)·s`, `C = −mean/std`: the specification's
//! formula rearranged, within 4e-7 of it. For u8 `A = λ`, `B = 1−λ`, `C = 0`: its own operations. Every operation is rounded by
//! itself (no fused multiply-add), so that every instruction set gives the same bits.
//!
//! Batches are stored past the caches where that turns out to be faster (`stores.rs`).
#![expect(unsafe_code, reason = "calls functions compiled for instruction sets that were detected at run time")]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod compose;
mod helpers;
mod level;
mod lines;
mod patch;
mod stores;

pub use helpers::Helpers;
pub use level::Level;
#[cfg(feature = "cuda")]
pub use patch::erases;

use super::erase::Fills;
use super::{MixError, Mixer, Moved, Next, Notice, Row, Target};
use crate::format::Format;
use crate::types::{Dtype, ImageSize, Layout};
use bytemuck::cast_slice_mut;
use half::{bf16 as Bf16, f16 as F16};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use stores::Stores;

/// Pixels of a channel that are mixed before those of the next channel: the three are read as streams side by side, which memory
/// answers faster, and what is composed or interleaved of them stays in the first-level cache. A multiple of a vector of every type.
const BLOCK: usize = 1024;

/// Bytes between what is mixed and what is asked for from memory: about the time that it takes to come.
const AHEAD: usize = 1024;

/// Mixes on the processor, in the calling thread and, where the batch is worth it, in those that help.
pub struct CpuMixer {
    format: Format,
    level: Level,
    fills: Fills,
    stores: Stores,
    /// Bytes of a batch below which a thread is not worth its start.
    part_bytes: usize,
    /// Processors of the machine.
    cpus: usize,
    helpers: Arc<Helpers>,
}

/// Half as much as a thread should have to do on average.
const PART_BYTES: usize = 1 << 20;

impl CpuMixer {
    /// A mixer with the best instruction set that the machine has.
    pub fn new(format: Format, helpers: Arc<Helpers>) -> Self {
        Self {
            format,
            level: Level::best(),
            fills: Fills::new(&format),
            stores: Stores::default(),
            part_bytes: PART_BYTES,
            cpus: crate::cpus::online(),
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

    fn mix(
        &mut self,
        size: ImageSize,
        rows: &[Row<'_>],
        target: Target<'_>,
        notice: Option<&Notice<'_>>,
        _: Option<&mut Next<'_>>,
    ) -> Result<Moved, MixError> {
        let out = target.memory();
        let Self { format, level, ref fills, ref mut stores, part_bytes, cpus, ref helpers } = *self;
        let format = format.sized(size);
        assert_eq!(out.len(), rows.len() * format.image_bytes());
        let (stream, start) = (stores.past_caches(), Instant::now());
        // Ever smaller parts: no thread waits longer than for a row of another, and rows that share a sample mostly stay together.
        let helping = helpers.count().min(out.len() / part_bytes / 2);
        let mut images: Vec<Option<&mut [u8]>> = out.chunks_exact_mut(format.image_bytes()).map(Some).collect();
        let image = |at: usize| (&rows[at], images[at].take().expect("each row comes once"));
        let mut order: Vec<(&Row<'_>, &mut [u8])> = partner_next(rows).into_iter().map(image).collect();
        let work = Mutex::new(&mut order[..]);
        let take = || {
            let mut rest = work.lock().unwrap_or_else(PoisonError::into_inner);
            let len = rest.len().div_ceil(2 * (1 + helping));
            let (part, after) = std::mem::take(&mut *rest).split_at_mut(len);
            *rest = after;
            part
        };
        // Whoever is told early waits awake: on a processor that is left over, or at the expense of those who mix.
        let notice = notice.filter(|notice| helping + 1 + notice.waiters <= cpus);
        // Rows that are left when notice is to be given; those of a batch that takes no longer are all left at first.
        let rows_ahead = notice.map_or(0, |notice| stores.rows_in(notice.ahead).clamp(1, rows.len().max(1)));
        let left = AtomicUsize::new(rows.len());
        let mix = || {
            let mut scratch = Scratch::default();
            loop {
                let part = take();
                if part.is_empty() {
                    break;
                }
                for (row, image) in part {
                    if left.fetch_sub(1, Ordering::Relaxed) == rows_ahead {
                        notice.iter().for_each(|notice| (notice.give)());
                    }
                    mix_row(level, &format, fills, row, stream, &mut scratch, image);
                }
            }
            // Streamed bytes must be seen before the batch is published, which a Release store does not see to.
            #[cfg(target_arch = "x86_64")]
            avx2::fence();
        };
        if helping > 0 {
            helpers.run(helping, &mix)
        } else {
            mix()
        }
        stores.note(start.elapsed(), rows.len());
        Ok(Moved::default())
    }
}

/// Each row once, and wherever it can be after the one whose partner it is: that read it, so it comes from a cache.
fn partner_next(rows: &[Row<'_>]) -> Vec<usize> {
    let (mut order, mut taken) = (Vec::with_capacity(rows.len()), vec![false; rows.len()]);
    for mut at in 0..rows.len() {
        while !std::mem::replace(&mut taken[at], true) {
            order.push(at);
            at = usize::try_from(rows[at].partner_row).unwrap_or(at);
        }
    }
    order
}

/// What a thread composes and interleaves in.
struct Scratch {
    own: [u8; BLOCK],
    partner: [u8; BLOCK],
    /// Three channels of a block, of any element type.
    planes: [[u32; BLOCK]; 3],
}

impl Default for Scratch {
    fn default() -> Self {
        Self { own: [0; BLOCK], partner: [0; BLOCK], planes: [[0; BLOCK]; 3] }
    }
}

/// Mixes one row into its image.
fn mix_row(
    level: Level,
    format: &Format,
    fills: &Fills,
    row: &Row<'_>,
    stream: bool,
    scratch: &mut Scratch,
    image: &mut [u8],
) {
    match format.dtype {
        Dtype::F32 => mix_row_as::<f32>(level, format, fills, row, stream, scratch, cast_slice_mut(image)),
        Dtype::F16 => mix_row_as::<F16>(level, format, fills, row, stream, scratch, cast_slice_mut(image)),
        Dtype::Bf16 => mix_row_as::<Bf16>(level, format, fills, row, stream, scratch, cast_slice_mut(image)),
        Dtype::U8 => mix_row_as::<u8>(level, format, fills, row, stream, scratch, image),
    }
}

fn mix_row_as<E: Element>(
    level: Level,
    format: &Format,
    fills: &Fills,
    row: &Row<'_>,
    stream: bool,
    scratch: &mut Scratch,
    image: &mut [E],
) {
    let (size, pixels) = (format.image_size, format.image_size.pixels());
    assert!(row.own.bytes.len() == 3 * pixels && image.len() == 3 * pixels);
    // A partner of weight 0 adds an exact 0: it need not be read.
    let mixed = row.weight != 1.0;
    let (own_changes, partner_changes) = (compose::changes_own(row), row.partner_flip);
    let table = (mixed && format.dtype == Dtype::U8 && pixels >= BLOCK).then(|| level.table(row.weight)).flatten();
    let factors: [_; 3] = std::array::from_fn(|channel| Factors::new(format, row.weight, channel, table.as_ref()));
    let planes = scratch.planes.each_mut().map(|plane| &mut cast_slice_mut::<u32, E>(plane)[..BLOCK]);
    for first in (0..pixels).step_by(BLOCK) {
        let len = BLOCK.min(pixels - first);
        for (channel, factors) in factors.iter().enumerate() {
            let here = channel * pixels + first..channel * pixels + first + len;
            let own = if own_changes {
                compose::own(level, row, size, channel, first, &mut scratch.own[..len]);
                &scratch.own[..len]
            } else {
                &row.own.bytes[here.clone()]
            };
            let partner = if !mixed {
                None
            } else if partner_changes {
                compose::partner(level, row, size, channel, first, &mut scratch.partner[..len]);
                Some(&scratch.partner[..len])
            } else {
                Some(&row.partner.bytes[here.clone()])
            };
            match format.layout {
                Layout::Nchw => mix_run(level, own, partner, factors, stream, &mut image[here]),
                Layout::Nhwc => mix_run(level, own, partner, factors, false, &mut planes[channel][..len]),
            }
        }
        if format.layout == Layout::Nhwc {
            interleave(level, planes.each_ref().map(|plane| &plane[..len]), stream, &mut image[3 * first..][..3 * len]);
        }
    }
    if patch::erases(row) {
        patch::erase(level, fills, format, row, image);
    }
}

/// Whether elements begin where the largest vectors may be stored past the caches.
fn can_stream<E: Element>(out: &[E]) -> bool {
    out.as_ptr().addr().is_multiple_of(64)
}

/// Mixes neighbouring values of one channel.
fn mix_run<E: Element>(
    level: Level,
    own: &[u8],
    partner: Option<&[u8]>,
    factors: &Factors<'_>,
    stream: bool,
    out: &mut [E],
) {
    let stream = stream && can_stream(out);
    let done = match level {
        Level::Baseline => 0,
        // SAFETY: `Level::available` lists them only where the machine has the features; what is streamed begins aligned.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { avx2::mix_steps(own, partner, factors, stream, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { avx512::mix_steps(own, partner, factors, stream, out) },
    };
    mix_values(&own[done..], partner.map(|partner| &partner[done..]), factors, &mut out[done..]);
}

/// Puts the elements of three channels in turn: a pixel's stand together.
fn interleave<E: Element>(level: Level, channels: [&[E]; 3], stream: bool, out: &mut [E]) {
    let stream = stream && can_stream(out);
    let done = match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Level::available` lists it only where the machine has the features; what is streamed begins aligned.
        Level::Avx512 => unsafe { avx512::interleave(channels, stream, out) },
        _ => 0,
    };
    let [red, green, blue] = channels.map(|channel| &channel[done..]);
    for (((pixel, &r), &g), &b) in out[3 * done..].chunks_exact_mut(3).zip(red).zip(green).zip(blue) {
        (pixel[0], pixel[1], pixel[2]) = (r, g, b);
    }
}

/// Factors of one channel of one row: A, B and C.
pub(super) struct Factors<'a> {
    pub(super) own: f32,
    pub(super) partner: f32,
    pub(super) offset: f32,
    /// The same by another way, for bytes (`Level::table`).
    table: Option<&'a [u8; 256]>,
}

/// A factor in f32. Smaller ones could give denormal numbers, which not all instructions know; they would change no value by 1e-27.
fn factor(exact: f64) -> f32 {
    if exact.abs() < 1e-30 { 0.0 } else { exact as f32 }
}

impl<'a> Factors<'a> {
    pub(super) fn new(format: &Format, lambda: f32, channel: usize, table: Option<&'a [u8; 256]>) -> Self {
        if format.dtype == Dtype::U8 {
            return Self { own: lambda, partner: 1.0 - lambda, offset: 0.0, table };
        }
        let (mean, std) = (f64::from(format.mean[channel]), f64::from(format.std[channel]));
        let (scale, lambda) = (1.0 / (255.0 * std), f64::from(lambda));
        Self {
            own: factor(lambda * scale),
            partner: factor((1.0 - lambda) * scale),
            offset: factor(-mean / std),
            table,
        }
    }

    /// C where nothing is erased; C's share of the partner's, of the own image, and of neither, where the other or both are erased.
    pub(super) fn offsets(&self, format: &Format, lambda: f32, channel: usize) -> [f32; 4] {
        if format.dtype == Dtype::U8 {
            return [0.0; 4];
        }
        let (exact, lambda) = (-f64::from(format.mean[channel]) / f64::from(format.std[channel]), f64::from(lambda));
        [self.offset, factor((1.0 - lambda) * exact), factor(lambda * exact), 0.0]
    }
}

/// The one formula, for any processor.
fn mix_values<E: Element>(own: &[u8], partner: Option<&[u8]>, factors: &Factors<'_>, out: &mut [E]) {
    let Factors { own: a, partner: b, offset: c, .. } = *factors;
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
    use crate::spec::FeedSpec;
    use proptest::prelude::*;
    use std::time::Duration;

    proptest! {
        #[test]
        fn every_instruction_set_gives_the_same_bits(case in case()) {
            let fills = Fills::new(&case.format);
            let mix = |level, stream| {
                let mut out = case.out();
                for (row, image) in case.rows().iter().zip(out.chunks_exact_mut(case.format.image_bytes())) {
                    mix_row(level, &case.format, &fills, row, stream, &mut Scratch::default(), image);
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
        fn bytes_of_every_two_values_are_the_same_with_every_instruction_set(
            lambda in prop_oneof![0.5_f32..1.0, 0.0_f32..1.0, Just(0.5), Just(0.75), (1_u32..255).prop_map(|n| 0.5 / n as f32)],
        ) {
            let format = Format { dtype: Dtype::U8, image_size: ImageSize::square(256), ..FeedSpec::train().format() };
            let pairs = |of: fn(usize) -> usize| (0..3 << 16).map(|at| of(at) as u8).collect::<Vec<_>>();
            let (own, partner) = (pairs(|at| at), pairs(|at| at >> 8));
            let mix = |level| {
                let mut image = vec![0; format.image_bytes()];
                let (row, fills) = (Row::new(&own, &partner, lambda), Fills::new(&format));
                mix_row(level, &format, &fills, &row, false, &mut Scratch::default(), &mut image);
                image
            };
            let baseline = mix(Level::Baseline);
            for level in Level::available() {
                prop_assert!(mix(level) == baseline, "{level:?} {lambda}");
            }
        }

        #[test]
        fn helpers_change_nothing(case in case(), threads in 1_usize..4) {
            let rows: Vec<Row<'_>> = case.rows().iter().cycle().take(300).copied().collect();
            let mix = |helpers| {
                let helpers = Arc::new(Helpers::start(helpers).unwrap());
                let mut out = vec![0_u64; (rows.len() * case.format.image_bytes()).div_ceil(8)];
                let bytes = &mut bytemuck::cast_slice_mut(&mut out)[..rows.len() * case.format.image_bytes()];
                CpuMixer { part_bytes: 1_000, ..CpuMixer::new(case.format, helpers) }
                    .mix(case.format.image_size, &rows, Target::Memory(bytes), None, None)
                    .unwrap();
                out
            };
            prop_assert_eq!(mix(threads), mix(0));
        }

        #[test]
        fn notice_is_given_once_where_a_processor_is_left(case in case(), threads in 0_usize..3, cpus in 1_usize..5, waiters in 1_usize..3, ahead_us in prop_oneof![Just(0), 0_u64..100, Just(u64::MAX)]) {
            let mut mixer = CpuMixer::new(case.format, Arc::new(Helpers::start(threads).unwrap()));
            (mixer.part_bytes, mixer.cpus) = (1_000, cpus);
            for _ in 0..3 {
                let given = AtomicUsize::new(0);
                let give = || { given.fetch_add(1, Ordering::Relaxed); };
                let notice = Notice { ahead: Duration::from_micros(ahead_us), waiters, give: &give };
                mixer.mix(case.format.image_size, &case.rows(), Target::Memory(&mut case.out()), Some(&notice), None).unwrap();
                let helping = threads.min(case.out().len() / 2_000);
                prop_assert_eq!(given.into_inner(), usize::from(helping + 1 + waiters <= cpus));
            }
        }

        #[test]
        fn a_partner_of_weight_0_need_not_be_read(case in case()) {
            let Case { format, .. } = case;
            let (sample, fills) = (&case.samples[0], Fills::new(&case.format));
            let mix = |partner| {
                let mut out = vec![0_u64; format.image_bytes().div_ceil(8)];
                let image = &mut bytemuck::cast_slice_mut(&mut out)[..format.image_bytes()];
                let row = Row::new(sample, partner, 1.0);
                mix_row(Level::Baseline, &format, &fills, &row, false, &mut Scratch::default(), image);
                image.to_vec()
            };
            prop_assert_eq!(mix(&[]), mix(sample));
        }
    }
}

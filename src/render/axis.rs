//! The weights of one axis of a resize (docs/spec/pixels.md#resize): which inputs each output reads, and how much of each.
//!
//! Window, padding and flip are only a choice of outputs: padding has no weight at all, and an axis of equal sizes has one weight of 1.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calls functions compiled for instruction sets that were detected at run time")
)]

use super::each_level::each_level;
use super::level::Level;
use super::weights::FRACTION;
#[cfg(target_arch = "x86_64")]
use super::weights::{Blocks, Four};
use super::window::Window;
use crate::types::Interpolation;

/// What the weights of an axis follow from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Pixels before the resize.
    pub inputs: u32,
    /// Eighths of them that show the image.
    pub eighths: u32,
    /// The outputs.
    pub window: Window,
    /// The filter.
    pub interpolation: Interpolation,
}

impl Key {
    /// Whether outputs are inputs, unchanged: the sizes before and after the resize are equal.
    pub fn is_identity(&self) -> bool {
        u64::from(self.eighths) == 8 * u64::from(self.window.resized)
    }
}

/// The weights of an axis. Building them for another key allocates nothing where the memory is large enough.
#[derive(Default)]
pub struct Axis {
    /// The first input that any output reads.
    pub start: usize,
    /// Inputs from there on that outputs read, at least 1.
    pub inputs: usize,
    /// For each output its first input, from `start` on.
    pub first: Vec<u32>,
    /// Weights of each output in `weights`: a multiple of 4, filled up with zeros.
    pub taps: usize,
    /// The most weights of an output that are not filling.
    pub used: usize,
    /// `[output][tap]`: the weights.
    pub weights: Vec<i32>,
    /// `[output][tap / 4]`: the weights again, for AVX2 and the second pass of AVX-512; empty where nothing reads them.
    #[cfg(target_arch = "x86_64")]
    pub split: Vec<Four>,
    /// The weights again, for the first pass of AVX-512; empty on other levels and axes.
    #[cfg(target_arch = "x86_64")]
    pub blocks: Blocks,
}

/// Scratch in which the weights of an axis are computed, a tap at a time for all outputs: by loops that compilers turn
/// into vector instructions.
#[derive(Default)]
struct Scratch {
    /// For each output its place among the inputs, the first input around it, and how many there are.
    centers: Vec<f64>,
    begins: Vec<i32>,
    counts: Vec<i32>,
    /// `[input around it][output]`: the weights, what they sum to, and rounded to a sum of 1.
    exact: Vec<f64>,
    sums: Vec<f64>,
    rounded: Vec<i32>,
}

impl Scratch {
    /// Computes the rounded weights of all inputs within `radius` of each output, and says of how many inputs at the
    /// most.
    #[inline(always)]
    fn round(&mut self, key: &Key, scale: f64, radius: f64, reach: f64, filter: impl Fn(f64) -> f64) -> usize {
        let Self { centers, begins, counts, exact, sums, rounded } = self;
        // Of padding the value is not used.
        let pixels = (0..key.window.outputs).map(|output| key.window.pixel(output).unwrap_or(0));
        centers.clear();
        centers.extend(pixels.map(|pixel| (f64::from(pixel) + 0.5) * scale));
        begins.clear();
        begins.extend(centers.iter().map(|center| (center - radius + 0.5).max(0.0) as i32));
        counts.clear();
        let end = |center: &f64| ((center + radius + 0.5) as i32).min(key.inputs as i32);
        counts.extend(centers.iter().zip(&*begins).map(|(center, begin)| end(center) - begin));
        let (outputs, all) = (centers.len(), counts.iter().copied().max().unwrap_or(0) as usize);
        sums.clear();
        sums.resize(outputs, 0.0);
        exact.clear();
        for tap in 0..all as i32 {
            let inputs = centers.iter().zip(&*begins).zip(&*counts);
            exact.extend(inputs.map(|((center, begin), count)| {
                let weight = filter((f64::from(begin + tap) - center + 0.5).abs() / reach);
                if tap < *count { weight } else { 0.0 }
            }));
            sums.iter_mut().zip(&exact[tap as usize * outputs..]).for_each(|(sum, weight)| *sum += weight);
        }
        rounded.clear();
        for weights in exact.chunks_exact(outputs) {
            rounded.extend(weights.iter().zip(&*sums).map(|(weight, sum)| {
                let half = if *weight < 0.0 { -0.5 } else { 0.5 };
                (weight / sum * f64::from(1 << FRACTION) + half) as i32
            }));
        }
        all
    }

    /// Bytes of memory.
    fn bytes(&self) -> usize {
        // Weights are 8 bytes and 4 bytes rounded; an output has 24 bytes.
        12 * self.exact.capacity() + 24 * self.centers.capacity()
    }
}

impl Axis {
    /// Computes the weights of `key`, for the first pass (`across`) or the second.
    fn build(&mut self, key: &Key, level: Level, across: bool, scratch: &mut Scratch) {
        weigh(level, self, key, scratch);
        #[cfg(target_arch = "x86_64")]
        {
            self.blocks.clear();
            if level == Level::Avx512 && across {
                self.blocks.build(&self.first, &self.weights, self.taps, self.used);
            }
            self.split.clear();
            // What suits three channels suits one.
            if level.has_avx2() && !self.blocks.suit(3) {
                self.split.extend(self.weights.chunks_exact(4).map(Four::new));
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (level, across);
    }

    /// With a filter of |x| that is 0 from `support` on.
    #[inline(always)]
    fn build_with(&mut self, key: &Key, support: f64, filter: impl Fn(f64) -> f64, scratch: &mut Scratch) {
        let Key { inputs, eighths, window, .. } = *key;
        let (scale, outputs) = (f64::from(eighths) / 8.0 / f64::from(window.resized), window.outputs as usize);
        let reach = scale.max(1.0);
        // The most inputs within an open interval of the filter's length.
        let most = if key.is_identity() { 1 } else { ((2.0 * support * reach).ceil() as usize).min(inputs as usize) };
        self.taps = most.next_multiple_of(4);
        self.used = 1;
        self.first.clear();
        self.weights.clear();
        self.weights.resize(self.taps * window.outputs as usize, 0);
        let all = if key.is_identity() { 1 } else { scratch.round(key, scale, support * reach, reach, filter) };
        let (mut start, mut end) = (usize::MAX, 0);
        for (output, weights) in self.weights.chunks_exact_mut(self.taps).enumerate() {
            let Some(pixel) = window.pixel(output as u32) else {
                self.first.push(u32::MAX);
                continue;
            };
            let (first, count) = if key.is_identity() {
                weights[0] = 1 << FRACTION;
                (pixel as usize, 1)
            } else {
                // Without the zeros at its ends.
                let rounded = |tap: usize| scratch.rounded[tap * outputs + output];
                let zeros = (0..all).take_while(|tap| rounded(*tap) == 0).count();
                let last = (zeros..all).rev().find(|tap| rounded(*tap) != 0).expect("the nearest input has weight");
                (zeros..=last).zip(&mut *weights).for_each(|(tap, weight)| *weight = rounded(tap));
                (scratch.begins[output] as usize + zeros, last + 1 - zeros)
            };
            assert!(count <= weights.len());
            self.used = self.used.max(count);
            self.first.push(first as u32);
            (start, end) = (start.min(first), end.max(first + count));
        }
        (self.start, self.inputs) = if end == 0 { (0, 1) } else { (start, end - start) };
        // Padding's first input is not `start`'s concern.
        let from_start = |first: &mut u32| {
            *first = first.checked_sub(self.start as u32).filter(|at| (*at as usize) < self.inputs).unwrap_or(0)
        };
        self.first.iter_mut().for_each(from_start);
    }

    /// Outputs.
    pub fn outputs(&self) -> usize {
        self.first.len()
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        // A weight stands here twice.
        8 * self.weights.capacity() + 4 * self.first.capacity()
    }

    /// One output from its inputs.
    #[inline(always)]
    pub fn apply(&self, output: usize, value: impl Fn(usize) -> u8) -> u8 {
        let first = self.first[output] as usize;
        let weights = &self.weights[output * self.taps..][..self.used.min(self.inputs - first)];
        let sum: i32 = weights.iter().enumerate().map(|(tap, weight)| weight * i32::from(value(first + tap))).sum();
        ((sum + (1 << (FRACTION - 1))) >> FRACTION).clamp(0, 255) as u8
    }
}

each_level! {
    /// Computes the weights of an axis.
    fn weigh(axis: &mut Axis, key: &Key, scratch: &mut Scratch) {
        match key.interpolation {
            Interpolation::Bilinear => axis.build_with(key, 1.0, |x| (1.0 - x).max(0.0), scratch),
            Interpolation::Bicubic => axis.build_with(key, 2.0, cubic, scratch),
        }
    }
}

/// Keys' cubic with a = −½, of x ≥ 0.
#[inline(always)]
fn cubic(x: f64) -> f64 {
    let a = -0.5;
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * a
    } else {
        0.0
    }
}

/// Axes that are remembered, each in the place that its key hashes to: photos of a few hundred shapes keep theirs, while random crops, which
/// seldom repeat, take the memory of what they replace.
const AXES: usize = 256;

/// Axes by key; of those that share a place the last one stays.
pub struct Axes {
    level: Level,
    places: Vec<(Option<Key>, Axis)>,
    scratch: Scratch,
}

impl Axes {
    /// None as yet.
    pub fn new(level: Level) -> Self {
        let places = (0..AXES).map(|_| (None, Axis::default())).collect();
        Self { level, places, scratch: Scratch::default() }
    }

    /// The axes of two keys, which have places of their own.
    pub fn get(&mut self, across: &Key, down: &Key) -> (&Axis, &Axis) {
        let Self { level, ref mut places, ref mut scratch } = *self;
        let (of_rows, of_columns) = places.split_at_mut(AXES / 2);
        (Self::one(of_rows, across, level, true, scratch), Self::one(of_columns, down, level, false, scratch))
    }

    fn one<'a>(
        places: &'a mut [(Option<Key>, Axis)],
        key: &Key,
        level: Level,
        across: bool,
        scratch: &mut Scratch,
    ) -> &'a Axis {
        let Key { inputs, eighths, window, .. } = *key;
        let mixed = [eighths, window.resized, window.start as u32, window.outputs, u32::from(window.flip)]
            .into_iter()
            .fold(inputs, |hash, part| (hash.rotate_left(5) ^ part).wrapping_mul(0x9E37_79B1));
        let place = (mixed >> 16) as usize % places.len();
        let (held, axis) = &mut places[place];
        if held.as_ref() != Some(key) {
            // Nothing half-built is found after a panic.
            *held = None;
            axis.build(key, level, across, scratch);
            *held = Some(*key);
        }
        axis
    }

    /// Forgets the axes above `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        for place in &mut self.places {
            if place.1.bytes() > bytes {
                *place = (None, Axis::default());
            }
        }
        if self.scratch.bytes() > bytes {
            self.scratch = Scratch::default();
        }
    }
}

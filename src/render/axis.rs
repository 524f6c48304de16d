//! The weights of one axis of a resize (docs/spec/pixels.md#resize): which inputs each output reads, and how much of each.
//!
//! Window, padding and flip are only a choice of outputs: padding has no weight at all, and an axis of equal sizes has one weight of 1.

#[cfg(target_arch = "x86_64")]
use super::avx2::Four;
use super::exact::Level;
use super::window::Window;
use crate::types::Interpolation;

/// Bits of a weight's fraction.
pub const FRACTION: u32 = 22;

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
    /// `[output][tap / 4]`: the weights again, for AVX2; empty on other levels.
    #[cfg(target_arch = "x86_64")]
    pub split: Vec<Four>,
    /// One output's weights before they are rounded.
    exact: Vec<f64>,
}

impl Axis {
    /// Computes the weights of `key`.
    pub fn build(&mut self, key: &Key, level: Level) {
        match key.interpolation {
            Interpolation::Bilinear => self.build_with(key, 1.0, |x| (1.0 - x).max(0.0)),
            Interpolation::Bicubic => self.build_with(key, 2.0, cubic),
        }
        #[cfg(target_arch = "x86_64")]
        {
            self.split.clear();
            if level == Level::Avx2 {
                self.split.extend(self.weights.chunks_exact(4).map(Four::new));
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = level;
    }

    /// With a filter of |x| that is 0 from `support` on.
    #[inline(always)]
    fn build_with(&mut self, key: &Key, support: f64, filter: impl Fn(f64) -> f64) {
        let Key { inputs, eighths, window, .. } = *key;
        let scale = f64::from(eighths) / 8.0 / f64::from(window.resized);
        let reach = scale.max(1.0);
        // The most inputs within an open interval of the filter's length.
        let most = if key.is_identity() { 1 } else { ((2.0 * support * reach).ceil() as usize).min(inputs as usize) };
        self.taps = most.next_multiple_of(4);
        self.used = 1;
        self.first.clear();
        self.weights.clear();
        self.weights.resize(self.taps * window.outputs as usize, 0);
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
                let center = (f64::from(pixel) + 0.5) * scale;
                let begin = (center - support * reach + 0.5).max(0.0) as usize;
                let end = ((center + support * reach + 0.5) as usize).min(inputs as usize);
                self.exact.clear();
                self.exact.extend((begin..end).map(|input| filter(((input as f64 - center + 0.5) / reach).abs())));
                let sum: f64 = self.exact.iter().sum();
                let rounded = |exact: f64| {
                    let half = if exact < 0.0 { -0.5 } else { 0.5 };
                    (exact / sum * f64::from(1 << FRACTION) + half) as i32
                };
                // Without the zeros at its ends.
                let zeros = self.exact.iter().take_while(|exact| rounded(**exact) == 0).count();
                let last = self.exact.iter().rposition(|exact| rounded(*exact) != 0);
                let kept = &self.exact[zeros..=last.expect("the nearest input has weight")];
                kept.iter().zip(&mut *weights).for_each(|(exact, weight)| *weight = rounded(*exact));
                (begin + zeros, kept.len())
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
        8 * self.weights.capacity() + 4 * self.first.capacity() + 8 * self.exact.capacity()
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
}

impl Axes {
    /// None as yet.
    pub fn new(level: Level) -> Self {
        Self { level, places: (0..AXES).map(|_| (None, Axis::default())).collect() }
    }

    /// The axes of two keys, which have places of their own.
    pub fn get(&mut self, across: &Key, down: &Key) -> (&Axis, &Axis) {
        let (of_rows, of_columns) = self.places.split_at_mut(AXES / 2);
        (Self::one(of_rows, across, self.level), Self::one(of_columns, down, self.level))
    }

    fn one<'a>(places: &'a mut [(Option<Key>, Axis)], key: &Key, level: Level) -> &'a Axis {
        let Key { inputs, eighths, window, .. } = *key;
        let mixed = [eighths, window.resized, window.start as u32, window.outputs, u32::from(window.flip)]
            .into_iter()
            .fold(inputs, |hash, part| (hash.rotate_left(5) ^ part).wrapping_mul(0x9E37_79B1));
        let place = (mixed >> 16) as usize % places.len();
        let (held, axis) = &mut places[place];
        if held.as_ref() != Some(key) {
            // Nothing half-built is found after a panic.
            *held = None;
            axis.build(key, level);
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
    }
}

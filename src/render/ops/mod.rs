//! Operations on u8 views (docs/spec/recipes.md#operations), to Pillow's bit.
//!
//! Operations that map each value by itself are lookup tables: neighbouring ones are composed, which is exact for bytes, and applied in one
//! pass. The rest are passes over planes, each compiled for every instruction set.

mod affine;
mod along;
mod blur;
mod color;
mod hue;
#[cfg(test)]
pub mod naive;
mod sampled;
mod table;
#[cfg(test)]
mod tests;
mod transpose;
mod warp;
#[cfg(target_arch = "x86_64")]
mod warp_vectors;

use super::level::Level;
use crate::operation::{Operation, Warping};
use crate::types::ImageSize;
use affine::Placement;
use table::{Histograms, Tables};

/// Applies operations; one thread's scratch, reused from view to view.
pub struct Operator {
    level: Level,
    /// A view before it is sharpened.
    before: Vec<u8>,
    blur: blur::Scratch,
    warp: warp::Scratch,
    tables: Tables,
}

impl Operator {
    /// An operator without scratch as yet.
    pub fn new(level: Level) -> Self {
        Self {
            level,
            before: Vec::new(),
            blur: blur::Scratch::default(),
            warp: warp::Scratch::default(),
            tables: Tables::IDENTITY,
        }
    }

    /// Applies `operations` in turn to `planes`, u8 `[3, H, W]`. Allocates nothing once its scratch is large enough.
    ///
    /// # Panics
    /// When `planes` has another length than `size.values()`.
    pub fn run(&mut self, operations: &[Operation], warping: &Warping, size: ImageSize, planes: &mut [u8]) {
        assert_eq!(planes.len(), size.values());
        // Of the planes as they are, before the tables.
        let mut histograms: Option<Histograms> = None;
        for &operation in operations {
            let factor = |factor: f64| factor as f32;
            match operation {
                Operation::Identity => {}
                Operation::Invert => self.tables.then(|value| 255 - value),
                Operation::Brightness(f) => self.tables.then(|value| color::blend(0, value, factor(f))),
                Operation::Posterize(bits) => {
                    let mask = !((1_u32 << (8 - u32::from(bits.min(8)))) - 1) as u8;
                    self.tables.then(|value| value & mask);
                }
                Operation::Solarize(threshold) => {
                    self.tables.then(|value| if f64::from(value) < threshold { value } else { 255 - value });
                }
                Operation::SolarizeAdd(add) => {
                    self.tables.then(|value| if value < 128 { value.saturating_add(add) } else { value });
                }
                Operation::AutoContrast | Operation::Equalize => {
                    let counted = histograms.get_or_insert_with(|| Histograms::of(planes));
                    let counts = counted.through(&self.tables);
                    match operation {
                        Operation::Equalize => self.tables.equalize(&counts),
                        _ => self.tables.stretch(&counts),
                    }
                }
                Operation::Contrast(f) => {
                    self.flush(planes, &mut histograms);
                    let mean = color::mean_luma(self.level, planes);
                    self.tables.then(|value| color::blend(mean, value, factor(f)));
                }
                Operation::Saturation(1.0) | Operation::Sharpness(1.0) => {}
                _ => {
                    self.flush(planes, &mut histograms);
                    histograms = None;
                    self.pass(operation, warping, size, planes);
                }
            }
        }
        self.flush(planes, &mut histograms);
    }

    /// Applies an operation that is no table.
    fn pass(&mut self, operation: Operation, warping: &Warping, size: ImageSize, planes: &mut [u8]) {
        match operation {
            Operation::Grayscale => color::grayscale(self.level, planes),
            Operation::Saturation(f) => color::saturate(self.level, planes, f as f32),
            Operation::Hue(f) => hue::turn(self.level, planes, (f * 255.0).trunc() as i32 as u8),
            Operation::Sharpness(f) => {
                self.before.clear();
                self.before.extend_from_slice(planes);
                color::sharpen(self.level, &self.before, size, f as f32, planes);
            }
            Operation::GaussianBlur(sigma) => blur::gaussian(self.level, sigma, size, planes, &mut self.blur),
            warped => {
                let placement = Placement::of(warped, size);
                warp::warp(self.level, &placement, warping, size, planes, &mut self.warp);
            }
        }
    }

    /// Applies what the tables have gathered.
    fn flush(&mut self, planes: &mut [u8], histograms: &mut Option<Histograms>) {
        if self.tables.apply(self.level, planes) {
            *histograms = None;
        }
        self.tables = Tables::IDENTITY;
    }

    /// Frees scratch above `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        if self.before.capacity() > bytes {
            self.before = Vec::new();
        }
        self.blur.shrink_to(bytes);
        self.warp.shrink_to(bytes);
    }
}

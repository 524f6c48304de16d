//! Rendering: from a decoded picture to a u8 `[3, H, W]` sample. Pure pixels: no threads, no randomness, no files.
//!
//! A view is made in two steps: a [`Renderer`] crops, resizes and flips, and an [`Operator`] applies operations to the result.
//!
//! A [`Geometry`] says which box of the picture is resized to what, and where the output lies in the result; a [`Renderer`] computes it.
//! Two separable passes do everything: crop, window, padding and flip only change which inputs an output of an axis reads
//! (`axis.rs`), so that none of them costs a pass of its own.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod axis;
mod copy;
mod each_level;
mod exact;
mod fast;
mod geometry;
#[cfg(test)]
mod golden;
mod level;
mod loader;
#[cfg(test)]
mod naive;
mod ops;
mod resize;
mod view;
mod weights;
mod window;

pub use geometry::Geometry;
pub use level::Level;
pub use loader::{LoadOptions, Loader, SCRATCH_BYTES_MAX, SourceSize};
pub use ops::Operator;
pub use resize::{Renderer, ResizeKind};
pub use view::{ViewMaker, ViewSteps};

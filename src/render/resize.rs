//! The renderer: chooses between copying, the exact resize and fast_image_resize.

use super::axis::Key;
use super::copy::copy;
use super::exact::Exact;
use super::fast::Fast;
use super::geometry::Geometry;
use super::level::Level;
use crate::decode::Picture;
use crate::types::{ImageSize, ParseError, named};
use std::fmt;
use std::str::FromStr;

/// Which resize.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ResizeKind {
    /// Pillow's pixels to the bit (docs/spec/pixels.md#resize).
    #[default]
    Exact,
    /// fast_image_resize: 16-bit weights, within 2 levels of Pillow for bilinear. Bicubic centre crops are exact.
    Fast,
}
named!(ResizeKind, "resize", "exact or fast", Exact = "exact", Fast = "fast");

/// Renders pictures; one thread's scratch, reused from picture to picture.
pub struct Renderer {
    kind: ResizeKind,
    level: Level,
    exact: Exact,
    fast: Fast,
}

impl Renderer {
    /// A renderer with the best instruction set that the machine has.
    pub fn new(kind: ResizeKind) -> Self {
        Self::with_level(kind, Level::best())
    }

    /// A renderer with an instruction set.
    ///
    /// # Panics
    /// When the machine lacks `level`.
    pub fn with_level(kind: ResizeKind, level: Level) -> Self {
        Self { kind, level, exact: Exact::new(level), fast: Fast::default() }
    }

    /// Renders `picture` to `size` as `geometry` says into the planes of `out`, u8 `[3, H, W]`; gray fills all three. Allocates nothing once its
    /// scratch is large enough.
    ///
    /// # Panics
    /// When `out` has another length than `size.values()`, or the geometry's source does not lie inside the picture.
    pub fn run(&mut self, picture: &Picture<'_>, geometry: &Geometry, size: ImageSize, out: &mut [u8]) {
        assert_eq!(out.len(), size.values());
        let source = geometry.source;
        // A negative place is beyond the picture, too.
        let picture = picture.crop(source.top as u32, source.left as u32, source.height, source.width);
        let key = |inputs, eighths, window| Key { inputs, eighths, window, interpolation: geometry.interpolation };
        let across = key(picture.width, picture.extent[0], geometry.across(size.width));
        let down = key(picture.height, picture.extent[1], geometry.down(size.height));
        if across.is_identity() && down.is_identity() {
            copy(&picture, (0, 0), &across.window, &down.window, self.level, out);
        } else {
            match self.kind {
                ResizeKind::Fast if Fast::supports(&across, &down) => {
                    self.fast.run(&picture, &across, &down, self.level, out);
                }
                ResizeKind::Exact | ResizeKind::Fast => self.exact.run(&picture, &across, &down, out),
            }
        }
        if picture.channels == 1 {
            let (first, rest) = out.split_at_mut(size.pixels());
            rest.chunks_exact_mut(size.pixels()).for_each(|other| other.copy_from_slice(first));
        }
    }

    /// Frees scratch above `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        self.exact.shrink_to(bytes);
        self.fast.shrink_to(bytes);
    }
}

//! A view of a picture: its pixels by a geometry, and the operations on them.

use super::{Geometry, Level, Operator, Renderer, ResizeKind};
use crate::decode::Picture;
use crate::operation::{Operations, Warping};
use crate::types::ImageSize;

/// All that is done to a picture to make a view of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ViewSteps {
    /// Which pixels, and how they are resized.
    pub geometry: Geometry,
    /// What is done to them afterwards.
    pub operations: Operations,
    /// How the warps among the operations sample.
    pub warping: Warping,
}

/// Makes views; one thread's scratch, reused from view to view.
pub struct ViewMaker {
    pub(super) renderer: Renderer,
    operator: Operator,
}

impl ViewMaker {
    /// A maker without scratch as yet.
    pub fn new(resize: ResizeKind) -> Self {
        let renderer = Renderer::new(resize);
        let operator = Operator::new(Level::best());
        Self { renderer, operator }
    }

    /// Makes a view of `picture` in `out`, u8 `[3, H, W]`.
    ///
    /// # Panics
    /// When `out` has another length than `size.values()`, or the geometry's source lies beyond the picture.
    pub fn run(&mut self, picture: &Picture<'_>, steps: &ViewSteps, size: ImageSize, out: &mut [u8]) {
        self.renderer.run(picture, &steps.geometry, size, out);
        self.operator.run(&steps.operations, &steps.warping, size, out);
    }

    /// Frees scratch above `bytes`.
    pub(super) fn shrink_to(&mut self, bytes: usize) {
        self.renderer.shrink_to(bytes);
        self.operator.shrink_to(bytes);
    }
}

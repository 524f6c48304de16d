//! What a batch is: the fields every consumer sees, wherever the bytes lie.

use crate::types::{Dtype, ImageSize, Layout, SampleId};

/// A view of one finished batch, in a slot of the ring or in memory of its own.
///
/// Every slice but `x` has [`BatchView::len`] elements.
/// `x = λ·norm(own) + (1−λ)·norm(partner)`; loss `= reduce(λ·L(ŷ, label_a) + (1−λ)·L(ŷ, label_b))`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchView<'a> {
    /// The images: `len` × 3 × H × W elements of `dtype` in `layout`, native byte order, 64-byte aligned.
    pub x: &'a [u8],
    /// Element type of `x`.
    pub dtype: Dtype,
    /// Order of the axes of `x`.
    pub layout: Layout,
    /// Height and width of the images.
    pub image_size: ImageSize,
    /// Class of each row's own image.
    pub label_a: &'a [i64],
    /// Class of each row's partner; equal to `label_a` where nothing is mixed.
    pub label_b: &'a [i64],
    /// Weight of each row's own image, in [0.5, 1] when folded; 1 where nothing is mixed.
    pub lambda: &'a [f32],
    /// Row of each row's partner in this batch; -1 where the partner comes from elsewhere.
    pub partner: &'a [i32],
    /// Each row's sample.
    pub sample_id: &'a [SampleId],
    /// Each row's partner's sample.
    pub partner_id: &'a [SampleId],
    /// Epoch, from 0.
    pub epoch: u64,
    /// Position in the epoch, from 0.
    pub index: u64,
    /// Batches in each epoch.
    pub batches: u64,
    /// Rows at the batch's end that repeat the head of the permutation so that all ranks have equal counts.
    pub pad: u32,
    /// xxh3 over the plan fields and `x`; 0 when the feed makes no digests.
    pub digest: u64,
}

impl BatchView<'_> {
    /// Rows in use: the last batch of an epoch may be short.
    pub fn len(&self) -> usize {
        self.label_a.len()
    }

    /// Whether the batch has no rows; no feed delivers such a batch.
    pub fn is_empty(&self) -> bool {
        self.label_a.is_empty()
    }

    /// Shape of `x`: `[B, 3, H, W]` or `[B, H, W, 3]`.
    pub fn shape(&self) -> [usize; 4] {
        let (height, width) = (self.image_size.height as usize, self.image_size.width as usize);
        match self.layout {
            Layout::Nchw => [self.len(), 3, height, width],
            Layout::Nhwc => [self.len(), height, width, 3],
        }
    }

    /// Whether this is the last batch of its epoch.
    pub fn ends_epoch(&self) -> bool {
        self.index + 1 == self.batches
    }
}

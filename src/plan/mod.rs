//! Plans: what makes each batch, as data. A plan is a pure function of the feed spec and the numbers of samples and shards; it is printed by
//! `mixd plan`, carried to the threads that decode, render and mix, and reaches the trainer as the batch's columns.

mod erasure;
mod operations;
mod order;
mod sampler;
mod view;

pub use erasure::Erasure;
pub use order::{Numbering, Windows};
pub use sampler::{Epoch, Sampler};
pub use view::{Draws, ViewPlan};

use crate::batch::Head;
use crate::columns::OwnedColumns;
use crate::types::{CropBox, Cut, ImageSize, Place, SampleId};

/// One batch before any pixel is touched.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The batch's place.
    pub place: Place,
    /// Batches in each epoch.
    pub batches: u64,
    /// Rows at the end that repeat the head of the permutation.
    pub pad: u32,
    /// Height and width of its views.
    pub image_size: ImageSize,
    /// The rows.
    pub rows: Vec<RowPlan>,
}

/// One row of a batch: two images, and how they become one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowPlan {
    /// The own image.
    pub own: ImagePlan,
    /// The partner; the own image where nothing is mixed. A partner from this batch is shown as in its own row.
    pub partner: ImagePlan,
    /// Row of the partner in this batch; -1 where it comes from elsewhere.
    pub partner_row: i32,
    /// How they are mixed.
    pub mix: RowMix,
}

/// A sample, and the view of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ImagePlan {
    /// Which sample.
    pub sample: SampleId,
    /// What is shown of it.
    pub view: ViewPlan,
}

/// How a row's two images are mixed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RowMix {
    /// Not at all: the own image.
    Alone,
    /// `lambda` · own + (1 − `lambda`) · partner.
    Mixup {
        /// Weight of the own image, in [0, 1].
        lambda: f32,
    },
    /// The partner inside a box, the own image outside.
    CutMix {
        /// The box.
        cut: Cut,
        /// Share of the image outside the box.
        share: f32,
    },
}

impl RowMix {
    /// Weight of the own image in the row's label.
    pub const fn lambda(self) -> f32 {
        match self {
            Self::Alone => 1.0,
            Self::Mixup { lambda } => lambda,
            Self::CutMix { share, .. } => share,
        }
    }

    /// Weight of the own image in every pixel outside the box.
    pub const fn pixel_weight(self) -> f32 {
        match self {
            Self::Mixup { lambda } => lambda,
            Self::Alone | Self::CutMix { .. } => 1.0,
        }
    }

    /// The box that shows the partner.
    pub const fn cut(self) -> Option<Cut> {
        match self {
            Self::CutMix { cut, .. } => Some(cut),
            Self::Alone | Self::Mixup { .. } => None,
        }
    }
}

impl Plan {
    /// How many rows the batch has.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether it has none; no sampler plans such a batch.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// A value of each row.
    pub fn each<T>(&self, of: impl Fn(&RowPlan) -> T) -> Vec<T> {
        self.rows.iter().map(of).collect()
    }

    /// The own samples.
    pub fn own(&self) -> Vec<SampleId> {
        self.each(|row| row.own.sample)
    }

    /// The partners' samples.
    pub fn partners(&self) -> Vec<SampleId> {
        self.each(|row| row.partner.sample)
    }

    /// The partners' rows.
    pub fn partner_rows(&self) -> Vec<i32> {
        self.each(|row| row.partner_row)
    }

    /// Weights of the own images in the labels.
    pub fn lambdas(&self) -> Vec<f32> {
        self.each(|row| row.mix.lambda())
    }

    /// Whether any partner is not one of the batch's own images.
    pub fn takes_others(&self) -> bool {
        self.rows.iter().any(|row| row.partner_row < 0)
    }

    /// Place, and which columns a digest covers: all of them where views are rendered for each use.
    pub fn head(&self) -> Head {
        let Self { place: Place { epoch, index }, batches, pad, image_size: _, ref rows } = *self;
        let digest_version = if rows.iter().any(|row| row.own.view.draws.is_some()) { 2 } else { 1 };
        Head { epoch, index, batches, pad, digest_version, digest: 0 }
    }

    /// Fills the columns that trainers see: `label` gives a sample's class, `crop` the box of a row's own image.
    pub fn fill(&self, columns: &mut OwnedColumns, label: impl Fn(SampleId) -> i64, crop: impl Fn(usize) -> CropBox) {
        // Without the ..: a column that is forgotten here does not compile.
        let OwnedColumns { label_a, label_b, lambda, partner, sample_id, partner_id, crop: crops, cut, flip } = columns;
        fill(label_a, self, |_, row| label(row.own.sample));
        let of_row = |row: &RowPlan| usize::try_from(row.partner_row).ok().map(|row| label_a[row]);
        fill(label_b, self, |_, row| of_row(row).unwrap_or_else(|| label(row.partner.sample)));
        fill(lambda, self, |_, row| row.mix.lambda());
        fill(partner, self, |_, row| row.partner_row);
        fill(sample_id, self, |_, row| row.own.sample);
        fill(partner_id, self, |_, row| row.partner.sample);
        fill(crops, self, |at, _| {
            let CropBox { top, left, height, width } = crop(at);
            [top, left, height as i32, width as i32]
        });
        fill(cut, self, |_, row| {
            let Cut { top, bottom, left, right } = row.mix.cut().unwrap_or_default();
            [top, left, bottom - top, right - left].map(|side| side as i32)
        });
        fill(flip, self, |_, row| row.own.view.flip.into());
    }
}

fn fill<T>(column: &mut Vec<T>, plan: &Plan, of: impl Fn(usize, &RowPlan) -> T) {
    column.clear();
    column.extend(plan.rows.iter().enumerate().map(|(at, row)| of(at, row)));
}

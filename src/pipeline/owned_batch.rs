//! A batch mixed into memory of its own, for commands that look at one.

use super::FeedError;
use super::mix_stage::{MixStage, view};
use super::request::Pending;
use crate::batch::{BatchView, Head};
use crate::columns::OwnedColumns;
use crate::mix::Target;
use crate::plan::Plan;
use crate::spec::FeedSpec;

/// A batch in memory of its own.
pub struct OwnedBatch {
    spec: FeedSpec,
    /// What was made, with substitutes in place.
    pub plan: Plan,
    head: Head,
    columns: OwnedColumns,
    x: Vec<u128>,
    x_bytes: usize,
    /// The own images' views before they were normalised and mixed: u8 `[B, 3, H, W]`.
    pub views: Vec<u8>,
    /// The names of the own samples in the source.
    pub names: Vec<String>,
}

impl OwnedBatch {
    /// Mixes a requested batch.
    pub(super) fn mix(stage: &mut MixStage, mut pending: Pending) -> Result<Self, FeedError> {
        stage.wait_for_samples(&mut pending)?;
        let spec = *stage.spec();
        let x_bytes = pending.plan.len() * spec.format().sized(pending.plan.image_size).image_bytes();
        let (mut x, mut columns) = (vec![0_u128; x_bytes.div_ceil(16)], OwnedColumns::default());
        let target = Target::Memory(&mut bytemuck::cast_slice_mut(&mut x)[..x_bytes]);
        stage.mix(&pending, &mut || None, target, &mut columns, None)?;
        let head = stage.head(&pending.plan, columns.view(), &bytemuck::cast_slice(&x)[..x_bytes]);
        let views = stage.views(&pending);
        let plan = stage.recycle(pending);
        let shared = stage.shared();
        let names = plan.own().into_iter().map(|id| shared.source.name(spec.split, id)).collect();
        Ok(Self { spec, plan, head, columns, x, x_bytes, views, names })
    }

    /// The batch.
    pub fn view(&self) -> BatchView<'_> {
        view(
            &self.spec,
            self.plan.image_size,
            self.head,
            self.columns.view(),
            &bytemuck::cast_slice(&self.x)[..self.x_bytes],
        )
    }
}

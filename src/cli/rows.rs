//! The views of a batch as JSON, which `plan --json` prints and `replay` writes (docs/spec/recipes.md).

use crate::decode::{Decoder, ExifOrientation};
use crate::pipeline::Views;
use crate::plan::ImagePlan;
use crate::source::Source;
use crate::spec::{Crop, EraseMode, FeedSpec};
use crate::types::{CropBox, ImageSize, SampleId};
use anyhow::Context;
use serde_json::{Value, json};

/// Whether a feed's views are more than squashed images, so that its plans and replays name them.
pub fn has_views(spec: &FeedSpec) -> bool {
    spec.crop != Crop::Squash || spec.draws_views()
}

/// A view as an object: its crop as drawn or, where the box is known, in pixels of the decoded image; its flip, its operations and its erased
/// boxes, with the bits that noise in them is made of.
pub fn view(spec: &FeedSpec, size: ImageSize, image: &ImagePlan, cut: Option<CropBox>) -> Value {
    let crop = match (cut, image.view.draws.filter(|_| spec.crop.is_random()), spec.crop) {
        (Some(CropBox { top, left, height, width }), ..) => json!([top, left, height, width]),
        (None, Some(draw), Crop::RandomResizedCrop { scale, ratio }) => {
            let attempts: Vec<_> = draw.attempts(scale, ratio).map(|(area, ratio)| json!([area, ratio])).collect();
            json!({ "attempts": attempts, "place": draw.place() })
        }
        (None, Some(draw), _) => json!({ "place": draw.place() }),
        (None, None, crop) => json!(crop),
    };
    let (operations, erasure) = (image.view.operations(&spec.augment, size), image.view.erasure(&spec.erase, size));
    let boxes = erasure.iter().flat_map(|erasure| erasure.boxes());
    let erased: Vec<_> = boxes.map(|cut| [cut.top, cut.left, cut.bottom - cut.top, cut.right - cut.left]).collect();
    let mut view = json!({ "crop": crop, "flip": image.view.flip, "ops": operations[..], "erase": erased });
    if let Some(erasure) = erasure.filter(|erasure| erasure.mode != EraseMode::Const) {
        view["noise"] = json!(erasure.key);
    }
    view
}

/// Sizes of decoded images, from their headers.
pub struct Headers<'a> {
    source: &'a dyn Source,
    exif: ExifOrientation,
    bytes: Vec<u8>,
}

impl<'a> Headers<'a> {
    /// Of this source's images, turned as they are to be.
    pub fn of(source: &'a dyn Source, exif: ExifOrientation) -> Self {
        Self { source, exif, bytes: Vec::new() }
    }

    /// The size of a sample's image.
    ///
    /// # Errors
    /// When it cannot be read, or its header makes no sense.
    pub fn size(&mut self, spec: &FeedSpec, sample: SampleId) -> anyhow::Result<ImageSize> {
        let name = || self.source.name(spec.split, sample);
        self.source.read_waiting(spec.split, sample, &mut self.bytes).with_context(name)?;
        Decoder::size(&self.bytes, self.exif).with_context(name)
    }

    /// The box of a sample's image that a view shows.
    ///
    /// # Errors
    /// As [`Headers::size`].
    pub fn crop(&mut self, spec: &FeedSpec, image: &ImagePlan) -> anyhow::Result<CropBox> {
        Ok(Views::of(spec).crop_box(&image.view, self.size(spec, image.sample)?))
    }
}

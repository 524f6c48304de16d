//! From what a feed asks and a plan draws to the steps that make a view, once an image's size is known.

use crate::plan::ViewPlan;
use crate::render::{Geometry, ViewSteps};
use crate::spec::{Augment, Crop, FeedSpec};
use crate::types::{CropBox, ImageSize, Interpolation};

/// How the images of a feed become views.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Views {
    /// What part of an image.
    pub crop: Crop,
    /// Filter of the resize.
    pub interpolation: Interpolation,
    /// Height and width of a view.
    pub size: ImageSize,
    /// What is done to a view after crop and flip.
    pub augment: Augment,
}

impl Views {
    /// Those that a spec asks for.
    pub fn of(spec: &FeedSpec) -> Self {
        let FeedSpec { crop, interpolation, image_size: size, augment, .. } = *spec;
        // Stages that are off are no difference.
        let augment = if augment.is_on() { augment } else { Augment::default() };
        Self { crop, interpolation, size, augment }
    }

    /// Whether each use of an image has a view of its own. Others are stored finished; flips of these are the mixer's.
    pub fn are_random(&self) -> bool {
        self.crop.is_random() || self.augment.is_on()
    }

    /// The fewest pixels of each side from which a view that is stored finished can be made.
    pub fn at_least(&self) -> ImageSize {
        match self.crop {
            Crop::SquashCenter { resize } | Crop::ShortCenter { resize } => ImageSize::square(resize),
            _ => self.size,
        }
    }

    /// The view of an image of this size that is the same for every use, without its flip.
    ///
    /// # Panics
    /// When the crop is random.
    pub fn fixed(&self, image: ImageSize) -> Geometry {
        let Self { crop, interpolation, size, augment: _ } = *self;
        match crop {
            Crop::Squash => Geometry::squash(image, size, interpolation),
            Crop::SquashCenter { resize } => {
                Geometry::squash_center(image, ImageSize::square(resize), size, interpolation)
            }
            Crop::ShortCenter { resize } => Geometry::short_center(image, resize, size, interpolation),
            Crop::RandomResizedCrop { .. } | Crop::PadCrop { .. } => unreachable!("{crop} depends on chance"),
        }
    }

    /// The view that a plan draws of an image of this size.
    ///
    /// # Panics
    /// When views are random and the plan has no draws.
    pub fn random(&self, view: &ViewPlan, image: ImageSize) -> ViewSteps {
        let Self { crop, interpolation, size, ref augment } = *self;
        let cut = self.crop_box(view, image);
        let geometry = match crop {
            Crop::PadCrop { pad, mode } => {
                let place = |at: i32| (at + pad as i32).max(0) as u32;
                Geometry::pad_crop(image, pad, mode, place(cut.top), place(cut.left), size)
            }
            Crop::RandomResizedCrop { .. } => Geometry::resized_crop(cut, size, interpolation),
            Crop::Squash | Crop::SquashCenter { .. } | Crop::ShortCenter { .. } => self.fixed(image),
        };
        let operations = view.operations(augment, size);
        ViewSteps { geometry: geometry.flipped(view.flip), operations, warping: augment.warping }
    }

    /// The region of an image of this size that the plans' views read; `None` where they read all of it.
    ///
    /// # Panics
    /// When the crop is random and a plan has no draws.
    pub fn region(&self, plans: impl Iterator<Item = ViewPlan>, image: ImageSize) -> Option<CropBox> {
        // A padded crop may reflect any row and column.
        let is_crop = matches!(self.crop, Crop::RandomResizedCrop { .. });
        plans.filter(|_| is_crop).map(|plan| self.crop_box(&plan, image)).reduce(CropBox::union)
    }

    /// The box of an image of this size that a view shows: what a random crop draws, all of the image otherwise.
    ///
    /// # Panics
    /// When the crop is random and the plan has no draws.
    pub fn crop_box(&self, view: &ViewPlan, image: ImageSize) -> CropBox {
        if self.crop.is_random() {
            view.draws.expect("random views have draws").resolve(self.crop, image, self.size)
        } else {
            CropBox { top: 0, left: 0, height: image.height, width: image.width }
        }
    }
}

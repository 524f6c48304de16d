//! The part of a plan that says what is shown of an image: random numbers that stand for a box until the image's size is known.

use super::erasure::Erasure;
use super::operations::operations;
use crate::operation::Operations;
use crate::rng::{self, Stream, uniform, up_to};
use crate::spec::{Augment, Crop, Erase};
use crate::types::{BATCH_BITS, CropBox, ImageSize, ROW_BITS};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;

/// What is shown of a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ViewPlan {
    /// Draws of its crop, its operations and its erased boxes; `None` where it is the same for every use, but for the flip.
    pub draws: Option<Draws>,
    /// Whether it is flipped horizontally.
    pub flip: bool,
}

impl ViewPlan {
    /// The operations on a view of this size.
    pub fn operations(&self, augment: &Augment, size: ImageSize) -> Operations {
        self.draws.map_or(Operations::NONE, |draws| draws.operations(augment, size))
    }

    /// What is erased of a view of this size; `None` where nothing is.
    pub fn erasure(&self, erase: &Erase, size: ImageSize) -> Option<Erasure> {
        self.draws.and_then(|draws| draws.erasure(erase, size))
    }
}

/// Attempts of a random resized crop before the centre is taken (torchvision).
const ATTEMPTS: usize = 10;

/// The draws of one view, by where their generators stand: they are made when they are asked for, by whoever renders or mixes the view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draws {
    seed: u64,
    epoch: u64,
    batch: u32,
    /// Counted over all ranks.
    row: u32,
    /// Whether it is of an image of a second batch.
    second: bool,
    /// Which of its sample's views it is, and how many these are.
    view: u8,
    views: u8,
}

/// Blocks of a row that the draws of feeds with one more view of each sample begin later: more than any view takes of a stream.
const BLOCKS_OF_VIEWS: u32 = 1 << 7;
/// Blocks of a row after which those of a second batch's image begin, in streams after the crop's.
const BLOCKS_OF_SECOND: u32 = 1 << 15;

/// Where a row's blocks begin in a feed with `views` views of each sample: so that feeds of one seed and different views share no draw.
pub(super) fn first_block(views: u32) -> u32 {
    (views - 1) * BLOCKS_OF_VIEWS
}

/// Random bits of a crop, 32 for each number, in the order in which they are drawn; always as many, whatever comes of them.
struct Words {
    /// For each attempt its area and its aspect ratio.
    attempts: [[u32; 2]; ATTEMPTS],
    /// The place: from the top, from the left.
    place: [u32; 2],
}

/// What the words of a crop's attempts say: shares of the area, each with its aspect ratio.
fn attempts(words: [[u32; 2]; ATTEMPTS], scale: [f64; 2], ratio: [f64; 2]) -> impl Iterator<Item = (f64, f64)> {
    let log = ratio.map(f64::ln);
    let between = |[low, high]: [f64; 2], bits| low + (high - low) * uniform(bits);
    words.into_iter().map(move |[area, aspect]| (between(scale, area), between(log, aspect).exp()))
}

impl Draws {
    /// The draws of a row's own image, or of its image of a second batch.
    ///
    /// # Panics
    /// When batch or row exceed their bits ([`rng::at`]).
    pub fn at(seed: u64, second: bool, epoch: u64, batch: u64, row: u64) -> Self {
        assert!(batch >> BATCH_BITS == 0 && row >> ROW_BITS == 0, "place out of range");
        Self { seed, epoch, batch: batch as u32, row: row as u32, second, view: 0, views: 1 }
    }

    /// The same of view `view` of a sample's `views`.
    pub fn of_view(self, view: u32, views: u32) -> Self {
        Self { view: view as u8, views: views as u8, ..self }
    }

    fn at_stream(&self, stream: Stream) -> ChaCha8Rng {
        let mut rng = rng::at(self.seed, stream, self.epoch, self.batch.into(), self.row.into());
        rng::skip_blocks(&mut rng, first_block(self.views.into()));
        rng
    }

    /// The generator of a stage after the crop; images of a second batch have the upper half of their row's blocks.
    fn generator(&self, stream: Stream) -> ChaCha8Rng {
        let mut rng = self.at_stream(stream);
        if self.second {
            rng::skip_blocks(&mut rng, BLOCKS_OF_SECOND);
        }
        rng
    }

    /// The operations on a view of this size.
    pub fn operations(&self, augment: &Augment, size: ImageSize) -> Operations {
        operations(&augment.of_view(self.view.into()), size, |stream| self.generator(stream))
    }

    /// What is erased of a view of this size; `None` where nothing is.
    pub fn erasure(&self, erase: &Erase, size: ImageSize) -> Option<Erasure> {
        if erase.prob > 0.0 { Erasure::draw(erase, size, self.generator(Stream::Erase)) } else { None }
    }

    fn words(&self) -> Words {
        let mut rng = self.at_stream(if self.second { Stream::SecondCrop } else { Stream::Crop });
        let mut pair = || [rng.next_u32(), rng.next_u32()];
        Words { attempts: std::array::from_fn(|_| pair()), place: pair() }
    }

    /// Shares of the image's area that the attempts ask for, each with its aspect ratio (width over height).
    pub fn attempts(&self, scale: [f64; 2], ratio: [f64; 2]) -> impl Iterator<Item = (f64, f64)> {
        attempts(self.words().attempts, scale, ratio)
    }

    /// The place of the box, as shares of the room that it has: from the top, from the left.
    pub fn place(&self) -> [f64; 2] {
        self.words().place.map(uniform)
    }

    /// The box in an image of this size, for a view of `size` (docs/spec/recipes.md, Crops). Beyond the image where it is padded.
    ///
    /// # Panics
    /// When the crop does not depend on chance.
    pub fn resolve(&self, crop: Crop, image: ImageSize, size: ImageSize) -> CropBox {
        let ImageSize { height, width } = image;
        let words = self.words();
        match crop {
            Crop::RandomResizedCrop { scale, ratio } => {
                let (width_f, height_f) = (f64::from(width), f64::from(height));
                for (share, aspect) in attempts(words.attempts, scale, ratio) {
                    let area = width_f * height_f * share;
                    let w = (area * aspect).sqrt().round_ties_even();
                    let h = (area / aspect).sqrt().round_ties_even();
                    if w > 0.0 && w <= width_f && h > 0.0 && h <= height_f {
                        let (h, w) = (h as u32, w as u32);
                        let (top, left) = (up_to(words.place[0], height - h), up_to(words.place[1], width - w));
                        return CropBox { top: top as i32, left: left as i32, height: h, width: w };
                    }
                }
                // The largest box in the middle whose aspect ratio is allowed.
                let aspect = width_f / height_f;
                let (h, w) = if aspect < ratio[0] {
                    ((width_f / ratio[0]).round_ties_even() as u32, width)
                } else if aspect > ratio[1] {
                    (height, (height_f * ratio[1]).round_ties_even() as u32)
                } else {
                    (height, width)
                };
                let (h, w) = (h.clamp(1, height), w.clamp(1, width));
                CropBox { top: ((height - h) / 2) as i32, left: ((width - w) / 2) as i32, height: h, width: w }
            }
            Crop::PadCrop { pad, .. } => {
                // One that is too small even when padded is centred.
                let place = |bits, side: u32, of: u32| {
                    let padded = side + 2 * pad;
                    if padded < of { -(((of - side) / 2) as i32) } else { up_to(bits, padded - of) as i32 - pad as i32 }
                };
                CropBox {
                    top: place(words.place[0], height, size.height),
                    left: place(words.place[1], width, size.width),
                    height: size.height,
                    width: size.width,
                }
            }
            Crop::Squash | Crop::SquashCenter { .. } | Crop::ShortCenter { .. } => {
                unreachable!("{crop} does not depend on chance")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::PadMode;
    use proptest::prelude::*;
    use safetensors::SafeTensors;

    fn draws(count: u64) -> impl Iterator<Item = Draws> {
        (0..count).map(|row| Draws::at(5, false, row >> 16, 0, row & 0xFFFF))
    }

    proptest! {
        #[test]
        fn boxes_lie_in_the_image_or_its_padding(width in 1_u32..2_000, height in 1_u32..2_000, seed: u64, pad in 0_u32..20, side in 1_u32..64) {
            let image = ImageSize { height, width };
            let draw = Draws::at(seed, false, 0, 0, 0);
            let cut = draw.resolve(Crop::RANDOM_RESIZED, image, ImageSize::square(9));
            prop_assert!(cut.top >= 0 && cut.left >= 0 && cut.height > 0 && cut.width > 0);
            prop_assert!(cut.top as u32 + cut.height <= height && cut.left as u32 + cut.width <= width);
            let crop = Crop::PadCrop { pad, mode: PadMode::Constant };
            let cut = draw.resolve(crop, image, ImageSize::square(side));
            prop_assert_eq!((cut.height, cut.width), (side, side));
            for (at, of) in [(cut.top, height), (cut.left, width)] {
                if of + 2 * pad >= side {
                    prop_assert!(at >= -(pad as i32) && at + side as i32 <= (of + pad) as i32);
                }
            }
        }
    }

    /// Kolmogorov–Smirnov against quantiles of torchvision's own draws (docs/spec/golden.md).
    #[test]
    fn random_resized_crops_follow_torchvision_s_law() {
        let bytes = std::fs::read(crate::fixtures::golden().join("recipes/recipes.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        for (width, height) in [(160, 213), (250, 333), (802, 160)] {
            let image = ImageSize { height, width };
            let boxes: Vec<CropBox> =
                draws(60_000).map(|draw| draw.resolve(Crop::RANDOM_RESIZED, image, ImageSize::square(1))).collect();
            let of = |value: &dyn Fn(&CropBox) -> f64| boxes.iter().map(value).collect::<Vec<f64>>();
            let laws = [
                ("area", of(&|cut| f64::from(cut.width * cut.height) / f64::from(width * height))),
                ("aspect", of(&|cut| f64::from(cut.width) / f64::from(cut.height))),
                ("top", of(&|cut| f64::from(cut.top))),
                ("left", of(&|cut| f64::from(cut.left))),
            ];
            for (law, values) in laws {
                crate::fixtures::assert_law(&tensors, &format!("draw.resized_crop.{width}x{height}.{law}"), &values);
            }
        }
    }

    #[test]
    fn the_draws_of_a_row_are_pinned() {
        let draw = draws(1).next().unwrap();
        let cut = draw.resolve(Crop::RANDOM_RESIZED, ImageSize { height: 256, width: 341 }, ImageSize::square(224));
        assert_eq!(cut, PINNED);
    }
    const PINNED: CropBox = CropBox { top: 68, left: 178, height: 151, width: 163 };
}

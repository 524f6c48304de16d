//! The boxes of a view that are erased (docs/spec/recipes.md#erasing).

use crate::rng::{self, uniform, up_to};
use crate::spec::{Erase, EraseMode};
use crate::types::{Cut, ImageSize};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;

/// Attempts at each box before it is left out (torchvision).
const ATTEMPTS: usize = 10;

/// The erased boxes of one view, and what stands in them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Erasure {
    boxes: [Cut; Erase::COUNT_MAX as usize],
    len: usize,
    /// What stands in the boxes.
    pub mode: EraseMode,
    /// Random bits from which noise is made.
    pub key: u32,
}

impl Erasure {
    /// These boxes; where they overlap the last one counts.
    ///
    /// # Panics
    /// When there are more than [`Erase::COUNT_MAX`].
    pub fn new(boxes: &[Cut], mode: EraseMode, key: u32) -> Self {
        let mut all = [Cut::default(); Erase::COUNT_MAX as usize];
        all[..boxes.len()].copy_from_slice(boxes);
        Self { boxes: all, len: boxes.len(), mode, key }
    }

    /// What is erased of a view of this size; `None` where nothing is.
    pub(super) fn draw(erase: &Erase, size: ImageSize, mut rng: ChaCha8Rng) -> Option<Self> {
        let (happens, key) = (rng::chance(&mut rng, erase.prob), rng.next_u32());
        if !happens {
            return None;
        }
        let count = 1 + rng::below(&mut rng, erase.count);
        let mut drawn = Self::new(&[], erase.mode, key);
        for cut in (0..count).filter_map(|_| draw_box(erase, count, size, &mut rng)) {
            drawn.boxes[drawn.len] = cut;
            drawn.len += 1;
        }
        (drawn.len > 0).then_some(drawn)
    }

    /// The boxes, in the order in which they are erased.
    pub fn boxes(&self) -> &[Cut] {
        &self.boxes[..self.len]
    }
}

/// One of `count` boxes; `None` where none of the attempts fits.
fn draw_box(erase: &Erase, count: u32, ImageSize { height, width }: ImageSize, rng: &mut ChaCha8Rng) -> Option<Cut> {
    let pixels = f64::from(height) * f64::from(width);
    let mut between = |[low, high]: [f64; 2]| low + (high - low) * uniform(rng.next_u32());
    let log_ratio = erase.ratio.map(f64::ln);
    let (h, w) = (0..ATTEMPTS).find_map(|_| {
        let (area, ratio) = (pixels * between(erase.area) / f64::from(count), between(log_ratio).exp());
        let (h, w) = ((area * ratio).sqrt().round_ties_even(), (area / ratio).sqrt().round_ties_even());
        (h < f64::from(height) && w < f64::from(width)).then_some((h as u32, w as u32))
    })?;
    let (top, left) = (up_to(rng.next_u32(), height - h), up_to(rng.next_u32(), width - w));
    Some(Cut { top, bottom: top + h, left, right: left + w })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Draws;
    use safetensors::SafeTensors;

    const SIZE: ImageSize = ImageSize { height: 96, width: 128 };

    fn erasures(erase: Erase, count: u64) -> impl Iterator<Item = Option<Erasure>> {
        (0..count).map(move |row| Draws::at(5, false, row >> 16, 0, row & 0xFFFF).erasure(&erase, SIZE))
    }

    /// Kolmogorov–Smirnov against quantiles of torchvision's own draws (docs/spec/golden.md).
    #[test]
    fn boxes_follow_torchvision_s_law() {
        let bytes = std::fs::read(crate::fixtures::golden().join("recipes/recipes.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let boxes: Vec<Cut> =
            erasures(Erase::torchvision(1.0), 60_000).flatten().map(|erasure| erasure.boxes()[0]).collect();
        assert!(boxes.len() > 59_000);
        let [height, width] =
            [|cut: &Cut| f64::from(cut.bottom - cut.top), |cut: &Cut| f64::from(cut.right - cut.left)];
        let of = |value: &dyn Fn(&Cut) -> f64| boxes.iter().map(value).collect::<Vec<f64>>();
        let laws = [
            ("area", of(&|cut| cut.pixels() as f64 / SIZE.pixels() as f64)),
            ("aspect", of(&|cut| height(cut) / width(cut))),
            ("top", of(&|cut| f64::from(cut.top))),
            ("left", of(&|cut| f64::from(cut.left))),
        ];
        for (law, values) in laws {
            crate::fixtures::assert_law(&tensors, &format!("draw.erase.128x96.{law}"), &values);
        }
    }

    #[test]
    fn probability_count_and_area_are_those_asked_for() {
        let erase = Erase { prob: 0.25, count: 3, ..Erase::timm(0.25, EraseMode::Pixel) };
        let drawn: Vec<Erasure> = erasures(erase, 40_000).flatten().collect();
        assert!((9_700..10_300).contains(&drawn.len()), "{}", drawn.len());
        for count in 1..=3 {
            let of: Vec<&Erasure> = drawn.iter().filter(|erasure| erasure.boxes().len() == count).collect();
            assert!((3_050..3_620).contains(&of.len()), "{count} boxes: {}", of.len());
            let pixels: usize = of.iter().flat_map(|erasure| erasure.boxes()).map(|cut| cut.pixels()).sum();
            let share = pixels as f64 / (of.len() * SIZE.pixels()) as f64;
            // Over all boxes: the mean of U(0.02, 1/3), less what does not fit.
            assert!((0.16..0.18).contains(&share), "{count} boxes: {share}");
        }
        assert!(erasures(Erase::default(), 100).all(|erasure| erasure.is_none()));
    }

    #[test]
    fn a_second_batch_s_image_has_boxes_of_its_own() {
        let erase = Erase::torchvision(1.0);
        let [own, second] = [false, true].map(|second| Draws::at(5, second, 0, 0, 0).erasure(&erase, SIZE));
        assert!(own.is_some() && own != second);
    }
}

//! The operations that a row draws: its policy's, and those of the stages of color after it (docs/spec/recipes.md#policies).

use crate::operation::{Operation, Operations};
use crate::rng::{self, Stream, uniform};
use crate::spec::{Augment, Blur, ColorJitter, Policy, Solarize, TimmRand};
use crate::types::ImageSize;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;
use rand_distr::{Distribution, StandardNormal};

/// The operations of a view of this size, in the order in which they are applied; `generator` gives the row's generator of a stream.
pub(super) fn operations(augment: &Augment, size: ImageSize, generator: impl Fn(Stream) -> ChaCha8Rng) -> Operations {
    let Augment { policy, jitter, grayscale, blur, solarize, warping: _, later: _ } = *augment;
    let mut drawn = Operations::NONE;
    let dice = |stream| Dice(generator(stream));
    if policy != Policy::None {
        dice(Stream::Policy).policy(policy, size, &mut drawn);
    }
    if jitter.is_on() {
        dice(Stream::ColorJitter).jitter(&jitter, &mut drawn);
    }
    if grayscale > 0.0 && dice(Stream::Grayscale).chance(grayscale) {
        drawn.push(Operation::Grayscale);
    }
    let Blur { prob, sigma } = blur;
    if prob > 0.0 {
        let mut dice = dice(Stream::Blur);
        if dice.chance(prob) {
            drawn.push(Operation::GaussianBlur(dice.between(sigma)));
        }
    }
    let Solarize { prob, threshold } = solarize;
    if prob > 0.0 && dice(Stream::Solarize).chance(prob) {
        drawn.push(Operation::Solarize(threshold));
    }
    drawn
}

/// Random choices of a row.
struct Dice(ChaCha8Rng);

impl Dice {
    fn chance(&mut self, prob: f64) -> bool {
        rng::chance(&mut self.0, prob)
    }

    /// One of `0..count`.
    fn below(&mut self, count: usize) -> usize {
        rng::below(&mut self.0, count as u32) as usize
    }

    fn between(&mut self, [low, high]: [f64; 2]) -> f64 {
        low + (high - low) * uniform(self.0.next_u32())
    }

    /// The value, or as often its negative.
    fn signed(&mut self, value: f64) -> f64 {
        if self.chance(0.5) { -value } else { value }
    }

    fn policy(&mut self, policy: Policy, size: ImageSize, drawn: &mut Operations) {
        match policy {
            Policy::None => {}
            Policy::RandAugment { layers, magnitude } => {
                for _ in 0..layers {
                    let kind = FOURTEEN[self.below(14)];
                    drawn.push(self.of_torchvision(kind, &RAND_AUGMENT, [magnitude, 30], size));
                }
            }
            Policy::TrivialAugmentWide => {
                let magnitude = self.below(31) as u32;
                let kind = FOURTEEN[self.below(14)];
                drawn.push(self.of_torchvision(kind, &WIDE, [magnitude, 30], size));
            }
            Policy::AutoAugment => {
                for (kind, prob, bin) in AUTO_AUGMENT[self.below(AUTO_AUGMENT.len())] {
                    // Both are drawn, so that the second operation does not depend on the first.
                    let happens = self.chance(prob);
                    let operation = self.of_torchvision(kind, &RAND_AUGMENT, [bin.into(), 9], size);
                    if happens {
                        drawn.push(operation);
                    }
                }
            }
            Policy::Timm(timm) => {
                for _ in 0..timm.layers {
                    let (kind, happens) = (self.below(15), self.chance(timm.prob));
                    let operation = self.of_timm(kind, &timm, size);
                    if happens {
                        drawn.push(operation);
                    }
                }
            }
            Policy::ThreeAugment => drawn.push(match self.below(3) {
                0 => Operation::Grayscale,
                1 => Operation::Solarize(128.0),
                _ => Operation::GaussianBlur(self.between([0.1, 2.0])),
            }),
        }
    }

    /// An operation of torchvision's policies, at magnitude `bin`/`most`.
    fn of_torchvision(&mut self, kind: Kind, space: &Space, [bin, most]: [u32; 2], size: ImageSize) -> Operation {
        let magnitude = f64::from(bin) / f64::from(most);
        let Space { shear, translate, rotate, factor, bits } = *space;
        // Whole pixels, toward 0.
        let pixels = |side: u32| (translate.of(side) * magnitude).trunc();
        match kind {
            Kind::Identity => Operation::Identity,
            Kind::ShearX => Operation::ShearX(self.signed(shear * magnitude)),
            Kind::ShearY => Operation::ShearY(self.signed(shear * magnitude)),
            Kind::TranslateX => Operation::TranslateX(self.signed(pixels(size.width))),
            Kind::TranslateY => Operation::TranslateY(self.signed(pixels(size.height))),
            Kind::Rotate => Operation::Rotate(self.signed(rotate * magnitude)),
            Kind::Brightness => Operation::Brightness(1.0 + self.signed(factor * magnitude)),
            Kind::Color => Operation::Saturation(1.0 + self.signed(factor * magnitude)),
            Kind::Contrast => Operation::Contrast(1.0 + self.signed(factor * magnitude)),
            Kind::Sharpness => Operation::Sharpness(1.0 + self.signed(factor * magnitude)),
            Kind::Posterize => Operation::Posterize((8.0 - (magnitude * bits).round_ties_even()) as u8),
            // Exact where the threshold is a whole number, whose value is inverted.
            Kind::Solarize => Operation::Solarize(255.0 * f64::from(most - bin) / f64::from(most)),
            Kind::AutoContrast => Operation::AutoContrast,
            Kind::Equalize => Operation::Equalize,
            Kind::Invert => Operation::Invert,
        }
    }

    /// One of timm's operations.
    fn of_timm(&mut self, kind: usize, timm: &TimmRand, size: ImageSize) -> Operation {
        let noise: f64 = if timm.std > 0.0 { StandardNormal.sample(&mut self.0) } else { 0.0 };
        let level = (timm.magnitude + timm.std * noise).clamp(0.0, 10.0);
        let increasing = timm.increasing;
        let factor = |dice: &mut Self| match increasing {
            true => (1.0 + dice.signed(0.09 * level)).max(0.1),
            false => 0.1 + 0.18 * level,
        };
        let (bits, threshold) = ((0.4 * level).trunc(), (25.6 * level).trunc().min(256.0));
        match kind {
            0 => Operation::AutoContrast,
            1 => Operation::Equalize,
            2 => Operation::Invert,
            3 => Operation::Rotate(self.signed(3.0 * level)),
            4 => Operation::Posterize(if increasing { 4.0 - bits } else { bits } as u8),
            5 => Operation::Solarize(if increasing { 256.0 - threshold } else { threshold }),
            6 => Operation::SolarizeAdd((11.0 * level).trunc().min(128.0) as u8),
            7 => Operation::Saturation(factor(self)),
            8 => Operation::Contrast(factor(self)),
            9 => Operation::Brightness(factor(self)),
            10 => Operation::Sharpness(factor(self)),
            11 => Operation::ShearX(self.signed(0.03 * level)),
            12 => Operation::ShearY(self.signed(0.03 * level)),
            13 => Operation::TranslateX(self.signed(0.045 * level * f64::from(size.width))),
            _ => Operation::TranslateY(self.signed(0.045 * level * f64::from(size.height))),
        }
    }

    fn jitter(&mut self, jitter: &ColorJitter, drawn: &mut Operations) {
        let ColorJitter { brightness, contrast, saturation, hue, prob } = *jitter;
        let happens = self.chance(prob);
        let mut order = [0, 1, 2, 3];
        for last in (1..order.len()).rev() {
            let with = self.below(last + 1);
            order.swap(last, with);
        }
        let mut factor = |extent: f64| {
            let factor = self.between([(1.0 - extent).max(0.0), 1.0 + extent]);
            (extent > 0.0).then_some(factor)
        };
        let factors = [factor(brightness), factor(contrast), factor(saturation)];
        let turn = self.between([-hue, hue]);
        for nth in order.into_iter().filter(|_| happens) {
            let operation = match nth {
                0 => factors[0].map(Operation::Brightness),
                1 => factors[1].map(Operation::Contrast),
                2 => factors[2].map(Operation::Saturation),
                _ => (hue > 0.0).then_some(Operation::Hue(turn)),
            };
            operation.into_iter().for_each(|operation| drawn.push(operation));
        }
    }
}

/// The largest arguments of torchvision's policies, at magnitude 1.
struct Space {
    shear: f64,
    translate: Translate,
    /// Degrees.
    rotate: f64,
    /// Of a factor, from 1.
    factor: f64,
    /// That posterizing leaves out.
    bits: f64,
}

/// The largest translation.
#[derive(Clone, Copy)]
enum Translate {
    /// So many pixels.
    Pixels(f64),
    /// This share of the side.
    Share(f64),
}

impl Translate {
    fn of(self, side: u32) -> f64 {
        match self {
            Self::Pixels(pixels) => pixels,
            Self::Share(share) => share * f64::from(side),
        }
    }
}

const RAND_AUGMENT: Space =
    Space { shear: 0.3, translate: Translate::Share(150.0 / 331.0), rotate: 30.0, factor: 0.9, bits: 4.0 };
const WIDE: Space = Space { shear: 0.99, translate: Translate::Pixels(32.0), rotate: 135.0, factor: 0.99, bits: 6.0 };

/// The operations of torchvision's policies.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Identity,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    Brightness,
    Color,
    Contrast,
    Sharpness,
    Posterize,
    Solarize,
    AutoContrast,
    Equalize,
    Invert,
}

/// Those that RandAugment and TrivialAugmentWide share.
const FOURTEEN: [Kind; 14] = [
    Kind::Identity,
    Kind::ShearX,
    Kind::ShearY,
    Kind::TranslateX,
    Kind::TranslateY,
    Kind::Rotate,
    Kind::Brightness,
    Kind::Color,
    Kind::Contrast,
    Kind::Sharpness,
    Kind::Posterize,
    Kind::Solarize,
    Kind::AutoContrast,
    Kind::Equalize,
];

/// AutoAugment's pairs: operation, probability, magnitude in ninths (Cubuk et al. 2018, as torchvision has them).
const AUTO_AUGMENT: [[(Kind, f64, u8); 2]; 25] = {
    use Kind::{AutoContrast, Color, Contrast, Equalize, Invert, Posterize, Rotate, Sharpness, ShearX, Solarize};
    [
        [(Posterize, 0.4, 8), (Rotate, 0.6, 9)],
        [(Solarize, 0.6, 5), (AutoContrast, 0.6, 0)],
        [(Equalize, 0.8, 0), (Equalize, 0.6, 0)],
        [(Posterize, 0.6, 7), (Posterize, 0.6, 6)],
        [(Equalize, 0.4, 0), (Solarize, 0.2, 4)],
        [(Equalize, 0.4, 0), (Rotate, 0.8, 8)],
        [(Solarize, 0.6, 3), (Equalize, 0.6, 0)],
        [(Posterize, 0.8, 5), (Equalize, 1.0, 0)],
        [(Rotate, 0.2, 3), (Solarize, 0.6, 8)],
        [(Equalize, 0.6, 0), (Posterize, 0.4, 6)],
        [(Rotate, 0.8, 8), (Color, 0.4, 0)],
        [(Rotate, 0.4, 9), (Equalize, 0.6, 0)],
        [(Equalize, 0.0, 0), (Equalize, 0.8, 0)],
        [(Invert, 0.6, 0), (Equalize, 1.0, 0)],
        [(Color, 0.6, 4), (Contrast, 1.0, 8)],
        [(Rotate, 0.8, 8), (Color, 1.0, 2)],
        [(Color, 0.8, 8), (Solarize, 0.8, 7)],
        [(Sharpness, 0.4, 7), (Invert, 0.6, 0)],
        [(ShearX, 0.6, 5), (Equalize, 1.0, 0)],
        [(Color, 0.4, 0), (Equalize, 0.6, 0)],
        [(Equalize, 0.4, 0), (Solarize, 0.2, 4)],
        [(Solarize, 0.6, 5), (AutoContrast, 0.6, 0)],
        [(Invert, 0.6, 0), (Equalize, 1.0, 0)],
        [(Color, 0.6, 4), (Contrast, 1.0, 8)],
        [(Equalize, 0.8, 0), (Equalize, 0.6, 0)],
    ]
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const ROWS: u64 = 1_000_000;
    const SIZE: ImageSize = ImageSize { height: 160, width: 224 };

    /// How often each operation comes in a million rows, and its least and largest argument.
    fn drawn(augment: &Augment) -> BTreeMap<&'static str, (u32, f64, f64)> {
        let mut counts = BTreeMap::new();
        for row in 0..ROWS {
            for &operation in &*operations(augment, SIZE, |stream| rng::at(3, stream, 0, row >> 16, row & 0xFFFF)) {
                let argument = operation.argument().unwrap_or(0.0);
                let (count, least, largest) =
                    counts.entry(operation.name()).or_insert((0, f64::INFINITY, f64::NEG_INFINITY));
                (*count, *least, *largest) = (*count + 1, least.min(argument), largest.max(argument));
            }
        }
        counts
    }

    fn of(policy: &str) -> Augment {
        Augment { policy: policy.parse().unwrap(), ..Augment::default() }
    }

    /// That an operation comes with this share of all rows and within these bounds, both of which are reached but for `slack`.
    fn assert_law(policy: &str, expected: &[(&str, f64, f64, f64)], slack: f64) {
        let counts = drawn(&of(policy));
        assert_eq!(counts.keys().copied().collect::<Vec<_>>(), {
            let mut names: Vec<_> = expected.iter().map(|(name, ..)| *name).collect();
            names.sort_unstable();
            names
        });
        for &(name, share, low, high) in expected {
            let (count, least, largest) = counts[name];
            let (mean, found) = (share * ROWS as f64, f64::from(count));
            assert!((found - mean).abs() < 5.0 * mean.sqrt(), "{policy}: {name} comes {count} times, not {mean}");
            assert!(least >= low - 1e-9 && largest <= high + 1e-9, "{policy}: {name} in {least}..={largest}");
            let slack = slack * (high - low);
            assert!(
                least <= low + slack + 1e-9 && largest >= high - slack - 1e-9,
                "{policy}: {name} in {least}..={largest}"
            );
        }
    }

    #[test]
    fn rand_augment_draws_as_torchvision_does() {
        let n = 2.0 / 14.0;
        let pixels = |side: f64| (150.0 / 331.0 * side * 0.3).trunc();
        assert_law(
            "rand-augment",
            &[
                ("identity", n, 0.0, 0.0),
                ("shear_x", n, -0.09, 0.09),
                ("shear_y", n, -0.09, 0.09),
                ("translate_x", n, -pixels(224.0), pixels(224.0)),
                ("translate_y", n, -pixels(160.0), pixels(160.0)),
                ("rotate", n, -9.0, 9.0),
                ("brightness", n, 0.73, 1.27),
                ("saturation", n, 0.73, 1.27),
                ("contrast", n, 0.73, 1.27),
                ("sharpness", n, 0.73, 1.27),
                ("posterize", n, 7.0, 7.0),
                ("solarize", n, 178.5, 178.5),
                ("autocontrast", n, 0.0, 0.0),
                ("equalize", n, 0.0, 0.0),
            ],
            0.0,
        );
    }

    #[test]
    fn trivial_augment_draws_as_torchvision_does() {
        let n = 1.0 / 14.0;
        let factors = |name| (name, n, 0.01, 1.99);
        assert_law(
            "trivial-augment-wide",
            &[
                ("identity", n, 0.0, 0.0),
                ("shear_x", n, -0.99, 0.99),
                ("shear_y", n, -0.99, 0.99),
                ("translate_x", n, -32.0, 32.0),
                ("translate_y", n, -32.0, 32.0),
                ("rotate", n, -135.0, 135.0),
                factors("brightness"),
                factors("saturation"),
                factors("contrast"),
                factors("sharpness"),
                ("posterize", n, 2.0, 8.0),
                ("solarize", n, 0.0, 255.0),
                ("autocontrast", n, 0.0, 0.0),
                ("equalize", n, 0.0, 0.0),
            ],
            0.0,
        );
    }

    #[test]
    fn auto_augment_draws_as_torchvision_does() {
        let factor = |bin: f64| 0.9 * bin / 9.0;
        assert_law(
            "auto-augment",
            &[
                ("posterize", (0.4 + 0.6 + 0.6 + 0.8 + 0.4) / 25.0, 4.0, 6.0),
                ("rotate", (0.6 + 0.8 + 0.2 + 0.8 + 0.4 + 0.8) / 25.0, -30.0, 30.0),
                ("solarize", (0.6 + 0.2 + 0.6 + 0.6 + 0.8 + 0.2 + 0.6) / 25.0, 255.0 / 9.0, 255.0 * 6.0 / 9.0),
                ("autocontrast", 1.2 / 25.0, 0.0, 0.0),
                (
                    "equalize",
                    (1.4 + 0.4 + 0.4 + 0.6 + 1.0 + 0.6 + 0.6 + 0.8 + 1.0 + 1.0 + 0.6 + 0.4 + 1.0 + 1.4) / 25.0,
                    0.0,
                    0.0,
                ),
                ("invert", 1.8 / 25.0, 0.0, 0.0),
                ("saturation", (0.4 + 0.6 + 1.0 + 0.8 + 0.4 + 0.6) / 25.0, 1.0 - factor(8.0), 1.0 + factor(8.0)),
                ("contrast", 2.0 / 25.0, 1.0 - factor(8.0), 1.0 + factor(8.0)),
                ("sharpness", 0.4 / 25.0, 1.0 - factor(7.0), 1.0 + factor(7.0)),
                ("shear_x", 0.6 / 25.0, -0.3 * 5.0 / 9.0, 0.3 * 5.0 / 9.0),
            ],
            0.0,
        );
    }

    #[test]
    fn timm_s_strings_draw_as_timm_does() {
        let n = 2.0 * 0.5 / 15.0;
        let factors = |name| (name, n, 0.1, 1.9);
        let same = [
            ("autocontrast", n, 0.0, 0.0),
            ("equalize", n, 0.0, 0.0),
            ("invert", n, 0.0, 0.0),
            ("rotate", n, -30.0, 30.0),
            ("shear_x", n, -0.3, 0.3),
            ("shear_y", n, -0.3, 0.3),
            ("translate_x", n, -0.45 * 224.0, 0.45 * 224.0),
            ("translate_y", n, -0.45 * 160.0, 0.45 * 160.0),
        ];
        // A standard deviation of 5 reaches every level.
        let increasing = [
            ("posterize", n, 0.0, 4.0),
            ("solarize", n, 0.0, 256.0),
            ("solarize_add", n, 0.0, 110.0),
            factors("saturation"),
            factors("contrast"),
            factors("brightness"),
            factors("sharpness"),
        ];
        assert_law("rand-m5-mstd5-inc1", &[&same[..], &increasing[..]].concat(), 0.001);
        assert_law("rand-m5-mstd5", &[&same[..], &increasing[..]].concat(), 0.001);
        // A fixed level.
        let level = operations_of("rand-m9-n3-p1-inc1");
        assert!(level.iter().all(|drawn| drawn.len() == 3));
        let argument = |name| {
            let all = level.iter().flat_map(|drawn| drawn.iter().copied());
            let mut arguments: Vec<f64> =
                all.filter(|operation: &Operation| operation.name() == name).filter_map(Operation::argument).collect();
            arguments.sort_by(f64::total_cmp);
            arguments.dedup();
            arguments
        };
        assert_eq!(argument("posterize"), [1.0]);
        assert_eq!(argument("solarize"), [26.0]);
        assert_eq!(argument("solarize_add"), [99.0]);
        assert_eq!(argument("rotate"), [-27.0, 27.0]);
    }

    fn operations_of(policy: &str) -> Vec<Operations> {
        (0..2_000).map(|row| operations(&of(policy), SIZE, |stream| rng::at(1, stream, 0, 0, row))).collect()
    }

    #[test]
    fn three_augment_and_the_stages_draw_as_deit_and_dino_do() {
        let third = 1.0 / 3.0;
        assert_law(
            "3-augment",
            &[("grayscale", third, 0.0, 0.0), ("solarize", third, 128.0, 128.0), ("gaussian_blur", third, 0.1, 2.0)],
            0.001,
        );
        let dino = Augment {
            jitter: ColorJitter { brightness: 0.4, contrast: 0.4, saturation: 0.2, hue: 0.1, prob: 0.8 },
            grayscale: 0.2,
            blur: Blur { prob: 0.1, ..Blur::default() },
            solarize: Solarize { prob: 0.2, ..Solarize::default() },
            ..Augment::default()
        };
        let counts = drawn(&dino);
        let expected = [
            ("brightness", 0.8, 0.6, 1.4),
            ("contrast", 0.8, 0.6, 1.4),
            ("saturation", 0.8, 0.8, 1.2),
            ("hue", 0.8, -0.1, 0.1),
            ("grayscale", 0.2, 0.0, 0.0),
            ("gaussian_blur", 0.1, 0.1, 2.0),
            ("solarize", 0.2, 128.0, 128.0),
        ];
        for (name, share, low, high) in expected {
            let (count, least, largest) = counts[name];
            assert!((f64::from(count) - share * 1e6).abs() < 5_000.0, "{name}: {count}");
            assert!(least >= low && largest <= high && largest - least >= 0.999 * (high - low), "{name}");
        }
        // Each of the four comes first as often as the others.
        let mut first = BTreeMap::new();
        for row in 0..40_000 {
            let drawn = operations(&dino, SIZE, |stream| rng::at(9, stream, 0, 0, row));
            if drawn.first().is_some_and(|operation| {
                matches!(
                    operation,
                    Operation::Hue(_) | Operation::Brightness(_) | Operation::Contrast(_) | Operation::Saturation(_)
                )
            }) {
                *first.entry(drawn[0].name()).or_insert(0) += 1;
            }
        }
        assert!(first.len() == 4 && first.values().all(|&count: &i32| (count - 8_000).abs() < 450), "{first:?}");
    }
}

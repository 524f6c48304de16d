//! The oracle over random images and chains of operations, for every level.

use super::*;
use crate::operation::WarpFilter;
use crate::spec::Blur;
use proptest::prelude::*;

fn operation() -> impl Strategy<Value = Operation> {
    let factor = || prop_oneof![Just(0.0), Just(1.0), 0.0_f64..2.0, 0.0_f64..3.0];
    prop_oneof![
        prop::sample::select(vec![
            Operation::Identity,
            Operation::AutoContrast,
            Operation::Equalize,
            Operation::Invert,
            Operation::Grayscale,
        ]),
        factor().prop_map(Operation::Brightness),
        factor().prop_map(Operation::Contrast),
        factor().prop_map(Operation::Saturation),
        factor().prop_map(Operation::Sharpness),
        (-0.5_f64..=0.5).prop_map(Operation::Hue),
        (0_u8..=8).prop_map(Operation::Posterize),
        (-1.0_f64..260.0).prop_map(Operation::Solarize),
        (0_u8..=128).prop_map(Operation::SolarizeAdd),
        prop_oneof![4 => 0.0_f64..4.0, 1 => 0.0..=Blur::SIGMA_MAX].prop_map(Operation::GaussianBlur),
        warp(),
        warp(),
    ]
}

fn warp() -> impl Strategy<Value = Operation> {
    // Fifths move some rows by whole pixels.
    let shears = || prop_oneof![-2.0_f64..2.0, (-50_i32..=50).prop_map(|fifths| f64::from(fifths) / 5.0)];
    let pixels = || prop_oneof![-40.0_f64..40.0, (-160_i32..160).prop_map(|quarters| f64::from(quarters) / 4.0)];
    prop_oneof![
        (-400.0_f64..400.0).prop_map(Operation::Rotate),
        prop::sample::select(vec![0.0, 90.0, 180.0, 270.0, -90.0, 360.0, 45.0]).prop_map(Operation::Rotate),
        shears().prop_map(Operation::ShearX),
        shears().prop_map(Operation::ShearY),
        pixels().prop_map(Operation::TranslateX),
        pixels().prop_map(Operation::TranslateY),
    ]
}

prop_compose! {
    /// Images of noise, of few values, and smooth ones.
    fn image()(width in 1_u32..70, height in 1_u32..50, square: bool, kind in 0..4, seed: u32) -> (ImageSize, Vec<u8>) {
        let size = ImageSize { height: if square { width } else { height }, width };
        let value = |at: usize| {
            let noise = (at as u32 ^ seed).wrapping_mul(2_654_435_761).rotate_left(13).wrapping_mul(2_246_822_519) >> 24;
            match kind {
                0 => noise as u8,
                1 => 90 + noise as u8 % 7,
                2 => (at % width as usize * 3 + at / 50) as u8,
                _ => seed as u8,
            }
        };
        (size, (0..size.values()).map(value).collect())
    }
}

fn warping() -> impl Strategy<Value = Warping> {
    (prop::sample::select(WarpFilter::ALL), any::<[u8; 3]>()).prop_map(|(filter, fill)| Warping { filter, fill })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn operations_match_naive(
        cases in prop::collection::vec((image(), prop::collection::vec(operation(), 0..5), warping()), 1..4),
    ) {
        for level in Level::available() {
            // One operator for several images: nothing of one may show in the next.
            let mut operator = Operator::new(level);
            for ((size, planes), operations, warping) in &cases {
                let mut ours = planes.clone();
                operator.run(operations, warping, *size, &mut ours);
                let oracle = naive::apply(operations, warping, *size, planes);
                prop_assert!(ours == oracle, "{level:?}: {size} {operations:?} {warping:?}");
            }
        }
    }
}

/// Every colour.
#[test]
fn hues_match_naive() {
    let size = ImageSize { height: 256, width: 256 };
    for red in 0..=255_u8 {
        let plane = |of: fn(usize) -> u8| (0..size.pixels()).map(of).collect::<Vec<u8>>();
        let planes = [vec![red; size.pixels()], plane(|at| (at >> 8) as u8), plane(|at| at as u8)].concat();
        let operation = [Operation::Hue(f64::from(red) / 255.0 - 0.5)];
        let oracle = naive::apply(&operation, &Warping::default(), size, &planes);
        for level in Level::available() {
            let mut ours = planes.clone();
            Operator::new(level).run(&operation, &Warping::default(), size, &mut ours);
            assert!(ours == oracle, "{level:?}: red {red}");
        }
    }
}

//! Pillow's golden values, and the oracle over random geometries, for every implementation.

use super::*;
use crate::decode::Picture;
use crate::fixtures;
use crate::operation::{Operation, Warping};
use crate::types::{CropBox, ImageSize, Interpolation, PadMode};
use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// An interleaved RGB image.
struct Image {
    size: ImageSize,
    values: Vec<u8>,
}

impl Image {
    fn picture(&self) -> Picture<'_> {
        Picture::new(self.size.width, self.size.height, 3, &self.values)
    }

    /// From planes.
    fn of_planes(size: ImageSize, planes: &[u8]) -> Self {
        let pixel = |at: usize| [0, 1, 2].map(|channel| planes[channel * size.pixels() + at]);
        Self { size, values: (0..size.pixels()).flat_map(pixel).collect() }
    }

    fn planes(&self) -> Vec<u8> {
        let plane = |channel| self.values.iter().skip(channel).step_by(3).copied();
        (0..3).flat_map(plane).collect()
    }

    fn upside_down(self) -> Self {
        let rows = self.values.chunks_exact(3 * self.size.width as usize).rev();
        Self { values: rows.flatten().copied().collect(), ..self }
    }

    fn sha256(&self) -> String {
        Sha256::digest(&self.values).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What renders in a test: the oracle, or a level.
#[derive(Debug, Clone, Copy)]
enum By {
    Naive,
    Level(Level),
}

impl By {
    fn all() -> Vec<Self> {
        std::iter::once(Self::Naive).chain(Level::available().into_iter().map(Self::Level)).collect()
    }

    fn render(self, picture: &Picture<'_>, geometry: &Geometry, size: ImageSize) -> Vec<u8> {
        match self {
            Self::Naive => naive::render(picture, geometry, size),
            Self::Level(level) => {
                let mut out = vec![7; size.values()];
                Renderer::with_level(ResizeKind::Exact, level).run(picture, geometry, size, &mut out);
                out
            }
        }
    }

    fn apply(self, (operation, warping): &(Operation, Warping), image: &Image) -> Image {
        let mut planes = image.planes();
        match self {
            Self::Naive => planes = ops::naive::apply(&[*operation], warping, image.size, &planes),
            Self::Level(level) => Operator::new(level).run(&[*operation], warping, image.size, &mut planes),
        }
        Image::of_planes(image.size, &planes)
    }
}

/// A case's number by name.
fn number(args: &Value, name: &str) -> u32 {
    args[name].as_u64().unwrap_or_else(|| panic!("{name} in {args}")) as u32
}

/// A case's geometry.
fn geometry(case: &Value, image: ImageSize, out: ImageSize) -> Geometry {
    let args = &case["args"];
    let of = |name| number(args, name);
    let interpolation = || args["interpolation"].as_str().unwrap().parse::<Interpolation>().unwrap();
    match case["kind"].as_str().unwrap() {
        "resized_crop" => {
            let crop =
                CropBox { top: of("top") as i32, left: of("left") as i32, height: of("height"), width: of("width") };
            Geometry::resized_crop(crop, out, interpolation())
        }
        "short_center" => Geometry::short_center(image, of("resize"), out, interpolation()),
        "squash_center" => Geometry::squash_center(image, ImageSize::square(of("resize")), out, interpolation()),
        "pad_crop" => {
            let mode: PadMode = args["mode"].as_str().unwrap().parse().unwrap();
            Geometry::pad_crop(image, of("pad"), mode, of("top"), of("left"), out)
        }
        "op" => Geometry::squash(image, out, Interpolation::Bilinear).flipped(args["op"] == "hflip"),
        "chain" => {
            let crop =
                CropBox { top: of("top") as i32, left: of("left") as i32, height: of("height"), width: of("width") };
            Geometry::resized_crop(crop, out, interpolation()).flipped(args["flip"] == true)
        }
        other => panic!("a case of kind {other}"),
    }
}

/// An operation, and how it warps; `None` for flips, which are part of the geometry.
fn operation(args: &Value) -> Option<(Operation, Warping)> {
    let of = || args["arg"].as_f64().unwrap_or_else(|| panic!("no argument: {args}"));
    let operation = match args["op"].as_str().unwrap() {
        "grayscale" => Operation::Grayscale,
        "invert" => Operation::Invert,
        "autocontrast" => Operation::AutoContrast,
        "equalize" => Operation::Equalize,
        "brightness" => Operation::Brightness(of()),
        "contrast" => Operation::Contrast(of()),
        "saturation" => Operation::Saturation(of()),
        "sharpness" => Operation::Sharpness(of()),
        "hue" => Operation::Hue(of()),
        "posterize" => Operation::Posterize(of() as u8),
        "solarize" => Operation::Solarize(of()),
        "solarize_add" => Operation::SolarizeAdd(of() as u8),
        "gaussian_blur" => Operation::GaussianBlur(of()),
        "rotate" => Operation::Rotate(of()),
        "shear_x" => Operation::ShearX(of()),
        "shear_y" => Operation::ShearY(of()),
        "translate_x" => Operation::TranslateX(of()),
        "translate_y" => Operation::TranslateY(of()),
        "hflip" | "vflip" => return None,
        other => panic!("{other}"),
    };
    let warping = args["interpolation"].as_str().map(|name| Warping {
        filter: name.parse().unwrap(),
        fill: [0, 1, 2].map(|channel| args["fill"][channel].as_u64().unwrap() as u8),
    });
    Some((operation, warping.unwrap_or_default()))
}

/// The operations of a case, in turn.
fn operations(case: &Value) -> Vec<(Operation, Warping)> {
    match case["kind"].as_str().unwrap() {
        "op" => operation(&case["args"]).into_iter().collect(),
        "chain" => case["args"]["ops"].as_array().unwrap().iter().filter_map(operation).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn views_are_pillows() {
    for reference in fixtures::roots() {
        let read = |name: &str| std::fs::read(reference.join(name)).unwrap();
        let (pixels, inputs) = (read("pixels.safetensors"), read("recipes/recipes.safetensors"));
        let (pixels, inputs) = (SafeTensors::deserialize(&pixels).unwrap(), SafeTensors::deserialize(&inputs).unwrap());
        let list: Value = serde_json::from_slice(&read("recipes/recipes.json")).unwrap();
        let input = |name: &str, by: By| {
            let (name, squashed) = name.strip_suffix("@64").map_or((name, false), |name| (name, true));
            let tensor = match name.strip_prefix("pixels:") {
                Some(name) => pixels.tensor(name).unwrap(),
                None => inputs.tensor(name).unwrap(),
            };
            let size = ImageSize { height: tensor.shape()[0] as u32, width: tensor.shape()[1] as u32 };
            let image = Image { size, values: tensor.data().to_vec() };
            if !squashed {
                return image;
            }
            let small = ImageSize::square(64);
            let geometry = Geometry::squash(size, small, Interpolation::Bilinear);
            Image::of_planes(small, &by.render(&image.picture(), &geometry, small))
        };
        let (mut checked, by_all) = (BTreeMap::new(), By::all());
        for case in list["cases"].as_array().unwrap() {
            if case["kind"] == "draw" {
                continue;
            }
            let size = ImageSize { height: number(case, "height"), width: number(case, "width") };
            for &by in &by_all {
                let image = input(case["input"].as_str().unwrap(), by);
                let geometry = geometry(case, image.size, size);
                let vflip = case["args"]["op"] == "vflip";
                let out = Image::of_planes(size, &by.render(&image.picture(), &geometry, size));
                let out = if vflip { out.upside_down() } else { out };
                let out = operations(case).iter().fold(out, |image, operation| by.apply(operation, &image));
                assert_eq!(out.sha256(), case["sha256"].as_str().unwrap(), "{by:?}: {case}");
                *checked.entry(case["kind"].as_str().unwrap().to_owned()).or_insert(0) += 1;
            }
        }
        let expected = [
            ("resized_crop", 288),
            ("short_center", 48),
            ("squash_center", 48),
            ("pad_crop", 16),
            ("op", 656),
            ("chain", 60),
        ];
        let expected = expected.map(|(kind, count)| (kind.to_owned(), count * by_all.len())).into();
        assert_eq!(checked, expected);
    }
}

/// The first output of such a window reads no input before its own place, while the second one does: fast_image_resize took the first one's for the
/// smallest, and its unchecked loads went outside the picture.
#[test]
fn a_bicubic_window_may_begin_where_the_filter_is_zero() {
    let (image, size) = (ImageSize { height: 5, width: 5 }, ImageSize { height: 4, width: 4 });
    let values: Vec<u8> = (0..image.values()).map(|at| 64 + (at * 37 % 128) as u8).collect();
    let picture = Picture::new(image.width, image.height, 3, &values);
    for start in 1..11 {
        let whole = Geometry::squash(image, ImageSize::square(15), Interpolation::Bicubic);
        let geometry = Geometry { window: (start, start), ..whole };
        let mut ours = vec![0; size.values()];
        Renderer::new(ResizeKind::Fast).run(&picture, &geometry, size, &mut ours);
        assert_eq!(ours, naive::render(&picture, &geometry, size), "{start}");
    }
}

/// A picture within a larger memory, and what it becomes.
#[derive(Debug, Clone)]
struct Case {
    width: u32,
    height: u32,
    beside: u32,
    channels: usize,
    eighths: [u32; 2],
    noise: bool,
    seed: u8,
    geometry: Geometry,
    size: ImageSize,
}

impl Case {
    /// The memory ends with the picture's last value.
    fn values(&self) -> Vec<u8> {
        let stride = (self.width + self.beside) as usize;
        let count = (stride * (self.height as usize - 1) + self.width as usize) * self.channels;
        let value = |n: usize| match self.noise {
            // Black and white: what overshoots most.
            true => 255 * ((((n * 2_654_435_761) >> 13) & 1) as u8),
            false => (n * 37 + n / 7 * 11) as u8,
        };
        (0..count).map(|n| value(n) ^ self.seed).collect()
    }

    fn picture<'a>(&self, values: &'a [u8]) -> Picture<'a> {
        let extent = [8 * (self.width - 1) + self.eighths[0], 8 * (self.height - 1) + self.eighths[1]];
        let stride = self.width + self.beside;
        Picture { stride, extent, ..Picture::new(self.width, self.height, self.channels, values) }
    }
}

prop_compose! {
    fn sizes()(height in 1_u32..50, width in prop_oneof![2 => 1_u32..80, 1 => 64_u32..260]) -> ImageSize {
        ImageSize { height, width }
    }
}

prop_compose! {
    fn cases()(
        image in sizes(), size in sizes(), resized in sizes(), kind in 0..6, numbers: [u32; 4], window in (-90_i32..90, -90_i32..90),
        beside in prop_oneof![Just(0), 1_u32..9], gray: bool, eighths in prop_oneof![Just([8, 8]), [1_u32..=8, 1_u32..=8]],
        flags: [bool; 4], seed: u8,
    ) -> Case {
        let [bicubic, reflect, flip, noise] = flags;
        let interpolation = if bicubic { Interpolation::Bicubic } else { Interpolation::Bilinear };
        let pad = if reflect { PadMode::Reflect } else { PadMode::Constant };
        let (height, width) = (1 + numbers[0] % image.height, 1 + numbers[1] % image.width);
        let crop = CropBox {
            top: (numbers[2] % (image.height - height + 1)) as i32,
            left: (numbers[3] % (image.width - width + 1)) as i32,
            height,
            width,
        };
        let geometry = match kind {
            0 => Geometry::squash(image, size, interpolation),
            1 => Geometry::squash_center(image, resized, size, interpolation),
            2 => Geometry::short_center(image, 1 + numbers[0] % 60, size, interpolation),
            3 => Geometry::resized_crop(crop, size, interpolation),
            4 => Geometry::pad_crop(image, numbers[0] % 9, pad, numbers[1] % 40, numbers[2] % 40, size),
            _ => Geometry { window, pad, ..Geometry::resized_crop(crop, resized, interpolation) },
        };
        let channels = if gray { 1 } else { 3 };
        let (height, width) = (image.height, image.width);
        Case { width, height, beside, channels, eighths, noise, seed, geometry: geometry.flipped(flip), size }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn render_matches_naive(cases in prop::collection::vec(cases(), 1..4)) {
        for level in Level::available() {
            // One renderer for several pictures: nothing of one may show in the next.
            let mut renderer = Renderer::with_level(ResizeKind::Exact, level);
            for case in &cases {
                let (values, mut ours) = (case.values(), vec![9; case.size.values()]);
                let picture = case.picture(&values);
                renderer.run(&picture, &case.geometry, case.size, &mut ours);
                prop_assert!(ours == naive::render(&picture, &case.geometry, case.size), "{level:?}: {case:?}");
            }
        }
    }

    #[test]
    fn fast_is_near_naive(case in cases()) {
        // With room for a cubic's overshoot: it runs along columns first, so that what is clamped between the passes differs.
        let (values, mut ours) = (case.values().into_iter().map(|value| value / 2 + 64).collect::<Vec<_>>(), vec![9; case.size.values()]);
        let picture = case.picture(&values);
        Renderer::new(ResizeKind::Fast).run(&picture, &case.geometry, case.size, &mut ours);
        let oracle = naive::render(&picture, &case.geometry, case.size);
        for (at, (ours, oracle)) in ours.iter().zip(oracle).enumerate() {
            prop_assert!(ours.abs_diff(oracle) <= 2, "value {at}: {ours} for {oracle}");
        }
    }
}

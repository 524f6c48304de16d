//! From encoded bytes to a u8 `[3, H, W]` row: decode and render with one thread's scratch.

use super::{Geometry, ResizeKind, ViewMaker, ViewSteps};
use crate::decode::{DecodeKind, Decoder, ExifOrientation, ImageError, Picture, RegionOf};
use crate::types::{ImageSize, Interpolation, ParseError};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;

/// How encoded images become rows. It decides about pixels: who is to make the same ones needs the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LoadOptions {
    /// How much of a JPEG is decoded.
    pub decode: DecodeKind,
    /// Whether it is turned as its Exif says.
    pub exif: ExifOrientation,
    /// How it is resized.
    pub resize: ResizeKind,
    /// What random views are rendered from.
    pub sources: SourceSize,
}

/// Size of the decoded images that random views are rendered from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SourceSize {
    /// As decoded.
    #[default]
    Full,
    /// Bounded: where the short side has more pixels, it is resized to so many (bilinear), at the same aspect ratio.
    Short(u32),
}

impl SourceSize {
    /// Bounds of the short side, in pixels.
    const RANGE: std::ops::RangeInclusive<u32> = 8..=ImageSize::SIDE_MAX;

    /// What an image of this size is resized to; `None` where it stays as it is.
    fn bounded(self, image: ImageSize) -> Option<ImageSize> {
        match self {
            Self::Short(short) if image.height.min(image.width) > short => {
                let size = ImageSize::square(1);
                Some(Geometry::short_center(image, short, size, Interpolation::Bilinear).resized)
            }
            _ => None,
        }
    }
}

impl fmt::Display for SourceSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("full"),
            Self::Short(short) => write!(f, "{short}"),
        }
    }
}

impl FromStr for SourceSize {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let short = || text.parse().ok().filter(|short| Self::RANGE.contains(short)).map(Self::Short);
        (text == "full").then_some(Self::Full).or_else(short).ok_or_else(|| ParseError {
            what: "source size",
            found: text.to_owned(),
            expected: "full, or pixels of the short side, 8 to 8192, such as 256",
        })
    }
}

/// A thread's scratch for loading images; reused from image to image.
pub struct Loader {
    options: LoadOptions,
    decoder: Decoder,
    maker: ViewMaker,
    /// A bounded source, as planes and interleaved.
    planes: Vec<u8>,
    interleaved: Vec<u8>,
}

/// Scratch above this size is freed after use, so that one huge image does not pin its memory.
pub const SCRATCH_BYTES_MAX: usize = 64 << 20;

impl Loader {
    /// A loader without scratch as yet.
    pub fn new(options: LoadOptions) -> Self {
        let (decoder, maker) = (Decoder::new(options.exif), ViewMaker::new(options.resize));
        Self { options, decoder, maker, planes: Vec::new(), interleaved: Vec::new() }
    }

    /// Decodes an encoded image and renders it to `out`, u8 `[3, H, W]`, as `geometry` says of the decoded image's size. Scaled decoding keeps
    /// `at_least` as many pixels on each side.
    ///
    /// # Errors
    /// When the image cannot be decoded; `out` then holds nothing of use.
    ///
    /// # Panics
    /// When `out` has another length than `size.values()`.
    pub fn load(
        &mut self,
        file: &[u8],
        at_least: ImageSize,
        geometry: impl FnOnce(ImageSize) -> Geometry,
        size: ImageSize,
        out: &mut [u8],
    ) -> Result<(), ImageError> {
        assert_eq!(out.len(), size.values());
        let at_least = (self.options.decode == DecodeKind::Scaled).then_some(at_least);
        self.guarded(|loader| {
            let picture = loader.decoder.decode(file, at_least)?;
            loader.maker.renderer.run(&picture, &geometry(picture.size()), size, out);
            Ok(())
        })
    }

    /// What was wrong with the image that was decoded last, and harmed no pixel.
    pub fn warning(&self) -> Option<&str> {
        self.decoder.warning()
    }

    /// Decodes what random views are rendered from, bounded as the options say, and hands it to `use_it` with what makes views of it.
    ///
    /// # Errors
    /// When the image cannot be decoded.
    pub fn source<T>(
        &mut self,
        file: &[u8],
        use_it: impl FnOnce(&Picture<'_>, &mut ViewMaker) -> T,
    ) -> Result<T, ImageError> {
        self.source_region(file, None, use_it)
    }

    /// The same of a region of the image ([`Decoder::decode_region`]); of all of it, where the image is bounded.
    ///
    /// # Errors
    /// When the image cannot be decoded.
    pub fn source_region<T>(
        &mut self,
        file: &[u8],
        region: Option<RegionOf<'_>>,
        use_it: impl FnOnce(&Picture<'_>, &mut ViewMaker) -> T,
    ) -> Result<T, ImageError> {
        let LoadOptions { decode, sources, .. } = self.options;
        let at_least = match sources {
            SourceSize::Short(short) if decode == DecodeKind::Scaled => Some(ImageSize::square(short)),
            _ => None,
        };
        let unless_bounded = |size| region.filter(|_| sources.bounded(size).is_none()).and_then(|region| region(size));
        self.guarded(|Self { decoder, maker, planes, interleaved, .. }| {
            let picture = decoder.decode_region(file, at_least, Some(&unless_bounded))?;
            let Some(size) = sources.bounded(picture.size()) else { return Ok(use_it(&picture, maker)) };
            let (values, pixels) = (size.values(), size.pixels());
            planes.resize(values, 0);
            maker.renderer.run(
                &picture,
                &Geometry::squash(picture.size(), size, Interpolation::Bilinear),
                size,
                planes,
            );
            let channels = picture.channels;
            if channels == 1 {
                return Ok(use_it(&Picture::new(size.width, size.height, 1, &planes[..pixels]), maker));
            }
            interleaved.resize(values, 0);
            let (red, rest) = planes.split_at(pixels);
            let (green, blue) = rest.split_at(pixels);
            for (((pixel, r), g), b) in interleaved.chunks_exact_mut(3).zip(red).zip(green).zip(blue) {
                (pixel[0], pixel[1], pixel[2]) = (*r, *g, *b);
            }
            Ok(use_it(&Picture::new(size.width, size.height, 3, interleaved), maker))
        })
    }

    /// Makes a view of a decoded image in `out`, u8 `[3, H, W]`.
    ///
    /// # Errors
    /// When that panics: `out` has another length than `size.values()`, say, or the geometry's source lies beyond the picture.
    pub fn render(
        &mut self,
        picture: &Picture<'_>,
        steps: &ViewSteps,
        size: ImageSize,
        out: &mut [u8],
    ) -> Result<(), ImageError> {
        self.guarded(|loader| {
            loader.maker.run(picture, steps, size, out);
            Ok(())
        })
    }

    /// Runs `work`; a panic in it is an error of the image. Decoders read what strangers wrote, and must not take a worker along.
    fn guarded<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, ImageError>) -> Result<T, ImageError> {
        let outcome = catch_unwind(AssertUnwindSafe(|| work(self)));
        self.decoder.shrink_to(SCRATCH_BYTES_MAX);
        self.maker.shrink_to(SCRATCH_BYTES_MAX);
        for scratch in [&mut self.planes, &mut self.interleaved] {
            if scratch.capacity() > SCRATCH_BYTES_MAX {
                *scratch = Vec::new();
            }
        }
        outcome.unwrap_or_else(|_| {
            // What the panic left half done must not meet the next image.
            *self = Self::new(self.options);
            Err(ImageError::Panicked)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Renderer, naive};
    use super::*;
    use crate::decode::JPEG_DECODER;
    use crate::decode::tests::difference;
    use crate::fixtures;
    use safetensors::SafeTensors;
    use serde_json::Value;
    #[cfg(feature = "turbojpeg")]
    use std::path::Path;

    #[test]
    fn the_resize_is_pillows_exactly_or_within_two_levels() {
        for reference in fixtures::roots() {
            let bytes = std::fs::read(reference.join("pixels.safetensors")).unwrap();
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            let pixels = tensors.tensor("pixels").unwrap();
            let size = ImageSize::square(128);
            let list: Value = serde_json::from_slice(&std::fs::read(reference.join("pixels.json")).unwrap()).unwrap();
            let images = list["images"].as_array().unwrap();
            let mut checked = 0;
            for (name, full) in tensors.iter().filter(|(name, _)| name.starts_with("full.")) {
                let index: u64 = name["full.".len()..].parse().unwrap();
                let nth = images.iter().position(|image| image["index"] == index).unwrap();
                let golden = &pixels.data()[nth * size.values()..][..size.values()];
                let (height, width) = (full.shape()[0] as u32, full.shape()[1] as u32);
                let picture = Picture::new(width, height, 3, full.data());
                let mut ours = vec![0; size.values()];
                let geometry = Geometry::squash(picture.size(), size, Interpolation::Bilinear);
                Renderer::new(ResizeKind::Fast).run(&picture, &geometry, size, &mut ours);
                let (mean, max) = difference(&ours, golden);
                assert!(mean <= 0.3 && max <= 2, "image {nth}: mean {mean}, max {max}");
                Renderer::new(ResizeKind::Exact).run(&picture, &geometry, size, &mut ours);
                assert!(ours == golden && naive::render(&picture, &geometry, size) == golden, "image {nth}");
                checked += 1;
            }
            assert!(checked > 0);
        }
    }

    #[test]
    fn real_files_come_out_as_pillow_has_them() {
        for reference in fixtures::roots() {
            let Some(folder) = fixtures::imagenette() else { return };
            let list: Value = serde_json::from_slice(&std::fs::read(reference.join("pixels.json")).unwrap()).unwrap();
            let bytes = std::fs::read(reference.join("pixels.safetensors")).unwrap();
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            let (pixels, size) = (tensors.tensor("pixels").unwrap(), ImageSize::square(128));
            let (mut loader, mut ours) = (Loader::new(LoadOptions::default()), vec![0; size.values()]);
            let images = list["images"].as_array().or_else(|| list["files"].as_array()).or_else(|| list.as_array());
            for (nth, image) in images.expect("a list of images").iter().enumerate() {
                let file = image["file"].as_str().unwrap();
                let from_split = file.find("train/").or_else(|| file.find("val/")).unwrap();
                let bytes = std::fs::read(folder.join(&file[from_split..])).unwrap();
                loader
                    .load(&bytes, size, |image| Geometry::squash(image, size, Interpolation::Bilinear), size, &mut ours)
                    .unwrap();
                let (mean, max) = difference(&ours, &pixels.data()[nth * size.values()..][..size.values()]);
                let (mean_max, max_max) = if JPEG_DECODER == "libjpeg-turbo" { (0.0, 0) } else { (0.5, 6) };
                assert!(mean <= mean_max && max <= max_max, "{file}: mean {mean}, max {max}");
            }
        }
    }

    /// Scaled decoding keeps what the output needs: no side is smaller, and pixels are near those of the whole picture.
    #[cfg(feature = "turbojpeg")]
    #[test]
    fn a_scaled_jpeg_covers_the_output() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample-data/val/n01440764");
        let file = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
        let bytes = std::fs::read(&file).unwrap();
        let mut decoder = Decoder::default();
        let full = decoder.decode(&bytes, None).map(|picture| (picture.width, picture.height)).unwrap();
        for side in [1, 20, 40, 41, 60, 80, 81, 128] {
            let size = ImageSize::square(side);
            let scaled = decoder.decode(&bytes, Some(size)).map(|picture| (picture.width, picture.height)).unwrap();
            assert!(scaled.0 >= side && scaled.1 >= side && scaled <= full, "{side}: {scaled:?} of {full:?}");
            assert_eq!(scaled < full, side <= full.0.min(full.1).div_ceil(2), "{side}: {scaled:?} of {full:?}");
            let load = |decode| {
                let mut out = vec![0; size.values()];
                Loader::new(LoadOptions { decode, ..LoadOptions::default() })
                    .load(&bytes, size, |image| Geometry::squash(image, size, Interpolation::Bilinear), size, &mut out)
                    .unwrap();
                out
            };
            let (mean, _) = difference(&load(DecodeKind::Scaled), &load(DecodeKind::Full));
            assert!(mean < 3.5, "{side}: {mean}");
        }
    }

    #[test]
    fn an_empty_file_is_an_error_and_the_loader_goes_on() {
        let size = ImageSize::square(4);
        let squash = |image| Geometry::squash(image, size, Interpolation::Bilinear);
        let (mut loader, mut out) = (Loader::new(LoadOptions::default()), vec![0; size.values()]);
        assert!(matches!(loader.load(&[], size, squash, size, &mut out), Err(ImageError::UnknownFormat)));
        let mut file = std::io::Cursor::new(Vec::new());
        let picture = ::image::RgbImage::from_pixel(9, 5, ::image::Rgb([255, 3, 0]));
        picture.write_to(&mut file, ::image::ImageFormat::Png).unwrap();
        loader.load(file.get_ref(), size, squash, size, &mut out).unwrap();
        assert_eq!(out, [[255; 16], [3; 16], [0; 16]].concat());
    }
}

//! From a file to a u8 `[3, H, W]` sample, as SPEC §2 says: the two stages, decode and render, with one thread's scratch.

use super::{Geometry, Renderer, ResizeKind};
use crate::decode::{DecodeKind, Decoder, ImageError};
use crate::types::{ImageSize, Interpolation};
use std::fs::File;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// How files become samples. It decides about pixels, so whoever is to make the same ones must have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LoadOptions {
    /// How much of a JPEG is decoded.
    pub decode: DecodeKind,
    /// How it is resized.
    pub resize: ResizeKind,
}

/// A thread's scratch for loading images; reused from file to file.
pub struct Loader {
    options: LoadOptions,
    file: Vec<u8>,
    decoder: Decoder,
    renderer: Renderer,
}

/// Scratch above this size is given back after use: one huge image must not cost its memory for ever.
const SCRATCH_BYTES_MAX: usize = 64 << 20;

impl Loader {
    /// A loader without scratch as yet.
    pub fn new(options: LoadOptions) -> Self {
        let (decoder, renderer) = (Decoder::default(), Renderer::new(options.resize));
        Self { options, file: Vec::new(), decoder, renderer }
    }

    /// Reads a file, decodes it to RGB, resizes it to exactly `size` and writes it to `out` as u8 `[3, H, W]`.
    ///
    /// # Errors
    /// When the file cannot be read or decoded; `out` then holds nothing of use.
    ///
    /// # Panics
    /// When `out` has another length than `size.values()`.
    pub fn load(&mut self, path: &Path, size: ImageSize, out: &mut [u8]) -> Result<(), ImageError> {
        assert_eq!(out.len(), size.values());
        self.file.clear();
        File::open(path)?.read_to_end(&mut self.file)?;
        let (file, decoder, renderer) = (&self.file, &mut self.decoder, &mut self.renderer);
        let at_least = (self.options.decode == DecodeKind::Scaled).then_some(size);
        // Decoders read what strangers wrote; a panic in one is that file's fault, and must not take a worker along.
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let picture = decoder.decode(file, at_least)?;
            let geometry = Geometry::squash(picture.size(), size, Interpolation::Bilinear);
            renderer.run(&picture, &geometry, size, out);
            Ok(())
        }));
        self.file.shrink_to(SCRATCH_BYTES_MAX);
        self.decoder.shrink_to(SCRATCH_BYTES_MAX);
        self.renderer.shrink_to(SCRATCH_BYTES_MAX);
        outcome.unwrap_or_else(|_| {
            // What the panic left half done must not meet the next file.
            *self = Self::new(self.options);
            Err(ImageError::Panicked)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::naive;
    use super::*;
    use crate::decode::tests::difference;
    use crate::decode::{JPEG_DECODER, Picture};
    use crate::fixtures;
    use safetensors::SafeTensors;
    use serde_json::Value;

    #[test]
    fn the_resize_is_pillows_exactly_or_within_two_levels() {
        let Some(reference) = fixtures::reference() else { return };
        let bytes = std::fs::read(reference.join("pixels.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let pixels = tensors.tensor("pixels").unwrap();
        let size = ImageSize::square(128);
        let mut checked = 0;
        for (name, full) in tensors.iter().filter(|(name, _)| name.starts_with("full.")) {
            let nth: usize = name["full.".len()..].parse().unwrap();
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

    #[test]
    fn real_files_come_out_as_pillow_has_them() {
        let Some(reference) = fixtures::reference() else { return };
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
            loader.load(&folder.join(&file[from_split..]), size, &mut ours).unwrap();
            let (mean, max) = difference(&ours, &pixels.data()[nth * size.values()..][..size.values()]);
            let (mean_max, max_max) = if JPEG_DECODER == "libjpeg-turbo" { (0.0, 0) } else { (0.5, 6) };
            assert!(mean <= mean_max && max <= max_max, "{file}: mean {mean}, max {max}");
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
                Loader::new(LoadOptions { decode, ..LoadOptions::default() }).load(&file, size, &mut out).unwrap();
                out
            };
            let (mean, _) = difference(&load(DecodeKind::Scaled), &load(DecodeKind::Full));
            assert!(mean < 3.5, "{side}: {mean}");
        }
    }

    #[test]
    fn a_missing_file_is_an_error_and_the_loader_goes_on() {
        let (mut loader, mut out) = (Loader::new(LoadOptions::default()), vec![0; ImageSize::square(4).values()]);
        let missing = loader.load(Path::new("/no/such/file"), ImageSize::square(4), &mut out);
        assert!(matches!(missing, Err(ImageError::Read(_))));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("red.png");
        ::image::RgbImage::from_pixel(9, 5, ::image::Rgb([255, 3, 0])).save(&path).unwrap();
        loader.load(&path, ImageSize::square(4), &mut out).unwrap();
        assert_eq!(out, [[255; 16], [3; 16], [0; 16]].concat());
    }
}

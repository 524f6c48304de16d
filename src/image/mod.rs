//! Pixels: from a file's bytes to a u8 `[3, H, W]` sample, as SPEC §2 says.

mod decode;
mod exact;
#[cfg(test)]
mod naive;
mod resize;
#[cfg(feature = "turbojpeg")]
mod turbo;

pub use decode::{DecodeKind, Decoder, JPEG_DECODER, PIXELS_MAX, Picture};
pub use resize::{Resize, ResizeKind};

use crate::types::ImageSize;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Why bytes do not become an image. The caller names the sample.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No decoder knows the content.
    #[error("is not an image of a known format")]
    UnknownFormat,
    /// The header claims more than is accepted.
    #[error("claims {width}x{height} pixels, more than the limit of {PIXELS_MAX}")]
    TooLarge {
        /// Pixels a row.
        width: u32,
        /// Rows.
        height: u32,
    },
    /// The content has no pixels.
    #[error("claims {width}x{height} pixels")]
    Empty {
        /// Pixels a row.
        width: u32,
        /// Rows.
        height: u32,
    },
    /// The content is damaged, or of a kind that the decoder does not know.
    #[error("cannot be decoded: {0}")]
    Decode(String),
    /// The decoder gave up in a way that it should not.
    #[error("cannot be decoded: the decoder panicked")]
    Panicked,
}

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
    decoder: Decoder,
    resize: Resize,
}

/// Scratch above this size is given back after use: one huge image must not cost its memory for ever.
pub const SCRATCH_BYTES_MAX: usize = 64 << 20;

impl Loader {
    /// A loader without scratch as yet.
    pub fn new(options: LoadOptions) -> Self {
        let (decoder, resize) = (Decoder::default(), Resize::new(options.resize));
        Self { options, decoder, resize }
    }

    /// Decodes an encoded image to RGB, resizes it to exactly `size` and writes it to `out` as u8 `[3, H, W]`.
    ///
    /// # Errors
    /// When the image cannot be decoded; `out` then holds nothing of use.
    ///
    /// # Panics
    /// When `out` has another length than `size.values()`.
    pub fn load(&mut self, file: &[u8], size: ImageSize, out: &mut [u8]) -> Result<(), ImageError> {
        assert_eq!(out.len(), size.values());
        let (decoder, resize) = (&mut self.decoder, &mut self.resize);
        let at_least = (self.options.decode == DecodeKind::Scaled).then_some(size);
        // Decoders read what strangers wrote; a panic in one is that file's fault, and must not take a worker along.
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let picture = decoder.decode(file, at_least)?;
            resize.run(&picture, size, out);
            Ok(())
        }));
        self.decoder.shrink_to(SCRATCH_BYTES_MAX);
        outcome.unwrap_or_else(|_| {
            // What the panic left half done must not meet the next file.
            *self = Self::new(self.options);
            Err(ImageError::Panicked)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use safetensors::SafeTensors;
    use serde_json::Value;
    use std::path::Path;

    fn difference(ours: &[u8], theirs: &[u8]) -> (f64, u8) {
        assert_eq!(ours.len(), theirs.len());
        let each = || ours.iter().zip(theirs).map(|(a, b)| a.abs_diff(*b));
        (each().map(f64::from).sum::<f64>() / ours.len() as f64, each().max().unwrap_or(0))
    }

    /// SPEC §8, the row for odd files, and the rows for JPEG and for other formats.
    #[test]
    fn odd_files_are_decoded_like_pillow_does_or_refused_with_a_cause() {
        let Some(odd) = fixtures::reference().map(|reference| reference.join("odd")) else { return };
        let list: Value = serde_json::from_slice(&std::fs::read(odd.join("odd.json")).unwrap()).unwrap();
        let bytes = std::fs::read(odd.join("odd.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        // «Free choice» in SPEC §8; refused (tall: one pixel wide, with subsampled chroma); 16-bit gray, for which SPEC §2
        // allows the high byte.
        let free = ["cutnoeoi.JPEG", "corrupt.JPEG", "arithmetic.JPEG", "tall.JPEG", "gray16.png"];
        for entry in list["files"].as_array().unwrap() {
            let name = entry["file"].as_str().unwrap();
            let file = std::fs::read(odd.join(name)).unwrap();
            let mut decoder = Decoder::default();
            let decoded = decoder.decode(&file, None).map(|picture| (picture.width, picture.height, picture.to_rgb()));
            let expected = entry["decodes"].as_bool().unwrap();
            match decoded {
                Ok((width, height, rgb)) if expected => {
                    assert_eq!(u64::from(width), entry["width"].as_u64().unwrap(), "{name}");
                    assert_eq!(u64::from(height), entry["height"].as_u64().unwrap(), "{name}");
                    let (mean, max) = difference(&rgb, tensors.tensor(&format!("rgb.{name}")).unwrap().data());
                    let jpeg = entry["format"] == "JPEG";
                    let (mean_max, max_max) = match name {
                        "gray16.png" => continue,
                        "cmyk.JPEG" | "ycck.JPEG" => (1.4, 11),
                        _ if jpeg && JPEG_DECODER == "libjpeg-turbo" => (0.0, 0),
                        _ if jpeg => (0.4, 10),
                        _ => (0.0, 0),
                    };
                    assert!(mean <= mean_max && max <= max_max, "{name}: mean {mean}, max {max}");
                }
                Ok(_) => assert!(free.contains(&name), "{name} was decoded"),
                Err(error) => {
                    assert!(!expected || free.contains(&name), "{name}: {error}");
                    assert!(error.to_string().len() > 10, "{name}: {error}");
                }
            }
        }
    }

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
            Resize::new(ResizeKind::Fast).run(&picture, size, &mut ours);
            let (mean, max) = difference(&ours, golden);
            assert!(mean <= 0.3 && max <= 2, "image {nth}: mean {mean}, max {max}");
            Resize::new(ResizeKind::Exact).run(&picture, size, &mut ours);
            assert!(ours == golden && naive::resize(&picture, size) == golden, "image {nth}");
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
            let bytes = std::fs::read(folder.join(&file[from_split..])).unwrap();
            loader.load(&bytes, size, &mut ours).unwrap();
            let (mean, max) = difference(&ours, &pixels.data()[nth * size.values()..][..size.values()]);
            let (mean_max, max_max) = if JPEG_DECODER == "libjpeg-turbo" { (0.0, 0) } else { (0.5, 6) };
            assert!(mean <= mean_max && max <= max_max, "{file}: mean {mean}, max {max}");
        }
    }

    #[test]
    fn a_jpeg_cut_anywhere_is_refused() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample-data/val/n01440764");
        let file = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
        let file = std::fs::read(file).unwrap();
        let mut decoder = Decoder::default();
        decoder.decode(&file, None).unwrap();
        for len in (0..file.len()).step_by(97).chain(file.len() - 40..file.len()) {
            assert!(decoder.decode(&file[..len], None).is_err(), "{len} of {} bytes were decoded", file.len());
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
                Loader::new(LoadOptions { decode, ..LoadOptions::default() }).load(&bytes, size, &mut out).unwrap();
                out
            };
            let (mean, _) = difference(&load(DecodeKind::Scaled), &load(DecodeKind::Full));
            assert!(mean < 3.5, "{side}: {mean}");
        }
    }

    #[test]
    fn an_empty_file_is_an_error_and_the_loader_goes_on() {
        let (mut loader, mut out) = (Loader::new(LoadOptions::default()), vec![0; ImageSize::square(4).values()]);
        assert!(matches!(loader.load(&[], ImageSize::square(4), &mut out), Err(ImageError::UnknownFormat)));
        let mut file = std::io::Cursor::new(Vec::new());
        let picture = ::image::RgbImage::from_pixel(9, 5, ::image::Rgb([255, 3, 0]));
        picture.write_to(&mut file, ::image::ImageFormat::Png).unwrap();
        loader.load(file.get_ref(), ImageSize::square(4), &mut out).unwrap();
        assert_eq!(out, [[255; 16], [3; 16], [0; 16]].concat());
    }
}

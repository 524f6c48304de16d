//! Decoding: from a file's bytes to a picture of u8 values. Knows nothing of sizes and crops of a batch.

mod decoder;
mod exif;
mod orientation;
mod other;
mod output;
mod picture;
mod segments;
#[cfg(feature = "turbojpeg")]
mod turbo;
#[cfg(test)]
mod upright_tests;

pub use decoder::{DecodeKind, Decoder};
pub use exif::ExifOrientation;
pub use picture::{Picture, RegionOf};

use crate::memory::Lack;

/// The most pixels of a file, Pillow's limit; checked before memory is taken.
pub const PIXELS_MAX: u64 = 178_956_970;

/// The decoder of JPEGs in this build.
pub const JPEG_DECODER: &str = if cfg!(feature = "turbojpeg") { "libjpeg-turbo" } else { "zune-jpeg" };

/// What a build that decodes JPEGs with another decoder than libjpeg-turbo costs its users.
pub const JPEG_DECODER_COST: Option<&str> = if cfg!(feature = "turbojpeg") {
    None
} else {
    Some(
        "this build decodes JPEGs with zune-jpeg: at about 0.7 of libjpeg-turbo's speed, and to pixels that differ from Pillow's, \
         in photographs by up to 10 levels (build it with `make`, or with the feature `turbojpeg`: both need cmake and nasm)",
    )
};

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
    /// There is no memory for it now.
    #[error(
        "needs {} MB to decode and {} are free (raise the daemon's memory limit, lower --cache, or save it smaller)",
        .0.need.div_ceil(1_000_000), .0.free / 1_000_000
    )]
    Memory(Lack),
    /// The decoder gave up in a way that it should not.
    #[error("cannot be decoded: the decoder panicked")]
    Panicked,
}

/// Checks the size that a file's header claims.
fn check_size(width: u32, height: u32) -> Result<(u32, u32), ImageError> {
    match u64::from(width) * u64::from(height) {
        0 => Err(ImageError::Empty { width, height }),
        pixels if pixels > PIXELS_MAX => Err(ImageError::TooLarge { width, height }),
        _ => Ok((width, height)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::fixtures;
    use safetensors::SafeTensors;
    use serde_json::Value;
    use std::path::Path;

    /// Mean and maximum of the absolute differences.
    pub fn difference(ours: &[u8], theirs: &[u8]) -> (f64, u8) {
        assert_eq!(ours.len(), theirs.len());
        let each = || ours.iter().zip(theirs).map(|(a, b)| a.abs_diff(*b));
        (each().map(f64::from).sum::<f64>() / ours.len() as f64, each().max().unwrap_or(0))
    }

    /// docs/spec/golden.md#tolerances: the row for odd files, and the rows for JPEG and for other formats.
    #[test]
    fn odd_files_are_decoded_like_pillow_does_or_refused_with_a_cause() {
        for odd in fixtures::roots().map(|root| root.join("odd")) {
            let list: Value = serde_json::from_slice(&std::fs::read(odd.join("odd.json")).unwrap()).unwrap();
            let bytes = std::fs::read(odd.join("odd.safetensors")).unwrap();
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            // «Free choice» of docs/spec/golden.md#tolerances; refused (tall: one pixel wide, with subsampled chroma); 16-bit gray,
            // for which docs/spec/pixels.md#decode allows the high byte.
            let free = ["cutnoeoi.JPEG", "corrupt.JPEG", "arithmetic.JPEG", "tall.JPEG", "gray16.png"];
            for entry in list["files"].as_array().unwrap() {
                let name = entry["file"].as_str().unwrap();
                let file = std::fs::read(odd.join(name)).unwrap();
                let mut decoder = Decoder::default();
                let decoded =
                    decoder.decode(&file, None).map(|picture| (picture.width, picture.height, picture.to_rgb()));
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
}

//! Decoding to RGB, or to gray where the file is gray; by content, never by name.
//!
//! JPEG goes to libjpeg-turbo with feature `turbojpeg`, and else to the decoder of `jpeg/`, which makes the same pixels. Every other format
//! is read by `other`.

use super::exif::{self, ExifOrientation};
use super::orientation::Orientation;
use super::other::{self, Shape};
use super::output::Output;
use super::{ImageError, Picture, RegionOf, check_size, jpeg};
use crate::types::{CropBox, ImageSize, ParseError, named};
use std::fmt;
use std::str::FromStr;

/// How much of a JPEG is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DecodeKind {
    /// Every pixel.
    #[default]
    Full,
    /// The smallest of ½, ⅜, ¼ and ⅛ that has no fewer pixels than the output on either side, which is Pillow's draft mode at finer
    /// steps; needs libjpeg-turbo.
    Scaled,
}
named!(DecodeKind, "decoding", "full or scaled", Full = "full", Scaled = "scaled");

/// A decoder and its scratch.
#[derive(Default)]
pub struct Decoder {
    output: Output,
    exif: ExifOrientation,
    scratch: jpeg::Scratch,
    warning: Option<String>,
}

impl Decoder {
    /// A decoder that does so about the orientation of Exif.
    pub fn new(exif: ExifOrientation) -> Self {
        Self { exif, ..Self::default() }
    }

    /// Decodes a file's bytes; a JPEG, where this build can, no larger than it takes to have `at_least` pixels on each side.
    ///
    /// # Errors
    /// When the content is unknown, damaged, cut off or too large.
    pub fn decode(&mut self, file: &[u8], at_least: Option<ImageSize>) -> Result<Picture<'_>, ImageError> {
        self.decode_region(file, at_least, None)
    }

    /// Decodes at least the region that is asked for; pixels outside it are unspecified. Of a JPEG that is not progressive libjpeg-turbo decodes little
    /// more, and reads nothing below: damage there is not seen.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    ///
    /// # Panics
    /// When the region is empty or reaches beyond the image.
    pub fn decode_region(
        &mut self,
        file: &[u8],
        at_least: Option<ImageSize>,
        region: Option<RegionOf<'_>>,
    ) -> Result<Picture<'_>, ImageError> {
        self.warning = None;
        let orientation = orientation(file, self.exif);
        self.output.set_orientation(orientation);
        if !file.starts_with(&[0xFF, 0xD8]) {
            let Shape { width, height, channels } = other::decode(file, &mut self.output)?;
            return Ok(self.turned(width, height, channels, None, None));
        }
        #[cfg(feature = "turbojpeg")]
        {
            use super::turbo::{Failure, Shape};
            let at_least = at_least.map(|upright| orientation.size(upright));
            let output = &mut self.output;
            let decode = |region: Option<RegionOf<'_>>| super::turbo::decode(file, at_least, region, output);
            let (shape, upright) = orientation.with_region(region, decode);
            match shape {
                Ok(Shape { width, height, channels, extent }) => {
                    Ok(self.turned(width, height, channels, Some(extent), upright))
                }
                Err(Failure::Error(error)) => Err(error),
                // Whether that harms a pixel, it takes another reader to tell.
                Err(Failure::Warning(warning)) => {
                    let (width, height, channels) = self.run_in_rust(file)?;
                    self.warning.get_or_insert(warning);
                    Ok(self.turned(width, height, channels, None, None))
                }
            }
        }
        #[cfg(not(feature = "turbojpeg"))]
        {
            let _ = (at_least, region);
            self.decode_in_rust(file)
        }
    }

    /// The picture that was decoded, upright: at least this box of it.
    fn turned(
        &mut self,
        width: u32,
        height: u32,
        channels: usize,
        extent: Option<[u32; 2]>,
        region: Option<CropBox>,
    ) -> Picture<'_> {
        let orientation = self.output.turn(width, height, channels, region);
        let ImageSize { height, width } = orientation.size(ImageSize { height, width });
        let values = &self.output.values()[..width as usize * height as usize * channels];
        let picture = Picture::new(width, height, channels, values);
        match extent.filter(|_| orientation.is_upright()) {
            Some(extent) => Picture { extent, ..picture },
            // A scaled picture's edge, of which the image shows but a part, may lie on any side now: it counts as a whole pixel.
            None => picture,
        }
    }

    /// Decodes a JPEG as a build without libjpeg-turbo does.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn decode_in_rust(&mut self, file: &[u8]) -> Result<Picture<'_>, ImageError> {
        self.output.set_orientation(orientation(file, self.exif));
        let (width, height, channels) = self.run_in_rust(file)?;
        Ok(self.turned(width, height, channels, None, None))
    }

    fn run_in_rust(&mut self, file: &[u8]) -> Result<(u32, u32, usize), ImageError> {
        let decoded = jpeg::decode(file, &mut self.output, &mut self.scratch)?;
        self.warning = decoded.warning;
        Ok((decoded.width, decoded.height, decoded.channels))
    }

    /// What was wrong with the JPEG that was decoded last, and harmed no pixel; the first such thing.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// The size that an encoded image has when it is decoded whole, from its header.
    ///
    /// # Errors
    /// When the content is unknown, or its header damaged or of a size that is not accepted.
    pub fn size(file: &[u8], exif: ExifOrientation) -> Result<ImageSize, ImageError> {
        let in_file = if file.starts_with(&[0xFF, 0xD8]) {
            let (width, height) = jpeg::size(file)?;
            check_size(width, height).map(|(width, height)| ImageSize { height, width })?
        } else {
            other::size(file)?
        };
        Ok(orientation(file, exif).size(in_file))
    }

    /// Frees scratch above `bytes`; where memory is short, all that a large image took. The next large image may wait for this.
    pub fn shrink_to(&mut self, bytes: usize) {
        self.output.shrink_to(bytes);
        self.scratch.shrink_to(bytes);
    }
}

/// How a file's picture has to be turned.
fn orientation(file: &[u8], exif: ExifOrientation) -> Orientation {
    match exif {
        // No file has both.
        ExifOrientation::Apply => exif::orientation(file).or(other::own_orientation(file)),
        ExifOrientation::Ignore => other::own_orientation(file),
    }
}

//! Decoding to RGB, or to gray where the file is gray; by content, never by name.
//!
//! JPEG goes to libjpeg-turbo with feature `turbojpeg`, and else, or for what that does not turn into RGB, to zune-jpeg, the decoder
//! under `image`, without `image` in between: that would hide whether a file was cut off, copy the file and read its headers
//! twice. Every other format is read by `other`.

use super::exif::{self, ExifOrientation};
use super::orientation::Orientation;
use super::other::{self, Shape};
use super::output::Output;
use super::segments::{Oddity, keeps_coefficients};
use super::{ImageError, Picture, RegionOf, check_size};
use crate::types::{CropBox, ImageSize, ParseError, named};
use std::fmt;
use std::str::FromStr;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

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
        let orientation = orientation(file, self.exif);
        self.output.set_orientation(orientation);
        let at_least = at_least.map(|upright| orientation.size(upright));
        if !file.starts_with(&[0xFF, 0xD8]) {
            let Shape { width, height, channels } = other::decode(file, &mut self.output)?;
            return Ok(self.turned(width, height, channels, None, None));
        }
        check_end(file)?;
        #[cfg(feature = "turbojpeg")]
        {
            let output = &mut self.output;
            let decode = |region: Option<RegionOf<'_>>| super::turbo::decode(file, at_least, region, output);
            let (shape, upright) = orientation.with_region(region, decode);
            if let Some(super::turbo::Shape { width, height, channels, extent }) = shape? {
                return Ok(self.turned(width, height, channels, Some(extent), upright));
            }
        }
        #[cfg(not(feature = "turbojpeg"))]
        let _ = (at_least, region);
        self.decode_in_rust(file)
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
        check_end(file)?;
        match Oddity::of(file) {
            None => {}
            Some(Oddity::SeparateScans) => return self.decode_separate_scans(file),
            Some(Oddity::NarrowChroma) => {
                let cause =
                    "JPEGs at most 4 pixels wide with halved chroma are not supported (save it without subsampling)";
                return Err(ImageError::Decode(cause.to_owned()));
            }
        }
        let (width, height, channels) = match self.decode_jpeg(file, true) {
            // Stray bytes between segments harm nothing, and Pillow skips them.
            Err(ImageError::Decode(cause)) if cause.contains("[strict-mode]") => self.decode_jpeg(file, false)?,
            other => other?,
        };
        Ok(self.turned(width, height, channels, None, None))
    }

    /// The size that an encoded image has when it is decoded whole, from its header.
    ///
    /// # Errors
    /// When the content is unknown, or its header damaged or of a size that is not accepted.
    pub fn size(file: &[u8], exif: ExifOrientation) -> Result<ImageSize, ImageError> {
        let in_file = if file.starts_with(&[0xFF, 0xD8]) {
            let (width, height) = jpeg_headers(file, false)?.dimensions().expect("headers were read");
            check_size(width as u32, height as u32).map(|(width, height)| ImageSize { height, width })?
        } else {
            other::size(file)?
        };
        Ok(orientation(file, exif).size(in_file))
    }

    /// Frees scratch above `bytes`; where memory is short, all that a large image took. The next large image may wait for this.
    pub fn shrink_to(&mut self, bytes: usize) {
        self.output.shrink_to(bytes);
    }

    fn decode_jpeg(&mut self, file: &[u8], strict: bool) -> Result<(u32, u32, usize), ImageError> {
        let failed = |error: zune_jpeg::errors::DecodeErrors| ImageError::Decode(error.to_string());
        let mut decoder = jpeg_headers(file, strict)?;
        let (width, height) = decoder.dimensions().expect("headers were read");
        let (width, height) = check_size(width as u32, height as u32)?;
        let (space, channels) = match decoder.input_colorspace().expect("headers were read") {
            ColorSpace::Luma => (ColorSpace::Luma, 1),
            _ => (ColorSpace::RGB, 3),
        };
        decoder.set_options(decoder.options().jpeg_set_out_colorspace(space));
        let pixels = width as usize * height as usize;
        // 16 bits for each value of as many as four components.
        let own_bytes = if keeps_coefficients(file) { pixels * 8 } else { 0 };
        let values = self.output.room(pixels * channels, own_bytes)?;
        // Emptied first: what a decoder leaves out of a damaged file must not be the last image's.
        values.truncate(pixels * channels);
        values.fill(0);
        decoder.decode_into(values).map_err(failed)?;
        Ok((width, height, channels))
    }

    /// A sequential JPEG of several scans, by a decoder that knows them.
    fn decode_separate_scans(&mut self, file: &[u8]) -> Result<Picture<'_>, ImageError> {
        let failed = |error: jpeg_decoder::Error| ImageError::Decode(error.to_string());
        let mut decoder = jpeg_decoder::Decoder::new(file);
        decoder.read_info().map_err(failed)?;
        let info = decoder.info().expect("headers were read");
        let (width, height) = check_size(info.width.into(), info.height.into())?;
        let channels = match info.pixel_format {
            jpeg_decoder::PixelFormat::L8 => 1,
            jpeg_decoder::PixelFormat::RGB24 => 3,
            other => return Err(ImageError::Decode(format!("separate scans of pixels {other:?} are not supported"))),
        };
        // Its planes, and the image that it makes of them.
        let bytes = width as usize * height as usize * channels;
        *self.output.room(0, 2 * bytes)? = decoder.decode().map_err(failed)?;
        Ok(self.turned(width, height, channels, None, None))
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

/// A decoder of zune-jpeg that has read a JPEG's headers.
fn jpeg_headers(file: &[u8], strict: bool) -> Result<JpegDecoder<ZCursor<&[u8]>>, ImageError> {
    let side_max = usize::from(u16::MAX);
    let options = DecoderOptions::default().set_strict_mode(strict).set_max_width(side_max).set_max_height(side_max);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(file), options);
    decoder.decode_headers().map_err(|error| ImageError::Decode(error.to_string()))?;
    Ok(decoder)
}

/// Checks that a JPEG has an end marker after the start of a scan; within a scan its two bytes do not occur.
fn check_end(file: &[u8]) -> Result<(), ImageError> {
    let ends = |of: &[u8]| memchr::memmem::find(of, &[0xFF, 0xD9]).is_some();
    let scan = || memchr::memmem::find(file, &[0xFF, 0xDA]);
    if file.ends_with(&[0xFF, 0xD9]) || scan().is_some_and(|scan| ends(&file[scan..])) {
        return Ok(());
    }
    Err(ImageError::Decode("the file is cut off: it has no end marker".to_owned()))
}

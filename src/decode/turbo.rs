//! JPEGs through libjpeg-turbo (feature `turbojpeg`): Pillow's pixels to the bit, and scaled ones for less than full ones.

use super::{ImageError, check_size};
use crate::types::ImageSize;
use turbojpeg::{Colorspace, Decompressor, Image, PixelFormat, ScalingFactor};

/// Eighths that are decoded for less than the full size: ⅝ and more cost as much or more.
const EIGHTHS: [usize; 4] = [1, 2, 3, 4];

/// The most scans of a progressive file. Encoders make about ten; a few bytes each can make a file of thousands that takes minutes.
const SCANS_MAX: u32 = 500;

/// A [`Picture`] but for its values.
///
/// [`Picture`]: super::Picture
pub struct Shape {
    pub width: u32,
    pub height: u32,
    pub channels: usize,
    pub extent: [u32; 2],
}

/// libjpeg-turbo's state, made when it is first needed. One for full size and one for less: its choice of the inverse transform
/// does not return from scaled to full.
#[derive(Default)]
pub struct Turbo {
    full: Option<Decompressor>,
    scaled: Option<Decompressor>,
}

impl Turbo {
    /// Decodes a JPEG into the beginning of `out`; `None` for colours that it does not turn into RGB.
    pub fn decode(
        &mut self,
        file: &[u8],
        at_least: Option<ImageSize>,
        out: &mut Vec<u8>,
    ) -> Result<Option<Shape>, ImageError> {
        let failed = |error: turbojpeg::Error| ImageError::Decode(error.to_string());
        let header = made(&mut self.full)?.read_header(file).map_err(failed)?;
        check_size(header.width as u32, header.height as u32)?;
        let (format, channels) = match header.colorspace {
            Colorspace::Gray => (PixelFormat::GRAY, 1),
            Colorspace::RGB | Colorspace::YCbCr => (PixelFormat::RGB, 3),
            Colorspace::CMYK | Colorspace::YCCK => return Ok(None),
        };
        let covers = |factor: ScalingFactor| {
            let (width, height) = (factor.scale(header.width), factor.scale(header.height));
            at_least.is_some_and(|size| width >= size.width as usize && height >= size.height as usize)
        };
        let eighths = EIGHTHS.into_iter().find(|&eighths| covers(ScalingFactor::new(eighths, 8)));
        let decompressor = match eighths {
            Some(eighths) => {
                let scaled = made(&mut self.scaled)?;
                scaled.set_scaling_factor(ScalingFactor::new(eighths, 8)).map_err(failed)?;
                scaled
            }
            None => made(&mut self.full)?,
        };
        let eighths = eighths.unwrap_or(8);
        let extent = [header.width, header.height].map(|pixels| (pixels * eighths) as u32);
        let header = header.scaled(ScalingFactor::new(eighths, 8));
        let (width, height, pitch) = (header.width, header.height, header.width * channels);
        // Every value is written: what is damaged is gray, and an error.
        if out.len() < pitch * height {
            out.resize(pitch * height, 0);
        }
        let pixels = &mut out[..pitch * height];
        match decompressor.decompress(file, Image { pixels, width, pitch, height, format }) {
            // Stray bytes between segments harm nothing, and Pillow skips them.
            Err(turbojpeg::Error::TurboJpegError(cause)) if cause.contains("extraneous bytes before marker") => {}
            other => other.map_err(failed)?,
        }
        Ok(Some(Shape { width: width as u32, height: height as u32, channels, extent }))
    }
}

fn made(decompressor: &mut Option<Decompressor>) -> Result<&mut Decompressor, ImageError> {
    if decompressor.is_none() {
        let failed = |error: turbojpeg::Error| ImageError::Decode(error.to_string());
        let mut new = Decompressor::new().map_err(failed)?;
        new.set_scan_limit(SCANS_MAX).map_err(failed)?;
        *decompressor = Some(new);
    }
    Ok(decompressor.as_mut().expect("just made"))
}

//! Operations on u8 images, each with its argument: what a policy draws and the renderer applies (docs/spec/recipes.md#operations).

use crate::types::{ParseError, named};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// One operation on a u8 RGB image, as Pillow 11.3 defines it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Operation {
    /// Nothing.
    Identity,
    /// Stretches each channel to 0..=255.
    AutoContrast,
    /// Flattens the histogram of each channel.
    Equalize,
    /// 255 − v.
    Invert,
    /// The luma in all three channels.
    Grayscale,
    /// Blends with black; 1 changes nothing.
    Brightness(f64),
    /// Blends with the mean luma; 1 changes nothing.
    Contrast(f64),
    /// Blends with the luma; 1 changes nothing.
    Saturation(f64),
    /// Blends with a smoothed image; 1 changes nothing.
    Sharpness(f64),
    /// Turns the hue, in [−½, ½] of a full turn.
    Hue(f64),
    /// Keeps this many high bits of each value, 0 to 8.
    Posterize(u8),
    /// Inverts values at this threshold and above.
    Solarize(f64),
    /// Adds to values below 128.
    SolarizeAdd(u8),
    /// Three box blurs along each axis that approximate a Gaussian of this standard deviation in pixels.
    GaussianBlur(f64),
    /// Turns counter-clockwise by so many degrees about the centre.
    Rotate(f64),
    /// Each row moves left by this factor of its distance from the top.
    ShearX(f64),
    /// Each column moves up by this factor of its distance from the left.
    ShearY(f64),
    /// Moves the image left by so many pixels.
    TranslateX(f64),
    /// Moves the image up by so many pixels.
    TranslateY(f64),
}

impl Operation {
    /// Its name in plans, replays and recipes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::AutoContrast => "autocontrast",
            Self::Equalize => "equalize",
            Self::Invert => "invert",
            Self::Grayscale => "grayscale",
            Self::Brightness(_) => "brightness",
            Self::Contrast(_) => "contrast",
            Self::Saturation(_) => "saturation",
            Self::Sharpness(_) => "sharpness",
            Self::Hue(_) => "hue",
            Self::Posterize(_) => "posterize",
            Self::Solarize(_) => "solarize",
            Self::SolarizeAdd(_) => "solarize_add",
            Self::GaussianBlur(_) => "gaussian_blur",
            Self::Rotate(_) => "rotate",
            Self::ShearX(_) => "shear_x",
            Self::ShearY(_) => "shear_y",
            Self::TranslateX(_) => "translate_x",
            Self::TranslateY(_) => "translate_y",
        }
    }

    /// Its argument; `None` where it takes none.
    pub fn argument(self) -> Option<f64> {
        match self {
            Self::Identity | Self::AutoContrast | Self::Equalize | Self::Invert | Self::Grayscale => None,
            Self::Brightness(value)
            | Self::Contrast(value)
            | Self::Saturation(value)
            | Self::Sharpness(value)
            | Self::Hue(value)
            | Self::Solarize(value)
            | Self::GaussianBlur(value)
            | Self::Rotate(value)
            | Self::ShearX(value)
            | Self::ShearY(value)
            | Self::TranslateX(value)
            | Self::TranslateY(value) => Some(value),
            Self::Posterize(value) | Self::SolarizeAdd(value) => Some(value.into()),
        }
    }
}

impl Serialize for Operation {
    /// `["rotate", -9.0]`, or `["invert"]`.
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut list = to.serialize_seq(None)?;
        list.serialize_element(self.name())?;
        match *self {
            Self::Posterize(value) | Self::SolarizeAdd(value) => list.serialize_element(&value)?,
            other => other.argument().map_or(Ok(()), |value| list.serialize_element(&value))?,
        }
        list.end()
    }
}

impl fmt::Display for Operation {
    /// `rotate -9`, rounded for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.argument() {
            None => f.write_str(self.name()),
            Some(value) => write!(f, "{} {}", self.name(), (value * 100.0).round() / 100.0),
        }
    }
}

/// The most operations that are drawn for one view.
pub const OPERATIONS_MAX: usize = 16;

/// The operations of one view, in the order in which they are applied.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Operations {
    list: [Operation; OPERATIONS_MAX],
    len: usize,
}

impl Operations {
    /// None.
    pub const NONE: Self = Self { list: [Operation::Identity; OPERATIONS_MAX], len: 0 };

    /// Adds one more.
    ///
    /// # Panics
    /// When there are [`OPERATIONS_MAX`] already.
    pub fn push(&mut self, operation: Operation) {
        self.list[self.len] = operation;
        self.len += 1;
    }
}

impl std::ops::Deref for Operations {
    type Target = [Operation];
    fn deref(&self) -> &[Operation] {
        &self.list[..self.len]
    }
}

/// How warps (rotate, shear, translate) sample an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WarpFilter {
    /// The nearest pixel.
    #[default]
    Nearest,
    /// A triangle over 2×2 pixels.
    Bilinear,
    /// A cubic with a = −1 over 4×4 pixels.
    Bicubic,
}
named!(
    WarpFilter,
    "filter of warps",
    "nearest, bilinear or bicubic",
    Nearest = "nearest",
    Bilinear = "bilinear",
    Bicubic = "bicubic"
);

/// How warps are computed: their filter, and the colour outside the image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Warping {
    /// The filter.
    pub filter: WarpFilter,
    /// R, G, B of pixels that show nothing of the image.
    pub fill: [u8; 3],
}

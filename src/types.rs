//! The words of the domain as types: splits, classes, sizes, element types, places.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Index of a sample in the sorted index of its split.
pub type SampleId = u32;

/// Position of a class in the vocabulary, the byte-wise sorted set of training classes.
pub type ClassId = u32;

/// Labels of an image that may have several, without repetition, ascending.
pub type LabelSet = Box<[ClassId]>;

/// One class of the vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    /// Its id in the source; for a folder the name of the class folder.
    pub id: String,
    /// A readable name; the id where none is known.
    pub name: String,
}

/// A text that names no value of a closed set of options.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is not a {what} (use {expected})")]
pub struct ParseError {
    /// What was to be named, e.g. «split».
    pub what: &'static str,
    /// The text that was given.
    pub found: String,
    /// The texts that would have done.
    pub expected: &'static str,
}

/// Reads a number of bytes, such as 7, 512M or 2GiB.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Gives a fieldless enum its names: `Display`, `FromStr`, and a list for help texts.
macro_rules! named {
    ($type:ident, $what:literal, $expected:literal, $($variant:ident = $name:literal),+) => {
        impl $type {
            /// Every value, in the order of the declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name users read and write.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }
        impl FromStr for $type {
            type Err = ParseError;
            fn from_str(text: &str) -> Result<Self, ParseError> {
                Self::ALL.iter().copied().find(|value| value.name() == text).ok_or_else(|| ParseError {
                    what: $what,
                    found: text.to_owned(),
                    expected: $expected,
                })
            }
        }
    };
}
pub(crate) use named;

/// Which half of the data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Training images.
    Train,
    /// Validation images.
    Val,
}
named!(Split, "split", "train or val", Train = "train", Val = "val");

/// Element type of a finished batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit floating point.
    F32,
    /// IEEE half precision, rounded from f32 to nearest even.
    F16,
    /// bfloat16, rounded from f32 to nearest even.
    Bf16,
    /// Raw pixels, mixed and rounded to nearest even, not normalised.
    U8,
}
named!(Dtype, "dtype", "f32, f16, bf16 or u8", F32 = "f32", F16 = "f16", Bf16 = "bf16", U8 = "u8");

impl Dtype {
    /// Bytes an element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::U8 => 1,
        }
    }
}

/// Order of a batch's axes in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// `[B, 3, H, W]`.
    Nchw,
    /// `[B, H, W, 3]`.
    Nhwc,
}
named!(Layout, "layout", "nchw or nhwc", Nchw = "nchw", Nhwc = "nhwc");

/// What becomes of the rows that do not fill an epoch's last batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Last {
    /// They make a short batch.
    Keep,
    /// They are left out of this epoch.
    Drop,
}
named!(Last, "last", "keep or drop", Keep = "keep", Drop = "drop");

/// Height and width of the images of a batch, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageSize {
    /// Rows of pixels, 1 to [`ImageSize::SIDE_MAX`].
    pub height: u32,
    /// Pixels a row, 1 to [`ImageSize::SIDE_MAX`].
    pub width: u32,
}

impl ImageSize {
    /// The longest side that a feed may ask for.
    pub const SIDE_MAX: u32 = 8192;

    /// A square of `side` × `side` pixels.
    pub const fn square(side: u32) -> Self {
        Self { height: side, width: side }
    }

    /// Pixels of one channel: H·W.
    pub const fn pixels(self) -> usize {
        self.height as usize * self.width as usize
    }

    /// Values of one RGB image: 3·H·W, which is also the bytes of a stored sample.
    pub const fn values(self) -> usize {
        3 * self.pixels()
    }
}

impl fmt::Display for ImageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.height, self.width)
    }
}

impl FromStr for ImageSize {
    type Err = ParseError;

    /// Reads `128` (a square) or `96x160` (height × width).
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let parse = |part: &str| part.parse().ok().filter(|side| (1..=Self::SIDE_MAX).contains(side));
        let sides = match text.split_once('x') {
            Some((height, width)) => parse(height).zip(parse(width)),
            None => parse(text).map(|side| (side, side)),
        };
        sides.map(|(height, width)| Self { height, width }).ok_or_else(|| ParseError {
            what: "size",
            found: text.to_owned(),
            expected: "a side such as 128, or HEIGHTxWIDTH such as 96x160, each side 1 to 8192",
        })
    }
}

/// A box of pixels: rows `top..bottom`, columns `left..right`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cut {
    /// First row.
    pub top: u32,
    /// First row below it.
    pub bottom: u32,
    /// First column.
    pub left: u32,
    /// First column right of it.
    pub right: u32,
}

impl Cut {
    /// Pixels in the box.
    pub const fn pixels(self) -> usize {
        (self.bottom - self.top) as usize * (self.right - self.left) as usize
    }
}

/// The filter of a resize.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// A triangle over 2 pixels, widened when shrinking.
    #[default]
    Bilinear,
    /// Keys' cubic with a = −½ over 4 pixels, widened when shrinking.
    Bicubic,
}
named!(Interpolation, "interpolation", "bilinear or bicubic", Bilinear = "bilinear", Bicubic = "bicubic");

/// What pixels outside an image are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PadMode {
    /// 0.
    #[default]
    Constant,
    /// The image mirrored at its edge pixels, which are not repeated; mirrored again where that is not enough.
    Reflect,
}
named!(PadMode, "padding", "constant or reflect", Constant = "constant", Reflect = "reflect");

/// A box of a decoded image, in its pixels. A padded crop may reach beyond the image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CropBox {
    /// First row; negative above the image.
    pub top: i32,
    /// First column; negative left of the image.
    pub left: i32,
    /// Rows.
    pub height: u32,
    /// Pixels a row.
    pub width: u32,
}

impl CropBox {
    /// The smallest box that has both.
    pub fn union(self, other: Self) -> Self {
        let edge = |a: (i32, u32), b: (i32, u32)| {
            let (first, end) = (a.0.min(b.0), a.0.saturating_add_unsigned(a.1).max(b.0.saturating_add_unsigned(b.1)));
            (first, end.abs_diff(first))
        };
        let (top, height) = edge((self.top, self.height), (other.top, other.height));
        let (left, width) = edge((self.left, self.width), (other.left, other.width));
        Self { top, left, height, width }
    }
}

/// Bound of epochs: 2⁵⁶.
pub const EPOCH_BITS: u32 = 56;
/// Bound of the epoch in which a feed begins: 2⁵⁵, so that none reaches the last one.
pub const START_EPOCH_BITS: u32 = EPOCH_BITS - 1;
/// Bound of batches an epoch: 2²⁴.
pub const BATCH_BITS: u32 = 24;
/// Bound of rows a batch, counted over all ranks: 2²⁴.
pub const ROW_BITS: u32 = 24;

/// A batch's place in the endless sequence of its feed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Batch within the epoch, from 0.
    pub index: u64,
}

impl Place {
    /// How many batches lie before it in epochs of `batches`.
    pub fn number(self, batches: u64) -> u128 {
        u128::from(self.epoch) * u128::from(batches) + u128::from(self.index)
    }

    /// The place with this many batches before it in epochs of `batches`.
    pub fn of_number(number: u128, batches: u64) -> Self {
        let batches = u128::from(batches);
        Self { epoch: (number / batches) as u64, index: (number % batches) as u64 }
    }

    /// The place after it in epochs of `batches`.
    pub fn next(self, batches: u64) -> Self {
        Self::of_number(self.number(batches) + 1, batches)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {}, batch {}", self.epoch, self.index)
    }
}

/// Where a trainer begins to read a feed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// At the next batch; a feed that is opened begins at its first place: epoch 0, batch 0, or the first batch that is not consumed.
    #[default]
    Now,
    /// At the first batch of the next epoch; a feed that is opened begins at its first place.
    NextEpoch,
    /// At this batch.
    At(Place),
}

impl Start {
    /// Where a feed whose first place is `first` begins when it is opened with this.
    pub fn of_a_new_feed(self, first: Place) -> Place {
        match self {
            Self::Now | Self::NextEpoch => first,
            Self::At(place) => place,
        }
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Now => f.write_str("now"),
            Self::NextEpoch => f.write_str("next-epoch"),
            Self::At(Place { epoch, index }) => write!(f, "{epoch},{index}"),
        }
    }
}

impl FromStr for Start {
    type Err = ParseError;

    /// Reads `now`, `next-epoch`, or `EPOCH,BATCH`, both from 0.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let place = || {
            let (epoch, index) = text.split_once(',')?;
            Some(Self::At(Place { epoch: epoch.trim().parse().ok()?, index: index.trim().parse().ok()? }))
        };
        match text {
            "now" => Some(Self::Now),
            "next-epoch" => Some(Self::NextEpoch),
            _ => place(),
        }
        .ok_or_else(|| ParseError {
            what: "start",
            found: text.to_owned(),
            expected: "now, next-epoch, or EPOCH,BATCH such as 40,100",
        })
    }
}

/// Where tensors lie and are computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    /// Main memory and the processor.
    #[default]
    Cpu,
    /// The CUDA device of this ordinal.
    Cuda(u32),
}

impl TryFrom<String> for Device {
    type Error = ParseError;
    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl FromStr for Device {
    type Err = ParseError;

    /// Reads `cpu`, `cuda` (ordinal 0) or `cuda:N`.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(0)),
            other => other.strip_prefix("cuda:").and_then(|n| n.parse().ok()).map(Self::Cuda),
        }
        .ok_or_else(|| ParseError { what: "device", found: text.to_owned(), expected: "cpu, cuda or cuda:N" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_a_round_trip() {
        for &dtype in Dtype::ALL {
            assert_eq!(dtype.name().parse(), Ok(dtype));
        }
        for &interpolation in Interpolation::ALL {
            assert_eq!(interpolation.name().parse(), Ok(interpolation));
        }
        for &pad in PadMode::ALL {
            assert_eq!(pad.name().parse(), Ok(pad));
        }
        for text in ["cpu", "cuda:0", "cuda:7"] {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for text in ["now", "next-epoch", "40,100"] {
            assert_eq!(text.parse::<Start>().unwrap().to_string(), text);
        }
        for text in ["", "40", "a,1", "1,-1"] {
            assert!(text.parse::<Start>().is_err(), "{text}");
        }
        assert_eq!("96x160".parse(), Ok(ImageSize { height: 96, width: 160 }));
    }

    #[test]
    fn nonsense_is_refused_naming_what_would_do() {
        for text in ["0", "128x", "x128", "-1", "9000", "1x2x3"] {
            assert!(text.parse::<ImageSize>().is_err(), "{text}");
        }
        let error = "f64".parse::<Dtype>().unwrap_err().to_string();
        assert_eq!(error, "`f64` is not a dtype (use f32, f16, bf16 or u8)");
    }
}

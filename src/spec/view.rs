//! What part of an image a row shows: the crop.

use crate::types::{ImageSize, PadMode, ParseError};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How an image becomes a view of the feed's size H×W (docs/spec/recipes.md, Crops).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Crop {
    /// All of it, resized to H×W whatever its aspect ratio.
    Squash,
    /// All of it, resized to `resize` × `resize`, of which the centre is taken.
    SquashCenter {
        /// Pixels of a side before the crop.
        resize: u32,
    },
    /// Its short side is resized to `resize` at the same aspect ratio, and the centre is taken.
    ShortCenter {
        /// Pixels of the short side before the crop.
        resize: u32,
    },
    /// A box of random area and aspect ratio, resized to H×W.
    RandomResizedCrop {
        /// Least and largest area of the box, as shares of the image's.
        scale: [f64; 2],
        /// Least and largest aspect ratio of the box, width over height.
        ratio: [f64; 2],
    },
    /// A window of H×W at a random place of the image, padded on every side.
    PadCrop {
        /// Pixels added on each side.
        pad: u32,
        /// What is added.
        mode: PadMode,
    },
}

impl Crop {
    /// torchvision's random resized crop: 8 % to all of the area, aspect ratios 3/4 to 4/3.
    pub const RANDOM_RESIZED: Self = Self::RandomResizedCrop { scale: [0.08, 1.0], ratio: [0.75, 4.0 / 3.0] };

    /// The longest side that an image may be resized to before its centre is taken, and the most that one may be padded by.
    pub const RESIZE_MAX: u32 = 2 * ImageSize::SIDE_MAX;

    /// Whether each use of an image has a view of its own.
    pub const fn is_random(&self) -> bool {
        matches!(self, Self::RandomResizedCrop { .. } | Self::PadCrop { .. })
    }

    /// The crop for views of `size` where a recipe has it for views of `of`: what is resized before a centre crop keeps its proportion.
    pub fn scaled(self, of: ImageSize, size: ImageSize) -> Self {
        let side = |size: ImageSize| f64::from(size.height.min(size.width));
        let scale = |resize: u32| {
            (f64::from(resize) * side(size) / side(of)).round().clamp(1.0, f64::from(Self::RESIZE_MAX)) as u32
        };
        match self {
            Self::SquashCenter { resize } => Self::SquashCenter { resize: scale(resize) },
            Self::ShortCenter { resize } => Self::ShortCenter { resize: scale(resize) },
            other => other,
        }
    }

    /// The first value out of range, with what it may be.
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        match *self {
            Self::SquashCenter { resize } | Self::ShortCenter { resize }
                if !(1..=Self::RESIZE_MAX).contains(&resize) =>
            {
                Err((format!("{self}"), format!("a crop after a resize to 1 to {} pixels", Self::RESIZE_MAX)))
            }
            Self::RandomResizedCrop { scale: [low, high], .. } if !(low > 0.0 && low <= high && high <= 1.0) => {
                Err((format!("{self}"), "a crop whose share of the area has 0 < least <= largest <= 1".to_owned()))
            }
            Self::RandomResizedCrop { ratio: [low, high], .. } if !(low > 0.0 && low <= high && high <= 1e3) => {
                Err((format!("{self}"), "a crop whose aspect ratio has 0 < least <= largest <= 1000".to_owned()))
            }
            Self::PadCrop { pad, .. } if pad > ImageSize::SIDE_MAX => {
                Err((format!("{self}"), format!("a crop that pads by at most {} pixels", ImageSize::SIDE_MAX)))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Crop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Squash => f.write_str("squash"),
            Self::SquashCenter { resize } => write!(f, "squash_center:{resize}"),
            Self::ShortCenter { resize } => write!(f, "short_center:{resize}"),
            Self::RandomResizedCrop { scale: [a, b], ratio: [c, d] } => {
                write!(f, "random_resized_crop:{a},{b},{c},{d}")
            }
            Self::PadCrop { pad, mode } => write!(f, "pad_crop:{pad},{mode}"),
        }
    }
}

impl FromStr for Crop {
    type Err = ParseError;

    /// Reads `KIND` or `KIND:NUMBERS`, as [`Crop`] is displayed; a random resized crop's aspect ratios, or all four numbers, may be left out.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (kind, arguments) =
            text.split_once(':').map_or((text, Vec::new()), |(kind, rest)| (kind, rest.split(',').collect()));
        let number = |text: &str| text.trim().parse::<f64>().ok();
        let numbers = || arguments.iter().map(|text| number(text)).collect::<Option<Vec<f64>>>();
        let whole = |text: &str| text.trim().parse::<u32>().ok();
        let Self::RandomResizedCrop { scale, ratio } = Self::RANDOM_RESIZED else { unreachable!("its own kind") };
        let crop = match (kind, &arguments[..]) {
            ("squash", []) => Some(Self::Squash),
            ("squash_center", [resize]) => whole(resize).map(|resize| Self::SquashCenter { resize }),
            ("short_center", [resize]) => whole(resize).map(|resize| Self::ShortCenter { resize }),
            ("random_resized_crop", _) => match numbers().as_deref() {
                Some([]) => Some(Self::RandomResizedCrop { scale, ratio }),
                Some(&[a, b]) => Some(Self::RandomResizedCrop { scale: [a, b], ratio }),
                Some(&[a, b, c, d]) => Some(Self::RandomResizedCrop { scale: [a, b], ratio: [c, d] }),
                _ => None,
            },
            ("pad_crop", [pad]) => whole(pad).map(|pad| Self::PadCrop { pad, mode: PadMode::Constant }),
            ("pad_crop", [pad, mode]) => {
                whole(pad).zip(mode.trim().parse().ok()).map(|(pad, mode)| Self::PadCrop { pad, mode })
            }
            _ => None,
        };
        crop.ok_or_else(|| ParseError {
            what: "crop",
            found: text.to_owned(),
            expected: "squash, squash_center:152, short_center:256, random_resized_crop, random_resized_crop:0.35,1, \
                       random_resized_crop:0.08,1,0.75,1.33, pad_crop:4 or pad_crop:4,reflect",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crops_survive_as_text_and_as_json() {
        let crops = [
            Crop::Squash,
            Crop::SquashCenter { resize: 152 },
            Crop::ShortCenter { resize: 256 },
            Crop::RANDOM_RESIZED,
            Crop::PadCrop { pad: 4, mode: PadMode::Reflect },
        ];
        for crop in crops {
            assert_eq!(crop.to_string().parse(), Ok(crop));
            assert_eq!(serde_json::from_str::<Crop>(&serde_json::to_string(&crop).unwrap()).unwrap(), crop);
        }
        assert_eq!("random_resized_crop".parse(), Ok(Crop::RANDOM_RESIZED));
        for text in ["", "squash:1", "short_center", "short_center:a", "random_resized_crop:1", "pad_crop:4,5", "crop"]
        {
            assert!(text.parse::<Crop>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_resized_before_a_centre_crop_keeps_its_proportion() {
        let (of, size) = (ImageSize::square(224), ImageSize::square(112));
        assert_eq!(Crop::ShortCenter { resize: 256 }.scaled(of, size), Crop::ShortCenter { resize: 128 });
        assert_eq!(Crop::RANDOM_RESIZED.scaled(of, size), Crop::RANDOM_RESIZED);
    }
}

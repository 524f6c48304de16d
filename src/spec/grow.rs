//! Views that grow with the epochs (progressive resizing; docs/spec/recipes.md#sizes).

use crate::types::{ImageSize, ParseError};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Sides are rounded to a multiple of so many pixels while they grow.
const STEP: f64 = 32.0;

/// Views begin smaller and grow to the feed's size, linearly between two epochs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grow {
    /// Height and width up to epoch `from`.
    #[serde(with = "super::size")]
    pub size: ImageSize,
    /// The last epoch of that size.
    pub from: u64,
    /// The first epoch of the feed's size.
    pub to: u64,
}

impl Grow {
    /// Height and width in an epoch of a feed whose views grow to `full`.
    pub fn at(&self, epoch: u64, full: ImageSize) -> ImageSize {
        let Self { size, from, to } = *self;
        if epoch <= from {
            return size;
        }
        if epoch >= to {
            return full;
        }
        let share = (epoch - from) as f64 / (to - from) as f64;
        let side = |least: u32, most: u32| {
            let exact = f64::from(least) + share * (f64::from(most) - f64::from(least));
            (((exact / STEP).round_ties_even() * STEP) as u32).clamp(least, most)
        };
        ImageSize { height: side(size.height, full.height), width: side(size.width, full.width) }
    }

    /// Whether views grow to `full`, rather than shrink, and in time.
    pub(super) fn check(&self, full: ImageSize) -> Result<(), (String, String)> {
        let Self { size, from, to } = *self;
        let is_smaller = size.height <= full.height && size.width <= full.width && size.height > 0 && size.width > 0;
        if is_smaller && from < to {
            return Ok(());
        }
        Err((self.to_string(), format!("SIZE,FROM,TO with a size up to {full} and FROM before TO")))
    }
}

impl fmt::Display for Grow {
    /// `SIZE,FROM,TO`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{},{}", self.size, self.from, self.to)
    }
}

impl FromStr for Grow {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let parts: Vec<&str> = text.split(',').map(str::trim).collect();
        let grow = match parts[..] {
            [size, from, to] => match (size.parse(), from.parse(), to.parse()) {
                (Ok(size), Ok(from), Ok(to)) => Some(Self { size, from, to }),
                _ => None,
            },
            _ => None,
        };
        grow.ok_or_else(|| ParseError {
            what: "growth of views",
            found: text.to_owned(),
            expected: "SIZE,FROM_EPOCH,TO_EPOCH, such as 160,11,13",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_grow_as_ffcv_s_do() {
        let grow: Grow = "160,65,76".parse().unwrap();
        assert_eq!(grow.to_string().parse(), Ok(grow));
        let full = ImageSize::square(192);
        // int(np.round(np.interp([epoch], [65, 76], [160, 192])[0] / 32)) * 32
        let sides: Vec<u32> = (64..78).map(|epoch| grow.at(epoch, full).height).collect();
        assert_eq!(sides, [160, 160, 160, 160, 160, 160, 160, 192, 192, 192, 192, 192, 192, 192]);
        let far = Grow { size: ImageSize { height: 96, width: 128 }, from: 0, to: 4 };
        let sizes: Vec<ImageSize> = (0..6).map(|epoch| far.at(epoch, ImageSize::square(256))).collect();
        let size = |height, width| ImageSize { height, width };
        assert_eq!(
            sizes,
            [(96, 128), (128, 160), (192, 192), (224, 224), (256, 256), (256, 256)].map(|(h, w)| size(h, w))
        );
        assert!("160,65".parse::<Grow>().is_err() && "160,a,9".parse::<Grow>().is_err());
        assert!(grow.check(ImageSize::square(128)).is_err() && Grow { from: 9, to: 9, ..grow }.check(full).is_err());
    }
}

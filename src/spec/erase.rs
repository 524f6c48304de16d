//! Random erasing: boxes of a view that are replaced after it is normalized (Zhong et al. 2020; docs/spec/recipes.md#erasing).

use crate::types::{ParseError, named};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What stands in an erased box, in normalized values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u32)]
pub enum EraseMode {
    /// 0: the mean.
    #[default]
    Const,
    /// One number from N(0, 1) for each channel of a box.
    Rand,
    /// One number from N(0, 1) for each value.
    Pixel,
}
named!(EraseMode, "erase mode", "const, rand or pixel", Const = "const", Rand = "rand", Pixel = "pixel");

/// When boxes are erased.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EraseWhen {
    /// Each image before it is mixed: an image and its partner have boxes of their own.
    #[default]
    BeforeMix,
    /// The mixed image.
    AfterMix,
}
named!(EraseWhen, "time of erasing", "before-mix or after-mix", BeforeMix = "before-mix", AfterMix = "after-mix");

/// Erasing by chance.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Erase {
    /// Its probability, for each view.
    pub prob: f64,
    /// What stands in the boxes.
    pub mode: EraseMode,
    /// The most boxes of a view, 1 to [`Erase::COUNT_MAX`]; how many, is uniform.
    pub count: u32,
    /// Least and largest area of a box, as shares of the view's, divided by the number of boxes.
    pub area: [f64; 2],
    /// Least and largest aspect ratio of a box, height over width.
    pub ratio: [f64; 2],
    /// Before the mix or after it.
    pub when: EraseWhen,
}

impl Default for Erase {
    /// None; the bounds are torchvision's.
    fn default() -> Self {
        Self {
            prob: 0.0,
            mode: EraseMode::Const,
            count: 1,
            area: [0.02, 0.33],
            ratio: [0.3, 3.3],
            when: EraseWhen::BeforeMix,
        }
    }
}

impl Erase {
    /// The most boxes of a view.
    pub const COUNT_MAX: u32 = 8;

    /// torchvision's `RandomErasing(p)`.
    pub fn torchvision(prob: f64) -> Self {
        Self { prob, ..Self::default() }
    }

    /// timm's, in this mode.
    pub fn timm(prob: f64, mode: EraseMode) -> Self {
        Self { prob, mode, area: [0.02, 1.0 / 3.0], ratio: [0.3, 1.0 / 0.3], ..Self::default() }
    }

    /// The first value out of range, with what it may be.
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        let Self { prob, mode: _, count, area, ratio, when: _ } = *self;
        let allowed = if !(0.0..=1.0).contains(&prob) {
            "boxes with a probability in [0, 1]".to_owned()
        } else if !(1..=Self::COUNT_MAX).contains(&count) {
            format!("1 to {} boxes", Self::COUNT_MAX)
        } else if !(area[0] > 0.0 && area[0] <= area[1] && area[1] <= 1.0) {
            "boxes whose share of the area has 0 < least <= largest <= 1".to_owned()
        } else if !(ratio[0] > 0.0 && ratio[0] <= ratio[1] && ratio[1] <= 1e3) {
            "boxes whose aspect ratio has 0 < least <= largest <= 1000".to_owned()
        } else {
            return Ok(());
        };
        Err((self.to_string(), allowed))
    }
}

impl fmt::Display for Erase {
    /// `PROB,MODE,COUNT,WHEN,AREA_MIN,AREA_MAX,RATIO_MIN,RATIO_MAX`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { prob, mode, count, area: [a, b], ratio: [c, d], when } = self;
        write!(f, "{prob},{mode},{count},{when},{a},{b},{c},{d}")
    }
}

impl FromStr for Erase {
    type Err = ParseError;

    /// Reads erasing as it is displayed. What is left out at the end has torchvision's values with `const`, timm's with the other modes.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let parse = || {
            let mut parts = text.split(',').map(str::trim);
            let prob: f64 = parts.next()?.parse().ok()?;
            let mode = parts.next().map_or(Some(EraseMode::Const), |text| text.parse().ok())?;
            let base = if mode == EraseMode::Const { Self::torchvision(prob) } else { Self::timm(prob, mode) };
            let count = parts.next().map_or(Some(base.count), |text| text.parse().ok())?;
            let when = parts.next().map_or(Some(base.when), |text| text.parse().ok())?;
            let mut bounds = [base.area, base.ratio];
            let rest: Vec<f64> = parts.map(str::parse).collect::<Result<_, _>>().ok()?;
            match rest[..] {
                [] => {}
                [a, b] => bounds[0] = [a, b],
                [a, b, c, d] => bounds = [[a, b], [c, d]],
                _ => return None,
            }
            Some(Self { prob, mode, count, area: bounds[0], ratio: bounds[1], when })
        };
        parse().ok_or_else(|| ParseError {
            what: "erasing",
            found: text.to_owned(),
            expected: "PROB[,const|rand|pixel[,BOXES[,before-mix|after-mix[,AREA_MIN,AREA_MAX[,RATIO_MIN,RATIO_MAX]]]]], such as 0.25,pixel",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erasing_survives_as_text() {
        assert_eq!("0.1".parse(), Ok(Erase::torchvision(0.1)));
        assert_eq!("0.25,pixel".parse(), Ok(Erase::timm(0.25, EraseMode::Pixel)));
        let other = Erase {
            count: 3,
            when: EraseWhen::AfterMix,
            area: [0.1, 0.2],
            ratio: [0.5, 2.0],
            ..Erase::timm(1.0, EraseMode::Rand)
        };
        for erase in [Erase::default(), Erase::timm(0.25, EraseMode::Pixel), other] {
            assert_eq!(erase.to_string().parse(), Ok(erase));
        }
        for text in ["", "x", "0.1,mean", "0.1,rand,-1", "0.1,rand,1,later", "0.1,rand,1,after-mix,0.1"] {
            assert!(text.parse::<Erase>().is_err(), "{text}");
        }
    }
}

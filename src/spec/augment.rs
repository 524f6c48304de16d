//! What is done to a view after its crop and flip: the policy, and the stages of color after it.

use crate::operation::Warping;
use crate::types::ParseError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The stages after crop and flip, in the order of the fields. Each is off by default.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Draws operations from a table.
    pub policy: Policy,
    /// Brightness, contrast, saturation and hue in a random order.
    pub jitter: ColorJitter,
    /// Probability that the luma takes the place of all channels.
    pub grayscale: f64,
    /// Gaussian blur.
    pub blur: Blur,
    /// Solarization.
    pub solarize: Solarize,
    /// How the policy's warps sample.
    pub warping: Warping,
    /// Other blur and solarization of a sample's views after the first (DINO).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub later: Option<LaterViews>,
}

/// What differs in a sample's views after the first.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LaterViews {
    /// Their blur.
    pub blur: Blur,
    /// Their solarization.
    pub solarize: Solarize,
}

impl Augment {
    /// What is done to view `view` of a sample, from 0.
    pub fn of_view(&self, view: u32) -> Self {
        match self.later {
            Some(LaterViews { blur, solarize }) if view > 0 => Self { blur, solarize, ..*self },
            _ => *self,
        }
    }

    /// Whether any stage may change a view.
    pub fn is_on(&self) -> bool {
        let Self { policy, jitter, grayscale, .. } = self;
        let by_chance = |Self { blur, solarize, .. }: Self| blur.prob > 0.0 || solarize.prob > 0.0;
        *policy != Policy::None
            || jitter.is_on()
            || *grayscale > 0.0
            || [0, 1].into_iter().any(|view| by_chance(self.of_view(view)))
    }

    /// The first value out of range, with its key and what it may be.
    pub(super) fn check(&self) -> Result<(), (&'static str, String, String)> {
        [0, 1].into_iter().try_for_each(|view| self.of_view(view).check_view())
    }

    fn check_view(&self) -> Result<(), (&'static str, String, String)> {
        let Self { policy: _, jitter, grayscale, blur, solarize, warping: _, later: _ } = *self;
        let Blur { prob, sigma } = blur;
        let ColorJitter { brightness, contrast, saturation, hue, prob: jitter_prob } = jitter;
        let is_probability = |value: f64| (0.0..=1.0).contains(&value);
        let extents = [brightness, contrast, saturation];
        if !extents.iter().all(|extent| (0.0..=100.0).contains(extent)) || !(0.0..=0.5).contains(&hue) {
            let allowed = "brightness, contrast and saturation of 0 to 100 and a hue of 0 to 0.5";
            return Err(("color_jitter", jitter.to_string(), allowed.to_owned()));
        }
        for (key, value) in
            [("color_jitter", jitter_prob), ("grayscale", grayscale), ("blur", prob), ("solarize", solarize.prob)]
        {
            if !is_probability(value) {
                return Err((key, value.to_string(), "a probability, in [0, 1]".to_owned()));
            }
        }
        if !(sigma[0] > 0.0 && sigma[0] <= sigma[1] && sigma[1] <= Blur::SIGMA_MAX) {
            let allowed = format!("a blur with 0 < least sigma <= largest sigma <= {}", Blur::SIGMA_MAX);
            return Err(("blur", blur.to_string(), allowed));
        }
        if !(0.0..=256.0).contains(&solarize.threshold) {
            return Err(("solarize", solarize.to_string(), "a threshold of 0 to 256".to_owned()));
        }
        Ok(())
    }
}

/// Numbers between commas.
fn numbers(text: &str) -> Option<Vec<f64>> {
    text.split(',').map(|number| number.trim().parse().ok()).collect()
}

/// How far each factor of color may be from 1, and the hue from 0 (torchvision's `ColorJitter`).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ColorJitter {
    /// Factors in [max(0, 1 − b), 1 + b]; 0 leaves it out.
    pub brightness: f64,
    /// As brightness.
    pub contrast: f64,
    /// As brightness.
    pub saturation: f64,
    /// Turns in [−h, h], at most ½; 0 leaves it out.
    pub hue: f64,
    /// Probability of all of it.
    pub prob: f64,
}

impl Default for ColorJitter {
    fn default() -> Self {
        Self { brightness: 0.0, contrast: 0.0, saturation: 0.0, hue: 0.0, prob: 1.0 }
    }
}

impl ColorJitter {
    /// Whether it may change anything.
    pub fn is_on(&self) -> bool {
        let Self { brightness, contrast, saturation, hue, prob } = *self;
        prob > 0.0 && [brightness, contrast, saturation, hue].iter().any(|&extent| extent > 0.0)
    }
}

impl fmt::Display for ColorJitter {
    /// `BRIGHTNESS,CONTRAST,SATURATION,HUE,PROB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { brightness, contrast, saturation, hue, prob } = self;
        write!(f, "{brightness},{contrast},{saturation},{hue},{prob}")
    }
}

impl FromStr for ColorJitter {
    type Err = ParseError;

    /// Reads a jitter as it is displayed. Hue and probability may be left out; one number is that of brightness, contrast and saturation.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let jitter = |brightness, contrast, saturation, hue, prob| Self { brightness, contrast, saturation, hue, prob };
        match numbers(text).as_deref() {
            Some(&[all]) => Ok(jitter(all, all, all, 0.0, 1.0)),
            Some(&[b, c, s]) => Ok(jitter(b, c, s, 0.0, 1.0)),
            Some(&[b, c, s, h]) => Ok(jitter(b, c, s, h, 1.0)),
            Some(&[b, c, s, h, prob]) => Ok(jitter(b, c, s, h, prob)),
            _ => Err(ParseError {
                what: "color jitter",
                found: text.to_owned(),
                expected: "one number, or BRIGHTNESS,CONTRAST,SATURATION[,HUE[,PROB]], such as 0.4,0.4,0.2,0.1,0.8",
            }),
        }
    }
}

/// Gaussian blur by chance.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Blur {
    /// Its probability.
    pub prob: f64,
    /// Bounds of the standard deviation, in pixels, drawn uniformly.
    pub sigma: [f64; 2],
}

impl Default for Blur {
    fn default() -> Self {
        Self { prob: 0.0, sigma: [0.1, 2.0] }
    }
}

impl Blur {
    /// The largest standard deviation, in pixels.
    pub const SIGMA_MAX: f64 = 100.0;
}

impl fmt::Display for Blur {
    /// `PROB,SIGMA_MIN,SIGMA_MAX`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{},{}", self.prob, self.sigma[0], self.sigma[1])
    }
}

impl FromStr for Blur {
    type Err = ParseError;

    /// Reads a blur as it is displayed; its bounds may be left out.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        match numbers(text).as_deref() {
            Some(&[prob]) => Ok(Self { prob, ..Self::default() }),
            Some(&[prob, low, high]) => Ok(Self { prob, sigma: [low, high] }),
            _ => Err(ParseError {
                what: "blur",
                found: text.to_owned(),
                expected: "PROB or PROB,SIGMA_MIN,SIGMA_MAX, such as 0.5,0.1,2",
            }),
        }
    }
}

/// Solarization by chance.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Solarize {
    /// Its probability.
    pub prob: f64,
    /// Values at this one and above are inverted.
    pub threshold: f64,
}

impl Default for Solarize {
    fn default() -> Self {
        Self { prob: 0.0, threshold: 128.0 }
    }
}

impl fmt::Display for Solarize {
    /// `PROB,THRESHOLD`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.prob, self.threshold)
    }
}

impl FromStr for Solarize {
    type Err = ParseError;

    /// Reads a solarization as it is displayed; its threshold may be left out.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        match numbers(text).as_deref() {
            Some(&[prob]) => Ok(Self { prob, ..Self::default() }),
            Some(&[prob, threshold]) => Ok(Self { prob, threshold }),
            _ => Err(ParseError {
                what: "solarization",
                found: text.to_owned(),
                expected: "PROB or PROB,THRESHOLD, such as 0.2,128",
            }),
        }
    }
}

/// A table from which operations are drawn (docs/spec/recipes.md#policies).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Policy {
    /// No operations.
    #[default]
    None,
    /// torchvision's `RandAugment`, of 31 magnitudes.
    RandAugment {
        /// Operations of each view, 1 to [`Policy::LAYERS_MAX`].
        layers: u32,
        /// Magnitude, 0 to 30.
        magnitude: u32,
    },
    /// torchvision's `TrivialAugmentWide`, of 31 magnitudes.
    TrivialAugmentWide,
    /// torchvision's `AutoAugment` with the ImageNet policy.
    AutoAugment,
    /// timm's `rand-…` strings.
    Timm(TimmRand),
    /// DeiT III's: one of grayscale, solarization and blur.
    ThreeAugment,
}

/// What a string `rand-m9-mstd0.5-inc1` says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TimmRand {
    /// Mean level, 0 to 10 (`m`).
    pub magnitude: f64,
    /// Standard deviation of the level (`mstd`).
    pub std: f64,
    /// Operations of each view, 1 to [`Policy::LAYERS_MAX`] (`n`).
    pub layers: u32,
    /// Probability of each of them (`p`).
    pub prob: f64,
    /// Whether every operation grows stronger with the level (`inc`).
    pub increasing: bool,
}

impl Policy {
    /// The most operations that a policy may draw for a view.
    pub const LAYERS_MAX: u32 = 8;

    /// The policy with its `layers`, if these are allowed.
    fn checked(self) -> Option<Self> {
        let layers = |layers| (1..=Self::LAYERS_MAX).contains(&layers);
        let ok = match self {
            Self::RandAugment { layers: count, magnitude } => layers(count) && magnitude <= 30,
            Self::Timm(TimmRand { magnitude, std, layers: count, prob, .. }) => {
                layers(count) && (0.0..=10.0).contains(&magnitude) && std >= 0.0 && (0.0..=1.0).contains(&prob)
            }
            _ => true,
        };
        ok.then_some(self)
    }
}

impl TimmRand {
    /// The keys of a string after `rand-`, in any order; what is left out has timm's default.
    fn parse(text: &str) -> Option<Self> {
        let mut rand = Self { magnitude: 10.0, std: 0.0, layers: 2, prob: 0.5, increasing: false };
        for part in text.split('-') {
            let digits = part.find(|c: char| c.is_ascii_digit()).unwrap_or(part.len());
            let (key, value) = part.split_at(digits);
            match key {
                "m" => rand.magnitude = value.parse().ok()?,
                "mstd" => rand.std = value.parse().ok().filter(|std: &f64| std.is_finite())?,
                "n" => rand.layers = value.parse().ok()?,
                "p" => rand.prob = value.parse().ok()?,
                "inc" => rand.increasing = value.parse::<u8>().ok()? != 0,
                _ => return None,
            }
        }
        Some(rand)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::None => f.write_str("none"),
            Self::RandAugment { layers, magnitude } => write!(f, "rand-augment:{layers},{magnitude}"),
            Self::TrivialAugmentWide => f.write_str("trivial-augment-wide"),
            Self::AutoAugment => f.write_str("auto-augment"),
            Self::Timm(TimmRand { magnitude, std, layers, prob, increasing }) => {
                write!(f, "rand-m{magnitude}-mstd{std}-n{layers}-p{prob}-inc{}", u8::from(increasing))
            }
            Self::ThreeAugment => f.write_str("3-augment"),
        }
    }
}

impl FromStr for Policy {
    type Err = ParseError;

    /// Reads a policy as it is displayed; of `rand-augment` the numbers, and of timm's strings any key, may be left out.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let policy = match text {
            "none" => Some(Self::None),
            "rand-augment" => Some(Self::RandAugment { layers: 2, magnitude: 9 }),
            "trivial-augment-wide" => Some(Self::TrivialAugmentWide),
            "auto-augment" => Some(Self::AutoAugment),
            "3-augment" => Some(Self::ThreeAugment),
            _ => match text.strip_prefix("rand-augment:").map(|numbers| numbers.split_once(',')) {
                Some(numbers) => numbers
                    .and_then(|(layers, magnitude)| layers.trim().parse().ok().zip(magnitude.trim().parse().ok()))
                    .map(|(layers, magnitude)| Self::RandAugment { layers, magnitude }),
                None => text.strip_prefix("rand-").and_then(TimmRand::parse).map(Self::Timm),
            },
        };
        policy.and_then(Self::checked).ok_or_else(|| ParseError {
            what: "policy",
            found: text.to_owned(),
            expected: "none, rand-augment, rand-augment:LAYERS,MAGNITUDE, trivial-augment-wide, auto-augment, 3-augment, or a \
                       string of timm's such as rand-m9-mstd0.5-inc1, with the keys m, mstd, n, p and inc",
        })
    }
}

impl TryFrom<String> for Policy {
    type Error = ParseError;
    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<Policy> for String {
    fn from(policy: Policy) -> Self {
        policy.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_of_color_survive_as_text() {
        let jitter = ColorJitter { brightness: 0.4, contrast: 0.3, saturation: 0.2, hue: 0.1, prob: 0.8 };
        assert_eq!("0.4,0.3,0.2,0.1,0.8".parse(), Ok(jitter));
        assert_eq!(jitter.to_string().parse(), Ok(jitter));
        let all = ColorJitter { brightness: 0.3, contrast: 0.3, saturation: 0.3, ..ColorJitter::default() };
        assert_eq!("0.3".parse(), Ok(all));
        assert_eq!("0.5".parse(), Ok(Blur { prob: 0.5, ..Blur::default() }));
        let blur = Blur { prob: 1.0, sigma: [0.2, 3.0] };
        assert_eq!(blur.to_string().parse(), Ok(blur));
        let solarize = Solarize { prob: 0.2, threshold: 100.0 };
        assert_eq!(solarize.to_string().parse(), Ok(solarize));
        assert!("0.4,0.4".parse::<ColorJitter>().is_err() && "".parse::<Blur>().is_err());
        assert!("0.1,0.2,0.3".parse::<Solarize>().is_err());
    }

    #[test]
    fn policies_survive_as_text() {
        let timm = TimmRand { magnitude: 9.0, std: 0.5, layers: 2, prob: 0.5, increasing: true };
        assert_eq!("rand-m9-mstd0.5-inc1".parse(), Ok(Policy::Timm(timm)));
        assert_eq!("rand-augment".parse(), Ok(Policy::RandAugment { layers: 2, magnitude: 9 }));
        let other = Policy::Timm(TimmRand { layers: 3, prob: 0.7, std: 0.0, increasing: false, ..timm });
        assert_eq!("rand-n3-m9-p0.7".parse(), Ok(other));
        for policy in [
            Policy::None,
            Policy::RandAugment { layers: 3, magnitude: 30 },
            Policy::TrivialAugmentWide,
            Policy::AutoAugment,
            Policy::Timm(timm),
            other,
            Policy::ThreeAugment,
        ] {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        for text in [
            "",
            "rand",
            "rand-",
            "rand-m11",
            "rand-m9-w0",
            "rand-augment:9,9",
            "rand-augment:2",
            "rand-augment:2,31",
            "augmix",
        ] {
            assert!(text.parse::<Policy>().is_err(), "{text}");
        }
    }
}

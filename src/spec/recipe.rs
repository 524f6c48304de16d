//! Recipes: named sets of defaults for feeds, from which training and validation views follow (docs/spec/recipes.md).

use super::{Augment, Crop, Erase, FeedSpec, Grow, Mix, size};
use crate::types::{ImageSize, Interpolation, ParseError, Split};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// What a training recipe says of its images. Feeds take their defaults from it; explicit options of a feed take precedence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// What it is called.
    pub name: String,
    /// Where its constants come from.
    #[serde(default)]
    pub about: String,
    /// Mean of each channel, of pixel values in [0, 1].
    pub mean: [f32; 3],
    /// Standard deviation of each channel.
    pub std: [f32; 3],
    /// Views of the training split.
    pub train: TrainView,
    /// Views of the validation split.
    pub val: ValView,
}

/// How training images are shown, drawn and mixed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainView {
    /// Height and width of a view.
    #[serde(with = "size")]
    pub size: ImageSize,
    /// How views grow to that size with the epochs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grow: Option<Grow>,
    /// Filter of the resize.
    #[serde(default)]
    pub interpolation: Interpolation,
    /// Probability that an image is flipped horizontally.
    #[serde(default)]
    pub flip: f64,
    /// How often each sample comes in a row of an epoch that is cut to its usual length (repeated augmentation).
    #[serde(default = "once")]
    pub repeats: u32,
    /// Views of each sample, one row after the other.
    #[serde(default = "once")]
    pub views: u32,
    /// What part of the image.
    pub crop: Crop,
    /// What is done to views after crop and flip.
    #[serde(default)]
    pub augment: Augment,
    /// Which boxes of a view are erased.
    #[serde(default)]
    pub erase: Erase,
    /// How images are mixed.
    #[serde(default = "unmixed")]
    pub mix: Mix,
}

/// How validation images are shown.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValView {
    /// Height and width of a view.
    #[serde(with = "size")]
    pub size: ImageSize,
    /// Filter of the resize.
    #[serde(default)]
    pub interpolation: Interpolation,
    /// What part of the image.
    pub crop: Crop,
}

fn once() -> u32 {
    1
}

fn unmixed() -> Mix {
    Mix { fold: false, ..Mix::NONE }
}

/// A recipe that cannot be had.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RecipeError {
    /// No preset has this name.
    #[error(transparent)]
    Unknown(#[from] ParseError),
    /// The file cannot be read.
    #[error("cannot read the recipe {path}: {cause}")]
    Read {
        /// The file.
        path: String,
        /// The system's answer.
        cause: String,
    },
    /// The text is no recipe.
    #[error("{path} is not a recipe: {cause} (`mixd recipe torchvision-v1` prints one to start from)")]
    Parse {
        /// The file.
        path: String,
        /// What is wrong.
        cause: String,
    },
}

/// Names of the presets, for messages.
const NAMES: &str = "lesson, imagenette, torchvision-v1, torchvision-v2, a1, a2, a3, deit, deit3, convnext, swin, ffcv-rn18, ffcv-rn50, dino, dino-local or simclr, or a file that ends in .toml";

impl Recipe {
    /// The fast.ai lesson's, and the default: squashed to 128×128, mixed up with α = 0.4, folded.
    pub fn lesson() -> Self {
        let (size, interpolation, crop) = (ImageSize::square(128), Interpolation::Bilinear, Crop::Squash);
        Self {
            name: "lesson".to_owned(),
            about: "fast.ai's lesson on mixup (the default)".to_owned(),
            mean: [0.47, 0.48, 0.45],
            std: [0.29, 0.28, 0.30],
            train: TrainView {
                size,
                grow: None,
                interpolation,
                flip: 0.0,
                repeats: 1,
                views: 1,
                crop,
                augment: Augment::default(),
                erase: Erase::default(),
                mix: Mix::mixup(0.4),
            },
            val: ValView { size, interpolation, crop },
        }
    }

    /// A preset by its name, or the recipe in a TOML file.
    ///
    /// # Errors
    /// When no preset has the name, or the file cannot be read or holds no recipe.
    pub fn load(name: &str) -> Result<Self, RecipeError> {
        if !name.ends_with(".toml") {
            return Ok(name.parse()?);
        }
        let read = |error: std::io::Error| RecipeError::Read { path: name.to_owned(), cause: error.to_string() };
        Self::from_toml(&std::fs::read_to_string(Path::new(name)).map_err(read)?, name)
    }

    /// Reads TOML; `path` stands in errors.
    ///
    /// # Errors
    /// When the text is no recipe.
    pub fn from_toml(text: &str, path: &str) -> Result<Self, RecipeError> {
        let refused = |error: toml::de::Error| {
            let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            RecipeError::Parse { path: path.to_owned(), cause: format!("line {line}: {}", error.message()) }
        };
        toml::from_str(text).map_err(refused)
    }

    /// The recipe as TOML, with every default written out.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a recipe is plain values")
    }

    /// The spec of a feed that asks for nothing but this recipe.
    pub fn feed(&self, split: Split) -> FeedSpec {
        let base = FeedSpec { mean: self.mean, std: self.std, ..FeedSpec::of(split) };
        match split {
            Split::Train => {
                let TrainView {
                    size: image_size,
                    grow,
                    interpolation,
                    flip,
                    repeats,
                    views,
                    crop,
                    augment,
                    erase,
                    mix,
                } = self.train;
                FeedSpec { image_size, grow, crop, interpolation, flip, augment, erase, repeats, views, mix, ..base }
            }
            Split::Val => {
                let ValView { size, interpolation, crop } = self.val;
                FeedSpec { image_size: size, crop, interpolation, ..base }
            }
        }
    }
}

impl Default for Recipe {
    fn default() -> Self {
        Self::lesson()
    }
}

impl FromStr for Recipe {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let found = Self::presets().into_iter().find(|recipe| recipe.name == text);
        found.ok_or_else(|| ParseError { what: "recipe", found: text.to_owned(), expected: NAMES })
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_valid_and_survive_as_toml() {
        for recipe in Recipe::presets() {
            for &split in Split::ALL {
                recipe.feed(split).validate().unwrap();
            }
            assert_eq!(Recipe::from_toml(&recipe.to_toml(), "x").unwrap(), recipe, "{}", recipe.to_toml());
            assert_eq!(Recipe::load(&recipe.name).unwrap(), recipe);
            assert!(NAMES.contains(&recipe.name));
        }
    }

    #[test]
    fn the_default_recipe_is_the_default_feed() {
        assert_eq!(Recipe::default().feed(Split::Train), FeedSpec::train());
        assert_eq!(Recipe::default().feed(Split::Val), FeedSpec::val());
    }

    #[test]
    fn what_is_no_recipe_is_refused_by_name() {
        let error = Recipe::load("torchvision").unwrap_err().to_string();
        assert!(error.contains("`torchvision` is not a recipe (use lesson"), "{error}");
        let error = Recipe::load("/no/such.toml").unwrap_err().to_string();
        assert!(error.contains("cannot read the recipe /no/such.toml"), "{error}");
        let text = Recipe::lesson().to_toml().replace("repeats", "repeat");
        let error = Recipe::from_toml(&text, "mine.toml").unwrap_err().to_string();
        assert!(error.contains("mine.toml is not a recipe") && error.contains("repeat"), "{error}");
    }
}

//! A feed's options as users give them: command line, variables, `mixd.toml` and Python all fill this one struct. What is left out has
//! the recipe's value, and where the recipe has none the split's default.

use super::{
    Augment, Blur, ColorJitter, Consumed, Crop, Erase, FeedSpec, Grow, Mix, MixPer, Pairing, Policy, Recipe,
    RecipeError, Shuffle, Solarize, SpecError,
};
use crate::operation::{WarpFilter, Warping};
use crate::types::{Dtype, ImageSize, Interpolation, Last, Layout, ParseError, Split};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::str::FromStr;

/// A recipe as it is asked for.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum RecipeChoice {
    /// A preset's name, or a file that ends in `.toml`.
    Name(String),
    /// The recipe itself.
    Inline(Box<Recipe>),
}

impl RecipeChoice {
    /// The recipe.
    ///
    /// # Errors
    /// When no preset has the name, or the file holds no recipe.
    pub fn load(&self) -> Result<Recipe, RecipeError> {
        match self {
            Self::Name(name) => Recipe::load(name),
            Self::Inline(recipe) => Ok((**recipe).clone()),
        }
    }
}

impl FromStr for RecipeChoice {
    type Err = RecipeError;
    fn from_str(text: &str) -> Result<Self, RecipeError> {
        Recipe::load(text).map(|recipe| {
            if text.ends_with(".toml") { Self::Inline(Box::new(recipe)) } else { Self::Name(text.to_owned()) }
        })
    }
}

impl<'de> Deserialize<'de> for RecipeChoice {
    /// By hand, since an untagged enum's errors name nothing.
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Choice;
        impl<'de> Visitor<'de> for Choice {
            type Value = RecipeChoice;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a recipe's name, a .toml file, or a recipe")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<RecipeChoice, E> {
                Ok(RecipeChoice::Name(text.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RecipeChoice, A::Error> {
                let recipe = Recipe::deserialize(MapAccessDeserializer::new(map))?;
                Ok(RecipeChoice::Inline(Box::new(recipe)))
            }
        }
        from.deserialize_any(Choice)
    }
}

impl fmt::Display for RecipeChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.pad(name),
            Self::Inline(recipe) => recipe.fmt(f),
        }
    }
}

/// How views grow, as it is asked for: not at all with `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrowChoice(pub Option<Grow>);

impl FromStr for GrowChoice {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text == "none" { Ok(Self(None)) } else { text.parse().map(|grow| Self(Some(grow))) }
    }
}

impl fmt::Display for GrowChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("none"),
            Some(grow) => grow.fmt(f),
        }
    }
}

/// Options that make no feed spec.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// No such recipe.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// A value out of range.
    #[error(transparent)]
    Spec(#[from] SpecError),
}

/// The options of a feed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(clap::Args))]
#[serde(default, deny_unknown_fields)]
pub struct FeedOptions {
    /// Which images: train or val [default: train].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_SPLIT"))]
    pub split: Option<Split>,
    /// Recipe whose values are the defaults of the other options: a name that `mixd recipe` lists, or a .toml file [default: lesson].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_RECIPE", value_name = "NAME|FILE.toml"))]
    pub recipe: Option<RecipeChoice>,
    /// Rows a batch [default: 64 for train, 128 for val].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_BATCH_SIZE"))]
    pub batch_size: Option<u32>,
    /// Side of the images, or HEIGHTxWIDTH [default: the recipe's].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_SIZE"))]
    #[serde(with = "size")]
    pub size: Option<ImageSize>,
    /// Views that grow to that size with the epochs: SIZE,FROM_EPOCH,TO_EPOCH, or none [default: the recipe's, if --size is not given].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_GROW", value_name = "SIZE,FROM,TO"))]
    #[serde(with = "text")]
    pub grow: Option<GrowChoice>,
    /// What part of an image: squash, squash_center:152, short_center:256, random_resized_crop,
    /// random_resized_crop:0.35,1, random_resized_crop:0.08,1,0.75,1.33, pad_crop:4 or pad_crop:4,reflect [default: the recipe's].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_CROP"))]
    #[serde(with = "text")]
    pub crop: Option<Crop>,
    /// Filter of the resize: bilinear or bicubic [default: the recipe's].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_INTERPOLATION"))]
    pub interpolation: Option<Interpolation>,
    /// Flip images horizontally, each with this probability (0.5 where none is given), anew for each use [default: the recipe's].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_FLIP", value_name = "PROB", num_args = 0..=1, require_equals = true, default_missing_value = "0.5", value_parser = flip))]
    pub flip: Option<f64>,
    /// Operations drawn for each view: none, rand-augment, rand-augment:2,9, trivial-augment-wide, auto-augment, 3-augment, or a string of
    /// timm's such as rand-m9-mstd0.5-inc1 [default: the recipe's].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_POLICY"))]
    pub policy: Option<Policy>,
    /// Change brightness, contrast, saturation and hue in a random order: one number for the first three, or
    /// BRIGHTNESS,CONTRAST,SATURATION, with HUE and PROB after them where they are not 0 and 1 [default: the recipe's].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_COLOR_JITTER", value_name = "EXTENTS"))]
    #[serde(with = "text")]
    pub color_jitter: Option<ColorJitter>,
    /// Probability that an image becomes gray [default: the recipe's].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_GRAYSCALE", value_name = "PROB"))]
    pub grayscale: Option<f64>,
    /// Blur images: PROB, or PROB,SIGMA_MIN,SIGMA_MAX, sigma in pixels [default: the recipe's].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_BLUR", value_name = "PROB"))]
    #[serde(with = "text")]
    pub blur: Option<Blur>,
    /// Solarize images: PROB, or PROB,THRESHOLD [default: the recipe's].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_SOLARIZE", value_name = "PROB"))]
    #[serde(with = "text")]
    pub solarize: Option<Solarize>,
    /// Filter of the policy's rotations, shears and translations: nearest, bilinear or bicubic [default: the recipe's].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_WARP", value_name = "FILTER"))]
    pub warp: Option<WarpFilter>,
    /// Red, green and blue of what these show beyond the image, 0 to 255 [default: the recipe's].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_FILL", value_name = "R,G,B", value_delimiter = ','))]
    pub fill: Option<Vec<u8>>,
    /// Erase boxes: PROB, or as many as wanted of PROB,MODE,BOXES,WHEN,AREA_MIN,AREA_MAX,RATIO_MIN,RATIO_MAX. MODE is const (0), rand or pixel
    /// (normal noise for each channel, or value), WHEN before-mix or after-mix [default: the recipe's].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_ERASE", value_name = "PROB"))]
    #[serde(with = "text")]
    pub erase: Option<Erase>,
    /// A new order each epoch: true (global: of all images), false, or shards:COUNT, a shuffle within so many shards at a time, for sets that are
    /// larger than the disk cache [default: true for train].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_SHUFFLE", value_name = "ORDER"))]
    pub shuffle: Option<Shuffle>,
    /// Seed of all randomness [default: 0].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_SEED"))]
    pub seed: Option<u64>,
    /// Rows that do not fill a batch: keep or drop [default: keep].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_LAST"))]
    pub last: Option<Last>,
    /// How often each sample comes in a row, in epochs that are cut to their usual length [default: the recipe's].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_REPEATS"))]
    pub repeats: Option<u32>,
    /// Views of each sample, one row after the other; the rows of a batch are a multiple of it [default: the recipe's].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_VIEWS_PER_SAMPLE", value_name = "COUNT"))]
    pub views_per_sample: Option<u32>,
    /// Mixup's α [default: the recipe's; without a recipe 0.4 for train, and none with --cutmix].
    #[cfg_attr(
        feature = "daemon",
        arg(long = "alpha", visible_alias = "mixup", env = "MIXD_ALPHA", conflicts_with = "no_mixup")
    )]
    pub mixup: Option<f64>,
    /// CutMix's α (the paper's is 1); beside mixup, one of them by chance [default: the recipe's].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_CUTMIX", value_name = "ALPHA", conflicts_with = "no_cutmix"))]
    pub cutmix: Option<f64>,
    /// Without mixup.
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_NO_MIXUP"))]
    pub no_mixup: bool,
    /// Without CutMix.
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_NO_CUTMIX"))]
    pub no_cutmix: bool,
    /// Probability that anything is mixed [default: the recipe's, else 1].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_MIX_PROB", value_name = "PROB"))]
    pub mix_prob: Option<f64>,
    /// Probability of CutMix where there is mixup, too [default: the recipe's, else 0.5].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_MIX_SWITCH", value_name = "PROB"))]
    pub mix_switch: Option<f64>,
    /// One λ (CutMix: one box) per-image, per-pair or per-batch [default: the recipe's, else per-image].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_LAMBDA"))]
    pub lambda: Option<MixPer>,
    /// Whether mixup's λ becomes max(λ, 1−λ): true or false [default: the recipe's; true without one].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_FOLD", conflicts_with = "no_fold"))]
    pub fold: Option<bool>,
    /// Leave λ as drawn, in [0, 1], instead of max(λ, 1−λ).
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_NO_FOLD"))]
    pub no_fold: bool,
    /// Partners from a shuffle of the batch, a second-batch, the batch in reverse, or a roll by one row [default: the recipe's, else shuffle].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_PAIRING"))]
    pub pairing: Option<Pairing>,
    /// The first epoch without any mixing [default: the recipe's, else never].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_MIXUP_OFF_EPOCH", value_name = "EPOCH"))]
    pub mixup_off_epoch: Option<u64>,
    /// Put a digest of its plan and pixels in every batch.
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_DIGEST"))]
    pub digest: bool,
    /// Element type: f32, f16, bf16, or u8 (raw pixels) [default: f32].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_DTYPE"))]
    pub dtype: Option<Dtype>,
    /// Order of the axes: nchw or nhwc [default: nchw].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_LAYOUT"))]
    pub layout: Option<Layout>,
    /// Mean of each channel, of values in [0, 1] [default: the recipe's, 0.47,0.48,0.45 without one].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_MEAN", value_delimiter = ','))]
    pub mean: Option<Vec<f32>>,
    /// Standard deviation of each channel [default: the recipe's, 0.29,0.28,0.30 without one].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_STD", value_delimiter = ','))]
    pub std: Option<Vec<f32>>,
    /// Which of the ranks that share each epoch [default: 0].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_RANK"))]
    pub rank: Option<u32>,
    /// How many ranks share each epoch [default: 1].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_WORLD_SIZE"))]
    pub world_size: Option<u32>,
    /// Deal the rest of an epoch of which ranks of another world size have read so many samples, over all ranks [default: none].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_CONSUMED", value_name = "EPOCH,SAMPLES"))]
    #[serde(with = "text")]
    pub consumed: Option<Consumed>,
    /// Slots of the ring [default: 4].
    #[cfg_attr(feature = "daemon", arg(long, env = "MIXD_SLOTS"))]
    pub slots: Option<u32>,
}

/// `--flip`'s value: a probability, or as its variable true or false.
#[cfg(feature = "daemon")]
fn flip(text: &str) -> Result<f64, String> {
    match text {
        "true" => Ok(0.5),
        "false" => Ok(0.0),
        _ => text.parse().map_err(|_| "it must be a probability in [0, 1], true or false".to_owned()),
    }
}

/// A size that may be left out, as [`super::size`].
mod size {
    use crate::spec::size;
    use crate::types::ImageSize;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Size(#[serde(with = "size")] ImageSize);

    pub fn serialize<S: Serializer>(value: &Option<ImageSize>, to: S) -> Result<S::Ok, S::Error> {
        value.map(Size).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<ImageSize>, D::Error> {
        Ok(Option::<Size>::deserialize(from)?.map(|Size(size)| size))
    }
}

/// A value that is written as its text.
mod text {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::fmt::Display;
    use std::str::FromStr;

    pub fn serialize<T: Display, S: Serializer>(value: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
        value.as_ref().map(T::to_string).serialize(to)
    }

    pub fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
        Option::<String>::deserialize(from)?.map(|text| text.parse().map_err(D::Error::custom)).transpose()
    }
}

impl FeedOptions {
    /// Which images.
    pub fn split(&self) -> Split {
        self.split.unwrap_or(Split::Train)
    }

    /// The recipe that was asked for, or `default`.
    ///
    /// # Errors
    /// When there is no such recipe.
    pub fn recipe_or(&self, default: &Recipe) -> Result<Recipe, RecipeError> {
        self.recipe.as_ref().map_or_else(|| Ok(default.clone()), RecipeChoice::load)
    }

    /// The valid feed spec that the options describe, over the lesson where they name no recipe.
    ///
    /// # Errors
    /// When there is no such recipe, or a value is out of range.
    pub fn spec(&self) -> Result<FeedSpec, OptionsError> {
        self.spec_or(&Recipe::default())
    }

    /// The valid feed spec that the options describe; their recipe is `default` where they name none.
    ///
    /// # Errors
    /// When there is no such recipe, or a value is out of range.
    pub fn spec_or(&self, default: &Recipe) -> Result<FeedSpec, OptionsError> {
        let recipe = self.recipe_or(default)?;
        let base = recipe.feed(self.split());
        // Without the ..: an option that is forgotten here does not compile.
        let Self {
            split: _,
            recipe: _,
            batch_size,
            size,
            grow,
            crop,
            interpolation,
            flip,
            policy,
            color_jitter,
            grayscale,
            blur,
            solarize,
            warp,
            fill,
            erase,
            shuffle,
            seed,
            last,
            repeats,
            views_per_sample,
            mixup: _,
            cutmix: _,
            no_mixup: _,
            no_cutmix: _,
            mix_prob: _,
            mix_switch: _,
            lambda: _,
            fold: _,
            no_fold: _,
            pairing: _,
            mixup_off_epoch: _,
            digest,
            dtype,
            layout,
            mean,
            std,
            rank,
            world_size,
            consumed,
            slots,
        } = self;
        let channels = |key, values: &Option<Vec<f32>>, base| match values.as_deref() {
            None => Ok(base),
            Some(&[r, g, b]) => Ok([r, g, b]),
            Some(other) => Err(SpecError {
                key,
                found: format!("{} numbers", other.len()),
                allowed: "three numbers, one a channel, such as 0.47,0.48,0.45".to_owned(),
            }),
        };
        let fill = match fill.as_deref() {
            None => base.augment.warping.fill,
            Some(&[r, g, b]) => [r, g, b],
            Some(other) => {
                let (found, allowed) =
                    (format!("{} numbers", other.len()), "three numbers, one a channel, such as 124,116,104");
                return Err(SpecError { key: "fill", found, allowed: allowed.to_owned() }.into());
            }
        };
        let augment = Augment {
            policy: policy.unwrap_or(base.augment.policy),
            jitter: color_jitter.unwrap_or(base.augment.jitter),
            grayscale: grayscale.unwrap_or(base.augment.grayscale),
            blur: blur.unwrap_or(base.augment.blur),
            solarize: solarize.unwrap_or(base.augment.solarize),
            warping: Warping { filter: warp.unwrap_or(base.augment.warping.filter), fill },
            // What is asked for is asked for of all views.
            later: base.augment.later.filter(|_| blur.is_none() && solarize.is_none()),
        };
        let image_size = size.unwrap_or(base.image_size);
        let spec = FeedSpec {
            batch_size: batch_size.unwrap_or(base.batch_size),
            image_size,
            grow: match grow {
                Some(GrowChoice(grow)) => *grow,
                None => base.grow.filter(|_| size.is_none()),
            },
            crop: crop.unwrap_or(base.crop.scaled(base.image_size, image_size)),
            interpolation: interpolation.unwrap_or(base.interpolation),
            flip: flip.unwrap_or(base.flip),
            augment,
            erase: erase.unwrap_or(base.erase),
            shuffle: shuffle.unwrap_or(base.shuffle),
            seed: seed.unwrap_or(base.seed),
            last: last.unwrap_or(base.last),
            repeats: repeats.unwrap_or(base.repeats),
            views: views_per_sample.unwrap_or(base.views),
            mix: self.mix(base.mix, recipe.name == Recipe::lesson().name),
            digest: *digest,
            dtype: dtype.unwrap_or(base.dtype),
            layout: layout.unwrap_or(base.layout),
            mean: channels("mean", mean, base.mean)?,
            std: channels("std", std, base.std)?,
            rank: rank.unwrap_or(base.rank),
            world_size: world_size.unwrap_or(base.world_size),
            consumed: *consumed,
            slots: slots.unwrap_or(base.slots),
            ..base
        };
        spec.validate()?;
        Ok(spec)
    }

    /// The mix over the recipe's. In the lesson, which mixes up by default, CutMix takes mixup's place unless both are asked for.
    fn mix(&self, base: Mix, is_lesson: bool) -> Mix {
        let replaced = self.no_mixup || is_lesson && self.cutmix.is_some_and(|alpha| alpha != 0.0);
        // An α of 0 mixes nothing.
        let positive = |given: Option<f64>, base: Option<f64>| given.or(base).filter(|&alpha| alpha != 0.0);
        Mix {
            mixup: positive(self.mixup, base.mixup.filter(|_| !replaced)),
            cutmix: positive(self.cutmix, base.cutmix.filter(|_| !self.no_cutmix)),
            prob: self.mix_prob.unwrap_or(base.prob),
            switch: self.mix_switch.unwrap_or(base.switch),
            per: self.lambda.unwrap_or(base.per),
            fold: self.fold.unwrap_or(base.fold && !self.no_fold),
            pairing: self.pairing.unwrap_or(base.pairing),
            off_epoch: self.mixup_off_epoch.or(base.off_epoch),
        }
    }

    /// The same options as arguments of a command.
    pub fn arguments(&self) -> Vec<String> {
        let options = serde_json::to_value(self).expect("options are plain values");
        let flag = |(key, value): (&String, &serde_json::Value)| {
            let key = if key == "mixup" { "alpha" } else { key }.replace('_', "-");
            let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            match value {
                serde_json::Value::Null | serde_json::Value::Bool(false) if key != "shuffle" && key != "fold" => None,
                serde_json::Value::Null => None,
                serde_json::Value::Bool(true) if key != "shuffle" && key != "fold" => Some(format!("--{key}")),
                serde_json::Value::Array(values) => {
                    Some(format!("--{key}={}", values.iter().map(text).collect::<Vec<_>>().join(",")))
                }
                value => Some(format!("--{key}={}", text(value))),
            }
        };
        options.as_object().expect("a struct").iter().filter_map(flag).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        options: FeedOptions,
    }

    fn parse(arguments: &[&str]) -> FeedOptions {
        Command::try_parse_from(std::iter::once("x").chain(arguments.iter().copied())).unwrap().options
    }

    fn spec(arguments: &[&str]) -> FeedSpec {
        parse(arguments).spec_or(&Recipe::default()).unwrap()
    }

    #[test]
    fn without_options_a_feed_has_its_split_s_defaults() {
        assert_eq!((spec(&[]), spec(&["--split=val"])), (FeedSpec::train(), FeedSpec::val()));
        assert_eq!(serde_json::from_str::<FeedOptions>("{}").unwrap(), FeedOptions::default());
    }

    #[test]
    fn a_recipe_gives_defaults_and_options_take_precedence() {
        let recipe: Recipe = "torchvision-v1".parse().unwrap();
        assert_eq!(spec(&["--recipe=torchvision-v1"]), recipe.feed(Split::Train));
        let val = spec(&["--recipe=torchvision-v1", "--split=val", "--size=112"]);
        assert_eq!((val.crop, val.image_size), (Crop::ShortCenter { resize: 128 }, ImageSize::square(112)));
        let mine =
            spec(&["--recipe=torchvision-v1", "--size=176", "--mixup=0.2", "--cutmix=1", "--flip=0", "--mean=0,0,0"]);
        assert_eq!((mine.mix.mixup, mine.mix.cutmix, mine.mix.fold, mine.flip), (Some(0.2), Some(1.0), false, 0.0));
        assert_eq!((mine.crop, mine.mean, mine.std), (Crop::RANDOM_RESIZED, [0.0; 3], recipe.std));
    }

    #[test]
    fn cutmix_takes_the_place_of_the_lesson_s_mixup_and_stands_beside_one_that_is_asked_for() {
        assert_eq!(spec(&["--cutmix=1"]).mix, Mix::cutmix(1.0));
        assert_eq!((spec(&["--no-mixup"]).mix, spec(&["--mixup=0", "--cutmix=0"]).mix), (Mix::NONE, Mix::NONE));
        assert_eq!(spec(&["--alpha=0.1", "--no-fold"]).mix, Mix { fold: false, ..Mix::mixup(0.1) });
        let both = spec(&["--cutmix=1", "--alpha=0.2", "--mix-switch=0.3", "--pairing=roll", "--lambda=per-pair"]).mix;
        let expected =
            Mix { cutmix: Some(1.0), switch: 0.3, pairing: Pairing::Roll, per: MixPer::Pair, ..Mix::mixup(0.2) };
        assert_eq!(both, expected);
    }

    #[test]
    fn options_survive_as_arguments_and_as_json() {
        let arguments = [
            "--split=val",
            "--recipe=imagenette",
            "--batch-size=7",
            "--size=33x65",
            "--grow=32x33,2,5",
            "--crop=pad_crop:4,reflect",
            "--interpolation=bicubic",
            "--flip",
            "--policy=rand-m9-mstd0.5-inc1",
            "--color-jitter=0.4,0.4,0.2,0.1,0.8",
            "--grayscale=0.2",
            "--blur=0.5,0.1,2",
            "--solarize=0.2",
            "--warp=bicubic",
            "--fill=124,116,104",
            "--erase=0.25,pixel",
            "--shuffle=false",
            "--seed=9",
            "--last=drop",
            "--repeats=3",
            "--views-per-sample=2",
            "--alpha=0.2",
            "--cutmix=1",
            "--mix-prob=0.9",
            "--mix-switch=0.1",
            "--lambda=per-batch",
            "--fold=false",
            "--pairing=reverse",
            "--mixup-off-epoch=9",
            "--digest",
            "--dtype=bf16",
            "--layout=nhwc",
            "--mean=0,0.5,1",
            "--std=1,2,3",
            "--rank=1",
            "--world-size=2",
            "--consumed=3,40",
            "--slots=5",
        ];
        let options = parse(&arguments);
        let again = options.arguments();
        assert_eq!(parse(&again.iter().map(String::as_str).collect::<Vec<_>>()), options);
        let json = serde_json::to_string(&options).unwrap();
        assert_eq!(serde_json::from_str::<FeedOptions>(&json).unwrap(), options);
        assert_eq!(options.flip, Some(0.5));
        for (given, kept) in [("true", "true"), ("global", "true"), ("shards:8", "shards:8")] {
            assert_eq!(parse(&[&format!("--shuffle={given}")]).arguments(), [format!("--shuffle={kept}")]);
        }
    }
}

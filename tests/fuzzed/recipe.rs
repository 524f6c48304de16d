//! Recipes, options and specs as text: what can be read says the same when it is written again, and what is valid can be planned and rendered.

use super::views;
use mixd::spec::{FeedOptions, FeedSpec, Recipe};
use mixd::types::Split;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

/// Reads TOML as a recipe, and JSON as options and as a spec.
pub fn recipe(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(recipe) = Recipe::from_toml(text, "fuzzed.toml") {
        let again = Recipe::from_toml(&recipe.to_toml(), "again.toml").expect("it was written by this version");
        assert_eq!(format!("{again:?}"), format!("{recipe:?}"));
        Split::ALL.iter().for_each(|&split| views::planned_if_valid(recipe.feed(split)));
    }
    // A recipe's file is read by `config`.
    if let Some(options) = survives::<FeedOptions>(text).filter(|_| !text.contains(".toml"))
        && let Ok(spec) = options.spec()
    {
        spec.validate().expect("options make valid specs");
        views::planned_if_valid(spec);
    }
    if let Some(spec) = survives::<FeedSpec>(text) {
        assert_eq!(spec.differences(&spec), []);
        views::planned_if_valid(spec);
    }
}

fn survives<T: Serialize + DeserializeOwned + Debug>(text: &str) -> Option<T> {
    let read: T = serde_json::from_str(text).ok()?;
    let again = serde_json::to_string(&read).expect("plain values");
    let again: T = serde_json::from_str(&again).expect("it was written by this version");
    assert_eq!(format!("{again:?}"), format!("{read:?}"));
    Some(read)
}

//! Sizes in recipes: a side of a square, or "HEIGHTxWIDTH".

use crate::types::ImageSize;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Text {
    Side(u32),
    Sides(String),
}

pub fn serialize<S: Serializer>(size: &ImageSize, to: S) -> Result<S::Ok, S::Error> {
    if size.height == size.width { Text::Side(size.height) } else { Text::Sides(size.to_string()) }.serialize(to)
}

pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<ImageSize, D::Error> {
    let text = match Text::deserialize(from)? {
        Text::Side(side) => side.to_string(),
        Text::Sides(text) => text,
    };
    text.parse().map_err(D::Error::custom)
}

//! A sample's image and label, from its fields.

use super::super::image_names::ENDINGS;
use super::super::vocabulary::CLASSES_MAX;
use super::fault::{Fault, shown};
use super::group::Sample;
use super::reader::Reader;
use super::tar::Entry;
use serde_json::Value;

/// Fields that hold an integer as text.
const INTEGERS: [&str; 2] = ["cls", "cls.txt"];
/// Keys of `json` that are looked for where none is given.
const KEYS: [&str; 2] = ["label", "cls"];
/// Ends of fields that webdataset unpickles.
const PICKLES: [&str; 6] = ["pyd", "pickle", "pkl", "pth", "pt", "p"];
/// The most bytes of an integer, and of a `json`.
const INTEGER_BYTES_MAX: u64 = 1 << 10;
const JSON_BYTES_MAX: u64 = 1 << 20;

/// A label as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Label {
    /// The class's number.
    Integer(u32),
    /// The class's name.
    Name(String),
}

/// What was found of a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It.
    Label(Label),
    /// A list of them, of any length.
    Several(Vec<Label>),
    /// An integer below 0, by which some sets mark what has no label.
    Negative,
    /// No field that may hold one; the keys of `json`, if it has that.
    Nothing(Vec<String>),
}

/// What was found of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Image<'a> {
    /// It.
    At(&'a Entry),
    /// No field that holds one.
    Nothing,
    /// Several, none of which is called as webdataset calls the image.
    Several,
}

/// The image of a sample: a field that is called `jpg` or alike, or the only one that ends so.
pub fn image(sample: &Sample) -> Image<'_> {
    if let Some(entry) = ENDINGS.iter().find_map(|name| sample.field(name)) {
        return Image::At(entry);
    }
    let is_image = |name: &str| name.rsplit_once('.').is_some_and(|(_, end)| ENDINGS.contains(&end));
    let mut ending = sample.fields.iter().filter(|field| is_image(&field.name));
    match (ending.next(), ending.next()) {
        (Some(field), None) => Image::At(&field.entry),
        (None, _) => Image::Nothing,
        (Some(_), Some(_)) => Image::Several,
    }
}

/// A field that is a pickle, which is never read.
pub fn pickle(sample: &Sample) -> Option<&Entry> {
    let is_pickle = |name: &str| PICKLES.contains(&name.rsplit('.').next().unwrap_or(name));
    sample.fields.iter().find(|field| is_pickle(&field.name)).map(|field| &field.entry)
}

/// The label of a sample: that of `key` in its `json`, or where no key is given `cls`, or `json` with `label` or `cls`, or a number as `txt`.
///
/// # Errors
/// When a field that should hold the label holds none.
pub fn label(sample: &Sample, key: Option<&str>, reader: &mut Reader<'_>) -> Result<Found, Fault> {
    let mut json_keys = Vec::new();
    if key.is_none()
        && let Some(entry) = INTEGERS.iter().find_map(|name| sample.field(name))
    {
        let text = text(entry, INTEGER_BYTES_MAX, reader)?;
        return integer(text.trim()).map_err(|cause| bad(entry, cause));
    }
    if let Some(entry) = sample.field("json") {
        let text = text(entry, JSON_BYTES_MAX, reader)?;
        let value: Value = serde_json::from_str(text).map_err(|error| bad(entry, error.to_string()))?;
        let keys = key.as_ref().map_or(&KEYS[..], std::slice::from_ref);
        match keys.iter().find_map(|key| value.get(key).filter(|value| !value.is_null())) {
            Some(value) => return from_json(value).map_err(|cause| bad(entry, cause)),
            None => json_keys.extend(value.as_object().into_iter().flat_map(|object| object.keys().cloned())),
        }
    }
    if key.is_none()
        && let Some(entry) = sample.field("txt").filter(|entry| entry.bytes <= INTEGER_BYTES_MAX)
        && let Ok(text) = text(entry, INTEGER_BYTES_MAX, reader)
        && let Ok(found) = integer(text.trim())
    {
        return Ok(found);
    }
    Ok(Found::Nothing(json_keys))
}

fn bad(entry: &Entry, cause: String) -> Fault {
    Fault::BadLabel { name: shown(&entry.name), cause }
}

fn text<'a>(entry: &Entry, bytes_max: u64, reader: &'a mut Reader<'_>) -> Result<&'a str, Fault> {
    if entry.bytes > bytes_max {
        return Err(bad(entry, format!("it has {} bytes, more than {bytes_max}", entry.bytes)));
    }
    let bytes = reader.get(entry.offset, entry.bytes)?;
    std::str::from_utf8(bytes).map_err(|_| bad(entry, "it is not UTF-8".to_owned()))
}

fn integer(text: &str) -> Result<Found, String> {
    let number: i64 = text.parse().map_err(|_| format!("`{}` is no integer", text.escape_debug()))?;
    number_label(number)
}

fn number_label(number: i64) -> Result<Found, String> {
    match u32::try_from(number) {
        Ok(number) if number < CLASSES_MAX => Ok(Found::Label(Label::Integer(number))),
        _ if number < 0 => Ok(Found::Negative),
        _ => Err(format!("{number} is over the largest label, {}", CLASSES_MAX - 1)),
    }
}

fn from_json(value: &Value) -> Result<Found, String> {
    match value {
        Value::String(name) if !name.is_empty() => Ok(Found::Label(Label::Name(name.clone()))),
        Value::Number(number) => {
            // Some writers know floats only.
            let whole =
                number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < 1e15).map(|float| float as i64);
            number_label(number.as_i64().or(whole).ok_or_else(|| format!("{number} is no integer"))?)
        }
        Value::Array(labels) => {
            let label = |value: &Value| match from_json(value)? {
                Found::Label(label) => Ok(label),
                Found::Negative => Err(format!("{value}, in a list of labels, is below 0")),
                _ => Err("it has a list within the list of labels".to_owned()),
            };
            labels.iter().map(label).collect::<Result<_, _>>().map(Found::Several)
        }
        _ => Err("it is no integer, no name and no list of these (--label-key names another key)".to_owned()),
    }
}

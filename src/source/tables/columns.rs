//! Which column holds the images and which the labels.

use super::super::flaw::Flaw;
use super::cells::{Column, Use};
use serde_json::Value;

/// Names of columns that hold labels where no schema says so.
const LABEL_NAMES: [&str; 7] = ["label", "labels", "class", "cls", "target", "category", "fine_label"];

/// Columns that a user named.
#[derive(Debug, Clone, Copy, Default)]
pub struct Named<'a> {
    /// Of images.
    pub image: Option<&'a str>,
    /// Of labels.
    pub label: Option<&'a str>,
}

/// The columns of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// The name of the column of images.
    pub image: String,
    /// The name of the column of labels.
    pub label: String,
    /// The names of the classes, where the schema has them: a label is an index into it.
    pub class_names: Option<Vec<String>>,
}

/// Chooses among a table's columns. `huggingface` is what `datasets` noted of them.
///
/// # Errors
/// When there is no column for a purpose, or more than one; it names them, and the option.
pub fn choose(columns: &[Column], huggingface: Option<&str>, named: Named<'_>) -> Result<Chosen, Flaw> {
    let features = features(huggingface);
    let feature =
        |column: &Column| features.as_ref().and_then(|features| features.get(&column.name)).unwrap_or(&Value::Null);
    let is = |column: &Column, kind: &str| feature(column)["_type"].as_str() == Some(kind);

    let can_hold_images = |column: &&Column| column.of_use == Use::Images;
    let has_noted_images = columns.iter().any(|column| column.of_use == Use::Images && is(column, "Image"));
    let images: Vec<&Column> = columns
        .iter()
        .filter(can_hold_images)
        .filter(|column| !has_noted_images || is(column, "Image"))
        .filter(|column| !is(column, "Audio") && !is(column, "Video"))
        .collect();
    let image = match named.image {
        Some(name) => find(columns, name, "--image-key", can_hold_images)?,
        None => only(&images, columns, "images", "--image-key", "struct<bytes: binary, path: string> or binary")?,
    };

    let can_be_labels = |column: &&Column| matches!(column.of_use, Use::Integers | Use::Texts);
    let class_labels: Vec<&Column> =
        columns.iter().filter(can_be_labels).filter(|column| is(column, "ClassLabel")).collect();
    let by_name = |column: &&Column| LABEL_NAMES.contains(&&*column.name.to_ascii_lowercase());
    let labels = if class_labels.is_empty() {
        columns.iter().filter(can_be_labels).filter(by_name).collect()
    } else {
        class_labels
    };
    let label = match named.label {
        Some(name) => find(columns, name, "--label-key", can_be_labels)?,
        None => only(&labels, columns, "labels", "--label-key", "integers or texts in a column named `label`")?,
    };
    let names = feature(label)["names"].as_array().filter(|_| is(label, "ClassLabel"));
    let names = names.map(|names| names.iter().map(|name| name.as_str().unwrap_or_default().to_owned()).collect());
    Ok(Chosen { image: image.name.clone(), label: label.name.clone(), class_names: names })
}

/// The features that are noted, by their names.
fn features(huggingface: Option<&str>) -> Option<Value> {
    let mut notes: Value = serde_json::from_str(huggingface?).ok()?;
    Some(notes.get_mut("info")?.get_mut("features")?.take())
}

fn find<'a>(
    columns: &'a [Column],
    name: &str,
    option: &str,
    fits: impl Fn(&&Column) -> bool,
) -> Result<&'a Column, Flaw> {
    let found = columns.iter().find(|column| column.name == name);
    found.filter(|column| fits(column)).ok_or_else(|| {
        let fault = if found.is_some() { "cannot be used as that" } else { "is not there" };
        Flaw::new(format!("has the columns {}; `{name}`, given with {option}, {fault}", list(columns)))
    })
}

fn only<'a>(
    found: &[&'a Column],
    columns: &[Column],
    what: &str,
    option: &str,
    expected: &str,
) -> Result<&'a Column, Flaw> {
    match found {
        [one] => Ok(one),
        [] => Err(Flaw::new(format!(
            "has no column of {what} among {} (expected {expected}; name one with {option})",
            list(columns)
        ))),
        several => {
            let names: Vec<&str> = several.iter().take(20).map(|column| &*column.name).collect();
            Err(Flaw::new(format!("has the columns {} of {what}: choose one with {option}", names.join(", "))))
        }
    }
}

/// The columns with their uses, for people.
fn list(columns: &[Column]) -> String {
    let shown = columns.iter().take(20).map(|column| {
        let of_use = match column.of_use {
            Use::Images => "binary",
            Use::Integers => "integers",
            Use::Texts => "texts",
            Use::Nothing => "other",
        };
        format!("{} ({of_use})", column.name)
    });
    let more = if columns.len() > 20 { ", …" } else { "" };
    shown.collect::<Vec<_>>().join(", ") + more
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(listed: &[(&str, Use)]) -> Vec<Column> {
        listed.iter().map(|&(name, of_use)| Column { name: name.to_owned(), of_use, leaf: 0 }).collect()
    }

    fn chosen(listed: &[(&str, Use)], notes: Option<&str>, named: Named<'_>) -> Result<[String; 2], String> {
        let chosen = choose(&columns(listed), notes, named).map_err(|flaw| flaw.to_string())?;
        Ok([chosen.image, chosen.label])
    }

    #[test]
    fn the_only_column_of_a_kind_is_chosen_and_others_are_asked_for() {
        use Use::{Images, Integers, Nothing, Texts};
        let plain = [("image", Images), ("label", Integers), ("caption", Texts)];
        let pair = |image: &str, label: &str| Ok([image.to_owned(), label.to_owned()]);
        assert_eq!(chosen(&plain, None, Named::default()), pair("image", "label"));
        let caption = Named { label: Some("caption"), ..Named::default() };
        assert_eq!(chosen(&plain, None, caption), pair("image", "caption"));

        let cifar100 = [("img", Images), ("fine_label", Integers), ("coarse_label", Integers)];
        let notes = r#"{"info": {"features": {"img": {"_type": "Image"}, "fine_label": {"names": ["a"], "_type": "ClassLabel"},
            "coarse_label": {"names": ["b"], "_type": "ClassLabel"}}}}"#;
        let error = chosen(&cifar100, Some(notes), Named::default()).unwrap_err();
        assert!(error.contains("fine_label, coarse_label") && error.contains("--label-key"), "{error}");
        let coarse = Named { label: Some("coarse_label"), ..Named::default() };
        let coarse = choose(&columns(&cifar100), Some(notes), coarse).unwrap();
        assert_eq!((&*coarse.label, coarse.class_names), ("coarse_label", Some(vec!["b".to_owned()])));

        let two = [("image", Images), ("mask", Images), ("label", Integers)];
        let error = chosen(&two, None, Named::default()).unwrap_err();
        assert!(error.contains("image, mask") && error.contains("--image-key"), "{error}");
        let mask = Named { image: Some("mask"), ..Named::default() };
        assert_eq!(chosen(&two, None, mask), pair("mask", "label"));
        // A schema that says which are images, and which are not.
        let notes = r#"{"info": {"features": {"image": {"_type": "Image"}, "mask": {"_type": "Value"}}}}"#;
        assert_eq!(chosen(&two, Some(notes), Named::default()), pair("image", "label"));
        let sound = r#"{"info": {"features": {"mask": {"_type": "Audio"}}}}"#;
        assert_eq!(chosen(&two, Some(sound), Named::default()), pair("image", "label"));

        for (listed, named, expected) in [
            (&[("label", Integers), ("boxes", Nothing)][..], Named::default(), "label (integers), boxes (other)"),
            (&[("image", Images), ("caption", Texts)], Named::default(), "no column of labels"),
            (&plain, Named { label: Some("gone"), ..Named::default() }, "`gone`, given with --label-key, is not there"),
            (&plain, Named { image: Some("label"), ..Named::default() }, "`label`, given with --image-key, cannot"),
        ] {
            let error = chosen(listed, None, named).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn notes_that_are_no_json_are_none() {
        for notes in ["", "[]", "{\"info\": 3}", "{\"info\": {\"features\": [1]}}"] {
            let found = chosen(&[("a", Use::Images), ("label", Use::Texts)], Some(notes), Named::default());
            assert_eq!(found, Ok(["a".to_owned(), "label".to_owned()]), "{notes}");
        }
    }
}

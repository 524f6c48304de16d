//! From files in a shard to samples, by webdataset's rules: the path up to the first dot of its last component is the key, the rest the field.

use super::fault::{FIELDS_MAX, Fault, shown};
use super::tar::Entry;

/// Names that webdataset gives to fields of its own; a file with one is refused there, too.
const TAKEN: [&str; 2] = ["__key__", "__url__"];
/// A field by which writers mark samples that readers should leave out.
const BAD: &str = "__bad__";

/// A part of a sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// What follows the key's dot, in lower case.
    pub name: String,
    /// Where it is.
    pub entry: Entry,
}

/// Files of one key, which follow each other.
#[derive(Debug, Default)]
pub struct Sample {
    key: Vec<u8>,
    /// In their order in the shard.
    pub fields: Vec<Field>,
}

impl Sample {
    /// A field by its name.
    pub fn field(&self, name: &str) -> Option<&Entry> {
        self.fields.iter().find(|field| field.name == name).map(|field| &field.entry)
    }

    /// Whether its writer marked it, with something in the file, as one to leave out.
    pub fn is_marked_bad(&self) -> bool {
        self.field(BAD).is_some_and(|entry| entry.bytes > 0)
    }
}

/// What comes of a file in a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role<'a> {
    /// A field of a sample.
    Field {
        /// The sample's key.
        key: &'a [u8],
        /// The field's name, as it is written.
        name: &'a [u8],
    },
    /// `__name__`: a writer's notes.
    Meta,
    /// A name that begins with a dot, such as those macOS adds.
    Hidden,
    /// A name without an extension.
    Keyless,
}

/// What a file is by its name. As webdataset's `base_plus_ext`, but for hidden files, which there make samples without an image.
pub fn role(name: &[u8]) -> Role<'_> {
    let first = name.split(|byte| *byte == b'/').next().unwrap_or_default();
    if first.len() >= 4 && first.starts_with(b"__") && first.ends_with(b"__") {
        return Role::Meta;
    }
    let base = memchr::memrchr(b'/', name).map_or(0, |slash| slash + 1);
    match memchr::memchr(b'.', &name[base..]) {
        Some(0) => Role::Hidden,
        Some(dot) => Role::Field { key: &name[..base + dot], name: &name[base + dot + 1..] },
        None => Role::Keyless,
    }
}

/// Collects files to samples.
#[derive(Debug, Default)]
pub struct Groups {
    current: Sample,
    done: Sample,
}

impl Groups {
    /// Adds a file; returns the sample that it is not part of any more.
    ///
    /// # Errors
    /// When the sample has such a field already, or none may have it.
    pub fn add(&mut self, key: &[u8], name: &[u8], entry: &Entry) -> Result<Option<&Sample>, Fault> {
        let name = String::from_utf8_lossy(name).to_lowercase();
        if TAKEN.contains(&&*name) {
            return Err(Fault::TakenField { name: shown(&entry.name) });
        }
        let is_next = self.current.key != key || self.current.fields.is_empty();
        if is_next {
            std::mem::swap(&mut self.current, &mut self.done);
            self.current.key.clear();
            self.current.key.extend_from_slice(key);
            self.current.fields.clear();
        } else if self.current.field(&name).is_some() {
            return Err(Fault::DuplicateField { name: shown(&entry.name) });
        }
        if self.current.fields.len() >= FIELDS_MAX {
            return Err(Fault::TooManyFields { name: shown(&entry.name) });
        }
        self.current.fields.push(Field { name, entry: entry.clone() });
        Ok((is_next && !self.done.fields.is_empty()).then_some(&self.done))
    }

    /// The last sample.
    pub fn last(&self) -> Option<&Sample> {
        (!self.current.fields.is_empty()).then_some(&self.current)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_fields_are_webdatasets() {
        for (name, expected) in [
            ("000.jpg", Some(("000", "jpg"))),
            ("a/000.jpg", Some(("a/000", "jpg"))),
            ("a.b/000.seg.PNG", Some(("a.b/000", "seg.PNG"))),
            ("./000.cls", Some(("./000", "cls"))),
            ("a/b..jpg", Some(("a/b", ".jpg"))),
            ("000.", Some(("000", ""))),
            ("__x__.jpg", Some(("__x__", "jpg"))),
        ] {
            let role = role(name.as_bytes());
            let expected = expected.map(|(key, name)| Role::Field { key: key.as_bytes(), name: name.as_bytes() });
            assert_eq!(Some(role), expected, "{name}");
        }
        for name in ["__meta__", "__meta__/000.jpg", "____"] {
            assert_eq!(role(name.as_bytes()), Role::Meta, "{name}");
        }
        assert_eq!(role(b"a/._000.jpg"), Role::Hidden);
        for name in ["README", "a.b/README", ""] {
            assert_eq!(role(name.as_bytes()), Role::Keyless, "{name}");
        }
    }

    #[test]
    fn files_of_one_key_that_follow_each_other_are_a_sample() {
        let (mut groups, mut samples) = (Groups::default(), Vec::new());
        let fields =
            |sample: &Sample| sample.fields.iter().map(|field| field.name.clone()).collect::<Vec<_>>().join(" ");
        for name in ["a.jpg", "a.CLS", "b.jpg", "a.jpg", "a.json", "a.b.jpg"] {
            let Role::Field { key, name } = role(name.as_bytes()) else { unreachable!() };
            samples.extend(groups.add(key, name, &Entry::default()).unwrap().map(fields));
        }
        samples.extend(groups.last().map(fields));
        assert_eq!(samples, ["jpg cls", "jpg", "jpg json b.jpg"]);
        let twice = groups.add(b"a", b"JPG", &Entry { name: b"a.JPG".to_vec(), ..Entry::default() });
        assert!(matches!(twice, Err(Fault::DuplicateField { name }) if name == "a.JPG"));
        let taken = groups.add(b"b", b"__Key__", &Entry { name: b"b.__Key__".to_vec(), ..Entry::default() });
        assert!(matches!(taken, Err(Fault::TakenField { name }) if name == "b.__Key__"));
    }
}

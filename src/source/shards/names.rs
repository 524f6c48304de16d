//! What lies beside shards and describes them: lists of splits, names of classes.

use serde_json::Value;
use std::path::Path;

/// The most bytes of such a file.
pub const BYTES_MAX: u64 = 64 << 20;
/// timm's, and Hugging Face's.
const INFOS: [&str; 4] = ["_info.json", "info.json", "dataset_info.json", "dataset-info.json"];
/// A class a line, as CLIP_benchmark has it.
const LISTS: [&str; 2] = ["classnames.txt", "classes.txt"];

/// A split as an info file describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedSplit {
    /// Patterns of its shards, from the file's folder.
    pub shards: Vec<String>,
    /// How many samples it has.
    pub samples: Option<u64>,
}

/// The files beside a data set's shards.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Beside {
    infos: Vec<Value>,
    /// A class a line.
    list: Option<String>,
}

impl Beside {
    /// The names of the files that are read.
    pub fn names() -> impl Iterator<Item = &'static str> {
        INFOS.into_iter().chain(LISTS)
    }

    /// What lies in a folder.
    pub fn in_folder(folder: &Path) -> Self {
        Self::new(|name| {
            let path = folder.join(name);
            let meta = path.metadata().ok()?;
            (meta.is_file() && meta.len() <= BYTES_MAX).then(|| std::fs::read_to_string(path).ok()).flatten()
        })
    }

    /// What `read` gives by the name of each file.
    pub fn new(mut read: impl FnMut(&str) -> Option<String>) -> Self {
        let infos = INFOS.iter().filter_map(|name| serde_json::from_str(&read(name)?).ok()).collect();
        Self { infos, list: LISTS.iter().find_map(|name| read(name)) }
    }

    /// The split that is called by one of `names` in an info file.
    pub fn listed_split(&self, names: &[&str]) -> Option<ListedSplit> {
        self.infos.iter().find_map(|info| {
            let splits = info.get("splits")?;
            let split = names.iter().find_map(|name| splits.get(name))?;
            let shards = split.get("filenames")?.as_array()?;
            let shards = shards.iter().map(|name| name.as_str().map(str::to_owned)).collect::<Option<_>>()?;
            Some(ListedSplit { shards, samples: split.get("num_samples").and_then(Value::as_u64) })
        })
    }

    /// The names of classes, in the order of their labels.
    pub fn class_names(&self, label_key: Option<&str>) -> Option<Vec<String>> {
        let from_list = self.list.as_ref().map(|text| text.lines().map(|line| line.trim().to_owned()).collect());
        from_list.or_else(|| self.infos.iter().find_map(|info| names_of(info, label_key)))
    }
}

fn names_of(info: &Value, label_key: Option<&str>) -> Option<Vec<String>> {
    let texts = |list: &Value| -> Option<Vec<String>> {
        let list = list.as_array().filter(|list| !list.is_empty())?;
        list.iter().map(|name| name.as_str().map(str::to_owned)).collect()
    };
    if let Some(names) = ["class_names", "classnames", "classes"].iter().find_map(|key| texts(info.get(key)?)) {
        return Some(names);
    }
    // Hugging Face's: {"features": {"label": {"names": […], "_type": "ClassLabel"}}}.
    let features = info.get("features")?.as_object()?;
    let keys = label_key.into_iter().chain(["label", "cls", "labels"]);
    keys.filter_map(|key| features.get(key)).find_map(|feature| texts(feature.get("names")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_splits_are_found_in_what_tools_write() {
        let dir = tempfile::tempdir().unwrap();
        let beside = || Beside::in_folder(dir.path());
        assert_eq!((beside().listed_split(&["train"]), beside().class_names(None)), (None, None));
        let info = r#"{"splits": {"train": {"name": "train", "num_samples": 7, "filenames": ["a-{0..1}.tar"]}, "validation": {"filenames": ["b.tar"]}}}"#;
        std::fs::write(dir.path().join("_info.json"), info).unwrap();
        let split = |shards: &str, samples| Some(ListedSplit { shards: vec![shards.to_owned()], samples });
        assert_eq!(beside().listed_split(&["train"]), split("a-{0..1}.tar", Some(7)));
        assert_eq!(beside().listed_split(&["val", "validation"]), split("b.tar", None));
        let info = r#"{"features": {"jpg": {"_type": "Image"}, "cls": {"names": ["x", "y"], "_type": "ClassLabel"}}}"#;
        std::fs::write(dir.path().join("dataset_info.json"), info).unwrap();
        assert_eq!(beside().class_names(None), Some(vec!["x".to_owned(), "y".to_owned()]));
        std::fs::write(dir.path().join("classnames.txt"), "tench\ngolf ball\n").unwrap();
        assert_eq!(beside().class_names(None), Some(vec!["tench".to_owned(), "golf ball".to_owned()]));
        for broken in ["{", "[]", r#"{"features": 7}"#, r#"{"features": {"label": {"names": [1]}}}"#] {
            std::fs::remove_file(dir.path().join("classnames.txt")).ok();
            std::fs::write(dir.path().join("dataset_info.json"), broken).unwrap();
            assert_eq!(beside().class_names(None), None, "{broken}");
        }
    }
}

//! Tables of labels: CSV, tab-separated values or JSON lines, a file and its labels a row.

use super::DatasetError;
use super::image_names::is_image;
use csv::{ReaderBuilder, StringRecord, Trim};
use serde_json::Value;
use std::path::Path;

/// Names of the column of files, lower case; the first that a table has counts.
const FILE_COLUMNS: [&str; 10] =
    ["file_name", "filename", "file", "path", "filepath", "image", "image_path", "image_name", "image_id", "imageid"];
/// Names of the column of labels.
const LABEL_COLUMNS: [&str; 6] = ["label", "class", "class_name", "category", "target", "y"];
/// Names of a column with several labels a row.
const LABELS_COLUMNS: [&str; 4] = ["labels", "tags", "classes", "categories"];
/// Names of the column of splits.
const SPLIT_COLUMNS: [&str; 4] = ["split", "set", "subset", "partition"];
/// What separates labels; white space, where none of these stands anywhere.
const SEPARATORS: [char; 3] = ['|', ';', ','];

/// One file of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its path as written, without a leading `./`.
    pub file: String,
    /// Its labels; exactly one unless the table [has several](Table::is_multi).
    pub labels: Vec<String>,
    /// The split that the table gives, as written.
    pub split: Option<String>,
}

/// The rows of a table.
#[derive(Debug, PartialEq, Eq)]
pub struct Table {
    /// In the order of the file.
    pub rows: Vec<Row>,
    /// Whether a row may have any number of labels.
    pub is_multi: bool,
}

impl Table {
    /// Reads a table; `label` names its column of labels where it is not one of the usual names. With `by_custom` such a name is all that tells it.
    ///
    /// # Errors
    /// When it cannot be read, or has no files or labels.
    pub fn read(path: &Path, label: Option<&str>, by_custom: bool) -> Result<Self, DatasetError> {
        let bytes = std::fs::read(path).map_err(DatasetError::io("read", path))?;
        let is_json = path.extension().is_some_and(|extension| extension == "jsonl" || extension == "json");
        Self::parse(&bytes, is_json, label, by_custom)
            .map_err(|cause| DatasetError::Labels { path: path.to_owned(), cause })
    }

    fn parse(bytes: &[u8], is_json: bool, label: Option<&str>, by_custom: bool) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes))
            .map_err(|error| format!("is not UTF-8 at byte {}: save it as UTF-8", error.valid_up_to()))?;
        let mut table = if is_json { json(text, label)? } else { csv(text, label, by_custom)? };
        if table.rows.is_empty() {
            return Err("has no rows".to_owned());
        }
        for row in &mut table.rows {
            while let Some(rest) = row.file.strip_prefix("./") {
                row.file = rest.to_owned();
            }
        }
        Ok(table)
    }
}

/// Which columns of a table hold what.
struct Columns {
    file: usize,
    labels: Vec<usize>,
    split: Option<usize>,
    kind: Kind,
}

/// How a row's labels are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A cell is a label.
    One,
    /// A cell holds any number of labels.
    Joined,
    /// Each cell that is not empty is a label.
    Apart,
    /// A column is a label, which a row has where the cell is 1.
    OneHot,
}

impl Columns {
    /// Of a table with a header; `cells` tells whether a column holds nothing but 0 and 1.
    fn of(
        header: &StringRecord,
        label: Option<&str>,
        by_custom: bool,
        is_binary: impl Fn(usize) -> bool,
    ) -> Result<Self, String> {
        let lower: Vec<String> = header.iter().map(str::to_ascii_lowercase).collect();
        let first = |names: &[&str]| names.iter().find_map(|name| lower.iter().position(|column| column == name));
        let listed = || header.iter().collect::<Vec<_>>().join(", ");
        let file = first(&FILE_COLUMNS)
            .ok_or_else(|| format!("has no column of file names among {} (name it file_name)", listed()))?;
        let split = first(&SPLIT_COLUMNS);
        let others: Vec<usize> = (0..lower.len()).filter(|&at| at != file && Some(at) != split).collect();
        let with = |labels: Vec<usize>, kind| Ok(Self { file, labels, split, kind });
        if let Some(name) = label {
            let at = header.iter().position(|column| column == name);
            let at = at.ok_or_else(|| format!("has no column {name} among {} (--label-key)", listed()))?;
            return with(vec![at], if LABELS_COLUMNS.contains(&&*lower[at]) { Kind::Joined } else { Kind::One });
        }
        match (first(&LABELS_COLUMNS), first(&LABEL_COLUMNS), &*others) {
            (Some(at), ..) => with(vec![at], Kind::Joined),
            (None, Some(at), _) => with(vec![at], Kind::One),
            (None, None, &[at]) if !by_custom => with(vec![at], Kind::One),
            (None, None, [_, ..]) if !by_custom && others.iter().all(|&at| is_binary(at)) => with(others, Kind::OneHot),
            _ => Err(format!("has no column of labels among {} (name it label, or give --label-key COLUMN)", listed())),
        }
    }
}

fn csv(text: &str, label: Option<&str>, by_custom: bool) -> Result<Table, String> {
    let first_line = text.lines().next().unwrap_or_default();
    let delimiter = [b',', b'\t', b';'].into_iter().find(|&byte| first_line.as_bytes().contains(&byte)).unwrap_or(b',');
    let mut reader = ReaderBuilder::new()
        .has_headers(false)
        .delimiter(delimiter)
        .flexible(true)
        .trim(Trim::All)
        .from_reader(text.as_bytes());
    let mut records: Vec<StringRecord> =
        reader.records().collect::<Result<_, _>>().map_err(|error| format!("is no table: {error}"))?;
    let Some(first) = records.first() else { return Ok(Table { rows: Vec::new(), is_multi: false }) };
    let has_header = !first.get(0).is_some_and(|name| is_image(Path::new(name)));
    let (columns, header) = if has_header {
        let header = records.remove(0);
        let is_binary =
            |at: usize| records.iter().all(|record| matches!(record.get(at), Some("0" | "1" | "0.0" | "1.0")));
        (Columns::of(&header, label, by_custom, is_binary)?, header)
    } else {
        let count = records.iter().map(StringRecord::len).max().unwrap_or(0);
        if count < 2 {
            return Err("has one column: it must have a file and its label in each row, as in cat/1.jpg,cat".to_owned());
        }
        let kind = if count == 2 { Kind::One } else { Kind::Apart };
        (Columns { file: 0, labels: (1..count).collect(), split: None, kind }, StringRecord::new())
    };
    let cells = || records.iter().flat_map(|record| columns.labels.iter().filter_map(|&at| record.get(at)));
    let is_separated = columns.kind == Kind::Joined && cells().any(|cell| cell.contains(SEPARATORS));
    let rows = records.iter().enumerate().map(|(nth, record)| {
        let line = record.position().map_or(nth as u64 + 1, csv::Position::line);
        let file = record.get(columns.file).filter(|file| !file.is_empty());
        let file = file.ok_or_else(|| format!("names no file in line {line}"))?.to_owned();
        let cells = || columns.labels.iter().filter_map(|&at| Some((at, record.get(at)?)));
        let labels: Vec<String> = match columns.kind {
            Kind::One => cells().map(|(_, cell)| cell.to_owned()).filter(|label| !label.is_empty()).collect(),
            Kind::Apart => cells().map(|(_, cell)| cell.to_owned()).filter(|label| !label.is_empty()).collect(),
            Kind::Joined => cells().flat_map(|(_, cell)| separated(cell, is_separated)).collect(),
            Kind::OneHot => {
                cells().filter(|(_, cell)| cell.starts_with('1')).map(|(at, _)| header[at].to_owned()).collect()
            }
        };
        if columns.kind == Kind::One && labels.is_empty() {
            return Err(format!("gives {file} no label in line {line}"));
        }
        let split = columns.split.and_then(|at| record.get(at)).filter(|name| !name.is_empty());
        Ok(Row { file, labels, split: split.map(str::to_owned) })
    });
    Ok(Table { rows: rows.collect::<Result<_, String>>()?, is_multi: columns.kind != Kind::One })
}

fn separated(cell: &str, by_characters: bool) -> Vec<String> {
    let is_separator = |c: char| if by_characters { SEPARATORS.contains(&c) } else { c.is_whitespace() };
    let labels = cell.split(is_separator).map(str::trim).filter(|label| !label.is_empty());
    labels.map(str::to_owned).collect()
}

/// Objects a line, or one list of them.
fn json(text: &str, label: Option<&str>) -> Result<Table, String> {
    let values: Vec<Value> = if text.trim_start().starts_with('[') {
        serde_json::from_str(text).map_err(|error| format!("is not JSON: {error}"))?
    } else {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let value = |(nth, line)| {
            serde_json::from_str(line).map_err(|error| format!("is not JSON in line {}: {error}", nth + 1))
        };
        lines.map(value).collect::<Result<_, _>>()?
    };
    let mut is_multi = false;
    let mut rows = Vec::with_capacity(values.len());
    for (nth, value) in values.iter().enumerate() {
        let line = nth as u64 + 1;
        let object = value.as_object().ok_or_else(|| format!("has no object in row {line}"))?;
        let listed = || object.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let first = |names: &[&str]| names.iter().find_map(|name| object.get(*name));
        let file = first(&FILE_COLUMNS).and_then(Value::as_str).filter(|file| !file.is_empty());
        let file =
            file.ok_or_else(|| format!("names no file in row {line}: its keys are {} (use file_name)", listed()))?;
        let of = match label {
            Some(name) => object.get(name),
            None => first(&LABELS_COLUMNS).or_else(|| first(&LABEL_COLUMNS)),
        };
        let labels = match of {
            Some(Value::Array(labels)) => {
                is_multi = true;
                labels.iter().map(label_of).collect()
            }
            Some(one) => label_of(one).map(|label| vec![label]),
            None => None,
        };
        let labels = labels.ok_or_else(|| {
            format!(
                "gives {file} no label in row {line}: its keys are {} (use label, or give --label-key KEY)",
                listed()
            )
        })?;
        let split = first(&SPLIT_COLUMNS).and_then(Value::as_str).map(str::to_owned);
        rows.push(Row { file: file.to_owned(), labels, split });
    }
    Ok(Table { rows, is_multi })
}

/// A label as a text: a text or a whole number.
fn label_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) if number.is_u64() => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Table, String> {
        Table::parse(text.as_bytes(), text.trim_start().starts_with(['{', '[']), None, false)
    }

    /// `file:label+label@split` of each row.
    fn shown(text: &str) -> Vec<String> {
        let row = |row: &Row| {
            let split = row.split.as_ref().map(|split| format!("@{split}")).unwrap_or_default();
            format!("{}:{}{split}", row.file, row.labels.join("+"))
        };
        parsed(text).unwrap().rows.iter().map(row).collect()
    }

    #[test]
    fn single_labels_are_read_however_they_are_written() {
        for text in [
            "file_name,label\n1.jpg,cat\na/2.jpg,polar bear\n",
            "\u{FEFF}file_name,label\r\n1.jpg,cat\r\n./a/2.jpg,polar bear",
            "1.jpg,cat\na/2.jpg,polar bear\n",
            "id,Image,kind\n7,1.jpg,x\n",
            "path\tcategory\tother\n1.jpg\tcat\t3\na/2.jpg\tpolar bear\t4\n",
            "image;species\n1.jpg;cat\n\"a/2.jpg\"; polar bear\n",
            "{\"file_name\": \"1.jpg\", \"label\": \"cat\"}\n\n{\"file_name\": \"a/2.jpg\", \"label\": \"polar bear\"}",
            "[{\"file\": \"1.jpg\", \"class\": \"cat\"}, {\"file\": \"a/2.jpg\", \"class\": \"polar bear\"}]",
        ] {
            if text.starts_with("id,") {
                assert!(parsed(text).unwrap_err().contains("no column of labels among id, Image, kind"));
                continue;
            }
            assert_eq!(shown(text), ["1.jpg:cat", "a/2.jpg:polar bear"], "{text}");
            assert!(!parsed(text).unwrap().is_multi, "{text}");
        }
        assert_eq!(shown("{\"image\": \"1.jpg\", \"label\": 3}"), ["1.jpg:3"]);
    }

    #[test]
    fn several_labels_are_read_however_they_are_written() {
        for text in [
            "file_name,labels\n1.jpg,cat dog\n2.jpg,\n3.jpg,dog\n",
            "file_name,labels\n1.jpg,cat|dog\n2.jpg,\n3.jpg,dog\n",
            "file_name,tags\n1.jpg,\"cat, dog\"\n2.jpg,\n3.jpg,dog\n",
            "1.jpg,cat,dog\n2.jpg,,\n3.jpg,dog,\n",
            "image_id,cat,dog\n1.jpg,1,1\n2.jpg,0,0\n3.jpg,0,1\n",
            "{\"file_name\": \"1.jpg\", \"labels\": [\"cat\", \"dog\"]}\n{\"file_name\": \"2.jpg\", \"labels\": []}\n\
             {\"file_name\": \"3.jpg\", \"labels\": [\"dog\"]}",
        ] {
            assert_eq!(shown(text), ["1.jpg:cat+dog", "2.jpg:", "3.jpg:dog"], "{text}");
            assert!(parsed(text).unwrap().is_multi, "{text}");
        }
        assert_eq!(shown("file,labels\n1.jpg,polar bear;cat\n2.jpg,polar bear")[1], "2.jpg:polar bear");
    }

    #[test]
    fn splits_are_read() {
        let text = "file,label,split\n1.jpg,a,train\n2.jpg,a,VALID\n3.jpg,a,\n";
        assert_eq!(shown(text), ["1.jpg:a@train", "2.jpg:a@VALID", "3.jpg:a"]);
        let text = "{\"file\": \"1.jpg\", \"label\": \"a\", \"split\": \"test\"}";
        assert_eq!(shown(text), ["1.jpg:a@test"]);
    }

    #[test]
    fn a_column_can_be_named() {
        let text = "file,label,kind\n1.jpg,a,b\n";
        assert_eq!(Table::parse(text.as_bytes(), false, Some("kind"), false).unwrap().rows[0].labels, ["b"]);
        let error = Table::parse(text.as_bytes(), false, Some("sort"), false).unwrap_err();
        assert!(error.contains("no column sort among file, label, kind"), "{error}");
    }

    #[test]
    fn what_is_no_table_of_labels_is_refused_by_name() {
        for (text, words) in [
            ("", "no rows"),
            ("file,label\n", "no rows"),
            ("1.jpg\n2.jpg\n", "one column"),
            ("a,b\nx,y\n", "no column of file names among a, b"),
            ("file,width,height\n1.jpg,3,4\n", "no column of labels among file, width, height"),
            ("file,label\n1.jpg,\n", "gives 1.jpg no label in line 2"),
            ("file,label\n,cat\n", "names no file in line 2"),
            ("{\"file\": \"1.jpg\"}", "gives 1.jpg no label in row 1"),
            ("{\"file\": \"1.jpg\", \"label\": {\"x\": 1}}", "no label in row 1"),
            ("{\"label\": \"1.jpg\"}", "names no file in row 1: its keys are label"),
            ("{nonsense", "is not JSON in line 1"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        assert!(
            Table::parse(b"file,label\n1.jpg,\xFF", false, None, false).unwrap_err().contains("not UTF-8 at byte 17")
        );
    }
}

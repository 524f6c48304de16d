//! Tables that say to have more than memory takes: refused, by what they say alone.

use super::super::DataSet;
use super::Tables;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A structure of Thrift's compact protocol: fields by their ids, rising, with the kind and the bytes of each.
fn structure(fields: &[(u8, u8, Vec<u8>)]) -> Vec<u8> {
    let (mut bytes, mut before) = (Vec::new(), 0);
    for (id, kind, value) in fields {
        bytes.push((id - before) << 4 | kind);
        bytes.extend(value);
        before = *id;
    }
    bytes.push(0);
    bytes
}

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

const INT: u8 = 6;
const BYTES: u8 = 8;
const LIST: u8 = 9;
const STRUCT: u8 = 12;

fn int(number: u64) -> Vec<u8> {
    varint(number * 2)
}

fn bytes(text: &[u8]) -> Vec<u8> {
    [varint(text.len() as u64), text.to_vec()].concat()
}

fn list(structures: &[Vec<u8>]) -> Vec<u8> {
    [vec![0xF0 | STRUCT], varint(structures.len() as u64), structures.concat()].concat()
}

/// A column of a table: its name, whether it is text, and its pages with their headers.
struct Column(&'static str, bool, Vec<u8>);

/// A page: its kind, 0 with values and 2 of a dictionary, how many values its header counts, and its bytes.
fn page(kind: u64, values: u64, content: &[u8]) -> Vec<u8> {
    let size = int(content.len() as u64);
    let encoding =
        if kind == 0 { vec![(2, INT, int(0)), (3, INT, int(3)), (4, INT, int(3))] } else { vec![(2, INT, int(0))] };
    let inner = structure(&[vec![(1, INT, int(values))], encoding].concat());
    let id = if kind == 0 { 5 } else { 7 };
    let header = structure(&[(1, INT, int(kind)), (2, INT, size.clone()), (3, INT, size), (id, STRUCT, inner)]);
    [header, content.to_vec()].concat()
}

/// Byte strings as a page holds them.
fn strings(values: &[&[u8]]) -> Vec<u8> {
    values.iter().flat_map(|value| [&(value.len() as u32).to_le_bytes()[..], value].concat()).collect()
}

/// Writes a table of required byte strings, without compression, that says to have `rows` rows; and why it is refused.
fn refusal(columns: &[Column], rows: u64, file_bytes: u64) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("train.parquet");
    let (mut content, mut chunks) = (b"PAR1".to_vec(), Vec::new());
    let root = structure(&[(4, BYTES, bytes(b"schema")), (5, INT, int(columns.len() as u64))]);
    let mut elements = vec![root];
    for Column(name, is_text, pages) in columns {
        let text = if *is_text { vec![(6, INT, int(0))] } else { Vec::new() };
        let fields = vec![(1, INT, int(6)), (3, INT, int(0)), (4, BYTES, bytes(name.as_bytes()))];
        elements.push(structure(&[fields, text].concat()));
        let (size, offset) = (int(pages.len() as u64), int(content.len() as u64));
        let meta = structure(&[(4, INT, int(0)), (5, INT, int(rows)), (7, INT, size), (9, INT, offset)]);
        chunks.push(structure(&[(3, STRUCT, meta)]));
        content.extend(pages);
    }
    let group = structure(&[(1, LIST, list(&chunks)), (3, INT, int(rows))]);
    let footer = structure(&[(2, LIST, list(&elements)), (4, LIST, list(&[group]))]);
    write(&path, &content, &footer, file_bytes);
    refused(&path, dir.path())
}

/// What is between the content and the footer is a hole.
fn write(path: &Path, content: &[u8], footer: &[u8], file_bytes: u64) {
    let file = File::create(path).unwrap();
    file.write_all_at(content, 0).unwrap();
    let tail = [footer, &(footer.len() as u32).to_le_bytes(), b"PAR1"].concat();
    let end = file_bytes.max((content.len() + tail.len()) as u64);
    file.write_all_at(&tail, end - tail.len() as u64).unwrap();
}

fn refused(path: &Path, cache: &Path) -> Option<String> {
    Tables::open(&DataSet::at(path), cache, None).err().map(|error| error.to_string())
}

fn images() -> Column {
    Column("image", false, page(0, 2, &strings(&[b"1", b"2"])))
}

#[test]
fn a_table_of_a_few_rows_is_read_though_it_be_written_by_hand() {
    let labels = Column("label", true, page(0, 2, &strings(&[b"a", b"b"])));
    assert_eq!(refusal(&[images(), labels], 2, 0), None);
}

#[test]
fn more_rows_than_memory_takes_are_refused_before_one_is_looked_at() {
    let labels = || Column("label", true, page(0, 2, &strings(&[b"a", b"b"])));
    let error = refusal(&[images(), labels()], 1 << 40, 1 << 41).unwrap();
    assert!(error.contains("1099511627776 rows, whose index takes up to"), "{error}");
    let error = refusal(&[images(), labels()], 1 << 40, 0).unwrap();
    assert!(error.contains("rows in"), "{error}");
}

#[test]
fn a_dictionary_of_more_values_than_rows_is_refused() {
    let labels = [page(2, 1 << 30, b""), page(0, 2, &strings(&[b"a", b"b"]))].concat();
    let error = refusal(&[images(), Column("label", true, labels)], 2, 0).unwrap();
    assert!(error.contains("a dictionary of 1073741824 values for 2 rows"), "{error}");
}

#[test]
fn a_label_that_is_no_name_is_refused() {
    let labels = Column("label", true, page(0, 2, &strings(&[b"a", &[b'b'; 5_000]])));
    let error = refusal(&[images(), labels], 2, 0).unwrap();
    assert!(error.contains("in row 1 of the column `label` a label of more than 4096 bytes"), "{error}");
}

#[test]
fn a_footer_of_more_columns_than_tables_have_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("train.parquet");
    let schema = |columns: u64| {
        let mut elements = vec![structure(&[(4, BYTES, bytes(b"schema")), (5, INT, int(columns))])];
        elements.resize(columns as usize + 1, structure(&[(3, INT, int(0))]));
        write(&path, b"PAR1", &structure(&[(2, LIST, list(&elements))]), 0);
        refused(&path, dir.path()).unwrap()
    };
    let [few, many] = [schema(1_000), schema(100_000)];
    assert!(!few.contains("footer") && many.contains("damaged footer"), "{few}, {many}");
}

//! The index of one table: where each row's image is, and its label.

use super::super::flaw::Flaw;
use super::super::located::IndexedFile;
use super::super::vocabulary::Written;
use super::arrow::Arrow;
use super::cells::{Cell, Column, Use};
use super::columns::{Chosen, Named, choose};
use super::parquet::{CodedPage, Parquet};
use crate::memory::{Lack, Promise};
use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;

/// Memory that a row takes at most while its table is indexed: its image's place, twice while a list grows, its label, and its sample.
const ROW_BYTES: u64 = 128;
/// The most texts that are labels, and the longest.
const TEXTS_MAX: usize = 1 << 20;
const TEXT_BYTES_MAX: usize = 4 << 10;

/// Labels of a table's rows.
pub enum Labels {
    /// As they are; below 0 where there is none.
    Integers(Vec<i64>),
    /// Their texts, each once, and for each row which of these.
    Texts(Vec<String>, Vec<Option<u32>>),
}

impl Labels {
    /// As they are written: texts once, integers for each row that has a label.
    pub fn written(&self) -> impl Iterator<Item = Written<'_>> {
        let (numbers, texts) = match self {
            Self::Integers(numbers) => (&numbers[..], &[][..]),
            Self::Texts(texts, _) => (&[][..], &texts[..]),
        };
        let numbers = numbers.iter().filter_map(|&number| Some(Written::Number(number.try_into().ok()?)));
        numbers.chain(texts.iter().map(|text| Written::Name(text.as_bytes())))
    }
}

/// A table's rows.
pub struct Rows {
    /// Where the images are.
    pub images: Vec<Cell>,
    /// The pages that [`Cell::Coded`] numbers.
    pub coded: Vec<CodedPage>,
    /// One for each image.
    pub labels: Labels,
}

/// An open table.
enum Table {
    Parquet(Parquet),
    Arrow(Arrow),
}

impl Table {
    fn open(file: &IndexedFile) -> Result<Self, Flaw> {
        let (opened, bytes) = (file.open()?, file.bytes());
        let path = file.path.as_os_str().as_bytes();
        // The query of a web server's address may be left out behind it.
        let is_arrow = path.ends_with(b".arrow") || path.ends_with(".arrow?…".as_bytes());
        Ok(if is_arrow {
            Self::Arrow(Arrow::open(opened, bytes)?)
        } else {
            Self::Parquet(Parquet::open(opened, bytes)?)
        })
    }

    fn columns(&self) -> Vec<Column> {
        match self {
            Self::Parquet(table) => table.columns(),
            Self::Arrow(table) => table.columns(),
        }
    }

    /// How many rows it says it has, which are no more than its file has bytes.
    fn rows(&self) -> Result<u64, Flaw> {
        match self {
            Self::Parquet(table) => Ok(table.rows()),
            Self::Arrow(table) => table.rows(),
        }
    }

    fn images(&self, leaf: usize) -> Result<(Vec<Cell>, Vec<CodedPage>), Flaw> {
        match self {
            Self::Parquet(table) => table.strings(leaf).map(|strings| (strings.cells, strings.coded)),
            Self::Arrow(table) => table.strings(leaf).map(|cells| (cells, Vec::new())),
        }
    }

    fn integers(&self, leaf: usize) -> Result<Vec<Option<i64>>, Flaw> {
        match self {
            Self::Parquet(table) => table.integers(leaf),
            Self::Arrow(table) => table.integers(leaf),
        }
    }

    fn texts(&self, leaf: usize, each: &mut dyn FnMut(Option<&[u8]>)) -> Result<(), Flaw> {
        match self {
            Self::Parquet(table) => table.texts(leaf, each),
            Self::Arrow(table) => table.texts(leaf, each),
        }
    }
}

/// The columns of a data set, by one of its tables.
///
/// # Errors
/// When the table is damaged, or its columns are not clear.
pub fn columns(file: &IndexedFile, named: Named<'_>) -> Result<Chosen, Flaw> {
    let table = Table::open(file)?;
    let notes = match &table {
        Table::Parquet(table) => table.huggingface(),
        Table::Arrow(table) => table.huggingface(),
    };
    choose(&table.columns(), notes, named)
}

/// Indexes a table.
///
/// # Errors
/// When it is damaged, has other columns, or a row without image.
pub fn index(file: &IndexedFile, chosen: &Chosen) -> Result<Rows, Flaw> {
    let table = Table::open(file)?;
    let columns = table.columns();
    let find = |name: &str| {
        let found = columns.iter().find(|column| column.name == name && column.of_use != Use::Nothing);
        found.ok_or_else(|| Flaw::new(format!("has no column `{name}`, which other files of the data set have")))
    };
    let (image, label) = (find(&chosen.image)?, find(&chosen.label)?);
    if image.of_use != Use::Images {
        return Err(Flaw::new(format!("has no images in the column `{}`", image.name)));
    }
    let _room = room(table.rows()?)?;
    let (images, coded) = table.images(image.leaf)?;
    if let Some(row) = images.iter().position(|cell| *cell == Cell::Null) {
        return Err(Flaw::new(format!(
            "has no bytes of an image in row {row}, only a path or nothing (save the data set with its images in it, as \
             `push_to_hub` and `save_to_disk` do)"
        )));
    }
    let labels = labels(&table, label)?;
    let count = match &labels {
        Labels::Integers(labels) => labels.len(),
        Labels::Texts(_, labels) => labels.len(),
    };
    if count != images.len() {
        return Err(Flaw::new(format!("has {} images and {count} labels", images.len())));
    }
    Ok(Rows { images, coded, labels })
}

/// Memory for the index of so many rows, which is asked for before a single row is seen.
fn room(rows: u64) -> Result<Promise, Flaw> {
    Promise::new(rows.saturating_mul(ROW_BYTES), 0).map_err(|Lack { need, free }| {
        Flaw::new(format!(
            "says that it has {rows} rows, whose index takes up to {need} bytes of memory, and {free} are free (free some, or name fewer \
             tables with --splits)"
        ))
    })
}

fn labels(table: &Table, column: &Column) -> Result<Labels, Flaw> {
    if column.of_use == Use::Integers {
        let labels = table.integers(column.leaf)?;
        return Ok(Labels::Integers(labels.into_iter().map(|label| label.unwrap_or(-1)).collect()));
    }
    let (mut known, mut texts, mut labels) = (HashMap::<Vec<u8>, u32>::new(), Vec::new(), Vec::new());
    let mut too_many = None;
    table.texts(column.leaf, &mut |text| {
        let is_new = |text: &[u8]| texts.len() >= TEXTS_MAX && !known.contains_key(text);
        if too_many.is_some() || text.is_some_and(|text| text.len() > TEXT_BYTES_MAX || is_new(text)) {
            too_many.get_or_insert(labels.len());
            return;
        }
        let number = text.map(|text| {
            known.get(text).copied().unwrap_or_else(|| {
                known.insert(text.to_vec(), texts.len() as u32);
                texts.push(String::from_utf8_lossy(text).into_owned());
                texts.len() as u32 - 1
            })
        });
        labels.push(number);
    })?;
    if let Some(row) = too_many {
        return Err(Flaw::new(format!(
            "has in row {row} of the column `{}` a label of more than {TEXT_BYTES_MAX} bytes, or the label after {TEXTS_MAX} others \
             (choose another column with --label-key)",
            column.name
        )));
    }
    Ok(Labels::Texts(texts, labels))
}

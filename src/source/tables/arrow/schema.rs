//! The schema of an Arrow file: its columns, and where the values of each stand among a batch's nodes and buffers.

use super::super::super::flaw::Flaw;
use super::super::cells::{Column, Use};
use super::flat::Flat;

/// The most fields, with those of structures and lists.
const FIELDS_MAX: usize = 65_536;
/// The longest name of a column.
const NAME_BYTES_MAX: usize = 4 << 10;
/// The most structures and lists within each other.
const DEPTH_MAX: usize = 32;

/// Numbers of types in the format's definition.
mod kind {
    pub const NULL: u8 = 1;
    pub const INT: u8 = 2;
    pub const BINARY: u8 = 4;
    pub const UTF8: u8 = 5;
    pub const LIST: u8 = 12;
    pub const STRUCT: u8 = 13;
    pub const UNION: u8 = 14;
    pub const FIXED_LIST: u8 = 16;
    pub const MAP: u8 = 17;
    pub const LARGE_BINARY: u8 = 19;
    pub const LARGE_UTF8: u8 = 20;
    pub const LARGE_LIST: u8 = 21;
    pub const LAST_WITHOUT_VIEWS: u8 = 21;
}

/// What the values of a leaf are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    /// Byte strings, with offsets of this many bytes.
    Strings(usize),
    /// Integers of so many bytes.
    Integers {
        /// Bytes of each.
        bytes: usize,
        /// Whether they may be negative.
        is_signed: bool,
    },
}

/// Where a leaf's values stand in every record batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// What they are.
    pub values: Values,
    /// The number of its node, and of its first buffer: whether values are there.
    pub place: Numbers,
    /// The same of the structure around it.
    pub parent: Option<Numbers>,
}

/// The numbers of a node and of its first buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Numbers {
    /// The node's.
    pub node: usize,
    /// The buffer's.
    pub buffer: usize,
}

/// A schema.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Schema {
    /// Columns at the top; [`Column::leaf`] is an index into `leaves`.
    pub columns: Vec<Column>,
    /// Leaves that may be of use.
    pub leaves: Vec<Leaf>,
    /// What Hugging Face's `datasets` noted of the columns: JSON.
    pub huggingface: Option<String>,
}

/// Reads the table `Schema` of a message.
///
/// # Errors
/// When it is damaged, or has columns whose buffers cannot be counted.
pub fn read(schema: Flat<'_>) -> Result<Schema, Flaw> {
    if schema.short(0)? != 0 {
        return Err(Flaw::from("was written by a big-endian machine (write it on another)"));
    }
    let mut read = Schema::default();
    let notes = schema.vector(2, 4)?;
    for nth in 0..notes.len.min(FIELDS_MAX) {
        let note = notes.table(nth)?;
        if note.text(0)? == b"huggingface" {
            read.huggingface = String::from_utf8(note.text(1)?.to_vec()).ok();
            break;
        }
    }
    let (fields, mut at, mut visited) = (schema.vector(1, 4)?, Numbers::default(), 0);
    for nth in 0..fields.len {
        let field = fields.table(nth)?;
        let before = at;
        let own = pass(field, &mut at, &mut visited, 0)?;
        let mut leaf = own.map(|values| Leaf { values, place: before, parent: None });
        if kind_of(field)? == kind::STRUCT {
            leaf = bytes_of(field, before, &mut visited)?;
        }
        let of_use = match leaf.map(|leaf| leaf.values) {
            Some(Values::Strings(_)) if matches!(kind_of(field)?, kind::UTF8 | kind::LARGE_UTF8) => Use::Texts,
            Some(Values::Strings(_)) => Use::Images,
            Some(Values::Integers { .. }) => Use::Integers,
            None => Use::Nothing,
        };
        // Names may lie in one place, and each column has a copy.
        let name = field.text(0)?;
        if name.len() > NAME_BYTES_MAX {
            return Err(Flaw::from("has a column with a name of more than 4 KiB"));
        }
        let name = String::from_utf8_lossy(name).into_owned();
        read.columns.push(Column { name, of_use, leaf: read.leaves.len() });
        read.leaves.extend(leaf);
    }
    Ok(read)
}

fn kind_of(field: Flat<'_>) -> Result<u8, Flaw> {
    field.byte(2)
}

/// The child `bytes` of a structure whose own node and buffer are `at`.
fn bytes_of(field: Flat<'_>, at: Numbers, visited: &mut usize) -> Result<Option<Leaf>, Flaw> {
    let children = field.vector(5, 4)?;
    let mut next = Numbers { node: at.node + 1, buffer: at.buffer + 1 };
    for nth in 0..children.len {
        let (child, place) = (children.table(nth)?, next);
        let values = pass(child, &mut next, visited, 1)?;
        if child.text(0)? == b"bytes"
            && let Some(values) = values
            && matches!(kind_of(child)?, kind::BINARY | kind::LARGE_BINARY)
        {
            return Ok(Some(Leaf { values, place, parent: Some(at) }));
        }
    }
    Ok(None)
}

/// Passes a field and all in it, counting their nodes and buffers; what its values are, if they may be of use.
fn pass(field: Flat<'_>, at: &mut Numbers, visited: &mut usize, depth: usize) -> Result<Option<Values>, Flaw> {
    *visited += 1;
    if *visited > FIELDS_MAX || depth > DEPTH_MAX {
        return Err(Flaw::new(format!("has more than {FIELDS_MAX} columns, or columns within columns")));
    }
    let kind = kind_of(field)?;
    at.node += 1;
    // Values of a dictionary lie elsewhere; here are their numbers.
    if field.table(4)?.is_some() {
        at.buffer += 2;
        return Ok(None);
    }
    let mut values = None;
    at.buffer += match kind {
        kind::NULL => 0,
        kind::STRUCT | kind::FIXED_LIST => 1,
        kind::LIST | kind::LARGE_LIST | kind::MAP => 2,
        kind::BINARY | kind::UTF8 => {
            values = Some(Values::Strings(4));
            3
        }
        kind::LARGE_BINARY | kind::LARGE_UTF8 => {
            values = Some(Values::Strings(8));
            3
        }
        kind::INT => {
            let int = field.table(3)?.ok_or("has a column of integers of no size")?;
            let bytes = usize::try_from(int.int(0)? / 8).ok().filter(|bytes| [1, 2, 4, 8].contains(bytes));
            let is_signed = int.byte(1)? != 0;
            values = bytes.map(|bytes| Values::Integers { bytes, is_signed });
            2
        }
        kind::UNION => return Err(Flaw::from("has a column of a union type (save the data set without it)")),
        0 | kind::LAST_WITHOUT_VIEWS.. => {
            return Err(Flaw::from(
                "has a column of a type that is not read, such as a view (save the data set without it)",
            ));
        }
        _ => 2,
    };
    let children = field.vector(5, 4)?;
    for nth in 0..children.len {
        pass(children.table(nth)?, at, visited, depth + 1)?;
    }
    Ok(values)
}

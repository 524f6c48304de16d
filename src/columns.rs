//! The columns of a batch: what each row carries beside its image. A column is declared here and nowhere else; the ring's
//! slots, digests, replays and the Python package read this table.

use bytemuck::{NoUninit, cast_slice};

/// Type of a column's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    /// 64-bit signed integer.
    I64,
    /// 32-bit float.
    F32,
    /// 32-bit signed integer.
    I32,
    /// 32-bit unsigned integer.
    U32,
    /// Byte.
    U8,
}

/// A value of a column: one number, or a fixed count of them.
pub trait Value: NoUninit + bytemuck::AnyBitPattern {
    /// Type of its numbers.
    const NUMBER: Number;
    /// How many numbers a row has.
    const COUNT: usize;
}

macro_rules! value {
    ($($type:ty, $number:ident, $count:literal;)+) => {
        $(impl Value for $type {
            const NUMBER: Number = Number::$number;
            const COUNT: usize = $count;
        })+
    };
}
value! { i64, I64, 1; f32, F32, 1; i32, I32, 1; u32, U32, 1; u8, U8, 1; [i32; 4], I32, 4; }

/// One entry of [`COLUMNS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// Its name in [`Columns`], in replays and in Python.
    pub name: &'static str,
    /// Type of its numbers.
    pub number: Number,
    /// Numbers a row: the column has shape `[B]` where this is 1, else `[B, count]`.
    pub count: usize,
    /// Bytes a row.
    pub row_bytes: usize,
}

macro_rules! columns {
    ($($(#[$doc:meta])* $name:ident: $type:ty,)+) => {
        /// How many columns there are.
        pub const COUNT: usize = [$(stringify!($name)),+].len();

        /// Every column, in the order of slots and digests. Wider numbers come first, so that every column is aligned.
        pub const COLUMNS: [Column; COUNT] = [$(Column {
            name: stringify!($name),
            number: <$type as Value>::NUMBER,
            count: <$type as Value>::COUNT,
            row_bytes: size_of::<$type>(),
        }),+];

        /// A batch's columns where they lie; every slice has one element a row.
        #[derive(Debug, Clone, Copy, PartialEq, Default)]
        pub struct Columns<'a> { $($(#[$doc])* pub $name: &'a [$type],)+ }

        /// A batch's columns in vectors, which are used again from batch to batch.
        #[derive(Debug, Clone, PartialEq, Default)]
        pub struct OwnedColumns { $($(#[$doc])* pub $name: Vec<$type>,)+ }

        impl<'a> Columns<'a> {
            /// The bytes of each column, in the order of [`COLUMNS`].
            pub fn bytes(&self) -> [&'a [u8]; COUNT] {
                [$(cast_slice(self.$name)),+]
            }

            /// Columns over bytes in the order of [`COLUMNS`].
            ///
            /// # Panics
            /// When bytes are not aligned for their column, or are not whole rows.
            pub fn over(bytes: [&'a [u8]; COUNT]) -> Self {
                let [$($name),+] = bytes;
                Self { $($name: cast_slice($name)),+ }
            }
        }

        impl OwnedColumns {
            /// Empties every column.
            pub fn clear(&mut self) {
                $(self.$name.clear();)+
            }

            /// The columns as slices.
            pub fn view(&self) -> Columns<'_> {
                Columns { $($name: &self.$name),+ }
            }
        }
    };
}

columns! {
    /// Class of each row's own image, or the number of its set of classes where images have several labels.
    label_a: i64,
    /// Class of each row's partner; equal to `label_a` where nothing is mixed.
    label_b: i64,
    /// Weight of each row's own image in its label, in [0, 1]: λ of mixup, the share outside CutMix's box, 1 where nothing is mixed.
    lambda: f32,
    /// Row of each row's partner in this batch; -1 where the partner comes from elsewhere.
    partner: i32,
    /// Each row's sample.
    sample_id: u32,
    /// Each row's partner's sample.
    partner_id: u32,
    /// Top, left, height and width of each own image's crop, in pixels of its source (by default the decoded image); zeros where
    /// views do not depend on chance.
    crop: [i32; 4],
    /// Top, left, height and width of CutMix's box; zeros where a row has none.
    cut: [i32; 4],
    /// 1 where the own image is flipped horizontally, else 0.
    flip: u8,
}

/// Columns that every digest covers, and version 1 covers alone: those up to `partner_id`.
pub const COUNT_OF_VERSION_1: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_ordered_by_alignment_and_version_1_ends_where_it_did() {
        let widths = COLUMNS.map(|column| column.row_bytes / column.count);
        assert!(widths.is_sorted_by(|a, b| a >= b), "{widths:?}");
        let names: Vec<&str> = COLUMNS[..COUNT_OF_VERSION_1].iter().map(|column| column.name).collect();
        assert_eq!(names, ["label_a", "label_b", "lambda", "partner", "sample_id", "partner_id"]);
    }

    #[test]
    fn columns_survive_as_bytes() {
        let own =
            OwnedColumns { label_a: vec![1, 2], crop: vec![[1, 2, 3, 4], [5, 6, 7, 8]], ..OwnedColumns::default() };
        assert_eq!(Columns::over(own.view().bytes()), own.view());
    }
}

//! What columns of a table hold, whatever its format.

/// Where a byte string lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its first byte, in the file or in a decoded page.
    pub offset: u64,
    /// How many there are.
    pub bytes: u32,
}

/// Where the byte string of a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    /// In the file.
    InPlace(Place),
    /// In a page that is decoded as a whole, by the page's number, then its own in there.
    Coded(u32, u32),
    /// The row has none.
    Null,
}

/// What a column may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Encoded images: byte strings, or structures that hold them as `bytes`.
    Images,
    /// Labels that are integers.
    Integers,
    /// Labels that are texts.
    Texts,
    /// None.
    Nothing,
}

/// A column at the top of a table's schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// What it may be used for.
    pub of_use: Use,
    /// The number by which its format knows where its values are.
    pub leaf: usize,
}

//! Parquet files: which columns there are, where the byte strings of one lie, and the integers or texts of another.
//!
//! Byte strings of uncompressed pages lie in the file as they are, and are read there. Others are in a *coded* page, which is read and
//! decompressed as a whole. Crates for Parquet decode columns to arrays, have no places of values, and take memory by lengths that they find in a file.

mod codec;
mod footer;
mod hybrid;
mod page;
mod thrift;
mod values;

use super::super::flaw::Flaw;
use super::super::located::Opened;
use super::cells::{Cell, Column, Place, Use};
use codec::NONE;
use footer::{Chunk, Footer, Leaf, Physical, RowGroup};
use page::{Kind, Page, ReadAt};
use values::{Region, integers, places};

/// A Parquet file that is open.
pub struct Parquet {
    file: Opened,
    footer: Footer,
}

/// The byte strings of a column.
#[derive(Debug, Default)]
pub struct Strings {
    /// One for each row.
    pub cells: Vec<Cell>,
    /// Pages that must be decoded as a whole.
    pub coded: Vec<CodedPage>,
}

/// A page that must be decoded as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodedPage {
    page: Page,
    dictionary: Option<Page>,
    level_max: u8,
}

/// A decoded page.
pub struct Decoded {
    bytes: Vec<u8>,
    values: Vec<Option<Place>>,
}

impl Decoded {
    /// A byte string by its number; none where it is null, or there is none of this number.
    pub fn get(&self, nth: u32) -> Option<&[u8]> {
        let place = (*self.values.get(nth as usize)?)?;
        let start = usize::try_from(place.offset).ok()?;
        self.bytes.get(start..start.checked_add(place.bytes as usize)?)
    }

    /// The memory it takes.
    pub fn bytes(&self) -> usize {
        self.bytes.capacity() + self.values.capacity() * size_of::<Option<Place>>()
    }
}

impl CodedPage {
    /// How many numbers say all of one.
    pub const WORDS: usize = 2 + 2 * Page::WORDS;

    /// All of it, to be kept in an index.
    pub fn words(&self) -> [u64; Self::WORDS] {
        let mut words = [0; Self::WORDS];
        words[0] = self.level_max.into();
        words[1] = self.dictionary.is_some().into();
        words[2..2 + Page::WORDS].copy_from_slice(&self.page.words());
        words[2 + Page::WORDS..].copy_from_slice(&self.dictionary.unwrap_or(self.page).words());
        words
    }

    /// The page of these [`Self::WORDS`] numbers, if they are those of one in a file of `file_bytes` bytes.
    pub fn from_words(words: &[u64], file_bytes: u64) -> Option<Self> {
        let (page, dictionary) = words.get(2..)?.split_at_checked(Page::WORDS)?;
        let dictionary = Page::from_words(dictionary, file_bytes)?;
        Some(Self {
            level_max: words[0].try_into().ok()?,
            dictionary: (words[1] != 0).then_some(dictionary),
            page: Page::from_words(page, file_bytes)?,
        })
    }

    /// Where its bytes begin in the file. No value that lies in the file begins there: a length or levels come first.
    pub fn offset(&self) -> u64 {
        self.page.offset
    }

    /// Reads and decompresses it.
    ///
    /// # Errors
    /// When the file cannot be read, or was damaged when it was indexed.
    pub fn decode<E: From<Flaw>>(&self, read: &mut ReadAt<'_, E>) -> Result<Decoded, E> {
        let page = self.page.load(read)?;
        let Some(dictionary) = &self.dictionary else {
            let values = places(&self.page, &page[..], self.level_max, None)?;
            return Ok(Decoded { bytes: page, values });
        };
        let bytes = dictionary.load(read)?;
        let values = match self.page.encoding {
            page::Encoding::Plain => return Err(E::from(Flaw::from("has a page that is not what it was"))),
            page::Encoding::Dictionary => {
                places(&self.page, &page[..], self.level_max, Some(&entries(dictionary, &bytes)?))?
            }
        };
        Ok(Decoded { bytes, values })
    }
}

/// The byte strings of a dictionary that was loaded.
fn entries(dictionary: &Page, bytes: &[u8]) -> Result<Vec<Place>, Flaw> {
    Ok(places(dictionary, bytes, 0, None)?.into_iter().flatten().collect())
}

impl Parquet {
    /// Opens a file of `file_bytes` bytes.
    ///
    /// # Errors
    /// When it is no Parquet file, or a damaged one.
    pub fn open(file: Opened, file_bytes: u64) -> Result<Self, Flaw> {
        let footer = footer::read(&file, file_bytes)?;
        Ok(Self { file, footer })
    }

    /// Its columns: leaves by the outermost name, a structure with `bytes` as images.
    pub fn columns(&self) -> Vec<Column> {
        let mut columns: Vec<Column> = Vec::new();
        for (number, leaf) in self.footer.leaves.iter().enumerate() {
            let name = &leaf.path[0];
            let of_use = match (leaf.physical, leaf.path.len()) {
                _ if leaf.is_repeated => Use::Nothing,
                (Physical::Bytes, 1) if leaf.is_text => Use::Texts,
                (Physical::Bytes, 1) => Use::Images,
                (Physical::Bytes, 2) if leaf.path[1] == "bytes" && !leaf.is_text => Use::Images,
                (Physical::Int32 | Physical::Int64, 1) => Use::Integers,
                _ => Use::Nothing,
            };
            match columns.last_mut().filter(|last| last.name == *name) {
                Some(last) if of_use == Use::Nothing => _ = last,
                Some(last) => *last = Column { of_use, leaf: number, ..last.clone() },
                None => columns.push(Column { name: name.clone(), of_use, leaf: number }),
            }
        }
        columns
    }

    /// How many rows its footer says it has.
    pub fn rows(&self) -> u64 {
        self.footer.row_groups.iter().map(|group| group.rows).sum()
    }

    /// What Hugging Face's `datasets` noted of the columns: JSON.
    pub fn huggingface(&self) -> Option<&str> {
        self.footer.huggingface.as_deref()
    }

    /// Where the byte strings of a leaf are.
    ///
    /// # Errors
    /// When its pages are damaged, or written in a way that is not read.
    pub fn strings(&self, leaf: usize) -> Result<Strings, Flaw> {
        let (mut strings, level_max) = (Strings::default(), self.footer.leaves[leaf].level_max);
        for group in &self.footer.row_groups {
            let chunk = &group.chunks[leaf];
            let (dictionary, pages) = self.pages(group, chunk)?;
            let in_place = |page: &Page| page.codec == NONE;
            let readable = dictionary.filter(in_place).map(|dictionary| -> Result<_, Flaw> {
                let places = places(&dictionary, &Region(&self.file, &dictionary), 0, None)?;
                Ok(places.into_iter().flatten().collect::<Vec<Place>>())
            });
            let entries = readable.transpose()?;
            for page in pages {
                let is_coded = match page.encoding {
                    page::Encoding::Plain => !in_place(&page),
                    page::Encoding::Dictionary => entries.is_none(),
                };
                if is_coded {
                    let dictionary = dictionary.filter(|_| page.encoding == page::Encoding::Dictionary);
                    self.push_coded(&mut strings, CodedPage { page, dictionary, level_max }, chunk)?;
                    continue;
                }
                let cells = if in_place(&page) {
                    places(&page, &Region(&self.file, &page), level_max, entries.as_deref())?
                } else {
                    places(&page, &self.load(&page)?[..], level_max, entries.as_deref())?
                };
                strings.cells.extend(cells.into_iter().map(|place| place.map_or(Cell::Null, Cell::InPlace)));
            }
        }
        Ok(strings)
    }

    /// The dictionary of a chunk and its other pages.
    fn pages(&self, group: &RowGroup, chunk: &Chunk) -> Result<(Option<Page>, Vec<Page>), Flaw> {
        let mut pages = page::pages(&self.file, chunk, group.rows)?;
        let has_dictionary = pages.first().is_some_and(|first| first.kind == Kind::Dictionary);
        let dictionary = has_dictionary.then(|| pages.remove(0));
        Ok((dictionary, pages))
    }

    /// The integers of a leaf; none where there is none.
    ///
    /// # Errors
    /// When its pages are damaged, or written in a way that is not read.
    pub fn integers(&self, leaf: usize) -> Result<Vec<Option<i64>>, Flaw> {
        let Leaf { level_max, physical, .. } = self.footer.leaves[leaf];
        let width = if physical == Physical::Int32 { 4 } else { 8 };
        let mut all = Vec::new();
        for group in &self.footer.row_groups {
            let (dictionary, pages) = self.pages(group, &group.chunks[leaf])?;
            let entries = dictionary.map(|dictionary| -> Result<Vec<i64>, Flaw> {
                Ok(integers(&dictionary, &self.load(&dictionary)?, 0, width, None)?.into_iter().flatten().collect())
            });
            let entries = entries.transpose()?;
            for page in pages {
                all.extend(integers(&page, &self.load(&page)?, level_max, width, entries.as_deref())?);
            }
        }
        Ok(all)
    }

    /// Calls `each` with the texts of a leaf; none where there is none.
    ///
    /// # Errors
    /// When its pages are damaged, or written in a way that is not read.
    pub fn texts(&self, leaf: usize, each: &mut dyn FnMut(Option<&[u8]>)) -> Result<(), Flaw> {
        let strings = self.strings(leaf)?;
        let (mut text, mut decoded) = (Vec::new(), None);
        for cell in strings.cells {
            match cell {
                Cell::Null => each(None),
                Cell::InPlace(Place { offset, bytes }) => {
                    // A place lies within the file.
                    text.resize(bytes as usize, 0);
                    self.file.read_exact_at(&mut text, offset)?;
                    each(Some(&text));
                }
                Cell::Coded(page, nth) => {
                    if decoded.as_ref().is_none_or(|(number, _)| *number != page) {
                        decoded = Some((page, self.decode(&strings.coded[page as usize])?));
                    }
                    each(decoded.as_ref().and_then(|(_, decoded)| decoded.get(nth)));
                }
            }
        }
        Ok(())
    }

    /// Adds the cells of a coded page, which is decoded now only where it might have nulls.
    fn push_coded(&self, strings: &mut Strings, coded: CodedPage, chunk: &Chunk) -> Result<(), Flaw> {
        let number = strings.coded.len() as u32;
        let has_nulls = coded.level_max > 0 && chunk.nulls != Some(0);
        let decoded = if has_nulls { Some(self.decode(&coded)?) } else { None };
        strings.cells.extend((0..coded.page.values).map(|nth| match &decoded {
            Some(decoded) if decoded.values.get(nth as usize).is_none_or(Option::is_none) => Cell::Null,
            _ => Cell::Coded(number, nth),
        }));
        strings.coded.push(coded);
        Ok(())
    }

    fn load(&self, page: &Page) -> Result<Vec<u8>, Flaw> {
        page.load(&mut |at, bytes| Ok(self.file.read_exact_at(bytes, at)?))
    }

    fn decode(&self, coded: &CodedPage) -> Result<Decoded, Flaw> {
        coded.decode(&mut |at, bytes| Ok(self.file.read_exact_at(bytes, at)?))
    }
}

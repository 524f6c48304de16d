//! Values of a page: where each byte string lies, and what each integer is.

use super::super::super::flaw::Flaw;
use super::super::super::located::Opened;
use super::super::cells::Place;
use super::hybrid;
use super::page::{Encoding, Kind, Page};

/// A page's bytes, in a file or in memory.
pub trait Area {
    /// How many there are.
    fn bytes(&self) -> u64;

    /// Fills `into` with those from `at` on.
    ///
    /// # Errors
    /// When they cannot be read, or are not there.
    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), Flaw>;

    /// What [`Place::offset`] says for the first of them.
    fn base(&self) -> u64;
}

/// A page that lies uncompressed in a file.
pub struct Region<'a>(pub &'a Opened, pub &'a Page);

impl Area for Region<'_> {
    fn bytes(&self) -> u64 {
        u64::from(self.1.bytes)
    }

    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), Flaw> {
        if at.checked_add(into.len() as u64).is_none_or(|end| end > self.bytes()) {
            return Err(cut());
        }
        Ok(self.0.read_exact_at(into, self.1.offset + at)?)
    }

    fn base(&self) -> u64 {
        self.1.offset
    }
}

impl Area for [u8] {
    fn bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), Flaw> {
        let from = usize::try_from(at).ok().and_then(|at| self.get(at..at.checked_add(into.len())?));
        into.copy_from_slice(from.ok_or_else(cut)?);
        Ok(())
    }

    fn base(&self) -> u64 {
        0
    }
}

fn cut() -> Flaw {
    Flaw::from("has a page that ends within a value (copy it again)")
}

/// Bytes that are read at once where values are small.
const WINDOW_BYTES: u64 = 64 << 10;
/// Longer values are passed over: only the lengths before them are read.
const SMALL_BYTES: u64 = 16 << 10;

/// The byte strings of a page; none for one that is null.
///
/// # Errors
/// When the page is not what its header says.
pub fn places(
    page: &Page,
    area: &(impl Area + ?Sized),
    level_max: u8,
    dictionary: Option<&[Place]>,
) -> Result<Vec<Option<Place>>, Flaw> {
    let (levels, start) = levels(page, area, level_max)?;
    match page.encoding {
        Encoding::Plain => {
            let mut walk = Walk::from(area, start);
            spread(page.values, levels.as_deref(), || walk.next())
        }
        Encoding::Dictionary => look_up(page, area, start, levels.as_deref(), dictionary),
    }
}

/// The integers of a page, of `width` bytes each; none for one that is null.
///
/// # Errors
/// When the page is not what its header says.
pub fn integers(
    page: &Page,
    area: &[u8],
    level_max: u8,
    width: usize,
    dictionary: Option<&[i64]>,
) -> Result<Vec<Option<i64>>, Flaw> {
    let (levels, start) = levels(page, area, level_max)?;
    match page.encoding {
        Encoding::Plain => {
            let mut values = area[start as usize..].chunks_exact(width);
            spread(page.values, levels.as_deref(), || {
                let value = values.next().ok_or_else(cut)?;
                Ok(match value.try_into() {
                    Ok(eight) => i64::from_le_bytes(eight),
                    Err(_) => i64::from(i32::from_le_bytes(value.try_into().map_err(|_| cut())?)),
                })
            })
        }
        Encoding::Dictionary => look_up(page, area, start, levels.as_deref(), dictionary),
    }
}

/// Whether each value is there, where some may be null, and where the values begin.
fn levels(page: &Page, area: &(impl Area + ?Sized), level_max: u8) -> Result<(Option<Vec<bool>>, u64), Flaw> {
    let (at, bytes) = match page.kind {
        Kind::Dictionary => return Ok((None, 0)),
        Kind::Data if level_max == 0 => (0, 0),
        Kind::Data => {
            let mut len = [0; 4];
            area.read(0, &mut len)?;
            (4, u64::from(u32::from_le_bytes(len)))
        }
        Kind::DataV2 { repetition_bytes, definition_bytes } => {
            (u64::from(repetition_bytes), u64::from(definition_bytes))
        }
    };
    if at + bytes > area.bytes() {
        return Err(Flaw::from("has levels that are longer than their page"));
    }
    if level_max == 0 {
        return Ok((None, at + bytes));
    }
    let (mut encoded, mut levels) = (vec![0; bytes as usize], Vec::new());
    area.read(at, &mut encoded)?;
    hybrid::decode(&encoded, u8::BITS - level_max.leading_zeros(), u64::from(page.values), &mut |level| {
        levels.push(level == u32::from(level_max));
        Ok(())
    })?;
    Ok((Some(levels), at + bytes))
}

/// `next` for each value that is there.
fn spread<T>(
    values: u32,
    levels: Option<&[bool]>,
    mut next: impl FnMut() -> Result<T, Flaw>,
) -> Result<Vec<Option<T>>, Flaw> {
    let is_there = |nth: u32| levels.is_none_or(|levels| levels[nth as usize]);
    (0..values).map(|nth| is_there(nth).then(&mut next).transpose()).collect()
}

/// The entries of a dictionary whose numbers the page holds.
fn look_up<T: Copy>(
    page: &Page,
    area: &(impl Area + ?Sized),
    start: u64,
    levels: Option<&[bool]>,
    dictionary: Option<&[T]>,
) -> Result<Vec<Option<T>>, Flaw> {
    let dictionary = dictionary.ok_or("refers to a dictionary that is not there")?;
    let there = levels.map_or(u64::from(page.values), |levels| levels.iter().filter(|there| **there).count() as u64);
    let mut bytes = vec![0; (area.bytes() - start) as usize];
    area.read(start, &mut bytes)?;
    let mut entries = Vec::new();
    if there > 0 {
        let (&width, numbers) = bytes.split_first().ok_or_else(cut)?;
        hybrid::decode(numbers, u32::from(width), there, &mut |number| {
            entries.push(*dictionary.get(number as usize).ok_or("refers to an entry that its dictionary has not")?);
            Ok(())
        })?;
    }
    let mut entries = entries.into_iter();
    spread(page.values, levels, || entries.next().ok_or_else(cut))
}

/// A walk over byte strings, each behind its length in four bytes.
struct Walk<'a, A: ?Sized> {
    area: &'a A,
    at: u64,
    /// Whether the last value was so long that the next length is read by itself.
    is_long: bool,
    /// Bytes of the area from `window_at` on.
    window: Vec<u8>,
    window_at: u64,
}

impl<'a, A: Area + ?Sized> Walk<'a, A> {
    fn from(area: &'a A, at: u64) -> Self {
        Self { area, at, is_long: true, window: Vec::new(), window_at: at }
    }

    fn next(&mut self) -> Result<Place, Flaw> {
        let bytes = self.len()?;
        let offset = self.at + size_of::<u32>() as u64;
        self.at = offset + u64::from(bytes);
        self.is_long = u64::from(bytes) > SMALL_BYTES;
        if self.at > self.area.bytes() {
            return Err(cut());
        }
        Ok(Place { offset: self.area.base() + offset, bytes })
    }

    /// The length that stands here.
    fn len(&mut self) -> Result<u32, Flaw> {
        let mut len = [0; size_of::<u32>()];
        let from = (self.at - self.window_at) as usize;
        if let Some(found) = self.window.get(from..from + len.len()) {
            len.copy_from_slice(found);
        } else if self.is_long {
            self.area.read(self.at, &mut len)?;
        } else {
            self.window.resize(WINDOW_BYTES.min(self.area.bytes() - self.at) as usize, 0);
            self.window_at = self.at;
            self.area.read(self.at, &mut self.window)?;
            len = *self.window.first_chunk().ok_or_else(cut)?;
        }
        Ok(u32::from_le_bytes(len))
    }
}

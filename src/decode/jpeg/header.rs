//! A JPEG's segments, read as libjpeg reads them: what harms no pixel is a warning.

use super::color::Color;
use super::frame::{Frame, NATURAL, Scan, refused};
use super::huffman::Table;
use crate::decode::{ImageError, check_size};
use std::rc::Rc;

/// The most scans of a file. Encoders make about ten; a few bytes each can make a file of thousands that takes minutes.
const SCANS_MAX: usize = 500;

/// What was read of a file.
pub struct Header<'a> {
    pub file: &'a [u8],
    /// Where it goes on.
    at: usize,
    /// Bytes before that which belong to nothing.
    stray: usize,
    /// The first thing that is wrong with the file and harms no pixel.
    pub warning: Option<String>,
    pub frame: Option<Frame>,
    /// Quantization in the order of blocks.
    pub quantization: [Option<[u16; 64]>; 4],
    /// Tables of codes.
    pub dc: [Option<Rc<Table>>; 4],
    pub ac: [Option<Rc<Table>>; 4],
    /// Units between restart markers; 0 for none.
    pub restart_interval: usize,
    has_jfif: bool,
    adobe_transform: Option<u8>,
    profile: Profile,
    scans: usize,
}

/// The parts of a color profile.
#[derive(Default)]
struct Profile {
    count: u8,
    /// A bit for each part.
    seen: [u64; 4],
    is_bogus: bool,
}

impl Profile {
    fn add(&mut self, number: u8, count: u8) {
        let (word, bit) = (usize::from(number / 64), 1 << (number % 64));
        self.is_bogus |= self.count != 0 && count != self.count || number == 0 || number > count;
        self.is_bogus |= self.seen[word] & bit != 0;
        self.seen[word] |= bit;
        self.count = count;
    }

    fn is_incomplete(&self) -> bool {
        self.is_bogus || self.seen.iter().map(|word| word.count_ones()).sum::<u32>() != u32::from(self.count)
    }
}

const CUT: &str = "the file is cut off";

impl<'a> Header<'a> {
    /// Begins a file.
    pub fn new(file: &'a [u8]) -> Result<Self, ImageError> {
        if !file.starts_with(&[0xFF, 0xD8]) {
            return refused("it does not begin as a JPEG");
        }
        Ok(Self {
            file,
            at: 2,
            stray: 0,
            warning: None,
            frame: None,
            quantization: [None; 4],
            dc: [const { None }; 4],
            ac: [const { None }; 4],
            restart_interval: 0,
            has_jfif: false,
            adobe_transform: None,
            profile: Profile::default(),
            scans: 0,
        })
    }

    /// Notes what is wrong with the file and harms no pixel.
    pub fn warn(&mut self, what: impl FnOnce() -> String) {
        self.warning.get_or_insert_with(what);
    }

    /// Where a scan's data begin.
    pub fn data(&self) -> usize {
        self.at
    }

    /// Goes on behind a scan's data, of which so many bytes were not read.
    pub fn resume(&mut self, (at, stray): (usize, usize)) {
        (self.at, self.stray) = (at, self.stray + stray);
    }

    /// The next marker, past bytes that are none; `None` at the end of the file.
    pub fn marker(&mut self) -> Option<u8> {
        let marker = loop {
            let skipped = memchr::memchr(0xFF, self.file.get(self.at..)?)?;
            self.stray += skipped;
            self.at += skipped;
            let fill = self.file[self.at..].iter().take_while(|byte| **byte == 0xFF).count();
            let byte = *self.file.get(self.at + fill)?;
            self.at += fill + 1;
            if byte != 0 {
                break byte;
            }
            self.stray += 2;
        };
        if self.stray > 0 {
            let stray = std::mem::take(&mut self.stray);
            self.warn(|| format!("{stray} stray bytes before a marker {marker:#04X}"));
        }
        Some(marker)
    }

    /// The content of a segment.
    fn segment(&mut self) -> Result<&'a [u8], ImageError> {
        let Some(length) = self.file.get(self.at..).and_then(|rest| rest.first_chunk()) else { return refused(CUT) };
        let end = self.at + usize::from(u16::from_be_bytes(*length));
        let begin = self.at + 2;
        // libjpeg reads on behind a length that does not count itself.
        let Some(content) = self.file.get(begin..end.max(begin)) else { return refused(CUT) };
        self.at = end.max(begin);
        Ok(content)
    }

    /// Reads up to the next scan's data; `None` at the end of the image.
    pub fn next_scan(&mut self) -> Result<Option<Scan>, ImageError> {
        loop {
            let Some(marker) = self.marker() else { return refused("the file is cut off: it has no end marker") };
            match marker {
                0xD8 => return refused("it has a second start"),
                0xD9 => return Ok(None),
                // Markers without a length belong into scans.
                0x01 | 0xD0..=0xD7 => {}
                0xC4 => {
                    let content = self.segment()?;
                    self.tables(content)?;
                }
                0xDB => {
                    let content = self.segment()?;
                    self.quantization(content)?;
                }
                0xDD => match *self.segment()? {
                    [high, low] => self.restart_interval = u16::from_be_bytes([high, low]).into(),
                    _ => return refused("its restart interval is damaged"),
                },
                // Arithmetic coding is refused with its frame.
                0xCC | 0xDC | 0xFE | 0xE1 | 0xE3..=0xED | 0xEF => drop(self.segment()?),
                0xE0 | 0xE2 | 0xEE => {
                    let content = self.segment()?;
                    self.application(marker, content);
                }
                0xC0..=0xC3 | 0xC5..=0xCF => {
                    let content = self.segment()?;
                    if self.frame.is_some() {
                        return refused("it has a second frame header");
                    }
                    self.frame = Some(Frame::parse(marker, content)?);
                }
                0xDA => {
                    let content = self.segment()?;
                    return self.scan(content).map(Some);
                }
                _ => return refused(format!("it has an unknown marker {marker:#04X}")),
            }
        }
    }

    /// Reads up to the frame header: width and height.
    pub fn size(&mut self) -> Result<(u32, u32), ImageError> {
        loop {
            let Some(marker) = self.marker() else { return refused(CUT) };
            match marker {
                0xC0..=0xC3 | 0xC5..=0xC7 | 0xC9..=0xCB | 0xCD..=0xCF => {
                    let &[_, h1, h0, w1, w0, ..] = self.segment()? else {
                        return refused("its frame header is too short");
                    };
                    return check_size(u16::from_be_bytes([w1, w0]).into(), u16::from_be_bytes([h1, h0]).into());
                }
                0xD8..=0xDA => return refused("it has no frame header"),
                0x01 | 0xD0..=0xD7 => {}
                _ => drop(self.segment()?),
            }
        }
    }

    fn scan(&mut self, content: &[u8]) -> Result<Scan, ImageError> {
        let Some(frame) = &self.frame else { return refused("it has a scan before its frame header") };
        let scan = Scan::parse(content, frame)?;
        self.scans += 1;
        if self.scans > SCANS_MAX {
            return refused(format!("it has more than {SCANS_MAX} scans"));
        }
        if self.scans == 1 && self.profile.is_incomplete() {
            self.warn(|| "its color profile is incomplete".to_owned());
        }
        Ok(scan)
    }

    fn application(&mut self, marker: u8, content: &[u8]) {
        match (marker, content) {
            (0xE0, [b'J', b'F', b'I', b'F', 0, major, minor, _, _, _, _, _, _, _, ..]) => {
                self.has_jfif = true;
                if *major != 1 {
                    self.warn(|| format!("its JFIF version is {major}.{minor:02}"));
                }
            }
            (0xE2, [b'I', b'C', b'C', b'_', b'P', b'R', b'O', b'F', b'I', b'L', b'E', 0, number, count, ..])
                if self.scans == 0 =>
            {
                self.profile.add(*number, *count);
            }
            (0xEE, [b'A', b'd', b'o', b'b', b'e', _, _, _, _, _, _, transform, ..]) => {
                self.adobe_transform = Some(*transform);
            }
            _ => {}
        }
    }

    fn tables(&mut self, mut content: &[u8]) -> Result<(), ImageError> {
        while let [index, rest @ ..] = content {
            let Some((counts, rest)) = rest.split_first_chunk::<16>() else {
                return refused("a table of Huffman codes is damaged");
            };
            let total = counts.iter().map(|count| usize::from(*count)).sum::<usize>();
            let tables = if index & 0x10 == 0 { &mut self.dc } else { &mut self.ac };
            let (Some(table), Some(symbols)) = (tables.get_mut(usize::from(index & !0x10)), rest.get(..total)) else {
                return refused("a table of Huffman codes is damaged");
            };
            if total > 256 {
                return refused("a table of Huffman codes is damaged");
            }
            // One that cannot be used is an error where it is.
            *table = Table::new(counts, symbols).map(Rc::new);
            content = &rest[total..];
        }
        Ok(())
    }

    fn quantization(&mut self, mut content: &[u8]) -> Result<(), ImageError> {
        while let [index, rest @ ..] = content {
            let bytes = if index >> 4 == 0 { 1 } else { 2 };
            let (Some(table), Some((values, rest))) =
                (self.quantization.get_mut(usize::from(index & 15)), rest.split_at_checked(64 * bytes))
            else {
                return refused("a table of quantization is damaged");
            };
            let table = table.insert([0; 64]);
            for (value, at) in values.chunks_exact(bytes).zip(NATURAL) {
                table[usize::from(at)] = value.iter().fold(0, |high, byte| high << 8 | u16::from(*byte));
            }
            content = rest;
        }
        Ok(())
    }

    /// How its components make a color, by libjpeg's evidence: JFIF, then Adobe's marker, then the components' names.
    ///
    /// # Panics
    /// Without a frame.
    pub fn color(&mut self) -> Color {
        let components = &self.frame.as_ref().expect("a frame was read").components;
        let named_rgb = components.iter().map(|component| component.id).eq(*b"RGB");
        match (components.len(), self.adobe_transform) {
            (1, _) => Color::Gray,
            (3, _) if self.has_jfif => Color::Ycc,
            (3, Some(0)) => Color::Rgb,
            (3, None) if named_rgb => Color::Rgb,
            (3, None | Some(1)) => Color::Ycc,
            (4, None | Some(0)) => Color::Cmyk,
            (4, Some(2)) => Color::Ycck,
            (count, Some(code)) => {
                self.warn(|| format!("its Adobe marker has an unknown code {code}"));
                if count == 4 { Color::Ycck } else { Color::Ycc }
            }
            (count, None) => unreachable!("{count} components were refused"),
        }
    }
}

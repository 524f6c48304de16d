//! From a scan's bits to coefficients: sequential and progressive Huffman coding, as libjpeg decodes them.
//!
//! A restart marker that is not the one expected is dealt with as libjpeg does, and a warning where nothing is lost by that. Data that are
//! missing are an error.

use super::bits::Bits;
use super::frame::{Component, Frame, NATURAL, Part, Scan, refused};
use super::header::Header;
use super::huffman::Table;
use crate::decode::ImageError;
use std::ops::RangeInclusive;
use std::rc::Rc;

/// A block's coefficients, row by row.
pub type Block = [i16; 64];

const CUT: &str = "the file is cut off: a scan ends too early";

/// Counts units up to the next restart marker.
struct Restarts {
    interval: usize,
    to_go: usize,
    number: u8,
}

impl Restarts {
    fn new(interval: usize) -> Self {
        Self { interval, to_go: interval, number: 0 }
    }

    /// Counts a unit; whether a marker comes before it, which is then read.
    fn step<'a>(&mut self, header: &mut Header<'a>, bits: &mut Bits<'a>) -> Result<bool, ImageError> {
        if self.interval == 0 {
            return Ok(false);
        }
        let is_due = self.to_go == 0;
        if is_due {
            header.resume(bits.end());
            find_restart(header, self.number)?;
            bits.restart(header.data());
            self.number = (self.number + 1) % 8;
            self.to_go = self.interval;
        }
        self.to_go -= 1;
        Ok(is_due)
    }
}

/// Reads up to the restart marker of a number, or to one that libjpeg takes for it.
fn find_restart(header: &mut Header<'_>, number: u8) -> Result<(), ImageError> {
    let Some(mut marker) = header.marker() else { return refused(CUT) };
    let found = marker;
    while marker != 0xD0 + number {
        match marker {
            0xD0..=0xD7 => match marker.wrapping_sub(0xD0 + number) % 8 {
                // One of the next two: what comes before it is missing.
                1 | 2 => return refused(format!("restart marker {number} is missing, with data before or after it")),
                // One of the last two: from there to the next one.
                6 | 7 => {}
                // Another one: it stands for this one.
                _ => break,
            },
            0xC0.. => return refused(CUT),
            _ => {}
        }
        let Some(next) = header.marker() else { return refused(CUT) };
        marker = next;
    }
    if found != 0xD0 + number {
        header.warn(|| format!("a marker {found:#04X} stands in the place of restart marker {number}"));
    }
    Ok(())
}

/// The table of a number.
fn table(tables: &[Option<Rc<Table>>; 4], number: usize) -> Result<Rc<Table>, ImageError> {
    match tables.get(number) {
        Some(Some(table)) => Ok(table.clone()),
        _ => refused("a table of Huffman codes is missing or damaged"),
    }
}

fn dc_table(header: &Header<'_>, number: usize) -> Result<Rc<Table>, ImageError> {
    let table = table(&header.dc, number)?;
    if table.is_for_dc() { Ok(table) } else { refused("a table of Huffman codes is damaged") }
}

/// Reads a scan of a sequential image, and hands on each block: of which component, where, its coefficients, and the last that is none of zero, in
/// zigzag order.
pub fn sequential(
    header: &mut Header<'_>,
    frame: &Frame,
    scan: &Scan,
    mut put: impl FnMut(&Component, [usize; 2], &Block, usize),
) -> Result<(), ImageError> {
    if (scan.first, scan.last, scan.high, scan.low) != (0, 63, 0, 0) {
        header.warn(|| "its scan header has other values than a sequential image must have".to_owned());
    }
    let lacks = |tables: &[Option<Rc<Table>>; 4], number: usize| tables.get(number).is_some_and(Option::is_none);
    if scan.parts.iter().any(|part| lacks(&header.dc, part.dc) || lacks(&header.ac, part.ac)) {
        for (place, [dc, ac]) in Table::standard().into_iter().enumerate() {
            header.dc[place].get_or_insert_with(|| Rc::new(dc));
            header.ac[place].get_or_insert_with(|| Rc::new(ac));
        }
    }
    let tables = scan.parts.iter().map(|part| Ok((dc_table(header, part.dc)?, table(&header.ac, part.ac)?)));
    let tables = tables.collect::<Result<Vec<_>, ImageError>>()?;
    let mut bits = Bits::new(header.file, header.data());
    let mut restarts = Restarts::new(header.restart_interval);
    let (mut last_dc, mut block) = ([0_i32; 4], [0; 64]);
    let [units_across, units_down] = scan.units(frame);
    for row in 0..units_down {
        for column in 0..units_across {
            if restarts.step(header, &mut bits)? {
                last_dc = [0; 4];
            }
            for ((part, (dc, ac)), last_dc) in scan.parts.iter().zip(&tables).zip(&mut last_dc) {
                let component = &frame.components[part.component];
                let [across, down] = scan.unit_blocks(component);
                for place in 0..across * down {
                    let at = [column * across + place % across, row * down + place / across];
                    let last = sequential_block(&mut bits, dc, ac, last_dc, &mut block);
                    put(component, at, &block, last);
                    if last == 0 { block[0] = 0 } else { block = [0; 64] }
                }
            }
            if bits.ran_out() {
                return refused(CUT);
            }
        }
    }
    finish(header, &bits);
    Ok(())
}

/// Goes on behind a scan.
fn finish<'a>(header: &mut Header<'a>, bits: &Bits<'a>) {
    if bits.is_damaged() {
        header.warn(|| "a scan is damaged: it has codes that are in no table".to_owned());
    }
    header.resume(bits.end());
}

/// Reads the coefficients of a block of zeros; where the last one is, in zigzag order.
#[inline]
fn sequential_block(bits: &mut Bits<'_>, dc: &Table, ac: &Table, last_dc: &mut i32, block: &mut Block) -> usize {
    bits.fill();
    let length = dc.symbol(bits);
    *last_dc = last_dc.wrapping_add(bits.value(length.into()));
    block[0] = *last_dc as i16;
    let (mut at, mut last) = (1, 0);
    while at < 64 {
        bits.fill();
        let symbol = ac.symbol(bits);
        let (run, length) = (usize::from(symbol >> 4), u32::from(symbol & 15));
        if length == 0 {
            if run < 15 {
                break;
            }
            at += 16;
            continue;
        }
        at += run;
        // A damaged run ends at the last coefficient.
        block[usize::from(NATURAL[at])] = bits.value(length) as i16;
        last = at;
        at += 1;
    }
    last
}

/// Where the last coefficient that is not zero stands in zigzag order; 0 where none is.
pub fn last(block: &Block) -> usize {
    (1..64).rev().find(|at| block[usize::from(NATURAL[*at])] != 0).unwrap_or(0)
}

/// Reads a scan of a progressive image into coefficients, those of the component one by one by its stored blocks.
pub fn progressive(
    header: &mut Header<'_>,
    frame: &mut Frame,
    scan: &Scan,
    blocks: &mut [Block],
) -> Result<(), ImageError> {
    let is_dc = scan.first == 0;
    let is_legal =
        if is_dc { scan.last == 0 } else { scan.first <= scan.last && scan.last < 64 && scan.parts.len() == 1 };
    if !is_legal || scan.high != 0 && scan.high != scan.low + 1 || scan.low > 13 {
        return refused("a scan header is damaged");
    }
    for part in &scan.parts {
        let progress = &mut frame.components[part.component].progress;
        let is_consistent = (is_dc || progress[0] >= 0)
            && progress[scan.first.into()..=scan.last.into()].iter().all(|bit| (*bit).max(0) as u8 == scan.high);
        progress[scan.first.into()..=scan.last.into()].fill(scan.low as i8);
        if !is_consistent {
            header.warn(|| "its scans do not follow from each other".to_owned());
        }
    }
    let mut coding = Progressive {
        bits: Bits::new(header.file, header.data()),
        tables: scan.parts.iter().map(|part| tables(header, scan, part)).collect::<Result<_, _>>()?,
        last_dc: [0; 4],
        end_run: 0,
        first: scan.first.into(),
        last: scan.last.into(),
        low: scan.low.into(),
    };
    let mut restarts = Restarts::new(header.restart_interval);
    let [units_across, units_down] = scan.units(frame);
    for row in 0..units_down {
        for column in 0..units_across {
            if restarts.step(header, &mut coding.bits)? {
                (coding.last_dc, coding.end_run) = ([0; 4], 0);
            }
            for (nth, part) in scan.parts.iter().enumerate() {
                let component = &frame.components[part.component];
                let [across, down] = scan.unit_blocks(component);
                for place in 0..across * down {
                    let (x, y) = (column * across + place % across, row * down + place / across);
                    let block = &mut blocks[component.first_block + y * component.stored[0] + x];
                    let read = match (is_dc, scan.high) {
                        (true, 0) => coding.first_of_dc(nth, block),
                        (true, _) => coding.more_of_dc(block),
                        (false, 0) => coding.first_of_ac(block),
                        (false, _) => coding.more_of_ac(block),
                    };
                    if coding.bits.ran_out() {
                        return refused(CUT);
                    }
                    if read.is_none() {
                        return refused("a scan is damaged: its values are too large");
                    }
                }
            }
        }
    }
    finish(header, &coding.bits);
    Ok(())
}

/// The table that a progressive scan needs of a part: none for more bits of DC.
fn tables(header: &Header<'_>, scan: &Scan, part: &Part) -> Result<Option<Rc<Table>>, ImageError> {
    match (scan.first, scan.high) {
        (0, 0) => dc_table(header, part.dc).map(Some),
        (0, _) => Ok(None),
        _ => table(&header.ac, part.ac).map(Some),
    }
}

/// The state of a progressive scan. Its functions return `None` where libjpeg gives up.
struct Progressive<'a> {
    bits: Bits<'a>,
    tables: Vec<Option<Rc<Table>>>,
    last_dc: [i32; 4],
    /// Blocks that have no more new coefficients, the one at hand included.
    end_run: u32,
    first: usize,
    last: usize,
    low: u32,
}

impl Progressive<'_> {
    fn first_of_dc(&mut self, nth: usize, block: &mut Block) -> Option<()> {
        self.bits.fill();
        let length = self.tables[nth].as_ref()?.symbol(&mut self.bits);
        self.last_dc[nth] = self.last_dc[nth].checked_add(self.bits.value(length.into()))?;
        block[0] = (self.last_dc[nth] << self.low) as i16;
        Some(())
    }

    fn more_of_dc(&mut self, block: &mut Block) -> Option<()> {
        self.bits.fill();
        block[0] |= (self.bits.take(1) << self.low) as i16;
        Some(())
    }

    fn first_of_ac(&mut self, block: &mut Block) -> Option<()> {
        if self.end_run > 0 {
            self.end_run -= 1;
            return Some(());
        }
        let table = self.tables[0].as_deref()?;
        let mut at = self.first;
        while at <= self.last {
            self.bits.fill();
            let symbol = table.symbol(&mut self.bits);
            let (run, length) = (usize::from(symbol >> 4), u32::from(symbol & 15));
            if length > 0 {
                at += run;
                block[usize::from(NATURAL[at])] = (self.bits.value(length) << self.low) as i16;
                at += 1;
            } else if run == 15 {
                at += 16;
            } else {
                self.end_run = (1 << run) + self.bits.take(run as u32) as u32 - 1;
                break;
            }
        }
        Some(())
    }

    fn more_of_ac(&mut self, block: &mut Block) -> Option<()> {
        let table = self.tables[0].as_deref()?;
        let bit = 1 << self.low;
        let mut at = self.first;
        if self.end_run == 0 {
            while at <= self.last {
                self.bits.fill();
                let symbol = table.symbol(&mut self.bits);
                let (run, length) = (usize::from(symbol >> 4), symbol & 15);
                let value = match (length, run) {
                    (0, 15) => 0,
                    (0, _) => {
                        self.end_run = (1 << run) + self.bits.take(run as u32) as u32;
                        break;
                    }
                    (length, _) => {
                        if length != 1 {
                            self.bits.note_damage();
                        }
                        if self.bits.take(1) == 1 { bit } else { -bit }
                    }
                };
                at = correct(&mut self.bits, block, at..=self.last, bit, Some(run));
                if value != 0 {
                    block[usize::from(NATURAL[at])] = value;
                }
                at += 1;
            }
        }
        if self.end_run > 0 {
            correct(&mut self.bits, block, at..=self.last, bit, None);
            self.end_run -= 1;
        }
        Some(())
    }
}

/// Reads one more bit of the coefficients that are known, up to the zero after `zeros` others, or to the end; where that is.
fn correct(
    bits: &mut Bits<'_>,
    block: &mut Block,
    range: RangeInclusive<usize>,
    bit: i16,
    mut zeros: Option<usize>,
) -> usize {
    for at in range.clone() {
        let coefficient = &mut block[usize::from(NATURAL[at])];
        if *coefficient != 0 {
            bits.fill();
            if bits.take(1) == 1 && *coefficient & bit == 0 {
                *coefficient = coefficient.wrapping_add(if *coefficient >= 0 { bit } else { -bit });
            }
        } else {
            match &mut zeros {
                Some(0) => return at,
                Some(zeros) => *zeros -= 1,
                None => {}
            }
        }
    }
    range.end() + 1
}

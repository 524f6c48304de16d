//! What a JPEG's headers declare: its size and components, and what a scan has of them.

use crate::decode::ImageError;

/// The longest side that libjpeg decodes.
const SIDE_MAX: u32 = 65_500;
/// The most blocks of a unit of an interleaved scan.
const UNIT_BLOCKS_MAX: usize = 10;

/// Where coefficients of the zigzag order lie in a block; damaged runs end at the last one.
pub const NATURAL: [u8; 80] = {
    let mut order = [63; 80];
    let (mut at, mut row, mut column, mut up) = (0, 0, 0, true);
    while at < 64 {
        order[at] = row * 8 + column;
        at += 1;
        match (up, row, column) {
            (true, _, 7) => (row, up) = (row + 1, false),
            (true, 0, _) => (column, up) = (column + 1, false),
            (true, ..) => (row, column) = (row - 1, column + 1),
            (false, 7, _) => (column, up) = (column + 1, true),
            (false, _, 0) => (row, up) = (row + 1, true),
            (false, ..) => (row, column) = (row + 1, column - 1),
        }
    }
    order
};

/// An error with this cause.
pub fn refused<T>(cause: impl Into<String>) -> Result<T, ImageError> {
    Err(ImageError::Decode(cause.into()))
}

/// One component of the image.
#[derive(Debug, Clone)]
pub struct Component {
    pub id: u8,
    /// Sampling factors, 1 to 4.
    pub across: usize,
    pub down: usize,
    pub quantization: u8,
    /// Samples of a row, and rows.
    pub size: [usize; 2],
    /// Blocks that hold these.
    pub blocks: [usize; 2],
    /// Blocks that are stored: whole units.
    pub stored: [usize; 2],
    /// The number of its first stored block among those of all components.
    pub first_block: usize,
    /// Of each coefficient in zigzag order, the lowest bit that progressive scans have sent; -1 before the first one.
    pub progress: [i8; 64],
    /// Its quantization, once its first scan has begun.
    pub table: Option<[u16; 64]>,
}

/// The image.
#[derive(Debug, Clone)]
pub struct Frame {
    pub width: u32,
    pub height: u32,
    pub is_progressive: bool,
    pub components: Vec<Component>,
    /// The largest sampling factors.
    pub across: usize,
    pub down: usize,
    /// Stored blocks of all components.
    pub blocks: usize,
}

impl Frame {
    /// Reads the content of a frame header.
    pub fn parse(marker: u8, content: &[u8]) -> Result<Self, ImageError> {
        let &[precision, h1, h0, w1, w0, count, ref list @ ..] = content else {
            return refused("its frame header is too short");
        };
        let (width, height) = (u16::from_be_bytes([w1, w0]).into(), u16::from_be_bytes([h1, h0]).into());
        crate::decode::check_size(width, height)?;
        match marker {
            0xC0..=0xC2 => {}
            0xC3 => return refused("lossless JPEGs are not supported without libjpeg-turbo"),
            0xC9 | 0xCA => return refused("arithmetic coding is not supported without libjpeg-turbo"),
            _ => return refused(format!("JPEGs of kind SOF{} are not supported", marker & 15)),
        }
        if width.max(height) > SIDE_MAX {
            return refused(format!("sides of more than {SIDE_MAX} pixels are not supported in JPEGs"));
        }
        if precision != 8 {
            return refused(format!("JPEGs of {precision} bits are not supported (save it with 8)"));
        }
        if !matches!(count, 1 | 3 | 4) {
            return refused(format!("JPEGs of {count} components are not supported"));
        }
        if list.len() != 3 * usize::from(count) {
            return refused("its frame header is damaged");
        }
        let factor = |sampling: u8| usize::from(sampling);
        let sampling: Vec<_> = list.chunks_exact(3).map(|part| [factor(part[1] >> 4), factor(part[1] & 15)]).collect();
        if sampling.iter().flatten().any(|factor| !(1..=4).contains(factor)) {
            return refused("its sampling factors are damaged");
        }
        let most = |axis: usize| sampling.iter().map(|factors| factors[axis]).max().expect("one at least");
        let (across, down) = (most(0), most(1));
        let units = [(width as usize).div_ceil(8 * across), (height as usize).div_ceil(8 * down)];
        let mut blocks = 0;
        let components = sampling.iter().zip(list.chunks_exact(3)).map(|(&[h, v], part)| {
            let size = [(width as usize * h).div_ceil(across), (height as usize * v).div_ceil(down)];
            let stored = [units[0] * h, units[1] * v];
            let first_block = blocks;
            blocks += stored[0] * stored[1];
            let (own, quantization) = (size.map(|samples| samples.div_ceil(8)), part[2]);
            Component {
                id: part[0],
                across: h,
                down: v,
                quantization,
                size,
                blocks: own,
                stored,
                first_block,
                progress: [-1; 64],
                table: None,
            }
        });
        let components = components.collect();
        Ok(Self { width, height, is_progressive: marker == 0xC2, components, across, down, blocks })
    }
}

/// A component in a scan, with the tables of its codes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    pub component: usize,
    pub dc: usize,
    pub ac: usize,
}

/// The header of a scan.
#[derive(Debug, Clone, PartialEq)]
pub struct Scan {
    pub parts: Vec<Part>,
    /// The coefficients that it sends, in zigzag order.
    pub first: u8,
    pub last: u8,
    /// The lowest bits of them before and after it.
    pub high: u8,
    pub low: u8,
}

impl Scan {
    /// Reads the content of a scan header.
    pub fn parse(content: &[u8], frame: &Frame) -> Result<Self, ImageError> {
        let count = usize::from(content.first().copied().unwrap_or(0));
        if !(1..=4).contains(&count) || content.len() != 4 + 2 * count {
            return refused("its scan header is damaged");
        }
        let mut parts: Vec<Part> = Vec::with_capacity(count);
        for part in content[1..=2 * count].chunks_exact(2) {
            // As libjpeg searches: of components of one name it takes those first whose numbers no part of the scan has.
            let is_it = |(nth, component): &(usize, &Component)| component.id == part[0] && *nth >= parts.len();
            let Some((component, _)) = frame.components.iter().enumerate().find(is_it) else {
                return refused(format!("a scan names a component {} that it does not have", part[0]));
            };
            if parts.iter().any(|other| other.component == component) {
                return refused("a scan has a component twice");
            }
            parts.push(Part { component, dc: usize::from(part[1] >> 4), ac: usize::from(part[1] & 15) });
        }
        let unit = |part: &Part| frame.components[part.component].across * frame.components[part.component].down;
        if count > 1 && parts.iter().map(unit).sum::<usize>() > UNIT_BLOCKS_MAX {
            return refused("its sampling is not supported: a unit has more than 10 blocks");
        }
        let &[first, last, bits] = content.last_chunk().expect("it is long enough");
        Ok(Self { parts, first, last, high: bits >> 4, low: bits & 15 })
    }

    /// Units of a row, and rows of units.
    pub fn units(&self, frame: &Frame) -> [usize; 2] {
        match self.parts[..] {
            [only] => frame.components[only.component].blocks,
            _ => [(frame.width as usize).div_ceil(8 * frame.across), (frame.height as usize).div_ceil(8 * frame.down)],
        }
    }

    /// Blocks of a unit that a part has, across and down.
    pub fn unit_blocks(&self, component: &Component) -> [usize; 2] {
        if self.parts.len() == 1 { [1, 1] } else { [component.across, component.down] }
    }
}

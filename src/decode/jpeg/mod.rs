//! JPEGs in Rust, to libjpeg-turbo's pixels: the decoder of builds without that, and in others of files that it warns about.
//!
//! Sequential and progressive Huffman coding of 8 bits, any sampling of whole pixels, 1, 3 or 4 components. What libjpeg warns about and harms
//! no pixel is a warning here, too; where data are missing or damaged, a file is refused.

mod bits;
mod color;
mod frame;
mod header;
mod huffman;
mod idct;
mod scan;
mod smooth;
mod upsample;

pub use color::inks_to_rgb;

use super::ImageError;
use super::output::Output;
use color::Color;
use frame::{Component, Frame, Scan, refused};
use header::Header;
use scan::Block;
use upsample::{Row, Upsampling};

/// The memory of a decoder, reused from image to image.
#[derive(Default)]
pub struct Scratch {
    samples: Vec<u8>,
    blocks: Vec<Block>,
    rows: [Row; 4],
}

/// The most bytes that are kept between images.
const SCRATCH_BYTES_MAX: usize = 16 << 20;

impl Scratch {
    /// Frees it where it is more than this, or large.
    pub fn shrink_to(&mut self, bytes: usize) {
        let own_bytes = self.samples.capacity() + self.blocks.capacity() * size_of::<Block>();
        if own_bytes > bytes.min(SCRATCH_BYTES_MAX) {
            *self = Self::default();
        }
    }
}

/// What was decoded, but for its values.
#[derive(Debug)]
pub struct Decoded {
    pub width: u32,
    pub height: u32,
    pub channels: usize,
    /// The first thing that is wrong with the file and harms no pixel.
    pub warning: Option<String>,
}

/// Width and height, from the frame header.
///
/// # Errors
/// When it is damaged, or of a size that is not accepted.
pub fn size(file: &[u8]) -> Result<(u32, u32), ImageError> {
    Header::new(file)?.size()
}

/// Decodes a file into the beginning of `output`.
///
/// # Errors
/// When data are missing or damaged, or of a kind that is not known here.
pub fn decode(file: &[u8], output: &mut Output, scratch: &mut Scratch) -> Result<Decoded, ImageError> {
    let mut opened = Opened::new(file)?;
    let color = opened.header.color();
    let bytes = opened.pixels() * color.channels();
    let values = output.room(bytes, opened.own_bytes())?;
    opened.decode(color, scratch, &mut values[..bytes])
}

/// A strip or tile of a TIFF. The TIFF's tags give the color space; JFIF and Adobe markers do not count.
pub struct Part<'a> {
    opened: Opened<'a>,
    color: Color,
}

impl<'a> Part<'a> {
    /// Reads a file up to its first scan. Decoding converts three components from YCbCr to RGB if `is_ycc`, and no others.
    ///
    /// # Errors
    /// As [`decode`].
    pub fn open(file: &'a [u8], is_ycc: bool) -> Result<Self, ImageError> {
        let opened = Opened::new(file)?;
        let color = match opened.frame.components.len() {
            1 => Color::Gray,
            3 if is_ycc => Color::Ycc,
            3 => Color::Rgb,
            _ => Color::Four,
        };
        Ok(Self { opened, color })
    }

    /// Width and height in pixels, and values per pixel: one per component.
    pub fn shape(&self) -> [usize; 3] {
        let Frame { width, height, .. } = self.opened.frame;
        [width as usize, height as usize, self.color.channels()]
    }

    /// Decodes it: interleaved u8 values, as many as the product of [`shape`](Self::shape).
    ///
    /// # Errors
    /// As [`decode`].
    pub fn decode(self) -> Result<Vec<u8>, ImageError> {
        let mut values = vec![0; self.shape().iter().product()];
        self.opened.decode(self.color, &mut Scratch::default(), &mut values)?;
        Ok(values)
    }
}

/// A file up to its first scan.
struct Opened<'a> {
    header: Header<'a>,
    frame: Frame,
    first: Scan,
}

impl<'a> Opened<'a> {
    fn new(file: &'a [u8]) -> Result<Self, ImageError> {
        let mut header = Header::new(file)?;
        match (header.next_scan()?, header.frame.clone()) {
            (Some(first), Some(frame)) => Ok(Self { header, frame, first }),
            _ => refused("it has no image"),
        }
    }

    fn pixels(&self) -> usize {
        self.frame.width as usize * self.frame.height as usize
    }

    /// Bytes that [`decode`](Self::decode) allocates: samples, and the coefficients that are kept between scans.
    fn own_bytes(&self) -> usize {
        let coefficients = if self.frame.is_progressive { size_of::<Block>() } else { 0 };
        self.frame.blocks * (64 + coefficients)
    }

    fn decode(self, color: Color, scratch: &mut Scratch, values: &mut [u8]) -> Result<Decoded, ImageError> {
        let Self { mut header, mut frame, first } = self;
        let upsampling = frame.components.iter().map(|component| Upsampling::of(component, &frame));
        let upsampling = upsampling.collect::<Result<Vec<_>, ImageError>>()?;
        let Scratch { samples, blocks, rows } = scratch;
        samples.resize(frame.blocks * 64, 0);
        if first.parts.len() < frame.components.len() {
            // Of components without a scan.
            samples.fill(128);
        }
        let mut write = |component: &Component, [x, y]: [usize; 2], block: &Block, last: usize| {
            let stride = 8 * component.stored[0];
            let at = 64 * component.first_block + 8 * y * stride + 8 * x;
            let table = component.table.as_ref().unwrap_or(&[0; 64]);
            idct::write(block, table, last, &mut samples[at..], stride);
        };
        read_scans(&mut header, &mut frame, first, blocks, &mut write)?;
        if frame.is_progressive {
            let is_smoothed = smooth::is_needed(&frame);
            for component in &frame.components {
                let [across, down] = component.blocks;
                for at in (0..down).flat_map(|y| (0..across).map(move |x| [x, y])) {
                    let block = if is_smoothed {
                        smooth::block(&frame, component, blocks, at)
                    } else {
                        blocks[component.first_block + at[1] * component.stored[0] + at[0]]
                    };
                    write(component, at, &block, scan::last(&block));
                }
            }
        }
        write_rows(&frame, color, &upsampling, samples, rows, values);
        Ok(Decoded { width: frame.width, height: frame.height, channels: color.channels(), warning: header.warning })
    }
}

/// Reads all scans: of a progressive image into `blocks`; of others, each block is handed on as [`scan::sequential`] does.
fn read_scans(
    header: &mut Header<'_>,
    frame: &mut Frame,
    first: Scan,
    blocks: &mut Vec<Block>,
    mut put: impl FnMut(&Component, [usize; 2], &Block, usize),
) -> Result<(), ImageError> {
    if frame.is_progressive {
        blocks.clear();
        blocks.resize(frame.blocks, [0; 64]);
    }
    let mut next = Some(first);
    while let Some(scan) = next {
        for part in &scan.parts {
            let component = &mut frame.components[part.component];
            let table = header.quantization.get(usize::from(component.quantization)).copied().flatten();
            match (component.table, table) {
                (Some(_), _) if !frame.is_progressive => {
                    return refused("a second scan of a component is not supported in sequential JPEGs");
                }
                // As it was when the first scan began.
                (Some(_), _) => {}
                (None, Some(_)) => component.table = table,
                (None, None) => return refused("a table of quantization is missing"),
            }
        }
        if frame.is_progressive {
            scan::progressive(header, frame, &scan, blocks)?;
        } else {
            scan::sequential(header, frame, &scan, &mut put)?;
        }
        next = header.next_scan()?;
    }
    Ok(())
}

/// From samples to pixels.
fn write_rows(
    frame: &Frame,
    color: Color,
    upsampling: &[Upsampling],
    samples: &[u8],
    rows: &mut [Row; 4],
    values: &mut [u8],
) {
    for (y, out) in values.chunks_exact_mut(frame.width as usize * color.channels()).enumerate() {
        let mut lines: [&[u8]; 4] = [&[]; 4];
        for (((line, row), component), how) in
            lines.iter_mut().zip(rows.iter_mut()).zip(&frame.components).zip(upsampling)
        {
            let stride = 8 * component.stored[0];
            *line = row.make(*how, &samples[64 * component.first_block..], component.size, stride, y);
        }
        color.write(lines, out);
    }
}

//! TIFF. Its directory is read by crate `tiff`; what the tags make of the bytes of strips and tiles is decided here, since that crate
//! knows neither palettes nor the order of bits, and does not tell one kind of alpha from another.

mod chunk;

use super::samples::{Palette, clipped, gray, sample};
use super::{Shape, truncated};
use crate::decode::jpeg::inks_to_rgb;
use crate::decode::orientation::Orientation;
use crate::decode::output::Output;
use crate::decode::{ImageError, check_size};
use crate::types::ImageSize;
use chunk::{Compression, Layout};
use std::io::Cursor;
use tiff::decoder::Decoder;
use tiff::tags::Tag;

/// Bytes that a file may hold beside pixels.
const OTHER_BYTES: usize = 16 << 20;

/// A 64th of the bytes that may be decompressed of any picture.
const WORK_BYTES_MAX: u64 = 1 << 22;

/// What the values of a pixel are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Color {
    Gray { is_inverted: bool },
    Palette,
    Rgb,
    Cmyk,
}

impl Color {
    fn samples(self) -> usize {
        match self {
            Self::Gray { .. } | Self::Palette => 1,
            Self::Rgb => 3,
            Self::Cmyk => 4,
        }
    }
}

/// How a sample is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sample {
    /// Unsigned, of 1, 2, 4 or 8 bits.
    Bits(u32),
    /// Unsigned, of 16 bits; whether the high byte comes first.
    Sixteen { big: bool },
    /// Floating point, of 32 bits.
    Float { big: bool },
}

impl Sample {
    fn bits(self) -> usize {
        match self {
            Self::Bits(bits) => bits as usize,
            Self::Sixteen { .. } => 16,
            Self::Float { .. } => 32,
        }
    }
}

/// A file's first picture, by its tags.
struct Picture {
    size: ImageSize,
    color: Color,
    sample: Sample,
    /// Samples a pixel, those that are not read among them.
    samples: usize,
    /// Whether the sample behind the color's is alpha by which that was multiplied.
    is_associated: bool,
    /// Whether each sample of a pixel lies in a plane of its own.
    is_planar: bool,
    has_predictor: bool,
    compression: Compression,
    jpeg_tables: Vec<u8>,
    is_reversed: bool,
    /// Pixels a row of each strip or tile, and its rows.
    chunk: (usize, usize),
    offsets: Vec<u64>,
    lengths: Vec<u64>,
    palette: Option<Palette>,
}

type Tags<'a> = Decoder<Cursor<&'a [u8]>>;

fn failed(error: tiff::TiffError) -> ImageError {
    ImageError::Decode(error.to_string())
}

fn unsupported(what: impl std::fmt::Display) -> ImageError {
    ImageError::Decode(format!("TIFFs {what} are not supported (save it as 8-bit RGB)"))
}

fn open(file: &[u8]) -> Result<(Tags<'_>, ImageSize), ImageError> {
    let mut limits = tiff::decoder::Limits::default();
    (limits.decoding_buffer_size, limits.intermediate_buffer_size) = (OTHER_BYTES, OTHER_BYTES);
    limits.ifd_value_size = OTHER_BYTES;
    let mut tags = Decoder::new(Cursor::new(file)).map_err(failed)?.with_limits(limits);
    let (width, height) = tags.dimensions().map_err(failed)?;
    let (width, height) = check_size(width, height)?;
    Ok((tags, ImageSize { height, width }))
}

fn number(tags: &mut Tags<'_>, tag: Tag, default: u32) -> Result<u32, ImageError> {
    Ok(tags.find_tag_unsigned(tag).map_err(failed)?.unwrap_or(default))
}

fn numbers<T: TryFrom<u64>>(tags: &mut Tags<'_>, tag: Tag) -> Result<Vec<T>, ImageError> {
    Ok(tags.find_tag_unsigned_vec(tag).map_err(failed)?.unwrap_or_default())
}

/// The size of the picture as it lies in the file, from the file's first directory.
pub fn size(file: &[u8]) -> Result<ImageSize, ImageError> {
    open(file).map(|(_, size)| size)
}

/// How the file's first picture has to be turned; Pillow takes what is no number for upright.
pub fn orientation_of(file: &[u8]) -> Orientation {
    let number = open(file).ok().and_then(|(mut tags, _)| tags.find_tag_unsigned::<u16>(Tag::Orientation).ok()?);
    Orientation::of_number(number.unwrap_or(1).into())
}

/// Photometric interpretation: YCbCr.
const YCC: u32 = 6;

fn compression(tags: &mut Tags<'_>, photometric: u32) -> Result<Compression, ImageError> {
    match number(tags, Tag::Compression, 1)? {
        1 => Ok(Compression::None),
        3 => match number(tags, Tag::from_u16_exhaustive(292), 0)? & 1 {
            0 => Ok(Compression::Group3),
            _ => Err(unsupported("of two-dimensional Group 3")),
        },
        4 => Ok(Compression::Group4),
        5 => Ok(Compression::Lzw),
        7 => Ok(Compression::Jpeg { is_ycc: photometric == YCC }),
        8 | 32946 => Ok(Compression::Deflate),
        32773 => Ok(Compression::PackBits),
        2 => Err(unsupported("of CCITT runs (compression 2)")),
        6 => Err(unsupported("of JPEG in its old form (compression 6)")),
        50000 => Err(unsupported("of Zstandard (compression 50000)")),
        other => Err(unsupported(format!("of compression {other}"))),
    }
}

impl Picture {
    fn read(file: &[u8]) -> Result<Self, ImageError> {
        let (mut tags, size) = open(file)?;
        let tags = &mut tags;
        let big = tags.byte_order() == tiff::tags::ByteOrder::BigEndian;
        let samples = number(tags, Tag::SamplesPerPixel, 1)? as usize;
        let bits: Vec<u32> = numbers(tags, Tag::BitsPerSample)?;
        let formats: Vec<u32> = numbers(tags, Tag::SampleFormat)?;
        let (bits, format) = (bits.first().copied().unwrap_or(1), formats.first().copied().unwrap_or(1));
        let photometric = number(tags, Tag::PhotometricInterpretation, 0)?;
        let extra: Vec<u32> = numbers(tags, Tag::ExtraSamples)?;
        let compression = compression(tags, photometric)?;
        let is_jpeg = matches!(compression, Compression::Jpeg { .. });
        let is_planar = number(tags, Tag::PlanarConfiguration, 1)? == 2 && samples > 1;
        let color = match photometric {
            0 | 1 => Color::Gray { is_inverted: photometric == 0 },
            2 => Color::Rgb,
            3 => Color::Palette,
            5 => Color::Cmyk,
            4 => return Err(unsupported("of transparency masks")),
            // Converted to RGB by the JPEG decoder.
            YCC if is_jpeg && !is_planar => Color::Rgb,
            YCC => return Err(unsupported("of YCbCr")),
            8..=10 => return Err(unsupported("of CIE Lab")),
            other => return Err(unsupported(format!("of photometric interpretation {other}"))),
        };
        let sample = match (format, bits) {
            (1, 1 | 2 | 4) if matches!(color, Color::Gray { .. } | Color::Palette) && samples == 1 => {
                Sample::Bits(bits)
            }
            (1, 8) => Sample::Bits(8),
            _ if is_jpeg => return Err(unsupported(format!("of JPEG with {bits} bits a sample"))),
            (1, 16) if color != Color::Palette => Sample::Sixteen { big },
            (3, 32) if color == (Color::Gray { is_inverted: false }) && samples == 1 => Sample::Float { big },
            (1, _) => return Err(unsupported(format!("of {bits} bits a sample, {samples} a pixel"))),
            (2, _) => return Err(unsupported(format!("of signed integers of {bits} bits"))),
            (3, _) => return Err(unsupported(format!("of floating point of {bits} bits, {samples} a pixel"))),
            _ => return Err(unsupported(format!("of sample format {format}"))),
        };
        if samples < color.samples() {
            return Err(ImageError::Decode(format!("the TIFF has {samples} samples a pixel, too few for its colors")));
        }
        let is_associated = match extra.first() {
            Some(1) if color == Color::Rgb && samples > 3 => true,
            Some(1) => return Err(unsupported("of associated alpha beside other colors than RGB")),
            _ => false,
        };
        let has_predictor = match number(tags, Tag::Predictor, 1)? {
            _ if !matches!(compression, Compression::Lzw | Compression::Deflate) => false,
            1 => false,
            2 if sample.bits() == 8 || sample.bits() == 16 => true,
            other => return Err(unsupported(format!("of predictor {other} with {} bits a sample", sample.bits()))),
        };
        let is_tiled = tags.get_chunk_type() == tiff::decoder::ChunkType::Tile;
        let (offsets, lengths) = match is_tiled {
            true => (Tag::TileOffsets, Tag::TileByteCounts),
            false => (Tag::StripOffsets, Tag::StripByteCounts),
        };
        let palette = match color {
            Color::Palette => {
                let map: Vec<u16> = numbers(tags, Tag::ColorMap)?;
                let third = map.len() / 3;
                let high = |nth: usize| (map[nth] >> 8) as u8;
                Some(Palette::new((0..third).map(|nth| [nth, third + nth, 2 * third + nth].map(high))))
            }
            _ => None,
        };
        let (width, rows) = tags.chunk_dimensions();
        Ok(Self {
            size,
            color,
            sample,
            samples,
            is_associated,
            is_planar,
            has_predictor,
            compression,
            jpeg_tables: numbers(tags, Tag::JPEGTables)?,
            // JPEG data have one order.
            is_reversed: number(tags, Tag::FillOrder, 1)? == 2 && !is_jpeg,
            chunk: (width as usize, if is_tiled { rows } else { rows.min(size.height) } as usize),
            offsets: numbers(tags, offsets)?,
            lengths: numbers(tags, lengths)?,
            palette,
        })
    }

    /// Samples of a pixel that are read.
    fn used(&self) -> usize {
        self.color.samples() + usize::from(self.is_associated)
    }

    /// Samples of a pixel that lie side by side.
    fn together(&self) -> usize {
        if self.is_planar { 1 } else { self.samples }
    }

    /// Bytes a row of a strip or tile; `None` where no memory holds one.
    fn chunk_row_bytes(&self) -> Option<usize> {
        let bits = self.chunk.0.checked_mul(self.together())?.checked_mul(self.sample.bits())?;
        let row_bytes = bits.div_ceil(8);
        row_bytes.checked_mul(self.chunk.1)?.checked_mul(4).map(|_| row_bytes)
    }

    /// Decodes every strip or tile into `values`, 8 bits a sample that is used.
    fn decode(&self, file: &[u8], row_bytes: usize, values: &mut [u8]) -> Result<(), ImageError> {
        let (width, height) = (self.size.width as usize, self.size.height as usize);
        let (across, down) = (width.div_ceil(self.chunk.0), height.div_ceil(self.chunk.1));
        let planes = if self.is_planar { self.used() } else { 1 };
        // Tiles of one pixel's use each would take hours.
        if (row_bytes * down * across) as u64 * self.chunk.1 as u64 / 64 > WORK_BYTES_MAX.max(values.len() as u64) {
            return Err(unsupported("with tiles that are much larger than the picture"));
        }
        for nth in 0..across * down * planes {
            let (plane, place) = (nth / (across * down), nth % (across * down));
            let (left, top) = (place % across * self.chunk.0, place / across * self.chunk.1);
            // The last strip ends with the picture, and what a tile has below it is not needed.
            let rows = self.chunk.1.min(height - top);
            let layout = Layout {
                compression: self.compression,
                jpeg_tables: &self.jpeg_tables,
                width: self.chunk.0,
                rows,
                whole_rows: self.chunk.1,
                row_bytes,
                is_reversed: self.is_reversed,
            };
            let offset =
                self.offsets.get(nth).and_then(|offset| usize::try_from(*offset).ok()).ok_or_else(truncated)?;
            let length = match self.compression {
                // What a file says of it is often wrong, and not needed.
                Compression::None => (rows * row_bytes) as u64,
                _ => *self.lengths.get(nth).ok_or_else(truncated)?,
            };
            let rest = file.get(offset..).ok_or_else(truncated)?;
            let compressed = &rest[..rest.len().min(usize::try_from(length).unwrap_or(usize::MAX))];
            let plain = chunk::decompress(compressed, layout)?;
            let columns = self.chunk.0.min(width - left);
            let mut scratch = Vec::new();
            for (y, row) in plain.chunks_exact(row_bytes).take(rows).enumerate() {
                let row = if self.has_predictor { self.undo_predictor(row, &mut scratch) } else { row };
                let to = &mut values[((top + y) * width + left) * self.used()..][..columns * self.used()];
                self.convert(row, plane, to);
            }
        }
        Ok(())
    }

    /// Adds to each sample the same one of the pixel before it.
    fn undo_predictor<'a>(&self, row: &[u8], scratch: &'a mut Vec<u8>) -> &'a [u8] {
        scratch.clear();
        scratch.extend_from_slice(row);
        match self.sample {
            Sample::Sixteen { big } => {
                let value = |pair: &[u8]| {
                    let pair = [pair[0], pair[1]];
                    if big { u16::from_be_bytes(pair) } else { u16::from_le_bytes(pair) }
                };
                let stride = 2 * self.together();
                for at in (stride..scratch.len().saturating_sub(1)).step_by(2) {
                    let sum = value(&scratch[at - stride..]).wrapping_add(value(&scratch[at..]));
                    scratch[at..at + 2].copy_from_slice(&if big { sum.to_be_bytes() } else { sum.to_le_bytes() });
                }
            }
            _ => {
                for at in self.together()..scratch.len() {
                    scratch[at] = scratch[at].wrapping_add(scratch[at - self.together()]);
                }
            }
        }
        scratch
    }

    /// Takes the samples that are used, as 8 bits each, from a row of a strip or tile.
    fn convert(&self, row: &[u8], plane: usize, to: &mut [u8]) {
        let (together, used) = (self.together(), self.used());
        if self.sample == Sample::Bits(8) && !self.is_planar && self.color != (Color::Gray { is_inverted: true }) {
            for (to, from) in to.chunks_exact_mut(used).zip(row.chunks_exact(together)) {
                to.copy_from_slice(&from[..used]);
            }
            return;
        }
        let is_gray = matches!(self.color, Color::Gray { .. });
        let flip = if self.color == (Color::Gray { is_inverted: true }) { 0xFF } else { 0 };
        let value = |nth: usize| match self.sample {
            Sample::Bits(bits) if is_gray => gray(sample(row, bits, nth), bits) ^ flip,
            Sample::Bits(bits) => sample(row, bits, nth),
            // Not inverted either, as Pillow has it.
            Sample::Sixteen { big } if is_gray && self.samples == 1 => {
                clipped(row[2 * nth + usize::from(!big)], row[2 * nth + usize::from(big)])
            }
            Sample::Sixteen { big } => row[2 * nth + usize::from(!big)] ^ flip,
            Sample::Float { big } => {
                let bytes = [row[4 * nth], row[4 * nth + 1], row[4 * nth + 2], row[4 * nth + 3]];
                // Clipped and cut, as Pillow does.
                (if big { f32::from_be_bytes(bytes) } else { f32::from_le_bytes(bytes) }) as u8
            }
        };
        for (pixel, to) in to.chunks_exact_mut(used).enumerate() {
            if self.is_planar {
                to[plane] = value(pixel);
            } else {
                to.iter_mut().enumerate().for_each(|(nth, to)| *to = value(pixel * together + nth));
            }
        }
    }

    /// Makes gray or RGB of the samples, in place.
    fn finish(&self, values: &mut [u8], pixels: usize) -> usize {
        let rgb = |values: &mut [u8], color: &dyn Fn(&[u8]) -> [u8; 3]| {
            // Forwards: a pixel never lands behind where its samples are read.
            for pixel in 0..pixels {
                let color = color(&values[pixel * 4..][..4]);
                values[pixel * 3..][..3].copy_from_slice(&color);
            }
            3
        };
        match self.color {
            Color::Gray { .. } => 1,
            Color::Palette => {
                self.palette.as_ref().expect("a palette was read").expand(values, pixels);
                3
            }
            Color::Rgb if self.is_associated => rgb(values, &|from| {
                let alpha = u32::from(from[3]);
                [from[0], from[1], from[2]]
                    .map(|value| (255 * u32::from(value)).checked_div(alpha).unwrap_or(0).min(255) as u8)
            }),
            Color::Rgb => 3,
            // JPEG's inks are inverted.
            Color::Cmyk => rgb(values, &|from| inks_to_rgb(std::array::from_fn(|ink| 255 - from[ink]))),
        }
    }
}

/// Decodes a file's first picture, as it lies in the file.
pub fn decode(file: &[u8], output: &mut Output) -> Result<Shape, ImageError> {
    let picture = Picture::read(file)?;
    let ImageSize { height, width } = picture.size;
    let pixels = width as usize * height as usize;
    let row_bytes = picture.chunk_row_bytes().ok_or(ImageError::TooLarge { width, height })?;
    // A strip or tile, decompressed, and its bits in another order. The JPEG decoder allocates as much for samples, and twice for coefficients.
    let times = match picture.compression {
        Compression::None => 0,
        Compression::Jpeg { .. } => 4,
        _ => 1,
    };
    let own_bytes = times * row_bytes * picture.chunk.1;
    let own_bytes = own_bytes + if picture.is_reversed { file.len() } else { 0 };
    let bytes = pixels * if picture.color == Color::Palette { 3 } else { picture.used() };
    let values = output.room(bytes, own_bytes)?;
    values.truncate(bytes);
    values.fill(0);
    picture.decode(file, row_bytes, values)?;
    let channels = picture.finish(values, pixels);
    Ok(Shape { width, height, channels })
}

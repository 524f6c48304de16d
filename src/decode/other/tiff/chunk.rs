//! One strip or tile of a TIFF: its bytes, decompressed.

use crate::decode::ImageError;
use crate::decode::jpeg::Part;
use crate::decode::other::truncated;
use std::borrow::Cow;
use std::io::Read;

/// How the bytes of strips and tiles are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// LZW.
    Lzw,
    /// zlib, under either of its numbers.
    Deflate,
    /// Runs of bytes.
    PackBits,
    /// Fax, Group 3 with lines that are coded alone.
    Group3,
    /// Fax, Group 4.
    Group4,
    /// A JPEG per strip or tile; `is_ycc`: of YCbCr, which decodes to RGB.
    Jpeg { is_ycc: bool },
}

/// What a strip or tile holds.
#[derive(Debug, Clone, Copy)]
pub struct Layout<'a> {
    pub compression: Compression,
    /// Abbreviated JPEG with the tables that all strips or tiles share (tag JPEGTables); may be empty.
    pub jpeg_tables: &'a [u8],
    /// Pixels a row.
    pub width: usize,
    /// Rows that lie inside the picture.
    pub rows: usize,
    /// Rows of a whole strip or tile.
    pub whole_rows: usize,
    /// Bytes a row, decompressed.
    pub row_bytes: usize,
    /// Whether the bits of each byte stand in reverse order.
    pub is_reversed: bool,
}

fn damaged(cause: &str) -> ImageError {
    ImageError::Decode(format!("a strip or tile of the TIFF is damaged: {cause}"))
}

/// The bytes of a strip or tile that takes this part of the file.
///
/// # Errors
/// When they are damaged, or fewer than `layout` says.
pub fn decompress<'a>(compressed: &'a [u8], layout: Layout<'_>) -> Result<Cow<'a, [u8]>, ImageError> {
    let bytes = layout.rows * layout.row_bytes;
    let compressed = if layout.is_reversed {
        Cow::Owned(compressed.iter().map(|byte| byte.reverse_bits()).collect())
    } else {
        Cow::Borrowed(compressed)
    };
    let plain = match layout.compression {
        Compression::None => compressed,
        Compression::Lzw => lzw(&compressed, bytes)?.into(),
        Compression::Deflate => {
            let mut plain = Vec::new();
            // Bytes may follow, and a checksum may be missing.
            let read = flate2::read::ZlibDecoder::new(&*compressed).take(bytes as u64).read_to_end(&mut plain);
            read.map_err(|error| damaged(&error.to_string()))?;
            plain.into()
        }
        Compression::PackBits => pack_bits(&compressed, bytes).into(),
        Compression::Group3 => group3(&compressed, layout)?.into(),
        Compression::Group4 => group4(&compressed, layout)?.into(),
        Compression::Jpeg { is_ycc } => jpeg(&compressed, is_ycc, layout)?.into(),
    };
    if plain.len() < bytes {
        return Err(truncated());
    }
    Ok(plain)
}

fn lzw(compressed: &[u8], bytes: usize) -> Result<Vec<u8>, ImageError> {
    // How libtiff tells files of before TIFF 5, whose codes begin at the low bits.
    if matches!(compressed, [0, second, ..] if second & 1 == 1) {
        return Err(ImageError::Decode("TIFFs of LZW in its old form are not supported (save it as 8-bit RGB)".into()));
    }
    let mut decoder = weezl::decode::Decoder::with_tiff_size_switch(weezl::BitOrder::Msb, 8);
    let mut plain = Vec::new();
    let mut from = compressed;
    let mut piece = [0; 1 << 14];
    while plain.len() < bytes {
        let room = piece.len().min(bytes - plain.len());
        let weezl::BufferResult { consumed_in, consumed_out, status } = decoder.decode_bytes(from, &mut piece[..room]);
        plain.extend_from_slice(&piece[..consumed_out]);
        from = &from[consumed_in..];
        match status {
            Ok(weezl::LzwStatus::Ok) if consumed_out > 0 || consumed_in > 0 => {}
            Ok(_) => break,
            Err(error) => return Err(damaged(&error.to_string())),
        }
    }
    Ok(plain)
}

fn pack_bits(compressed: &[u8], bytes: usize) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut from = compressed;
    while plain.len() < bytes {
        let Some((count, rest)) = from.split_first() else { break };
        from = match *count as i8 {
            count @ 0.. => {
                let (literal, rest) = rest.split_at(rest.len().min(count as usize + 1));
                plain.extend_from_slice(literal);
                rest
            }
            -128 => rest,
            count => {
                let Some((value, rest)) = rest.split_first() else { break };
                plain.resize(plain.len() + 1 + usize::from(count.unsigned_abs()), *value);
                rest
            }
        };
    }
    plain
}

/// Appends a line of a fax, of which these are the columns where its color changes, from white on; black bits are set.
fn push_line(plain: &mut Vec<u8>, changes: &[u16], layout: Layout) {
    let start = plain.len();
    plain.resize(start + layout.row_bytes, 0);
    let mut ends = changes.iter().map(|end| usize::from(*end).min(layout.width));
    let mut from = ends.next();
    while let Some(first) = from {
        let end = ends.next().unwrap_or(layout.width);
        for column in first..end {
            plain[start + column / 8] |= 0x80 >> (column % 8);
        }
        from = ends.next();
    }
}

fn fax_width(layout: Layout) -> Result<u16, ImageError> {
    u16::try_from(layout.width).map_err(|_| ImageError::Decode("fax TIFFs wider than 65535 are not supported".into()))
}

fn group3(compressed: &[u8], layout: Layout) -> Result<Vec<u8>, ImageError> {
    let width = fax_width(layout)?;
    let bytes = compressed.iter().map(|byte| Ok::<u8, std::convert::Infallible>(*byte));
    let line_failed = |_| damaged("a line of Group 3 cannot be read");
    let mut decoder = fax::decoder::Group3Decoder::new(bytes).map_err(line_failed)?;
    let mut plain = Vec::new();
    for row in 0..layout.rows {
        // The last line may lack its mark.
        let read = decoder.advance();
        let is_whole = decoder.transitions().last() == Some(&width);
        if !is_whole || read.is_err() && row + 1 < layout.rows {
            return Err(damaged("a line of Group 3 cannot be read"));
        }
        push_line(&mut plain, decoder.transitions(), layout);
    }
    Ok(plain)
}

fn group4(compressed: &[u8], layout: Layout) -> Result<Vec<u8>, ImageError> {
    let bytes = compressed.iter().map(|byte| Ok::<u8, std::convert::Infallible>(*byte));
    let Ok(mut decoder) = fax::decoder::Group4Decoder::new(bytes, fax_width(layout)?);
    let mut plain = Vec::new();
    for _ in 0..layout.rows {
        match decoder.advance() {
            Ok(fax::decoder::DecodeStatus::Incomplete) => push_line(&mut plain, decoder.transition(), layout),
            Ok(fax::decoder::DecodeStatus::End) => break,
            Err(_) => return Err(damaged("a line of Group 4 cannot be read")),
        }
    }
    Ok(plain)
}

fn jpeg(compressed: &[u8], is_ycc: bool, layout: Layout) -> Result<Vec<u8>, ImageError> {
    let tables = layout.jpeg_tables.strip_suffix(&[0xFF, 0xD9]).unwrap_or(layout.jpeg_tables);
    let file = match compressed.strip_prefix(&[0xFF, 0xD8]) {
        Some(rest) if !tables.is_empty() => Cow::Owned([tables, rest].concat()),
        _ => Cow::Borrowed(compressed),
    };
    let part = Part::open(&file, is_ycc)?;
    let [width, rows, samples] = part.shape();
    // Before memory is allocated for what its header claims.
    let has_width = width == layout.width && width * samples == layout.row_bytes;
    if !has_width || !(layout.rows..=layout.whole_rows).contains(&rows) {
        return Err(damaged(&format!("its JPEG has {width}x{rows} pixels of {samples} samples")));
    }
    part.decode()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_bytes_are_unpacked() {
        let compressed = [0xFE, 0xAA, 0x02, 0x80, 0x00, 0x2A, 0x80, 0xFD, 0xAA, 0x01, 1];
        assert_eq!(pack_bits(&compressed, 99), [0xAA, 0xAA, 0xAA, 0x80, 0, 0x2A, 0xAA, 0xAA, 0xAA, 0xAA, 1]);
        assert!(pack_bits(&[0x81, 7], 5).len() < 200);
    }

    #[test]
    fn a_line_of_a_fax_is_black_between_its_changes() {
        let line = |changes: &[u16]| {
            let mut plain = Vec::new();
            let layout = Layout {
                compression: Compression::Group4,
                jpeg_tables: &[],
                width: 12,
                rows: 1,
                whole_rows: 1,
                row_bytes: 2,
                is_reversed: false,
            };
            push_line(&mut plain, changes, layout);
            plain
        };
        assert_eq!(line(&[]), [0, 0]);
        assert_eq!(line(&[0, 12]), [0xFF, 0xF0]);
        assert_eq!(line(&[3, 5, 9]), [0b0001_1000, 0b0111_0000]);
        assert_eq!(line(&[5, 3, 99]), [0, 0]);
    }
}

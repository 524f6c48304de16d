//! Exif's orientation, in whatever of JPEG, PNG and WebP it lies: found as Pillow's `ImageOps.exif_transpose` finds it. A crate for Exif
//! would read every tag, and refuse files for tags that nobody asked for.

use super::orientation::Orientation;
use crate::types::{ParseError, named};
use std::fmt;
use std::str::FromStr;

/// Whether pictures are turned as their Exif says. It decides about pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExifOrientation {
    /// No, as torchvision's loader: a photo that a phone took upright may lie on its side.
    #[default]
    Ignore,
    /// Yes, as Hugging Face's datasets.
    Apply,
}
named!(ExifOrientation, "choice about Exif orientations", "apply or ignore", Ignore = "ignore", Apply = "apply");

/// The orientation that a file's Exif, or where that has none its XMP, gives its picture.
pub fn orientation(file: &[u8]) -> Orientation {
    let (exif, xmp) = if file.starts_with(&[0xFF, 0xD8]) {
        of_jpeg(file)
    } else if file.starts_with(b"\x89PNG") {
        (of_png(file), None)
    } else if file.starts_with(b"RIFF") {
        of_webp(file)
    } else {
        (None, None)
    };
    let number = exif.and_then(of_directory).or_else(|| xmp.and_then(of_xmp));
    Orientation::of_number(number.unwrap_or(1))
}

/// Exif and XMP.
type Metadata<'a> = (Option<&'a [u8]>, Option<&'a [u8]>);

/// The first segments of both kinds that stand before the first scan.
fn of_jpeg(file: &[u8]) -> Metadata<'_> {
    let (mut exif, mut xmp) = (None, None);
    let mut rest = &file[2..];
    // Bytes between segments are skipped.
    while let Some(at) = memchr::memchr(0xFF, rest) {
        rest = &rest[at + 1..];
        match rest {
            [0xDA | 0xD9, ..] | [] => break,
            // Fill bytes, and markers without a segment.
            [0 | 0x01 | 0xD0..=0xD8 | 0xFF, ..] => {}
            [marker, high, low, ..] => {
                let end = (1 + usize::from(u16::from_be_bytes([*high, *low]))).max(3).min(rest.len());
                let body = &rest[3..end];
                if *marker == 0xE1 {
                    exif = exif.or_else(|| body.strip_prefix(b"Exif\0\0"));
                    xmp = xmp.or_else(|| body.strip_prefix(b"http://ns.adobe.com/xap/1.0/\0"));
                }
                rest = &rest[end..];
            }
            _ => break,
        }
    }
    (exif, xmp)
}

/// The chunk eXIf, which may stand behind the pixels.
fn of_png(file: &[u8]) -> Option<&[u8]> {
    let mut rest = file.get(8..)?;
    loop {
        let (head, body) = rest.split_first_chunk::<8>()?;
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        if &head[4..] == b"eXIf" {
            return body.get(..length);
        }
        rest = body.get(length.checked_add(4)?..)?;
    }
}

/// The chunks of a RIFF file.
fn of_webp(file: &[u8]) -> Metadata<'_> {
    let (mut exif, mut xmp) = (None, None);
    let mut rest = file.get(12..).unwrap_or_default();
    while let Some((head, body)) = rest.split_first_chunk::<8>() {
        let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let Some(chunk) = body.get(..length) else { break };
        match &head[..4] {
            b"EXIF" => exif = Some(chunk.strip_prefix(b"Exif\0\0").unwrap_or(chunk)),
            b"XMP " => xmp = Some(chunk),
            _ => {}
        }
        rest = body.get(length.next_multiple_of(2)..).unwrap_or_default();
    }
    (exif, xmp)
}

/// Tag 274 of a TIFF's first directory: one unsigned integer of 16 or 32 bits.
fn of_directory(tiff: &[u8]) -> Option<u64> {
    let is_big = match tiff.get(..4)? {
        b"II*\0" => false,
        b"MM\0*" => true,
        _ => return None,
    };
    let number = |at: usize, bytes: usize| {
        let bytes = tiff.get(at..at.checked_add(bytes)?)?;
        let join = |all: usize, byte: &u8| all << 8 | usize::from(*byte);
        Some(if is_big { bytes.iter().fold(0, join) } else { bytes.iter().rev().fold(0, join) })
    };
    let directory = number(4, 4)?;
    let entries = (0..number(directory, 2)?).map(|nth| directory + 2 + 12 * nth);
    let mut orientation = None;
    for entry in entries {
        let Some(tag) = number(entry, 2) else { break };
        if tag == 274 && number(entry + 4, 4) == Some(1) {
            orientation = match number(entry + 2, 2) {
                Some(3) => number(entry + 8, 2),
                Some(4) => number(entry + 8, 4),
                _ => orientation,
            };
        }
    }
    orientation.map(|number| number as u64)
}

/// The digit behind `tiff:Orientation`, as an attribute or an element.
fn of_xmp(xmp: &[u8]) -> Option<u64> {
    let name = b"tiff:Orientation";
    memchr::memmem::find_iter(xmp, name).find_map(|at| {
        let rest = &xmp[at + name.len()..];
        let value = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"))?;
        value.first().filter(|digit| digit.is_ascii_digit()).map(|digit| u64::from(digit - b'0'))
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Exif with nothing but an orientation.
    pub fn exif(orientation: u16, is_big: bool) -> Vec<u8> {
        let short = |value: u16| if is_big { value.to_be_bytes() } else { value.to_le_bytes() };
        let long = |value: u32| if is_big { value.to_be_bytes() } else { value.to_le_bytes() };
        let mut bytes = if is_big { b"MM\0*".to_vec() } else { b"II*\0".to_vec() };
        bytes.extend(long(8));
        bytes.extend(short(1));
        bytes.extend([short(274), short(3)].concat());
        bytes.extend(long(1));
        bytes.extend([short(orientation), short(0)].concat());
        bytes.extend(long(0));
        bytes
    }

    /// A JPEG with another segment APP1 behind its first two bytes.
    pub fn with_app1(jpeg: &[u8], name: &[u8], body: &[u8]) -> Vec<u8> {
        let length = (2 + name.len() + body.len()) as u16;
        [&[0xFF, 0xD8, 0xFF, 0xE1], &length.to_be_bytes()[..], name, body, &jpeg[2..]].concat()
    }

    #[test]
    fn an_orientation_is_found_in_each_container() {
        let jpeg = [0xFF, 0xD8, 0xFF, 0xDA, 0, 2, 0xFF, 0xD9];
        for number in 1..=8 {
            let expected = Orientation::of_number(number.into());
            for is_big in [false, true] {
                let exif = exif(number, is_big);
                assert_eq!(orientation(&with_app1(&jpeg, b"Exif\0\0", &exif)), expected);
                let chunk =
                    |name: &[u8], body: &[u8]| [&(body.len() as u32).to_be_bytes()[..], name, body, &[0; 4]].concat();
                let start: &[u8] = b"\x89PNG\r\n\x1a\n";
                let png = [start, &chunk(b"IDAT", &[7; 9]), &chunk(b"eXIf", &exif)].concat();
                assert_eq!(orientation(&png), expected);
                let riff = |name: &[u8], body: &[u8]| [name, &(body.len() as u32).to_le_bytes()[..], body].concat();
                for body in [exif.clone(), [b"Exif\0\0", &exif[..]].concat()] {
                    let webp = [b"RIFF\0\0\0\0WEBP", &riff(b"VP8 ", &[1, 2, 3, 0])[..], &riff(b"EXIF", &body)].concat();
                    assert_eq!(orientation(&webp), expected);
                }
            }
            let xmp = format!("<x tiff:Orientation=\"{number}\"/>");
            let with_xmp = with_app1(&jpeg, b"http://ns.adobe.com/xap/1.0/\0", xmp.as_bytes());
            assert_eq!(orientation(&with_xmp), expected);
            // Exif counts before XMP.
            assert_eq!(orientation(&with_app1(&with_xmp, b"Exif\0\0", &exif(6, true))), Orientation::of_number(6));
        }
    }

    #[test]
    fn metadata_that_are_cut_or_lie_turn_nothing_and_panic_nowhere() {
        let jpeg = with_app1(&[0xFF, 0xD8, 0xFF, 0xDA, 0, 2], b"Exif\0\0", &exif(6, false));
        let behind_junk = [&jpeg[..2], &[1, 2, 3], &jpeg[2..]].concat();
        assert_eq!(orientation(&behind_junk), Orientation::of_number(6));
        for len in 0..jpeg.len() {
            orientation(&jpeg[..len]);
        }
        for at in 0..jpeg.len() {
            for value in [0, 0x7F, 0xFF] {
                let mut damaged = jpeg.clone();
                damaged[at] = value;
                orientation(&damaged);
            }
        }
        for number in [0, 9, 300] {
            assert!(orientation(&with_app1(&jpeg[..4], b"Exif\0\0", &exif(number, true))).is_upright());
        }
        // The orientation of a thumbnail behind the scan's start is none of the picture's.
        assert!(orientation(&[&[0xFF, 0xD8, 0xFF, 0xDA, 0, 2], &jpeg[2..]].concat()).is_upright());
    }
}

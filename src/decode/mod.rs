//! Decoding: from a file's bytes to a picture of u8 values. Knows nothing of sizes and crops of a batch.

mod decoder;
mod exif;
mod jpeg;
mod orientation;
mod other;
mod output;
mod picture;
#[cfg(feature = "turbojpeg")]
mod segments;
#[cfg(feature = "turbojpeg")]
mod turbo;
#[cfg(test)]
mod upright_tests;

pub use decoder::{DecodeKind, Decoder};
pub use exif::ExifOrientation;
pub use picture::{Picture, RegionOf};

use crate::memory::Lack;

/// The most pixels of a file, Pillow's limit; checked before memory is taken.
pub const PIXELS_MAX: u64 = 178_956_970;

/// The decoder of JPEGs in this build.
pub const JPEG_DECODER: &str = if cfg!(feature = "turbojpeg") { "libjpeg-turbo" } else { "mixd" };

/// What a build that decodes JPEGs with another decoder than libjpeg-turbo costs its users.
pub const JPEG_DECODER_COST: Option<&str> = if cfg!(feature = "turbojpeg") {
    None
} else {
    Some(
        "this build decodes JPEGs in Rust: to the same pixels as libjpeg-turbo, in 1.5 times the time (build it with `make`, or with the \
         feature `turbojpeg`: both need cmake and nasm)",
    )
};

/// Why bytes do not become an image. The caller names the sample.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No decoder knows the content.
    #[error("is not an image of a known format")]
    UnknownFormat,
    /// The header claims more than is accepted.
    #[error("claims {width}x{height} pixels, more than the limit of {PIXELS_MAX}")]
    TooLarge {
        /// Pixels a row.
        width: u32,
        /// Rows.
        height: u32,
    },
    /// The content has no pixels.
    #[error("claims {width}x{height} pixels")]
    Empty {
        /// Pixels a row.
        width: u32,
        /// Rows.
        height: u32,
    },
    /// The content is damaged, or of a kind that the decoder does not know.
    #[error("cannot be decoded: {0}")]
    Decode(String),
    /// There is no memory for it now.
    #[error(
        "needs {} MB to decode and {} are free (raise the daemon's memory limit, lower --cache, or save it smaller)",
        .0.need.div_ceil(1_000_000), .0.free / 1_000_000
    )]
    Memory(Lack),
    /// The decoder gave up in a way that it should not.
    #[error("cannot be decoded: the decoder panicked")]
    Panicked,
}

/// Checks the size that a file's header claims.
fn check_size(width: u32, height: u32) -> Result<(u32, u32), ImageError> {
    match u64::from(width) * u64::from(height) {
        0 => Err(ImageError::Empty { width, height }),
        pixels if pixels > PIXELS_MAX => Err(ImageError::TooLarge { width, height }),
        _ => Ok((width, height)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::fixtures;
    use safetensors::SafeTensors;
    use serde_json::Value;
    use std::path::Path;

    /// Mean and maximum of the absolute differences.
    pub fn difference(ours: &[u8], theirs: &[u8]) -> (f64, u8) {
        assert_eq!(ours.len(), theirs.len());
        let each = || ours.iter().zip(theirs).map(|(a, b)| a.abs_diff(*b));
        (each().map(f64::from).sum::<f64>() / ours.len() as f64, each().max().unwrap_or(0))
    }

    /// Width, height and RGB, or why not.
    type Decoded = Result<(u32, u32, Vec<u8>), ImageError>;

    fn owned(picture: Result<Picture<'_>, ImageError>) -> Decoded {
        picture.map(|picture| (picture.width, picture.height, picture.to_rgb()))
    }

    /// A folder of files with what Pillow makes of them: each file's entry, its content and, where Pillow decodes it, its pixels.
    fn each_file(folder: &Path, list: &str, tensors: &str, mut check: impl FnMut(&str, &Value, &[u8], Option<&[u8]>)) {
        let list: Value = serde_json::from_slice(&std::fs::read(folder.join(list)).unwrap()).unwrap();
        let bytes = std::fs::read(folder.join(tensors)).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        for entry in list["files"].as_array().unwrap() {
            let name = entry["file"].as_str().unwrap();
            let file = std::fs::read(folder.join(name)).unwrap();
            let rgb = tensors.tensor(&format!("rgb.{name}")).ok().map(|tensor| tensor.data());
            check(name, entry, &file, rgb);
        }
    }

    /// Whether a picture has Pillow's size, and its pixels within a tolerance.
    fn check_pixels(of: &str, entry: &Value, rgb: &[u8], found: &(u32, u32, Vec<u8>), (mean_max, max_max): (f64, u8)) {
        let size = [found.0, found.1].map(u64::from);
        assert_eq!(size, ["width", "height"].map(|side| entry[side].as_u64().unwrap()), "{of}");
        let (mean, max) = difference(&found.2, rgb);
        assert!(mean <= mean_max && max <= max_max, "{of}: mean {mean}, max {max}");
    }

    /// The marker of a JPEG's frame, which tells its coding.
    fn frame_marker(file: &[u8]) -> Option<u8> {
        let mut at = 2;
        loop {
            match file.get(at..at + 4)? {
                [0xFF, marker @ (0xC0..=0xC3 | 0xC9..=0xCB), ..] => return Some(*marker),
                [0xFF, _, high, low] => at += 2 + usize::from(u16::from_be_bytes([*high, *low])),
                _ => return None,
            }
        }
    }

    /// What every decoder of this build makes of a file.
    fn by_each_decoder(file: &[u8]) -> Vec<(&'static str, Decoded)> {
        let mut all = vec![(JPEG_DECODER, owned(Decoder::default().decode(file, None)))];
        if file.starts_with(&[0xFF, 0xD8]) {
            all.push(("in Rust", owned(Decoder::default().decode_in_rust(file))));
        }
        all
    }

    /// `tolerance` of the larger set's wild/README.md.
    #[test]
    fn wild_files_have_their_right_outcome() {
        let Some(wild) = fixtures::wild() else { return };
        let mut seen = 0;
        each_file(&wild, "wild.json", "wild.safetensors", |name, entry, file, rgb| {
            if !file.starts_with(&[0xFF, 0xD8]) {
                return;
            }
            seen += 1;
            let all = by_each_decoder(file);
            let tolerance = &entry["tolerance"];
            let bounds = match tolerance["mean"].as_f64() {
                Some(mean) => (mean, tolerance["max"].as_u64().unwrap() as u8),
                None => (0.0, 0),
            };
            let accepted = all.iter().filter(|(_, found)| found.is_ok()).count();
            for (decoder, found) in &all {
                let of = format!("{name}, {decoder}");
                match (found, tolerance.as_str()) {
                    (_, Some("free")) => {
                        assert!([0, all.len()].contains(&accepted), "{of}: decoders differ");
                    }
                    (Ok(found), _) if entry["decodes"] == true => check_pixels(&of, entry, rgb.unwrap(), found, bounds),
                    (Ok(_), _) => panic!("{of}: it was decoded"),
                    (Err(_), Some("exact-or-refused")) => {}
                    (Err(error), _) => assert!(entry["decodes"] == false, "{of}: {error}"),
                }
            }
        });
        assert!(seen > 0);
    }

    /// docs/spec/golden.md#tolerances: the row for odd files, and the rows for JPEG and for other formats.
    #[test]
    fn odd_files_are_decoded_like_pillow_does_or_refused_with_a_cause() {
        for odd in fixtures::roots().map(|root| root.join("odd")) {
            each_file(&odd, "odd.json", "odd.safetensors", |name, entry, file, rgb| {
                for (decoder, found) in by_each_decoder(file) {
                    let of = format!("{name}, {decoder}");
                    match (&found, rgb) {
                        (Ok(found), Some(rgb)) => check_pixels(&of, entry, rgb, found, (0.0, 0)),
                        (Ok(_), None) => panic!("{of}: it was decoded"),
                        // A free choice: arithmetic coding.
                        (Err(_), Some(_)) if matches!(frame_marker(file), Some(0xC9 | 0xCA)) => {}
                        (Err(error), Some(_)) => panic!("{of}: {error}"),
                        (Err(error), None) => assert!(error.to_string().len() > 10, "{of}: {error}"),
                    }
                }
            });
        }
    }

    #[test]
    fn a_jpeg_cut_anywhere_is_refused() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample-data/val/n01440764");
        let file = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
        let file = std::fs::read(file).unwrap();
        let thumbnail = jpeg(8, |_| {});
        // An Exif segment whose thumbnail is a whole JPEG.
        let length = (thumbnail.len() as u16 + 8).to_be_bytes();
        let with_thumbnail = [&file[..2], &[0xFF, 0xE1], &length, b"Exif\0\0", &thumbnail, &file[2..]].concat();
        for file in [file, with_thumbnail] {
            assert!(by_each_decoder(&file).iter().all(|(_, found)| found.is_ok()));
            let lengths = (0..file.len()).step_by(97).chain(file.len() - 40..file.len());
            for (len, end) in lengths.flat_map(|len| [(len, &[][..]), (len, &[0xFF, 0xD9])]) {
                // The last bits of a scan may be padding.
                if end.is_empty() || len + 8 < file.len() {
                    let cut = [&file[..len], end].concat();
                    for (decoder, found) in by_each_decoder(&cut) {
                        assert!(found.is_err(), "{decoder}: {len} of {} bytes and {end:?} were decoded", file.len());
                    }
                }
            }
        }
    }

    /// A JPEG of a slope.
    fn jpeg(side: u16, options: impl FnOnce(&mut jpeg_encoder::Encoder<&mut Vec<u8>>)) -> Vec<u8> {
        let values: Vec<u8> = (0..usize::from(side) * usize::from(side) * 3).map(|at| (at / 3) as u8).collect();
        let mut file = Vec::new();
        let mut encoder = jpeg_encoder::Encoder::new(&mut file, 90);
        options(&mut encoder);
        encoder.encode(&values, side, side, jpeg_encoder::ColorType::Rgb).unwrap();
        file
    }

    /// The file with every occurrence of some bytes changed to others.
    fn changed(file: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
        let places: Vec<usize> = memchr::memmem::find_iter(file, from).collect();
        assert!(!places.is_empty());
        let mut changed = file.to_vec();
        for place in places.into_iter().rev() {
            changed.splice(place..place + from.len(), to.iter().copied());
        }
        changed
    }

    /// Every one of libjpeg's warnings that loses nothing.
    #[test]
    fn what_harms_no_pixel_is_a_warning() {
        let file = jpeg(64, |encoder| encoder.set_restart_interval(2));
        let whole = owned(Decoder::default().decode(&file, None)).unwrap();
        let segment = |marker: u8, content: &[u8]| {
            [&[0xFF, marker], &(content.len() as u16 + 2).to_be_bytes()[..], content].concat()
        };
        let with = |segment: &[u8]| [&file[..2], segment, &file[2..]].concat();
        let before_end = |bytes: &[u8]| [&file[..file.len() - 2], bytes, &[0xFF, 0xD9]].concat();
        let cases = [
            ("values of the scan header", changed(&file, &[0, 63, 0], &[0, 0, 0])),
            ("stray bytes between segments", with(&[1, 2, 3])),
            ("stray bytes before the end", before_end(&[7; 300])),
            ("stray data before the end", before_end(&[0xFF, 0, 9])),
            ("JFIF version", changed(&file, b"JFIF\0\x01", b"JFIF\0\x00")),
            ("incomplete profile", with(&segment(0xE2, b"ICC_PROFILE\0\x01\x02part"))),
            ("profile of equal parts", with(&segment(0xE2, b"ICC_PROFILE\0\x01\x01part").repeat(2))),
            ("a restart marker of another number", changed(&file, &[0xFF, 0xD2], &[0xFF, 0xD6])),
            ("the last restart marker before the next", changed(&file, &[0xFF, 0xD3], &[0xFF, 0xD2, 0xFF, 0xD3])),
            ("stray bytes before a restart marker", changed(&file, &[0xFF, 0xD4], &[1, 2, 3, 0xFF, 0xD4])),
        ];
        let mut decoder = Decoder::default();
        for (what, case) in &cases {
            assert_eq!(owned(decoder.decode(case, None)).expect(what), whole, "{what}");
            assert!(decoder.warning().is_some(), "{what}");
            assert_eq!(owned(decoder.decode_in_rust(case)).expect(what), whole, "{what}");
            assert!(decoder.warning().is_some(), "{what}");
        }
        for same in [file.clone(), with(&segment(0xE2, b"ICC_PROFILE\0\x01\x01part"))] {
            assert_eq!(owned(decoder.decode(&same, None)).unwrap(), whole);
            assert_eq!(decoder.warning(), None);
        }
    }

    /// After a warning that harms nothing, as well.
    #[test]
    fn what_is_lost_is_an_error() {
        let file = jpeg(64, |encoder| encoder.set_restart_interval(2));
        let at = |marker: u8| memchr::memmem::find(&file, &[0xFF, marker]).unwrap();
        let scan = at(0xDA);
        let tall = {
            let mut file = file.clone();
            let frame = at(0xC0);
            file[frame + 5..frame + 7].copy_from_slice(&200_u16.to_be_bytes());
            file
        };
        let cases = [
            ("half of the scan", [&file[..scan + (file.len() - scan) / 2], &[0xFF, 0xD9]].concat()),
            ("a part between restart markers", [&file[..at(0xD1)], &file[at(0xD2)..]].concat()),
            ("a restart marker and what is around it", changed(&file, &[0xFF, 0xD1], &[0xFF, 0xD2])),
            ("more rows than there are", tall),
        ];
        for (what, case) in cases {
            for case in [case.clone(), [&case[..2], &[1, 2, 3], &case[2..]].concat()] {
                for (decoder, found) in by_each_decoder(&case) {
                    assert!(found.is_err(), "{what}, {decoder}");
                }
            }
        }
    }

    #[test]
    fn frames_without_tables_have_the_standard_ones() {
        let file = jpeg(32, |_| {});
        let whole = owned(Decoder::default().decode(&file, None)).unwrap();
        // Made comments.
        let without = changed(&file, &[0xFF, 0xC4], &[0xFF, 0xFE]);
        for (decoder, found) in by_each_decoder(&without) {
            assert_eq!(found.expect(decoder), whole, "{decoder}");
        }
    }
}

//! JPEGs through libjpeg-turbo (feature `turbojpeg`): Pillow's pixels to the bit; less than all of them for less.
#![expect(unsafe_code, reason = "calls a library in C")]

use super::jpeg::inks_to_rgb;
use super::output::Output;
use super::segments::keeps_coefficients;
use super::{ImageError, RegionOf, check_size};
use crate::types::{CropBox, ImageSize};
use std::ffi::{CStr, c_int};
use std::ptr::NonNull;
use turbojpeg_sys as tj;

/// Eighths that are decoded for less than the full size: ⅝ and more cost as much or more.
const EIGHTHS: [u32; 4] = [1, 2, 3, 4];

/// The most scans of a progressive file. Encoders make about ten; a few bytes each can make a file of thousands that takes minutes.
const SCANS_MAX: c_int = 500;

/// Columns at multiples of which the library can begin a region, for each of its samplings: 4:4:4 (whose factors may be 1, 2 or 3), 4:2:2, 4:2:0,
/// gray, 4:4:0 (of factors 1 or 2), 4:1:1, 4:4:1.
const REGION_STEPS: [i32; 7] = [48, 16, 16, 8, 16, 32, 8];

/// Columns that are decoded beside a region, since upsampling takes its edge for the image's.
const MARGIN: i32 = 16;

/// No region.
const WHOLE: tj::tjregion = tj::tjregion { x: 0, y: 0, w: 0, h: 0 };

/// A [`Picture`] but for its values.
///
/// [`Picture`]: super::Picture
pub struct Shape {
    pub width: u32,
    pub height: u32,
    pub channels: usize,
    pub extent: [u32; 2],
}

/// Why there are no pixels.
pub enum Failure {
    /// The file cannot be decoded.
    Error(ImageError),
    /// The library warned, first of this. It tells of one warning only, and with the same code of an error after it.
    Warning(String),
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self::Error(error)
    }
}

/// Decodes a JPEG into the beginning of `output`.
///
/// # Panics
/// When the region is empty or reaches beyond the image.
pub fn decode(
    file: &[u8],
    at_least: Option<ImageSize>,
    region: Option<RegionOf<'_>>,
    output: &mut Output,
) -> Result<Shape, Failure> {
    let mut jpeg = Decompressor::open(file)?;
    let side = |parameter| jpeg.get(parameter).try_into().unwrap_or(0);
    let (width, height) = check_size(side(tj::TJPARAM_TJPARAM_JPEGWIDTH), side(tj::TJPARAM_TJPARAM_JPEGHEIGHT))?;
    let (format, channels) = match jpeg.get(tj::TJPARAM_TJPARAM_COLORSPACE) as u32 {
        tj::TJCS_TJCS_GRAY => (tj::TJPF_TJPF_GRAY, 1),
        tj::TJCS_TJCS_RGB | tj::TJCS_TJCS_YCbCr => (tj::TJPF_TJPF_RGB, 3),
        _ => (tj::TJPF_TJPF_CMYK, 4),
    };
    // The library neither scales lossless files nor decodes parts of them, and would write all of their rows.
    let is_lossless = jpeg.get(tj::TJPARAM_TJPARAM_LOSSLESS) != 0;
    let scaled = |eighths: u32| [width, height].map(|pixels| (pixels * eighths).div_ceil(8));
    let covers = |&eighths: &u32| {
        let [width, height] = scaled(eighths);
        !is_lossless && at_least.is_some_and(|size| width >= size.width && height >= size.height)
    };
    let eighths = EIGHTHS.into_iter().find(covers).unwrap_or(8);
    // Where scans are missing, blocks of a progressive file are smoothed by others further off, and its coefficients are all read anyway.
    let has_regions = eighths == 8 && channels < 4 && !is_lossless && jpeg.get(tj::TJPARAM_TJPARAM_PROGRESSIVE) == 0;
    let cut = region.filter(|_| has_regions).and_then(|region| region(ImageSize { height, width }));
    let region = cut.and_then(|cut| jpeg.region(cut, [width, height])).unwrap_or(WHOLE);
    let [columns, rows] = scaled(eighths);
    let pitch = columns as usize * channels;
    let bytes = pitch * rows as usize;
    // 16 bits for each value, at any scale.
    let own_bytes = if keeps_coefficients(file) { width as usize * height as usize * channels * 2 } else { 0 };
    // Every value that is asked for is written: what is missing is gray, and an error.
    let to = &mut output.room(bytes, own_bytes)?[..bytes][region.y as usize * pitch + region.x as usize * channels..];
    if eighths < 8 {
        // The library knows fractions in their lowest terms.
        let common = 1 << eighths.trailing_zeros();
        let factor = tj::tjscalingfactor { num: eighths as c_int / common, denom: 8 / common };
        // SAFETY: it takes no pointers but the instance's.
        jpeg.call(|instance| unsafe { tj::tj3SetScalingFactor(instance, factor) })?;
    }
    // SAFETY: as above.
    jpeg.call(|instance| unsafe { tj::tj3SetCroppingRegion(instance, region) })?;
    // SAFETY: `pitch` bytes apart, as many rows are written as the region has or, without one, as the scaled image has; `to` has room for them.
    jpeg.call(|instance| unsafe {
        tj::tj3Decompress8(instance, file.as_ptr(), file.len() as u64, to.as_mut_ptr(), pitch as c_int, format as c_int)
    })?;
    let extent = [width, height].map(|pixels| pixels * eighths);
    if channels == 4 {
        let values = &mut output.room(bytes, 0)?[..bytes];
        // Forwards in place: a pixel never lands behind where it was read.
        for pixel in 0..bytes / 4 {
            let inks = std::array::from_fn(|ink| values[4 * pixel + ink]);
            values[3 * pixel..][..3].copy_from_slice(&inks_to_rgb(inks));
        }
    }
    Ok(Shape { width: columns, height: rows, channels: channels.min(3), extent })
}

/// An instance of the library's decompressor, for one image: tables, errors and scaling of another one stay behind in it.
struct Decompressor(NonNull<std::ffi::c_void>);

impl Decompressor {
    /// Reads the header of a file.
    fn open(file: &[u8]) -> Result<Self, Failure> {
        // SAFETY: it takes no pointers.
        let instance = NonNull::new(unsafe { tj::tj3Init(tj::TJINIT_TJINIT_DECOMPRESS as c_int) });
        let mut new = Self(instance.ok_or_else(|| ImageError::Decode("libjpeg-turbo has no memory".to_owned()))?);
        // SAFETY: it takes no pointers but the instance's.
        new.call(|instance| unsafe { tj::tj3Set(instance, tj::TJPARAM_TJPARAM_SCANLIMIT as c_int, SCANS_MAX) })?;
        // SAFETY: the file is as long as is said.
        new.call(|instance| unsafe { tj::tj3DecompressHeader(instance, file.as_ptr(), file.len() as u64) })?;
        Ok(new)
    }

    fn get(&self, parameter: tj::TJPARAM) -> c_int {
        // SAFETY: the instance lives.
        unsafe { tj::tj3Get(self.0.as_ptr(), parameter as c_int) }
    }

    /// Calls a function of the library with this instance.
    fn call(&mut self, function: impl FnOnce(tj::tjhandle) -> c_int) -> Result<(), Failure> {
        if function(self.0.as_ptr()) == 0 {
            return Ok(());
        }
        // SAFETY: a text that ends with 0, which lives until the instance is used again.
        let cause = unsafe { CStr::from_ptr(tj::tj3GetErrorStr(self.0.as_ptr())) }.to_string_lossy();
        // SAFETY: the instance lives.
        if unsafe { tj::tj3GetErrorCode(self.0.as_ptr()) } == tj::TJERR_TJERR_WARNING as c_int {
            Err(Failure::Warning(cause.into_owned()))
        } else {
            Err(Failure::Error(ImageError::Decode(cause.into_owned())))
        }
    }

    /// The region to decode for a box of the image; `None` where the library does not know the sampling.
    fn region(&self, cut: CropBox, [width, height]: [u32; 2]) -> Option<tj::tjregion> {
        let CropBox { top, left, .. } = cut;
        let (right, bottom) = (left + cut.width as i32, top + cut.height as i32);
        let (width, height) = (width as i32, height as i32);
        assert!(0 <= left && left < right && right <= width, "columns {left}..{right} of {width}");
        assert!(0 <= top && top < bottom && bottom <= height, "rows {top}..{bottom} of {height}");
        let step = *REGION_STEPS.get(usize::try_from(self.get(tj::TJPARAM_TJPARAM_SUBSAMP)).ok()?)?;
        let x = (left - MARGIN).max(0) / step * step;
        Some(tj::tjregion { x, y: top, w: (right + MARGIN).min(width) - x, h: bottom - top })
    }
}

impl Drop for Decompressor {
    fn drop(&mut self) {
        // SAFETY: nothing refers to it any more.
        unsafe { tj::tj3Destroy(self.0.as_ptr()) };
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Decoder, Picture};
    use super::*;
    use crate::types::CropBox;
    use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
    use proptest::prelude::*;

    /// A file as encoders write them: any sampling, scans and restart markers.
    struct Case {
        width: u16,
        height: u16,
        cut: CropBox,
        /// How it is written, for messages.
        written: String,
        file: Vec<u8>,
    }

    impl std::fmt::Debug for Case {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "{}x{}, {}, {:?}", self.width, self.height, self.written, self.cut)
        }
    }

    fn cases() -> impl Strategy<Value = Case> {
        let sides = (1_u16..150, 1_u16..150);
        let sampling = prop_oneof![
            3 => Just(Some((2, 2))),
            4 => prop::sample::select(&[(1, 1), (2, 1), (1, 2), (4, 1), (4, 2), (1, 4), (2, 4)][..]).prop_map(Some),
            1 => Just(None),
        ];
        let written = (sampling, any::<bool>(), prop::option::of(1_u16..40), 30_u8..100, any::<u64>());
        (sides, written, any::<[prop::sample::Index; 4]>()).prop_map(|((width, height), written, cut)| {
            let ((sampling, progressive, restarts, quality, seed), written) = (written, format!("{written:?}"));
            let mut file = Vec::new();
            let mut encoder = Encoder::new(&mut file, quality);
            encoder.set_progressive(progressive);
            encoder.set_restart_interval(restarts.unwrap_or(0));
            if let Some((across, down)) = sampling {
                encoder.set_sampling_factor(SamplingFactor::from_factors(across, down).expect("one of its factors"));
            }
            let values = values(usize::from(width) * usize::from(height) * 3, seed);
            match sampling {
                Some(_) => encoder.encode(&values, width, height, ColorType::Rgb),
                None => encoder.encode(&values[..values.len() / 3], width, height, ColorType::Luma),
            }
            .unwrap();
            // A first and a length that are in the side, whatever it is.
            let span = |first: &prop::sample::Index, length: &prop::sample::Index, side: u16| {
                let first = first.index(side.into());
                (first as i32, 1 + length.index(usize::from(side) - first) as u32)
            };
            let ((left, across), (top, down)) = (span(&cut[0], &cut[1], width), span(&cut[2], &cut[3], height));
            Case { width, height, cut: CropBox { top, left, height: down, width: across }, written, file }
        })
    }

    /// Noise over slopes: coefficients of all frequencies.
    fn values(count: usize, seed: u64) -> Vec<u8> {
        let noise = |at: u64| (at ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 58;
        (0..count as u64).map(|at| (at / 7 + noise(at)) as u8).collect()
    }

    fn encoded(values: &[u8], side: u16) -> Vec<u8> {
        let mut file = Vec::new();
        Encoder::new(&mut file, 90).encode(values, side, side, ColorType::Luma).unwrap();
        file
    }

    fn of_box(picture: &Picture<'_>, cut: CropBox) -> Vec<u8> {
        picture.crop(cut.top as u32, cut.left as u32, cut.height, cut.width).to_rgb()
    }

    fn part_of(decoder: &mut Decoder, case: &Case, file: &[u8]) -> Result<Vec<u8>, ImageError> {
        let cut = |size| {
            assert_eq!(size, ImageSize { height: case.height.into(), width: case.width.into() });
            Some(case.cut)
        };
        decoder.decode_region(file, None, Some(&cut)).map(|picture| of_box(&picture, case.cut))
    }

    proptest! {
        #[test]
        fn a_box_has_the_pixels_of_the_whole(case in cases()) {
            let (mut decoder, other) = (Decoder::default(), encoded(&[77; 160 * 160], 160));
            let whole = of_box(&decoder.decode(&case.file, None).unwrap(), case.cut);
            // What the last image left must not be taken for this one's.
            decoder.decode(&other, None).unwrap();
            prop_assert!(part_of(&mut decoder, &case, &case.file).unwrap() == whole);
            prop_assert!(of_box(&decoder.decode(&case.file, None).unwrap(), case.cut) == whole);
        }
    }

    proptest! {
        #[test]
        fn the_decoder_in_rust_makes_the_same_pixels(case in cases()) {
            let (mut decoder, mut other) = (Decoder::default(), Decoder::default());
            let picture = decoder.decode(&case.file, None).unwrap();
            let in_rust = other.decode_in_rust(&case.file).unwrap();
            prop_assert_eq!(picture.channels, in_rust.channels);
            prop_assert!(picture.to_rgb() == in_rust.to_rgb());
        }

        /// What one refuses, the other one does, too.
        #[test]
        fn damaged_files_have_the_same_outcome_in_both_decoders(
            case in cases(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let mut file = case.file.clone();
            for (place, byte) in damage {
                let place = place.index(file.len() - 2);
                file[2 + place] = byte;
            }
            let (mut decoder, mut other) = (Decoder::default(), Decoder::default());
            let found = decoder.decode(&file, None).map(|picture| picture.to_rgb());
            let in_rust = other.decode_in_rust(&file).map(|picture| picture.to_rgb());
            match (found, in_rust) {
                (Ok(found), Ok(in_rust)) => prop_assert!(found == in_rust),
                (Ok(_), Err(error)) => prop_assert!(error.to_string().contains("not supported"), "{error}"),
                (Err(error), Ok(_)) => prop_assert!(false, "{error}"),
                (Err(_), Err(_)) => {}
            }
        }

        /// Where scans are missing, as well.
        #[test]
        fn both_decoders_make_up_for_the_same_scans(
            case in cases().prop_filter("progressive", |case| scans(&case.file).len() > 1),
            kept in any::<prop::sample::Index>(),
        ) {
            let scans = &scans(&case.file)[1..];
            let file = [&case.file[..scans[kept.index(scans.len())]], &[0xFF, 0xD9]].concat();
            let (mut decoder, mut other) = (Decoder::default(), Decoder::default());
            let picture = decoder.decode(&file, None).unwrap().to_rgb();
            prop_assert!(picture == other.decode_in_rust(&file).unwrap().to_rgb());
        }
    }

    /// Where scans begin.
    fn scans(file: &[u8]) -> Vec<usize> {
        memchr::memmem::find_iter(file, &[0xFF, 0xDA]).collect()
    }

    /// A file of one sampling, with a box in its upper half.
    fn simple(sampling: Option<SamplingFactor>) -> Case {
        let mut file = Vec::new();
        let mut encoder = Encoder::new(&mut file, 90);
        let values = values(160 * 160 * 3, 1);
        match sampling {
            Some(sampling) => {
                encoder.set_sampling_factor(sampling);
                encoder.encode(&values, 160, 160, ColorType::Rgb)
            }
            None => encoder.encode(&values[..160 * 160], 160, 160, ColorType::Luma),
        }
        .unwrap();
        let cut = CropBox { top: 8, left: 24, height: 30, width: 40 };
        Case { width: 160, height: 160, cut, written: String::new(), file }
    }

    #[test]
    fn what_lies_below_the_box_is_not_read() {
        for sampling in [None, Some(SamplingFactor::F_1_1), Some(SamplingFactor::F_2_1), Some(SamplingFactor::F_2_2)] {
            let mut case = simple(sampling);
            let mut decoder = Decoder::default();
            let whole = of_box(&decoder.decode(&case.file, None).unwrap(), case.cut);
            // A marker amidst the coefficients, two thirds down.
            let at = case.file.len() * 2 / 3;
            case.file[at..at + 2].copy_from_slice(&[0xFF, 0xC4]);
            assert!(decoder.decode(&case.file, None).is_err());
            assert!(part_of(&mut decoder, &case, &case.file).unwrap() == whole);
        }
    }

    #[test]
    fn an_image_does_not_depend_on_those_before_it() {
        let case = simple(Some(SamplingFactor::F_2_2));
        let mut decoder = Decoder::default();
        let good = decoder.decode(&case.file, None).unwrap().to_rgb();
        let table = memchr::memmem::find(&case.file, &[0xFF, 0xDB]).unwrap();
        // A reserved marker in the header; a file without its own tables of quantization, which are made comments.
        let (mut reserved, mut tableless) = (case.file.clone(), case.file.clone());
        reserved[table + 1] = 0x02;
        while let Some(table) = memchr::memmem::find(&tableless, &[0xFF, 0xDB]) {
            tableless[table + 1] = 0xFE;
        }
        for bad in [reserved, tableless] {
            assert!(decoder.decode(&bad, None).is_err());
            assert!(decoder.decode(&case.file, None).unwrap().to_rgb() == good);
        }
        let stray = [&case.file[..table], &[1, 2, 3], &case.file[table..]].concat();
        assert!(decoder.decode(&stray, None).unwrap().to_rgb() == good);
    }

    /// Scans of a progressive file that are missing are made up from blocks around.
    #[test]
    fn parts_of_files_with_missing_scans_are_those_of_the_whole() {
        let values = values(160 * 160 * 3, 3);
        let mut file = Vec::new();
        let mut encoder = Encoder::new(&mut file, 80);
        encoder.set_progressive(true);
        encoder.encode(&values, 160, 160, ColorType::Rgb).unwrap();
        let mut decoder = Decoder::default();
        for &end in &scans(&file)[2..] {
            let cut = CropBox { top: 24, left: 88, height: 90, width: 50 };
            let file = [&file[..end], &[0xFF, 0xD9]].concat();
            let case = Case { width: 160, height: 160, cut, written: String::new(), file };
            if let Ok(whole) = decoder.decode(&case.file, None).map(|picture| of_box(&picture, cut)) {
                assert!(part_of(&mut decoder, &case, &case.file).unwrap() == whole, "{end}");
            }
        }
    }

    #[test]
    fn lossless_files_are_decoded_whole() {
        let values = values(160 * 160 * 3, 2);
        let (mut file, mut length) = (std::ptr::null_mut(), 0);
        // SAFETY: the values are as many as is said, and the file is as long as the library says until it is freed.
        let file = unsafe {
            let instance = tj::tj3Init(tj::TJINIT_TJINIT_COMPRESS as c_int);
            assert_eq!(tj::tj3Set(instance, tj::TJPARAM_TJPARAM_LOSSLESS as c_int, 1), 0);
            let rgb = tj::TJPF_TJPF_RGB as c_int;
            assert_eq!(tj::tj3Compress8(instance, values.as_ptr(), 160, 0, 160, rgb, &mut file, &mut length), 0);
            let copy = std::slice::from_raw_parts(file, length as usize).to_vec();
            tj::tj3Free(file.cast());
            tj::tj3Destroy(instance);
            copy
        };
        let case = Case { file, ..simple(None) };
        let mut decoder = Decoder::default();
        for at_least in [None, Some(ImageSize::square(40))] {
            assert!(decoder.decode(&case.file, at_least).unwrap().to_rgb() == values);
        }
        let expected = of_box(&Picture::new(160, 160, 3, &values), case.cut);
        assert!(part_of(&mut decoder, &case, &case.file).unwrap() == expected);
    }
}

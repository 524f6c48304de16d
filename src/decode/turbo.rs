//! JPEGs through libjpeg-turbo (feature `turbojpeg`): Pillow's pixels to the bit; less than all of them for less.
#![expect(unsafe_code, reason = "calls a library in C")]

use super::{Cut, ImageError, check_size};
use crate::types::{CropBox, ImageSize};
use std::ffi::{CStr, c_int};
use std::ptr::NonNull;
use turbojpeg_sys as tj;

/// Eighths that are decoded for less than the full size: ⅝ and more cost as much or more.
const EIGHTHS: [u32; 4] = [1, 2, 3, 4];

/// The most scans of a progressive file. Encoders make about ten; a few bytes each can make a file of thousands that takes minutes.
const SCANS_MAX: c_int = 500;

/// Pixels across a block of all components, for each of the library's samplings: 4:4:4, 4:2:2, 4:2:0, gray, 4:4:0, 4:1:1, 4:4:1.
const BLOCK_WIDTHS: [i32; 7] = [8, 16, 16, 8, 8, 32, 8];

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

/// libjpeg-turbo's state, made when it is first needed. One for full size and one for less: its choice of the inverse transform
/// does not return from scaled to full.
#[derive(Default)]
pub struct Turbo {
    full: Option<Handle>,
    scaled: Option<Handle>,
}

impl Turbo {
    /// Decodes a JPEG into the beginning of `out`; `None` for colours that it does not turn into RGB.
    ///
    /// # Panics
    /// When the box that is cut is empty or reaches beyond the image.
    pub fn decode(
        &mut self,
        file: &[u8],
        at_least: Option<ImageSize>,
        cut: Option<Cut<'_>>,
        out: &mut Vec<u8>,
    ) -> Result<Option<Shape>, ImageError> {
        let full = made(&mut self.full)?;
        // SAFETY: the file is as long as is said.
        full.check(|handle| unsafe { tj::tj3DecompressHeader(handle, file.as_ptr(), file.len() as u64) })?;
        let side = |parameter| full.get(parameter).try_into().unwrap_or(0);
        let (width, height) = check_size(side(tj::TJPARAM_TJPARAM_JPEGWIDTH), side(tj::TJPARAM_TJPARAM_JPEGHEIGHT))?;
        let (format, channels) = match full.get(tj::TJPARAM_TJPARAM_COLORSPACE) as u32 {
            tj::TJCS_TJCS_GRAY => (tj::TJPF_TJPF_GRAY, 1),
            tj::TJCS_TJCS_RGB | tj::TJCS_TJCS_YCbCr => (tj::TJPF_TJPF_RGB, 3),
            _ => return Ok(None),
        };
        let scaled = |eighths: u32| [width, height].map(|pixels| (pixels * eighths).div_ceil(8));
        let covers = |&eighths: &u32| {
            let [width, height] = scaled(eighths);
            at_least.is_some_and(|size| width >= size.width && height >= size.height)
        };
        let eighths = EIGHTHS.into_iter().find(covers).unwrap_or(8);
        let [columns, rows] = scaled(eighths);
        let pitch = columns as usize * channels;
        let bytes = pitch * rows as usize;
        // Every value that is asked for is written: what is damaged is gray, and an error.
        if out.len() < bytes {
            out.resize(bytes, 0);
        }
        let out = &mut out[..bytes];
        let decoded = if eighths == 8 {
            match cut.and_then(|cut| full.region(cut(ImageSize { height, width })?, [width, height])) {
                // What has no parts, such as a lossless file, is decoded whole.
                Some(region) => full
                    .decode(file, region, (format, pitch), out)
                    .or_else(|_| full.decode(file, WHOLE, (format, pitch), out)),
                None => full.decode(file, WHOLE, (format, pitch), out),
            }
        } else {
            let scaled = made(&mut self.scaled)?;
            let factor = tj::tjscalingfactor { num: eighths as c_int, denom: 8 };
            // SAFETY: it takes no pointers but the instance's.
            scaled.check(|handle| unsafe { tj::tj3SetScalingFactor(handle, factor) })?;
            scaled.decode(file, WHOLE, (format, pitch), out)
        };
        decoded?;
        let extent = [width, height].map(|pixels| pixels * eighths);
        Ok(Some(Shape { width: columns, height: rows, channels, extent }))
    }
}

/// An instance of the library's decompressor.
struct Handle(NonNull<std::ffi::c_void>);

// SAFETY: the library keeps nothing of an instance in a thread.
unsafe impl Send for Handle {}

impl Handle {
    fn new() -> Option<Self> {
        // SAFETY: it takes no pointers.
        NonNull::new(unsafe { tj::tj3Init(tj::TJINIT_TJINIT_DECOMPRESS as c_int) }).map(Self)
    }

    fn get(&self, parameter: tj::TJPARAM) -> c_int {
        // SAFETY: the instance lives.
        unsafe { tj::tj3Get(self.0.as_ptr(), parameter as c_int) }
    }

    /// Calls a function of the library with this instance.
    fn check(&mut self, call: impl FnOnce(tj::tjhandle) -> c_int) -> Result<(), ImageError> {
        if call(self.0.as_ptr()) == 0 {
            return Ok(());
        }
        // SAFETY: a text that ends with 0, which lives until the instance is used again.
        let cause = unsafe { CStr::from_ptr(tj::tj3GetErrorStr(self.0.as_ptr())) };
        Err(ImageError::Decode(cause.to_string_lossy().into_owned()))
    }

    /// Decodes a region of an image to where it lies in `out`, all of the image, whose rows are `pitch` bytes apart.
    fn decode(
        &mut self,
        file: &[u8],
        region: tj::tjregion,
        (format, pitch): (tj::TJPF, usize),
        out: &mut [u8],
    ) -> Result<(), ImageError> {
        // SAFETY: it takes no pointers but the instance's.
        self.check(|handle| unsafe { tj::tj3SetCroppingRegion(handle, region) })?;
        let channels = if format == tj::TJPF_TJPF_GRAY { 1 } else { 3 };
        let out = &mut out[region.y as usize * pitch + region.x as usize * channels..];
        // SAFETY: rows are written `pitch` bytes apart, as many as the region has or, without one, as the image has.
        let decoded = self.check(|handle| unsafe {
            let (from, to) = (file.as_ptr(), out.as_mut_ptr());
            tj::tj3Decompress8(handle, from, file.len() as u64, to, pitch as c_int, format as c_int)
        });
        match decoded {
            // Stray bytes between segments harm nothing, and Pillow skips them.
            Err(ImageError::Decode(cause)) if cause.contains("extraneous bytes before marker") => Ok(()),
            other => other,
        }
    }

    /// What is decoded for a box: it begins at a block, and has one more on each side, since upsampling takes a region's edge for the image's.
    /// `None` where the library does not know the sampling.
    fn region(&self, cut: CropBox, [width, height]: [u32; 2]) -> Option<tj::tjregion> {
        let CropBox { top, left, .. } = cut;
        let (right, bottom) = (left + cut.width as i32, top + cut.height as i32);
        let (width, height) = (width as i32, height as i32);
        assert!(0 <= left && left < right && right <= width, "columns {left}..{right} of {width}");
        assert!(0 <= top && top < bottom && bottom <= height, "rows {top}..{bottom} of {height}");
        let sampling = usize::try_from(self.get(tj::TJPARAM_TJPARAM_SUBSAMP)).ok()?;
        let block = *BLOCK_WIDTHS.get(sampling)?;
        let x = (left / block - 1).max(0) * block;
        Some(tj::tjregion { x, y: top, w: (right + block).min(width) - x, h: bottom - top })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: nothing refers to it any more.
        unsafe { tj::tj3Destroy(self.0.as_ptr()) };
    }
}

fn made(handle: &mut Option<Handle>) -> Result<&mut Handle, ImageError> {
    if handle.is_none() {
        let mut new = Handle::new().ok_or_else(|| ImageError::Decode("libjpeg-turbo has no memory".to_owned()))?;
        // SAFETY: it takes no pointers but the instance's.
        new.check(|handle| unsafe { tj::tj3Set(handle, tj::TJPARAM_TJPARAM_SCANLIMIT as c_int, SCANS_MAX) })?;
        *handle = Some(new);
    }
    Ok(handle.as_mut().expect("just made"))
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
        decoder.decode_part(file, None, Some(&cut)).map(|picture| of_box(&picture, case.cut))
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

    #[test]
    fn what_lies_below_the_box_is_not_read() {
        let mut file = encoded(&values(160 * 160, 1), 160);
        let cut = CropBox { top: 8, left: 24, height: 30, width: 40 };
        let case = Case { width: 160, height: 160, cut, written: String::new(), file: file.clone() };
        let mut decoder = Decoder::default();
        let whole = of_box(&decoder.decode(&file, None).unwrap(), cut);
        // A marker amidst the coefficients, two thirds down.
        let at = file.len() * 2 / 3;
        file[at..at + 2].copy_from_slice(&[0xFF, 0xC4]);
        assert!(decoder.decode(&file, None).is_err());
        assert!(part_of(&mut decoder, &case, &file).unwrap() == whole);
    }

    /// The library decodes no parts of lossless files.
    #[test]
    fn what_has_no_parts_is_decoded_whole() {
        let values = values(160 * 160 * 3, 2);
        let (mut file, mut length) = (std::ptr::null_mut(), 0);
        // SAFETY: the values are as many as is said, and the file is as long as the library says until it is freed.
        let file = unsafe {
            let handle = tj::tj3Init(tj::TJINIT_TJINIT_COMPRESS as c_int);
            assert_eq!(tj::tj3Set(handle, tj::TJPARAM_TJPARAM_LOSSLESS as c_int, 1), 0);
            let rgb = tj::TJPF_TJPF_RGB as c_int;
            assert_eq!(tj::tj3Compress8(handle, values.as_ptr(), 160, 0, 160, rgb, &mut file, &mut length), 0);
            let copy = std::slice::from_raw_parts(file, length as usize).to_vec();
            tj::tj3Free(file.cast());
            tj::tj3Destroy(handle);
            copy
        };
        let cut = CropBox { top: 8, left: 24, height: 30, width: 40 };
        let case = Case { width: 160, height: 160, cut, written: String::new(), file };
        let mut decoder = Decoder::default();
        assert!(decoder.decode(&case.file, None).unwrap().to_rgb() == values);
        let expected = of_box(&Picture::new(160, 160, 3, &values), cut);
        assert!(part_of(&mut decoder, &case, &case.file).unwrap() == expected);
    }
}

//! Image files: every decoder, and both of JPEGs.

use mixd::decode::{Decoder, ExifOrientation, Picture};
use mixd::types::{CropBox, ImageSize};

/// Larger images only take longer.
const PIXELS_MAX: usize = 1 << 18;

/// Decodes a file whole, a box of it, scaled, and with the decoder of builds without libjpeg-turbo. What both accept has the same pixels; what
/// libjpeg-turbo alone accepts is of a kind that the other one does not support. A box of a file that is sound has the pixels of the whole.
pub fn image(file: &[u8]) {
    for exif in ExifOrientation::ALL {
        turned(file, *exif);
    }
}

fn turned(file: &[u8], exif: ExifOrientation) {
    let size = Decoder::size(file, exif);
    if size.as_ref().is_ok_and(|size| size.pixels() > PIXELS_MAX) {
        return;
    }
    let (mut decoder, mut other) = (Decoder::new(exif), Decoder::new(exif));
    let pixels = |picture: Picture<'_>| (shape(picture), picture.to_rgb());
    let in_rust = file.starts_with(&[0xFF, 0xD8]).then(|| other.decode_in_rust(file).map(pixels));
    let Ok(whole) = decoder.decode(file, None) else {
        assert!(in_rust.is_none_or(|found| found.is_err()), "only the decoder in Rust accepts it");
        return;
    };
    let (shape, pixels) = pixels(whole);
    let [width, height, _] = shape;
    if let Ok(size) = size {
        assert_eq!(size, ImageSize { height, width }, "its header says otherwise");
    }
    match in_rust {
        None => {}
        Some(Ok(found)) => assert!(found == (shape, pixels.clone()), "the decoders disagree"),
        Some(Err(error)) => assert!(error.to_string().contains("not supported"), "{error}"),
    }
    let cut = CropBox {
        top: height as i32 / 3,
        left: width as i32 / 3,
        height: height.div_ceil(3),
        width: width.div_ceil(3),
    };
    let part = decoder.decode_region(file, None, Some(&|_| Some(cut))).expect("the whole was decoded");
    let of_part = part.crop(cut.top as u32, cut.left as u32, cut.height, cut.width).to_rgb();
    let of_whole = Picture::new(width, height, 3, &pixels).crop(cut.top as u32, cut.left as u32, cut.height, cut.width);
    assert!(of_part == of_whole.to_rgb(), "a box of {width}x{height} has other pixels than the whole");
    let least = ImageSize { height: height.div_ceil(5), width: width.div_ceil(5) };
    let scaled = decoder.decode(file, Some(least)).expect("the whole was decoded");
    assert!(scaled.width >= least.width && scaled.height >= least.height, "{}", scaled.size());
    let eighths = [scaled.width, scaled.height].map(|pixels| 8 * pixels);
    assert!(scaled.extent[0] <= eighths[0] && scaled.extent[1] <= eighths[1], "{:?}", scaled.extent);
    assert_eq!(scaled.to_rgb().len(), scaled.size().values());
}

fn shape(picture: Picture<'_>) -> [u32; 3] {
    [picture.width, picture.height, picture.channels as u32]
}

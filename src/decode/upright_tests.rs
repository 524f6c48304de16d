//! Pictures that are turned as their files say, against a naive turn of the pictures as they lie in the file.

use super::exif::tests::{exif, with_app1};
use super::orientation::tests::naive;
use super::{Decoder, ExifOrientation, Picture};
use crate::types::{CropBox, ImageSize};
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};

fn pixels(width: u16, height: u16, channels: usize) -> Vec<u8> {
    let value = |at: usize| {
        let (x, y) = (at / channels % usize::from(width), at / channels / usize::from(width));
        (x * 5 + y * 3 + at % channels * 60 + x * y % 17) as u8
    };
    (0..usize::from(width) * usize::from(height) * channels).map(value).collect()
}

fn jpeg(width: u16, height: u16, is_gray: bool, is_progressive: bool) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = Encoder::new(&mut file, 90);
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    encoder.set_progressive(is_progressive);
    let (channels, color) = if is_gray { (1, ColorType::Luma) } else { (3, ColorType::Rgb) };
    encoder.encode(&pixels(width, height, channels), width, height, color).unwrap();
    file
}

/// A picture's pixels as numbers, in rows.
fn rows(picture: &Picture<'_>) -> Vec<Vec<u32>> {
    let rgb = picture.to_rgb();
    let pixels: Vec<u32> = rgb.chunks_exact(3).map(|rgb| u32::from_be_bytes([0, rgb[0], rgb[1], rgb[2]])).collect();
    pixels.chunks_exact(picture.width as usize).map(<[u32]>::to_vec).collect()
}

/// A file of each kind with this orientation, and what tells whether it is applied without being asked for.
fn files(orientation: u16) -> Vec<(&'static str, Vec<u8>)> {
    let exif = exif(orientation, orientation.is_multiple_of(2));
    let mut files: Vec<_> = [(false, false), (true, false), (false, true)]
        .into_iter()
        .map(|(is_gray, is_progressive)| {
            ("JPEG", with_app1(&jpeg(75, 43, is_gray, is_progressive), b"Exif\0\0", &exif))
        })
        .collect();
    let image = ::image::RgbImage::from_raw(19, 7, pixels(19, 7, 3)).unwrap();
    let mut png = std::io::Cursor::new(Vec::new());
    image.write_to(&mut png, ::image::ImageFormat::Png).unwrap();
    // Signature and IHDR, then the chunk, whose checksum nobody asks for.
    let (head, rest) = png.get_ref().split_at(33);
    let chunk = [&(exif.len() as u32).to_be_bytes()[..], b"eXIf", &exif, &[0; 4]].concat();
    files.push(("PNG", [head, &chunk, rest].concat()));
    let mut webp = std::io::Cursor::new(Vec::new());
    image.write_to(&mut webp, ::image::ImageFormat::WebP).unwrap();
    let body = &webp.get_ref()[12..];
    let extended = [&b"VP8X\x0a\0\0\0\x08\0\0\0"[..], &[18, 0, 0, 6, 0, 0], body].concat();
    let chunk = [b"EXIF", &(exif.len() as u32).to_le_bytes()[..], &exif].concat();
    let length = (4 + extended.len() + chunk.len()) as u32;
    files.push(("WebP", [b"RIFF", &length.to_le_bytes()[..], b"WEBP", &extended, &chunk].concat()));
    files
}

#[test]
fn pictures_are_turned_as_exif_says_where_that_is_asked_for() {
    let (mut plain, mut upright) = (Decoder::default(), Decoder::new(ExifOrientation::Apply));
    for orientation in 1..=8 {
        for (kind, file) in files(orientation) {
            let in_file = rows(&plain.decode(&file, None).unwrap());
            let turned = upright.decode(&file, None).unwrap();
            let expected = naive(orientation.into(), &in_file);
            assert_eq!((turned.height as usize, turned.width as usize), (expected.len(), expected[0].len()));
            assert!(rows(&turned) == expected, "{kind}, orientation {orientation}");
            assert_eq!(Decoder::size(&file, ExifOrientation::Apply).unwrap(), turned.size(), "{kind}");
            let size = Decoder::size(&file, ExifOrientation::Ignore).unwrap();
            assert_eq!((size.height as usize, size.width as usize), (in_file.len(), in_file[0].len()), "{kind}");
        }
    }
}

#[test]
fn the_decoder_without_libjpeg_turbo_turns_them_too() {
    let (mut plain, mut upright) = (Decoder::default(), Decoder::new(ExifOrientation::Apply));
    for orientation in 1..=8 {
        let file = with_app1(&jpeg(33, 20, false, false), b"Exif\0\0", &exif(orientation, true));
        let in_file = rows(&plain.decode_in_rust(&file).unwrap());
        assert!(rows(&upright.decode_in_rust(&file).unwrap()) == naive(orientation.into(), &in_file), "{orientation}");
    }
}

#[test]
fn a_box_of_a_turned_picture_has_the_pixels_of_the_whole() {
    let mut decoder = Decoder::new(ExifOrientation::Apply);
    for orientation in 1..=8 {
        for (kind, file) in files(orientation) {
            let whole = decoder.decode(&file, None).unwrap();
            let (size, pixels) = (whole.size(), whole.to_rgb());
            let whole = Picture::new(size.width, size.height, 3, &pixels);
            let (height, width) = (size.height / 3, size.width / 4);
            for (top, left) in [(0, 0), (height, width), (size.height - height, size.width - width), (2, 1)] {
                let asked = CropBox { top: top as i32, left: left as i32, height, width };
                let region = |of: ImageSize| {
                    assert_eq!(of, size, "{kind}");
                    Some(asked)
                };
                let part = decoder.decode_region(&file, None, Some(&region)).unwrap();
                assert_eq!(part.size(), size, "{kind}");
                let shown = part.crop(top, left, height, width).to_rgb();
                assert!(shown == whole.crop(top, left, height, width).to_rgb(), "{kind}, {orientation}: {asked:?}");
            }
        }
    }
}

#[cfg(feature = "turbojpeg")]
#[test]
fn a_scaled_picture_that_is_turned_covers_the_upright_output() {
    let (plain, mut upright) = (jpeg(320, 120, false, false), Decoder::new(ExifOrientation::Apply));
    for orientation in 1..=8 {
        let file = with_app1(&plain, b"Exif\0\0", &exif(orientation, false));
        let is_tall = orientation > 4;
        let (height, width) = if is_tall { (80, 30) } else { (30, 80) };
        let scaled = upright.decode(&file, Some(ImageSize { height, width })).unwrap();
        assert_eq!((scaled.height, scaled.width), (height, width), "orientation {orientation}");
    }
}

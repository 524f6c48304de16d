//! A batch as a labelled grid of its images.

use ::image::imageops::{self, FilterType};
use ::image::{Rgb, RgbImage};
use half::{bf16, f16};

use super::text;
use crate::batch::BatchView;
#[cfg(test)]
use crate::batch::Head;
#[cfg(test)]
use crate::columns::Columns;
use crate::types::{CropBox, Dtype, Layout};

/// One image of the grid.
#[derive(Debug, Clone, PartialEq)]
pub struct Tile {
    /// The image, at any size; the grid enlarges or shrinks it.
    pub rgb: RgbImage,
    /// What stands beneath it, e.g. «70 % French horn + 30 % tench».
    pub caption: String,
}

const PAPER: Rgb<u8> = Rgb([248, 247, 244]);
const INK: Rgb<u8> = Rgb([34, 36, 40]);

/// Longer side of an image on the paper, in pixels: 1.75 times the usual 128.
const SIDE: u32 = 224;
const GAP: u32 = 32;
const MARGIN: u32 = 44;
const TITLE_HEIGHT: f32 = 34.0;
const CAPTION_HEIGHT: f32 = 20.0;
/// From one caption line's top to the next one's.
const CAPTION_PITCH: f32 = 23.0;
const CAPTION_GAP: u32 = 9;

/// Draws `tiles` row by row beneath `title`, as nearly square as their count allows.
///
/// Made for up to 16 tiles; more are drawn too, on a larger sheet.
pub fn grid(title: &str, tiles: &[Tile]) -> RgbImage {
    strips(title, tiles, (tiles.len() as f64).sqrt().ceil() as u32)
}

/// Draws `tiles` beneath `title`, so many in each row.
pub fn strips(title: &str, tiles: &[Tile], columns: u32) -> RgbImage {
    let (count, columns) = (tiles.len().max(1) as u32, columns.max(1));
    let rows = count.div_ceil(columns);
    let captions: Vec<Vec<String>> = tiles.iter().map(|tile| lines(&tile.caption)).collect();
    let deepest = captions.iter().map(Vec::len).max().unwrap_or(0);
    let caption_depth = CAPTION_GAP + (CAPTION_PITCH * deepest as f32).ceil() as u32;
    let (pitch_x, pitch_y) = (SIDE + GAP, SIDE + caption_depth + GAP);
    let top = MARGIN + TITLE_HEIGHT as u32 + MARGIN / 2;

    let sheet_width = 2 * MARGIN + columns * pitch_x - GAP;
    let mut sheet = RgbImage::from_pixel(sheet_width, top + rows * pitch_y - GAP + MARGIN, PAPER);
    let title = text::fit(title, TITLE_HEIGHT, (sheet_width - 2 * MARGIN) as f32);
    text::draw(&mut sheet, &title, (MARGIN as f32, MARGIN as f32 * 0.8), TITLE_HEIGHT, INK);

    for ((tile, caption), i) in tiles.iter().zip(&captions).zip(0..) {
        let (left, upper) = (MARGIN + i % columns * pitch_x, top + i / columns * pitch_y);
        let shown = enlarged(&tile.rgb);
        // A wide image stands on its caption, a tall one in the middle of its cell.
        let (x, y) = (left + (SIDE - shown.width()) / 2, upper + SIDE - shown.height());
        imageops::replace(&mut sheet, &shown, x.into(), y.into());
        for (line, n) in caption.iter().zip(0u8..) {
            let x = left as f32 + (SIDE as f32 - text::width(line, CAPTION_HEIGHT)) / 2.0;
            let y = (upper + SIDE + CAPTION_GAP) as f32 + f32::from(n) * CAPTION_PITCH;
            text::draw(&mut sheet, line, (x, y), CAPTION_HEIGHT, INK);
        }
    }
    sheet
}

/// Draws the outline of a box, as far as it lies in the image, in a colour that few photos have.
pub fn frame(rgb: &mut RgbImage, cut: CropBox) {
    const OUTLINE: Rgb<u8> = Rgb([255, 0, 200]);
    let (width, height) = rgb.dimensions();
    // Seen on the sheet, where the longer side has 224 pixels.
    let thickness = i64::from(width.max(height).div_ceil(80));
    let (top, left) = (i64::from(cut.top), i64::from(cut.left));
    let (bottom, right) = (top + i64::from(cut.height), left + i64::from(cut.width));
    for (x, y, pixel) in rgb.enumerate_pixels_mut() {
        let (x, y) = (i64::from(x), i64::from(y));
        let inside = (left..right).contains(&x) && (top..bottom).contains(&y);
        let within = [x - left, y - top, right - 1 - x, bottom - 1 - y].into_iter().min() >= Some(thickness);
        if inside && !within {
            *pixel = OUTLINE;
        }
    }
}

fn enlarged(rgb: &RgbImage) -> RgbImage {
    let longer = rgb.width().max(rgb.height());
    let scaled = |side: u32| (f64::from(side) * f64::from(SIDE) / f64::from(longer)).round().max(1.0) as u32;
    imageops::resize(rgb, scaled(rgb.width()), scaled(rgb.height()), FilterType::Lanczos3)
}

/// A caption on one line where it fits, else broken before its «+», and after commas where it has none.
fn lines(caption: &str) -> Vec<String> {
    // A caption may reach into the gaps beside its tile, but not touch its neighbour's.
    let room = (SIDE + GAP / 2) as f32;
    let fits = |line: &str| text::width(line, CAPTION_HEIGHT) <= room;
    let broken: Vec<String> = match caption.find(" + ") {
        _ if fits(caption) => vec![caption.to_owned()],
        Some(plus) => vec![caption[..plus].to_owned(), caption[plus + 1..].to_owned()],
        None => caption.split_inclusive(", ").fold(Vec::new(), |mut lines: Vec<String>, part| {
            match lines.last_mut().filter(|last| fits(&format!("{last}{part}"))) {
                Some(last) => last.push_str(part),
                None => lines.push(part.to_owned()),
            }
            lines
        }),
    };
    broken.into_iter().map(|line| text::fit(line.trim_end(), CAPTION_HEIGHT, room)).collect()
}

/// What a row is made of: «70 % French horn + 30 % tench», in whole percents that sum to 100.
///
/// A share that rounds to 0 % is left out, and the other name stands alone.
pub fn caption(lambda: f32, own: &str, partner: &str) -> String {
    match (lambda.clamp(0.0, 1.0) * 100.0).round() as u8 {
        100 => own.to_owned(),
        0 => partner.to_owned(),
        share => format!("{share} % {own} + {} % {partner}", 100 - share),
    }
}

/// The first `max` rows of a batch as tiles; `class_name` names a label.
///
/// Floating-point batches are taken back to pixels as `255·(x·std + mean)`, rounded and clamped to 0..=255; u8 batches
/// hold pixels already.
pub fn tiles(
    view: &BatchView<'_>,
    mean: [f32; 3],
    std: [f32; 3],
    class_name: &dyn Fn(i64) -> String,
    max: usize,
) -> Vec<Tile> {
    let size = view.image_size;
    let value = |at: usize, channel: usize| -> u8 {
        let bytes = &view.x[at * view.dtype.bytes()..][..view.dtype.bytes()];
        let normalised = match (view.dtype, bytes) {
            (Dtype::F32, &[a, b, c, d]) => f32::from_ne_bytes([a, b, c, d]),
            (Dtype::F16, &[a, b]) => f16::from_ne_bytes([a, b]).to_f32(),
            (Dtype::Bf16, &[a, b]) => bf16::from_ne_bytes([a, b]).to_f32(),
            _ => return bytes[0],
        };
        // The cast saturates: that is the clamp.
        ((normalised * std[channel] + mean[channel]) * 255.0).round() as u8
    };
    let tile = |row: usize| {
        let first = row * size.values();
        let rgb = RgbImage::from_fn(size.width, size.height, |x, y| {
            let position = y as usize * size.width as usize + x as usize;
            Rgb([0, 1, 2].map(|channel| match view.layout {
                Layout::Nchw => value(first + channel * size.pixels() + position, channel),
                Layout::Nhwc => value(first + position * 3 + channel, channel),
            }))
        });
        let [own, partner] = [view.label_a[row], view.label_b[row]].map(class_name);
        // A row that is its own partner shows one image, whatever its λ.
        let lambda = if view.sample_id[row] == view.partner_id[row] { 1.0 } else { view.lambda[row] };
        Tile { rgb, caption: caption(lambda, &own, &partner) }
    };
    (0..view.len().min(max)).map(tile).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ImageSize;

    const MEAN: [f32; 3] = [0.47, 0.48, 0.45];
    const STD: [f32; 3] = [0.29, 0.28, 0.30];
    const SIZE: ImageSize = ImageSize { height: 3, width: 5 };

    /// Two images in all of whose places and channels other values stand.
    fn pixel(row: usize, x: u32, y: u32, channel: usize) -> u8 {
        ((row * 45 + y as usize * 15 + x as usize * 3 + channel) * 37 % 256) as u8
    }

    fn bytes(dtype: Dtype, layout: Layout) -> Vec<u8> {
        let mut places = Vec::new();
        for row in 0..2 {
            match layout {
                Layout::Nchw => places
                    .extend((0..3).flat_map(|c| {
                        (0..SIZE.height).flat_map(move |y| (0..SIZE.width).map(move |x| (row, x, y, c)))
                    })),
                Layout::Nhwc => places.extend(
                    (0..SIZE.height)
                        .flat_map(|y| (0..SIZE.width).flat_map(move |x| (0..3).map(move |c| (row, x, y, c)))),
                ),
            }
        }
        let element = |(row, x, y, c): (usize, u32, u32, usize)| {
            let level = pixel(row, x, y, c);
            let normalised = (f32::from(level) / 255.0 - MEAN[c]) / STD[c];
            match dtype {
                Dtype::F32 => normalised.to_ne_bytes().to_vec(),
                Dtype::F16 => f16::from_f32(normalised).to_ne_bytes().to_vec(),
                Dtype::Bf16 => bf16::from_f32(normalised).to_ne_bytes().to_vec(),
                Dtype::U8 => vec![level],
            }
        };
        places.into_iter().flat_map(element).collect()
    }

    fn view(x: &[u8], dtype: Dtype, layout: Layout) -> BatchView<'_> {
        BatchView {
            x,
            x_on_device: None,
            dtype,
            layout,
            image_size: SIZE,
            columns: Columns {
                label_a: &[7, 8],
                label_b: &[8, 8],
                lambda: &[0.7, 1.0],
                partner: &[1, 1],
                sample_id: &[0, 1],
                partner_id: &[1, 1],
                ..Columns::default()
            },
            head: Head { batches: 1, ..Head::default() },
        }
    }

    #[test]
    fn tiles_are_the_pixels_before_normalisation() {
        for &dtype in Dtype::ALL {
            for &layout in Layout::ALL {
                let x = bytes(dtype, layout);
                let found = tiles(&view(&x, dtype, layout), MEAN, STD, &|class| format!("c{class}"), 16);
                assert_eq!(found.iter().map(|tile| &*tile.caption).collect::<Vec<_>>(), ["70 % c7 + 30 % c8", "c8"]);
                // bfloat16 has 8 bits for a range that takes more than 256 levels; all others are exact.
                let slack = u8::from(dtype == Dtype::Bf16);
                for (row, tile) in found.iter().enumerate() {
                    assert_eq!(tile.rgb.dimensions(), (SIZE.width, SIZE.height));
                    for (px, py, rgb) in tile.rgb.enumerate_pixels() {
                        for channel in 0..3 {
                            let off = rgb.0[channel].abs_diff(pixel(row, px, py, channel));
                            assert!(off <= slack, "{dtype} {layout}: row {row}, ({px}, {py}), channel {channel}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn values_beyond_the_pixels_are_clamped_and_rows_beyond_max_left_out() {
        let mut x = bytes(Dtype::F32, Layout::Nchw);
        x[..4].copy_from_slice(&100f32.to_ne_bytes());
        x[4..8].copy_from_slice(&(-100f32).to_ne_bytes());
        let found = tiles(&view(&x, Dtype::F32, Layout::Nchw), MEAN, STD, &|_| String::new(), 1);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].rgb[(0, 0)].0[0], found[0].rgb[(1, 0)].0[0]), (255, 0));
    }

    #[test]
    fn caption_shares_sum_to_a_hundred() {
        assert_eq!(caption(0.7, "French horn", "tench"), "70 % French horn + 30 % tench");
        assert_eq!(caption(0.996, "French horn", "tench"), "French horn");
        assert_eq!(caption(1.0, "tench", "tench"), "tench");
        assert_eq!(caption(0.7, "tench", "tench"), "70 % tench + 30 % tench");
        assert_eq!(caption(0.994, "a", "b"), "99 % a + 1 % b");
        assert_eq!(caption(0.001, "a", "b"), "b");
        for thousandth in 6..995 {
            let text = caption(thousandth as f32 / 1000.0, "a", "b");
            let shares: Vec<u32> = text.split(' ').filter_map(|word| word.parse().ok()).collect();
            assert_eq!((shares.len(), shares.iter().sum()), (2, 100), "{text}");
        }
    }

    #[test]
    fn caption_that_does_not_fit_breaks_before_the_plus() {
        assert_eq!(lines("70 % cat + 30 % dog"), ["70 % cat + 30 % dog"]);
        let two = lines("70 % English springer + 30 % cassette player");
        assert_eq!(two, ["70 % English springer", "+ 30 % cassette player"]);
        assert!(lines(&"long ".repeat(20))[0].ends_with('…'));
        let three = lines("brightness 1.23, gaussian_blur 0.85, translate_x -12, rotate 9");
        assert_eq!(three, ["brightness 1.23,", "gaussian_blur 0.85,", "translate_x -12, rotate 9"]);
    }

    #[test]
    fn a_frame_is_the_box_s_outline_inside_the_image() {
        let mut rgb = RgbImage::new(80, 60);
        frame(&mut rgb, CropBox { top: 10, left: -3, height: 20, width: 33 });
        let drawn = |x, y| rgb[(x, y)].0 != [0, 0, 0];
        assert!(drawn(0, 10) && drawn(29, 10) && drawn(29, 29) && drawn(5, 29) && drawn(29, 20));
        assert!(!drawn(0, 20) && !drawn(30, 20) && !drawn(5, 9) && !drawn(5, 30) && !drawn(15, 15));
    }

    #[test]
    fn grid_is_nearly_square_and_shows_every_tile() {
        let colours: Vec<_> = (0..12u8).map(|i| Rgb([i * 20, 255 - i * 20, 99])).collect();
        let tile = |colour: &Rgb<u8>| Tile { rgb: RgbImage::from_pixel(128, 128, *colour), caption: "a".into() };
        let sheet = grid("a batch", &colours.iter().map(tile).collect::<Vec<_>>());
        assert!((0.8..1.35).contains(&(f64::from(sheet.width()) / f64::from(sheet.height()))));
        for colour in colours {
            assert_eq!(sheet.pixels().filter(|pixel| **pixel == colour).count(), (SIDE * SIDE) as usize);
        }
        // Neither a sheet without tiles nor tiles that are not square are trouble.
        grid("", &[]);
        grid("odd", &[Tile { rgb: RgbImage::new(300, 1), caption: String::new() }]);
    }
}

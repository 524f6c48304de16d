//! How a picture lies in its file: the eight orientations of Exif and TIFF.

use super::Picture;
#[cfg(any(test, feature = "turbojpeg"))]
use super::RegionOf;
use crate::types::{CropBox, ImageSize};

/// Exif's tag 274: which turn, or mirrored turn, shows the picture upright.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Orientation(u8);

/// Pixels a side of the tiles in which a picture is transposed, so that both of its ways through memory stay in the cache.
const TILE: usize = 32;

impl Orientation {
    /// As it lies in the file.
    pub const UPRIGHT: Self = Self(0);

    /// The orientation of this number, 1 to 8; any other number means upright.
    pub fn of_number(number: u64) -> Self {
        match number {
            1..=8 => Self(number as u8 - 1),
            _ => Self::UPRIGHT,
        }
    }

    /// Whether the picture is left as it is.
    pub fn is_upright(self) -> bool {
        self == Self::UPRIGHT
    }

    /// This one, or where that is upright the other.
    pub fn or(self, other: Self) -> Self {
        if self.is_upright() { other } else { self }
    }

    /// Whether rows become columns: 5 to 8.
    fn transposes(self) -> bool {
        self.0 >= 4
    }

    /// The size of the upright picture; also the file's size, by the upright one.
    pub fn size(self, size: ImageSize) -> ImageSize {
        let ImageSize { height, width } = size;
        if self.transposes() { ImageSize { height: width, width: height } } else { size }
    }

    /// Where the upright picture's first pixel lies in the file's picture, and the steps there to the pixels on its right and below.
    fn walk(self, height: isize, width: isize) -> (isize, isize, isize) {
        let (right, below) = (width - 1, (height - 1) * width);
        match self.0 {
            0 => (0, 1, width),
            1 => (right, -1, width),
            2 => (below + right, -1, -width),
            3 => (below, 1, -width),
            4 => (0, width, 1),
            5 => (below, -width, 1),
            6 => (below + right, -width, -1),
            _ => (right, width, -1),
        }
    }

    /// The box in the file's picture, of the file's `size`, that a box of the upright picture shows.
    #[cfg(any(test, feature = "turbojpeg"))]
    fn box_in_file(self, upright: CropBox, size: ImageSize) -> CropBox {
        let CropBox { top, left, height, width } = upright;
        let (down, across, height, width) =
            if self.transposes() { (left, top, width, height) } else { (top, left, height, width) };
        // From the file's top, or from its bottom; from its left, or from its right.
        let (from_bottom, from_right) = match self.0 {
            0 | 4 => (false, false),
            1 | 7 => (false, true),
            2 | 6 => (true, true),
            _ => (true, false),
        };
        let mirrored = |start: i32, length: u32, whole: u32| whole as i32 - start - length as i32;
        let top = if from_bottom { mirrored(down, height, size.height) } else { down };
        let left = if from_right { mirrored(across, width, size.width) } else { across };
        CropBox { top, left, height, width }
    }

    /// Runs `decode` with the callback that it gives the file's size, for one that knows the upright picture alone. Also the last
    /// answer: the box of the upright picture.
    #[cfg(any(test, feature = "turbojpeg"))]
    pub fn with_region<T>(
        self,
        region: Option<RegionOf<'_>>,
        decode: impl FnOnce(Option<RegionOf<'_>>) -> T,
    ) -> (T, Option<CropBox>) {
        let Some(region) = region else { return (decode(None), None) };
        let asked = std::cell::Cell::new(None);
        let in_file = |size: ImageSize| {
            let upright = region(self.size(size));
            asked.set(upright);
            upright.map(|upright| self.box_in_file(upright, size))
        };
        (decode(Some(&in_file)), asked.get())
    }

    /// Writes the upright picture of `from`, whose rows are contiguous, to `to`: all of it, or at least this box of it.
    ///
    /// # Panics
    /// When the box reaches beyond the picture, or `to` is too short.
    pub fn turn(self, from: &Picture<'_>, region: Option<CropBox>, to: &mut [u8]) {
        match from.channels {
            1 => self.turn_pixels::<1>(from, region, to),
            _ => self.turn_pixels::<3>(from, region, to),
        }
    }

    fn turn_pixels<const CHANNELS: usize>(self, from: &Picture<'_>, region: Option<CropBox>, to: &mut [u8]) {
        let size = self.size(from.size());
        let all = CropBox { top: 0, left: 0, height: size.height, width: size.width };
        let CropBox { top, left, height, width } = region.unwrap_or(all);
        let [top, left] = [top, left].map(|pixels| usize::try_from(pixels).expect("the box lies in the picture"));
        let [height, width] = [height, width].map(|pixels| pixels as usize);
        let (first, right, down) = self.walk(from.height as isize, from.width as isize);
        let row_values = size.width as usize * CHANNELS;
        for y_tile in (top..top + height).step_by(TILE) {
            for x_tile in (left..left + width).step_by(TILE) {
                for y in y_tile..(y_tile + TILE).min(top + height) {
                    let row = &mut to[y * row_values..][..row_values];
                    for x in x_tile..(x_tile + TILE).min(left + width) {
                        let at = (first + y as isize * down + x as isize * right) as usize * CHANNELS;
                        row[x * CHANNELS..][..CHANNELS].copy_from_slice(&from.values[at..][..CHANNELS]);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The upright picture by Pillow's names of the eight orientations, of pixels in rows.
    pub fn naive(orientation: u64, rows: &[Vec<u32>]) -> Vec<Vec<u32>> {
        let mirrored = |rows: &[Vec<u32>]| -> Vec<Vec<u32>> {
            rows.iter().map(|row| row.iter().rev().copied().collect()).collect()
        };
        let flipped = |rows: &[Vec<u32>]| -> Vec<Vec<u32>> { rows.iter().rev().cloned().collect() };
        let transposed = |rows: &[Vec<u32>]| -> Vec<Vec<u32>> {
            (0..rows[0].len()).map(|x| rows.iter().map(|row| row[x]).collect()).collect()
        };
        match orientation {
            2 => mirrored(rows),
            3 => mirrored(&flipped(rows)),
            4 => flipped(rows),
            5 => transposed(rows),
            6 => mirrored(&transposed(rows)),
            7 => mirrored(&flipped(&transposed(rows))),
            8 => flipped(&transposed(rows)),
            _ => rows.to_vec(),
        }
    }

    #[test]
    fn each_orientation_is_turned_as_pillow_turns_it() {
        for (height, width) in [(1, 1), (1, 7), (3, 5), (40, 33), (64, 70)] {
            let rows: Vec<Vec<u32>> = (0..height).map(|y| (0..width).map(|x| y * width + x).collect()).collect();
            for channels in [1, 3] {
                let values: Vec<u8> = rows
                    .concat()
                    .iter()
                    .flat_map(|pixel| (0..channels).map(move |channel| (pixel * 7 + channel as u32) as u8))
                    .collect();
                let picture = Picture::new(width, height, channels, &values);
                for number in 0..=9 {
                    let orientation = Orientation::of_number(number);
                    let expected = naive(number, &rows);
                    let size = orientation.size(picture.size());
                    assert_eq!((size.height as usize, size.width as usize), (expected.len(), expected[0].len()));
                    let mut turned = vec![0; values.len()];
                    orientation.turn(&picture, None, &mut turned);
                    for (nth, pixel) in expected.concat().iter().enumerate() {
                        let from = &values[*pixel as usize * channels..][..channels];
                        assert_eq!(&turned[nth * channels..][..channels], from, "{number}: {height}x{width}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_box_of_the_upright_picture_is_found_in_the_file() {
        let (height, width) = (5_u32, 7_u32);
        let rows: Vec<Vec<u32>> = (0..height).map(|y| (0..width).map(|x| y * width + x).collect()).collect();
        let values: Vec<u8> = (0..height * width).map(|pixel| pixel as u8).collect();
        for number in 1..=8 {
            let orientation = Orientation::of_number(number);
            let upright = naive(number, &rows);
            let size = orientation.size(ImageSize { height, width });
            let asked = CropBox { top: 1, left: 2, height: size.height - 3, width: size.width - 3 };
            let region = |of: ImageSize| {
                assert_eq!(of, size);
                Some(asked)
            };
            let (in_file, kept) =
                orientation.with_region(Some(&region), |region| region.unwrap()(ImageSize { height, width }).unwrap());
            assert_eq!(kept, Some(asked));
            let shown = |rows: &[Vec<u32>], at: CropBox| {
                let CropBox { top, left, height, width } = at;
                let lines = &rows[top as usize..][..height as usize];
                let mut pixels: Vec<u32> =
                    lines.iter().flat_map(|line| &line[left as usize..][..width as usize]).copied().collect();
                pixels.sort_unstable();
                pixels
            };
            assert_eq!(shown(&rows, in_file), shown(&upright, asked), "orientation {number}");
            // Only the box is written, and rightly.
            let mut turned = vec![255; values.len()];
            orientation.turn(&Picture::new(width, height, 1, &values), Some(asked), &mut turned);
            for (nth, pixel) in upright.concat().iter().enumerate() {
                let (y, x) = (nth as u32 / size.width, nth as u32 % size.width);
                let inside = y > 0 && y <= asked.height && x > 1 && x < 2 + asked.width;
                assert_eq!(turned[nth], if inside { *pixel as u8 } else { 255 }, "orientation {number}");
            }
        }
    }
}

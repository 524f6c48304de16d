//! Resizing by fast_image_resize: 16-bit weights, near Pillow but not equal to it.

use super::axis::Key;
use super::copy::copy;
use super::level::Level;
use crate::decode::Picture;
use crate::types::Interpolation;
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::{InnerPixel, U8, U8x3};
use fast_image_resize::{FilterType, PixelTrait, ResizeAlg, ResizeOptions, Resizer};

/// Scratch for resizing.
#[derive(Default)]
pub struct Fast {
    resizer: Resizer,
    /// The picture without gaps between its rows, so that filters do not reach beyond it.
    boxed: Vec<u8>,
    /// What the window shows of the resized picture, interleaved.
    visible: Vec<u8>,
}

impl Fast {
    /// Whether it can do both axes. A cubic is 0 at distance 1, so that an output which begins a window may read later inputs than those after
    /// it; fast_image_resize 6.1 takes the first output's first input for the smallest, and reads outside its memory.
    pub fn supports(across: &Key, down: &Key) -> bool {
        let whole = |key: &Key| key.window.visible() == (0..key.window.resized);
        across.interpolation == Interpolation::Bilinear || whole(across) && whole(down)
    }

    /// Resizes `picture` along both axes into the first `picture.channels` planes of `out`.
    pub fn run(&mut self, picture: &Picture<'_>, across: &Key, down: &Key, level: Level, out: &mut [u8]) {
        let contiguous = picture.width as usize * picture.height as usize * picture.channels;
        let mut whole = *picture;
        if picture.stride == picture.width {
            whole.values = &picture.values[..contiguous];
        } else {
            self.boxed.clear();
            picture.rows().for_each(|row| self.boxed.extend_from_slice(row));
            (whole.values, whole.stride) = (&self.boxed, picture.width);
        }
        let (columns, rows) = (across.window.visible(), down.window.visible());
        let (width, height) = (columns.len() as u32, rows.len() as u32);
        self.visible.resize(width as usize * height as usize * picture.channels, 0);
        // The part of the picture that becomes visible; filters still reach beyond this part.
        let part = |key: &Key, visible: &std::ops::Range<u32>| {
            let (whole, resized) = (f64::from(key.eighths) / 8.0, f64::from(key.window.resized));
            let edge = |at: u32| if at == key.window.resized { whole } else { f64::from(at) * (whole / resized) };
            let (start, end) = (edge(visible.start), edge(visible.end));
            (start, end - start)
        };
        let ((left, part_width), (top, part_height)) = (part(across, &columns), part(down, &rows));
        let filter = match across.interpolation {
            Interpolation::Bilinear => FilterType::Bilinear,
            Interpolation::Bicubic => FilterType::CatmullRom,
        };
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter)).use_alpha(false).crop(
            left,
            top,
            part_width,
            part_height,
        );
        match picture.channels {
            1 => resize::<U8>(&mut self.resizer, &whole, &options, width, height, &mut self.visible),
            _ => resize::<U8x3>(&mut self.resizer, &whole, &options, width, height, &mut self.visible),
        }
        let visible = Picture::new(width, height, picture.channels, &self.visible);
        copy(&visible, (rows.start, columns.start), &across.window, &down.window, level, out);
    }

    /// Frees scratch above `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        for scratch in [&mut self.boxed, &mut self.visible] {
            if scratch.capacity() > bytes {
                *scratch = Vec::new();
            }
        }
        if self.resizer.size_of_internal_buffers() > bytes {
            self.resizer.reset_internal_buffers();
        }
    }
}

fn resize<P>(
    resizer: &mut Resizer,
    picture: &Picture<'_>,
    options: &ResizeOptions,
    width: u32,
    height: u32,
    out: &mut [u8],
) where
    P: InnerPixel + PixelTrait + Default,
{
    let from = TypedImageRef::<P>::from_buffer(picture.width, picture.height, picture.values).expect("sizes agree");
    let mut to = TypedImage::<P>::from_buffer(width, height, out).expect("sizes agree");
    resizer.resize_typed(&from, &mut to, options).expect("both images have pixels");
}

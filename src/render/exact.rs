//! The integer resize of docs/spec/pixels.md#resize, which is Pillow's (up to 11.3) to the bit: 22-bit weights, along the rows first,
//! the result as u8, then along the columns. Bilinear and bicubic; only the outputs of the window, and only the inputs that these read.
//!
//! A weight has too many bits for the multiplications of 16-bit pairs that processors are fast at. So it is split, `w = 2¹¹·high + low`,
//! and so is the sum: `Σ w·u = 2¹¹·Σ high·u + Σ low·u`, still exact. Between the passes channels lie in planes, where they stay.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calls functions compiled for an instruction set that was detected at run time")
)]

use super::axis::{Axes, Axis, Key};
use super::level::Level;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::decode::Picture;

/// Rows that any level resizes together.
const ROWS_MAX: usize = 8;

/// Scratch of the two passes, and the weights of axes that were seen.
pub struct Exact {
    level: Level,
    axes: Axes,
    /// Rows that were resized along themselves: for each row of the picture its channels, one after the other.
    narrow: Vec<u8>,
    /// The last rows of a picture, with room for loads that reach beyond them.
    #[cfg(target_arch = "x86_64")]
    tail: Vec<u8>,
}

impl Exact {
    /// Without scratch as yet.
    ///
    /// # Panics
    /// When the machine lacks `level`.
    pub fn new(level: Level) -> Self {
        assert!(Level::available().contains(&level), "this machine lacks {level:?}");
        Self {
            level,
            axes: Axes::new(level),
            narrow: Vec::new(),
            #[cfg(target_arch = "x86_64")]
            tail: Vec::new(),
        }
    }

    /// Resizes `picture` along both axes into the first `picture.channels` planes of `out`.
    pub fn run(&mut self, picture: &Picture<'_>, across: &Key, down: &Key, out: &mut [u8]) {
        let (across, down) = self.axes.get(across, down);
        let picture = picture.crop(down.start as u32, across.start as u32, down.inputs as u32, across.inputs as u32);
        let narrow_row = across.outputs() * picture.channels;
        let bytes = narrow_row * down.inputs.next_multiple_of(ROWS_MAX);
        if self.narrow.len() < bytes {
            self.narrow.resize(bytes, 0);
        }
        let narrow = &mut self.narrow[..bytes];
        #[cfg(target_arch = "x86_64")]
        if self.level.has_avx2() {
            // SAFETY: `new` checked that the machine has the features; blocks are built on their level only.
            unsafe {
                if across.blocks.suit(picture.channels) {
                    if avx512::suits_columns(across.outputs(), down) {
                        return avx512::resize(&picture, across, down, narrow, out);
                    }
                    avx512::along_rows(&picture, across, 0..down.inputs, narrow);
                } else if picture.channels == 3 && across.outputs() >= 4 {
                    avx2::along_rows(&picture, across, narrow, &mut self.tail);
                } else {
                    along_rows(&picture, across, narrow);
                }
                match across.outputs() {
                    32.. => avx2::along_columns(narrow, across.outputs(), picture.channels, down, out),
                    _ => along_columns(narrow, across.outputs(), picture.channels, down, out),
                }
            }
            return;
        }
        along_rows(&picture, across, narrow);
        along_columns(narrow, across.outputs(), picture.channels, down, out);
    }

    /// Frees scratch above `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        for scratch in [
            &mut self.narrow,
            #[cfg(target_arch = "x86_64")]
            &mut self.tail,
        ] {
            if scratch.capacity() > bytes {
                *scratch = Vec::new();
            }
        }
        self.axes.shrink_to(bytes / 64);
    }
}

/// The first pass, for any processor.
fn along_rows(picture: &Picture<'_>, axis: &Axis, narrow: &mut [u8]) {
    let channels = picture.channels;
    for (row, narrow) in picture.rows().zip(narrow.chunks_exact_mut(axis.outputs() * channels)) {
        for (channel, plane) in narrow.chunks_exact_mut(axis.outputs()).enumerate() {
            for (output, value) in plane.iter_mut().enumerate() {
                *value = axis.apply(output, |input| row[input * channels + channel]);
            }
        }
    }
}

/// The second pass, for any processor.
fn along_columns(narrow: &[u8], width: usize, channels: usize, axis: &Axis, out: &mut [u8]) {
    for (channel, plane) in out.chunks_exact_mut(width * axis.outputs()).take(channels).enumerate() {
        for (output, row) in plane.chunks_exact_mut(width).enumerate() {
            for (x, value) in row.iter_mut().enumerate() {
                *value = axis.apply(output, |input| narrow[(input * channels + channel) * width + x]);
            }
        }
    }
}

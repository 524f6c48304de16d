//! Rendering without a resize: the window's pixels are copied into planes, with padding and flip.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calls a function compiled for an instruction set that was detected at run time")
)]

use super::level::Level;
use super::window::Window;
use crate::decode::Picture;

/// Copies what the windows show into the first `picture.channels` planes of `out`. The first pixel of `picture` is the row and column `origin` of
/// the resized image, and `picture` holds all that the windows show of it.
pub fn copy(picture: &Picture<'_>, origin: (u32, u32), across: &Window, down: &Window, level: Level, out: &mut [u8]) {
    let (width, channels) = (across.outputs as usize, picture.channels);
    let plane = width * down.outputs as usize;
    // Of the outputs before flipping: those that show the image itself, neither padded nor mirrored.
    let end = (i64::from(across.resized) - i64::from(across.start)).clamp(0, i64::from(across.outputs)) as usize;
    let begin = (-i64::from(across.start)).clamp(0, end as i64) as usize;
    let shown = if across.flip { width - end..width - begin } else { begin..end };
    for y in 0..down.outputs {
        let at = y as usize * width;
        let Some(row) = down.pixel(y) else {
            (0..channels).for_each(|channel| out[channel * plane + at..][..width].fill(0));
            continue;
        };
        let row = picture.row((row - origin.0) as usize);
        if !shown.is_empty() {
            let first = (i64::from(across.start) + begin as i64 - i64::from(origin.1)) as usize;
            let row = &row[first * channels..][..shown.len() * channels];
            if channels == 3 {
                let (red, rest) = out.split_at_mut(plane);
                let (green, blue) = rest.split_at_mut(plane);
                let planes = [red, green, blue].map(|plane| &mut plane[at..][shown.clone()]);
                deinterleave(row, across.flip, level, planes);
            } else {
                let to = &mut out[at..][shown.clone()];
                to.copy_from_slice(row);
                if across.flip {
                    to.reverse();
                }
            }
        }
        for x in (0..shown.start).chain(shown.end..width) {
            for channel in 0..channels {
                let pixel = across.pixel(x as u32).map(|pixel| (pixel - origin.1) as usize);
                out[channel * plane + at + x] = pixel.map_or(0, |pixel| row[pixel * channels + channel]);
            }
        }
    }
}

/// From interleaved pixels to planes, in reverse order or not.
fn deinterleave(row: &[u8], flip: bool, level: Level, planes: [&mut [u8]; 3]) {
    #[cfg(target_arch = "x86_64")]
    if level.has_avx2() && planes[0].len() >= 16 {
        // SAFETY: a renderer of this level exists only where the machine has the feature.
        unsafe { super::avx2::deinterleave(row, flip, planes) };
        return;
    }
    let _ = level;
    let [red, green, blue] = planes;
    for (((pixel, r), g), b) in row.chunks_exact(3).zip(&mut *red).zip(&mut *green).zip(&mut *blue) {
        (*r, *g, *b) = (pixel[0], pixel[1], pixel[2]);
    }
    if flip {
        [red, green, blue].into_iter().for_each(<[u8]>::reverse);
    }
}

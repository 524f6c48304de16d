//! What a row is made of before its values are mixed: its own image and its partner's, flipped as the plan says, and CutMix's box.

use super::level::Level;
use super::lines::lines;
use crate::mix::Row;
use crate::types::ImageSize;

/// Whether the own image differs from its sample.
pub fn changes_own(row: &Row<'_>) -> bool {
    row.flip || row.cut.is_some()
}

/// Writes values `first..first + out.len()` of a channel's plane of the own image: flipped, with the partner's box in it.
pub fn own(level: Level, row: &Row<'_>, size: ImageSize, channel: usize, first: usize, out: &mut [u8]) {
    plane(level, row.own.bytes, row.flip, size, channel, first, out);
    let (Some(cut), width) = (row.cut, size.width as usize) else { return };
    for (line, columns, at) in lines(width, first, out.len()) {
        if (cut.top as usize..cut.bottom as usize).contains(&line) {
            let (left, right) = (columns.start.max(cut.left as usize), columns.end.min(cut.right as usize));
            if left < right {
                let to = &mut out[at + left - columns.start..][..right - left];
                plane(level, row.partner.bytes, row.partner_flip, size, channel, line * width + left, to);
            }
        }
    }
}

/// The same of the partner's image.
pub fn partner(level: Level, row: &Row<'_>, size: ImageSize, channel: usize, first: usize, out: &mut [u8]) {
    plane(level, row.partner.bytes, row.partner_flip, size, channel, first, out);
}

/// Copies values of a channel of a sample, each line from right to left if `flip`.
fn plane(level: Level, sample: &[u8], flip: bool, size: ImageSize, channel: usize, first: usize, out: &mut [u8]) {
    let (width, plane) = (size.width as usize, &sample[channel * size.pixels()..][..size.pixels()]);
    match flip {
        false => out.copy_from_slice(&plane[first..first + out.len()]),
        true => level.flip(plane, width, first, out),
    }
}

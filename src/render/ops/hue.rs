//! Hue rotation, bit-exact with Pillow's round trip through 8-bit HSV, but in f32 and with fewer divisions. `hues_match_naive` compares every color.
#![expect(unsafe_code, reason = "calls functions compiled for instruction sets that were detected at run time")]

use super::color::{channels, truncated};
use crate::render::each_level::each_level;
use crate::render::level::Level;

/// Pixels that are turned together.
const BLOCK: usize = 64;

/// A channel of them.
type Bytes = [u8; BLOCK];

each_level! {
    /// Turns the hue of `planes`, u8 `[3, H, W]`, by `shift` 256ths of a full turn.
    pub fn turn(planes: &mut [u8], shift: u8) {
        let [red, green, blue] = channels(planes);
        for ((red, green), blue) in red.chunks_mut(BLOCK).zip(green.chunks_mut(BLOCK)).zip(blue.chunks_mut(BLOCK)) {
            if let (Ok(red), Ok(green), Ok(blue)) =
                (<&mut Bytes>::try_from(&mut *red), <&mut Bytes>::try_from(&mut *green), <&mut Bytes>::try_from(&mut *blue))
            {
                turn_block([red, green, blue], shift);
                continue;
            }
            let mut block = [[0; BLOCK]; 3];
            let rest = [red, green, blue];
            block.iter_mut().zip(&rest).for_each(|(block, rest)| block[..rest.len()].copy_from_slice(rest));
            let [red, green, blue] = &mut block;
            turn_block([red, green, blue], shift);
            rest.into_iter().zip(&block).for_each(|(rest, block)| rest.copy_from_slice(&block[..rest.len()]));
        }
    }
}

#[inline(always)]
fn turn_block([red, green, blue]: [&mut Bytes; 3], shift: u8) {
    // RGB to max, max − mid, max − min, and the hue's sector: the corner of the color wheel, in sixths, and whether the hue lies before it.
    let (mut top, mut range, mut below, mut corner, mut falls) =
        ([0; BLOCK], [0; BLOCK], [0; BLOCK], [0_i8; BLOCK], [false; BLOCK]);
    for at in 0..BLOCK {
        let (r, g, b) = (red[at], green[at], blue[at]);
        let (max, min) = (r.max(g).max(b), r.min(g).min(b));
        let middle = r ^ g ^ b ^ max ^ min;
        (top[at], range[at], below[at]) = (max, max - min, max - middle);
        let last = if r == max {
            b
        } else if g == max {
            r
        } else {
            g
        };
        falls[at] = last == min;
        let (falling, rising) = if r == max {
            (1, -1)
        } else if g == max {
            (3, 1)
        } else {
            (5, 3)
        };
        corner[at] = if falls[at] { falling } else { rising };
    }
    // Hue and saturation in 8 bits, rotated, then back to the max, min and middle channel of the new sector.
    let (mut least, mut middle, mut sixth) = ([0; BLOCK], [0; BLOCK], [0; BLOCK]);
    for at in 0..BLOCK {
        let (max, range) = (f32::from(top[at]), f32::from(range[at]));
        // NaN for gray pixels, which `truncated` turns into hue 0; their saturation is 0.
        let part = f32::from(below[at]) / range;
        let sixths = f32::from(corner[at]) + if falls[at] { -part } else { part };
        let turn = sixths / 6.0;
        let turn = if turn < 0.0 { 1.0 + turn } else { turn };
        let hue = truncated(turn * 255.0).wrapping_add(shift);
        let saturation = f32::from(truncated(range / max * 255.0));
        // Correctly rounded division by 255: the reciprocal is split so that the product with its high part is exact.
        let quotient = |number: f32, high: f32, low: f32| number * high + number * low;
        let sixths = quotient(hue.into(), 1_542.0 / 65_536.0, 6.0 / 255.0 / 65_536.0);
        let saturation = quotient(saturation, 257.0 / 65_536.0, 1.0 / 255.0 / 65_536.0);
        let whole = truncated(sixths);
        let part = sixths - f32::from(whole);
        let part = if whole & 1 == 1 { part } else { 1.0 - part };
        least[at] = truncated((max * (1.0 - saturation)).round());
        middle[at] = truncated((max * (1.0 - saturation * part)).round());
        // 6 is a full turn.
        sixth[at] = if whole == 6 { 0 } else { whole };
    }
    for at in 0..BLOCK {
        let (max, least, middle, sixth) = (top[at], least[at], middle[at], sixth[at]);
        // Masks instead of branches: LLVM would compile a `match` to a jump table.
        let mask = |[one, other]: [u8; 2]| 0_u8.wrapping_sub((sixth == one || sixth == other).into());
        let pick = |max_in: [u8; 2], middle_in: [u8; 2]| {
            let (is_max, is_middle) = (mask(max_in), mask(middle_in));
            (max & is_max) | (middle & is_middle) | (least & !(is_max | is_middle))
        };
        red[at] = pick([5, 0], [1, 4]);
        green[at] = pick([1, 2], [3, 0]);
        blue[at] = pick([3, 4], [5, 2]);
    }
}

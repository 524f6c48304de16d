//! Turning the hue, as Pillow does by way of HSV in bytes: its results, in f32 and in fewer divisions. That they are the same for every colour was
//! looked at (`hues_match_naive` turns each).
#![expect(unsafe_code, reason = "calls functions compiled for instruction sets that were detected at run time")]

use super::color::{channels, truncated};
use super::each_level::each_level;
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
    // Of the three channels: the greatest, its distances from the middle one and from the least, and from which corner of the colour wheel,
    // counted in sixths, the middle one leads away, and in which direction.
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
    // What the channels become: one keeps the greatest value, one gets the least, one lies between, by the sixth that the hue lies in.
    let (mut least, mut middle, mut sixth) = ([0; BLOCK], [0; BLOCK], [0; BLOCK]);
    for at in 0..BLOCK {
        let (max, range) = (f32::from(top[at]), f32::from(range[at]));
        // No number for grays, which then have a hue of 0, and no saturation.
        let part = f32::from(below[at]) / range;
        let sixths = f32::from(corner[at]) + if falls[at] { -part } else { part };
        let turn = sixths / 6.0;
        let turn = if turn < 0.0 { 1.0 + turn } else { turn };
        let hue = truncated(turn * 255.0).wrapping_add(shift);
        let saturation = f32::from(truncated(range / max * 255.0));
        // Quotients by 255, rounded once, without a division: the reciprocal in two parts, of which the first makes no rounding.
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
        // By masks: compilers keep branches as branches.
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

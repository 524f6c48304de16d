//! Progressive images that lack scans: libjpeg-turbo 3 estimates the first coefficients of a block from the DC values of 5 × 5 blocks around it.

use super::frame::{Component, Frame, NATURAL};
use super::scan::Block;

/// Coefficients that are estimated where nothing but DC is known, after DC itself; of others, the first five.
const ESTIMATED: std::ops::Range<usize> = 1..10;

/// Weights of the blocks around for each of [`ESTIMATED`] in zigzag order, where only DC is known.
#[rustfmt::skip]
const FROM_DC_ALONE: [[i32; 25]; 9] = [
    [-1, -1, 0, 1, 1, -3, 13, 0, -13, 3, -3, 38, 0, -38, 3, -3, 13, 0, -13, 3, -1, -1, 0, 1, 1],
    [-1, -3, -3, -3, -1, -1, 13, 38, 13, -1, 0, 0, 0, 0, 0, 1, -13, -38, -13, 1, 1, 3, 3, 3, 1],
    [0, 0, 1, 0, 0, 0, 2, 7, 2, 0, 0, -5, -14, -5, 0, 0, 2, 7, 2, 0, 0, 0, 1, 0, 0],
    [-1, 0, 0, 0, 1, 0, 9, 0, -9, 0, 0, 0, 0, 0, 0, 0, -9, 0, 9, 0, 1, 0, 0, 0, -1],
    [0, 0, 0, 0, 0, 0, 2, -5, 2, 0, 1, 7, -14, 7, 1, 0, 2, -5, 2, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 1, 0, -1, 0, 0, 2, 0, -2, 0, 0, 1, 0, -1, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 1, -3, 1, 0, 0, 0, 0, 0, 0, 0, -1, 3, -1, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 1, 0, -1, 0, 0, -3, 0, 3, 0, 0, 1, 0, -1, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 1, 2, 1, 0, 0, 0, 0, 0, 0, 0, -1, -2, -1, 0, 0, 0, 0, 0, 0],
];

/// The same where some of them are known.
#[rustfmt::skip]
const BESIDE_OTHERS: [[i32; 25]; 5] = [
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -7, 50, 0, -50, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    [0, 0, -7, 0, 0, 0, 0, 50, 0, 0, 0, 0, 0, 0, 0, 0, 0, -50, 0, 0, 0, 0, 7, 0, 0],
    [0, 0, -1, 0, 0, 0, 0, 13, 0, 0, 0, 0, -24, 0, 0, 0, 0, 13, 0, 0, 0, 0, -1, 0, 0],
    [0, -1, 0, 1, 0, -1, 10, 0, -10, 1, 0, 0, 0, 0, 0, 1, -10, 0, 10, -1, 0, 1, 0, -1, 0],
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -1, 13, -24, 13, -1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
];

/// Weights for DC itself, where only DC is known: 256 together.
#[rustfmt::skip]
const DC: [i32; 25] = [-2, -6, -8, -6, -2, -6, 6, 42, 6, -6, -8, 42, 152, 42, -8, -6, 6, 42, 6, -6, -2, -6, -8, -6, -2];

/// Whether libjpeg smooths an image: DC values are there, and some coefficients that it estimates are not exact.
pub fn is_needed(frame: &Frame) -> bool {
    let can_be = |component: &Component| {
        let has_table = |table: &[u16; 64]| NATURAL[..ESTIMATED.end].iter().all(|at| table[usize::from(*at)] > 0);
        component.progress[0] >= 0 && component.table.as_ref().is_some_and(has_table)
    };
    let is_useful = |component: &Component| component.progress[ESTIMATED].iter().any(|bit| *bit != 0);
    frame.is_progressive && frame.components.iter().all(can_be) && frame.components.iter().any(is_useful)
}

/// The coefficients of a block of a component, with estimates where they are not known.
pub fn block(frame: &Frame, component: &Component, blocks: &[Block], [x, y]: [usize; 2]) -> Block {
    let (stride, at) = (component.stored[0], |x: usize, y: usize| component.first_block + y * component.stored[0] + x);
    let mut block = blocks[at(x, y)];
    let Some(table) = &component.table else { return block };
    let rows = rows(frame, component, y);
    let last = component.blocks[0] - 1;
    let around: [i64; 25] = std::array::from_fn(|near| {
        let column = (x + near % 5).saturating_sub(2).min(last);
        blocks[component.first_block + rows[near / 5] * stride + column][0].into()
    });
    let only_dc = component.progress[ESTIMATED].iter().all(|bit| *bit == -1);
    let kernels = if only_dc { &FROM_DC_ALONE[..] } else { &BESIDE_OTHERS[..] };
    let sum = |kernel: &[i32; 25]| {
        i64::from(table[0]) * kernel.iter().zip(&around).map(|(weight, dc)| i64::from(*weight) * dc).sum::<i64>()
    };
    for (kernel, number) in kernels.iter().zip(ESTIMATED) {
        let (place, known) = (usize::from(NATURAL[number]), component.progress[number]);
        if known != 0 && block[place] == 0 {
            // What is known of it is that its upper bits are zero.
            let largest = if known > 0 { (1 << known) - 1 } else { i64::MAX };
            block[place] = divided(sum(kernel), table[place], largest);
        }
    }
    if only_dc {
        block[0] = divided(sum(&DC), table[0], i64::MAX);
    }
    block
}

/// A sum of weights of 256 in units of a quantum, rounded, and its magnitude bounded.
fn divided(sum: i64, quantum: u16, largest: i64) -> i16 {
    let quantum = i64::from(quantum);
    let magnitude = (((quantum << 7) + sum.abs()) / (quantum << 8)).min(largest);
    (if sum < 0 { -magnitude } else { magnitude }) as i16
}

/// The rows of blocks from two above to two below one. At the image's edges they are repeated; in the last row of units libjpeg counts rows as if all
/// units were as high as those, and so repeats more.
fn rows(frame: &Frame, component: &Component, y: usize) -> [usize; 5] {
    let units = (frame.height as usize).div_ceil(8 * frame.down);
    let (unit, row) = (y / component.down, y % component.down);
    let in_last = match component.blocks[1] % component.down {
        0 => component.down,
        rest => rest,
    };
    let unit_rows = if unit + 1 == units { in_last } else { component.down };
    let (counted, count) = (unit * unit_rows + row, unit_rows * units);
    let above = if counted > 0 { y - 1 } else { y };
    let above_that = if counted > 1 { y - 2 } else { above };
    let below = if counted + 1 < count { y + 1 } else { y };
    let below_that = if counted + 2 < count { y + 2 } else { below };
    [above_that, above, y, below, below_that]
}

//! The inverse cosine transform of a block: libjpeg's accurate one in integers ("islow"), as its vector code computes it, which wraps and saturates at
//! 16 bits where damaged files have values that large.

use super::scan::Block;

/// The rows of a block.
type Rows = [[i16; 8]; 8];

/// √2·cos(kπ/16) and their sums, times 2¹³.
const F_0_298: i32 = 2_446;
const F_0_390: i32 = 3_196;
const F_0_541: i32 = 4_433;
const F_0_765: i32 = 6_270;
const F_0_899: i32 = 7_373;
const F_1_175: i32 = 9_633;
const F_1_501: i32 = 12_299;
const F_1_847: i32 = 15_137;
const F_1_961: i32 = 16_069;
const F_2_053: i32 = 16_819;
const F_2_562: i32 = 20_995;
const F_3_072: i32 = 25_172;

/// Transforms `COLUMNS` columns of which only `KEPT` values are none of zero, and divides by 2 to the power of `SHIFT`.
#[inline(always)]
fn columns<const SHIFT: u32, const COLUMNS: usize, const KEPT: usize>(rows: &Rows) -> Rows {
    let mut out = [[0; 8]; 8];
    for column in 0..COLUMNS {
        let value = |row: usize| if row < KEPT { rows[row][column] } else { 0 };
        let [v0, v1, v2, v3, v4, v5, v6, v7]: [i16; 8] = std::array::from_fn(value);
        let wide = i32::from;
        // The even part.
        let low = wide(v2) * F_0_541 + wide(v6) * (F_0_541 - F_1_847);
        let high = wide(v2) * (F_0_541 + F_0_765) + wide(v6) * F_0_541;
        let (sum, difference) = (wide(v0.wrapping_add(v4)) << 13, wide(v0.wrapping_sub(v4)) << 13);
        let even = [sum + high, difference + low, difference - low, sum - high];
        // The odd part.
        let (z3, z4) = (wide(v7.wrapping_add(v3)), wide(v5.wrapping_add(v1)));
        let (z3, z4) = (z3 * (F_1_175 - F_1_961) + z4 * F_1_175, z3 * F_1_175 + z4 * (F_1_175 - F_0_390));
        let [v1, v3, v5, v7] = [v1, v3, v5, v7].map(wide);
        let odd = [
            v7 * -F_0_899 + v1 * (F_1_501 - F_0_899) + z4,
            v5 * -F_2_562 + v3 * (F_3_072 - F_2_562) + z3,
            v5 * (F_2_053 - F_2_562) + v3 * -F_2_562 + z4,
            v7 * (F_0_298 - F_0_899) + v1 * -F_0_899 + z3,
        ];
        let narrow =
            |value: i32| (value.wrapping_add(1 << (SHIFT - 1)) >> SHIFT).clamp(i16::MIN.into(), i16::MAX.into()) as i16;
        for row in 0..4 {
            out[row][column] = narrow(even[row].wrapping_add(odd[row]));
            out[7 - row][column] = narrow(even[row].wrapping_sub(odd[row]));
        }
    }
    out
}

#[inline(always)]
fn transposed(rows: &Rows) -> Rows {
    std::array::from_fn(|row| std::array::from_fn(|column| rows[column][row]))
}

/// So many coefficients lie in the upper left quarter, in zigzag order.
const CORNER: usize = 10;

fn sample(value: i16) -> u8 {
    (value.clamp(-128, 127) + 128) as u8
}

/// Writes the samples of a block to eight rows, `stride` values apart; coefficients after the `last` in zigzag order are zero.
pub fn write(block: &Block, quantization: &[u16; 64], last: usize, out: &mut [u8], stride: usize) {
    let times = |at: usize| block[at].wrapping_mul(quantization[at] as i16);
    if last == 0 {
        let value = sample(((i32::from(times(0) << 2) + 16) >> 5) as i16);
        for row in 0..8 {
            out[row * stride..][..8].fill(value);
        }
        return;
    }
    let mut rows: Rows = std::array::from_fn(|row| std::array::from_fn(|column| times(row * 8 + column)));
    if block[8..].iter().all(|coefficient| *coefficient == 0) {
        let first = rows[0].map(|value| value << 2);
        rows = [first; 8];
    } else if last < CORNER {
        rows = columns::<11, 4, 4>(&rows);
    } else {
        rows = columns::<11, 8, 8>(&rows);
    }
    rows = transposed(&rows);
    rows = if last < CORNER { columns::<18, 8, 4>(&rows) } else { columns::<18, 8, 8>(&rows) };
    let rows = transposed(&rows);
    for (row, values) in rows.iter().enumerate() {
        out[row * stride..][..8].copy_from_slice(&values.map(sample));
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::NATURAL;
    use super::*;
    use proptest::prelude::*;

    /// The transform as it is defined, in f64.
    fn naive(block: &[f64; 64]) -> [f64; 64] {
        std::array::from_fn(|at| {
            let (y, x) = ((at / 8) as f64, (at % 8) as f64);
            let part = |frequency: usize, place: f64| {
                let scale = if frequency == 0 { 0.5_f64.sqrt() } else { 1.0 };
                scale * ((2.0 * place + 1.0) * frequency as f64 * std::f64::consts::PI / 16.0).cos()
            };
            let sum: f64 = (0..64).map(|of| block[of] * part(of / 8, y) * part(of % 8, x)).sum();
            (sum / 4.0 + 128.0).clamp(0.0, 255.0)
        })
    }

    proptest! {
        #[test]
        fn the_transform_is_the_definition_rounded(
            values in prop::collection::vec(prop_oneof![4 => Just(0_i16), 1 => -60_i16..60], 64),
            quantum in 1_u16..20,
            dc in -70_i16..70,
            kept in prop::sample::select(&[1_usize, 2, 6, 10, 11, 64][..]),
        ) {
            let mut block = [0; 64];
            for at in 0..kept {
                block[usize::from(NATURAL[at])] = values[at];
            }
            block[0] = dc;
            let mut out = [7; 8 * 11];
            write(&block, &[quantum; 64], kept - 1, &mut out, 11);
            let expected = naive(&block.map(|value| f64::from(value) * f64::from(quantum)));
            for (at, expected) in expected.iter().enumerate() {
                let found = f64::from(out[at / 8 * 11 + at % 8]);
                prop_assert!((found - expected).abs() < 1.0, "{at}: {found}, not {expected}");
            }
            prop_assert!(out.chunks_exact(11).all(|row| row[8..] == [7; 3]));
        }
    }
}

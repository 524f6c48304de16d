//! Rows of samples that are packed into bytes, and what palettes make of them.

/// The `nth` sample of a row, of 1, 2, 4 or 8 bits, the first of a byte in its highest bits.
pub fn sample(row: &[u8], bits: u32, nth: usize) -> u8 {
    let first = nth * bits as usize;
    let byte = row[first / 8];
    if bits == 8 { byte } else { (byte >> (8 - bits as usize - first % 8)) & ((1 << bits) - 1) }
}

/// A gray sample of 1, 2, 4 or 8 bits as 8 bits.
pub fn gray(value: u8, bits: u32) -> u8 {
    value * (255 / ((1_u32 << bits) - 1) as u8)
}

/// A gray sample of 16 bits as 8 bits: clipped, as Pillow does, whose converted images have white wherever the high byte is set.
pub fn clipped(high: u8, low: u8) -> u8 {
    if high == 0 { low } else { 255 }
}

/// Colors by index; black where the file names none, as in Pillow.
#[derive(Debug, Clone)]
pub struct Palette([[u8; 3]; 256]);

impl Palette {
    /// The first 256 of these colors.
    pub fn new(colors: impl Iterator<Item = [u8; 3]>) -> Self {
        let mut all = [[0; 3]; 256];
        for (entry, color) in all.iter_mut().zip(colors) {
            *entry = color;
        }
        Self(all)
    }

    /// A color.
    pub fn color(&self, index: u8) -> [u8; 3] {
        self.0[usize::from(index)]
    }

    /// Replaces the first `pixels` indices of `values` by their colors, in place.
    ///
    /// # Panics
    /// When `values` is shorter than three times that.
    pub fn expand(&self, values: &mut [u8], pixels: usize) {
        // Backwards: a color never lands before its index was read.
        for pixel in (0..pixels).rev() {
            let color = self.color(values[pixel]);
            values[pixel * 3..][..3].copy_from_slice(&color);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_from_high_bits_to_low_ones() {
        let row = [0b1101_0010, 0b0110_0001];
        let all = |bits: u32| (0..16 / bits as usize).map(|nth| sample(&row, bits, nth)).collect::<Vec<_>>();
        assert_eq!(all(1), [1, 1, 0, 1, 0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1]);
        assert_eq!(all(2), [3, 1, 0, 2, 1, 2, 0, 1]);
        assert_eq!(all(4), [13, 2, 6, 1]);
        assert_eq!(all(8), row);
        assert_eq!([gray(1, 1), gray(2, 2), gray(7, 4), gray(9, 8)], [255, 170, 119, 9]);
    }

    #[test]
    fn indices_become_colors_in_place() {
        let mut values = vec![1, 0, 7, 1, 99, 99, 99, 99, 99, 99, 99, 99];
        Palette::new([[1, 2, 3], [4, 5, 6]].into_iter()).expand(&mut values, 4);
        assert_eq!(values, [4, 5, 6, 1, 2, 3, 0, 0, 0, 4, 5, 6]);
    }
}

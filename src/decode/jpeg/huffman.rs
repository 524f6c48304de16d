//! Huffman tables: from a file's lists of codes to symbols read from bits.

use super::bits::Bits;

/// Codes of up to so many bits are looked up at once.
const LOOKUP_BITS: u32 = 9;

/// A table to decode with.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// Of the next bits: the length of the code that they begin with times 256, and its symbol; 0 where the code is longer.
    lookup: [u16; 1 << LOOKUP_BITS],
    /// The largest code of each length; -1 where there is none.
    largest: [i32; 17],
    /// What to add to a code of each length to have the index of its symbol.
    offset: [i32; 17],
    symbols: [u8; 256],
}

impl Table {
    /// The table of `counts[n]` codes of `n + 1` bits; `None` where these are not the codes of a tree without one of only ones, or more than 256.
    pub fn new(counts: &[u8; 16], symbols: &[u8]) -> Option<Self> {
        let total: usize = counts.iter().map(|count| usize::from(*count)).sum();
        let mut table = Self { lookup: [0; 1 << LOOKUP_BITS], largest: [-1; 17], offset: [0; 17], symbols: [0; 256] };
        table.symbols.get_mut(..total)?.copy_from_slice(symbols.get(..total)?);
        let (mut code, mut index) = (0_usize, 0);
        for (length, &count) in (1_u32..).zip(counts) {
            table.offset[length as usize] = index as i32 - code as i32;
            for _ in 0..count {
                if length <= LOOKUP_BITS {
                    let rest = LOOKUP_BITS - length;
                    let entry = (length as u16) << 8 | u16::from(table.symbols[index]);
                    table.lookup.get_mut(code << rest..(code + 1) << rest)?.fill(entry);
                }
                (code, index) = (code + 1, index + 1);
            }
            if count > 0 {
                table.largest[length as usize] = code as i32 - 1;
                if code >= 1 << length {
                    return None;
                }
            }
            code <<= 1;
        }
        Some(table)
    }

    /// Whether its symbols are lengths of differences.
    pub fn is_for_dc(&self) -> bool {
        self.symbols.iter().all(|symbol| *symbol < 16)
    }

    /// Reads a symbol; 0 where no code is like the bits.
    #[inline(always)]
    pub fn symbol(&self, bits: &mut Bits<'_>) -> u8 {
        let entry = self.lookup[bits.peek(LOOKUP_BITS)];
        if entry == 0 {
            return self.long_symbol(bits);
        }
        bits.skip(u32::from(entry >> 8));
        entry as u8
    }

    #[cold]
    fn long_symbol(&self, bits: &mut Bits<'_>) -> u8 {
        let is_like = |length: &u32| bits.peek(*length) as i32 <= self.largest[*length as usize];
        let Some(length) = (LOOKUP_BITS + 1..=16).find(is_like) else {
            // As many as libjpeg reads until it knows.
            bits.skip(17);
            bits.note_damage();
            return 0;
        };
        let index = bits.peek(length) as i32 + self.offset[length as usize];
        bits.skip(length);
        self.symbols[index as usize & 0xFF]
    }

    /// The tables of section K.3 of the standard, for DC and AC, which frames of Motion JPEG leave out: of luma, then of chroma.
    pub fn standard() -> [[Self; 2]; 2] {
        let table = |counts, symbols: &[u8]| Self::new(counts, symbols).expect("the standard's codes");
        let dc: [u8; 12] = std::array::from_fn(|length| length as u8);
        [
            [table(&LUMA_DC, &dc), table(&LUMA_AC.0, &LUMA_AC.1)],
            [table(&CHROMA_DC, &dc), table(&CHROMA_AC.0, &CHROMA_AC.1)],
        ]
    }
}

const LUMA_DC: [u8; 16] = [0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0];
#[rustfmt::skip]
const LUMA_AC: ([u8; 16], [u8; 162]) = ([0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125], [
    0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41, 0x06, 0x13, 0x51, 0x61, 0x07, 0x22, 0x71, 0x14, 0x32, 0x81, 0x91, 0xA1, 0x08,
    0x23, 0x42, 0xB1, 0xC1, 0x15, 0x52, 0xD1, 0xF0, 0x24, 0x33, 0x62, 0x72, 0x82, 0x09, 0x0A, 0x16, 0x17, 0x18, 0x19, 0x1A, 0x25, 0x26, 0x27, 0x28,
    0x29, 0x2A, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3A, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4A, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59,
    0x5A, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6A, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7A, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89,
    0x8A, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9A, 0xA2, 0xA3, 0xA4, 0xA5, 0xA6, 0xA7, 0xA8, 0xA9, 0xAA, 0xB2, 0xB3, 0xB4, 0xB5, 0xB6,
    0xB7, 0xB8, 0xB9, 0xBA, 0xC2, 0xC3, 0xC4, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xCA, 0xD2, 0xD3, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8, 0xD9, 0xDA, 0xE1, 0xE2,
    0xE3, 0xE4, 0xE5, 0xE6, 0xE7, 0xE8, 0xE9, 0xEA, 0xF1, 0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xF7, 0xF8, 0xF9, 0xFA,
]);

const CHROMA_DC: [u8; 16] = [0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0];
#[rustfmt::skip]
const CHROMA_AC: ([u8; 16], [u8; 162]) = ([0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 119], [
    0x00, 0x01, 0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07, 0x61, 0x71, 0x13, 0x22, 0x32, 0x81, 0x08, 0x14, 0x42, 0x91,
    0xA1, 0xB1, 0xC1, 0x09, 0x23, 0x33, 0x52, 0xF0, 0x15, 0x62, 0x72, 0xD1, 0x0A, 0x16, 0x24, 0x34, 0xE1, 0x25, 0xF1, 0x17, 0x18, 0x19, 0x1A, 0x26,
    0x27, 0x28, 0x29, 0x2A, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3A, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4A, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58,
    0x59, 0x5A, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6A, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7A, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87,
    0x88, 0x89, 0x8A, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9A, 0xA2, 0xA3, 0xA4, 0xA5, 0xA6, 0xA7, 0xA8, 0xA9, 0xAA, 0xB2, 0xB3, 0xB4,
    0xB5, 0xB6, 0xB7, 0xB8, 0xB9, 0xBA, 0xC2, 0xC3, 0xC4, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xCA, 0xD2, 0xD3, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8, 0xD9, 0xDA,
    0xE2, 0xE3, 0xE4, 0xE5, 0xE6, 0xE7, 0xE8, 0xE9, 0xEA, 0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xF7, 0xF8, 0xF9, 0xFA,
]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_read_whatever_their_length() {
        for table in Table::standard().iter().flatten() {
            let mut seen = 0;
            for length in 1..=16_u32 {
                let largest = table.largest[length as usize];
                let first = -table.offset[length as usize] + seen;
                for code in first..=largest {
                    let bytes = [&(((code as u32) << (32 - length)).to_be_bytes())[..], &[0; 8]].concat();
                    let stuffed: Vec<u8> = bytes
                        .iter()
                        .flat_map(|byte| [*byte, 0].into_iter().take(1 + usize::from(*byte == 0xFF)))
                        .collect();
                    let mut bits = Bits::new(&stuffed, 0);
                    bits.fill();
                    assert_eq!(table.symbol(&mut bits), table.symbols[seen as usize], "{code:b} of {length} bits");
                    seen += 1;
                }
            }
            assert!(seen == 12 || seen == 162);
            let mut ones = Bits::new(&[0xFF, 0, 0xFF, 0, 0xFF, 0], 0);
            ones.fill();
            assert_eq!((table.symbol(&mut ones), ones.is_damaged(), ones.take(7)), (0, true, 127));
        }
    }

    #[test]
    fn lists_that_are_no_codes_are_refused() {
        let of = |length: usize, count: u8| {
            let mut counts = [0; 16];
            counts[length - 1] = count;
            counts
        };
        assert!(Table::new(&of(1, 1), &[0; 256]).is_some() && Table::new(&of(1, 2), &[0; 256]).is_none());
        assert!(Table::new(&of(8, 255), &[0; 256]).is_some() && Table::new(&of(8, 255), &[0; 254]).is_none());
        assert!(Table::new(&[200; 16], &[0; 256]).is_none() && Table::new(&of(3, 8), &[0; 256]).is_none());
        assert!(Table::new(&[0; 16], &[]).is_some_and(|table| table.is_for_dc()));
    }
}

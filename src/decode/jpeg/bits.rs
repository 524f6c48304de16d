//! The bits of a scan, without the bytes that are stuffed between them, up to the next marker.

/// Reads bits from the most significant on.
pub struct Bits<'a> {
    file: &'a [u8],
    /// The byte to read next; at the end of the scan's data, the last `0xFF` before a marker, or the file's end.
    at: usize,
    /// The bits to read next, from the top. Those below `left` are of no meaning.
    buffer: u64,
    /// How many are left; negative once more were read than there are.
    left: i32,
    has_ended: bool,
    is_damaged: bool,
}

/// Whether one of eight bytes is `0xFF`.
fn has_ff(word: u64) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    (!word).wrapping_sub(ONES) & word & (ONES << 7) != 0
}

impl<'a> Bits<'a> {
    /// The bits of the data that begin at a place in a file.
    pub fn new(file: &'a [u8], at: usize) -> Self {
        Self { file, at, buffer: 0, left: 0, has_ended: false, is_damaged: false }
    }

    /// Makes at least 32 bits available, as many as a Huffman code and its value have, unless the data end before.
    #[inline(always)]
    pub fn fill(&mut self) {
        if self.left < 32 && !self.has_ended {
            self.refill();
        }
    }

    #[inline]
    fn refill(&mut self) {
        if let Some(bytes) = self.file.get(self.at..).and_then(|rest| rest.first_chunk()) {
            let word = u64::from_be_bytes(*bytes);
            if !has_ff(word) {
                // Bits of a byte that does not fit whole are put there once more by the next call.
                self.buffer |= word >> self.left;
                self.at += (63 - self.left as usize) >> 3;
                self.left |= 56;
                return;
            }
        }
        self.refill_bytewise();
    }

    #[cold]
    fn refill_bytewise(&mut self) {
        while self.left <= 56 {
            let Some(&byte) = self.file.get(self.at) else {
                self.has_ended = true;
                return;
            };
            let mut next = self.at + 1;
            if byte == 0xFF {
                // Any number of fill bytes, then a zero that makes them data, or a marker.
                next += self.file[next..].iter().take_while(|byte| **byte == 0xFF).count();
                if self.file.get(next) != Some(&0) {
                    self.at = next - 1;
                    self.has_ended = true;
                    return;
                }
                next += 1;
            }
            self.buffer |= u64::from(byte) << (56 - self.left);
            self.left += 8;
            self.at = next;
        }
    }

    /// The next bits, 1 to 16 of them, without reading them.
    #[inline(always)]
    pub fn peek(&self, count: u32) -> usize {
        (self.buffer >> (64 - count)) as usize
    }

    /// Reads bits that were peeked at.
    #[inline(always)]
    pub fn skip(&mut self, count: u32) {
        self.buffer <<= count;
        self.left -= count as i32;
    }

    /// Reads up to 16 bits.
    #[inline(always)]
    pub fn take(&mut self, count: u32) -> i32 {
        if count == 0 {
            return 0;
        }
        let bits = self.peek(count) as i32;
        self.skip(count);
        bits
    }

    /// Reads a value of so many bits, up to 16, of which the first tells the sign.
    #[inline(always)]
    pub fn value(&mut self, count: u32) -> i32 {
        let bits = self.take(count);
        // 0 in front: negative, and counted from the lowest.
        if count > 0 && bits >> (count - 1) == 0 { bits + 1 - (1 << count) } else { bits }
    }

    /// Whether more was read than there is.
    #[inline(always)]
    pub fn ran_out(&self) -> bool {
        self.left < 0
    }

    /// Notes that the bits make no sense.
    pub fn note_damage(&mut self) {
        self.is_damaged = true;
    }

    /// Whether that was noted.
    pub fn is_damaged(&self) -> bool {
        self.is_damaged
    }

    /// Goes on at another place.
    pub fn restart(&mut self, at: usize) {
        *self = Self { is_damaged: self.is_damaged, ..Self::new(self.file, at) };
    }

    /// Where the file goes on, and how many whole bytes before that were not read.
    pub fn end(&self) -> (usize, usize) {
        (self.at, self.left.max(0) as usize / 8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bits_are_those_of_the_bytes(
            bytes in prop::collection::vec(prop_oneof![3 => any::<u8>(), 1 => Just(0xFF)], 0..60),
            counts in prop::collection::vec(1_u32..=16, 60),
        ) {
            let stuffed: Vec<u8> = bytes.iter().flat_map(|&byte| [byte, 0].into_iter().take(1 + usize::from(byte == 0xFF))).collect();
            let file = [&stuffed[..], &[0xFF, 0xD9, 1, 2, 3, 4, 5, 6, 7, 8]].concat();
            let all: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).map(move |bit| byte >> (7 - bit) & 1)).collect();
            let (mut bits, mut at) = (Bits::new(&file, 0), 0);
            for count in counts {
                bits.fill();
                let end = at + count as usize;
                let found = bits.take(count);
                prop_assert_eq!(bits.ran_out(), end > all.len());
                if bits.ran_out() {
                    break;
                }
                let expected = all[at..end].iter().fold(0, |value, bit| value << 1 | i32::from(*bit));
                prop_assert_eq!(found, expected);
                at = end;
            }
        }
    }

    #[test]
    fn values_are_as_the_standard_has_them() {
        // F.1.2.1: of two bits, 00 and 01 are -3 and -2, 10 and 11 are 2 and 3.
        let mut bits = Bits::new(&[0b0001_1011, 0b0111_1111], 0);
        bits.fill();
        assert_eq!([2, 2, 2, 2, 0, 1, 7].map(|count| bits.value(count)), [-3, -2, 2, 3, 0, -1, 127]);
        assert_eq!(bits.end(), (2, 0));
    }

    #[test]
    fn fill_bytes_before_a_zero_are_one_byte_of_data() {
        let mut bits = Bits::new(&[0xFF, 0xFF, 0xFF, 0, 0x12, 0xFF, 0xFF, 0xD0], 0);
        bits.fill();
        assert_eq!((bits.take(16), bits.ran_out(), bits.end()), (0xFF12, false, (6, 0)));
    }
}

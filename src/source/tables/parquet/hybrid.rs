//! Parquet's hybrid of run lengths and packed bits, in which levels and dictionary indexes are written.

use super::super::super::flaw::Flaw;

/// Calls `each` with the first `count` numbers of `width` bits in `bytes`.
///
/// # Errors
/// When the bytes hold fewer, and those of `each`.
pub fn decode(bytes: &[u8], width: u32, count: u64, each: &mut dyn FnMut(u32) -> Result<(), Flaw>) -> Result<(), Flaw> {
    if width > 32 {
        return Err(Flaw::new(format!("has numbers of {width} bits")));
    }
    let (mut rest, mut left) = (bytes, count);
    while left > 0 {
        let head = varint(&mut rest)?;
        let values = if head & 1 == 0 { head >> 1 } else { (head >> 1).saturating_mul(8) };
        let values = values.min(left);
        if head & 1 == 0 {
            let mut value = [0; 4];
            let len = width.div_ceil(8) as usize;
            value[..len].copy_from_slice(take(&mut rest, len)?);
            (0..values).try_for_each(|_| each(u32::from_le_bytes(value)))?;
        } else {
            // Eight values take as many bytes as each has bits. The last group may be cut where no more values are asked for.
            let len = (u128::from(head >> 1) * u128::from(width)).min(rest.len() as u128) as usize;
            unpack(take(&mut rest, len)?, width, values, each)?;
        }
        // A run of none would never end.
        if values == 0 {
            return Err(too_short());
        }
        left -= values;
    }
    Ok(())
}

fn unpack(bytes: &[u8], width: u32, values: u64, each: &mut dyn FnMut(u32) -> Result<(), Flaw>) -> Result<(), Flaw> {
    let (mut word, mut bits, mut bytes) = (0u64, 0, bytes.iter());
    for _ in 0..values {
        while bits < width {
            word |= u64::from(*bytes.next().ok_or_else(too_short)?) << bits;
            bits += 8;
        }
        each((word & ((1 << width) - 1)) as u32)?;
        word >>= width;
        bits -= width;
    }
    Ok(())
}

fn varint(rest: &mut &[u8]) -> Result<u64, Flaw> {
    let mut number = 0;
    for shift in (0..63).step_by(7) {
        let byte = take(rest, 1)?[0];
        number |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Flaw::from("has a run of more values than there can be"))
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a [u8], Flaw> {
    let (head, tail) = rest.split_at_checked(len).ok_or_else(too_short)?;
    *rest = tail;
    Ok(head)
}

fn too_short() -> Flaw {
    Flaw::from("has fewer values in a page than its header says")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(bytes: &[u8], width: u32, count: u64) -> Result<Vec<u32>, Flaw> {
        let mut values = Vec::new();
        decode(bytes, width, count, &mut |value| {
            values.push(value);
            Ok(())
        })?;
        Ok(values)
    }

    #[test]
    fn runs_and_packed_bits_are_read() {
        // The format's own example: 0 to 7 in three bits each; then five times 300 in nine bits.
        assert_eq!(decoded(&[3, 0x88, 0xC6, 0xFA], 3, 8).unwrap(), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(decoded(&[10, 0x2C, 1], 9, 5).unwrap(), [300; 5]);
        assert_eq!(decoded(&[4, 1, 3, 0b10], 1, 6).unwrap(), [1, 1, 0, 1, 0, 0]);
        assert_eq!(decoded(&[8], 0, 4).unwrap(), [0; 4]);
        assert_eq!(decoded(&[3], 0, 8).unwrap(), [0; 8]);
        // As naive a way through all widths.
        for width in 1..=32 {
            let values: Vec<u32> = (0..24u32).map(|nth| nth.wrapping_mul(0x9E37_79B9) >> (32 - width)).collect();
            let mut packed = vec![7];
            let bit = |at: usize| values[at / width as usize] >> (at % width as usize) & 1;
            let bits: Vec<u32> = (0..24 * width as usize).map(bit).collect();
            packed.extend(bits.chunks(8).map(|byte| byte.iter().rev().fold(0, |sum, bit| sum << 1 | *bit as u8)));
            assert_eq!(decoded(&packed, width, 24).unwrap(), values, "{width}");
        }
    }

    #[test]
    fn no_more_values_are_read_than_there_are() {
        for (bytes, width) in [(&[][..], 1), (&[10, 0x2C], 9), (&[3, 0x88], 3), (&[0, 0, 0, 0], 1), (&[1, 1], 1)] {
            assert!(decoded(bytes, width, 8).is_err(), "{bytes:?}");
        }
        assert!(decoded(&[0xFF; 12], 1, 8).is_err() && decoded(&[3, 0, 0], 33, 8).is_err());
    }
}

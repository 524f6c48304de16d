//! The blocks that a tar is made of, and the headers among them.

use tar::Header;

/// Bytes of a header, to whose multiple content is padded.
pub const BLOCK_BYTES: usize = 512;

/// The block as a header, if its checksum is right.
pub fn header(block: &[u8]) -> Option<Header> {
    let block = block.first_chunk::<BLOCK_BYTES>()?;
    let header = Header::from_byte_slice(block);
    let expected = header.cksum().ok()?;
    let (field, sum) = (148..156, |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>());
    let unsigned = sum(block) - sum(&block[field.clone()]) + 8 * u32::from(b' ');
    // Some old writers summed signed bytes.
    let negative = |bytes: &[u8]| bytes.iter().filter(|byte| **byte >= 0x80).count() as u32 * 256;
    let signed = unsigned.wrapping_sub(negative(block) - negative(&block[field]));
    (expected == unsigned || expected == signed).then(|| header.clone())
}

/// Whether a file that begins with this block is a tar: with a header, or with the zeros that end an empty one.
pub fn is_tar(block: &[u8]) -> bool {
    let Some(block) = block.first_chunk::<BLOCK_BYTES>() else { return false };
    block[257..].starts_with(b"ustar") || block.iter().all(|&byte| byte == 0) || header(block).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_known_by_its_checksum() {
        let mut header_of = Header::new_old();
        header_of.set_path("a").unwrap();
        header_of.set_cksum();
        let whole = *header_of.as_bytes();
        assert!(header(&whole).is_some() && is_tar(&whole));
        let mut damaged = whole;
        damaged[0] = b'b';
        assert!(header(&damaged).is_none() && !is_tar(&damaged));
        // As a writer that sums signed bytes has it.
        let mut signed = whole;
        signed[0] = 0xE9;
        let sum: i32 = signed
            .iter()
            .enumerate()
            .map(|(at, &byte)| i32::from(if (148..156).contains(&at) { b' ' } else { byte } as i8))
            .sum();
        signed[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        assert!(header(&signed).is_some());
        assert!(is_tar(&[0; BLOCK_BYTES]) && !is_tar(&whole[..BLOCK_BYTES - 1]) && header(&whole[..9]).is_none());
    }
}

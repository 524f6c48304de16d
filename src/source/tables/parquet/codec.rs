//! Compressions of Parquet's pages.

use super::super::super::flaw::Flaw;
use std::io::{self, Read};

/// No compression.
pub const NONE: u8 = 0;
const SNAPPY: u8 = 1;
const GZIP: u8 = 2;
const BROTLI: u8 = 4;
const ZSTD: u8 = 6;
const LZ4_RAW: u8 = 7;

/// The most that a byte of Snappy or LZ4 can stand for; a length that exceeds it is false, and no memory is taken for it.
const SNAPPY_RATIO_MAX: usize = 32;
const LZ4_RATIO_MAX: usize = 256;

/// The compression of a number in the format's definition.
///
/// # Errors
/// When it is not read.
pub fn check(number: i64) -> Result<u8, Flaw> {
    match u8::try_from(number) {
        Ok(known @ (NONE | SNAPPY | GZIP | BROTLI | ZSTD | LZ4_RAW)) => Ok(known),
        Ok(5) => Err(Flaw::from("is compressed with the outdated LZ4 of Hadoop (write it with LZ4_RAW, zstd or none)")),
        _ => Err(Flaw::new(format!("is compressed in an unknown way, {number} (write it with snappy, zstd or none)"))),
    }
}

/// `head`, and behind it what `bytes` decompress to, which has `plain_bytes` bytes.
///
/// # Errors
/// When it has not.
pub fn decompress(codec: u8, bytes: &[u8], plain_bytes: usize, head: &[u8]) -> Result<Vec<u8>, Flaw> {
    let damaged = || Flaw::from("has a page that cannot be decompressed (copy it again)");
    let mut plain = head.to_vec();
    let ratio_max = match codec {
        SNAPPY => SNAPPY_RATIO_MAX,
        LZ4_RAW => LZ4_RATIO_MAX,
        _ => usize::MAX,
    };
    if plain_bytes > bytes.len().saturating_mul(ratio_max) {
        return Err(damaged());
    }
    match codec {
        // A page without values.
        _ if bytes.is_empty() => {}
        SNAPPY | LZ4_RAW => {
            plain.resize(head.len() + plain_bytes, 0);
            let into = &mut plain[head.len()..];
            let found = match codec {
                SNAPPY => snap::raw::Decoder::new().decompress(bytes, into).ok(),
                _ => lz4_flex::block::decompress_into(bytes, into).ok(),
            };
            if found != Some(plain_bytes) {
                return Err(damaged());
            }
        }
        // These can stand for any length, so memory is taken as bytes come.
        GZIP => drain(flate2::read::MultiGzDecoder::new(bytes), plain_bytes, &mut plain).map_err(|_| damaged())?,
        BROTLI => drain(brotli_decompressor::Decompressor::new(bytes, 4 << 10), plain_bytes, &mut plain)
            .map_err(|_| damaged())?,
        _ => {
            let decoder = zstd::Decoder::with_buffer(bytes);
            decoder.and_then(|decoder| drain(decoder, plain_bytes, &mut plain)).map_err(|_| damaged())?;
        }
    }
    if plain.len() == head.len() + plain_bytes { Ok(plain) } else { Err(damaged()) }
}

/// Reads to the end, or one byte more than there should be.
fn drain(reader: impl Read, plain_bytes: usize, plain: &mut Vec<u8>) -> io::Result<()> {
    reader.take(plain_bytes as u64 + 1).read_to_end(plain).map(drop)
}

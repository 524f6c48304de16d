//! What a file that is called an archive really is, and its content uncompressed.

use super::tar_block::{BLOCK_BYTES, is_tar};
use flate2::bufread::GzDecoder;
use std::io::{self, BufRead, Read};

/// Bytes of a file by which [`kind`] knows it.
pub const HEAD_BYTES: usize = BLOCK_BYTES;
/// First bytes of what gzip makes, and of a frame of zstd.
const GZIP: &[u8] = b"\x1F\x8B";
const ZSTD: &[u8] = b"\x28\xB5\x2F\xFD";

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It is a tar as it is.
    Plain,
    /// As gzip does it.
    Gzip,
    /// As zstd does it.
    Zstd,
}

/// How the archive that begins with `head` is compressed, or what the file is instead.
pub fn kind(head: &[u8]) -> Result<Kind, String> {
    match head {
        // A frame that is skipped.
        [0x50..=0x5F, 0x2A, 0x4D, 0x18, ..] => Ok(Kind::Zstd),
        _ if head.starts_with(ZSTD) => Ok(Kind::Zstd),
        _ if head.starts_with(GZIP) => Ok(Kind::Gzip),
        _ if is_tar(head) => Ok(Kind::Plain),
        _ => Err(what(head)),
    }
}

/// What made files that begin so, and whether it packs several files, as its `what` has it. gzip and zstd are told by [`kind`], too.
const PACKERS: [(&[u8], &str, bool); 10] = [
    (GZIP, "gzip", false),
    (ZSTD, "zstd", false),
    (b"\xFD7zXZ\0", "xz", false),
    (b"BZh", "bzip2", false),
    (b"\x04\x22\x4D\x18", "lz4", false),
    (b"LZIP", "lzip", false),
    (b"PK\x03\x04", "zip", true),
    (b"PK\x05\x06", "zip", true),
    (b"7z\xBC\xAF", "7z", true),
    (b"Rar!", "rar", true),
];

/// What packed the file that begins with `head`, and whether that holds several files; `None` where it is not known as packed.
fn packed(head: &[u8]) -> Option<(&'static str, bool)> {
    let found = PACKERS.iter().find(|(magic, ..)| head.starts_with(magic));
    found.map(|&(_, name, holds_files)| (name, holds_files))
}

/// The name of what packed the file that begins with `head`.
pub fn packer(head: &[u8]) -> Option<&'static str> {
    packed(head).map(|(name, _)| name)
}

/// What data that are no archive are, and the remedy.
pub fn what(head: &[u8]) -> String {
    let text = head.trim_ascii_start();
    let begins = |with: &[u8]| text.get(..with.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(with));
    match packed(head) {
        Some((name, true)) => return format!("a {name} archive (unpack it, and name the folder)"),
        Some((name, false)) => return format!("{name} data (pack the folder with gzip or zstd instead)"),
        None => {}
    }
    let what = match head {
        [] => "an empty file",
        [0xFF, 0xD8, 0xFF, ..] | [0x89, b'P', b'N', b'G', ..] => "a single image",
        _ if begins(b"<!doctype html") || begins(b"<html") => "an HTML page (the download failed: fetch it again)",
        _ if text.starts_with(b"<") => "a page of XML or HTML (the download failed: fetch it again)",
        _ => "no tar",
    };
    what.to_owned()
}

/// The content of an archive.
///
/// # Errors
/// When there is no memory to uncompress it.
pub fn content<'a>(kind: Kind, file: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match kind {
        Kind::Plain => Box::new(file),
        Kind::Gzip => Box::new(Members::Next(Some(file))),
        Kind::Zstd => Box::new(zstd::Decoder::with_buffer(file)?),
    })
}

/// What gzip made: members one after the other. Zeros and line ends may follow: archivers pad to a tape's block, editors end the last line.
enum Members<R: BufRead> {
    Within(Box<GzDecoder<R>>),
    Next(Option<R>),
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match self {
                Self::Within(member) => {
                    let read = member.read(into)?;
                    if read > 0 || into.is_empty() {
                        return Ok(read);
                    }
                    let Self::Within(member) = std::mem::replace(self, Self::Next(None)) else { unreachable!() };
                    *self = Self::Next(Some(member.into_inner()));
                }
                Self::Next(file) => {
                    let Some(mut file) = file.take() else { return Ok(0) };
                    match skip_padding(&mut file)? {
                        None => return Ok(0),
                        Some(0x1F) => *self = Self::Within(Box::new(GzDecoder::new(file))),
                        Some(_) => {
                            return Err(io::Error::new(
                                io::ErrorKind::InvalidData,
                                "data that are not gzip's follow (fetch it again)",
                            ));
                        }
                    }
                }
            }
        }
    }
}

/// The first byte that is no padding; it stays unread.
fn skip_padding(file: &mut impl BufRead) -> io::Result<Option<u8>> {
    loop {
        let buffered = file.fill_buf()?;
        let padding = buffered.iter().take_while(|byte| matches!(byte, 0 | b' ' | b'\n' | b'\r' | b'\t')).count();
        let (next, is_end) = (buffered.get(padding).copied(), buffered.is_empty());
        file.consume(padding);
        if next.is_some() || is_end {
            return Ok(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::write::GzEncoder;
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read(kind: Kind, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        // A buffer of one byte finds every end between two reads.
        content(kind, io::BufReader::with_capacity(1, bytes))?.read_to_end(&mut all)?;
        Ok(all)
    }

    #[test]
    fn members_follow_each_other_and_padding_is_passed_over() {
        let [a, b] = [&b"first"[..], b"second"].map(gzip);
        for (parts, expected) in [
            (vec![&a[..]], &b"first"[..]),
            (vec![&a, &b], b"firstsecond"),
            (vec![&a, &[0; 700]], b"first"),
            (vec![&a, b"\r\n"], b"first"),
            (vec![&a, &[0; 9], &b, b"\n"], b"firstsecond"),
        ] {
            assert_eq!(read(Kind::Gzip, &parts.concat()).unwrap(), expected);
        }
        let error = read(Kind::Gzip, &[&a[..], b"\0<html>"].concat()).unwrap_err();
        assert!(error.to_string().contains("not gzip's"), "{error}");
        assert!(read(Kind::Gzip, &a[..a.len() - 3]).is_err(), "cut before its checksum");
    }

    #[test]
    fn frames_of_zstd_follow_each_other() {
        let [a, b] = [&b"first"[..], b"second"].map(|bytes| zstd::encode_all(bytes, 1).unwrap());
        assert_eq!(kind(&a), Ok(Kind::Zstd));
        assert_eq!(read(Kind::Zstd, &[&a[..], &b].concat()).unwrap(), b"firstsecond");
        assert!(read(Kind::Zstd, &a[..a.len() - 1]).is_err(), "cut");
    }

    #[test]
    fn what_is_no_archive_is_named() {
        for (head, named) in [
            (&b""[..], "empty"),
            (b"\xFD7zXZ\0\0", "xz"),
            (b"BZh91AY", "bzip2"),
            (b"PK\x03\x04", "a zip archive (unpack it"),
            (b"PK\x05\x06", "zip"),
            (b"LZIP\x01", "lzip data (pack the folder"),
            (b"\n <!DOCTYPE HTML><html>", "HTML"),
            (b"<?xml version='1.0'?><Error>", "XML"),
            (b"id,label\n", "no tar"),
        ] {
            assert!(kind(head).unwrap_err().contains(named), "{named}");
        }
        let mut header = tar::Header::new_old();
        header.set_path("a").unwrap();
        header.set_cksum();
        assert_eq!(kind(header.as_bytes()), Ok(Kind::Plain), "a tar without a magic");
        assert_eq!(kind(&[0; HEAD_BYTES]), Ok(Kind::Plain), "an empty tar");
    }
}

//! Files with holes in a tar, as GNU tar keeps them in pax headers (formats 0.0, 0.1 and 1.0): the real name and size, and what lies where.
//!
//! The older form, an entry of a type of its own, is read by the crate `tar`.

use super::tar_block::BLOCK_BYTES;
use std::io::{self, Read, Write};

/// The most parts of one file.
const PARTS_MAX: usize = 1 << 20;

/// What pax headers tell of a file with holes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Sparse {
    /// Its name; the entry has another.
    pub name: Option<Vec<u8>>,
    /// Its bytes with the holes.
    pub size: u64,
    /// Offset and length of each part; before they are read of format 1.0, nothing.
    parts: Vec<(u64, u64)>,
    /// Whether the parts stand before the data.
    parts_lead: bool,
}

impl Sparse {
    /// What the pax headers of an entry tell, where it has holes.
    ///
    /// # Errors
    /// When they contradict each other.
    pub fn of(records: &[(Vec<u8>, Vec<u8>)]) -> io::Result<Option<Self>> {
        let (mut found, mut sparse, mut offsets) = (false, Self::default(), Vec::new());
        for (key, value) in records {
            let Some(key) = key.strip_prefix(b"GNU.sparse.") else { continue };
            found = true;
            match key {
                b"name" => sparse.name = Some(value.clone()),
                b"size" | b"realsize" => sparse.size = number(value)?,
                b"major" => sparse.parts_lead = number(value)? == 1,
                b"offset" => offsets.push(number(value)?),
                b"numbytes" => sparse.parts.push((offsets.pop().ok_or_else(damaged)?, number(value)?)),
                b"map" => {
                    let numbers: Vec<u64> = value.split(|&byte| byte == b',').map(number).collect::<Result<_, _>>()?;
                    sparse.parts = numbers.chunks(2).map(|pair| (pair[0], *pair.get(1).unwrap_or(&0))).collect();
                }
                _ => {}
            }
        }
        Ok(found.then_some(sparse))
    }

    /// Writes the file that `entry` holds to `file`, whose holes stay holes.
    ///
    /// # Errors
    /// When the entry is cut or damaged, or the file cannot be written.
    pub fn unpack(mut self, entry: &mut impl Read, file: &mut std::fs::File) -> io::Result<()> {
        if self.parts_lead {
            self.read_parts(entry)?;
        }
        for (offset, len) in self.parts {
            if offset.checked_add(len).is_none_or(|end| end > self.size) {
                return Err(damaged());
            }
            io::Seek::seek(file, io::SeekFrom::Start(offset))?;
            if io::copy(&mut entry.take(len), file)? < len {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        file.set_len(self.size)
    }

    /// Reads the parts of format 1.0: numbers in lines of their own, filled up to whole blocks.
    fn read_parts(&mut self, entry: &mut impl Read) -> io::Result<()> {
        let (mut block, mut at) = ([0; BLOCK_BYTES], BLOCK_BYTES);
        let mut next = || {
            let mut value = 0_u64;
            loop {
                if at == BLOCK_BYTES {
                    entry.read_exact(&mut block)?;
                    at = 0;
                }
                at += 1;
                match block[at - 1] {
                    b'\n' => return Ok(value),
                    digit @ b'0'..=b'9' => {
                        let shifted =
                            value.checked_mul(10).and_then(|value| value.checked_add(u64::from(digit - b'0')));
                        value = shifted.ok_or_else(damaged)?;
                    }
                    _ => return Err(damaged()),
                }
            }
        };
        let count = next()?;
        if count > PARTS_MAX as u64 {
            return Err(damaged());
        }
        self.parts = (0..count).map(|_| Ok((next()?, next()?))).collect::<io::Result<_>>()?;
        Ok(())
    }
}

/// Copies `from` to `file`, where zeros become holes; returns how many bytes there were.
pub fn copy_with_holes(from: &mut impl Read, file: &mut std::fs::File) -> io::Result<u64> {
    let (mut buffer, mut bytes) = (vec![0; 64 << 10], 0);
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        if buffer[..read].iter().any(|&byte| byte != 0) {
            io::Seek::seek(file, io::SeekFrom::Start(bytes))?;
            file.write_all(&buffer[..read])?;
        }
        bytes += read as u64;
    }
    file.set_len(bytes)?;
    Ok(bytes)
}

fn number(text: impl AsRef<[u8]>) -> io::Result<u64> {
    std::str::from_utf8(text.as_ref()).ok().and_then(|text| text.parse().ok()).ok_or_else(damaged)
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the map of a sparse file is damaged")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(of: &[(&str, &str)]) -> Vec<(Vec<u8>, Vec<u8>)> {
        of.iter().map(|(key, value)| (format!("GNU.sparse.{key}").into(), (*value).into())).collect()
    }

    fn unpacked(sparse: &Sparse, entry: &[u8]) -> io::Result<Vec<u8>> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("file");
        sparse.clone().unpack(&mut &*entry, &mut std::fs::File::create(&path)?)?;
        std::fs::read(path)
    }

    #[test]
    fn each_format_gives_the_file_with_its_holes() {
        let mut data = vec![0; 2_000];
        data[100..105].copy_from_slice(b"first");
        data[1_500..1_506].copy_from_slice(b"second");
        let pairs = [("offset", "100"), ("numbytes", "5"), ("offset", "1500"), ("numbytes", "6"), ("size", "2000")];
        let old = Sparse::of(&records(&pairs)).unwrap().unwrap();
        let map = [("map", "100,5,1500,6,2000,0"), ("size", "2000"), ("name", "x.bmp")];
        let map = Sparse::of(&records(&map)).unwrap().unwrap();
        assert_eq!(map.name.as_deref(), Some(&b"x.bmp"[..]));
        for sparse in [&old, &map] {
            assert_eq!(unpacked(sparse, b"firstsecond").unwrap(), data);
            assert!(unpacked(sparse, b"firstsec").is_err(), "cut");
        }
        let lead = Sparse::of(&records(&[("major", "1"), ("minor", "0"), ("realsize", "2000")])).unwrap().unwrap();
        let mut entry = b"3\n100\n5\n1500\n6\n2000\n0\n".to_vec();
        entry.resize(BLOCK_BYTES, 0);
        assert_eq!(unpacked(&lead, &[&entry[..], b"firstsecond"].concat()).unwrap(), data);
        assert_eq!(Sparse::of(&[(b"path".to_vec(), b"x".to_vec())]).unwrap(), None);
    }

    #[test]
    fn a_damaged_map_is_refused() {
        for (of, entry) in [
            (&[("map", "0,9"), ("size", "8")][..], &b"123456789"[..]),
            (&[("map", "18446744073709551615,9"), ("size", "8")], b"123456789"),
            (&[("major", "1"), ("realsize", "8")], &[b'9'; BLOCK_BYTES]),
            (&[("major", "1"), ("realsize", "8")], &[b'-'; BLOCK_BYTES]),
        ] {
            assert!(unpacked(&Sparse::of(&records(of)).unwrap().unwrap(), entry).is_err(), "{of:?}");
        }
        assert!(Sparse::of(&records(&[("numbytes", "1")])).is_err());
        assert!(Sparse::of(&records(&[("size", "x")])).is_err());
    }

    #[test]
    fn zeros_become_holes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let data = [&[0; 70_000][..], b"data", &[0; 70_000]].concat();
        let bytes = copy_with_holes(&mut &*data, &mut std::fs::File::create(&path).unwrap()).unwrap();
        assert_eq!((bytes, std::fs::read(path).unwrap()), (data.len() as u64, data));
    }
}

//! Unpacking: the images of a tar, written below one folder.

use super::Progress;
use super::compression::{self, HEAD_BYTES};
use super::image_names::is_image;
use super::links::{self, Link, Links};
use super::sparse::{self, Sparse};
use super::tally::{Ignored, Tally};
use super::tar_block::{BLOCK_BYTES, is_tar};
use crate::escape::escaped;
use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use tar::{Entry, EntryType};

/// The most bytes that an archive may unpack to: 1 TiB.
const UNPACKED_BYTES_MAX: u64 = 1 << 40;
/// The most bytes of a file with holes: a few bytes of an archive could stand for any number.
const SPARSE_BYTES_MAX: u64 = super::ENCODED_BYTES_MAX;
/// The most bytes of memory that an archive's links may take until they are made, and what one takes beside its names.
const LINKS_BYTES_MAX: usize = 1 << 30;
const LINK_BYTES: usize = 128;
/// The most bytes of headers and their extensions (long names, pax attributes, maps of holes) ahead of one entry.
const HEADERS_BYTES_MAX: u64 = 4 << 20;
/// The most bytes of a name, as Linux has it.
const NAME_BYTES_MAX: usize = 4_096;

/// What was found in an archive beside images.
#[derive(Debug, Default)]
pub struct Unpacked {
    /// What was left out.
    pub tally: Tally,
    /// The first archive in the archive.
    pub inner: Option<PathBuf>,
    /// Whether the tar ends as tars should; a plain one that does not may be cut.
    pub is_ended: bool,
}

/// Unpacks the images of `archive` to the folder `to`.
///
/// # Errors
/// When the archive is damaged or cut, names something outside of the folder, or the disk is full.
pub fn unpack(archive: &Path, to: &Path, total_bytes: u64, progress: &mut dyn FnMut(Progress)) -> io::Result<Unpacked> {
    let read = Rc::new(Cell::new(Counts::default()));
    let mut file =
        BufReader::with_capacity(1 << 20, Counting { inner: File::open(archive)?, counts: Rc::clone(&read) });
    let head = read_head(&mut file)?;
    let kind = compression::kind(&head).map_err(io::Error::other)?;
    let mut content = compression::content(kind, (&*head).chain(file))?;
    let head = read_head(&mut content)?;
    if !is_tar(&head) {
        return Err(io::Error::other(format!("no tar, but {} is in it", compression::what(&head))));
    }
    let counts = Rc::new(Cell::new(Counts::default()));
    let content = Counting { inner: (&*head).chain(content), counts: Rc::clone(&counts) };
    let left = Rc::new(Cell::new(u64::MAX));
    let content = Limited { inner: BufReader::with_capacity(1 << 18, content), left: Rc::clone(&left) };
    let mut tar = tar::Archive::new(content);
    let mut writer = Writer::new(to);
    let mut entries = tar.entries()?;
    // Bytes of the last entry that are still to be passed over.
    let mut unread = 0;
    loop {
        // The crate reads extensions whole, into memory, whatever size their headers claim.
        left.set(HEADERS_BYTES_MAX + unread);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(|error| if left.get() == 0 { writer.headers_too_large() } else { cut(error) })?;
        left.set(u64::MAX);
        writer.entry(&mut entry)?;
        // What a file with holes has in the archive is less than its size.
        let is_sparse = entry.header().entry_type() == EntryType::GNUSparse;
        let stored = if is_sparse { entry.header().entry_size()? } else { entry.size() };
        unread =
            stored.checked_next_multiple_of(BLOCK_BYTES as u64).unwrap_or(stored).saturating_sub(u64::MAX - left.get());
        unread = unread.min(u64::MAX - HEADERS_BYTES_MAX);
        progress(Progress { read_bytes: read.get().bytes, total_bytes });
    }
    left.set(u64::MAX);
    // To the very end, where gzip's checksum stands.
    io::copy(&mut tar.into_inner(), &mut io::sink())?;
    let Writer { mut unpacked, links, .. } = writer;
    links::make(to, &links, &mut unpacked.tally)?;
    unpacked.is_ended = kind != compression::Kind::Plain || counts.get().zeros >= HEAD_BYTES as u64;
    Ok(unpacked)
}

/// The first bytes of a file, as many as tell what it is.
pub fn read_head(file: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    file.take(HEAD_BYTES as u64).read_to_end(&mut head)?;
    Ok(head)
}

/// The words of the crate `tar` for an archive that ends too early, made plain.
fn cut(error: io::Error) -> io::Error {
    let text = error.to_string();
    if error.kind() == io::ErrorKind::UnexpectedEof || text.contains("unexpected EOF") || text.contains("entire block")
    {
        return io::Error::new(io::ErrorKind::UnexpectedEof, "it is cut off within a file (fetch it again)");
    }
    error
}

struct Writer<'a> {
    to: &'a Path,
    unpacked: Unpacked,
    links: Links,
    /// Memory that the links take.
    links_bytes: usize,
    /// Bytes of all files.
    bytes: u64,
    /// The folder that was last made.
    made: PathBuf,
    /// The name of the last entry.
    last: PathBuf,
}

impl<'a> Writer<'a> {
    fn new(to: &'a Path) -> Self {
        let (made, last) = Default::default();
        Self { to, unpacked: Unpacked::default(), links: Links::new(), links_bytes: 0, bytes: 0, made, last }
    }

    fn headers_too_large(&self) -> io::Error {
        let place = match self.last.as_os_str().is_empty() {
            true => "of its first entry".to_owned(),
            false => format!("after {}", escaped(&self.last)),
        };
        io::Error::other(format!(
            "the headers {place} take more than {HEADERS_BYTES_MAX} bytes, as no archiver writes them (it is damaged or malicious: \
             write it anew, without extended attributes)"
        ))
    }

    /// Writes one entry, if it is an image, or keeps it for later, if it is a link.
    fn entry(&mut self, entry: &mut Entry<'_, impl Read>) -> io::Result<()> {
        let kind = entry.header().entry_type();
        let records = pax_records(entry)?;
        if kind == EntryType::GNUSparse && records.iter().any(|(key, _)| key == b"size") {
            return Err(io::Error::other("it is damaged: a file with holes has two sizes (write it anew)"));
        }
        let sparse = Sparse::of(&records)?;
        let name = sparse.as_ref().and_then(|sparse| sparse.name.clone());
        let path = inside(OsStr::from_bytes(&name.unwrap_or_else(|| entry.path_bytes().into_owned())))?;
        self.last.clone_from(&path);
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                if is_image(&path) {
                    let what = format!("{}: ", escaped(&path));
                    let named = |error: io::Error| io::Error::new(error.kind(), format!("{what}{}", cut(error)));
                    return self.file(entry, &path, sparse).map_err(named);
                }
                self.unpacked.tally.file(Ignored::NotAnImage);
                let is_archive = |ending| path.as_os_str().as_bytes().to_ascii_lowercase().ends_with(ending);
                if [&b".tar"[..], b".tgz", b".tar.gz", b".tar.zst"].into_iter().any(is_archive) {
                    self.unpacked.inner.get_or_insert(path);
                }
            }
            EntryType::Link | EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default();
                let target = bounded(OsStr::from_bytes(&target))?.to_owned();
                self.links_bytes += LINK_BYTES + path.as_os_str().len() + target.as_os_str().len();
                if self.links_bytes > LINKS_BYTES_MAX {
                    let count = self.links.len();
                    return Err(io::Error::other(format!(
                        "its {count} links and more take over {LINKS_BYTES_MAX} bytes of memory (archive the files themselves)"
                    )));
                }
                self.links.insert(path, Link { target, hard: kind == EntryType::Link });
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => self.unpacked.tally.file(Ignored::Special),
            // Folders are made where images need them.
            _ => {}
        }
        Ok(())
    }

    /// Writes an image.
    fn file(&mut self, entry: &mut Entry<'_, impl Read>, path: &Path, sparse: Option<Sparse>) -> io::Result<()> {
        let with_holes = sparse.is_some() || entry.header().entry_type() == EntryType::GNUSparse;
        let size = sparse.as_ref().map_or(entry.size(), |sparse| sparse.size);
        if with_holes && size > SPARSE_BYTES_MAX {
            self.unpacked.tally.file(Ignored::TooLarge);
            return Ok(());
        }
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > UNPACKED_BYTES_MAX {
            return Err(io::Error::other(format!("the archive holds more than {UNPACKED_BYTES_MAX} bytes")));
        }
        let target = self.to.join(path);
        let dir = target.parent().expect("inside the folder");
        if dir != self.made {
            std::fs::create_dir_all(dir)?;
            dir.clone_into(&mut self.made);
        }
        let mut file = File::create(&target)?;
        let written = match sparse {
            Some(sparse) => return sparse.unpack(entry, &mut file),
            None if with_holes => sparse::copy_with_holes(entry, &mut file)?,
            None => io::copy(entry, &mut file)?,
        };
        if written < size { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

/// The records of an entry's pax headers.
fn pax_records(entry: &mut Entry<'_, impl Read>) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut records = Vec::new();
    for record in entry.pax_extensions()?.into_iter().flatten() {
        let record = record?;
        records.push((record.key_bytes().to_vec(), record.value_bytes().to_vec()));
    }
    Ok(records)
}

/// A path as it is to be below the folder: an absolute one loses its beginning, as with other archivers.
fn inside(path: &OsStr) -> io::Result<PathBuf> {
    let mut inside = PathBuf::new();
    for part in bounded(path)?.components() {
        match part {
            Component::Normal(name) => inside.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::Error::other(format!("{} would lie outside of the folder", escaped(path))));
            }
        }
    }
    Ok(inside)
}

/// A name, if the system could have it.
fn bounded(name: &OsStr) -> io::Result<&Path> {
    if name.len() > NAME_BYTES_MAX {
        let begin = OsStr::from_bytes(&name.as_bytes()[..64]);
        let cause = format!(
            "{}… has a name of {} bytes, where Linux allows {NAME_BYTES_MAX} (rename it, and write the archive anew)",
            escaped(begin),
            name.len()
        );
        return Err(io::Error::other(cause));
    }
    Ok(Path::new(name))
}

/// A reader that fails when more is read than its owner allows.
struct Limited<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.left.get();
        if left == 0 && !into.is_empty() {
            return Err(io::Error::other("more is read than is allowed"));
        }
        let most = into.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = self.inner.read(&mut into[..most])?;
        self.left.set(left - read as u64);
        Ok(read)
    }
}

/// Bytes that went by, and how many of the last were zero.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    bytes: u64,
    zeros: u64,
}

struct Counting<R> {
    inner: R,
    counts: Rc<Cell<Counts>>,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(into)?;
        let Counts { bytes, zeros } = self.counts.get();
        let last = into[..read].iter().rev().take_while(|&&byte| byte == 0).count();
        let zeros = if last == read { zeros + last as u64 } else { last as u64 };
        self.counts.set(Counts { bytes: bytes + read as u64, zeros });
        Ok(read)
    }
}

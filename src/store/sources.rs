//! Decoded images of any size, kept for random views: one arena that is filled from its beginning, of which nothing is evicted.
//!
//! Each sample has a word that names its state and, once it is decoded, where it lies. Whoever claims a sample decodes it, copies it behind
//! the others and publishes its place; others wait for that. Samples without room are decoded for each use, with the same pixels.
//!
//! In memory of the process, or in a file (`--cache-file`) whose entries are checked before their first use.
#![expect(unsafe_code, reason = "hands out disjoint parts of one mapping across threads")]

use super::file::{MappedFile, open_locked, reserve};
use super::{Budget, FileError, Settled};
use crate::decode::{PIXELS_MAX, Picture};
use crate::types::{ImageSize, SampleId};
use bytemuck::{Pod, Zeroable};
use memmap2::{MmapOptions, MmapRaw};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use xxhash_rust::xxh3::Xxh3;

/// Alignment of images in the arena, and size of the header before each.
const UNIT: u64 = 64;
/// Bytes behind each image that vector loads may reach.
const SLACK: u64 = 64;
/// Bytes by which a file's arena grows.
const GROWTH: u64 = 64 << 20;
const PAGE_BYTES: u64 = 4096;
const MAGIC: u64 = u64::from_le_bytes(*b"mixdsrcs");
const VERSION: u64 = 1;

/// States of a sample, in the low bits of its word; above them is the offset of its header, in units, where it has one.
const EMPTY: u64 = 0;
/// Somebody decodes it.
const CLAIMED: u64 = 1;
/// There is no room for it.
const FULL: u64 = 2;
/// It is there.
const READY: u64 = 3;
/// The file has it, but nobody has checked it yet.
const UNCHECKED: u64 = 4;
const STATE_BITS: u32 = 3;
const STATE: u64 = (1 << STATE_BITS) - 1;

/// What stands before an image in the arena.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Header {
    /// Of the encoded image, 0 where none is known: then the entry does not outlive the process.
    stamp: u64,
    /// Of everything else and the pixels.
    hash: u64,
    sample: u32,
    width: u32,
    height: u32,
    channels: u32,
    unused: [u64; 4],
}

const _: () = assert!(size_of::<Header>() as u64 == UNIT);

impl Header {
    fn bytes(&self) -> Option<u64> {
        let pixels = u64::from(self.width) * u64::from(self.height);
        let is_image = matches!(self.channels, 1 | 3) && (1..=PIXELS_MAX).contains(&pixels);
        is_image.then(|| pixels * u64::from(self.channels))
    }

    /// Bytes of an entry of `bytes` bytes of pixels, in whole units.
    fn entry_bytes(bytes: u64) -> u64 {
        (UNIT + bytes + SLACK).next_multiple_of(UNIT)
    }

    fn hash_of(&self, picture: &Picture<'_>) -> u64 {
        let mut hash = Xxh3::new();
        hash.update(bytemuck::bytes_of(&Self { hash: 0, ..*self }));
        picture.rows().for_each(|row| hash.update(row));
        hash.digest()
    }
}

/// What becomes of a request for a sample.
pub enum Found<'a> {
    /// It is there.
    Ready(Picture<'a>),
    /// The caller is to decode it, or to check what the file has.
    Claimed(SourceClaim<'a>),
    /// There is no room: the caller decodes it for this use.
    Full,
    /// The caller gave up waiting for another who decodes it.
    GaveUp,
}

/// The decoded sources of one split.
pub struct Sources {
    // Declared, and so dropped, before the mapping.
    file: Option<MappedFile>,
    map: Option<MmapRaw>,
    /// Offset of the arena in the mapping.
    start: u64,
    /// End of the mapping.
    limit: u64,
    /// The first free byte; of a file's, behind it what is reserved.
    end: Mutex<End>,
    budget: Arc<Budget>,
    states: Box<[AtomicU64]>,
    /// Of each decoded sample height and width, in 32 bits each; 0 before it was decoded.
    sizes: Box<[AtomicU64]>,
    /// Of a file's: the hash of each sample that is kept and checked.
    hashes: Box<[AtomicU64]>,
    settled: Settled,
    decoded: AtomicU64,
}

#[derive(Debug, Clone, Copy)]
struct End {
    free: u64,
    reserved: u64,
    /// Bytes that are taken of the budget.
    taken: u64,
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sources({} samples, {} bytes)", self.states.len(), self.bytes())
    }
}

impl Sources {
    /// Sources of `samples` samples in memory of this process, which is taken from `budget` as they come.
    ///
    /// # Errors
    /// When the address space cannot be mapped.
    pub fn new(samples: u32, budget: Arc<Budget>) -> io::Result<Self> {
        let limit = budget.total() / UNIT * UNIT;
        let map = match limit {
            0 => None,
            bytes => {
                let map: MmapRaw = MmapOptions::new().len(bytes as usize).no_reserve_swap().map_anon()?.into();
                // Fewer page faults and TLB misses where the kernel grants it; nothing depends on it.
                let _ = map.advise(memmap2::Advice::HugePage);
                Some(map)
            }
        };
        Ok(Self::over(map, None, 0, limit, End { free: 0, reserved: limit, taken: 0 }, samples, budget))
    }

    /// Sources in a file, which hold what they held unless `key`, a hash of everything that pixels depend on, is another.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn in_file(path: &Path, key: u64, samples: u32, budget: Arc<Budget>) -> Result<Self, FileError> {
        let failed = |source: io::Error| FileError::Io { path: path.to_owned(), source };
        let (file, watch) = open_locked(path)?;
        let header = [MAGIC, VERSION, key, samples.into()];
        let mut found = [0; 32];
        let start = (PAGE_BYTES + u64::from(samples) * 8).next_multiple_of(PAGE_BYTES);
        let is_long_enough = file.metadata().map_err(failed)?.len() >= start;
        let mut has_header = || file.read_exact_at(&mut found, 0).is_ok() && found == bytemuck::bytes_of(&header);
        let known = is_long_enough && has_header();
        if !known {
            file.set_len(0).map_err(failed)?;
            reserve(&file, path, start)?;
            file.write_all_at(bytemuck::bytes_of(&header), 0).map_err(failed)?;
        }
        let length = file.metadata().map_err(failed)?.len();
        // The whole budget is mapped; bytes behind the file's end are touched only once they are reserved.
        let limit = (start + budget.total()).max(length);
        let map = MmapOptions::new().len(limit as usize).map_raw(&file).map_err(failed)?;
        let end = End { free: start, reserved: length, taken: 0 };
        let file = MappedFile::new(file, watch, path, &map, length);
        let sources = Self::over(Some(map), Some(file), start, limit, end, samples, budget);
        if known {
            sources.find_entries(length);
        }
        Ok(sources)
    }

    fn over(
        map: Option<MmapRaw>,
        file: Option<MappedFile>,
        start: u64,
        limit: u64,
        end: End,
        samples: u32,
        budget: Arc<Budget>,
    ) -> Self {
        let words = |count| (0..count).map(|_| AtomicU64::new(0)).collect();
        let (states, sizes, settled) = (words(samples), words(samples), Settled::default());
        let hashes = words(if file.is_some() { samples } else { 0 });
        let (end, decoded) = (Mutex::new(end), AtomicU64::new(0));
        Self { file, map, start, limit, end, budget, states, sizes, hashes, settled, decoded }
    }

    /// Notes what a file of `length` bytes holds, as far as it makes sense.
    fn find_entries(&self, length: u64) {
        let mut end = self.end();
        for sample in 0..self.states.len() as u32 {
            let offset = self.index(sample).load(Ordering::Acquire);
            if offset < self.start || !offset.is_multiple_of(UNIT) || offset > length - UNIT {
                continue;
            }
            let header = self.header(offset);
            let Some(entry) = header.bytes().map(Header::entry_bytes) else { continue };
            if header.sample == sample && header.stamp != 0 && entry <= length - offset {
                self.states[sample as usize].store((offset / UNIT) << STATE_BITS | UNCHECKED, Ordering::Release);
                end.free = end.free.max(offset + entry);
            }
        }
        // What the file has counts against the budget, also where that is smaller now.
        end.taken = end.free - self.start;
        self.budget.take_anyway(end.taken);
    }

    fn end(&self) -> MutexGuard<'_, End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file's entry of a sample.
    fn index(&self, sample: SampleId) -> &AtomicU64 {
        let map = self.map.as_ref().expect("a file is mapped");
        // SAFETY: behind the file's first page there is a word for every sample, aligned since a page is; any bits are valid.
        unsafe { &*map.as_ptr().add(PAGE_BYTES as usize + 8 * sample as usize).cast::<AtomicU64>() }
    }

    fn header(&self, offset: u64) -> Header {
        let map = self.map.as_ref().expect("what has an offset is mapped");
        assert!(offset + UNIT <= self.limit);
        // SAFETY: inside the mapping, of reserved bytes, which were written before their offset was published; any bits are valid.
        unsafe { map.as_ptr().add(offset as usize).cast::<Header>().read_unaligned() }
    }

    /// The image at an offset that was published, or whose claim the caller has; `None` where something changed the file and its header is no more.
    fn picture(&self, offset: u64) -> Option<Picture<'_>> {
        let header = self.header(offset);
        let Header { width, height, channels, .. } = header;
        let map = self.map.as_ref().expect("what has an offset is mapped");
        let bytes = header.bytes()?.checked_add(SLACK)?;
        (bytes <= self.limit - offset - UNIT).then_some(())?;
        // SAFETY: inside the mapping, of reserved bytes; they were written before their offset was published, and are never written again.
        let values = unsafe { std::slice::from_raw_parts(map.as_ptr().add((offset + UNIT) as usize), bytes as usize) };
        Some(Picture::new(width, height, channels as usize, values))
    }

    /// Finds a sample, waiting while another decodes it, unless `give_up`.
    pub fn request(&self, sample: SampleId, give_up: impl Fn() -> bool) -> Found<'_> {
        let state = &self.states[sample as usize];
        loop {
            let word = state.load(Ordering::Acquire);
            match word & STATE {
                READY => {
                    let picture = self.picture((word >> STATE_BITS) * UNIT);
                    if picture.is_none() {
                        self.file.as_ref().inspect(|file| file.mark());
                    }
                    return picture.map_or(Found::Full, Found::Ready);
                }
                FULL => return Found::Full,
                CLAIMED => {
                    let settled = || state.load(Ordering::SeqCst) & STATE != CLAIMED;
                    self.settled.wait(|| settled() || give_up());
                    if !settled() {
                        return Found::GaveUp;
                    }
                }
                // A claim would have the whole image decoded, for nothing.
                EMPTY if self.file.is_none() && self.budget.is_short() => return Found::Full,
                _ => {
                    if state.compare_exchange(word, CLAIMED, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                        let unchecked = (word & STATE == UNCHECKED).then_some((word >> STATE_BITS) * UNIT);
                        return Found::Claimed(SourceClaim { sources: self, sample, unchecked, outcome: EMPTY });
                    }
                }
            }
        }
    }

    /// The file, where there is one.
    pub fn file(&self) -> Option<&MappedFile> {
        self.file.as_ref()
    }

    /// Marks the file, where there is one, as damaged unless a sample in it is as it was when it was kept or checked.
    pub fn verify(&self, sample: SampleId) {
        let word = self.states[sample as usize].load(Ordering::Acquire);
        let Some(file) = self.file.as_ref().filter(|_| word & STATE == READY) else { return };
        let offset = (word >> STATE_BITS) * UNIT;
        let hash = self.picture(offset).map(|picture| self.header(offset).hash_of(&picture));
        if hash != Some(self.hashes[sample as usize].load(Ordering::Relaxed)) {
            file.mark();
        }
    }

    /// [`MappedFile::check`] of the file, where there is one.
    ///
    /// # Errors
    /// [`FileError::Damaged`].
    pub fn check(&self) -> Result<(), FileError> {
        self.file.as_ref().map_or(Ok(()), MappedFile::check)
    }

    /// [`MappedFile::discard`] of the file, where there is one; gives back what the images take of the budget.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn discard(&self) -> Result<(), FileError> {
        self.file.as_ref().map_or(Ok(()), MappedFile::discard)?;
        self.budget.give(std::mem::take(&mut self.end().taken));
        Ok(())
    }

    /// Whether a sample is kept.
    pub fn is_kept(&self, sample: SampleId) -> bool {
        self.states[sample as usize].load(Ordering::Acquire) & STATE == READY
    }

    /// Notes the size of a decoded sample.
    pub fn note_size(&self, sample: SampleId, size: ImageSize) {
        let word = u64::from(size.height) << 32 | u64::from(size.width);
        self.sizes[sample as usize].store(word, Ordering::Release);
    }

    /// The size of a sample that was decoded.
    pub fn size(&self, sample: SampleId) -> Option<ImageSize> {
        match self.sizes[sample as usize].load(Ordering::Acquire) {
            0 => None,
            word => Some(ImageSize { height: (word >> 32) as u32, width: word as u32 }),
        }
    }

    /// Samples.
    pub fn samples(&self) -> u32 {
        self.states.len() as u32
    }

    /// Samples that are kept and checked.
    pub fn kept(&self) -> u32 {
        self.states.iter().filter(|state| state.load(Ordering::Relaxed) & STATE == READY).count() as u32
    }

    /// Samples decoded into it so far; those that were found in a file are not among them.
    pub fn decoded(&self) -> u64 {
        self.decoded.load(Ordering::Relaxed)
    }

    /// Bytes that the images take.
    pub fn bytes(&self) -> u64 {
        self.end().taken
    }

    /// Takes room for an entry: its offset; else the sample's state, `FULL` where the budget, the mapping or the disk has none, `EMPTY` where memory
    /// is short now.
    fn allocate(&self, bytes: u64) -> Result<u64, u64> {
        let mut end = self.end();
        let next = end.free + bytes;
        if next > self.limit || self.budget.left() < bytes {
            return Err(FULL);
        }
        // Memory may be free again when the sample is decoded next.
        if self.file.is_none() && !self.budget.may_grow(bytes) {
            return Err(EMPTY);
        }
        if !self.budget.take(bytes) {
            return Err(FULL);
        }
        if next > end.reserved {
            let file = self.file.as_ref().expect("memory of the process is all reserved");
            let to = next.next_multiple_of(GROWTH).min(self.limit);
            if file.reserve(end.reserved, to - end.reserved).is_err() {
                self.budget.give(bytes);
                return Err(FULL);
            }
            end.reserved = to;
        }
        let offset = end.free;
        end.free = next;
        end.taken += bytes;
        Ok(offset)
    }
}

impl Drop for Sources {
    fn drop(&mut self) {
        self.budget.give(self.bytes());
    }
}

/// The right to decode one sample. Dropped without an outcome, the sample can be claimed again.
pub struct SourceClaim<'a> {
    sources: &'a Sources,
    sample: SampleId,
    /// Where a file has the sample, unchecked.
    unchecked: Option<u64>,
    outcome: u64,
}

impl<'a> SourceClaim<'a> {
    /// Whether a file may hold the sample, so that its stamp is worth a look.
    pub fn may_be_in_file(&self) -> bool {
        self.unchecked.is_some()
    }

    /// The sample as the file has it, if that was made from an encoded image of this stamp and is whole.
    pub fn check(mut self, stamp: u64) -> Result<Picture<'a>, Self> {
        let Some(offset) = self.unchecked else { return Err(self) };
        let (sources, header) = (self.sources, self.sources.header(offset));
        let Some(picture) = sources.picture(offset) else { return Err(self) };
        if header.stamp != stamp || header.sample != self.sample || header.hash != header.hash_of(&picture) {
            return Err(self);
        }
        sources.hashes[self.sample as usize].store(header.hash, Ordering::Relaxed);
        sources.note_size(self.sample, picture.size());
        self.outcome = (offset / UNIT) << STATE_BITS | READY;
        Ok(picture)
    }

    /// Keeps a decoded image, where there is room. `stamp` is that of the encoded image, if it is known.
    pub fn keep(mut self, picture: &Picture<'_>, stamp: Option<u64>) {
        let sources = self.sources;
        let bytes = picture.width as u64 * u64::from(picture.height) * picture.channels as u64;
        let offset = match sources.allocate(Header::entry_bytes(bytes)) {
            Ok(offset) => offset,
            Err(outcome) => return self.outcome = outcome,
        };
        let map = sources.map.as_ref().expect("there is room");
        // SAFETY: the room was allocated for this claim alone: reserved bytes inside the mapping, which nobody reads before its offset is published.
        let room =
            unsafe { std::slice::from_raw_parts_mut(map.as_mut_ptr().add(offset as usize), (UNIT + bytes) as usize) };
        let (head, pixels) = room.split_at_mut(UNIT as usize);
        let row_bytes = picture.width as usize * picture.channels;
        pixels.chunks_exact_mut(row_bytes).zip(picture.rows()).for_each(|(to, from)| to.copy_from_slice(from));
        let stamp = stamp.unwrap_or(0);
        let header = Header {
            stamp,
            hash: 0,
            sample: self.sample,
            width: picture.width,
            height: picture.height,
            channels: picture.channels as u32,
            unused: [0; 4],
        };
        // A hash costs time, and what lies in memory does not change.
        let mut hash = 0;
        if sources.file.is_some() {
            hash = header.hash_of(picture);
            sources.hashes[self.sample as usize].store(hash, Ordering::Relaxed);
        }
        head.copy_from_slice(bytemuck::bytes_of(&Header { hash, ..header }));
        if sources.file.is_some() && stamp != 0 {
            sources.index(self.sample).store(offset, Ordering::Release);
        }
        sources.decoded.fetch_add(1, Ordering::Relaxed);
        self.outcome = (offset / UNIT) << STATE_BITS | READY;
    }
}

impl Drop for SourceClaim<'_> {
    fn drop(&mut self) {
        self.sources.states[self.sample as usize].store(self.outcome, Ordering::SeqCst);
        self.sources.settled.announce();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pixels(seed: u8, bytes: usize) -> Vec<u8> {
        (0..bytes).map(|at| (at as u8).wrapping_mul(31) ^ seed).collect()
    }

    fn claim(sources: &Sources, sample: u32) -> SourceClaim<'_> {
        match sources.request(sample, || false) {
            Found::Claimed(claim) => claim,
            _ => panic!("not claimed"),
        }
    }

    fn fill(sources: &Sources, sample: u32, seed: u8, stamp: Option<u64>) {
        let values = pixels(seed, 7 * 5 * 3);
        claim(sources, sample).keep(&Picture::new(7, 5, 3, &values), stamp);
    }

    fn is_ready_with(sources: &Sources, sample: u32, seed: u8) -> bool {
        match sources.request(sample, || false) {
            Found::Ready(picture) => {
                (picture.width, picture.height) == (7, 5) && picture.values[..105] == pixels(seed, 105)
            }
            _ => false,
        }
    }

    #[test]
    fn images_are_kept_in_the_order_of_their_decoding_until_the_budget_is_spent() {
        let budget = Arc::new(Budget::new(3 * Header::entry_bytes(105) + 10));
        let sources = Sources::new(5, Arc::clone(&budget)).unwrap();
        for sample in [4, 0, 2] {
            fill(&sources, sample, sample as u8, None);
        }
        assert!([4, 0, 2].into_iter().all(|sample| is_ready_with(&sources, sample, sample as u8)));
        fill(&sources, 1, 1, None);
        assert!(matches!(sources.request(1, || false), Found::Full));
        assert_eq!((sources.kept(), sources.decoded(), budget.left()), (3, 3, 10));
        drop(sources);
        assert_eq!(budget.left(), budget.total());
    }

    #[test]
    fn whoever_finds_a_sample_claimed_waits_and_a_claim_that_is_dropped_can_be_taken_again() {
        let sources = Sources::new(2, Arc::new(Budget::new(1 << 16))).unwrap();
        let first = claim(&sources, 0);
        assert!(matches!(sources.request(0, || true), Found::GaveUp));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| is_ready_with(&sources, 0, 9));
            let values = pixels(9, 105);
            first.keep(&Picture::new(7, 5, 3, &values), None);
            assert!(waiting.join().unwrap());
        });
        drop(claim(&sources, 1));
        assert!(matches!(sources.request(1, || false), Found::Claimed(_)));
    }

    #[test]
    fn a_file_s_images_outlive_its_user_and_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sources");
        let open = |key| Sources::in_file(&path, key, 3, Arc::new(Budget::new(1 << 20))).unwrap();
        let sources = open(7);
        fill(&sources, 2, 5, Some(11));
        fill(&sources, 1, 6, None);
        assert!(matches!(Sources::in_file(&path, 7, 3, Arc::new(Budget::new(9))), Err(FileError::InUse(_))));
        drop(sources);
        let sources = open(7);
        // What had no stamp is decoded again.
        assert!(!claim(&sources, 1).may_be_in_file());
        let again = claim(&sources, 2);
        assert!(again.may_be_in_file());
        let again = again.check(12).map(drop).expect_err("made from another image");
        assert!(again.check(11).is_ok() && is_ready_with(&sources, 2, 5));
        assert_eq!(sources.size(2), Some(ImageSize { height: 5, width: 7 }));
        // It goes behind what is there.
        fill(&sources, 0, 8, Some(13));
        assert!(is_ready_with(&sources, 0, 8) && is_ready_with(&sources, 2, 5));
        drop(sources);
        // A damaged byte is seen, and another key empties the file.
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(105).position(|window| window == pixels(5, 105)).unwrap();
        bytes[at + 50] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let sources = open(7);
        assert!(claim(&sources, 2).check(11).is_err() && claim(&sources, 0).check(13).is_ok());
        drop(sources);
        assert!(!claim(&open(8), 0).may_be_in_file());
    }

    #[test]
    fn an_image_that_another_program_has_changed_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sources");
        let sources = Sources::in_file(&path, 7, 3, Arc::new(Budget::new(1 << 20))).unwrap();
        [0, 2].into_iter().for_each(|sample| fill(&sources, sample, sample as u8, None));
        let other = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        let is_sound = |sample| {
            sources.verify(sample);
            sources.check().is_ok()
        };
        assert!(is_sound(0) && is_sound(1) && is_sound(2) && sources.file().unwrap().is_suspect());
        // Stores through its mapping raise no event; here another image with its header.
        let map = MmapOptions::new().map_raw(&other).unwrap();
        let [first, entry] = [sources.start, Header::entry_bytes(105)].map(|bytes| bytes as usize);
        // SAFETY: both entries lie inside the mapping.
        unsafe { map.as_mut_ptr().add(first).copy_from(map.as_ptr().add(first + entry), entry) };
        assert!(is_sound(1) && is_sound(2) && !is_sound(0));
    }

    #[test]
    fn a_damaged_file_is_replaced_while_it_is_mapped() {
        let dir = tempfile::tempdir().unwrap();
        let (path, budget) = (dir.path().join("sources"), Arc::new(Budget::new(1 << 20)));
        let open = || Sources::in_file(&path, 7, 3, Arc::clone(&budget)).unwrap();
        let old = open();
        fill(&old, 2, 5, Some(11));
        assert!(old.check().is_ok(), "its own change");
        // A width and height of 65,535.
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[0xFF, 0xFF, 0, 0, 0xFF, 0xFF, 0, 0], old.start + 20).unwrap();
        assert!(matches!(old.request(2, || false), Found::Full));
        assert!(matches!(old.check(), Err(FileError::Damaged(_))));
        old.discard().unwrap();
        assert_eq!(budget.left(), budget.total());
        let new = open();
        fill(&old, 1, 6, Some(12));
        fill(&new, 2, 8, Some(11));
        assert!(is_ready_with(&new, 2, 8) && !claim(&new, 1).may_be_in_file());
        assert!(new.check().is_ok() && old.check().is_err());
        drop((old, new));
        assert_eq!(budget.left(), budget.total());
        assert!(claim(&open(), 2).check(11).is_ok());
    }
}

//! Fetched blocks of objects on disk, shared by all daemons that name the same folder.
//!
//! ```text
//! DIR/lock                      held while entries are made or evicted
//! DIR/objects/<key>/data        a sparse file of the object's size
//! DIR/objects/<key>/manifest    which object it is, and for each block the hash of its bytes; readers hold a shared lock on it
//! DIR/objects/<key>/claims/<n>  locked by whoever fetches block n
//! ```
//!
//! The key is a hash of endpoint, address without query, ETag and size, so that a changed object is another entry. A block's bytes are written first
//! and its record in the manifest after that. A record carries a check of itself, so one that a crash tore counts as missing, and a process verifies each block
//! against its record once before it reads it. So a block is there or not, whatever was killed when. Eviction removes whole
//! entries by least recent use, never one whose manifest somebody has locked; files that are open stay readable anyhow.

use super::options::DiskCache;
use super::store::Found;
use crate::escape::escaped;
use bytes::Bytes;
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_128};

/// Bytes of a block, the unit that is fetched: large enough that a request's latency is small against its transfer.
pub const BLOCK_BYTES: u64 = 4 << 20;
/// First bytes of a manifest of this version.
const MAGIC: &[u8; 16] = b"mixd manifest 1\0";
/// Where a manifest's records begin.
const RECORDS_AT: u64 = 4 << 10;
const RECORD_BYTES: u64 = 16;
/// Blocks of a file system's accounting.
const SECTOR_BYTES: u64 = 512;
/// Entries that a process keeps open; each takes two descriptors.
pub const OPEN_MAX: usize = 128;
/// An entry that is unused for so long is closed, so that others may evict it.
const IDLE: Duration = Duration::from_secs(10);
/// What is kept free on the disk at least, as a part of it: other programs need room, too.
const FREE_SHARE: u64 = 50;
/// The same, of large disks.
const FREE_BYTES_MAX: u64 = 2 << 30;

/// The folder.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
    budget_bytes: u64,
    open: Mutex<HashMap<u128, Open>>,
    /// Bytes that may be written before the folder is looked at again.
    allowance_bytes: Mutex<u64>,
    /// Whether it was told that the disk is nearly full.
    is_short: AtomicBool,
    /// Bytes that room was made for and that are not written yet.
    promised_bytes: AtomicU64,
    evictions: AtomicU64,
}

/// Room for bytes, until they are written.
#[derive(Debug)]
pub struct Room<'a> {
    disk: &'a Disk,
    bytes: u64,
    /// Whether they fit in the budget. What is read just now may pass it for a while.
    pub in_budget: bool,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.disk.promised_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Open {
    entry: Arc<Entry>,
    used: Instant,
}

/// Eviction goes by the time at which a manifest was last changed.
impl Drop for Open {
    fn drop(&mut self) {
        let _ = self.entry.manifest.set_modified(SystemTime::now() - self.used.elapsed());
    }
}

/// An entry as it is found in the folder: its own folder, its data, and when it was used last.
type Listed = (PathBuf, Metadata, SystemTime);

/// An object's place on disk.
#[derive(Debug)]
pub struct Entry {
    dir: PathBuf,
    /// Locked as long as this lives.
    manifest: File,
    data: File,
    nonce: u64,
    bytes: u64,
}

/// The right to fetch a block, among the daemons of a machine.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    _locked: File,
}

/// The blocks of an object that this process has found to be whole, by the nonce of the entry that they are in.
#[derive(Debug, Default)]
pub struct Verified(Mutex<(u64, Vec<u64>)>);

impl Verified {
    fn has(&self, entry: &Entry, block: u32) -> bool {
        let state = self.state();
        state.0 == entry.nonce && state.1.get(block as usize / 64).is_some_and(|word| word >> (block % 64) & 1 == 1)
    }

    fn set(&self, entry: &Entry, block: u32) {
        let mut state = self.state();
        if state.0 != entry.nonce {
            *state = (entry.nonce, vec![0; entry.bytes.div_ceil(BLOCK_BYTES).div_ceil(64) as usize]);
        }
        state.1[block as usize / 64] |= 1 << (block % 64);
    }

    fn state(&self) -> MutexGuard<'_, (u64, Vec<u64>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The range of a block.
pub fn block_range(block: u32, bytes: u64) -> std::ops::Range<u64> {
    let start = u64::from(block) * BLOCK_BYTES;
    start..(start + BLOCK_BYTES).min(bytes)
}

/// Bytes of a disk that are left to other programs.
fn reserve(disk_bytes: u64) -> u64 {
    (disk_bytes / FREE_SHARE).min(FREE_BYTES_MAX)
}

/// Whether a name is that of an entry that is being made: `tmp-` and 16 hexadecimal digits. The folder may hold what is not ours.
fn is_temporary(name: &OsStr) -> bool {
    let digits = name.to_str().and_then(|name| name.strip_prefix("tmp-"));
    digits.is_some_and(|digits| digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

impl Disk {
    /// The folder of `cache`, which is made if need be; or one in `default_dir`, of at most half of what is free there.
    ///
    /// # Errors
    /// When it cannot be made or written to.
    pub fn open(cache: Option<&DiskCache>, default_dir: &Path) -> io::Result<Self> {
        let dir = cache.map_or_else(|| default_dir.join("objects"), |cache| cache.dir.clone());
        let make = |dir: &Path| std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        make(&dir.join("objects"))?;
        let disk = Self {
            dir,
            budget_bytes: 0,
            open: Mutex::default(),
            allowance_bytes: Mutex::new(0),
            is_short: AtomicBool::new(false),
            promised_bytes: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
        };
        let lock = disk.lock()?;
        for left in std::fs::read_dir(&disk.dir)?.flatten() {
            // Nobody makes or evicts now: these are of processes that were killed.
            if is_temporary(&left.file_name()) {
                let _ = std::fs::remove_dir_all(left.path());
            }
        }
        let kept = kept(&disk.entries()?);
        drop(lock);
        let default = || disk.free().map(|(free, disk_bytes)| (free + kept).saturating_sub(reserve(disk_bytes)) / 2);
        let budget_bytes = cache.map_or_else(default, |cache| Ok(cache.bytes))?;
        Ok(Self { budget_bytes, ..disk })
    }

    /// The most bytes that are kept.
    pub fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }

    /// Objects that this process has evicted.
    pub fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }

    /// Bytes that are kept, also by others; 0 where the folder cannot be read.
    pub fn kept_bytes(&self) -> u64 {
        self.entries().map_or(0, |entries| kept(&entries))
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The key of an object's entry.
    pub fn key(endpoint: &str, object: &Found) -> u128 {
        let parts = [endpoint, &object.url.to_string(), &object.tag, &object.bytes.to_string()];
        xxh3_128(parts.join("\0").as_bytes())
    }

    /// Opens the entry of an object by its key, or makes it.
    ///
    /// # Errors
    /// When the disk fails, or the process has no descriptors left.
    pub fn entry(&self, key: u128, object: &Found) -> io::Result<Arc<Entry>> {
        let mut open = self.opened();
        if let Some(found) = open.get_mut(&key) {
            found.used = Instant::now();
            return Ok(Arc::clone(&found.entry));
        }
        if open.len() >= OPEN_MAX {
            close_oldest(&mut open, OPEN_MAX / 4);
        }
        drop(open);
        let dir = self.dir.join("objects").join(format!("{key:032x}"));
        let entry = match self.open_or_make(&dir, key, object) {
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::MFILE | Errno::NFILE)) => {
                close_oldest(&mut self.opened(), OPEN_MAX);
                self.open_or_make(&dir, key, object)?
            }
            entry => entry?,
        };
        let mut open = self.opened();
        // Another thread may have been faster.
        let found = open.entry(key).or_insert_with(|| Open { entry: Arc::new(entry), used: Instant::now() });
        Ok(Arc::clone(&found.entry))
    }

    fn open_or_make(&self, dir: &Path, key: u128, object: &Found) -> io::Result<Entry> {
        if let Some(entry) = Entry::open(dir, key, object)? {
            return Ok(entry);
        }
        let _lock = self.lock()?;
        if let Some(entry) = Entry::open(dir, key, object)? {
            return Ok(entry);
        }
        // What is there is damaged, or of another version.
        self.remove(dir)?;
        let new = self.dir.join(format!("tmp-{:016x}", random()?));
        std::fs::create_dir_all(new.join("claims"))?;
        let nonce = random()?.max(1);
        let manifest = File::create_new(new.join("manifest"))?;
        manifest.write_all_at(&header(key, object, nonce), 0)?;
        File::create_new(new.join("data"))?.set_len(object.bytes)?;
        std::fs::rename(&new, dir)?;
        Entry::open(dir, key, object)?.ok_or_else(|| io::Error::other(format!("{} was removed", escaped(dir))))
    }

    /// Makes room for `bytes` that will be written.
    ///
    /// # Errors
    /// When the folder cannot be read, or the disk has no room and there is nothing to evict.
    pub fn reserve(&self, bytes: u64) -> io::Result<Room<'_>> {
        let mut allowance = self.allowance_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        if *allowance < bytes {
            let spare = self.make_room(bytes)?;
            // Others write, too.
            *allowance = if spare < bytes { 0 } else { (spare / 4).max(bytes) };
        }
        let in_budget = *allowance >= bytes;
        *allowance -= if in_budget { bytes } else { 0 };
        self.promised_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(Room { disk: self, bytes, in_budget })
    }

    /// Evicts entries until `bytes` fit; returns what may be written.
    fn make_room(&self, bytes: u64) -> io::Result<u64> {
        let _lock = self.lock()?;
        let mut entries = self.entries()?;
        entries.sort_unstable_by_key(|(_, _, used)| *used);
        let promised = self.promised_bytes.load(Ordering::Relaxed);
        let mut kept = kept(&entries) + promised;
        let (free, disk_bytes) = self.free()?;
        let mut free = free.saturating_sub(promised);
        let spare =
            |kept: u64, free: u64| self.budget_bytes.saturating_sub(kept).min(free.saturating_sub(reserve(disk_bytes)));
        // The process's own first: what it does not read just now it need not hold.
        if spare(kept, free) < bytes {
            self.opened().retain(|_, open| Arc::strong_count(&open.entry) > 1);
        }
        for (dir, data, _) in &entries {
            if spare(kept, free) >= bytes {
                break;
            }
            if let Some(_locked) = unused(dir)
                && self.remove(dir).is_ok()
            {
                self.evictions.fetch_add(1, Ordering::Relaxed);
                kept -= data.blocks() * SECTOR_BYTES;
                free += data.blocks() * SECTOR_BYTES;
            }
        }
        let spare = spare(kept, free);
        if spare < bytes
            && self.budget_bytes.saturating_sub(kept) >= bytes
            && !self.is_short.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                "{} has {} MB free, and {} MB of its disk are left to others: objects are evicted as soon as they are read, and fetched again \
                 (free some, or name another folder with --disk-cache)",
                escaped(&self.dir),
                free / 1_000_000,
                reserve(disk_bytes) / 1_000_000
            );
        }
        // Over the budget by what is being read: that passes. A full disk does not.
        if spare < bytes && free < bytes {
            let text = format!("{} has {free} bytes free (--disk-cache names another folder)", escaped(&self.dir));
            return Err(io::Error::new(ErrorKind::StorageFull, text));
        }
        Ok(spare)
    }

    /// Closes entries that were not used for a while.
    pub fn close_idle(&self) {
        self.opened().retain(|_, open| Arc::strong_count(&open.entry) > 1 || open.used.elapsed() < IDLE);
    }

    /// Each entry: its folder, its data, and when it was used last.
    fn entries(&self) -> io::Result<Vec<Listed>> {
        let mut entries = Vec::new();
        for found in std::fs::read_dir(self.dir.join("objects"))? {
            let dir = found?.path();
            let (Ok(data), Ok(manifest)) = (dir.join("data").metadata(), dir.join("manifest").metadata()) else {
                continue;
            };
            entries.push((dir, data, manifest.modified()?));
        }
        Ok(entries)
    }

    /// Moves an entry away before it is removed, so that nobody finds half of it. The caller holds the lock.
    fn remove(&self, dir: &Path) -> io::Result<()> {
        let away = self.dir.join(format!("tmp-{:016x}", random()?));
        match std::fs::rename(dir, &away) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            renamed => renamed?,
        }
        std::fs::remove_dir_all(away)
    }

    /// Bytes that are free on the disk for this user, and its size.
    fn free(&self) -> io::Result<(u64, u64)> {
        let disk = rustix::fs::statvfs(&self.dir)?;
        Ok((disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize))
    }

    fn lock(&self) -> io::Result<File> {
        let lock = File::options().create(true).truncate(false).write(true).open(self.dir.join("lock"))?;
        lock.lock()?;
        Ok(lock)
    }

    fn opened(&self) -> MutexGuard<'_, HashMap<u128, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that entries take on the disk.
fn kept(entries: &[Listed]) -> u64 {
    entries.iter().map(|(_, data, _)| data.blocks() * SECTOR_BYTES).sum()
}

/// Closes up to `count` entries that are not in use, oldest first.
fn close_oldest(open: &mut HashMap<u128, Open>, count: usize) {
    let mut idle: Vec<_> = open.iter().filter(|(_, open)| Arc::strong_count(&open.entry) == 1).collect();
    idle.sort_unstable_by_key(|(_, open)| open.used);
    let keys: Vec<_> = idle.iter().take(count).map(|(key, _)| **key).collect();
    keys.iter().for_each(|key| drop(open.remove(key)));
}

/// An entry's manifest, locked so that nobody can open the entry; `None` where somebody has it open.
fn unused(dir: &Path) -> Option<File> {
    File::open(dir.join("manifest")).ok().filter(|manifest| manifest.try_lock().is_ok())
}

fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_ne_bytes(bytes))
}

/// A manifest's first bytes: the version, the size of what follows, which object it is, and the hash of that.
fn header(key: u128, object: &Found, nonce: u64) -> Vec<u8> {
    // For people, who look for what takes the room.
    let url: String = object.url.to_string().chars().take(200).collect();
    let (key, bytes) = (format!("{key:032x}"), object.bytes);
    let told = serde_json::json!({"key": key, "url": url, "bytes": bytes, "block_bytes": BLOCK_BYTES, "nonce": nonce});
    let told = told.to_string();
    let mut header = MAGIC.to_vec();
    header.extend_from_slice(&(told.len() as u64).to_le_bytes());
    header.extend_from_slice(told.as_bytes());
    let hash = xxh3_64(&header);
    header.extend_from_slice(&hash.to_le_bytes());
    header
}

impl Entry {
    /// The entry in `dir`; `None` where there is none of this object that can be used.
    fn open(dir: &Path, key: u128, object: &Found) -> io::Result<Option<Self>> {
        loop {
            let manifest = match File::options().read(true).write(true).open(dir.join("manifest")) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                manifest => manifest?,
            };
            manifest.lock_shared()?;
            // It may have been evicted before it was locked.
            let named = match dir.join("manifest").metadata() {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                meta => meta?,
            };
            if named.ino() != manifest.metadata()?.ino() {
                continue;
            }
            let Some(nonce) = nonce(&manifest, key, object) else { return Ok(None) };
            let data = File::options().read(true).write(true).open(dir.join("data"));
            let Ok(data) = data else { return data.map(|_| None) };
            if data.metadata()?.len() != object.bytes {
                return Ok(None);
            }
            manifest.set_modified(SystemTime::now())?;
            return Ok(Some(Self { dir: dir.to_owned(), manifest, data, nonce, bytes: object.bytes }));
        }
    }

    /// Whether a block is there and whole.
    pub fn has(&self, block: u32, verified: &Verified) -> bool {
        if verified.has(self, block) {
            return true;
        }
        let Some(expected) = self.record(block) else { return false };
        let is_whole = self.hash(block).is_ok_and(|hash| hash == expected);
        if is_whole {
            verified.set(self, block);
        }
        is_whole
    }

    /// Whether a block is named in the manifest; it may prove damaged still.
    pub fn is_named(&self, block: u32) -> bool {
        self.record(block).is_some()
    }

    /// Writes a block, all of whose bytes are `chunks`.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn put(&self, block: u32, chunks: &[Bytes], verified: &Verified) -> io::Result<()> {
        let range = block_range(block, self.bytes);
        let (mut at, mut hash) = (range.start, Xxh3::new());
        for chunk in chunks {
            self.data.write_all_at(chunk, at)?;
            hash.update(chunk);
            at += chunk.len() as u64;
        }
        if at != range.end {
            return Err(io::Error::new(ErrorKind::InvalidData, "a block of another length was to be written"));
        }
        let hash = hash.digest();
        let record = [hash, self.mark(block, hash)];
        self.manifest.write_all_at(bytemuck::cast_slice(&record), RECORDS_AT + u64::from(block) * RECORD_BYTES)?;
        verified.set(self, block);
        Ok(())
    }

    /// Fills `bytes` from blocks that are there.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.data.read_exact_at(bytes, offset)
    }

    /// The right to fetch a block; `None` while another process fetches it.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn claim(&self, block: u32) -> io::Result<Option<Claim>> {
        let path = self.dir.join("claims").join(block.to_string());
        loop {
            let file = match File::options().create(true).truncate(false).write(true).open(&path) {
                // Evicted, which only those do who ignore locks.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    std::fs::create_dir_all(self.dir.join("claims"))?;
                    continue;
                }
                file => file?,
            };
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => return Ok(None),
                locked => locked?,
            }
            // Whoever had it before may have removed its name meanwhile.
            if path.metadata().is_ok_and(|meta| file.metadata().is_ok_and(|file| file.ino() == meta.ino())) {
                return Ok(Some(Claim { path, _locked: file }));
            }
        }
    }

    fn record(&self, block: u32) -> Option<u64> {
        let mut record = [0_u64; 2];
        let at = RECORDS_AT + u64::from(block) * RECORD_BYTES;
        self.manifest.read_exact_at(bytemuck::cast_slice_mut(&mut record), at).ok()?;
        (record[1] == self.mark(block, record[0])).then_some(record[0])
    }

    /// What makes a record one of this block, and of this entry.
    fn mark(&self, block: u32, hash: u64) -> u64 {
        xxh3_64(bytemuck::cast_slice(&[self.nonce, u64::from(block), hash]))
    }

    fn hash(&self, block: u32) -> io::Result<u64> {
        let range = block_range(block, self.bytes);
        let (mut hash, mut at) = (Xxh3::new(), range.start);
        let mut buffer = vec![0; (64 << 10).min((range.end - range.start) as usize)];
        while at < range.end {
            let part = buffer.len().min((range.end - at) as usize);
            self.data.read_exact_at(&mut buffer[..part], at)?;
            hash.update(&buffer[..part]);
            at += part as u64;
        }
        Ok(hash.digest())
    }
}

/// The nonce in a manifest, if it is one of this object.
fn nonce(manifest: &File, key: u128, object: &Found) -> Option<u64> {
    let mut first = [0; RECORDS_AT as usize];
    let read = manifest.read_at(&mut first, 0).ok()?;
    let rest = first[..read].strip_prefix(MAGIC)?;
    let length = u64::from_le_bytes(rest.get(..8)?.try_into().ok()?);
    let told = rest.get(8..)?.get(..usize::try_from(length).ok()?)?;
    let nonce = serde_json::from_slice::<serde_json::Value>(told).ok()?.get("nonce")?.as_u64()?;
    // All of it, hash included, is what it would be if it were written now.
    first[..read].starts_with(&header(key, object, nonce)).then_some(nonce)
}

impl Drop for Claim {
    fn drop(&mut self) {
        // While it is locked, so that nobody else's is removed.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_keep_in_the_folder_stays() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["tmp-experiments/run", "tmp-0123456789abcdef0", "tmp-0123456789abcdeg", "tmp-0123456789abcdef"] {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        let cache = DiskCache { dir: dir.path().to_owned(), bytes: 64 << 20 };
        Disk::open(Some(&cache), dir.path()).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort_unstable();
        left.retain(|name| name.to_string_lossy().starts_with("tmp-"));
        assert_eq!(left, ["tmp-0123456789abcdef0", "tmp-0123456789abcdeg", "tmp-experiments"]);
    }
}

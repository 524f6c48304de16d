//! Mapped files under guard: a file that is cut short loses its samples, and the daemon goes on.
//!
//! An access to a page of a mapping whose file has become too short for it, or that a full disk has no room for, raises SIGBUS. The handler maps
//! a page of zeros in its place, so that the access succeeds, and marks the file as damaged. Who reads samples from a file checks the mark after the
//! last access and before anything leaves the daemon; who finds other damage sets it. SIGBUS at any other address goes to the handler that was there before.
#![expect(unsafe_code, reason = "a signal handler that maps pages")]

use std::ffi::{c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// A range of addresses under guard. Regions are never freed, since the handler may be reading them, but used again.
struct Region {
    start: AtomicUsize,
    /// 0 while the region is not in use.
    end: AtomicUsize,
    damaged: AtomicBool,
    next: Option<&'static Region>,
}

/// The newest region.
static REGIONS: AtomicPtr<Region> = AtomicPtr::new(ptr::null_mut());
/// The handler that was there before; null before this one is installed.
static FORMER: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());
/// Held while the list or the handlers are changed.
static CHANGE: Mutex<()> = Mutex::new(());

fn regions() -> impl Iterator<Item = &'static Region> {
    // SAFETY: a region is complete before it is published (Release below), and never freed or moved.
    let first = unsafe { REGIONS.load(Ordering::Acquire).as_ref() };
    std::iter::successors(first, |region| region.next)
}

/// Guards a mapping of a file until it is dropped, which must be before the mapping is.
pub struct Guard {
    region: &'static Region,
    path: PathBuf,
}

impl Guard {
    /// Guards `bytes` bytes from `start` on, which map the file at `path`.
    pub fn new(start: *const u8, bytes: usize, path: &Path) -> Self {
        let _one_at_a_time = CHANGE.lock().unwrap_or_else(PoisonError::into_inner);
        install();
        let region = regions().find(|region| region.end.load(Ordering::Relaxed) == 0).unwrap_or_else(|| {
            let (start, end, damaged) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
            let region = Box::leak(Box::new(Region { start, end, damaged, next: regions().next() }));
            REGIONS.store(region, Ordering::Release);
            region
        });
        region.damaged.store(false, Ordering::Relaxed);
        region.start.store(start.addr(), Ordering::Relaxed);
        region.end.store(start.addr() + bytes, Ordering::Release);
        Self { region, path: path.to_owned() }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Marks the file as damaged.
    pub fn mark(&self) {
        self.region.damaged.store(true, Ordering::Release);
    }

    /// Whether the file was marked, or an access so far was to a page that it does not have: what was read from the mapping since it was made may be
    /// zeros.
    pub fn is_damaged(&self) -> bool {
        self.region.damaged.load(Ordering::Acquire)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.region.end.store(0, Ordering::Release);
    }
}

/// Installs the handler, once in the process's life. The caller holds [`CHANGE`].
fn install() {
    if !FORMER.load(Ordering::Acquire).is_null() {
        return;
    }
    // SAFETY: a sigaction of zeros is valid: no flags, an empty mask, the default action.
    let [mut action, mut former]: [libc::sigaction; 2] = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_bus as *const () as usize;
    // On the alternate stack where there is one, as Rust's own handler, which recognises a stack that overflows.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: both point to actions; the handler has the signature that SA_SIGINFO asks for, and calls only what is async-signal-safe.
    if unsafe { libc::sigaction(libc::SIGBUS, &action, &mut former) } == 0 {
        FORMER.store(Box::leak(Box::new(former)), Ordering::Release);
    }
}

extern "C" fn on_bus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo; SIGBUS has an address.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    let is_inside = |region: &&Region| {
        let end = region.end.load(Ordering::Acquire);
        (region.start.load(Ordering::Relaxed)..end).contains(&address)
    };
    if code == libc::BUS_ADRERR
        && let Some(region) = regions().find(is_inside)
    {
        // Before the page is there: another thread may read it without a fault, and must find the mark.
        region.damaged.store(true, Ordering::SeqCst);
        if map_zeros(address) {
            return;
        }
    }
    // SAFETY: null, or leaked by `install`.
    let former = unsafe { FORMER.load(Ordering::Acquire).as_ref() };
    let handler = former.map_or(libc::SIG_DFL, |former| former.sa_sigaction);
    if [libc::SIG_DFL, libc::SIG_IGN].contains(&handler) {
        // An access fails again and ends the process; a signal that was sent does not come again.
        // SAFETY: signal and raise are async-signal-safe.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            if code <= 0 {
                libc::raise(signal);
            }
        }
    } else if former.is_some_and(|former| former.sa_flags & libc::SA_SIGINFO != 0) {
        // SAFETY: an action with SA_SIGINFO holds a handler of this type.
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = unsafe { std::mem::transmute(handler) };
        handler(signal, info, context);
    } else {
        // SAFETY: an action without SA_SIGINFO holds a handler of this type.
        let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(handler) };
        handler(signal);
    }
}

/// Maps a page of zeros where `address` is; whether that succeeded. Keeps errno, which the interrupted code may be about to read.
fn map_zeros(address: usize) -> bool {
    // SAFETY: sysconf with this name, mmap and errno's location are async-signal-safe in every C library of Linux. The page lies in a mapping under guard,
    // whose bytes are atomics, or are checked before they are believed.
    unsafe {
        let errno = *libc::__errno_location();
        let page_bytes = libc::sysconf(libc::_SC_PAGESIZE) as usize;
        let page = ptr::with_exposed_provenance_mut(address / page_bytes * page_bytes);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let mapped = libc::mmap(page, page_bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        *libc::__errno_location() = errno;
        mapped != libc::MAP_FAILED
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memmap2::{MmapOptions, MmapRaw};
    use std::fs::File;
    use std::os::unix::process::ExitStatusExt;

    fn mapped(dir: &Path, name: &str) -> (PathBuf, File, MmapRaw) {
        let path = dir.join(name);
        std::fs::write(&path, [7; 1 << 16]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let map = MmapOptions::new().map_raw(&file).unwrap();
        (path, file, map)
    }

    fn byte(map: &MmapRaw, at: usize) -> u8 {
        assert!(at < map.len());
        // SAFETY: inside the mapping.
        unsafe { map.as_ptr().add(at).read_volatile() }
    }

    #[test]
    fn a_file_that_is_cut_reads_as_zeros_and_is_marked_and_others_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let (path, file, map) = mapped(dir.path(), "cut");
        let (other_path, _other, other_map) = mapped(dir.path(), "whole");
        let guard = Guard::new(map.as_ptr(), map.len(), &path);
        let other = Guard::new(other_map.as_ptr(), other_map.len(), &other_path);
        assert!(byte(&map, 40_000) == 7 && !guard.is_damaged());
        file.set_len(8_192).unwrap();
        assert!(byte(&map, 100) == 7 && !guard.is_damaged(), "what is left is read");
        assert_eq!(byte(&map, 40_000), 0);
        // SAFETY: inside the mapping.
        unsafe { map.as_mut_ptr().add(60_000).write_volatile(5) };
        assert_eq!(byte(&map, 60_000), 5);
        assert!(guard.is_damaged() && guard.path() == path);
        assert!(byte(&other_map, 40_000) == 7 && !other.is_damaged());
        drop(guard);
        // A region that is used again starts sound.
        let (path, _file, map) = mapped(dir.path(), "next");
        assert!(!Guard::new(map.as_ptr(), map.len(), &path).is_damaged());
    }

    /// Run by the test below in a process of its own.
    #[test]
    #[ignore = "ends its process"]
    fn dies_of_a_file_that_is_not_guarded() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _file, map) = mapped(dir.path(), "guarded");
        let _guard = Guard::new(map.as_ptr(), map.len(), &path);
        let (_, file, map) = mapped(dir.path(), "cut");
        file.set_len(0).unwrap();
        byte(&map, 0);
    }

    #[test]
    fn other_addresses_end_the_process_as_before() {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        let status = command.args(["--ignored", "--exact", "store::guard::tests::dies_of_a_file_that_is_not_guarded"]);
        assert_eq!(status.output().unwrap().status.signal(), Some(libc::SIGBUS));
    }
}

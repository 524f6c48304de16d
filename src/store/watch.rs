//! Notices when another program changes a cache file: an inotify watch of one inode, on this machine.
//!
//! Stores through a mapping, this daemon's own ones included, raise no event; `write`, `truncate` and `fallocate` do, before they return. The
//! kernel merges equal events, so this daemon's own changes are made in [`Watch::change`], which takes their event.

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::{Errno, read};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// A watch of one file.
pub struct Watch {
    inotify: OwnedFd,
    /// Whether another program has changed the file.
    changed: AtomicBool,
    /// Held while this daemon changes the file.
    changing: Mutex<()>,
}

impl Watch {
    /// Watches a file from now on.
    ///
    /// # Errors
    /// When the user has too many inotify instances, or /proc is not mounted.
    pub fn new(file: &File) -> Result<Self, Errno> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        inotify::add_watch(&inotify, format!("/proc/self/fd/{}", file.as_raw_fd()), WatchFlags::MODIFY)?;
        Ok(Self { inotify, changed: AtomicBool::new(false), changing: Mutex::new(()) })
    }

    /// Whether another program has changed the file; while this one does, whether it had before.
    pub fn is_changed(&self) -> bool {
        if let Ok(_idle) = self.changing.try_lock() {
            self.look();
        }
        self.changed.load(Ordering::Relaxed)
    }

    /// Makes a change of this daemon's own. One that another program makes meanwhile is not noticed.
    pub fn change<T>(&self, change: impl FnOnce() -> T) -> T {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.look();
        let result = change();
        self.take_events();
        result
    }

    /// Notes the events so far, of which none are this daemon's.
    fn look(&self) {
        if self.take_events() {
            self.changed.store(true, Ordering::Relaxed);
        }
    }

    /// Takes the events so far; whether there were any.
    fn take_events(&self) -> bool {
        read(&self.inotify, &mut [0; 512]).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn only_changes_that_others_make_are_reported() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let watch = Watch::new(file.as_file()).unwrap();
        watch.change(|| file.as_file().set_len(10)).unwrap();
        std::fs::read(file.path()).unwrap();
        assert!(!watch.is_changed());
        file.write_all(b"x").unwrap();
        // Also one that comes just before this daemon's own.
        watch.change(|| file.as_file().set_len(20)).unwrap();
        assert!(watch.is_changed() && watch.is_changed());
    }
}

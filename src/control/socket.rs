//! Where a daemon lives: its socket and its lock, of which it is the only owner.

use crate::escape::escaped;
use crate::wire::{default_socket, too_long};
use rustix::fs::{FlockOperation, OFlags, flock};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Why a daemon cannot live where it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another daemon is there.
    #[error(
        "a daemon with pid {pid} already serves {} (stop it with `mixd stop --socket {}`, or use another --socket)",
        escaped(socket),
        escaped(socket)
    )]
    Occupied {
        /// The other's process id; `?` where it has not written it yet.
        pid: String,
        /// The socket.
        socket: PathBuf,
    },
    /// A folder belongs to somebody else or is open to others.
    #[error("{} is not a folder that only this user can change (remove it, or name another --socket)", escaped(.0))]
    NotPrivate(PathBuf),
    /// The path is longer than the system allows.
    #[error("cannot serve on {}: {cause}", escaped(socket))]
    TooLong {
        /// The socket.
        socket: PathBuf,
        /// How long it is, and the remedy.
        cause: String,
    },
    /// What lies where the socket or its lock should is no daemon's.
    #[error("{} is there, and is not what a daemon left (remove it, or name another --socket)", escaped(.0))]
    Foreign(PathBuf),
    /// A system call failed.
    #[error("cannot {action} {}: {source}", escaped(path))]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SocketError {
    let path = path.to_owned();
    move |source| SocketError::Io { action, path, source }
}

fn uid() -> u32 {
    rustix::process::getuid().as_raw()
}

/// More bytes than a lock holds.
const LOCK_BYTES_MAX: u64 = 32;

/// The places of one daemon. Dropping it removes them.
#[derive(Debug)]
pub struct Home {
    socket: PathBuf,
    lock_path: PathBuf,
    /// Held for its lock.
    lock: File,
}

impl Home {
    /// Takes the places for `socket`; removes what a dead daemon left there, and dead daemons beside the default socket, where each daemon that belongs to a process has a socket of another name.
    ///
    /// # Errors
    /// When another daemon serves there, naming its pid, or a folder is not private.
    pub fn take(socket: &Path) -> Result<Self, SocketError> {
        let dir = match socket.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_error("create", dir))?;
        let dir = dir.canonicalize().map_err(io_error("find", dir))?;
        let owner = std::fs::metadata(&dir).map_err(io_error("look at", &dir))?.uid();
        // Who owns the folder could put anything in the place of our files; in root's /tmp nobody else can.
        if ![0, uid()].contains(&owner) {
            return Err(SocketError::NotPrivate(dir));
        }
        let socket = dir.join(socket.file_name().unwrap_or("mixd.sock".as_ref()));
        if let Some(cause) = too_long(&socket) {
            return Err(SocketError::TooLong { socket, cause });
        }
        if std::fs::symlink_metadata(&socket).is_ok_and(|there| !there.file_type().is_socket()) {
            return Err(SocketError::Foreign(socket));
        }
        let lock_path = lock_path(&socket);
        let lock = lock_socket(&lock_path, &socket)?;
        remove(&socket, std::fs::remove_file)?;
        if default_socket().parent().and_then(|home| home.canonicalize().ok()).is_some_and(|home| home == dir) {
            sweep(&dir);
        }
        Ok(Self { socket, lock_path, lock })
    }

    /// The socket's path.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Who cleans temporary folders may have removed it: then what lies here is the next daemon's, if there is one.
        let is_ours = is_still_at(&self.lock, &self.lock_path) || !self.lock_path.exists();
        if is_ours {
            let _ = std::fs::remove_file(&self.socket);
        }
        // Last, and while still locked: whoever opened it before this looks whether it is still there.
        if is_ours {
            let _ = std::fs::remove_file(&self.lock_path);
        }
    }
}

/// Where a socket's lock is: beside it, and no other socket's.
fn lock_path(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    path.into()
}

fn remove(path: &Path, how: fn(PathBuf) -> io::Result<()>) -> Result<(), SocketError> {
    match how(path.to_owned()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Whether `file` is still what lies at `path`, which its last owner may have removed since it was opened.
fn is_still_at(file: &File, path: &Path) -> bool {
    let same =
        |ours: std::fs::Metadata, there: std::fs::Metadata| (ours.dev(), ours.ino()) == (there.dev(), there.ino());
    file.metadata().is_ok_and(|ours| std::fs::symlink_metadata(path).is_ok_and(|there| same(ours, there)))
}

/// Opens a lock file, making it if need be, but no link to one.
fn open_lock(path: &Path) -> io::Result<File> {
    let no_follow = OFlags::NOFOLLOW.bits() as i32;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(no_follow).open(path)
}

/// Locks the file that stands for the socket and writes our pid into it.
fn lock_socket(path: &Path, socket: &Path) -> Result<File, SocketError> {
    loop {
        let mut file = open_lock(path).map_err(io_error("open", path))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            let pid = if pid.trim().is_empty() { "?".to_owned() } else { pid.trim().to_owned() };
            return Err(SocketError::Occupied { pid, socket: socket.to_owned() });
        }
        if is_still_at(&file, path) {
            if !is_a_daemons(&file).map_err(io_error("read", path))? {
                return Err(SocketError::Foreign(path.to_owned()));
            }
            // Another program's, or a daemon's whose lock was removed.
            if UnixStream::connect(socket).is_ok() {
                let _ = std::fs::remove_file(path);
                return Err(SocketError::Occupied { pid: "?".to_owned(), socket: socket.to_owned() });
            }
            let write = |file: &mut File| {
                file.set_len(0)?;
                file.rewind()?;
                writeln!(file, "{}", std::process::id())
            };
            write(&mut file).map_err(io_error("write", path))?;
            return Ok(file);
        }
    }
}

/// Whether a lock file, of which nothing was read yet, has what a daemon writes into it: nothing, or its process id.
fn is_a_daemons(mut lock: &File) -> io::Result<bool> {
    let meta = lock.metadata()?;
    if !meta.is_file() || meta.len() > LOCK_BYTES_MAX {
        return Ok(false);
    }
    let mut found = Vec::new();
    lock.read_to_end(&mut found)?;
    Ok(found.iter().all(|byte| byte.is_ascii_digit() || *byte == b'\n'))
}

/// Removes the sockets and locks of dead daemons, as far as they can be removed: nobody waits for their names.
fn sweep(dir: &Path) {
    for path in std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.extension().is_none_or(|extension| extension != "lock") {
            continue;
        }
        let careful = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
        let Ok(lock) = OpenOptions::new().read(true).custom_flags(careful).open(&path) else { continue };
        let is_dead = flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() && is_still_at(&lock, &path);
        if is_dead && is_a_daemons(&lock).unwrap_or(false) {
            let socket = path.with_extension("");
            if std::fs::symlink_metadata(&socket).is_ok_and(|there| there.file_type().is_socket()) {
                let _ = std::fs::remove_file(socket);
            }
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_refused_naming_the_first_ones_pid() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("a/mixd.sock");
        let first = Home::take(&socket).unwrap();
        let error = Home::take(&socket).unwrap_err();
        assert!(
            matches!(&error, SocketError::Occupied { pid, .. } if *pid == std::process::id().to_string()),
            "{error}"
        );
        drop(first);
        Home::take(&socket).unwrap();
    }

    #[test]
    fn what_a_dead_daemon_left_is_removed_and_what_live_ones_have_is_not() {
        let dir = tempfile::tempdir().unwrap();
        // Names that differ after a dot only.
        let [socket, other] = ["node.0", "node.1"].map(|name| dir.path().join(name));
        let other = Home::take(&other).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(other.socket()).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        std::fs::write(dir.path().join("node.0.lock"), "1\n").unwrap();
        let home = Home::take(&socket).unwrap();
        assert!(!socket.exists() && other.socket().exists());
        drop((home, other));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_lock_that_is_a_link_is_refused_and_its_target_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("precious");
        std::fs::write(&target, "precious").unwrap();
        std::os::unix::fs::symlink(&target, dir.path().join("mixd.sock.lock")).unwrap();
        let error = Home::take(&dir.path().join("mixd.sock")).unwrap_err();
        assert!(matches!(error, SocketError::Io { action: "open", .. }));
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "precious");
    }

    #[test]
    fn what_no_daemon_left_where_it_would_be_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let [socket, lock] = ["precious.sock", "Cargo.lock"].map(|name| dir.path().join(name));
        for path in [&socket, &lock] {
            std::fs::write(path, "[[package]]").unwrap();
        }
        for (socket, path) in [(socket.clone(), &socket), (lock.with_extension(""), &lock)] {
            let error = Home::take(&socket).unwrap_err();
            assert!(matches!(&error, SocketError::Foreign(foreign) if foreign == path), "{error}");
            assert_eq!(std::fs::read_to_string(path).unwrap(), "[[package]]");
        }
        sweep(dir.path());
        assert_eq!(std::fs::read_to_string(&lock).unwrap(), "[[package]]");
        let agent = dir.path().join("agent.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&agent).unwrap();
        let error = Home::take(&agent).unwrap_err();
        assert!(matches!(&error, SocketError::Occupied { pid, .. } if pid == "?"), "{error}");
        assert!(agent.exists());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_path_that_is_too_long_for_a_socket_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let longest = 107 - dir.path().canonicalize().unwrap().as_os_str().len() - 1;
        for (bytes, is_refused) in [(longest, false), (longest + 1, true)] {
            let taken = Home::take(&dir.path().join("s".repeat(bytes)));
            assert_eq!(matches!(&taken, Err(SocketError::TooLong { .. })), is_refused, "{taken:?}");
            let Ok(home) = taken else { continue };
            drop(std::os::unix::net::UnixListener::bind(home.socket()).unwrap());
        }
    }

    #[test]
    fn a_daemon_whose_lock_was_removed_leaves_the_next_ones_places_alone() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("mixd.sock");
        let first = Home::take(&socket).unwrap();
        std::fs::remove_file(dir.path().join("mixd.sock.lock")).unwrap();
        let second = Home::take(&socket).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(second.socket()).unwrap();
        drop(first);
        assert!(socket.exists() && dir.path().join("mixd.sock.lock").exists());
        std::fs::remove_file(dir.path().join("mixd.sock.lock")).unwrap();
        drop(second);
        assert!(!socket.exists());
    }
}

//! Where a daemon lives: its socket, its lock and its folder on tmpfs, of which it is the only owner.

use rustix::fs::{FlockOperation, flock};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Why a daemon cannot live where it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another daemon is there.
    #[error("a daemon with pid {pid} already serves {} (stop it with `mixd stop --socket {}`, or use another --socket)", socket.display(), socket.display())]
    Occupied {
        /// The other's process id; `?` where it has not written it yet.
        pid: String,
        /// The socket.
        socket: PathBuf,
    },
    /// A folder belongs to somebody else or is open to others.
    #[error("{} is not a folder of this user with mode 0700 (remove it or set another --shm-dir)", .0.display())]
    NotPrivate(PathBuf),
    /// A system call failed.
    #[error("cannot {action} {}: {source}", path.display())]
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

/// `$XDG_RUNTIME_DIR/mixd/mixd.sock`, else `mixd-<uid>/mixd.sock` in the temporary directory.
pub fn default_socket() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_dir()) {
        Some(dir) => Path::new(&dir).join("mixd/mixd.sock"),
        None => std::env::temp_dir().join(format!("mixd-{}/mixd.sock", uid())),
    }
}

fn uid() -> u32 {
    rustix::process::getuid().as_raw()
}

/// The places of one daemon. Dropping it removes them.
#[derive(Debug)]
pub struct Home {
    socket: PathBuf,
    lock_path: PathBuf,
    shm_dir: PathBuf,
    /// Held for its lock.
    _lock: File,
}

impl Home {
    /// Takes the places for `socket`: locks it, and removes what a dead daemon left there.
    ///
    /// # Errors
    /// When another daemon holds them, naming its pid, or a folder is not private.
    pub fn take(socket: &Path, shm_root: &Path) -> Result<Self, SocketError> {
        let dir = match socket.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_error("create", dir))?;
        let dir = dir.canonicalize().map_err(io_error("find", dir))?;
        let socket = dir.join(socket.file_name().unwrap_or("mixd.sock".as_ref()));
        let lock_path = socket.with_extension("lock");
        let lock = lock(&lock_path, &socket)?;

        let user_dir = shm_root.join(format!("mixd-{}", uid()));
        DirBuilder::new().recursive(true).mode(0o700).create(&user_dir).map_err(io_error("create", &user_dir))?;
        let meta = std::fs::symlink_metadata(&user_dir).map_err(io_error("look at", &user_dir))?;
        if !meta.is_dir() || meta.uid() != uid() || meta.permissions().mode() & 0o077 != 0 {
            return Err(SocketError::NotPrivate(user_dir));
        }
        let key = xxhash_rust::xxh3::xxh3_64(socket.as_os_str().as_encoded_bytes());
        let shm_dir = user_dir.join(format!("{key:016x}"));
        // Whoever made these is dead: we hold the lock.
        for stale in [remove(&socket, std::fs::remove_file), remove(&shm_dir, std::fs::remove_dir_all)] {
            stale?;
        }
        DirBuilder::new().mode(0o700).create(&shm_dir).map_err(io_error("create", &shm_dir))?;
        Ok(Self { socket, lock_path, shm_dir, _lock: lock })
    }

    /// The socket's path.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The folder for rings.
    pub fn shm_dir(&self) -> &Path {
        &self.shm_dir
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
        let _ = std::fs::remove_dir_all(&self.shm_dir);
        // Fails while other daemons of this user have theirs there.
        let _ = self.shm_dir.parent().map(std::fs::remove_dir);
        // Last, and while still locked: whoever opened it before this looks whether it is still there.
        let _ = std::fs::remove_file(&self.lock_path);
    }
}

fn remove(path: &Path, how: fn(PathBuf) -> io::Result<()>) -> Result<(), SocketError> {
    match how(path.to_owned()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Locks the file that stands for the socket and writes our pid into it.
fn lock(path: &Path, socket: &Path) -> Result<File, SocketError> {
    loop {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(path).map_err(io_error("open", path))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            let pid = if pid.trim().is_empty() { "?".to_owned() } else { pid.trim().to_owned() };
            return Err(SocketError::Occupied { pid, socket: socket.to_owned() });
        }
        // The last owner may have removed the file between our open and our lock; then it stands for nothing.
        let same =
            std::fs::metadata(path).is_ok_and(|there| file.metadata().is_ok_and(|ours| ours.ino() == there.ino()));
        if same {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_refused_naming_the_first_ones_pid() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("a/mixd.sock");
        let first = Home::take(&socket, dir.path()).unwrap();
        let error = Home::take(&socket, dir.path()).unwrap_err();
        assert!(
            matches!(&error, SocketError::Occupied { pid, .. } if *pid == std::process::id().to_string()),
            "{error}"
        );
        drop(first);
        Home::take(&socket, dir.path()).unwrap();
    }

    #[test]
    fn what_a_dead_daemon_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("mixd.sock");
        let home = Home::take(&socket, dir.path()).unwrap();
        let shm = home.shm_dir().to_owned();
        drop(home);
        std::fs::create_dir_all(shm.join("0")).unwrap();
        std::fs::set_permissions(shm.parent().unwrap(), std::fs::Permissions::from_mode(0o700)).unwrap();
        std::fs::write(shm.join("0/data"), "old").unwrap();
        std::fs::write(&socket, "old").unwrap();
        let home = Home::take(&socket, dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(home.shm_dir()).unwrap().count(), 0);
        assert!(!socket.exists());
        drop(home);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_others_can_open_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join(format!("mixd-{}", uid()));
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o755)).unwrap();
        let error = Home::take(&dir.path().join("mixd.sock"), dir.path()).unwrap_err();
        assert!(matches!(error, SocketError::NotPrivate(path) if path == open));
    }
}

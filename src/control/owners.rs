//! Who a daemon belongs to, where it is not to outlive them: its standard input, and connections of the processes that share it.
//!
//! A part ends when its descriptor is closed, which the kernel does for a process that dies. One that leaves in order sends [`LEAVES`] first. A
//! connection may bring a descriptor (pidfd) of its launcher, the process that would start it again: `torchrun`, `mpirun` and the like.

use crate::wire::receive;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::watch;

/// What an owner sends before it leaves in order.
const LEAVES: u8 = b'q';
/// What the daemon sends once a connection counts, before its key.
const COUNTS: u8 = b'+';
/// Launchers that are remembered: one a node and agent, and a launcher sends itself once for each of its ranks.
const LAUNCHERS_MAX: usize = 256;

#[derive(Default)]
struct Parts {
    now: usize,
    /// Whether one has died since there was none.
    died: bool,
    /// Whether the daemon ends: none is counted any more.
    closed: bool,
    launchers: Vec<Arc<OwnedFd>>,
}

/// The owners of a daemon, none at first.
#[derive(Clone, Default)]
pub struct Owners {
    parts: Arc<watch::Sender<Parts>>,
    /// Names what the daemon serves and how, for owners who join it at a socket that another may have taken.
    key: Arc<str>,
}

impl Owners {
    /// None, of a daemon with this key.
    pub fn of(key: &str) -> Self {
        Self { parts: Arc::default(), key: key.into() }
    }

    /// Counts standard input as a part.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn add_stdin(&self) -> io::Result<()> {
        let _ = self.join(None);
        let owners = self.clone();
        // A plain thread, since a blocked read of standard input would hold up the runtime's end.
        let watch = move || {
            let (mut last, mut byte) = (None, [0]);
            while std::io::stdin().read(&mut byte).is_ok_and(|bytes| bytes > 0) {
                last = Some(byte[0]);
            }
            owners.leave(last == Some(LEAVES));
        };
        std::thread::Builder::new().name("mixd-owner".to_owned()).spawn(watch)?;
        Ok(())
    }

    /// Counts a connection as a part until it ends, unless the daemon is about to end; its first bytes were read.
    ///
    /// # Errors
    /// When the connection fails before it counts.
    pub async fn serve(&self, mut stream: UnixStream, launcher: Option<OwnedFd>) -> io::Result<()> {
        if !self.join(launcher) {
            return Ok(());
        }
        if let Err(error) = stream.write_all(&[&[COUNTS], self.key.as_bytes()].concat()).await {
            self.leave(false);
            return Err(error);
        }
        let (mut last, mut bytes) = (None, [0; 64]);
        while let Ok((count @ 1.., _)) = receive(&stream, &mut bytes).await {
            last = Some(bytes[count - 1]);
        }
        self.leave(last == Some(LEAVES));
        Ok(())
    }

    /// Whether it counts.
    fn join(&self, launcher: Option<OwnedFd>) -> bool {
        self.parts.send_if_modified(|parts| {
            if parts.closed {
                return false;
            }
            parts.died &= parts.now > 0;
            parts.now += 1;
            parts.launchers.retain(|launcher| is_running(launcher));
            if parts.launchers.len() < LAUNCHERS_MAX {
                parts.launchers.extend(launcher.map(Arc::new));
            }
            true
        })
    }

    fn leave(&self, in_order: bool) {
        self.parts.send_modify(|parts| {
            parts.now -= 1;
            parts.died |= !in_order;
        });
    }

    /// Counts none any more: the daemon ends.
    pub fn close(&self) {
        self.parts.send_modify(|parts| parts.closed = true);
    }

    /// [`Owners::close`] where there is none; whether that is so.
    fn close_if_none(&self) -> bool {
        self.parts.send_if_modified(|parts| {
            parts.closed |= parts.now == 0;
            parts.now == 0
        })
    }

    /// Waits until there is no owner, and none can be expected: the last have all left in order, or their launchers have ended, or none has come for as
    /// long as `linger`.
    pub async fn gone(&self, linger: Duration) {
        let mut parts = self.parts.subscribe();
        // Fails only when the sender is gone, and `self` holds it.
        while parts.wait_for(|parts| parts.now == 0).await.is_ok() {
            let (died, launchers) = {
                let parts = parts.borrow();
                (parts.died, parts.launchers.clone())
            };
            if died {
                tokio::select! {
                    () = ended(launchers) => {}
                    () = tokio::time::sleep(linger) => {}
                    _ = parts.wait_for(|parts| parts.now > 0) => {}
                }
            }
            // One that comes from here on is refused, and starts another daemon.
            if self.close_if_none() {
                return;
            }
        }
    }
}

/// Whether the process of a pidfd runs.
fn is_running(process: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(process, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())) == Ok(0)
}

/// Waits until all of these processes have ended; for ever where there are none.
async fn ended(processes: Vec<Arc<OwnedFd>>) {
    if processes.is_empty() {
        return std::future::pending().await;
    }
    for process in processes {
        exited(process).await;
    }
}

/// Waits until the process of a pidfd has exited; for ever where the system cannot watch it.
pub(super) async fn exited(process: impl AsRawFd) {
    #[expect(
        deprecated,
        reason = "its successor is unsafe, for descriptors that somebody else may close; this one is owned"
    )]
    match AsyncFd::with_interest(process, Interest::READABLE) {
        Ok(watched) => drop(watched.readable().await),
        Err(_) => std::future::pending().await,
    }
}

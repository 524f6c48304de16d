//! Calls that are over with their answer.

use super::{ClientError, lacks_descriptors};
use crate::spec::Recipe;
use crate::status::Status;
use crate::wire::control_client::ControlClient;
use crate::wire::{WatchRequest, too_long};
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint};

/// How often a caller looks whether it was interrupted.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// How long a daemon may take to answer: one that works does so within milliseconds.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// A runtime for one thread, enough for a client.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, ClientError> {
    // As many descriptors as it takes with tokio's signals, which panic without.
    let pairs: Result<Vec<_>, _> = (0..3).map(|_| std::os::unix::net::UnixStream::pair()).collect();
    if pairs.is_err_and(|error| lacks_descriptors(&error)) {
        return Err(ClientError::NoDescriptors);
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        match lacks_descriptors(&error) {
            true => ClientError::NoDescriptors,
            false => ClientError::Start(error),
        }
    })
}

/// A plain connection to a daemon's socket.
async fn open(socket: &Path) -> Result<UnixStream, ClientError> {
    UnixStream::connect(socket).await.map_err(|error| {
        let cause = match error.kind() {
            _ if lacks_descriptors(&error) => return ClientError::NoDescriptors,
            ErrorKind::PermissionDenied => {
                format!("{error}: the socket is another user's, and a daemon serves its own user only")
            }
            _ => error.to_string(),
        };
        ClientError::NoDaemon { socket: socket.to_owned(), cause }
    })
}

/// Connects to a daemon.
pub(super) async fn connect(socket: &Path) -> Result<ControlClient<Channel>, ClientError> {
    let no_daemon = |cause: String| ClientError::NoDaemon { socket: socket.to_owned(), cause };
    if let Some(why) = too_long(socket) {
        return Err(no_daemon(why));
    }
    // The transport's errors hide the system's answer at the end of a chain; a plain connect gives it plainly.
    drop(open(socket).await?);
    let endpoint = Endpoint::try_from(format!("unix:{}", socket.to_string_lossy()))
        .map_err(|error| no_daemon(error.to_string()))?;
    let channel = endpoint.connect().await.map_err(|error| match lacks_descriptors(&error) {
        true => ClientError::NoDescriptors,
        false => no_daemon(error.to_string()),
    })?;
    // Sets of labels, and a million classes, are more than the 4 MiB that are the default; the socket is the user's own.
    Ok(ControlClient::new(channel).max_decoding_message_size(usize::MAX))
}

/// Waits for the answer to a call; `None` when `interrupted`, which is asked every 50 ms.
fn answer<T>(
    socket: &Path,
    interrupted: &dyn Fn() -> bool,
    call: impl Future<Output = Result<T, ClientError>>,
) -> Result<Option<T>, ClientError> {
    let interruption = async {
        while !interrupted() {
            sleep(LOOK_INTERVAL).await;
        }
    };
    let silent = || {
        let cause = format!("it has not answered within {} s (is its process stopped?)", ANSWER_MAX.as_secs());
        ClientError::NoDaemon { socket: socket.to_owned(), cause }
    };
    runtime()?.block_on(async {
        tokio::select! {
            answer = timeout(ANSWER_MAX, call) => answer.map_err(|_| silent())?.map(Some),
            () = interruption => Ok(None),
        }
    })
}

/// The recipe of feeds that name none at the daemon behind a socket: the lesson's, unless it was started with another.
///
/// # Errors
/// When no daemon answers, or its recipe is none of this version.
pub fn recipe(socket: &Path) -> Result<Recipe, ClientError> {
    let Some(toml) = status(socket)?.recipe else { return Ok(Recipe::default()) };
    Ok(Recipe::from_toml(&toml, "the daemon's recipe")?)
}

/// What the daemon is doing.
///
/// # Errors
/// When no daemon answers.
pub fn status(socket: &Path) -> Result<Status, ClientError> {
    Ok(status_unless(socket, &|| false)?.expect("nobody interrupts"))
}

/// [`status`], but gives up, with `None`, when `interrupted`, which is asked every 50 ms.
///
/// # Errors
/// As [`status`].
pub fn status_unless(socket: &Path, interrupted: &dyn Fn() -> bool) -> Result<Option<Status>, ClientError> {
    answer(socket, interrupted, async {
        let answer = connect(socket).await?.get_status(()).await;
        Ok(answer.map_err(|status| ClientError::from_status(socket, &status))?.into_inner())
    })
}

/// The daemon's process id as this process sees it, which in another namespace is not the daemon's own word for it; `None` where it is not
/// seen from here.
///
/// # Errors
/// When nobody listens.
pub fn peer_pid(socket: &Path) -> Result<Option<i32>, ClientError> {
    let peer = answer(socket, &|| false, async {
        let peer = open(socket).await?.peer_cred();
        peer.map_err(|error| ClientError::NoDaemon { socket: socket.to_owned(), cause: error.to_string() })
    })?;
    Ok(peer.and_then(|peer| peer.pid()).filter(|&pid| pid > 0))
}

/// Asks the daemon to stop; returns its pid. It ends its feeds first, which may take seconds.
///
/// # Errors
/// When no daemon answers.
pub fn shutdown(socket: &Path) -> Result<u32, ClientError> {
    let asked = answer(socket, &|| false, async {
        let answer = connect(socket).await?.shutdown(()).await;
        Ok(answer.map_err(|status| ClientError::from_status(socket, &status))?.into_inner().pid)
    })?;
    Ok(asked.expect("nobody interrupts"))
}

/// A stream of statuses, one each interval.
pub struct Watch {
    socket: std::path::PathBuf,
    statuses: tonic::Streaming<Status>,
    runtime: tokio::runtime::Runtime,
}

/// Watches the daemon behind a socket; the first status comes at once.
///
/// # Errors
/// When no daemon answers, or the interval is not 100 ms to 60 s.
pub fn watch(socket: &Path, interval: Duration) -> Result<Watch, ClientError> {
    let runtime = runtime()?;
    let statuses = runtime.block_on(async {
        let answer = connect(socket).await?.watch(WatchRequest { interval }).await;
        Ok::<_, ClientError>(answer.map_err(|status| ClientError::from_status(socket, &status))?.into_inner())
    })?;
    Ok(Watch { socket: socket.to_owned(), statuses, runtime })
}

impl Watch {
    /// Waits for the next status.
    ///
    /// # Errors
    /// [`ClientError::DaemonGone`] when the daemon has ended.
    pub fn next_status(&mut self) -> Result<Status, ClientError> {
        let status = self.runtime.block_on(self.statuses.message());
        let status = status.map_err(|status| ClientError::from_status(&self.socket, &status))?;
        status.ok_or_else(|| ClientError::DaemonGone(self.socket.clone()))
    }
}

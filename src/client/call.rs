//! Calls that are over with their answer.

use super::ClientError;
use crate::control::proto::control_client::ControlClient;
use crate::control::proto::{GetStatusRequest, ShutdownRequest, Status};
use std::path::Path;
use tonic::transport::{Channel, Endpoint};

/// A runtime for one thread, enough for a client.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, ClientError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ClientError::Start)
}

/// Connects to a daemon.
pub(super) async fn connect(socket: &Path) -> Result<ControlClient<Channel>, ClientError> {
    let no_daemon = |cause: String| ClientError::NoDaemon { socket: socket.to_owned(), cause };
    // The transport's errors hide the system's answer at the end of a chain; a plain connect gives it plainly.
    drop(tokio::net::UnixStream::connect(socket).await.map_err(|error| no_daemon(error.to_string()))?);
    let endpoint =
        Endpoint::try_from(format!("unix:{}", socket.display())).map_err(|error| no_daemon(error.to_string()))?;
    let channel = endpoint.connect().await.map_err(|error| no_daemon(error.to_string()))?;
    Ok(ControlClient::new(channel))
}

/// What the daemon is doing.
///
/// # Errors
/// When no daemon answers.
pub fn status(socket: &Path) -> Result<Status, ClientError> {
    runtime()?.block_on(async {
        let answer = connect(socket).await?.get_status(GetStatusRequest {}).await;
        Ok(answer.map_err(|status| ClientError::from_status(socket, &status))?.into_inner())
    })
}

/// Asks the daemon to stop; returns its pid. It ends its feeds first, which may take seconds.
///
/// # Errors
/// When no daemon answers.
pub fn shutdown(socket: &Path) -> Result<u32, ClientError> {
    runtime()?.block_on(async {
        let answer = connect(socket).await?.shutdown(ShutdownRequest {}).await;
        Ok(answer.map_err(|status| ClientError::from_status(socket, &status))?.into_inner().pid)
    })
}

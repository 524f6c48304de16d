//! The service on the socket: one method a call, one task a trainer.

use super::daemon::{AttachError, Daemon};
use super::proto::control_server::{Control, ControlServer};
use super::{convert, proto};
use crate::pipeline::OpenError;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixListener;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status, Streaming};

/// How long readers may take to read what is published once the daemon goes down.
const GRACE: Duration = Duration::from_secs(3);

/// How often what takes a file descriptor is tried again where there is none.
pub(super) const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(100);

/// How long a shared feed that is opened again keeps its first batches for the trainers that it had.
const RETURN_TIME: Duration = Duration::from_secs(10);

/// Serves until `stop` resolves to a reason or a client asks for it; then ends all feeds and waits 3 s for trainers.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: UnixListener,
    daemon: Arc<Daemon>,
    stop: impl Future<Output = &'static str>,
) -> Result<(), tonic::transport::Error> {
    let asked = Arc::new(Notify::new());
    let service = Service { daemon: Arc::clone(&daemon), asked: Arc::clone(&asked) };
    let service = ControlServer::with_interceptor(service, same_user);
    // Of a connection for which there is no descriptor the listener tells again and again until there is one.
    let incoming = UnixListenerStream::new(listener).then(async |accepted| {
        if accepted.is_err() {
            tokio::time::sleep(DESCRIPTOR_PAUSE).await;
        }
        accepted
    });
    let server = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
    let shutdown = async {
        let reason = tokio::select! {
            reason = stop => reason,
            () = asked.notified() => "the daemon was stopped",
        };
        tracing::info!("{reason}");
        daemon.stop_feeds(reason);
        if tokio::time::timeout(GRACE, daemon.closed()).await.is_err() {
            tracing::warn!("some trainers did not leave within {} s", GRACE.as_secs());
        }
    };
    // Open connections end with the process: trainers have either left or had their time.
    tokio::select! {
        served = server => served,
        () = shutdown => Ok(()),
    }
}

/// Lets in only the daemon's own user; the ring's files are open to no other anyway.
fn same_user(request: Request<()>) -> Result<Request<()>, Status> {
    let own = rustix::process::getuid().as_raw();
    let peer = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    match peer.map(|peer| peer.uid()) {
        Some(uid) if uid == own => Ok(request),
        other => Err(Status::permission_denied(format!(
            "this daemon serves uid {own} only, and the caller is {} (run the trainer as the same user)",
            other.map_or("unknown".to_owned(), |uid| format!("uid {uid}"))
        ))),
    }
}

/// Resolves when the process is gone. Its children may keep its sockets open, as forked workers do.
async fn death(pid: Option<i32>) {
    let process = loop {
        match pid.and_then(Pid::from_raw).map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
            Some(Err(Errno::SRCH)) => return,
            Some(Err(Errno::MFILE | Errno::NFILE)) => tokio::time::sleep(DESCRIPTOR_PAUSE).await,
            process => break process.and_then(Result::ok),
        }
    };
    #[expect(
        deprecated,
        reason = "its successor is unsafe, for descriptors that somebody else may close; this one is owned"
    )]
    let watched = process.and_then(|process| AsyncFd::with_interest(process, Interest::READABLE).ok());
    match watched {
        Some(watched) => drop(watched.readable().await),
        // A process that is not seen from here, such as one in another container: its stream has to do.
        None => std::future::pending().await,
    }
}

struct Service {
    daemon: Arc<Daemon>,
    asked: Arc<Notify>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn refusal(error: &AttachError) -> Status {
    let text = error.to_string();
    match error {
        AttachError::Draining => Status::unavailable(text),
        AttachError::Open(OpenError::Spec(_) | OpenError::Sampler(_)) => Status::invalid_argument(text),
        AttachError::Open(OpenError::Mix(_)) | AttachError::Differs { .. } | AttachError::Behind { .. } => {
            Status::failed_precondition(text)
        }
        AttachError::Open(OpenError::Passed { .. }) => Status::out_of_range(text),
        AttachError::Open(OpenError::Ring(_) | OpenError::Memory(_) | OpenError::CacheFile(_)) => {
            Status::resource_exhausted(text)
        }
    }
}

fn check_versions(theirs: Option<proto::Versions>) -> Result<(), Status> {
    let (ours, theirs) = (convert::versions(), theirs.unwrap_or_default());
    if ours == theirs {
        return Ok(());
    }
    let text = |v: &proto::Versions| format!("protocol {}, layout {}, plan {}", v.protocol, v.layout, v.plan);
    Err(Status::failed_precondition(format!(
        "versions differ: the daemon has {}, the trainer {} (use the same mixd on both sides)",
        text(&ours),
        text(&theirs)
    )))
}

#[tonic::async_trait]
impl Control for Service {
    type AttachStream = Answers<proto::Attached>;
    type WatchStream = Answers<proto::Status>;

    async fn attach(
        &self,
        request: Request<Streaming<proto::AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let peer = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred?.pid());
        let mut inbound = request.into_inner();
        let first = inbound.message().await?.ok_or_else(|| Status::invalid_argument("no feed was asked for"))?;
        check_versions(first.versions)?;
        let spec = convert::spec_from_proto(&first.spec.unwrap_or_default())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let former = first.former.map(|former| convert::former_from_proto(&former));
        let (outbound, answers) = mpsc::channel(1);
        let daemon = Arc::clone(&self.daemon);
        // In a task of its own: this method is dropped half-way when the trainer dies, and would leave the feed open.
        tokio::spawn(async move {
            let opener = Arc::clone(&daemon);
            let opened =
                match tokio::task::spawn_blocking(move || opener.attach(spec, &first.device_uuid, first.pid, former))
                    .await
                {
                    Ok(opened) => opened.map_err(|error| refusal(&error)),
                    Err(panic) => Err(Status::internal(panic.to_string())),
                };
            let (ticket, attached) = match opened {
                Ok(opened) => opened,
                Err(refusal) => {
                    let _ = outbound.send(Err(refusal)).await;
                    return;
                }
            };
            if ticket.holds {
                let daemon = Arc::clone(&daemon);
                tokio::spawn(async move {
                    tokio::time::sleep(RETURN_TIME).await;
                    daemon.release_hold(ticket.feed);
                });
            }
            if outbound.send(Ok(attached)).await.is_ok() {
                // Whatever comes next is the end: the trainer closed its stream, or its process is gone.
                tokio::select! {
                    _ = inbound.message() => {}
                    () = death(peer) => {}
                }
            }
            let _ = tokio::task::spawn_blocking(move || daemon.detach(ticket)).await;
            drop(outbound);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn get_status(&self, _: Request<proto::GetStatusRequest>) -> Result<Response<proto::Status>, Status> {
        Ok(Response::new(self.daemon.status()))
    }

    async fn list_feeds(&self, _: Request<proto::ListFeedsRequest>) -> Result<Response<proto::ListFeedsReply>, Status> {
        Ok(Response::new(proto::ListFeedsReply { feeds: self.daemon.feeds() }))
    }

    async fn watch(&self, request: Request<proto::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let interval_ms = request.into_inner().interval_ms.unwrap_or(1_000);
        if !(100..=60_000).contains(&interval_ms) {
            return Err(Status::invalid_argument(format!("interval_ms is {interval_ms}: it must be 100 to 60000")));
        }
        let daemon = Arc::clone(&self.daemon);
        let ticks = tokio::time::interval(Duration::from_millis(u64::from(interval_ms)));
        let ticks = tokio_stream::wrappers::IntervalStream::new(ticks);
        Ok(Response::new(Box::pin(ticks.map(move |_| Ok(daemon.status())))))
    }

    async fn drain(&self, _: Request<proto::DrainRequest>) -> Result<Response<proto::DrainReply>, Status> {
        self.daemon.drain();
        self.daemon.closed().await;
        Ok(Response::new(proto::DrainReply {}))
    }

    async fn shutdown(&self, _: Request<proto::ShutdownRequest>) -> Result<Response<proto::ShutdownReply>, Status> {
        self.asked.notify_one();
        Ok(Response::new(proto::ShutdownReply { pid: std::process::id() }))
    }
}

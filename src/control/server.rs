//! The service on the socket: one method a call, one task a trainer.

use super::connections::{DESCRIPTOR_PAUSE, accept};
use super::daemon::{AttachError, Daemon};
use super::owners::{Owners, exited};
#[cfg(feature = "cuda")]
use crate::cuda::CudaError;
#[cfg(feature = "cuda")]
use crate::mix::MixError;
use crate::pipeline::OpenError;
use crate::ring::RingError;
use crate::status;
use crate::store::FileError;
use crate::wire::control_server::{Control, ControlServer};
use crate::wire::{AttachRequest, Attached, ListFeedsReply, Reason, Refusal, ShutdownReply, WatchRequest};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::{Notify, mpsc};
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status, Streaming};

/// How long readers may take to read what is published once the daemon goes down.
const GRACE: Duration = Duration::from_secs(3);

/// How often the counters are read for the verdict.
const RECORD_INTERVAL: Duration = Duration::from_secs(1);

/// How long a shared feed that is opened again keeps its first batches for the trainers that it had.
const RETURN_TIME: Duration = Duration::from_secs(10);

/// Serves until `stop` resolves to a reason or a client asks for it; then reports the reason to `stopping`, ends all feeds and waits 3 s for trainers.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: UnixListener,
    daemon: Arc<Daemon>,
    owners: Owners,
    stop: impl Future<Output = &'static str>,
    stopping: impl AsyncFnOnce(&'static str),
) -> Result<(), tonic::transport::Error> {
    let asked = Arc::new(Notify::new());
    let service = Service { daemon: Arc::clone(&daemon), asked: Arc::clone(&asked) };
    let service = ControlServer::with_interceptor(service, same_user);
    let (grpc, connections) = mpsc::channel(1);
    let accepting = accept(listener, grpc, Arc::clone(&daemon), owners.clone());
    let incoming = ReceiverStream::new(connections);
    let server = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
    let recording = async {
        let mut ticks = tokio::time::interval(RECORD_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // Opening a feed may hold what it reads for as long as a cache file takes to be made.
            let daemon = Arc::clone(&daemon);
            let _ = tokio::task::spawn_blocking(move || daemon.record()).await;
        }
    };
    let shutdown = async {
        let reason = tokio::select! {
            reason = stop => reason,
            () = asked.notified() => "the daemon was stopped",
        };
        tracing::info!("{reason}");
        stopping(reason).await;
        owners.close();
        daemon.stop_feeds(reason);
        if tokio::time::timeout(GRACE, daemon.closed()).await.is_err() {
            tracing::warn!("some trainers did not leave within {} s", GRACE.as_secs());
        }
    };
    // Open connections end with the process: trainers have either left or had their time.
    tokio::select! {
        served = server => served,
        () = accepting => Ok(()),
        () = recording => Ok(()),
        () = shutdown => Ok(()),
    }
}

/// Lets in only the daemon's own user.
fn same_user(request: Request<()>) -> Result<Request<()>, Status> {
    let own = rustix::process::getuid().as_raw();
    let peer = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    match peer.map(|peer| peer.uid()) {
        Some(uid) if uid == own => Ok(request),
        other => {
            let caller = other.map_or("unknown".to_owned(), |uid| format!("uid {uid}"));
            let text = format!(
                "this daemon serves uid {own} only, and the caller is {caller} (run the trainer as the same user)"
            );
            Err(Reason::OtherUser.because(text).into())
        }
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
    match process {
        Some(process) => exited(process).await,
        // A process that is not seen from here, such as one in another container: its stream has to do.
        None => std::future::pending().await,
    }
}

struct Service {
    daemon: Arc<Daemon>,
    asked: Arc<Notify>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn refusal(error: &AttachError) -> Refusal {
    let room = |&need, &free| Reason::NoRoom { need: Some(need), free: Some(free) };
    let reason = match error {
        AttachError::Draining => Reason::Stopping,
        AttachError::Differs { differences, .. } => {
            Reason::OtherSpec { keys: differences.iter().map(|difference| difference.key.clone()).collect() }
        }
        AttachError::Behind { feed, .. } => Reason::Behind { next: *feed },
        AttachError::Open(error) => match error {
            OpenError::Spec(_) | OpenError::Sampler(_) => Reason::Spec,
            OpenError::Passed { next, .. } => Reason::Passed { next: *next },
            #[cfg(feature = "cuda")]
            OpenError::Mix(MixError::Cuda(CudaError::OutOfMemory { need, free })) => room(need, free),
            OpenError::Mix(error) if error.is_out_of_memory() => Reason::NoRoom { need: None, free: None },
            OpenError::Mix(_) => Reason::Device,
            OpenError::Memory(_) => Reason::NoRoom { need: None, free: None },
            OpenError::Ring(RingError::NoMemory { need, free }) => room(need, free),
            OpenError::Ring(RingError::TooManyReaders(_) | RingError::TooFewSlots { .. }) => Reason::TooManyTrainers,
            OpenError::CacheFile(FileError::NoSpace { need, free, .. }) => room(need, free),
            OpenError::Ring(_) | OpenError::CacheFile(_) => Reason::System,
        },
    };
    reason.because(error)
}

#[tonic::async_trait]
impl Control for Service {
    type AttachStream = Answers<Attached>;
    type WatchStream = Answers<status::Status>;

    async fn attach(&self, request: Request<Streaming<AttachRequest>>) -> Result<Response<Self::AttachStream>, Status> {
        let peer = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred?.pid());
        let mut inbound = request.into_inner();
        let first = inbound.message().await?.ok_or_else(|| Reason::Spec.because("no feed was asked for"))?;
        let (outbound, answers) = mpsc::channel(1);
        let daemon = Arc::clone(&self.daemon);
        // In a task of its own: this method is dropped half-way when the trainer dies, and would leave the feed open.
        tokio::spawn(async move {
            let opener = Arc::clone(&daemon);
            let opened = match tokio::task::spawn_blocking(move || opener.attach(first)).await {
                Ok(opened) => opened.map_err(|error| refusal(&error)),
                Err(panic) => Err(Reason::Other.because(panic)),
            };
            let (ticket, attached) = match opened {
                Ok(opened) => opened,
                Err(refusal) => {
                    tracing::info!(pid = peer, "refused a trainer: {refusal}");
                    let _ = outbound.send(Err(refusal.into())).await;
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

    async fn get_status(&self, _: Request<()>) -> Result<Response<status::Status>, Status> {
        Ok(Response::new(self.daemon.status()))
    }

    async fn list_feeds(&self, _: Request<()>) -> Result<Response<ListFeedsReply>, Status> {
        Ok(Response::new(ListFeedsReply { feeds: self.daemon.feeds() }))
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let daemon = Arc::clone(&self.daemon);
        let ticks = tokio::time::interval(request.into_inner().interval);
        let ticks = tokio_stream::wrappers::IntervalStream::new(ticks);
        Ok(Response::new(Box::pin(ticks.map(move |_| Ok(daemon.status())))))
    }

    async fn drain(&self, _: Request<()>) -> Result<Response<()>, Status> {
        self.daemon.drain();
        self.daemon.closed().await;
        Ok(Response::new(()))
    }

    async fn shutdown(&self, _: Request<()>) -> Result<Response<ShutdownReply>, Status> {
        self.asked.notify_one();
        Ok(Response::new(ShutdownReply { pid: std::process::id() }))
    }
}

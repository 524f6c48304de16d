//! Accepts connections: those of gRPC go on to its server, and the others (`src/wire/descriptors.rs`) are answered here.

use super::daemon::Daemon;
use super::owners::Owners;
use crate::wire::{OWN, SEAT, SeatToken, give_seat, receive};
use rustix::net::{RecvFlags, recv};
use rustix::process::{Resource, getrlimit};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;

/// How often what takes a file descriptor is retried where there is none.
pub const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(100);

/// Of the descriptors that the daemon may have, one in so many may be connections of which nothing has come.
const SILENT_SHARE: u64 = 4;

/// How long a connection may be open before its first bytes come.
const FIRST_BYTES_MAX: Duration = Duration::from_secs(10);

/// Accepts until the runtime ends, or the server of gRPC does.
pub(super) async fn accept(
    listener: UnixListener,
    grpc: mpsc::Sender<io::Result<UnixStream>>,
    daemon: Arc<Daemon>,
    owners: Owners,
) {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(1 << 20);
    let silent = Arc::new(Semaphore::new((descriptors / SILENT_SHARE).clamp(1, 1 << 20) as usize));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Without a free descriptor `accept` fails again at once.
            tokio::time::sleep(DESCRIPTOR_PAUSE).await;
            continue;
        };
        // Connections that send nothing must not take the descriptors that reading images needs.
        let Ok(place) = Arc::clone(&silent).try_acquire_owned() else { continue };
        let (grpc, daemon, owners) = (grpc.clone(), Arc::clone(&daemon), owners.clone());
        tokio::spawn(async move {
            match timeout(FIRST_BYTES_MAX, first_byte(&stream)).await {
                Ok(Ok(Some(byte))) if byte == SEAT[0] => drop(answer(stream, place, &daemon, &owners).await),
                // HTTP/2, or what its server refuses.
                Ok(Ok(Some(_))) => {
                    drop(place);
                    drop(grpc.send(Ok(stream)).await);
                }
                _ => {}
            }
        });
    }
}

/// The first byte, which stays to be read; `None` of a connection that ends before it.
async fn first_byte(stream: &UnixStream) -> io::Result<Option<u8>> {
    let mut byte = [0];
    let peek = || Ok(recv(stream, &mut byte[..], RecvFlags::PEEK)?.1);
    let count = stream.async_io(Interest::READABLE, peek).await?;
    Ok((count > 0).then_some(byte[0]))
}

/// Answers a connection that is no gRPC; `silent`, its place among those that send nothing, is given back once the request is there.
async fn answer(stream: UnixStream, silent: OwnedSemaphorePermit, daemon: &Daemon, owners: &Owners) -> io::Result<()> {
    if stream.peer_cred()?.uid() != rustix::process::getuid().as_raw() {
        return Ok(());
    }
    // What is so short comes as one message.
    let mut request = [0; 24];
    let (count, descriptors) = timeout(FIRST_BYTES_MAX, receive(&stream, &mut request)).await??;
    drop(silent);
    match request[..count].split_first_chunk() {
        Some((&SEAT, token)) => {
            let memory = token.try_into().ok().and_then(|token| daemon.take_seat(SeatToken(token)));
            match memory {
                Some(memory) => give_seat(&stream, &memory).await,
                None => Ok(()),
            }
        }
        Some((&OWN, [])) => owners.serve(stream, descriptors.into_iter().next()).await,
        _ => Ok(()),
    }
}

//! Connections to the daemon's socket beside gRPC, for what only a descriptor can hand over.
//!
//! Such a connection begins with eight bytes that no HTTP/2 connection begins with. [`SEAT`] and the 16 bytes of a [`SeatToken`] ask for the
//! memory of a seat: the daemon answers with one message, eight bytes (the size of the device memory, little-endian, 0 without one) with the
//! descriptors of the ring's data, of the cursor and, of a ring on a device, of its slots' images; or it hangs up, where it has no such seat.
//! `OWN` asks for a part in a daemon that ends with its owners (`src/control/owners.rs`).

use super::SeatToken;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;

/// First bytes of a connection that asks for a seat's memory.
pub const SEAT: [u8; 8] = *b"mixd-fds";

/// The most descriptors of one message.
const DESCRIPTORS_MAX: usize = 3;

/// The memory of a trainer's place at a feed.
#[derive(Debug, Clone)]
pub struct SeatMemory {
    /// The ring's data.
    pub data: Arc<File>,
    /// The trainer's cursor.
    pub cursor: Arc<File>,
    /// The slots' images on a CUDA device, and their bytes.
    pub slots: Option<(Arc<File>, u64)>,
}

/// Receives up to `bytes.len()` bytes and the descriptors that come with them.
///
/// # Errors
/// When the connection fails, or this process cannot take the descriptors.
pub async fn receive(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut receive = || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(stream, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(Errno::MFILE.into());
        }
        let descriptors = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        Ok((received.bytes, descriptors.flatten().collect()))
    };
    stream.async_io(Interest::READABLE, &mut receive).await
}

/// Asks the daemon behind a socket for a seat's memory; `None` where it has no such seat.
///
/// # Errors
/// When no daemon answers, or this process cannot take the descriptors.
pub async fn take_seat(socket: &Path, token: SeatToken) -> io::Result<Option<SeatMemory>> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(&[&SEAT[..], &token.0].concat()).await?;
    let mut bytes = [0; 8];
    let (count, descriptors) = receive(&stream, &mut bytes).await?;
    let mut descriptors = descriptors.into_iter().map(|descriptor| Arc::new(File::from(descriptor)));
    let (Some(data), Some(cursor)) = (descriptors.next(), descriptors.next()) else { return Ok(None) };
    let slots = descriptors.next().map(|slots| (slots, u64::from_le_bytes(bytes)));
    Ok((count == bytes.len()).then_some(SeatMemory { data, cursor, slots }))
}

#[cfg(feature = "daemon")]
pub use sending::{OWN, give_seat};

#[cfg(feature = "daemon")]
mod sending {
    use super::{DESCRIPTORS_MAX, SeatMemory};
    use rustix::fd::{AsFd, BorrowedFd};
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use std::io::{self, IoSlice};
    use std::mem::MaybeUninit;
    use tokio::io::Interest;
    use tokio::net::UnixStream;

    /// First bytes of an owner's connection.
    pub const OWN: [u8; 8] = *b"mixd-own";

    /// Hands a seat's memory over.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn give_seat(stream: &UnixStream, memory: &SeatMemory) -> io::Result<()> {
        let SeatMemory { data, cursor, slots } = memory;
        let bytes = slots.as_ref().map_or(0, |(_, bytes)| *bytes).to_le_bytes();
        let slots = slots.as_ref().map(|(slots, _)| slots.as_fd());
        let descriptors: Vec<BorrowedFd<'_>> = [data.as_fd(), cursor.as_fd()].into_iter().chain(slots).collect();
        let send = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
            Ok(sendmsg(stream, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?)
        };
        stream.async_io(Interest::WRITABLE, send).await.map(drop)
    }
}

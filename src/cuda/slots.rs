//! The images of a ring's slots in a device's memory, one allocation: the daemon takes it, and hands a descriptor of it to trainers over a
//! socket beside the ring's files.
//!
//! Whoever connects is sent the allocation's size, eight bytes, with the descriptor. CUDA keeps the memory until everybody has unmapped it, so
//! that neither side's death takes it from the other.

use super::{CudaError, Event, Gpu, SharedMemory};
use crate::ring::{ANY_STREAM, DeviceSlots, Mark, RingError};
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, Shutdown, recvmsg, sendmsg, shutdown,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a trainer waits for the daemon's few bytes.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// How soon the daemon tries again when it cannot accept a trainer.
const ACCEPT_AGAIN: Duration = Duration::from_millis(20);

/// Bytes from one slot to the next where each has `bytes`: each begins as `cudaMalloc` and torch would have it.
pub fn slot_stride(bytes: usize) -> usize {
    bytes.next_multiple_of(512)
}

/// Slots, one after the other.
#[derive(Debug)]
struct Slots {
    memory: SharedMemory,
    stride: usize,
}

impl Slots {
    fn address(&self, slot: u32) -> u64 {
        self.memory.address() + slot as u64 * self.stride as u64
    }
}

/// The images of a ring's slots, as the daemon has them.
#[derive(Debug)]
pub struct WriterSlots(Slots);

impl WriterSlots {
    /// Memory for the images of so many slots, `bytes` each.
    ///
    /// # Errors
    /// When the device does not have it.
    pub fn new(gpu: &Arc<Gpu>, bytes: usize, slots: u32) -> Result<Self, CudaError> {
        let stride = slot_stride(bytes);
        let memory = SharedMemory::new(gpu.context(), stride * slots as usize)?;
        Ok(Self(Slots { memory, stride }))
    }

    /// Where a slot's images are.
    pub fn address(&self, slot: u32) -> u64 {
        self.0.address(slot)
    }

    /// Hands the memory out at `path`, until the server is dropped.
    ///
    /// # Errors
    /// When there can be no socket or no thread, or the device does not export its memory.
    pub fn serve(&self, path: &Path) -> io::Result<SlotServer> {
        let Slots { memory, .. } = &self.0;
        let descriptor = memory.export().map_err(io::Error::other)?;
        let (listener, bytes) = (Arc::new(UnixListener::bind(path)?), memory.bytes() as u64);
        let listening = Arc::clone(&listener);
        let run = move || {
            loop {
                match listening.accept() {
                    // So little never waits; and who breaks off has only itself to blame.
                    Ok((stream, _)) => drop(send(&stream, bytes, &descriptor)),
                    Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
                    // The process has as many files open as it may, say.
                    Err(_) => std::thread::sleep(ACCEPT_AGAIN),
                }
            }
        };
        let thread = std::thread::Builder::new().name("mixd-slots".to_owned()).spawn(run)?;
        Ok(SlotServer { listener, thread: Some(thread) })
    }
}

fn send(stream: &UnixStream, bytes: u64, descriptor: &OwnedFd) -> io::Result<()> {
    let (descriptors, bytes) = ([descriptor.as_fd()], bytes.to_le_bytes());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    sendmsg(stream, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The thread that hands slots out. Dropping it ends the thread.
#[derive(Debug)]
pub struct SlotServer {
    listener: Arc<UnixListener>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for SlotServer {
    fn drop(&mut self) {
        // From here on there is nothing to accept, which also wakes whoever waits for it.
        if shutdown(&self.listener, Shutdown::Both).is_ok() {
            let _ = self.thread.take().map(JoinHandle::join);
        }
    }
}

/// The images of a ring's slots, as a trainer has them: mapped once.
#[derive(Debug)]
pub struct ReaderSlots {
    gpu: Arc<Gpu>,
    slots: Slots,
}

impl ReaderSlots {
    /// Opens the slots of the daemon that answers at `path`: so many, of `bytes` bytes each.
    ///
    /// # Errors
    /// When the daemon does not hand them out, or the device refuses them.
    pub fn open(gpu: Arc<Gpu>, path: &Path, bytes: usize, slots: u32) -> Result<Self, RingError> {
        let refused = |source| RingError::Io { action: "ask for the device's slots at", path: path.to_owned(), source };
        let (descriptor, found) = receive(path).map_err(refused)?;
        let stride = slot_stride(bytes);
        let needed = stride * slots as usize;
        if found < needed {
            return Err(RingError::NoDeviceSlots(format!("they have {found} bytes where {needed} are needed")));
        }
        let opened = SharedMemory::import(gpu.context(), &descriptor, found);
        let memory = opened.map_err(|error| RingError::NoDeviceSlots(error.to_string()))?;
        Ok(Self { gpu, slots: Slots { memory, stride } })
    }
}

fn receive(path: &Path) -> io::Result<(OwnedFd, usize)> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    let (mut bytes, mut space) = ([0; 8], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))]);
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
    let received = recvmsg(&stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    let whole = received.bytes == bytes.len() && !received.flags.contains(ReturnFlags::CTRUNC);
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let descriptor = descriptor.filter(|_| whole).ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok((descriptor, u64::from_le_bytes(bytes) as usize))
}

impl DeviceSlots for ReaderSlots {
    fn ordinal(&self) -> u32 {
        self.gpu.ordinal()
    }

    fn address(&self, slot: u32) -> u64 {
        self.slots.address(slot)
    }

    fn mark(&self, streams: &[usize]) -> Vec<Box<dyn Mark>> {
        let context = self.gpu.context();
        #[expect(unsafe_code, reason = "streams that somebody else has named")]
        let mark = |&stream: &usize| {
            // SAFETY: whoever named the stream has said that it is one of this device's.
            if stream == ANY_STREAM || unsafe { context.is_capturing(stream) }? {
                return Ok(None);
            }
            let event = Event::new(context)?;
            // SAFETY: as above.
            unsafe { event.record_on(stream) }?;
            Ok(Some(Box::new(event) as Box<dyn Mark>))
        };
        let marks: Result<Option<Vec<_>>, CudaError> = streams.iter().map(mark).collect();
        // A stream that is gone, say, may have left work behind, too.
        marks.ok().flatten().unwrap_or_else(|| vec![Box::new(WholeDevice(Arc::clone(&self.gpu)))])
    }
}

/// All that is queued on a device when it is waited for; nobody can tell before whether that is done.
struct WholeDevice(Arc<Gpu>);

impl Mark for WholeDevice {
    fn is_done(&self) -> bool {
        false
    }

    fn wait(&self) {
        // Where even that is refused the context is lost, and with it what was queued.
        let _ = self.0.context().synchronize();
    }
}

impl Mark for Event {
    fn is_done(&self) -> bool {
        Event::is_done(self).unwrap_or(true)
    }

    fn wait(&self) {
        let _ = Event::wait(self);
    }
}

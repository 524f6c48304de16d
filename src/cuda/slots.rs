//! The images of a ring's slots in a device's memory: the daemon takes it, and hands descriptors of it to trainers over a socket beside the
//! ring's files.
//!
//! A trainer asks for a slot by its number, four bytes; the answer is the slot's size, eight bytes, with the descriptor, or 0 where there is no
//! such slot. CUDA keeps the memory until everybody has unmapped it, so that neither side's death takes it from the other.

use super::{CudaError, Event, Gpu, SharedMemory};
use crate::ring::{DeviceSlots, Mark, RingError};
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long either side waits for the other's few bytes.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The images of a ring's slots, as the daemon has them.
#[derive(Debug)]
pub struct WriterSlots {
    slots: Vec<SharedMemory>,
}

impl WriterSlots {
    /// Memory for the images of so many slots, `bytes` each.
    ///
    /// # Errors
    /// When the device does not have it.
    pub fn new(gpu: &Arc<Gpu>, bytes: usize, slots: u32) -> Result<Self, CudaError> {
        let slot = |_| SharedMemory::new(gpu.context(), bytes);
        Ok(Self { slots: (0..slots).map(slot).collect::<Result<_, _>>()? })
    }

    /// Where a slot's images are.
    pub fn address(&self, slot: u32) -> u64 {
        self.slots[slot as usize].address()
    }

    /// Hands slots out at `path`, until the server is dropped.
    ///
    /// # Errors
    /// When there can be no socket or no thread.
    pub fn serve(self: &Arc<Self>, path: PathBuf) -> io::Result<SlotServer> {
        let listener = UnixListener::bind(&path)?;
        let (slots, stopping) = (Arc::clone(self), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stopping);
        let run = move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                // Who breaks off has only itself to blame.
                let _ = stream.and_then(|stream| slots.answer(stream));
            }
        };
        let thread = std::thread::Builder::new().name("mixd-slots".to_owned()).spawn(run)?;
        Ok(SlotServer { path, stopping, thread: Some(thread) })
    }

    /// Answers one trainer's question.
    fn answer(&self, mut stream: UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        stream.set_write_timeout(Some(ANSWER_MAX))?;
        let mut slot = [0; 4];
        stream.read_exact(&mut slot)?;
        let memory = self.slots.get(u32::from_le_bytes(slot) as usize);
        let exported = memory.map(|memory| (memory.export(), memory.bytes()));
        let Some((Ok(descriptor), bytes)) = exported else { return stream.write_all(&0_u64.to_le_bytes()) };
        let (descriptors, bytes) = ([descriptor.as_fd()], (bytes as u64).to_le_bytes());
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        sendmsg(&stream, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

/// The thread that hands slots out. Dropping it ends the thread.
#[derive(Debug)]
pub struct SlotServer {
    path: PathBuf,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for SlotServer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        // Wakes it. Should the socket be gone it sleeps on, until the process ends, with nothing to hand out.
        if UnixStream::connect(&self.path).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// The images of a ring's slots, as a trainer has them: mapped once each.
#[derive(Debug)]
pub struct ReaderSlots {
    gpu: Arc<Gpu>,
    slots: Vec<SharedMemory>,
}

impl ReaderSlots {
    /// Opens the slots of the daemon that answers at `path`: so many, each of at least `bytes` bytes.
    ///
    /// # Errors
    /// When the daemon does not hand them out, or the device refuses them.
    pub fn open(gpu: Arc<Gpu>, path: &Path, bytes: usize, slots: u32) -> Result<Self, RingError> {
        let open = |slot| {
            let refused = |source| RingError::Io { action: "ask for slots at", path: path.to_owned(), source };
            let (descriptor, found) = ask(path, slot).map_err(refused)?;
            let opened = SharedMemory::import(gpu.context(), &descriptor, found);
            opened.map_err(|error| RingError::NoDeviceSlot { slot, why: error.to_string() }).and_then(|memory| {
                let why = format!("it has {found} bytes where {bytes} are needed");
                if found >= bytes { Ok(memory) } else { Err(RingError::NoDeviceSlot { slot, why }) }
            })
        };
        let slots = (0..slots).map(open).collect::<Result<_, _>>()?;
        Ok(Self { gpu, slots })
    }
}

/// Asks the daemon for a slot.
fn ask(path: &Path, slot: u32) -> io::Result<(OwnedFd, usize)> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.write_all(&slot.to_le_bytes())?;
    let (mut bytes, mut space) = ([0; 8], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))]);
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
    let received = recvmsg(&stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let whole = received.bytes == bytes.len() && !received.flags.contains(ReturnFlags::CTRUNC);
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let descriptor = descriptor.filter(|_| whole);
    let descriptor = descriptor.ok_or_else(|| io::Error::other(format!("the daemon does not hand out slot {slot}")))?;
    Ok((descriptor, u64::from_le_bytes(bytes) as usize))
}

impl DeviceSlots for ReaderSlots {
    fn ordinal(&self) -> u32 {
        self.gpu.ordinal()
    }

    fn address(&self, slot: u32) -> u64 {
        self.slots[slot as usize].address()
    }

    fn mark(&self, streams: &[usize]) -> Vec<Box<dyn Mark>> {
        let mark = |&stream: &usize| {
            let event = Event::new(self.gpu.context())?;
            // SAFETY: whoever named the stream has said that it is one of this device's.
            #[expect(unsafe_code, reason = "a stream that somebody else has named")]
            unsafe { event.record_on(stream) }?;
            Ok(Box::new(event) as Box<dyn Mark>)
        };
        let marks: Result<_, CudaError> = streams.iter().map(mark).collect();
        // A stream that is gone, say, may have left work behind: all of the device's is waited for. Where even that is refused the context is
        // lost, and with it what was queued.
        marks.unwrap_or_else(|_| {
            let _ = self.gpu.context().synchronize();
            Vec::new()
        })
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

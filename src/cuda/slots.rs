//! The images of a ring's slots in a device's memory, one allocation: the daemon allocates it, and trainers open it by a descriptor.
//!
//! CUDA keeps the memory until everybody has unmapped it, so that neither side's death takes it from the other.

use super::{CudaError, Event, Gpu, SharedMemory};
use crate::ring::{ANY_STREAM, DeviceSlots, Mark, RingError};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

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

    /// A descriptor by which a trainer opens the memory.
    ///
    /// # Errors
    /// When the device does not export it.
    pub fn export(&self) -> Result<OwnedFd, CudaError> {
        self.0.memory.export()
    }

    /// Bytes of the whole memory.
    pub fn bytes(&self) -> u64 {
        self.0.memory.bytes() as u64
    }
}

/// The images of a ring's slots, as a trainer has them: mapped once.
#[derive(Debug)]
pub struct ReaderSlots {
    gpu: Arc<Gpu>,
    slots: Slots,
}

impl ReaderSlots {
    /// Opens the memory of `found` bytes that the daemon has handed out: so many slots, of `bytes` bytes each.
    ///
    /// # Errors
    /// When it is smaller, or the device refuses it.
    pub fn open(gpu: Arc<Gpu>, memory: &impl AsRawFd, found: u64, bytes: usize, slots: u32) -> Result<Self, RingError> {
        let stride = slot_stride(bytes);
        let (found, needed) = (found as usize, stride * slots as usize);
        if found < needed {
            return Err(RingError::NoDeviceSlots(format!("they have {found} bytes where {needed} are needed")));
        }
        let opened = SharedMemory::import(gpu.context(), memory, found);
        let memory = opened.map_err(|error| RingError::NoDeviceSlots(error.to_string()))?;
        Ok(Self { gpu, slots: Slots { memory, stride } })
    }
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

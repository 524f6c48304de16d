//! Slots in main memory, as copies from a device reach them: pinned when they are first written, since they come again and again.

use super::{Context, CudaError, Pin, Stream};
use std::collections::HashMap;
use std::sync::Arc;

const PAGE_BYTES: usize = 4096;

/// The slots that were written so far. To be dropped before their memory goes.
#[derive(Debug, Default)]
pub struct SlotMemory {
    /// By address; `None` where the system does not pin them, so that the driver copies by way of memory of its own.
    pins: HashMap<usize, Option<Pin>>,
}

impl SlotMemory {
    /// Queues a copy from the device to a slot, or to other memory; of a slot, `whole_bytes` are the images of a whole batch.
    ///
    /// # Safety
    /// What lies at `from` and the memory stay, and neither is written to or read, until the stream has come so far.
    #[expect(unsafe_code, reason = "queues a copy")]
    pub unsafe fn download(
        &mut self,
        context: &Arc<Context>,
        stream: &Stream,
        from: u64,
        memory: &mut [u8],
        whole_bytes: usize,
    ) -> Result<(), CudaError> {
        let start = memory.as_mut_ptr();
        // Images begin with a page in a slot, and seldom elsewhere; a short batch comes to where a whole one was.
        if start.addr().is_multiple_of(PAGE_BYTES) && memory.len() == whole_bytes {
            let pin = || match Pin::new(context, start, whole_bytes) {
                Ok(pin) => Some(pin),
                Err(error) => {
                    tracing::warn!("a slot is copied to by way of the driver's memory, more slowly: {error}");
                    None
                }
            };
            self.pins.entry(start.addr()).or_insert_with(pin);
        }
        // SAFETY: as this function.
        unsafe { stream.download(from, start, memory.len()) }
    }
}

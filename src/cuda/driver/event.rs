//! Marks in queues of work.
#![expect(unsafe_code, reason = "calls the CUDA driver")]

use super::{Context, Stream};
use crate::cuda::CudaError;
use cudarc::driver::{result, sys};
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long whoever waits for the device stays awake: falling asleep and waking takes tens of microseconds, and so does a batch.
const AWAKE: Duration = Duration::from_micros(200);

/// A mark in a stream.
#[derive(Debug)]
pub struct Event {
    pub(super) raw: sys::CUevent,
    context: Arc<Context>,
}

// SAFETY: events may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// An event without times; whoever waits for it sleeps.
    pub fn new(context: &Arc<Context>) -> Result<Self, CudaError> {
        use sys::CUevent_flags::{CU_EVENT_BLOCKING_SYNC, CU_EVENT_DISABLE_TIMING};
        let flags = CU_EVENT_BLOCKING_SYNC as u32 | CU_EVENT_DISABLE_TIMING as u32;
        let raw = context.call("make an event", || {
            let mut raw = MaybeUninit::uninit();
            // SAFETY: written where the call succeeds.
            unsafe { sys::cuEventCreate(raw.as_mut_ptr(), flags).result().map(|()| raw.assume_init()) }
        })?;
        Ok(Self { raw, context: Arc::clone(context) })
    }

    /// Marks what is queued on a stream so far.
    pub fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        self.record_raw(stream.raw)
    }

    /// Marks what is queued so far on a stream of somebody else, as CUDA's interfaces name it: an address, or 0 or 1 for the legacy default
    /// stream.
    ///
    /// # Safety
    /// The stream is one of this context's.
    pub unsafe fn record_on(&self, stream: usize) -> Result<(), CudaError> {
        self.record_raw(stream as sys::CUstream)
    }

    pub(super) fn record_raw(&self, stream: sys::CUstream) -> Result<(), CudaError> {
        // SAFETY: the event lives as long as `self`, and callers see to the stream.
        self.context.call("mark a stream", || unsafe { result::event::record(self.raw, stream) })
    }

    /// Whether what it marks is done.
    pub fn is_done(&self) -> Result<bool, CudaError> {
        // SAFETY: the event lives as long as `self`.
        match self.context.call("look at an event", || unsafe { result::event::query(self.raw) }) {
            Ok(()) => Ok(true),
            Err(CudaError::Call { code: sys::CUresult::CUDA_ERROR_NOT_READY, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits until what it marks is done: a while awake, since most kernels take less than falling asleep.
    pub fn wait(&self) -> Result<(), CudaError> {
        let start = Instant::now();
        while start.elapsed() < AWAKE {
            if self.is_done()? {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        // SAFETY: the event lives as long as `self`.
        self.context.call("wait for the device", || unsafe { result::event::synchronize(self.raw) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `new` and dropped once; what waits for it keeps what it needs.
        self.context.free(|| unsafe { result::event::destroy(self.raw) });
    }
}

//! Queues of work (copies, kernels, waiting for other queues) and marks in them.
#![expect(unsafe_code, reason = "calls the CUDA driver")]

use super::{Context, Kernel};
use crate::cuda::CudaError;
use cudarc::driver::{result, sys};
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long whoever waits for the device stays awake: falling asleep and waking takes tens of microseconds, and so does a batch.
const AWAKE: Duration = Duration::from_micros(200);

/// A queue of work on the device, in order.
#[derive(Debug)]
pub struct Stream {
    raw: sys::CUstream,
    context: Arc<Context>,
}

// SAFETY: streams may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream that waits for no other.
    pub fn new(context: &Arc<Context>) -> Result<Self, CudaError> {
        let raw = context.call("make a stream", || result::stream::create(result::stream::StreamKind::NonBlocking))?;
        Ok(Self { raw, context: Arc::clone(context) })
    }

    /// Its address, by which CUDA's interfaces name it.
    pub fn handle(&self) -> usize {
        self.raw as usize
    }

    /// Starts a kernel whose one parameter is `parameters`.
    ///
    /// # Safety
    /// The kernel takes a parameter of this type, and what its addresses point to stays and is not written by others until it is done.
    pub unsafe fn launch<P: bytemuck::Pod>(
        &self,
        kernel: &Kernel,
        grid: (u32, u32),
        block: u32,
        parameters: P,
    ) -> Result<(), CudaError> {
        let mut pointers = [(&raw const parameters).cast_mut().cast::<c_void>()];
        self.context.call("start a kernel", || {
            // SAFETY: the driver copies the parameters before it returns; the rest as this function.
            unsafe { result::launch_kernel(kernel.raw, (grid.0, grid.1, 1), (block, 1, 1), 0, self.raw, &mut pointers) }
        })
    }

    /// Copies main memory to the device, once what was queued before is done.
    ///
    /// # Safety
    /// Both ranges are valid, and neither changes nor goes until the stream has come so far.
    pub unsafe fn upload(&self, from: *const u8, to: u64, bytes: usize) -> Result<(), CudaError> {
        // SAFETY: as this function.
        let call = || unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast(), bytes, self.raw) }.result();
        self.context.call("copy to the device", call)
    }

    /// Copies from the device to main memory.
    ///
    /// # Safety
    /// As [`Stream::upload`].
    pub unsafe fn download(&self, from: u64, to: *mut u8, bytes: usize) -> Result<(), CudaError> {
        // SAFETY: as this function.
        let call = || unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from, bytes, self.raw) }.result();
        self.context.call("copy from the device", call)
    }

    /// Copies within the device.
    ///
    /// # Safety
    /// As [`Stream::upload`].
    pub unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), CudaError> {
        // SAFETY: as this function.
        self.context.call("copy on the device", || unsafe { result::memcpy_dtod_async(to, from, bytes, self.raw) })
    }

    /// Copies `rows` × `bytes` from the device, `pitch` apart there and side by side in main memory.
    ///
    /// # Safety
    /// As [`Stream::upload`].
    pub unsafe fn download_rows(
        &self,
        from: u64,
        pitch: usize,
        to: *mut u8,
        bytes: usize,
        rows: usize,
    ) -> Result<(), CudaError> {
        // SAFETY: plain numbers and pointers, of which 0 is a value.
        let mut copy: sys::CUDA_MEMCPY2D = unsafe { MaybeUninit::zeroed().assume_init() };
        (copy.srcMemoryType, copy.srcDevice, copy.srcPitch) = (sys::CUmemorytype::CU_MEMORYTYPE_DEVICE, from, pitch);
        (copy.dstMemoryType, copy.dstHost, copy.dstPitch) = (sys::CUmemorytype::CU_MEMORYTYPE_HOST, to.cast(), bytes);
        (copy.WidthInBytes, copy.Height) = (bytes, rows);
        // SAFETY: as this function.
        let call = || unsafe { sys::cuMemcpy2DAsync_v2(&raw const copy, self.raw) }.result();
        self.context.call("copy from the device", call)
    }

    /// Waits for all that was queued.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the stream lives as long as `self`.
        self.context.call("wait for the device", || unsafe { result::stream::synchronize(self.raw) })
    }

    /// Has what is queued from here on wait for what an event marks.
    pub fn wait_for(&self, event: &Event) -> Result<(), CudaError> {
        // SAFETY: both live as long as this call, and the driver keeps what it needs.
        self.context.call("order streams", || unsafe {
            result::stream::wait_event(self.raw, event.raw, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT)
        })
    }

    /// Has what is queued from here on wait for what was queued on the legacy default stream, which is torch's.
    #[cfg(feature = "torch")]
    pub fn wait_for_default(&self, event: &Event) -> Result<(), CudaError> {
        event.record_raw(std::ptr::null_mut())?;
        self.wait_for(event)
    }

    /// The other way: the default stream waits for what was queued here.
    #[cfg(feature = "torch")]
    pub fn lead_default(&self, event: &Event) -> Result<(), CudaError> {
        event.record(self)?;
        // SAFETY: as above.
        self.context.call("order streams", || unsafe {
            let default = std::ptr::null_mut();
            result::stream::wait_event(default, event.raw, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT)
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made by `new` and dropped once.
        self.context.free(|| unsafe { result::stream::destroy(self.raw) });
    }
}

/// A mark in a stream.
#[derive(Debug)]
pub struct Event {
    raw: sys::CUevent,
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

    fn record_raw(&self, stream: sys::CUstream) -> Result<(), CudaError> {
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

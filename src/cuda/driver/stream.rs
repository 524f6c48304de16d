//! Queues of work: copies, kernels, and waiting for other queues.
#![expect(unsafe_code, reason = "calls the CUDA driver")]

use super::{Context, Event, Kernel};
use crate::cuda::CudaError;
use cudarc::driver::{result, sys};
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::Arc;

/// A queue of work on the device, in order.
#[derive(Debug)]
pub struct Stream {
    pub(super) raw: sys::CUstream,
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

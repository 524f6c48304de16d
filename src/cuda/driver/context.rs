//! A device's primary context.
//!
//! Calls are made in it; torch uses it, too. It is pushed for a call and popped after it, so that a thread's current device stays what it was.
#![expect(unsafe_code, reason = "calls the CUDA driver")]

use crate::cuda::CudaError;
use cudarc::driver::{DriverError, result, sys};
use std::mem::MaybeUninit;

/// A device's primary context.
#[derive(Debug)]
pub struct Context {
    pub(super) device: sys::CUdevice,
    raw: sys::CUcontext,
    /// The process that has it. A child that is forked from it has no CUDA, and may not even free what it has copies of.
    pid: u32,
}

// SAFETY: a context may be used from any thread that has pushed it.
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks for itself.
unsafe impl Sync for Context {}

/// A context that is current in this thread until this is dropped, and that takes no part in a capture of a graph: calls that are forbidden while
/// some thread captures one are meant for what it captures, and would spoil it.
struct Here(std::marker::PhantomData<*const ()>, sys::CUstreamCaptureMode);

impl Drop for Here {
    fn drop(&mut self) {
        let mut popped = MaybeUninit::uninit();
        // SAFETY: takes back what `Context::enter` has done in this very thread, since this is not `Send`.
        unsafe {
            let _ = sys::cuThreadExchangeStreamCaptureMode(&raw mut self.1);
            let _ = sys::cuCtxPopCurrent_v2(popped.as_mut_ptr());
        }
    }
}

impl Context {
    /// The primary context of a device, which lasts as long as somebody retains it.
    pub fn retain(device: sys::CUdevice) -> Result<Self, CudaError> {
        // SAFETY: the device is one that the driver has named.
        let raw = unsafe { result::primary_ctx::retain(device) }.map_err(CudaError::call("retain the context"))?;
        Ok(Self { device, raw, pid: std::process::id() })
    }

    fn enter(&self) -> Result<Here, CudaError> {
        // SAFETY: retained as long as `self`.
        unsafe { sys::cuCtxPushCurrent_v2(self.raw) }.result().map_err(CudaError::call("enter the context"))?;
        let mut here = Here(std::marker::PhantomData, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED);
        // SAFETY: exchanges this thread's mode.
        let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&raw mut here.1) };
        Ok(here)
    }

    /// Makes a call in this context.
    pub(super) fn call<T>(
        &self,
        doing: &'static str,
        call: impl FnOnce() -> Result<T, DriverError>,
    ) -> Result<T, CudaError> {
        let _here = self.enter()?;
        call().map_err(CudaError::call(doing))
    }

    /// A call that gives something up, of which nobody can hear that it failed.
    pub(super) fn free(&self, call: impl FnOnce() -> Result<(), DriverError>) {
        if self.pid == std::process::id()
            && let Ok(_here) = self.enter()
        {
            let _ = call();
        }
    }

    /// Waits for all that is queued in it, by whomever.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.call("wait for the device", result::ctx::synchronize)
    }

    /// Whether what is queued on a stream of somebody else, as CUDA's interfaces name it, goes into a graph. Events cannot be looked at then.
    ///
    /// # Safety
    /// The stream is one of this context's.
    pub unsafe fn is_capturing(&self, stream: usize) -> Result<bool, CudaError> {
        let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        // SAFETY: as this function; the status is written.
        let look = || unsafe { sys::cuStreamIsCapturing(stream as sys::CUstream, &raw mut status) }.result();
        self.call("look at a stream", look)?;
        Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    /// Bytes of the device's memory: free, and all.
    pub fn memory(&self) -> Result<(usize, usize), CudaError> {
        self.call("ask for free memory", result::mem_get_info)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.pid == std::process::id() {
            // SAFETY: retained by `retain`, and everything that was made in it holds on to it.
            let _ = unsafe { result::primary_ctx::release(self.device) };
        }
    }
}

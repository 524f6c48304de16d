//! Memory of a device, and main memory that it reaches at full speed.
#![expect(unsafe_code, reason = "calls the CUDA driver")]

use super::Context;
use crate::cuda::CudaError;
use cudarc::driver::{result, sys};
use std::ffi::c_void;
use std::sync::Arc;

/// Memory of the device, for this process alone.
#[derive(Debug)]
pub struct DeviceMemory {
    address: u64,
    bytes: usize,
    context: Arc<Context>,
}

impl DeviceMemory {
    /// Uninitialised memory, at least 256-byte aligned.
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, CudaError> {
        // SAFETY: not read before it is written, by those who use it.
        let made = context.call("take memory", || unsafe { result::malloc_sync(bytes.max(1)) });
        let address = made.map_err(|error| error.out_of_memory(context, bytes))?;
        Ok(Self { address, bytes, context: Arc::clone(context) })
    }

    /// Where it begins.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: made by `new` and freed once. The driver waits for what still uses it.
        self.context.free(|| unsafe { result::free_sync(self.address) });
    }
}

/// Pinned main memory, which every device reads at full speed.
#[derive(Debug)]
pub struct PinnedMemory {
    start: *mut u8,
    bytes: usize,
    context: Arc<Context>,
}

// SAFETY: owned memory, reached through `&mut self` or copied by the device.
unsafe impl Send for PinnedMemory {}
// SAFETY: a shared reference gives only its address.
unsafe impl Sync for PinnedMemory {}

impl PinnedMemory {
    /// Memory of zeros, page-aligned.
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, CudaError> {
        let call = || {
            // SAFETY: a new allocation, which is written just below.
            unsafe { result::malloc_host(bytes.max(1), sys::CU_MEMHOSTALLOC_PORTABLE) }
        };
        let start = context.call("pin memory", call)?.cast::<u8>();
        // SAFETY: new, and as long.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Self { start, bytes, context: Arc::clone(context) })
    }

    /// Where it begins.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start
    }

    /// The bytes, while no copy is under way.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as long, initialised, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        // SAFETY: made by `new` and freed once.
        self.context.free(|| unsafe { result::free_host(self.start.cast()) });
    }
}

/// Main memory of somebody else that is pinned until this is dropped, which must be before the memory goes.
#[derive(Debug)]
pub struct Pin {
    start: *mut c_void,
    context: Arc<Context>,
}

// SAFETY: only an address, which the driver looks up.
unsafe impl Send for Pin {}
// SAFETY: as above.
unsafe impl Sync for Pin {}

impl Pin {
    /// Pins whole pages. All of them take memory from here on.
    ///
    /// # Errors
    /// When the system refuses, as it may for a file's pages.
    pub fn new(context: &Arc<Context>, start: *const u8, bytes: usize) -> Result<Self, CudaError> {
        let start = start.cast_mut().cast::<c_void>();
        let flags = sys::CU_MEMHOSTREGISTER_PORTABLE | sys::CU_MEMHOSTREGISTER_DEVICEMAP;
        // SAFETY: the driver refuses what is not mapped.
        context.call("pin memory", || unsafe { sys::cuMemHostRegister_v2(start, bytes, flags) }.result())?;
        Ok(Self { start, context: Arc::clone(context) })
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        // SAFETY: pinned by `new`, once.
        self.context.free(|| unsafe { sys::cuMemHostUnregister(self.start) }.result());
    }
}

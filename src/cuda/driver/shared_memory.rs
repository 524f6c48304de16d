//! Memory of a device that processes share by a descriptor.
#![expect(unsafe_code, reason = "calls the CUDA driver")]

use super::Context;
use crate::cuda::CudaError;
use cudarc::driver::sys;
use rustix::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::Arc;

/// Memory of the device that processes share: mapped here, and kept by whoever has it mapped, also after the death of the process that made it.
#[derive(Debug)]
pub struct SharedMemory {
    handle: sys::CUmemGenericAllocationHandle,
    address: u64,
    bytes: usize,
    context: Arc<Context>,
}

const DESCRIPTOR: sys::CUmemAllocationHandleType =
    sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;

fn properties(device: sys::CUdevice) -> sys::CUmemAllocationProp {
    // SAFETY: plain numbers and pointers, of which 0 is a value.
    let mut properties: sys::CUmemAllocationProp = unsafe { MaybeUninit::zeroed().assume_init() };
    properties.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.requestedHandleTypes = DESCRIPTOR;
    properties.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
    properties.location.id = device;
    properties
}

impl SharedMemory {
    /// New memory of at least `bytes`, writable here.
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, CudaError> {
        let make = || {
            let (properties, mut granule) = (properties(context.device), 0);
            let kind = sys::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
            // SAFETY: both are written before they are read, and the properties are valid.
            unsafe {
                sys::cuMemGetAllocationGranularity(&raw mut granule, &raw const properties, kind).result()?;
                let (bytes, mut handle) = (bytes.max(1).next_multiple_of(granule), 0);
                sys::cuMemCreate(&raw mut handle, bytes, &raw const properties, 0).result()?;
                Ok((handle, bytes))
            }
        };
        let made = context.call("take memory", make);
        let (handle, bytes) = made.map_err(|error| error.out_of_memory(context, bytes))?;
        Self::map(context, handle, bytes)
    }

    /// The memory that another process has exported, of this size.
    pub fn import(context: &Arc<Context>, descriptor: &impl AsRawFd, bytes: usize) -> Result<Self, CudaError> {
        let handle = context.call("open another process's memory", || {
            let mut handle = 0;
            let descriptor = descriptor.as_raw_fd() as usize as *mut c_void;
            // SAFETY: a descriptor that is open; the handle is written where the call succeeds.
            unsafe { sys::cuMemImportFromShareableHandle(&raw mut handle, descriptor, DESCRIPTOR) }.result()?;
            Ok(handle)
        })?;
        Self::map(context, handle, bytes)
    }

    fn map(context: &Arc<Context>, handle: sys::CUmemGenericAllocationHandle, bytes: usize) -> Result<Self, CudaError> {
        let mut memory = Self { handle, address: 0, bytes, context: Arc::clone(context) };
        let access = sys::CUmemAccessDesc {
            location: properties(context.device).location,
            flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        let mut address = 0;
        // SAFETY: a new range of addresses, which is given back where it cannot be mapped.
        context.call("map memory", || unsafe {
            sys::cuMemAddressReserve(&raw mut address, bytes, 0, 0, 0).result()?;
            let mapped = sys::cuMemMap(address, bytes, 0, handle, 0).result();
            let mapped = mapped.and_then(|()| {
                let access = sys::cuMemSetAccess(address, bytes, &raw const access, 1).result();
                access.inspect_err(|_| {
                    let _ = sys::cuMemUnmap(address, bytes);
                })
            });
            mapped.inspect_err(|_| {
                let _ = sys::cuMemAddressFree(address, bytes);
            })
        })?;
        memory.address = address;
        Ok(memory)
    }

    /// A descriptor by which another process can [`SharedMemory::import`] it.
    pub fn export(&self) -> Result<OwnedFd, CudaError> {
        let mut descriptor: i32 = -1;
        self.context.call("export memory", || {
            let to = (&raw mut descriptor).cast();
            // SAFETY: writes an int, a new descriptor that is ours.
            unsafe { sys::cuMemExportToShareableHandle(to, self.handle, DESCRIPTOR, 0) }.result()
        })?;
        // SAFETY: new, and ours.
        Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
    }

    /// Where it begins in this process.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its size, a multiple of the driver's granule.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, if it came so far, and released once. Nothing of ours uses it any more.
        self.context.free(|| unsafe {
            if self.address != 0 {
                let _ = sys::cuMemUnmap(self.address, self.bytes).result();
                let _ = sys::cuMemAddressFree(self.address, self.bytes).result();
            }
            sys::cuMemRelease(self.handle).result()
        });
    }
}

//! The driver's objects as values that free themselves: contexts, streams, events, memory of four kinds.
//!
//! Calls are made in the device's primary context, which torch uses, too; it is pushed for the call and popped after it, so that a thread's
//! current device stays what it was.
#![expect(unsafe_code, reason = "calls the CUDA driver")]

use super::CudaError;
use cudarc::driver::{DriverError, result, sys};
use rustix::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::Arc;

/// A device's primary context.
#[derive(Debug)]
pub struct Context {
    device: sys::CUdevice,
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
    fn call<T>(&self, doing: &'static str, call: impl FnOnce() -> Result<T, DriverError>) -> Result<T, CudaError> {
        let _here = self.enter()?;
        call().map_err(CudaError::call(doing))
    }

    /// A call that gives something up, of which nobody can hear that it failed.
    fn free(&self, call: impl FnOnce() -> Result<(), DriverError>) {
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
        let start = std::time::Instant::now();
        while start.elapsed() < super::AWAKE {
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

/// Compiled code on the device; it goes with the context.
#[derive(Debug)]
pub struct Kernel {
    raw: sys::CUfunction,
}

// SAFETY: functions may be used from any thread.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

impl Kernel {
    /// The kernels of these names in what NVRTC has made: machine code, or PTX that ends with a 0.
    pub fn load<const N: usize>(
        context: &Arc<Context>,
        image: &[std::ffi::c_char],
        names: [&std::ffi::CStr; N],
    ) -> Result<[Self; N], CudaError> {
        let load = || {
            // SAFETY: an image that says itself where it ends; the module lives as long as the context.
            let module = unsafe { result::module::load_data(image.as_ptr().cast()) }?;
            let mut kernels = Vec::with_capacity(N);
            for name in names {
                // SAFETY: the module was loaded just now.
                kernels.push(Self { raw: unsafe { result::module::get_function(module, name.to_owned()) }? });
            }
            Ok(kernels.try_into().expect("one a name"))
        };
        context.call("load the kernels", load)
    }
}

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
    pub fn import(context: &Arc<Context>, descriptor: &OwnedFd, bytes: usize) -> Result<Self, CudaError> {
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

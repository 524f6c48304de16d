//! CUDA devices, as far as mixd needs them: the driver's objects (`driver/`), the kernels (`kernels.cu`, compiled by `kernel.rs`), slots whose images lie there (`slots.rs`) and slots in main memory that they are copied to
//! (`slot_memory.rs`).
//!
//! Neither the driver nor NVRTC is linked: both are looked for when a device is asked for. A device is open
//! while somebody uses it, in its primary context.

mod driver;
mod kernel;
mod slot_memory;
mod slots;

pub use driver::{Context, DeviceMemory, Event, Pin, PinnedMemory, SharedMemory, Stream};
pub use kernel::{KernelBoxes, KernelCopy, KernelPatch, KernelRow, Kernels};
pub use slot_memory::SlotMemory;
pub use slots::{ReaderSlots, WriterSlots, slot_stride};

use crate::types::Device;
use cudarc::driver::{DriverError, result, sys};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// What went wrong on the way to a device, or on it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// There is no such device here.
    #[error("no CUDA device for `{device}`: {found} (use --device cpu)")]
    NoDevice {
        /// What was asked for.
        device: Device,
        /// What was looked for, and what there is.
        found: String,
    },
    /// The kernels could not be compiled.
    #[error(
        "cannot compile the kernels: {0} (NVRTC comes with CUDA and with PyTorch: put the folder of libnvrtc.so into LD_LIBRARY_PATH)"
    )]
    Compile(String),
    /// The device's memory is full.
    #[error(
        "the device has too little memory: {need} bytes are needed and {free} are free (ask for smaller batches or fewer slots, start the \
         daemon with less --device-cache, or free what others use)"
    )]
    OutOfMemory {
        /// Bytes needed.
        need: u64,
        /// Bytes free.
        free: u64,
    },
    /// A call failed.
    #[error("CUDA could not {doing}: {code:?}")]
    Call {
        /// What was being done.
        doing: &'static str,
        /// The driver's answer.
        code: sys::CUresult,
    },
}

impl CudaError {
    fn call(doing: &'static str) -> impl FnOnce(DriverError) -> Self {
        move |DriverError(code)| Self::Call { doing, code }
    }

    /// Whether memory could not be pinned because it is.
    pub fn is_pinned_already(&self) -> bool {
        matches!(self, Self::Call { code: sys::CUresult::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, .. })
    }

    /// Whether memory does not suffice, the device's or main memory that was to be pinned.
    pub fn is_out_of_memory(&self) -> bool {
        let code = sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY;
        matches!(self, Self::OutOfMemory { .. }) || matches!(self, Self::Call { code: found, .. } if *found == code)
    }

    /// Says how much was needed and is free, where that was it.
    fn out_of_memory(self, context: &Context, need: usize) -> Self {
        match self {
            Self::Call { code: sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY, .. } => {
                let free = context.memory().map_or(0, |(free, _)| free as u64);
                Self::OutOfMemory { need: need as u64, free }
            }
            other => other,
        }
    }
}

/// What tells devices apart, whatever a process calls them (`CUDA_VISIBLE_DEVICES`).
pub type Uuid = [u8; 16];

/// A device of this machine, open.
#[derive(Debug)]
pub struct Gpu {
    context: Arc<Context>,
    ordinal: u32,
    uuid: Uuid,
    name: String,
    /// Compute capability, major and minor.
    capability: (i32, i32),
    /// Whether kernels reach memory that was pinned where it lies by the processor's address.
    reads_pins: bool,
    kernels: Mutex<Vec<(kernel::Kind, Arc<Kernels>)>>,
}

static OPEN: Mutex<Vec<Weak<Gpu>>> = Mutex::new(Vec::new());

impl Gpu {
    /// Opens a device, or finds it open.
    ///
    /// # Errors
    /// When there is no driver or no such device, naming what was looked for.
    pub fn open(ordinal: u32) -> Result<Arc<Self>, CudaError> {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|gpu| gpu.strong_count() > 0);
        if let Some(gpu) = open.iter().filter_map(Weak::upgrade).find(|gpu| gpu.ordinal == ordinal) {
            return Ok(gpu);
        }
        let gpu = Arc::new(Self::new(ordinal)?);
        open.push(Arc::downgrade(&gpu));
        Ok(gpu)
    }

    /// The device with this UUID.
    ///
    /// # Errors
    /// As [`Gpu::open`], or when none of those that this process sees has it.
    pub fn with_uuid(uuid: Uuid, asked: Device) -> Result<Arc<Self>, CudaError> {
        let devices = devices(asked)?;
        for ordinal in 0..devices {
            if uuid_of(ordinal)? == uuid {
                return Self::open(ordinal);
            }
        }
        let uuid = hex(&uuid);
        let found = format!("the trainer's device (GPU-{uuid}) is none of the {devices} that the daemon sees");
        Err(CudaError::NoDevice { device: asked, found })
    }

    fn new(ordinal: u32) -> Result<Self, CudaError> {
        let asked = Device::Cuda(ordinal);
        let devices = devices(asked)?;
        if ordinal >= devices {
            let found = format!("the machine has {devices} CUDA devices, numbered from 0");
            return Err(CudaError::NoDevice { device: asked, found });
        }
        let device = result::device::get(ordinal as i32).map_err(CudaError::call("find the device"))?;
        use sys::CUdevice_attribute as Attribute;
        let attribute = |which| {
            // SAFETY: a device that the driver has named.
            #[expect(unsafe_code, reason = "calls the CUDA driver")]
            unsafe { result::device::get_attribute(device, which) }.map_err(CudaError::call("ask for the device"))
        };
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        let reads_pins = attribute(Attribute::CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM)? != 0;
        let name = result::device::get_name(device).map_err(CudaError::call("ask for the device"))?;
        let context = Arc::new(Context::retain(device)?);
        let (uuid, kernels) = (uuid_of(ordinal)?, Mutex::default());
        Ok(Self { context, ordinal, uuid, name, capability, reads_pins, kernels })
    }

    /// Its primary context.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Its number in this process.
    pub fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// What it is to every process.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Whether kernels reach memory that was pinned where it lies by the processor's address.
    pub fn reads_pins(&self) -> bool {
        self.reads_pins
    }

    /// What its maker calls it.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// How many devices there are.
fn devices(asked: Device) -> Result<u32, CudaError> {
    let nothing = |found: &str| CudaError::NoDevice { device: asked, found: found.to_owned() };
    // SAFETY: loads a library, whose initialisers are the driver's own.
    #[expect(unsafe_code, reason = "loads the CUDA driver")]
    if !unsafe { sys::is_culib_present() } {
        return Err(nothing("there is no driver (libcuda.so.1 was looked for)"));
    }
    match result::init() {
        Ok(()) => {}
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => return Err(nothing("the machine has no CUDA device")),
        Err(DriverError(code)) => return Err(nothing(&format!("the driver does not start ({code:?})"))),
    }
    Ok(result::device::get_count().map_err(CudaError::call("count devices"))? as u32)
}

fn uuid_of(ordinal: u32) -> Result<Uuid, CudaError> {
    let uuid = result::device::get(ordinal as i32).and_then(result::device::get_uuid);
    Ok(uuid.map_err(CudaError::call("ask for the device"))?.bytes.map(|byte| byte as u8))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    #[test]
    fn memory_is_shared_by_its_descriptor() {
        let gpu = fixtures::gpu();
        let (stream, mut pinned) =
            (Stream::new(gpu.context()).unwrap(), PinnedMemory::new(gpu.context(), 5_000).unwrap());
        let made = SharedMemory::new(gpu.context(), 5_000).unwrap();
        let opened = SharedMemory::import(gpu.context(), &made.export().unwrap(), made.bytes()).unwrap();
        assert!(made.bytes() >= 5_000 && made.address() != opened.address());
        pinned.bytes_mut().fill(7);
        // SAFETY: all of it is as large, and waited for.
        #[expect(unsafe_code, reason = "queues copies")]
        unsafe {
            stream.upload(pinned.as_ptr(), made.address(), 5_000).unwrap();
            stream.synchronize().unwrap();
            pinned.bytes_mut().fill(0);
            // Whoever has it mapped keeps it.
            drop(made);
            stream.download(opened.address(), pinned.as_ptr(), 5_000).unwrap();
            stream.synchronize().unwrap();
        }
        assert!(pinned.bytes_mut().iter().all(|&byte| byte == 7));
    }

    #[test]
    fn a_thread_keeps_its_own_current_device() {
        let gpu = fixtures::gpu();
        let current = || result::ctx::get_current().unwrap().map(|context| context as usize);
        let before = current();
        let memory = DeviceMemory::new(gpu.context(), 1 << 20).unwrap();
        assert_eq!((current(), memory.bytes()), (before, 1 << 20));
    }

    #[cfg(feature = "torch")]
    #[test]
    fn streams_wait_for_the_default_stream_and_it_for_them() {
        const BYTES: usize = 1 << 20;
        let gpu = fixtures::gpu();
        let context = gpu.context();
        let [first, last] = [Stream::new(context).unwrap(), Stream::new(context).unwrap()];
        let (event, memory) = (Event::new(context).unwrap(), DeviceMemory::new(context, BYTES).unwrap());
        let [zeros, mut ones, mut seen] = [0, 1, 2].map(|_| PinnedMemory::new(context, BYTES).unwrap());
        ones.bytes_mut().fill(1);
        seen.bytes_mut().fill(2);
        // SAFETY: all of it is as large, and waited for.
        #[expect(unsafe_code, reason = "queues copies")]
        unsafe {
            for _ in 0..200 {
                first.upload(zeros.as_ptr(), memory.address(), BYTES).unwrap();
            }
            first.upload(ones.as_ptr(), memory.address(), BYTES).unwrap();
            first.lead_default(&event).unwrap();
            last.wait_for_default(&event).unwrap();
            last.download(memory.address(), seen.as_ptr(), BYTES).unwrap();
        }
        last.synchronize().unwrap();
        assert!(seen.bytes_mut().iter().all(|&byte| byte == 1));
    }
}

//! The CUDA device that a feed's batches are to lie on, as the trainer has it.

use super::ClientError;
use crate::ring::{DeviceSlots, RingError};
use crate::types::Device;
use std::fs::File;

/// An open device.
#[derive(Clone)]
pub struct OpenDevice {
    #[cfg(feature = "cuda")]
    gpu: std::sync::Arc<crate::cuda::Gpu>,
}

impl OpenDevice {
    /// Opens a feed's device; `None` where its batches lie in main memory.
    ///
    /// # Errors
    /// When there is no such device, or this build has no CUDA.
    pub fn open(device: Device) -> Result<Option<Self>, ClientError> {
        match device {
            Device::Cpu => Ok(None),
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => {
                let gpu = crate::cuda::Gpu::open(ordinal).map_err(|error| ClientError::Device(error.to_string()))?;
                Ok(Some(Self { gpu }))
            }
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => {
                Err(ClientError::Device("this build has no CUDA: it was built without the feature `cuda`".to_owned()))
            }
        }
    }

    /// What the device is to every process.
    pub fn uuid(&self) -> Vec<u8> {
        #[cfg(feature = "cuda")]
        return self.gpu.uuid().to_vec();
        #[cfg(not(feature = "cuda"))]
        Vec::new()
    }

    /// Opens the images of a ring's slots in the device memory, of `found` bytes, that the daemon has handed out.
    ///
    /// # Errors
    /// When the device refuses it.
    pub fn slots(
        &self,
        memory: &File,
        found: u64,
        bytes: usize,
        slots: u32,
    ) -> Result<Box<dyn DeviceSlots>, RingError> {
        #[cfg(feature = "cuda")]
        {
            let gpu = std::sync::Arc::clone(&self.gpu);
            Ok(Box::new(crate::cuda::ReaderSlots::open(gpu, memory, found, bytes, slots)?))
        }
        #[cfg(not(feature = "cuda"))]
        {
            let _ = (memory, found, bytes, slots);
            Err(RingError::NoDevice)
        }
    }
}

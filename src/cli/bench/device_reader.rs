//! A trainer's reading of batches on a CUDA device.

use super::report::Touch;
use crate::batch::OnDevice;
use crate::client::Batch;
use crate::cuda::{CudaError, DeviceMemory, Gpu, PinnedMemory, Stream};
use crate::spec::FeedSpec;

/// Reads batches on their device, as a trainer's own kernels would: queued on a stream of its own, and waited for by nobody.
pub struct DeviceReader {
    stream: Stream,
    /// An element of every image.
    elements: PinnedMemory,
    /// A copy of the last batch.
    copy: DeviceMemory,
}

impl DeviceReader {
    /// A reader of a feed's batches.
    pub fn new(ordinal: u32, spec: &FeedSpec) -> Result<Self, CudaError> {
        let (gpu, rows) = (Gpu::open(ordinal)?, spec.batch_size as usize);
        let stream = Stream::new(gpu.context())?;
        let elements = PinnedMemory::new(gpu.context(), rows)?;
        let copy = DeviceMemory::new(gpu.context(), rows * spec.format().image_bytes())?;
        Ok(Self { stream, elements, copy })
    }

    /// Queues the reading of a batch; its lease may be dropped then.
    pub fn touch(&self, batch: &Batch, on_device: OnDevice, touch: Touch) -> Result<(), CudaError> {
        batch.used_on(self.stream.handle());
        let (OnDevice { address, bytes, .. }, rows) = (on_device, batch.view().len());
        // SAFETY: the images stay until the work that was queued on this stream is done, since the lease knows of it, and both targets are
        // large enough and read only after `finish`.
        #[expect(unsafe_code, reason = "queues work that reads and writes memory later")]
        unsafe {
            match touch {
                Touch::Element => self.stream.download_rows(address, bytes / rows, self.elements.as_ptr(), 1, rows),
                Touch::All => self.stream.copy(address, self.copy.address(), bytes),
            }
        }
    }

    /// Waits for all that was queued; a sum over the last batch's elements.
    pub fn finish(&mut self) -> Result<u64, CudaError> {
        self.stream.synchronize()?;
        Ok(self.elements.bytes_mut().iter().map(|&byte| u64::from(byte)).sum())
    }
}

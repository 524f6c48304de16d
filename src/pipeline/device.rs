//! Feeds that are mixed on CUDA devices: which device it is, its share of the store, its mixer and its slots.

#[cfg(feature = "cuda")]
pub use with_cuda::{Residents, Slots, resolve};
#[cfg(not(feature = "cuda"))]
pub use without_cuda::{Slots, resolve};

#[cfg(feature = "cuda")]
mod with_cuda {
    use super::super::{Pipeline, StoreEntry};
    use crate::cuda::{CudaError, Gpu, WriterSlots};
    use crate::mix::{CudaMixer, MixError, Mixer, Sizes};
    use crate::spec::FeedSpec;
    use crate::store::{PinnedRows, Resident};
    use crate::types::Device;
    use std::sync::{Arc, Mutex, PoisonError, Weak};

    /// The slots of a ring on a device.
    pub type Slots = Arc<WriterSlots>;

    /// A store's samples on the devices that feeds read them on; they leave a device with its last feed.
    pub type Residents = Mutex<Vec<Weak<Resident>>>;

    /// The spec as this process numbers devices, and what keeps the device open until the feed is.
    ///
    /// # Errors
    /// When this process does not see the trainer's device.
    pub fn resolve(spec: FeedSpec, uuid: &[u8]) -> Result<(FeedSpec, Option<Arc<Gpu>>), MixError> {
        let Device::Cuda(ordinal) = spec.device else { return Ok((spec, None)) };
        let gpu = match uuid.try_into() {
            Ok(uuid) => Gpu::with_uuid(uuid, spec.device)?,
            // Who does not say which device it is has this process's numbers.
            Err(_) => Gpu::open(ordinal)?,
        };
        Ok((FeedSpec { device: Device::Cuda(gpu.ordinal()), ..spec }, Some(gpu)))
    }

    impl Pipeline {
        /// The mixer on a CUDA device of a feed's batches, and their slots where they stay there.
        pub(in super::super) fn cuda_mixer(
            &self,
            spec: &FeedSpec,
            entry: &StoreEntry,
        ) -> Result<(Box<dyn Mixer>, Option<Slots>), MixError> {
            let options = &self.shared.options;
            let device = if spec.device == Device::Cpu { options.device } else { spec.device };
            let Device::Cuda(ordinal) = device else {
                return Err(MixError::WrongDevice { mixer: options.mixer, device, remedy: "cpu" });
            };
            let (gpu, format, rows) = (Gpu::open(ordinal)?, spec.format(), spec.batch_size as usize);
            let slots = (spec.device != Device::Cpu)
                .then(|| WriterSlots::new(&gpu, rows * format.image_bytes(), spec.slots).map(Arc::new))
                .transpose()?;
            let resident = resident(&gpu, entry, options.device_cache_bytes)?;
            let samples = spec.samples_max() as usize;
            let staged = if entry.store.holds_all() && resident.holds_all() { 0 } else { samples };
            let sizes = Sizes { rows, samples, staged };
            let mixer = CudaMixer::new(&gpu, format, sizes, Some(resident), slots.clone())?;
            Ok((Box::new(mixer), slots))
        }
    }

    /// A store's samples on a device; as many as `budget` holds or, by default, an eighth of the device's memory and half of what is free of it.
    fn resident(gpu: &Arc<Gpu>, entry: &StoreEntry, budget: Option<u64>) -> Result<Arc<Resident>, CudaError> {
        let mut residents = entry.residents.lock().unwrap_or_else(PoisonError::into_inner);
        residents.retain(|resident| resident.strong_count() > 0);
        let open: Vec<_> = residents.iter().filter_map(Weak::upgrade).collect();
        if let Some(found) = open.iter().find(|resident| resident.gpu().ordinal() == gpu.ordinal()) {
            return Ok(Arc::clone(found));
        }
        let (free, all) = gpu.context().memory()?;
        let budget = budget.unwrap_or((all as u64 / 8).min(free as u64 / 2));
        let host = open.first().map(|resident| Arc::clone(resident.host()));
        let host = host.unwrap_or_else(|| Arc::new(PinnedRows::new(gpu, Arc::clone(entry.store.rows()))));
        let resident = Arc::new(Resident::new(gpu, host, budget)?);
        residents.push(Arc::downgrade(&resident));
        Ok(resident)
    }

    impl StoreEntry {
        /// Bytes that its samples take on devices.
        pub fn device_bytes(&self) -> u64 {
            let residents = self.residents.lock().unwrap_or_else(PoisonError::into_inner);
            residents.iter().filter_map(Weak::upgrade).map(|resident| resident.bytes() as u64).sum()
        }
    }
}

#[cfg(not(feature = "cuda"))]
mod without_cuda {
    use super::super::{Pipeline, StoreEntry};
    use crate::mix::{MixError, Mixer};
    use crate::spec::FeedSpec;
    use crate::types::Device;
    use std::os::fd::OwnedFd;

    /// There are none.
    #[derive(Clone, Copy)]
    pub enum Slots {}

    impl Slots {
        /// Never called.
        pub fn export(&self) -> Result<OwnedFd, MixError> {
            match *self {}
        }

        /// Never called.
        pub fn bytes(&self) -> u64 {
            match *self {}
        }
    }

    /// A spec without a device.
    pub fn resolve(spec: FeedSpec, _: &[u8]) -> Result<(FeedSpec, Option<()>), MixError> {
        if spec.device == Device::Cpu { Ok((spec, None)) } else { Err(MixError::NoCudaBuild) }
    }

    impl Pipeline {
        pub(in super::super) fn cuda_mixer(
            &self,
            _: &FeedSpec,
            _: &StoreEntry,
        ) -> Result<(Box<dyn Mixer>, Option<Slots>), MixError> {
            Err(MixError::NoCudaBuild)
        }
    }

    impl StoreEntry {
        /// None.
        pub fn device_bytes(&self) -> u64 {
            0
        }
    }
}

//! What the machine can do at best, which `mixd bench --ceiling` sets beside what the daemon does.

#[cfg(feature = "cuda")]
use super::bench_device::DeviceCeiling;
use super::options::PipelineArgs;
use crate::config::FeedSpec;
use crate::cpus::Cpus;
use crate::dataset::Dataset;
use crate::render::Loader;
use crate::ring::now_ns;
#[cfg(feature = "cuda")]
use crate::types::Device;
use crate::types::Split;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long decoding is measured in a round; memory and wake-ups need a quarter.
const TIME: Duration = Duration::from_millis(800);
/// Between two wake-ups: longer than a waiter stays awake, about as long as a batch takes.
const WAKE_INTERVAL: Duration = Duration::from_millis(1);

/// What the machine can do at best, measured again and again with the memory it was first measured with.
pub struct Ceiling<'a> {
    dataset: &'a Dataset,
    spec: FeedSpec,
    pipeline: &'a PipelineArgs,
    /// Decode threads of the daemon.
    workers: usize,
    next: AtomicU64,
    slots: Vec<Vec<u8>>,
    #[cfg(feature = "cuda")]
    device: Option<DeviceCeiling>,
}

/// Ceilings.
pub struct Measured {
    /// Images a second: decode and resize with nothing else, on as many threads as the daemon has workers.
    pub decode: f64,
    /// Images a second: writing finished images to the slots of a ring.
    pub write: f64,
    /// Of the CUDA device that mixes.
    pub device: Option<DeviceMeasured>,
    /// Microseconds until a sleeping thread is awake that nothing keeps from running: what the kernel takes for a hand-over.
    pub wake_us: Vec<f64>,
}

/// Ceilings of a CUDA device.
#[derive(Debug, Clone)]
pub struct DeviceMeasured {
    /// What it is called.
    pub name: String,
    /// Bytes a second, read and written, of copies within its memory.
    pub copy: f64,
    /// Bytes a second of copies from pinned main memory.
    pub host_copy: f64,
    /// Bytes a second of copies to pinned main memory.
    pub copy_back: f64,
    /// Images a second that the kernel alone mixes.
    pub kernel: f64,
}

impl<'a> Ceiling<'a> {
    /// For a daemon with so many decode threads.
    ///
    /// # Errors
    /// When the device is not there, or lacks the memory.
    pub fn new(
        dataset: &'a Dataset,
        spec: FeedSpec,
        pipeline: &'a PipelineArgs,
        workers: usize,
    ) -> anyhow::Result<Self> {
        let batch_bytes = spec.batch_size as usize * spec.format().image_bytes();
        let slots = (0..spec.slots).map(|_| vec![1; batch_bytes]).collect();
        #[cfg(feature = "cuda")]
        let device = match pipeline.batch_device() {
            Device::Cuda(ordinal) => Some(DeviceCeiling::new(ordinal, &spec)?),
            Device::Cpu => None,
        };
        let mut ceiling = Self {
            dataset,
            spec,
            pipeline,
            workers,
            next: AtomicU64::new(0),
            slots,
            #[cfg(feature = "cuda")]
            device,
        };
        // Once over the first files, so that neither the page cache nor the processor's clock starts cold.
        ceiling.measure()?;
        Ok(ceiling)
    }

    /// Measures for a second; for two where there is a device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn measure(&mut self) -> anyhow::Result<Measured> {
        Ok(Measured {
            decode: self.decode(Instant::now() + TIME),
            write: self.write(Instant::now() + TIME / 4),
            device: self.device()?,
            wake_us: wake(Instant::now() + TIME / 4),
        })
    }

    #[cfg(feature = "cuda")]
    fn device(&mut self) -> anyhow::Result<Option<DeviceMeasured>> {
        Ok(self.device.as_mut().map(DeviceCeiling::measure).transpose()?)
    }

    #[cfg(not(feature = "cuda"))]
    fn device(&mut self) -> anyhow::Result<Option<DeviceMeasured>> {
        Ok(None)
    }

    fn decode(&self, until: Instant) -> f64 {
        let samples = self.dataset.samples(Split::Train).len() as u64;
        let (done, start, size) = (AtomicU64::new(0), Instant::now(), self.spec.image_size);
        let work = || {
            // Fails only where the daemon's start has failed.
            let _ = self.pipeline.cpus.as_ref().map(Cpus::pin);
            let (mut loader, mut out) = (Loader::new(self.pipeline.load()), vec![0; size.values()]);
            while Instant::now() < until {
                let sample = self.next.fetch_add(1, Ordering::Relaxed) % samples;
                let path = self.dataset.path_of(Split::Train, sample as u32);
                if loader.load(&path, size, &mut out).is_ok() {
                    done.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..self.workers {
                scope.spawn(work);
            }
        });
        done.into_inner() as f64 / start.elapsed().as_secs_f64()
    }

    /// On as many threads as mix a batch: each writes its part of every slot.
    fn write(&mut self, until: Instant) -> f64 {
        let (images, start, workers) = (AtomicU64::new(0), Instant::now(), self.workers);
        let part_bytes = self.slots[0].len().div_ceil(workers);
        let part_images = u64::from(self.spec.batch_size) / workers as u64;
        let mut parts: Vec<Vec<&mut [u8]>> = (0..workers).map(|_| Vec::new()).collect();
        for slot in &mut self.slots {
            slot.chunks_mut(part_bytes).zip(&mut parts).for_each(|(part, of)| of.push(part));
        }
        std::thread::scope(|scope| {
            for mut parts in parts {
                let images = &images;
                scope.spawn(move || {
                    let mut value = 0_u8;
                    while Instant::now() < until {
                        for part in &mut parts {
                            value = value.wrapping_add(1);
                            part.fill(value);
                            std::hint::black_box(&part[part.len() / 2]);
                            images.fetch_add(part_images, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        images.into_inner() as f64 / start.elapsed().as_secs_f64()
    }
}

/// How long a thread that sleeps takes to wake, each time that another thread wakes it.
fn wake(until: Instant) -> Vec<f64> {
    let (woken_ns, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| {
            let mut wake_us = Vec::new();
            while !done.load(Ordering::Acquire) {
                std::thread::park();
                match woken_ns.swap(0, Ordering::AcqRel) {
                    0 => {}
                    woken => wake_us.push((now_ns() - woken) as f64 / 1e3),
                }
            }
            wake_us
        });
        while Instant::now() < until {
            let next = Instant::now() + WAKE_INTERVAL;
            while Instant::now() < next {
                std::hint::spin_loop();
            }
            woken_ns.store(now_ns(), Ordering::Release);
            sleeper.thread().unpark();
        }
        done.store(true, Ordering::Release);
        sleeper.thread().unpark();
        sleeper.join().expect("no panic in it")
    })
}

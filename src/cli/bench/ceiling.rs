//! What the machine can do at best, which `mixd bench --ceiling` sets beside what the daemon does.

#[cfg(feature = "cuda")]
use super::device_ceiling::DeviceCeiling;
use super::measured::{DeviceMeasured, Measured};
use crate::cli::options::PipelineArgs;
use crate::cpus::Cpus;
use crate::decode::Picture;
use crate::mix::{CpuMixer, Helpers, Mixer, Row, Target};
use crate::pipeline::Views;
use crate::plan::{Draws, RowPlan, Sampler, ViewPlan};
use crate::render::{Loader, ViewMaker};
use crate::ring::now_ns;
use crate::source::Source;
use crate::spec::{EraseWhen, FeedSpec};
#[cfg(feature = "cuda")]
use crate::types::Device;
use crate::types::{ImageSize, Split};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long decoding is measured in a round; memory and wake-ups need a quarter.
const TIME: Duration = Duration::from_millis(800);
/// Bytes of decoded images that random views are rendered from: more than caches hold.
const SOURCE_BYTES: usize = 256 << 20;
/// Where slots begin: at a multiple of so many bytes.
const ALIGNMENT: usize = 64;
/// Between two wake-ups: longer than a waiter stays awake, about as long as a batch takes.
const WAKE_INTERVAL: Duration = Duration::from_millis(1);

/// What the machine can do at best, measured again and again with the memory it was first measured with.
pub struct Ceiling<'a> {
    source: &'a dyn Source,
    spec: FeedSpec,
    pipeline: &'a PipelineArgs,
    /// Decode threads of the daemon.
    workers: usize,
    next: AtomicU64,
    slots: Vec<Vec<u8>>,
    /// Decoded images, of a feed whose views are random: size, values a pixel, values.
    sources: Option<Vec<(ImageSize, usize, Vec<u8>)>>,
    #[cfg(feature = "cuda")]
    device: Option<DeviceCeiling>,
}

impl<'a> Ceiling<'a> {
    /// For a daemon with so many decode threads.
    ///
    /// # Errors
    /// When the device is not there, or lacks the memory.
    pub fn new(
        source: &'a dyn Source,
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
            source,
            spec,
            pipeline,
            workers,
            next: AtomicU64::new(0),
            slots,
            sources: Views::of(&spec).are_random().then(|| decoded(source, spec.split, pipeline)),
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
            render: self.render(Instant::now() + TIME),
            render_and_mix: self.render_and_mix(Instant::now() + TIME)?,
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
        let samples = self.source.len(self.spec.split);
        let (done, start, size) = (AtomicU64::new(0), Instant::now(), self.spec.image_size);
        let views = Views::of(&self.spec);
        let work = || {
            // Fails only where the daemon's start has failed.
            let _ = self.pipeline.cpus.as_ref().map(Cpus::pin);
            let (mut loader, mut out) = (Loader::new(self.pipeline.load()), vec![0; size.values()]);
            let mut bytes = Vec::new();
            while Instant::now() < until {
                let sample = self.next.fetch_add(1, Ordering::Relaxed);
                let read = self.source.read_waiting(self.spec.split, (sample % u64::from(samples)) as u32, &mut bytes);
                // As in the daemon, consecutive views of a sample share one decode.
                let uses = if views.are_random() { u64::from(self.spec.views * self.spec.repeats) } else { 1 };
                let made = if views.are_random() {
                    let plans = || (0..uses).map(|nth| self.view(sample * uses + nth));
                    let make = |picture: &Picture<'_>, maker: &mut ViewMaker| {
                        for plan in plans() {
                            maker.run(picture, &views.random(&plan, picture.size()), size, &mut out);
                        }
                    };
                    let region = |image| views.region(plans(), image);
                    read.is_ok() && loader.source_region(&bytes, Some(&region), make).is_ok()
                } else {
                    let geometry = |image| views.fixed(image);
                    read.is_ok() && loader.load(&bytes, views.at_least(), geometry, size, &mut out).is_ok()
                };
                if made {
                    done.fetch_add(uses, Ordering::Relaxed);
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

    /// Views of sources that are decoded, by the calls that the daemon makes, with nothing else.
    fn render(&self, until: Instant) -> Option<f64> {
        let (views, size) = (Views::of(&self.spec), self.spec.image_size);
        let sources = self.sources.as_ref()?;
        let (done, start) = (AtomicU64::new(0), Instant::now());
        let work = || {
            // Fails only where the daemon's start has failed.
            let _ = self.pipeline.cpus.as_ref().map(Cpus::pin);
            let (mut loader, mut out) = (Loader::new(self.pipeline.load()), vec![0; size.values()]);
            while Instant::now() < until {
                let nth = self.next.fetch_add(1, Ordering::Relaxed);
                let (image, channels, values) = &sources[nth as usize % sources.len()];
                let picture = Picture::new(image.width, image.height, *channels, values);
                if loader.render(&picture, &views.random(&self.view(nth), *image), size, &mut out).is_ok() {
                    done.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..self.workers {
                scope.spawn(work);
            }
        });
        Some(done.into_inner() as f64 / start.elapsed().as_secs_f64())
    }

    /// The same, and the mix of each batch of them: on every thread batches of its own, in memory of its own.
    fn render_and_mix(&self, until: Instant) -> anyhow::Result<Option<f64>> {
        let Some(sources) = &self.sources else { return Ok(None) };
        let (views, size, format) = (Views::of(&self.spec), self.spec.image_size, self.spec.format());
        let sampler = Sampler::new(self.spec, self.source.numbering(self.spec.split))?;
        let first = sampler.start().epoch;
        let (epoch, indices) = (sampler.epoch(first), sampler.indices(first)?);
        let (done, start) = (AtomicU64::new(0), Instant::now());
        let work = || -> anyhow::Result<()> {
            // Fails only where the daemon's start has failed.
            let _ = self.pipeline.cpus.as_ref().map(Cpus::pin);
            let mut loader = Loader::new(self.pipeline.load());
            let mut mixer = CpuMixer::new(format, Arc::new(Helpers::start(0)?));
            let rows_max = self.spec.batch_size as usize;
            let mut staging = vec![0; rows_max * size.values()];
            let mut slot = vec![0; rows_max * format.image_bytes() + ALIGNMENT];
            let aligned = slot.as_ptr().align_offset(ALIGNMENT);
            while Instant::now() < until {
                let nth = self.next.fetch_add(1, Ordering::Relaxed);
                let plan = epoch.plan(indices.start + nth % (indices.end - indices.start));
                for (row, out) in plan.rows.iter().zip(staging.chunks_exact_mut(size.values())) {
                    let (image, channels, values) = &sources[row.own.sample as usize % sources.len()];
                    let picture = Picture::new(image.width, image.height, *channels, values);
                    loader.render(&picture, &views.random(&row.own.view, *image), size, out)?;
                }
                let sample = |row: usize| &staging[row * size.values()..][..size.values()];
                let erasures = plan.each(|row| row.own.view.erasure(&self.spec.erase, size));
                let row = |(at, row): (usize, &RowPlan)| {
                    // A partner from elsewhere costs the rendering of it, too, which is left out.
                    let partner = usize::try_from(row.partner_row).unwrap_or(at);
                    let mut made = Row::new(sample(at), sample(partner), row.mix.pixel_weight());
                    (made.partner_row, made.cut) = (row.partner_row, row.mix.cut());
                    match self.spec.erase.when {
                        EraseWhen::BeforeMix => {
                            made.own.erasure = erasures[at].as_ref();
                            made.partner.erasure = erasures[partner].as_ref();
                        }
                        EraseWhen::AfterMix => made.erasure = erasures[at].as_ref(),
                    }
                    made
                };
                let rows: Vec<Row<'_>> = plan.rows.iter().enumerate().map(row).collect();
                let target = &mut slot[aligned..][..rows.len() * format.image_bytes()];
                mixer.mix(size, &rows, Target::Memory(target), None, None)?;
                done.fetch_add(rows.len() as u64, Ordering::Relaxed);
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.workers).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("no panic in it"))
        })?;
        Ok(Some(done.into_inner() as f64 / start.elapsed().as_secs_f64()))
    }

    /// A random view.
    fn view(&self, nth: u64) -> ViewPlan {
        let draws = Draws::at(self.spec.seed, false, nth >> 20, 0, nth & 0xF_FFFF);
        ViewPlan { draws: Some(draws), flip: self.spec.flip > 0.0 && nth.is_multiple_of(2) }
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

/// As many decoded images as fit [`SOURCE_BYTES`].
fn decoded(source: &dyn Source, split: Split, pipeline: &PipelineArgs) -> Vec<(ImageSize, usize, Vec<u8>)> {
    let (mut loader, mut bytes, mut room) = (Loader::new(pipeline.load()), Vec::new(), SOURCE_BYTES);
    let mut decode = |sample| {
        source.read_waiting(split, sample, &mut bytes).ok()?;
        let keep =
            |picture: &Picture<'_>, _: &mut ViewMaker| (picture.size(), picture.channels, picture.values.to_vec());
        loader.source(&bytes, keep).ok()
    };
    let images = (0..source.len(split)).map_while(|sample| {
        let image = decode(sample);
        room = room.checked_sub(image.as_ref().map_or(0, |(_, _, values)| values.len()))?;
        Some(image)
    });
    images.flatten().collect()
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

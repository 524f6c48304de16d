//! What a CUDA device can do at best, which `mixd bench --ceiling` sets beside what the daemon does there.

use super::measured::DeviceMeasured;
use crate::cuda::{self, CudaError, DeviceMemory, Gpu, KernelRow, Kernels, PinnedMemory, Stream, WriterSlots};
use crate::format::Format;
use crate::spec::FeedSpec;
use crate::store::sample_stride;
use crate::types::Device;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long each ceiling is measured in a round.
const TIME: Duration = Duration::from_millis(150);
/// Bytes that a copy of a ceiling moves at once: several times what caches hold.
const COPY_BYTES: usize = 512 << 20;
/// Bytes that the kernel alone writes before it begins again, so that what it writes goes to memory.
const WRITTEN_BYTES: usize = 256 << 20;
/// Bytes of the samples that the kernel alone is measured on; and how many different batches of them.
const SAMPLES_BYTES: usize = 480 << 20;
const BATCHES: usize = 32;

/// What a device can do at best, measured again and again with the memory it was first measured with.
pub struct DeviceCeiling {
    gpu: Arc<Gpu>,
    stream: Stream,
    format: Format,
    rows: usize,
    kernels: Arc<Kernels>,
    /// Random samples, which the orders name; rows that mix them, and slots that they are mixed to: more than caches hold.
    _samples: DeviceMemory,
    orders: DeviceMemory,
    slots: WriterSlots,
    slots_count: u32,
    /// What is copied where.
    copies: [DeviceMemory; 2],
    host: PinnedMemory,
}

impl DeviceCeiling {
    /// For feeds of this spec on a device.
    pub fn new(ordinal: u32, spec: &FeedSpec) -> Result<Self, CudaError> {
        let (gpu, rows) = (Gpu::open(ordinal)?, spec.batch_size as usize);
        let format = Format { device: Device::Cuda(ordinal), ..spec.format() };
        let (context, stride) = (gpu.context(), sample_stride(format.image_size.values()));
        let share = context.memory()?.0 / 8;
        let samples_count = (SAMPLES_BYTES.min(share) / stride).clamp(2 * rows, 9_469.max(2 * rows));
        let copy_bytes = COPY_BYTES.min(share);
        let stream = Stream::new(context)?;
        let samples = DeviceMemory::new(context, samples_count * stride)?;
        let mut host = PinnedMemory::new(context, (samples_count * stride).max(copy_bytes / 4))?;
        let mut state = 1_u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize
        };
        for word in host.bytes_mut().chunks_exact_mut(4) {
            word.copy_from_slice(&(random() as u32).to_le_bytes());
        }
        // Of every batch: each row's sample, its λ, and its partner's row. No two rows share a sample.
        let row = |own: usize, partner: usize, lambda: f32| KernelRow {
            own: samples.address() + (own * stride) as u64,
            partner: samples.address() + (partner * stride) as u64,
            own_factor: [lambda / 64.0; 3],
            partner_factor: [(1.0 - lambda) / 64.0; 3],
            offset: [-1.5; 3],
            cut: [0; 4],
            flags: 0,
        };
        let mut rows_of_all = Vec::with_capacity(BATCHES * rows);
        for _ in 0..BATCHES {
            let first = random() % samples_count;
            let own: Vec<usize> = (0..rows).map(|at| (first + at * (samples_count / rows)) % samples_count).collect();
            rows_of_all
                .extend(own.iter().map(|&at| row(at, own[random() % rows], 0.5 + (random() % 64) as f32 / 128.0)));
        }
        let orders_bytes = size_of_val(&rows_of_all[..]);
        let mut listed = PinnedMemory::new(context, orders_bytes)?;
        listed.bytes_mut().copy_from_slice(bytemuck::cast_slice(&rows_of_all));
        let orders = DeviceMemory::new(context, orders_bytes)?;
        // SAFETY: all of it is as large as is copied, and lives until it is waited for.
        #[expect(unsafe_code, reason = "queues copies")]
        unsafe {
            stream.upload(host.as_ptr(), samples.address(), samples_count * stride)?;
            stream.upload(listed.as_ptr(), orders.address(), orders_bytes)?;
        }
        stream.synchronize()?;
        let slot_bytes = rows * format.image_bytes();
        let slots_count = WRITTEN_BYTES.min(share).div_ceil(cuda::slot_stride(slot_bytes)) as u32;
        let slots = WriterSlots::new(&gpu, slot_bytes, slots_count)?;
        let copies = [DeviceMemory::new(context, copy_bytes)?, DeviceMemory::new(context, copy_bytes)?];
        let kernels = gpu.kernels((format.dtype, format.layout))?;
        Ok(Self { stream, format, rows, kernels, _samples: samples, orders, slots, slots_count, copies, host, gpu })
    }

    /// Measures for a little more than half a second.
    #[expect(unsafe_code, reason = "queues copies and kernels")]
    pub fn measure(&mut self) -> Result<DeviceMeasured, CudaError> {
        let [from, to] = &self.copies;
        let host_bytes = to.bytes() / 4;
        // SAFETY: all of it is as large as is copied, belongs to `self`, and is waited for by `rate`.
        let copy = self.rate(&|_| unsafe { self.stream.copy(from.address(), to.address(), to.bytes()) })?;
        // SAFETY: as above.
        let host_copy = self.rate(&|_| unsafe { self.stream.upload(self.host.as_ptr(), to.address(), host_bytes) })?;
        // SAFETY: as above.
        let back = self.rate(&|_| unsafe { self.stream.download(from.address(), self.host.as_ptr(), host_bytes) })?;
        let orders_bytes = (self.rows * size_of::<KernelRow>()) as u64;
        let kernel = self.rate(&|turn| {
            let orders = self.orders.address() + (turn % BATCHES) as u64 * orders_bytes;
            let out = self.slots.address(turn as u32 % self.slots_count);
            // SAFETY: as above; the orders name samples, and the slots hold a batch.
            unsafe { self.kernels.mix(&self.stream, &self.format, orders, out, self.rows) }
        })?;
        Ok(DeviceMeasured {
            name: self.gpu.name().to_owned(),
            copy: copy * 2.0 * to.bytes() as f64,
            host_copy: host_copy * host_bytes as f64,
            copy_back: back * host_bytes as f64,
            kernel: kernel * self.rows as f64,
        })
    }

    /// How often a second the device does what `queue` queues.
    fn rate(&self, queue: &dyn Fn(usize) -> Result<(), CudaError>) -> Result<f64, CudaError> {
        // Once to warm up, then as many at a time as take about a tenth of the time together.
        queue(0)?;
        self.stream.synchronize()?;
        let (mut at_once, mut turn) = (1, 0);
        let mut timed = |at_once: usize| {
            let start = Instant::now();
            for _ in 0..at_once {
                queue(turn)?;
                turn += 1;
            }
            self.stream.synchronize()?;
            Ok(start.elapsed())
        };
        while timed(at_once)? < TIME / 10 && at_once < 1 << 16 {
            at_once *= 2;
        }
        let (start, mut done) = (Instant::now(), 0);
        while start.elapsed() < TIME {
            timed(at_once)?;
            done += at_once;
        }
        Ok(done as f64 / start.elapsed().as_secs_f64())
    }
}

//! The CUDA mixer: samples that are on the device already, or are copied there once, and one kernel that makes the batch of them, in a slot on
//! the device or in memory from which it is copied into a slot of main memory.
//!
//! Its values are the CPU mixer's, to the bit: the kernel computes with the same factors in the same order (`cuda/kernels.cu`).
#![expect(unsafe_code, reason = "queues work that reads and writes memory later")]

use super::cpu::Factors;
use super::{Format, MixError, Mixer, Notice, Row, Target};
use crate::cuda::{
    self, CudaError, DeviceMemory, Event, Found, Gpu, Kernels, PinnedMemory, SlotMemory, Stream, WriterSlots,
};
use crate::stats::Moved;
use bytemuck::cast_slice_mut;
use std::collections::HashMap;
use std::sync::Arc;

/// Mixes on a CUDA device.
pub struct CudaMixer {
    format: Format,
    gpu: Arc<Gpu>,
    stream: Stream,
    done: Event,
    kernels: Arc<Kernels>,
    /// The store's samples on this device.
    resident: Option<Arc<cuda::Resident>>,
    /// Room on the device for as many samples as a batch may need that do not stay there.
    staging: DeviceMemory,
    /// What the kernels are told: rows, then copies; in main memory and on the device.
    orders: PinnedMemory,
    orders_on_device: DeviceMemory,
    rows_max: usize,
    /// Copies of samples whose own memory the device cannot read; made when one is first needed.
    bounce: Option<PinnedMemory>,
    output: Output,
    moved: Arc<Moved>,
    /// Scratch of a batch.
    way: Way,
}

/// Where batches go.
enum Output {
    /// Slots on the device.
    Slots(Arc<WriterSlots>),
    /// Slots in main memory, by way of the device's.
    Memory { made: DeviceMemory, slots: SlotMemory },
}

/// The samples that a batch has on its way to the device.
#[derive(Default)]
struct Way {
    copies: Vec<cuda::Copy>,
    /// Rows of the store that will be there.
    fresh: Vec<u32>,
    /// Samples in the staging memory.
    staged: usize,
    /// Samples in the bounce memory.
    bounced: usize,
    /// By the samples' addresses.
    known: HashMap<usize, u64>,
    /// What the kernel is told of each row.
    orders: Vec<cuda::Row>,
}

impl Way {
    /// Begins another batch.
    fn clear(&mut self) {
        let Self { copies, fresh, staged, bounced, known, orders } = self;
        copies.clear();
        fresh.clear();
        known.clear();
        orders.clear();
        (*staged, *bounced) = (0, 0);
    }
}

impl CudaMixer {
    /// A mixer for batches of at most `rows_max` rows, into `slots` or, without them, into main memory.
    ///
    /// # Errors
    /// When the device lacks the memory, or NVRTC is not there.
    pub fn new(
        gpu: &Arc<Gpu>,
        format: Format,
        rows_max: usize,
        resident: Option<Arc<cuda::Resident>>,
        slots: Option<Arc<WriterSlots>>,
        moved: Arc<Moved>,
    ) -> Result<Self, CudaError> {
        let context = gpu.context();
        let orders_bytes = rows_max * size_of::<cuda::Row>() + 2 * rows_max * size_of::<cuda::Copy>();
        let output = match slots {
            Some(slots) => Output::Slots(slots),
            None => {
                let made = DeviceMemory::new(context, rows_max * format.image_bytes())?;
                Output::Memory { made, slots: SlotMemory::default() }
            }
        };
        Ok(Self {
            format,
            stream: Stream::new(context)?,
            done: Event::new(context)?,
            kernels: gpu.kernels((format.dtype, format.layout))?,
            resident,
            staging: DeviceMemory::new(context, 2 * rows_max * cuda::stride(format.image_size.values()))?,
            orders: PinnedMemory::new(context, orders_bytes)?,
            orders_on_device: DeviceMemory::new(context, orders_bytes)?,
            rows_max,
            bounce: None,
            output,
            moved,
            way: Way::default(),
            gpu: Arc::clone(gpu),
        })
    }

    /// Where a sample is on the device, or will be once the copies that are under `way` are made.
    fn place(&mut self, sample: &[u8], way: &mut Way) -> Result<u64, CudaError> {
        let key = sample.as_ptr().addr();
        if let Some(&known) = way.known.get(&key) {
            return Ok(known);
        }
        let bytes = self.format.image_size.values();
        let found = self.resident.as_ref().map_or(Found::Elsewhere, |resident| resident.find(sample));
        let to = match found {
            Found::There(address) => {
                way.known.insert(key, address);
                return Ok(address);
            }
            Found::Empty { row, address } => {
                way.fresh.push(row);
                address
            }
            Found::Elsewhere => {
                way.staged += 1;
                self.staging.address() + ((way.staged - 1) * cuda::stride(bytes)) as u64
            }
        };
        let from = if self.resident.as_ref().is_some_and(|resident| resident.is_readable(sample)) {
            key as u64
        } else {
            let (stride, room) = (cuda::stride(bytes), 2 * self.rows_max * cuda::stride(bytes));
            let bounce = match &mut self.bounce {
                Some(bounce) => bounce,
                none => none.insert(PinnedMemory::new(self.gpu.context(), room)?),
            };
            let at = way.bounced * stride;
            way.bounced += 1;
            bounce.bytes_mut()[at..][..bytes].copy_from_slice(sample);
            (bounce.as_ptr().addr() + at) as u64
        };
        way.copies.push(cuda::Copy { from, to });
        way.known.insert(key, to);
        Ok(to)
    }

    /// What the kernel is told of a row.
    fn order(&mut self, row: &Row<'_>, way: &mut Way) -> Result<cuda::Row, CudaError> {
        let bytes = self.format.image_size.values();
        assert!(row.own.len() == bytes);
        let own = self.place(row.own, way)?;
        let mixed = row.lambda != 1.0;
        let partner = if mixed || row.cut.is_some() {
            assert!(row.partner.len() == bytes);
            self.place(row.partner, way)?
        } else {
            own
        };
        let factors = [0, 1, 2].map(|channel| Factors::new(&self.format, row.lambda, channel, None));
        let flags = [
            (mixed, cuda::Row::MIXED),
            (row.cut.is_some(), cuda::Row::CUT),
            (row.flip, cuda::Row::FLIP),
            (row.partner_flip, cuda::Row::PARTNER_FLIP),
        ];
        let cut = row.cut.unwrap_or_default();
        Ok(cuda::Row {
            own,
            partner,
            own_factor: factors.each_ref().map(|factors| factors.own),
            partner_factor: factors.each_ref().map(|factors| factors.partner),
            offset: factors.each_ref().map(|factors| factors.offset),
            // At most 8192.
            cut: [cut.top, cut.bottom, cut.left, cut.right].map(|side| side as u16),
            flags: flags.iter().filter(|(set, _)| *set).map(|(_, flag)| flag).sum(),
        })
    }

    fn run(&mut self, rows: &[Row<'_>], target: Target<'_>) -> Result<(), CudaError> {
        assert!(rows.len() <= self.rows_max);
        let mut way = std::mem::take(&mut self.way);
        way.clear();
        for row in rows {
            let order = self.order(row, &mut way)?;
            way.orders.push(order);
        }
        let (copies, rows_bytes) = (way.copies.len(), size_of_val(&way.orders[..]));
        let bytes = rows_bytes + copies * size_of::<cuda::Copy>();
        let memory = &mut self.orders.bytes_mut()[..bytes];
        cast_slice_mut(&mut memory[..rows_bytes]).copy_from_slice(&way.orders);
        cast_slice_mut(&mut memory[rows_bytes..]).copy_from_slice(&way.copies);
        let (sample_bytes, image_bytes) = (self.format.image_size.values(), self.format.image_bytes());
        let out = match &self.output {
            Output::Slots(slots) => match target {
                Target::Slot(slot) => slots.address(slot),
                Target::Memory(_) => panic!("this mixer fills slots on the device"),
            },
            Output::Memory { made, .. } => made.address(),
        };
        let on_device = self.orders_on_device.address();
        // SAFETY: everything named stays where it is until `done`, which is waited for below, also where something fails: the samples are
        // borrowed by `rows`, and all else is this mixer's own or, of a slot, the writer's, which is filling it. The orders name the
        // resident store, the staging memory, which has room for every sample of a batch, and pinned memory.
        let queued = unsafe { self.queue(rows_bytes, bytes, copies, rows.len(), on_device, out, target) };
        self.done.record(&self.stream).and_then(|()| self.done.wait()).or_else(|_| self.stream.synchronize())?;
        queued?;
        if let Some(resident) = &self.resident {
            way.fresh.iter().for_each(|&row| resident.is_there(row));
        }
        let made = rows.len() * image_bytes;
        let downloaded = if matches!(self.output, Output::Memory { .. }) { made } else { 0 };
        self.moved.count(bytes + copies * sample_bytes, downloaded, way.known.len() * sample_bytes + made);
        self.way = way;
        Ok(())
    }

    /// Queues a batch.
    ///
    /// # Safety
    /// The orders are written, and everything that they name stays until the stream has come so far.
    #[expect(clippy::too_many_arguments, reason = "one call, of one place")]
    unsafe fn queue(
        &mut self,
        rows_bytes: usize,
        bytes: usize,
        copies: usize,
        rows: usize,
        on_device: u64,
        out: u64,
        target: Target<'_>,
    ) -> Result<(), CudaError> {
        let (stream, kernels) = (&self.stream, &self.kernels);
        // SAFETY: as this function.
        unsafe {
            stream.upload(self.orders.as_ptr(), on_device, bytes)?;
            if copies > 0 {
                kernels.fetch(stream, on_device + rows_bytes as u64, copies, self.format.image_size.values())?;
            }
            kernels.mix(stream, &self.format, on_device, out, rows)?;
        }
        if let (Output::Memory { slots, .. }, Target::Memory(memory)) = (&mut self.output, target) {
            let whole_bytes = self.rows_max * self.format.image_bytes();
            // SAFETY: as this function; `memory` is borrowed until the device is done.
            unsafe { slots.download(self.gpu.context(), stream, out, memory, whole_bytes) }?;
        }
        Ok(())
    }
}

impl Mixer for CudaMixer {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn mix(&mut self, rows: &[Row<'_>], target: Target<'_>, notice: Option<&Notice<'_>>) -> Result<(), MixError> {
        if let Target::Memory(memory) = &target {
            assert_eq!(memory.len(), rows.len() * self.format.image_bytes());
        }
        // A batch takes the device less time than a waiter takes to wake.
        notice.iter().for_each(|notice| (notice.give)());
        Ok(self.run(rows, target)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{BATCH_SIZE_MAX, FeedSpec};
    use crate::types::{Dtype, ImageSize};

    #[test]
    fn the_largest_batch_is_mixed_to_its_last_row() {
        // More rows than a grid has.
        let format = Format { image_size: ImageSize::square(1), dtype: Dtype::U8, ..FeedSpec::train().format() };
        let samples: Vec<[u8; 3]> =
            (0..BATCH_SIZE_MAX).map(|at| [at as u8, (at >> 8) as u8, (at >> 16) as u8]).collect();
        let rows: Vec<Row<'_>> = samples.iter().map(|sample| Row::new(sample, sample, 0.75)).collect();
        let mut out = vec![0; 3 * rows.len()];
        let mut mixer =
            CudaMixer::new(&crate::fixtures::gpu(), format, rows.len(), None, None, Arc::default()).unwrap();
        mixer.mix(&rows, Target::Memory(&mut out), None).unwrap();
        assert!(out == samples.as_flattened());
    }
}

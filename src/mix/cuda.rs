//! The CUDA mixer: samples that are on the device already, or are copied there once, and one kernel that makes the batch of them, in a slot on
//! the device or in memory from which it is copied into a slot of main memory.
//!
//! Samples are copied on a stream of their own: while the device mixes a batch, or still waits for its samples, the processor lists the next
//! one's, and that stream copies them after those of the first. The values are the CPU mixer's, to the bit: the kernel computes with the same
//! factors in the same order (`cuda/kernels.cu`).
#![expect(unsafe_code, reason = "queues work that reads and writes memory later")]

use super::cpu::{Factors, erases};
use super::erase::Fills;
use super::{MixError, Mixer, Moved, Next, Notice, Row, Sample, Target};
use crate::cuda::{
    CudaError, DeviceMemory, Event, Gpu, KernelBoxes, KernelCopy, KernelPatch, KernelRow, Kernels, PinnedMemory,
    SlotMemory, Stream, WriterSlots,
};
use crate::format::Format;
use crate::plan::Erasure;
use crate::store::{Residency, Resident, sample_stride};
use crate::types::ImageSize;
use bytemuck::cast_slice_mut;
use std::sync::Arc;

/// Mixes on a CUDA device.
pub struct CudaMixer {
    format: Format,
    gpu: Arc<Gpu>,
    kernels: Arc<Kernels>,
    /// The store's samples on this device.
    resident: Option<Arc<Resident>>,
    /// Copies commands to the device, ahead of the samples that they name, so that the copies need not wait for them.
    command_stream: Stream,
    /// Copies samples, of one batch after the other.
    copy_stream: Stream,
    /// The batch that is mixed next, and the one after it.
    transfers: [Transfer; 2],
    /// Whether the first of them is on its transfer.
    is_sent: bool,
    stream: Stream,
    done: Event,
    output: Output,
    /// Of each channel, what stands in boxes that are erased with constants.
    constant: [f32; 3],
    /// What stands in others, f32 `[3, 4096]`.
    noise: DeviceMemory,
}

/// Where batches go.
enum Output {
    /// Slots on the device.
    Slots(Arc<WriterSlots>),
    /// Slots in main memory, by way of the device's.
    Memory { made: DeviceMemory, slots: SlotMemory },
}

/// How large a batch may be.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Rows.
    pub rows: usize,
    /// Samples that it is made of.
    pub samples: usize,
    /// Those of them that have no place in the resident store.
    pub staged: usize,
}

/// A batch on its way to the device.
struct Transfer {
    /// Its commands are on the device.
    commands_copied: Event,
    /// Kernel arguments: rows, copies, then patches; in main memory and on the device.
    commands: PinnedMemory,
    commands_on_device: DeviceMemory,
    /// Room on the device for as many samples as a batch may need that do not stay there.
    staging: DeviceMemory,
    /// Copies of samples whose own memory the device cannot read; made, for the largest samples, when one is first needed.
    bounce: Option<PinnedMemory>,
    stride_max: usize,
    sizes: Sizes,
    /// Of this batch.
    format: Format,
    /// Everything is on the device.
    samples_copied: Event,
    rows: Vec<KernelRow>,
    copies: Vec<KernelCopy>,
    patches: Vec<KernelPatch>,
    /// Where each row's own sample is on the device.
    own: Vec<u64>,
    /// Rows of the store that will be there.
    fresh: Vec<u32>,
    /// Samples in the staging memory.
    staged: usize,
    /// Samples in the bounce memory.
    bounced: usize,
    /// Samples that the kernel reads.
    read: usize,
}

impl Transfer {
    fn new(gpu: &Gpu, format: Format, sizes: Sizes) -> Result<Self, CudaError> {
        let context = gpu.context();
        let commands_bytes =
            sizes.rows * (size_of::<KernelRow>() + size_of::<KernelPatch>()) + sizes.samples * size_of::<KernelCopy>();
        Ok(Self {
            commands_copied: Event::new(context)?,
            commands: PinnedMemory::new(context, commands_bytes)?,
            commands_on_device: DeviceMemory::new(context, commands_bytes)?,
            staging: DeviceMemory::new(context, sizes.staged * sample_stride(format.image_size.values()))?,
            bounce: None,
            stride_max: sample_stride(format.image_size.values()),
            sizes,
            format,
            samples_copied: Event::new(context)?,
            rows: Vec::with_capacity(sizes.rows),
            copies: Vec::new(),
            patches: Vec::new(),
            own: Vec::with_capacity(sizes.rows),
            fresh: Vec::new(),
            staged: 0,
            bounced: 0,
            read: 0,
        })
    }

    /// Begins another batch.
    fn clear(&mut self) {
        let Self { rows, copies, patches, own, fresh, staged, bounced, read, .. } = self;
        rows.clear();
        copies.clear();
        patches.clear();
        own.clear();
        fresh.clear();
        (*staged, *bounced, *read) = (0, 0, 0);
    }

    /// Address of a sample on the device, now or once the copies are made.
    fn place(&mut self, gpu: &Gpu, resident: Option<&Resident>, sample: Sample<'_>) -> Result<u64, CudaError> {
        self.read += 1;
        let (bytes, stride) = (sample.bytes, sample_stride(sample.bytes.len()));
        let stored = resident.zip(sample.stored);
        let found = stored.map_or(Residency::InMain, |(resident, row)| resident.find(row));
        let to = match found {
            Residency::OnDevice(address) => return Ok(address),
            Residency::ToCopy(address) => {
                self.fresh.extend(sample.stored);
                address
            }
            Residency::InMain => {
                assert!(self.staged < self.sizes.staged, "there is room for all of them");
                self.staged += 1;
                self.staging.address() + ((self.staged - 1) * stride) as u64
            }
        };
        let from = if stored.is_some_and(|(resident, row)| resident.is_readable(row)) {
            bytes.as_ptr().addr() as u64
        } else {
            let bounce = match &mut self.bounce {
                Some(bounce) => bounce,
                none => none.insert(PinnedMemory::new(gpu.context(), self.sizes.samples * self.stride_max)?),
            };
            let at = self.bounced * stride;
            self.bounced += 1;
            bounce.bytes_mut()[at..][..bytes.len()].copy_from_slice(bytes);
            (bounce.as_ptr().addr() + at) as u64
        };
        self.copies.push(KernelCopy { from, to });
        Ok(to)
    }

    /// Lists a batch's rows and the copies that they need.
    fn list(
        &mut self,
        gpu: &Gpu,
        resident: Option<&Resident>,
        format: Format,
        rows: &[Row<'_>],
    ) -> Result<(), CudaError> {
        assert!(rows.len() <= self.sizes.rows);
        self.clear();
        self.format = format;
        let bytes = format.image_size.values();
        for row in rows {
            assert!(row.own.bytes.len() == bytes);
            let own = self.place(gpu, resident, row.own)?;
            self.own.push(own);
        }
        for (at, row) in rows.iter().enumerate() {
            let partner = match usize::try_from(row.partner_row) {
                _ if row.weight == 1.0 && row.cut.is_none() => self.own[at],
                Ok(partner) => self.own[partner],
                Err(_) => {
                    assert!(row.partner.bytes.len() == bytes);
                    self.place(gpu, resident, row.partner)?
                }
            };
            let factors = [0, 1, 2].map(|channel| Factors::new(&format, row.weight, channel, None));
            let flags = [
                (row.cut.is_some(), KernelRow::CUT),
                (row.flip, KernelRow::FLIP),
                (row.partner_flip, KernelRow::PARTNER_FLIP),
            ];
            let cut = row.cut.unwrap_or_default();
            self.rows.push(KernelRow {
                own: self.own[at],
                partner,
                own_factor: factors.each_ref().map(|factors| factors.own),
                partner_factor: factors.each_ref().map(|factors| factors.partner),
                offset: factors.each_ref().map(|factors| factors.offset),
                // At most 8192.
                cut: [cut.top, cut.bottom, cut.left, cut.right].map(|side| side as u16),
                flags: flags.iter().filter(|(set, _)| *set).map(|(_, flag)| flag).sum(),
            });
            if erases(row) {
                let offsets = [0, 1, 2].map(|channel| factors[channel].offsets(&format, row.weight, channel));
                self.patches.push(KernelPatch {
                    row: at as u32,
                    weight: row.weight,
                    without_own: offsets.map(|offsets| offsets[1]),
                    without_partner: offsets.map(|offsets| offsets[2]),
                    own: boxes(row.own.erasure),
                    partner: boxes(row.partner.erasure),
                    whole: boxes(row.erasure),
                });
            }
        }
        Ok(())
    }

    /// Where the copies, the patches and nothing more begin among the commands.
    fn commands_bytes(&self) -> [usize; 3] {
        let copies = size_of_val(&self.rows[..]);
        let patches = copies + size_of_val(&self.copies[..]);
        [copies, patches, patches + size_of_val(&self.patches[..])]
    }

    /// Queues what was listed.
    fn send(
        &mut self,
        [command_stream, copy_stream]: [&Stream; 2],
        kernels: &Kernels,
        sample_bytes: usize,
    ) -> Result<(), CudaError> {
        let [copies, patches, bytes] = self.commands_bytes();
        let memory = &mut self.commands.bytes_mut()[..bytes];
        cast_slice_mut(&mut memory[..copies]).copy_from_slice(&self.rows);
        cast_slice_mut(&mut memory[copies..patches]).copy_from_slice(&self.copies);
        cast_slice_mut(&mut memory[patches..]).copy_from_slice(&self.patches);
        let on_device = self.commands_on_device.address();
        // SAFETY: everything named stays until the mixer, which waits for both streams, goes, and unchanged until the batch is mixed: what lies in
        // main memory are these commands, the bounce memory, and pinned rows of the store, which the resident store keeps and nobody rewrites.
        // The copies go to the resident store and to the staging memory, which has room for every sample of a batch.
        unsafe { command_stream.upload(self.commands.as_ptr(), on_device, bytes) }?;
        if self.copies.is_empty() {
            return self.samples_copied.record(command_stream);
        }
        self.commands_copied.record(command_stream)?;
        copy_stream.wait_for(&self.commands_copied)?;
        // SAFETY: as above.
        unsafe { kernels.fetch(copy_stream, on_device + copies as u64, self.copies.len(), sample_bytes) }?;
        self.samples_copied.record(copy_stream)
    }
}

/// An image's erased boxes as kernels read them.
fn boxes(erasure: Option<&Erasure>) -> KernelBoxes {
    let Some(erasure) = erasure else { return KernelBoxes::default() };
    let mut boxes = [[0; 4]; 8];
    for (to, cut) in boxes.iter_mut().zip(erasure.boxes()) {
        // At most 8192.
        *to = [cut.top, cut.bottom, cut.left, cut.right].map(|side| side as u16);
    }
    KernelBoxes { boxes, len: erasure.boxes().len() as u32, mode: erasure.mode as u32, key: erasure.key }
}

impl CudaMixer {
    /// A mixer for batches of at most these sizes, into `slots` or, without them, into main memory.
    ///
    /// # Errors
    /// When the device lacks the memory, or NVRTC is not there.
    pub fn new(
        gpu: &Arc<Gpu>,
        format: Format,
        sizes: Sizes,
        resident: Option<Arc<Resident>>,
        slots: Option<Arc<WriterSlots>>,
    ) -> Result<Self, CudaError> {
        let context = gpu.context();
        let output = match slots {
            Some(slots) => Output::Slots(slots),
            None => {
                let made = DeviceMemory::new(context, sizes.rows * format.image_bytes())?;
                Output::Memory { made, slots: SlotMemory::default() }
            }
        };
        let transfer = || Transfer::new(gpu, format, sizes);
        let fills = Fills::new(&format);
        let table: Vec<f32> = fills.noise.iter().flat_map(|channel| channel.iter().copied()).collect();
        let (command_stream, noise) = (Stream::new(context)?, DeviceMemory::new(context, size_of_val(&table[..]))?);
        // SAFETY: the table lives until the copy is done, below.
        unsafe { command_stream.upload(table.as_ptr().cast(), noise.address(), size_of_val(&table[..])) }?;
        command_stream.synchronize()?;
        Ok(Self {
            format,
            kernels: gpu.kernels((format.dtype, format.layout))?,
            resident,
            command_stream,
            copy_stream: Stream::new(context)?,
            transfers: [transfer()?, transfer()?],
            is_sent: false,
            stream: Stream::new(context)?,
            done: Event::new(context)?,
            output,
            constant: fills.constant,
            noise,
            gpu: Arc::clone(gpu),
        })
    }

    /// Sends the samples of the batch that is mixed next, or of the one after it, on their transfer.
    fn send(&mut self, transfer: usize, size: ImageSize, rows: &[Row<'_>]) -> Result<(), CudaError> {
        let transfer = &mut self.transfers[transfer];
        transfer.list(&self.gpu, self.resident.as_deref(), self.format.sized(size), rows)?;
        transfer.send([&self.command_stream, &self.copy_stream], &self.kernels, size.values())
    }

    /// Waits for all that is under way, whatever becomes of it.
    fn synchronize(&self) {
        for stream in [&self.command_stream, &self.copy_stream, &self.stream] {
            let _ = stream.synchronize();
        }
    }

    /// Queues the mix of the first batch on its way, and its copy to main memory.
    ///
    /// # Safety
    /// The target stays, and nobody else reads or writes it, until the stream has come so far.
    unsafe fn queue(&mut self, target: Target<'_>) -> Result<(), CudaError> {
        let Self { stream, kernels, transfers: [transfer, _], noise, constant, .. } = self;
        let format = &transfer.format;
        let out = match (&self.output, &target) {
            (Output::Slots(slots), Target::Slot(slot)) => slots.address(*slot),
            (Output::Slots(_), Target::Memory(_)) => panic!("this mixer fills slots on the device"),
            (Output::Memory { made, .. }, _) => made.address(),
        };
        stream.wait_for(&transfer.samples_copied)?;
        let rows = transfer.commands_on_device.address();
        // SAFETY: the commands and what they name are there, once the stream has waited, and stay until the next batch but one is sent; the
        // target as this function.
        unsafe { kernels.mix(stream, format, rows, out, transfer.rows.len()) }?;
        if !transfer.patches.is_empty() {
            let list = rows + transfer.commands_bytes()[1] as u64;
            let (len, noise) = (transfer.patches.len(), noise.address());
            // SAFETY: as above.
            unsafe { kernels.erase(stream, format, (rows, list), out, len, noise, *constant) }?;
        }
        if let (Output::Memory { slots, .. }, Target::Memory(memory)) = (&mut self.output, target) {
            let whole_bytes = transfer.sizes.rows * self.format.image_bytes();
            // SAFETY: as this function.
            unsafe { slots.download(self.gpu.context(), stream, out, memory, whole_bytes) }?;
        }
        Ok(())
    }
}

impl Drop for CudaMixer {
    fn drop(&mut self) {
        // A batch that is never mixed may be on its transfer.
        self.synchronize();
    }
}

impl Mixer for CudaMixer {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn has_sent(&self) -> bool {
        self.is_sent
    }

    fn mix(
        &mut self,
        size: ImageSize,
        rows: &[Row<'_>],
        target: Target<'_>,
        notice: Option<&Notice<'_>>,
        next: Option<&mut Next<'_>>,
    ) -> Result<Moved, MixError> {
        if !self.is_sent {
            self.send(0, size, rows).inspect_err(|_| self.synchronize())?;
        }
        self.is_sent = false;
        let format = self.transfers[0].format;
        let made = self.transfers[0].rows.len() * format.image_bytes();
        if let Target::Memory(memory) = &target {
            assert_eq!(memory.len(), made);
        }
        // SAFETY: the target is borrowed, or the writer's, which is filling it, until `done`, which is waited for below, also where something
        // fails, or by `drop`.
        let queued = unsafe { self.queue(target) };
        let done = self.done.record(&self.stream);
        let mut sent = None;
        if let Some(next) = next {
            next(&mut |size, rows| sent = Some(self.send(1, size, rows)));
        }
        // Of samples that are there what is left takes the device less time than a waiter takes to wake.
        notice.iter().for_each(|notice| (notice.give)());
        let mixed = done.and_then(|()| self.done.wait()).or_else(|_| self.stream.synchronize()).and(queued);
        // What was not sent is sent again when its turn comes, and what is wrong said then.
        if mixed.is_err() || matches!(sent, Some(Err(_))) {
            self.synchronize();
        }
        mixed?;
        let transfer = &self.transfers[0];
        if let Some(resident) = &self.resident {
            transfer.fresh.iter().for_each(|&row| resident.mark_copied(row));
        }
        let sample_bytes = format.image_size.values();
        let moved = Moved {
            to_device: transfer.commands_bytes()[2] + transfer.copies.len() * sample_bytes,
            from_device: if matches!(self.output, Output::Memory { .. }) { made } else { 0 },
            on_device: transfer.read * sample_bytes + made,
        };
        self.transfers.swap(0, 1);
        self.is_sent = matches!(sent, Some(Ok(())));
        Ok(moved)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Case, case};
    use super::*;
    use crate::fixtures;
    use crate::mix::{CpuMixer, Helpers};
    use crate::spec::{BATCH_SIZE_MAX, FeedSpec};
    use crate::types::Dtype;
    use proptest::prelude::*;

    #[test]
    fn the_largest_batch_is_mixed_to_its_last_row() {
        let format = Format { image_size: ImageSize::square(1), dtype: Dtype::U8, ..FeedSpec::train().format() };
        let samples: Vec<[u8; 3]> =
            (0..BATCH_SIZE_MAX).map(|at| [at as u8, (at >> 8) as u8, (at >> 16) as u8]).collect();
        let rows: Vec<Row<'_>> = samples.iter().map(|sample| Row::new(sample, sample, 0.75)).collect();
        let mut out = vec![0; 3 * rows.len()];
        let sizes = Sizes { rows: rows.len(), samples: 2 * rows.len(), staged: 2 * rows.len() };
        let mut mixer = CudaMixer::new(&fixtures::gpu(), format, sizes, None, None).unwrap();
        mixer.mix(format.image_size, &rows, Target::Memory(&mut out), None, None).unwrap();
        assert!(out == samples.as_flattened());
    }

    /// A feed whose views grow begins with small batches.
    #[test]
    fn a_mixer_takes_larger_batches_after_small_ones() {
        let format = Format { dtype: Dtype::U8, image_size: ImageSize::square(40), ..FeedSpec::train().format() };
        let sizes = Sizes { rows: 3, samples: 6, staged: 6 };
        let mut mixer = CudaMixer::new(&fixtures::gpu(), format, sizes, None, None).unwrap();
        for side in [16, 24, 40, 40, 8] {
            let size = ImageSize::square(side);
            let samples: Vec<Vec<u8>> = (0..3).map(|nth| vec![side as u8 + nth; size.values()]).collect();
            let rows: Vec<Row<'_>> = samples.iter().map(|sample| Row::new(sample, sample, 1.0)).collect();
            let mut out = vec![0; 3 * size.values()];
            mixer.mix(size, &rows, Target::Memory(&mut out), None, None).unwrap();
            assert!(out == samples.concat(), "{side}");
        }
    }

    proptest! {
        /// Whether or not the next batch is known; what was sent last is never mixed.
        #[test]
        fn batches_that_were_sent_ahead_are_the_same(case in case(), known in any::<[bool; 5]>()) {
            let len = case.plan.len();
            let turned = |by: usize| {
                let mut batch = case.clone();
                batch.samples.rotate_left(by);
                batch
            };
            let batches: Vec<Case> = (0..known.len()).map(|at| turned(at % (2 * len))).collect();
            let sizes = Sizes { rows: len, samples: 2 * len, staged: 2 * len };
            let mut ours = CudaMixer::new(&fixtures::gpu(), case.format, sizes, None, None).unwrap();
            let mut theirs = CpuMixer::new(case.format, Arc::new(Helpers::start(0).unwrap()));
            for (at, batch) in batches.iter().enumerate() {
                let (rows, next) = (batch.rows(), batches[(at + 1) % batches.len()].rows());
                let (mut out, mut expected) = (batch.out(), batch.out());
                let size = case.format.image_size;
                let mut tell = |take: &mut dyn FnMut(ImageSize, &[Row<'_>])| {
                    if known[at] {
                        take(size, &next);
                    }
                };
                prop_assert_eq!(ours.has_sent(), at > 0 && known[at - 1]);
                let told = if ours.has_sent() { &[][..] } else { &rows };
                ours.mix(size, told, Target::Memory(&mut out), None, Some(&mut tell)).unwrap();
                theirs.mix(size, &rows, Target::Memory(&mut expected), None, None).unwrap();
                prop_assert!(*out == *expected, "batch {at}");
            }
        }
    }
}

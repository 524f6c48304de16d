//! The torch mixer: staged rows, copied to the device, then torch's own operations; the same on the CPU and on CUDA.
//!
//! On CUDA the copies have a stream of their own: rows go to the device while later ones are staged, and torch's stream, the legacy default
//! one, and this one wait for each other by events. The process waits for the last copy, and where torch copies λ and partners.
#![expect(unsafe_code, reason = "torch tensors over memory that torch does not own")]

use super::cpu::{Level, compose};
use super::erase::{Fills, overlap};
use super::{MixError, Mixer, Moved, Next, Notice, Row, Target};
use crate::cuda::{CudaError, Event, Gpu, SlotMemory, Stream};
use crate::format::Format;
use crate::plan::Erasure;
use crate::types::{Cut, Device, Dtype, ImageSize, Layout};
use std::sync::{Arc, OnceLock};
use tch::{Kind, TchError, Tensor, no_grad};

impl From<TchError> for MixError {
    fn from(error: TchError) -> Self {
        // The first line says what; the rest is a trace through torch.
        Self::Torch(error.to_string().lines().next().unwrap_or_default().to_owned())
    }
}

/// Mixes with torch.
pub struct TorchMixer {
    format: Format,
    device: tch::Device,
    /// Where the device is not the CPU.
    lane: Option<Lane>,
    /// u8 `[2·B, 3, H, W]` in main memory, pinned where the device is not the CPU; made once.
    staging: Tensor,
    /// f32 `[1, 3, 1, 1]` on the device.
    mean: Tensor,
    /// f32 `[1, 3, 1, 1]` on the device.
    std: Tensor,
    /// 255 on the device: dividing by a number instead would multiply by its rounded reciprocal on CUDA.
    full: Tensor,
    fills: Fills,
}

/// What copies to a CUDA device and back.
struct Lane {
    gpu: Arc<Gpu>,
    stream: Stream,
    event: Event,
    /// u8 `[2·B, 3, H, W]` on the device; made once.
    staged: Tensor,
    slots: SlotMemory,
    whole_bytes: usize,
}

/// Rows that are staged before they are sent on their way.
const PIECE: usize = 16;

/// Loads what libtorch needs for CUDA, which a build that was linked with libtorch for the CPU does not have loaded: once, before torch first
/// looks for devices.
fn load_cuda() -> Result<(), String> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    let load = || {
        // SAFETY: a library of the libtorch that is loaded already, meant to be loaded, and never unloaded.
        let library = unsafe { libc::dlopen(c"libtorch_cuda.so".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        if !library.is_null() {
            return Ok(());
        }
        // SAFETY: dlopen has failed in this thread just now, so that there is a text.
        let why = unsafe { std::ffi::CStr::from_ptr(libc::dlerror()) }.to_string_lossy().into_owned();
        Err(format!(
            "libtorch_cuda.so cannot be loaded ({why}; put the folder torch/lib of a PyTorch 2.11.0 with CUDA into LD_LIBRARY_PATH)"
        ))
    };
    LOADED.get_or_init(load).clone()
}

/// The device as torch names it.
///
/// # Errors
/// When it is a CUDA device that is not there.
pub fn torch_device(device: Device) -> Result<tch::Device, MixError> {
    match device {
        Device::Cpu => Ok(tch::Device::Cpu),
        Device::Cuda(ordinal) => {
            // Says what is missing where there is no driver or no such device.
            Gpu::open(ordinal)?;
            let found = match load_cuda() {
                Err(why) => why,
                Ok(()) if tch::Cuda::is_available() => return Ok(tch::Device::Cuda(ordinal as usize)),
                Ok(()) => "the driver sees it, and torch does not".to_owned(),
            };
            Err(CudaError::NoDevice { device, found }.into())
        }
    }
}

impl TorchMixer {
    /// A mixer on `device` for at most `batch_size_max` rows.
    pub fn new(device: Device, format: Format, batch_size_max: usize) -> Result<Self, MixError> {
        let place = torch_device(device)?;
        let (height, width) = (i64::from(format.image_size.height), i64::from(format.image_size.width));
        let shape = [2 * batch_size_max as i64, 3, height, width];
        let mut staging = Tensor::f_empty(shape, (Kind::Uint8, tch::Device::Cpu))?;
        let lane = match device {
            Device::Cpu => None,
            Device::Cuda(ordinal) => {
                staging = staging.f_pin_memory(place)?;
                let gpu = Gpu::open(ordinal)?;
                let (stream, event) = (Stream::new(gpu.context())?, Event::new(gpu.context())?);
                let staged = Tensor::f_empty(shape, (Kind::Uint8, place))?;
                let (slots, whole_bytes) = (SlotMemory::default(), batch_size_max * format.image_bytes());
                Some(Lane { gpu, stream, event, staged, slots, whole_bytes })
            }
        };
        let constant = |values: &[f32]| Tensor::f_from_slice(values)?.f_view([1, -1, 1, 1])?.f_to_device(place);
        let (mean, std, full) = (constant(&format.mean)?, constant(&format.std)?, constant(&[255.0])?);
        let fills = Fills::new(&format);
        Ok(Self { format, device: place, lane, staging, mean, std, full, fills })
    }

    /// Writes images into consecutive rows of the staging memory, from row `first` on, and sends them on their way to the device; `write`
    /// fills one channel of one.
    fn stage(
        &mut self,
        size: ImageSize,
        first: usize,
        rows: &[Row<'_>],
        write: impl Fn(&Row<'_>, usize, &mut [u8]),
    ) -> Result<(), CudaError> {
        let (pixels, staged_bytes) = (size.pixels(), self.staging.numel());
        assert!((first + rows.len()) * 3 * pixels <= staged_bytes);
        // SAFETY: the staging tensor is contiguous u8 of so many elements, owned here, and no copy from it is under way: `mix` ends with a copy
        // into main memory, which is waited for.
        let memory = unsafe { std::slice::from_raw_parts_mut(self.staging.data_ptr().cast::<u8>(), staged_bytes) };
        let images = &mut memory[first * 3 * pixels..];
        for (nth, (rows, images)) in rows.chunks(PIECE).zip(images.chunks_mut(PIECE * 3 * pixels)).enumerate() {
            let images = &mut images[..rows.len() * 3 * pixels];
            for (row, image) in rows.iter().zip(images.chunks_exact_mut(3 * pixels)) {
                image.chunks_exact_mut(pixels).enumerate().for_each(|(channel, plane)| write(row, channel, plane));
            }
            if let Some(lane) = &self.lane {
                let to = lane.staged.data_ptr().addr() + (first + nth * PIECE) * 3 * pixels;
                // SAFETY: the staging memory is not written to again before the batch is done, and the tensor on the device has as many rows.
                unsafe { lane.stream.upload(images.as_ptr(), to as u64, images.len()) }?;
            }
        }
        Ok(())
    }

    /// The first `rows` staged samples on the device, as far as torch's stream is concerned.
    fn staged(&self, size: ImageSize, rows: i64) -> Result<Tensor, MixError> {
        let staged = match &self.lane {
            None => &self.staging,
            Some(lane) => {
                lane.stream.lead_default(&lane.event)?;
                &lane.staged
            }
        };
        let shape = [rows, 3, size.height.into(), size.width.into()];
        Ok(staged.f_view([-1])?.f_narrow(0, 0, rows * size.values() as i64)?.f_view(shape)?)
    }

    /// u8 samples on the device as the f32 values to be mixed.
    fn values(&self, samples: &Tensor) -> Result<Tensor, TchError> {
        let mut values = samples.f_to_kind(Kind::Float)?;
        match self.format.dtype {
            Dtype::U8 => Ok(values),
            _ => values.f_div_(&self.full)?.f_sub_(&self.mean)?.f_div_(&self.std),
        }
    }

    /// The mixed images, and the bytes of what they were made of.
    fn mixed(&mut self, size: ImageSize, rows: &[Row<'_>]) -> Result<(Tensor, usize), MixError> {
        let len = rows.len() as i64;
        // A row that shows a box of its partner is no partner for others as it is staged.
        let is_cut = rows.iter().any(|row| row.cut.is_some()) && rows.iter().any(|row| row.weight != 1.0);
        let within = rows.iter().all(|row| row.partner_row >= 0) && !is_cut;
        let level = Level::best();
        let samples = if within { rows.len() } else { 2 * rows.len() };
        // Flipped as own images, and so as partners of other rows; a box is cut where nothing else is mixed.
        self.stage(size, 0, rows, |row, channel, plane| compose::own(level, row, size, channel, 0, plane))?;
        if !within {
            self.stage(size, rows.len(), rows, |row, channel, plane| {
                compose::partner(level, row, size, channel, 0, plane)
            })?;
        }
        let values = self.values(&self.staged(size, samples as i64)?)?;
        let whole = Cut { top: 0, bottom: size.height, left: 0, right: size.width };
        for (at, row) in rows.iter().enumerate() {
            let mut erased = Erased::default();
            erased.cover(&self.fills, size, row.own.erasure, whole);
            if let Some(cut) = row.cut {
                erased.uncover(size, cut);
                erased.cover(&self.fills, size, row.partner.erasure, cut);
            }
            erased.apply(size, self.device, &values, at)?;
            if !within {
                let mut erased = Erased::default();
                erased.cover(&self.fills, size, row.partner.erasure, whole);
                erased.apply(size, self.device, &values, rows.len() + at)?;
            }
        }
        let own = values.f_narrow(0, 0, len)?;
        let partner_rows: Vec<i64> = rows.iter().filter(|_| within).map(|row| row.partner_row.into()).collect();
        let partner = if within {
            own.f_index_select(0, &Tensor::f_from_slice(&partner_rows)?.f_to_device(self.device)?)?
        } else {
            values.f_narrow(0, len, len)?
        };
        let lambda: Vec<f32> = rows.iter().map(|row| row.weight).collect();
        let rest: Vec<f32> = lambda.iter().map(|lambda| 1.0 - lambda).collect();
        let weight = |values: &[f32]| -> Result<Tensor, TchError> {
            Tensor::f_from_slice(values)?.f_view([-1, 1, 1, 1])?.f_to_device(self.device)
        };
        let mixed = own.f_mul(&weight(&lambda)?)?.f_add(&partner.f_mul(&weight(&rest)?)?)?;
        for (at, row) in rows.iter().enumerate() {
            let mut erased = Erased::default();
            erased.cover(&self.fills, size, row.erasure, whole);
            erased.apply(size, self.device, &mixed, at)?;
        }
        let mixed = match self.format.dtype {
            Dtype::U8 => mixed.f_round()?,
            _ => mixed,
        };
        let mixed = mixed.f_to_kind(kind(self.format.dtype))?;
        let mixed = match self.format.layout {
            Layout::Nchw => mixed,
            Layout::Nhwc => mixed.f_permute([0, 2, 3, 1])?.f_contiguous()?,
        };
        let lists = size_of_val(&lambda[..]) + size_of_val(&rest[..]) + size_of_val(&partner_rows[..]);
        Ok((mixed, samples * size.values() + lists))
    }
}

/// Where an image is erased, and what stands there; empty where nothing is.
#[derive(Default)]
struct Erased {
    /// `[H, W]`.
    mask: Vec<bool>,
    /// `[3, H, W]`.
    fill: Vec<f32>,
}

impl Erased {
    /// Adds the parts of an erasure's boxes that lie in `within`.
    fn cover(&mut self, fills: &Fills, size: ImageSize, erasure: Option<&Erasure>, within: Cut) {
        let Some(erasure) = erasure else { return };
        self.mask.resize(size.pixels(), false);
        self.fill.resize(size.values(), 0.0);
        let (width, columns) = (size.width as usize, within.left as usize..within.right as usize);
        for (nth, cut) in erasure.boxes().iter().enumerate() {
            for y in within.top as usize..within.bottom as usize {
                let span = overlap(cut, y, &columns);
                let line = y * width + span.start;
                self.mask[line..][..span.len()].fill(true);
                for channel in 0..3 {
                    let index = channel * size.pixels() + line;
                    fills.write(erasure, nth, channel, index, &mut self.fill[index..][..span.len()]);
                }
            }
        }
    }

    /// Leaves nothing erased in a box.
    fn uncover(&mut self, size: ImageSize, cut: Cut) {
        let lines = self.mask.chunks_exact_mut(size.width as usize);
        for line in lines.take(cut.bottom as usize).skip(cut.top as usize) {
            line[cut.left as usize..cut.right as usize].fill(false);
        }
    }

    /// Erases image `at` of `images`, f32 `[N, 3, H, W]`.
    fn apply(&self, size: ImageSize, device: tch::Device, images: &Tensor, at: usize) -> Result<(), TchError> {
        if self.mask.is_empty() {
            return Ok(());
        }
        let (height, width) = (i64::from(size.height), i64::from(size.width));
        let mask = Tensor::f_from_slice(&self.mask)?.f_view([1, height, width])?.f_to_device(device)?;
        let fill = Tensor::f_from_slice(&self.fill)?.f_view([3, height, width])?.f_to_device(device)?;
        let mut image = images.f_get(at as i64)?;
        let erased = fill.f_where_self(&mask, &image)?;
        image.f_copy_(&erased)
    }
}

fn kind(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::Bf16 => Kind::BFloat16,
        Dtype::U8 => Kind::Uint8,
    }
}

impl Mixer for TorchMixer {
    fn name(&self) -> &'static str {
        "torch"
    }

    fn mix(
        &mut self,
        size: ImageSize,
        rows: &[Row<'_>],
        target: Target<'_>,
        _: Option<&Notice<'_>>,
        _: Option<&mut Next<'_>>,
    ) -> Result<Moved, MixError> {
        let out = target.memory();
        assert_eq!(out.len(), rows.len() * self.format.sized(size).image_bytes());
        no_grad(|| {
            let (mixed, to_device) = self.mixed(size, rows)?;
            if let Some(Lane { gpu, stream, event, slots, whole_bytes, .. }) = &mut self.lane {
                assert!(mixed.is_contiguous() && mixed.numel() * self.format.dtype.bytes() == out.len());
                stream.wait_for_default(event)?;
                let from = mixed.data_ptr().addr() as u64;
                // SAFETY: the tensor and `out` live until the copy was waited for, below.
                let queued = unsafe { slots.download(gpu.context(), stream, from, out, *whole_bytes) };
                event.record(stream)?;
                event.wait()?;
                queued?;
                return Ok(Moved { to_device, from_device: out.len(), on_device: 0 });
            }
            let strides: Vec<i64> = mixed.stride();
            // SAFETY: `out` holds exactly the tensor's elements, contiguous and aligned, and outlives it; nobody else
            // writes there meanwhile. The copy into main memory is complete when it returns.
            let mut target = unsafe {
                Tensor::from_blob(out.as_mut_ptr(), &mixed.size(), &strides, kind(self.format.dtype), tch::Device::Cpu)
            };
            target.f_copy_(&mixed)?;
            Ok(Moved::default())
        })
    }
}

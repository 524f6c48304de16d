//! The torch mixer: staged rows, one copy to the device, then torch's own operations; the same on the CPU and on CUDA.
#![expect(unsafe_code, reason = "torch tensors over memory that torch does not own")]

use super::cpu::Level;
use super::{Format, MixError, Mixer, Notice, Row, Target, compose};
use crate::types::{Device, Dtype, Layout};
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
    /// u8 `[2·B, 3, H, W]` in main memory, pinned where the device is not the CPU; made once.
    staging: Tensor,
    /// f32 `[1, 3, 1, 1]` on the device.
    mean: Tensor,
    /// f32 `[1, 3, 1, 1]` on the device.
    std: Tensor,
    /// 255 on the device: dividing by a number instead would multiply by its rounded reciprocal on CUDA.
    full: Tensor,
}

/// The device as torch names it.
///
/// # Errors
/// When it is a CUDA device that is not there.
pub fn torch_device(device: Device) -> Result<tch::Device, MixError> {
    match device {
        Device::Cpu => Ok(tch::Device::Cpu),
        Device::Cuda(ordinal) => {
            let found = match (tch::Cuda::is_available(), tch::Cuda::device_count()) {
                (false, _) => "this libtorch has no CUDA, or the machine has no driver or device".to_owned(),
                (true, devices) if i64::from(ordinal) < devices => return Ok(tch::Device::Cuda(ordinal as usize)),
                (true, devices) => format!("the machine has {devices} CUDA devices, numbered from 0"),
            };
            Err(MixError::NoCuda { device, found })
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
        if place != tch::Device::Cpu {
            staging = staging.f_pin_memory(place)?;
        }
        let constant = |values: &[f32]| Tensor::f_from_slice(values)?.f_view([1, -1, 1, 1])?.f_to_device(place);
        let (mean, std, full) = (constant(&format.mean)?, constant(&format.std)?, constant(&[255.0])?);
        Ok(Self { format, device: place, staging, mean, std, full })
    }

    /// Writes images into consecutive rows of the staging memory, from row `first` on; `write` fills one channel of one.
    fn stage(&mut self, first: usize, rows: &[Row<'_>], write: impl Fn(&Row<'_>, usize, &mut [u8])) {
        let (pixels, staged) = (self.format.image_size.pixels(), self.staging.size()[0] as usize);
        assert!(first + rows.len() <= staged);
        // SAFETY: the staging tensor is contiguous u8 of `staged` images of three channels of `pixels`, owned here, and no copy from
        // it is under way: `mix` ends with a copy into main memory, which waits for the device.
        let memory =
            unsafe { std::slice::from_raw_parts_mut(self.staging.data_ptr().cast::<u8>(), staged * 3 * pixels) };
        for (row, image) in rows.iter().zip(memory[first * 3 * pixels..].chunks_exact_mut(3 * pixels)) {
            image.chunks_exact_mut(pixels).enumerate().for_each(|(channel, plane)| write(row, channel, plane));
        }
    }

    /// u8 samples on the device as the f32 values to be mixed.
    fn values(&self, samples: &Tensor) -> Result<Tensor, TchError> {
        let mut values = samples.f_to_kind(Kind::Float)?;
        match self.format.dtype {
            Dtype::U8 => Ok(values),
            _ => values.f_div_(&self.full)?.f_sub_(&self.mean)?.f_div_(&self.std),
        }
    }

    fn mixed(&mut self, rows: &[Row<'_>]) -> Result<Tensor, TchError> {
        let len = rows.len() as i64;
        let within = rows.iter().all(|row| row.partner_row >= 0);
        let (level, size) = (Level::best(), self.format.image_size);
        // Flipped as own images, and so as partners of other rows; a box is cut where nothing else is mixed.
        self.stage(0, rows, |row, channel, plane| compose::own(level, row, size, channel, 0, plane));
        if !within {
            self.stage(rows.len(), rows, |row, channel, plane| compose::partner(level, row, size, channel, 0, plane));
        }
        let staged = self.staging.f_narrow(0, 0, if within { len } else { 2 * len })?;
        let values = self.values(&staged.f_to_device_(self.device, Kind::Uint8, true, false)?)?;
        let own = values.f_narrow(0, 0, len)?;
        let partner = if within {
            let partner_rows: Vec<i64> = rows.iter().map(|row| row.partner_row.into()).collect();
            own.f_index_select(0, &Tensor::f_from_slice(&partner_rows)?.f_to_device(self.device)?)?
        } else {
            values.f_narrow(0, len, len)?
        };
        let lambda: Vec<f32> = rows.iter().map(|row| row.lambda).collect();
        let rest: Vec<f32> = lambda.iter().map(|lambda| 1.0 - lambda).collect();
        let weight = |values: &[f32]| Tensor::f_from_slice(values)?.f_view([-1, 1, 1, 1])?.f_to_device(self.device);
        let mixed = own.f_mul(&weight(&lambda)?)?.f_add(&partner.f_mul(&weight(&rest)?)?)?;
        let mixed = match self.format.dtype {
            Dtype::U8 => mixed.f_round()?,
            _ => mixed,
        };
        let mixed = mixed.f_to_kind(kind(self.format.dtype))?;
        match self.format.layout {
            Layout::Nchw => Ok(mixed),
            Layout::Nhwc => mixed.f_permute([0, 2, 3, 1])?.f_contiguous(),
        }
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

    fn mix(&mut self, rows: &[Row<'_>], target: Target<'_>, _: Option<&Notice<'_>>) -> Result<(), MixError> {
        let out = target.memory();
        assert_eq!(out.len(), rows.len() * self.format.image_bytes());
        no_grad(|| {
            let mixed = self.mixed(rows)?;
            let strides: Vec<i64> = mixed.stride();
            // SAFETY: `out` holds exactly the tensor's elements, contiguous and aligned, and outlives it; nobody else
            // writes there meanwhile. The copy into main memory is complete when it returns.
            let mut target = unsafe {
                Tensor::from_blob(out.as_mut_ptr(), &mixed.size(), &strides, kind(self.format.dtype), tch::Device::Cpu)
            };
            target.f_copy_(&mixed)
        })?;
        Ok(())
    }
}

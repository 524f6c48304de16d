//! A batch as tensors, in place.
#![expect(unsafe_code, reason = "tensors over memory that torch does not own")]

use crate::batch::BatchView;
#[cfg(test)]
use crate::batch::Head;
#[cfg(test)]
use crate::columns::Columns;
use crate::types::{Dtype, Layout};
use std::marker::PhantomData;
use tch::{Device, Kind, Tensor};

/// The tensors of a batch that a trainer needs. They are used before the batch is given back: the lifetime sees to it.
///
/// A `shallow_clone` of a field would outlive that; copy instead.
#[derive(Debug)]
pub struct BatchTensors<'a> {
    /// f32, f16 or bf16 `[B, 3, H, W]`; the batch's own memory where it lies on the device.
    pub x: Tensor,
    /// i64 `[B]`.
    pub label_a: Tensor,
    /// i64 `[B]`.
    pub label_b: Tensor,
    /// f32 `[B]`.
    pub lambda: Tensor,
    batch: PhantomData<&'a [u8]>,
}

impl<'a> BatchTensors<'a> {
    /// Tensors over `view`, or copies of it on another device; `None` for u8, which is not normalised.
    pub fn new(view: &BatchView<'a>, device: Device) -> Option<Self> {
        let kind = match view.dtype {
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            Dtype::Bf16 => Kind::BFloat16,
            Dtype::U8 => return None,
        };
        let shape = view.shape().map(|side| side as i64);
        let strides = [shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1];
        let bytes = shape.iter().product::<i64>() as usize * view.dtype.bytes();
        let (start, found, lies) = match view.x_on_device {
            None => (view.x.as_ptr(), view.x.len(), Device::Cpu),
            Some(x) => (x.address as *const u8, x.bytes, Device::Cuda(x.ordinal as usize)),
        };
        assert!(found == bytes && start.addr().is_multiple_of(view.dtype.bytes()));
        // SAFETY: `x` is contiguous, aligned and holds exactly `shape` elements of `kind`; it lives as long as 'a, and so does
        // this, and on a device as long as what is queued on torch's stream needs it. Nothing here or in the trainer writes to it: the
        // model's first operation makes a tensor of its own.
        let x = unsafe { Tensor::from_blob(start, &shape, &strides, kind, lies) };
        let x = match view.layout {
            Layout::Nchw => x,
            // Not as a view: torch would take its channels-last path, whose batch variance is less exact on the CPU.
            Layout::Nhwc => x.permute([0, 3, 1, 2]).contiguous(),
        };
        Some(Self {
            x: x.to_device(device),
            label_a: Tensor::from_slice(view.label_a).to_device(device),
            label_b: Tensor::from_slice(view.label_b).to_device(device),
            lambda: Tensor::from_slice(view.lambda).to_device(device),
            batch: PhantomData,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ImageSize;

    #[test]
    fn x_is_the_batchs_own_memory() {
        let x: Vec<f32> = (0..2 * 3 * 4 * 5).map(|n| n as f32).collect();
        let mut view = BatchView {
            x: bytemuck::cast_slice(&x),
            x_on_device: None,
            dtype: Dtype::F32,
            layout: Layout::Nchw,
            image_size: ImageSize { height: 4, width: 5 },
            columns: Columns {
                label_a: &[1, 2],
                label_b: &[3, 4],
                lambda: &[0.5, 1.0],
                partner: &[1, 0],
                sample_id: &[0, 1],
                partner_id: &[1, 0],
                ..Columns::default()
            },
            head: Head { batches: 1, ..Head::default() },
        };
        let tensors = BatchTensors::new(&view, Device::Cpu).unwrap();
        assert_eq!((tensors.x.data_ptr().cast_const().cast(), tensors.x.size()), (x.as_ptr(), vec![2, 3, 4, 5]));
        view.layout = Layout::Nhwc;
        let tensors = BatchTensors::new(&view, Device::Cpu).unwrap();
        assert_eq!(tensors.x.size(), [2, 3, 4, 5]);
        assert_eq!(tensors.x.double_value(&[1, 2, 0, 3]), f64::from(x[60 + 3 * 3 + 2]));
        view.dtype = Dtype::U8;
        assert!(BatchTensors::new(&view, Device::Cpu).is_none());
    }
}

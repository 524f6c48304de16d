//! A batch as Python sees it.

use crate::array::{Array, Element};
use crate::errors::MixdError;
use crate::held::Held;
use mixd::batch::BatchView;
use mixd::types::{Dtype, Place};
use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use std::sync::{Arc, Mutex, PoisonError};

/// A batch in shared memory, leased for as long as it, its images, or any tensor or array over these is there, or until it is kept as a
/// copy so that the feed can go on.
///
/// With `x = lam * norm(own) + (1 - lam) * norm(partner)`, the loss is `lam * L(y, label_a) + (1 - lam) * L(y, label_b)` for each
/// image, then reduced: `mixd.torch.MixedLoss`.
#[pyclass(frozen, module = "mixd")]
pub struct Batch(Mutex<Option<Arc<Held>>>);

impl Batch {
    pub fn new(held: Arc<Held>) -> Self {
        Self(Mutex::new(Some(held)))
    }

    /// Ends this batch's own part in its lease.
    pub fn give_back(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn held(&self) -> PyResult<Arc<Held>> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(|| {
            let text = "this batch was given back when the next one was asked for: delivery latest lends one at a time (copy what you need)";
            MixdError::new_err(text)
        })?;
        held.check()?;
        Ok(held)
    }

    fn list(&self, element: Element, bytes: impl for<'v> Fn(&BatchView<'v>) -> &'v [u8]) -> PyResult<Array> {
        let held = self.held()?;
        let view = held.lease.view();
        Ok(Array::copy_of(bytes(&view), element, &[view.len()]))
    }
}

/// The bytes of a list of numbers.
macro_rules! list {
    ($batch:ident, $element:ident, $field:ident) => {
        $batch.list(Element::$element, |view| mixd::batch::bytes_of(view.$field))
    };
}

#[pymethods]
impl Batch {
    /// The images, `[B, 3, H, W]` or `[B, H, W, 3]`, normalised, then mixed (of dtype u8: raw pixels, mixed and rounded).
    #[getter]
    fn x(&self) -> PyResult<Array> {
        let held = self.held()?;
        let view = held.lease.view();
        let element = match view.dtype {
            Dtype::F32 => Element::F32,
            Dtype::F16 => Element::F16,
            Dtype::Bf16 => Element::Bf16,
            Dtype::U8 => Element::U8,
        };
        Ok(Array::of_slot(Arc::clone(&held), &view, element))
    }

    /// The class of each image, `[B]`, int64.
    #[getter]
    fn label_a(&self) -> PyResult<Array> {
        list!(self, I64, label_a)
    }

    /// The class of each image's partner, `[B]`, int64; equal to `label_a` where nothing is mixed.
    #[getter]
    fn label_b(&self) -> PyResult<Array> {
        list!(self, I64, label_b)
    }

    /// λ, the weight of each own image, `[B]`, float32: in [0.5, 1] when folded, 1 where nothing is mixed.
    #[getter]
    fn lam(&self) -> PyResult<Array> {
        list!(self, F32, lambda)
    }

    /// The row of each image's partner in this batch, `[B]`, int32; -1 where it comes from elsewhere.
    #[getter]
    fn partner(&self) -> PyResult<Array> {
        list!(self, I32, partner)
    }

    /// Which sample each image is, `[B]`, uint32: its index in the sorted list of the split's files.
    #[getter]
    fn sample_id(&self) -> PyResult<Array> {
        list!(self, U32, sample_id)
    }

    /// Which sample each image's partner is, `[B]`, uint32.
    #[getter]
    fn partner_id(&self) -> PyResult<Array> {
        list!(self, U32, partner_id)
    }

    /// The epoch, from 0.
    #[getter]
    fn epoch(&self) -> PyResult<u64> {
        Ok(self.held()?.lease.place().epoch)
    }

    /// The place in the epoch, from 0.
    #[getter]
    fn index(&self) -> PyResult<u64> {
        Ok(self.held()?.lease.place().index)
    }

    /// Batches in each epoch.
    #[getter]
    fn batches(&self) -> PyResult<u64> {
        Ok(self.held()?.lease.view().batches)
    }

    /// Rows at the end that repeat the head of the permutation, so that all ranks have equal counts.
    #[getter]
    fn pad(&self) -> PyResult<u32> {
        Ok(self.held()?.lease.view().pad)
    }

    /// XXH3 of the plan and the images; 0 unless the feed was opened with `digest=True`.
    #[getter]
    fn digest(&self) -> PyResult<u64> {
        Ok(self.held()?.lease.view().digest)
    }

    /// Whether plan and images are what the digest says; true of batches without one.
    fn is_intact(&self, py: Python<'_>) -> PyResult<bool> {
        let held = self.held()?;
        Ok(py.detach(|| {
            let view = held.lease.view();
            view.digest == 0 || view.digest == view.digest_by(&held.mixer)
        }))
    }

    /// The batch as torch tensors on a device: a `mixd.torch.Tensors`. Where `x` is there already it stays, leased.
    #[pyo3(signature = (device, non_blocking=false))]
    fn to<'py>(slf: &Bound<'py, Self>, device: Bound<'py, PyAny>, non_blocking: bool) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let tensors = py.import(intern!(py, "mixd.torch"))?.getattr(intern!(py, "Tensors"))?;
        tensors.call_method1(intern!(py, "of"), (slf, device, non_blocking))
    }

    fn __len__(&self) -> PyResult<usize> {
        Ok(self.held()?.lease.view().len())
    }

    fn __repr__(&self) -> String {
        let Ok(held) = self.held() else { return "<mixd.Batch, given back>".to_owned() };
        let view = held.lease.view();
        let Place { epoch, index } = held.lease.place();
        format!("<mixd.Batch: epoch {epoch}, batch {index} of {}, {} images, {}>", view.batches, view.len(), view.dtype)
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err(
            "a batch lies in memory that this process shares with the daemon, and is not pickled (open a feed in the other process, or send copies)",
        ))
    }
}

//! A batch as Python sees it.

use crate::array::{Array, Element};
use crate::errors::MixdError;
use crate::held::Held;
use mixd::columns::{COLUMNS, Column, Number};
use mixd::types::{Dtype, Place};
use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use std::sync::{Arc, Mutex, PoisonError};

/// A batch in shared memory, leased for as long as it, its images, or any tensor or array over these is there, or until it is kept as a
/// copy so that the feed can go on.
///
/// With `x = lam * norm(own) + (1 - lam) * norm(partner)`, the loss is `lam * L(y, label_a) + (1 - lam) * L(y, label_b)` for each
/// image, then reduced: `mixd.torch.MixedLoss`.
#[pyclass(frozen, module = "mixd")]
pub struct Batch {
    held: Mutex<Option<Arc<Held>>>,
    /// The feed's sets of labels.
    label_sets: Option<Py<PyTuple>>,
}

impl Batch {
    pub fn new(held: Arc<Held>) -> Self {
        Self { held: Mutex::new(Some(held)), label_sets: None }
    }

    /// The same batch, of a feed whose images have several labels.
    pub fn with_label_sets(self, label_sets: Option<Py<PyTuple>>) -> Self {
        Self { label_sets, ..self }
    }

    /// Ends this batch's own part in its lease.
    pub fn give_back(&self) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn held(&self) -> PyResult<Arc<Held>> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(|| {
            let text = "this batch was given back when the next one was asked for: delivery latest lends one at a time (copy what you need)";
            MixdError::new_err(text)
        })?;
        held.check()?;
        Ok(held)
    }

    /// A copy of a column of [`COLUMNS`], of shape `[B]` or `[B, count]`.
    fn column(&self, name: &str) -> PyResult<Array> {
        let at = COLUMNS.iter().position(|column| column.name == name).expect("a name from the table of columns");
        let Column { number, count, .. } = COLUMNS[at];
        let held = self.held()?;
        let view = held.lease.view();
        let element = match number {
            Number::I64 => Element::I64,
            Number::F32 => Element::F32,
            Number::I32 => Element::I32,
            Number::U32 => Element::U32,
            Number::U8 => Element::U8,
        };
        let shape = [view.len(), count];
        Ok(Array::copy_of(view.columns.bytes()[at], element, if count == 1 { &shape[..1] } else { &shape }))
    }
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

    /// Where images have several labels: the sets of classes, as tuples, that `label_a` and `label_b` number; else None, and these are classes.
    #[getter]
    fn label_sets(&self, py: Python<'_>) -> Option<Py<PyTuple>> {
        self.label_sets.as_ref().map(|sets| sets.clone_ref(py))
    }

    /// The class of each image, or its set of classes, int64, `[B]`.
    #[getter]
    fn label_a(&self) -> PyResult<Array> {
        self.column("label_a")
    }

    /// The class of each image's partner, int64, `[B]`; equal to `label_a` where nothing is mixed.
    #[getter]
    fn label_b(&self) -> PyResult<Array> {
        self.column("label_b")
    }

    /// λ, the weight of each image's own label, float32, `[B]`; 1 where nothing is mixed.
    #[getter]
    fn lam(&self) -> PyResult<Array> {
        self.column("lambda")
    }

    /// The row of each image's partner in this batch, int32, `[B]`; -1 where the partner comes from a second batch.
    #[getter]
    fn partner(&self) -> PyResult<Array> {
        self.column("partner")
    }

    /// The sample that each image is, uint32, `[B]`.
    #[getter]
    fn sample_id(&self) -> PyResult<Array> {
        self.column("sample_id")
    }

    /// The sample that each image's partner is, uint32, `[B]`.
    #[getter]
    fn partner_id(&self) -> PyResult<Array> {
        self.column("partner_id")
    }

    /// Top, left, height and width of each image's random crop, in pixels of its source (the decoded image, unless the daemon has
    /// `--source`), int32, `[B, 4]`; zeros where the crop is not random.
    #[getter]
    fn crop(&self) -> PyResult<Array> {
        self.column("crop")
    }

    /// Top, left, height and width of each image's CutMix box, in pixels of `x`, int32, `[B, 4]`; zeros where there is none.
    #[getter]
    fn cut(&self) -> PyResult<Array> {
        self.column("cut")
    }

    /// 1 where the image is flipped horizontally, else 0, uint8, `[B]`.
    #[getter]
    fn flip(&self) -> PyResult<Array> {
        self.column("flip")
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
        Ok(self.held()?.lease.view().head.batches)
    }

    /// Rows at the end that repeat the head of the permutation, so that all ranks have equal counts.
    #[getter]
    fn pad(&self) -> PyResult<u32> {
        Ok(self.held()?.lease.view().head.pad)
    }

    /// XXH3 of the plan and the images; 0 unless the feed was opened with `digest=True`.
    #[getter]
    fn digest(&self) -> PyResult<u64> {
        Ok(self.held()?.lease.view().head.digest)
    }

    /// Whether plan and images are what the digest says; true of batches without one.
    fn is_intact(&self, py: Python<'_>) -> PyResult<bool> {
        let held = self.held()?;
        Ok(py.detach(|| {
            let view = held.lease.view();
            view.head.digest == 0 || view.head.digest == view.digest_by(&held.mixer)
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
        format!(
            "<mixd.Batch: epoch {epoch}, batch {index} of {}, {} images, {}>",
            view.head.batches,
            view.len(),
            view.dtype
        )
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err(
            "a batch lies in memory that this process shares with the daemon, and is not pickled (open a feed in the other process, or send copies)",
        ))
    }
}

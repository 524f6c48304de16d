//! An array as Python sees it: DLPack, the buffer interface, and ways to torch and numpy.
#![expect(unsafe_code, reason = "hands memory out through C interfaces")]

use crate::fault;
use crate::held::Held;
use dlpark::ffi::{DLDataType, DLDevice, DLDeviceType, DLManagedTensor, DLManagedTensorVersioned};
use dlpark::metadata::Dynamic;
use dlpark::{DlpackFlags, Managed, ManagedTensorBase, python::ExportAbi, python::ExportRequest};
use mixd::batch::BatchView;
use mixd::client::ANY_STREAM;
use pyo3::exceptions::{PyAttributeError, PyBufferError, PyModuleNotFoundError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};
use pyo3::{Borrowed, ffi, intern};
use std::ffi::{CStr, c_int};
use std::sync::Arc;

/// Type of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    F32,
    F16,
    Bf16,
    U8,
    I64,
    I32,
    U32,
}

impl Element {
    /// Its name in numpy and torch, its code in the module `struct` where it has one, and DLPack's.
    const fn describe(self) -> (&'static str, Option<&'static CStr>, DLDataType) {
        match self {
            Self::F32 => ("float32", Some(c"f"), DLDataType::F32),
            Self::F16 => ("float16", Some(c"e"), DLDataType::F16),
            Self::Bf16 => ("bfloat16", None, DLDataType::BF16),
            Self::U8 => ("uint8", Some(c"B"), DLDataType::U8),
            Self::I64 => ("int64", Some(c"q"), DLDataType::I64),
            Self::I32 => ("int32", Some(c"i"), DLDataType::I32),
            Self::U32 => ("uint32", Some(c"I"), DLDataType::U32),
        }
    }
}

/// Where the elements lie.
enum Memory {
    /// In a batch that is leased.
    Slot(Arc<Held>),
    /// In memory that the array owns, aligned for any element.
    Own(#[expect(dead_code, reason = "kept, and read through a pointer")] Box<[u64]>),
}

/// What keeps the memory of a tensor that was handed out.
struct Tensor(Arc<Memory>);

impl Drop for Tensor {
    fn drop(&mut self) {
        if let Memory::Slot(held) = &*self.0 {
            held.tensors.drop_one();
        }
    }
}

/// An array of a batch: its images in shared memory or on a CUDA device, where they are read without a copy, or a list of numbers, one an image.
///
/// `numpy.asarray(array)`, `torch.from_dlpack(array)` and whatever else takes a buffer or DLPack take it. Images stay leased, and so keep
/// their slot, while anything refers to them; the lists are copies, to keep for as long as one likes.
#[pyclass(frozen, module = "mixd")]
pub struct Array {
    memory: Arc<Memory>,
    data: usize,
    /// The CUDA device in whose memory they are, if that is where.
    device: Option<u32>,
    bytes: usize,
    element: Element,
    shape: Vec<isize>,
    /// In bytes.
    strides: Vec<isize>,
}

impl Array {
    fn new(memory: Memory, data: usize, device: Option<u32>, element: Element, shape: &[usize]) -> Self {
        let size = element.describe().2.element_size();
        let mut strides = vec![size as isize; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis] as isize;
        }
        let bytes = shape.iter().product::<usize>() * size;
        let shape = shape.iter().map(|&side| side as isize).collect();
        Self { memory: Arc::new(memory), data, device, bytes, element, shape, strides }
    }

    /// The images of a batch, where they lie.
    pub fn of_slot(held: Arc<Held>, view: &BatchView<'_>, element: Element) -> Self {
        let (data, device) = match view.x_on_device {
            None => (view.x.as_ptr() as usize, None),
            Some(x) => (x.address as usize, Some(x.ordinal)),
        };
        Self::new(Memory::Slot(held), data, device, element, &view.shape())
    }

    /// A copy of some bytes.
    pub fn copy_of(bytes: &[u8], element: Element, shape: &[usize]) -> Self {
        let mut own = vec![0_u64; bytes.len().div_ceil(8)].into_boxed_slice();
        let to = own.as_mut_ptr().cast::<u8>();
        // SAFETY: `own` has at least as many bytes, and is new.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Self::new(Memory::Own(own), to as usize, None, element, shape)
    }

    /// Whether the elements may be read here: a batch's lie in the process that leased it.
    fn check(&self) -> PyResult<()> {
        match &*self.memory {
            Memory::Slot(held) => held.check(),
            Memory::Own(_) => Ok(()),
        }
    }

    /// In whose memory the elements are, as DLPack has it.
    fn place(&self) -> DLDevice {
        self.device
            .map_or(DLDevice::CPU, |ordinal| DLDevice { device_type: DLDeviceType::CUDA, device_id: ordinal as i32 })
    }

    /// Refuses what main memory alone can do.
    fn check_memory(&self) -> PyResult<()> {
        if self.device.is_none() {
            return Ok(());
        }
        let text = format!("the images lie on {} (use .torch() or torch.from_dlpack, or .to(\"cpu\"))", self.name());
        Err(PyBufferError::new_err(text))
    }

    /// The name of where it is.
    fn name(&self) -> String {
        self.device.map_or("the CPU".to_owned(), |ordinal| format!("cuda:{ordinal}"))
    }

    fn is_own(&self) -> bool {
        matches!(&*self.memory, Memory::Own(_))
    }

    /// A new header of DLPack over the same memory.
    fn managed<M: ManagedTensorBase>(&self, flags: DlpackFlags) -> PyResult<Managed<M>> {
        if let Memory::Slot(held) = &*self.memory {
            held.tensors.add_one();
            if self.device.is_none() {
                fault::catch_writes();
            }
        }
        let context = Box::new(Tensor(Arc::clone(&self.memory)));
        let shape: Vec<i64> = self.shape.iter().map(|&side| side as i64).collect();
        let prepared = Dynamic::compact(shape).prepare_as::<M>().map_err(|e| PyBufferError::new_err(e.to_string()))?;
        let mut header = prepared.initialize(context);
        header.set_data(self.data as *mut _).set_dtype(self.element.describe().2).set_device(self.place());
        // SAFETY: the memory holds as many elements of this type as shape and compact strides say, and lives as long as the context. It is
        // copied, where the flags say so, for this header alone; and it may be written to where they do not say that it is read-only.
        Ok(unsafe {
            header.set_flags_unchecked(flags);
            header.finish()
        })
    }
}

#[pymethods]
impl Array {
    /// Says where torch's methods are.
    fn __getattr__(&self, name: &str) -> PyResult<()> {
        let text = format!(
            "a mixd.Array has no attribute {name:?}: it is memory without operations (make a tensor of it with .torch(), or .to(device), or an \
             array with .numpy())"
        );
        Err(PyAttributeError::new_err(text))
    }

    /// Sizes of the axes.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.shape)
    }

    /// Name of the element type, as numpy and torch have it.
    #[getter]
    fn dtype(&self) -> &'static str {
        self.element.describe().0
    }

    /// How many axes.
    #[getter]
    fn ndim(&self) -> usize {
        self.shape.len()
    }

    /// How many bytes.
    #[getter]
    fn nbytes(&self) -> usize {
        self.bytes
    }

    /// Address of the first element.
    #[getter]
    fn data_ptr(&self) -> usize {
        self.data
    }

    fn __len__(&self) -> usize {
        self.shape[0] as usize
    }

    fn __repr__(&self) -> String {
        let shape: Vec<String> = self.shape.iter().map(isize::to_string).collect();
        let place = match self.device {
            _ if self.is_own() => String::new(),
            None => " in shared memory".to_owned(),
            Some(_) => format!(" on {}", self.name()),
        };
        format!("<mixd.Array {} [{}]{place}>", self.dtype(), shape.join(", "))
    }

    fn __getitem__<'py>(slf: &Bound<'py, Self>, at: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        if slf.get().device.is_some() { Self::torch(slf) } else { Self::numpy(slf) }?.get_item(at)
    }

    /// Element by element, as torch or numpy have it.
    fn __eq__<'py>(slf: &Bound<'py, Self>, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        Self::as_like(slf, other)?.call_method1(intern!(slf.py(), "__eq__"), (other,))
    }

    fn __ne__<'py>(slf: &Bound<'py, Self>, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        Self::as_like(slf, other)?.call_method1(intern!(slf.py(), "__ne__"), (other,))
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err("an array of a batch is not pickled (pickle its .numpy() or .torch().clone())"))
    }

    /// As a torch tensor over the same memory. On a CUDA device its slot stays leased until the work that was queued on the stream that is current
    /// now is done, also after the tensor is gone; what is written there every trainer of a shared feed sees. In main memory, what is written to images in shared memory is this process's own and lasts as long as the
    /// tensor: neither the daemon nor another trainer sees it, and the pages that are written to are copied first. Only the process itself
    /// can write so: for a system call such as a socket's `recv` it is a bad address (`clone()` the tensor first).
    fn torch<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let torch = import(
            intern!(py, "torch"),
            "torch is not installed, which .torch() and .to() need (pip install torch, or use .numpy())",
        )?;
        let stream = match slf.get().device {
            None => None,
            Some(ordinal) => {
                let current = torch.getattr("cuda")?.call_method1("current_stream", (ordinal,))?;
                // DLPack's name of the legacy default stream, which CUDA's is 0.
                let stream: isize = current.getattr("cuda_stream")?.extract()?;
                Some((if stream == 0 { 1 } else { stream }).into_pyobject(py)?.into_any())
            }
        };
        let capsule = slf.get().__dlpack__(py, stream, Some((1, 0)), None, None)?;
        torch.call_method1(intern!(py, "from_dlpack"), (capsule,))
    }

    /// `torch().to(...)`: takes what `torch.Tensor.to` takes.
    #[pyo3(signature = (*args, **kwargs))]
    fn to<'py>(
        slf: &Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        Self::torch(slf)?.call_method(intern!(slf.py(), "to"), args, kwargs)
    }

    /// As a numpy array over the same memory; images in shared memory are read-only (take a `.copy()` to write to). numpy has no bfloat16:
    /// such arrays need the package `ml_dtypes`.
    fn numpy<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        // numpy takes what refuses its buffer for an object of another kind.
        slf.get().check()?;
        slf.get().check_memory()?;
        let numpy = import(
            intern!(py, "numpy"),
            "numpy is not installed, which .numpy(), [] and == need (pip install numpy, or use .tolist(), .torch() or a memoryview)",
        )?;
        if slf.get().element != Element::Bf16 {
            return numpy.call_method1(intern!(py, "asarray"), (slf,));
        }
        let types = py.import("ml_dtypes").map_err(|_| {
            PyTypeError::new_err(
                "numpy has no bfloat16 (use .torch(), install ml_dtypes, or open the feed with another dtype)",
            )
        })?;
        let bits = Bits(slf.clone().unbind()).into_pyobject(py)?;
        numpy.call_method1(intern!(py, "asarray"), (bits,))?.call_method1("view", (types.getattr("bfloat16")?,))
    }

    /// As nested lists.
    fn tolist<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        pyo3::types::PyMemoryView::from(slf.as_any())?.call_method0("tolist")
    }

    /// DLPack's type and number of the device.
    fn __dlpack_device__(&self) -> (u32, i32) {
        (self.place().device_type.0, self.place().device_id)
    }

    /// A capsule of DLPack: of version 1 where the caller knows it, with images in shared memory marked read-only. On a CUDA device images are
    /// complete, so that no stream has to wait for them; their slot stays leased until what was queued on `stream` is done.
    #[pyo3(signature = (*, stream=None, max_version=None, dl_device=None, copy=None))]
    fn __dlpack__<'py>(
        &self,
        py: Python<'py>,
        stream: Option<Bound<'py, PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(u32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Py<PyAny>> {
        self.check()?;
        match (self.device, stream) {
            (_, None) => {}
            (None, Some(_)) => {
                return Err(PyBufferError::new_err("there are no streams on the CPU: stream must be None"));
            }
            (Some(_), Some(stream)) => match (stream.extract::<isize>()?, &*self.memory) {
                // Nobody says where it is read.
                (-1, Memory::Slot(held)) => held.lease.used_on(ANY_STREAM),
                (0, _) => {
                    let text = "stream 0 may mean two things: it must be 1 (the legacy default stream), 2 (the thread's), or a stream's address";
                    return Err(PyBufferError::new_err(text));
                }
                (stream, Memory::Slot(held)) => held.lease.used_on(stream as usize),
                (_, Memory::Own(_)) => {}
            },
        }
        if dl_device.is_some_and(|device| device != self.__dlpack_device__()) {
            let text = format!("the array is on {} (move the tensor: array.to(device))", self.name());
            return Err(PyBufferError::new_err(text));
        }
        if self.device.is_some() && copy == Some(true) {
            return Err(PyBufferError::new_err("images on a device are not copied here (clone the tensor)"));
        }
        let request = ExportRequest::parse(None, max_version, dl_device, copy)?;
        let (array, flags) = match copy {
            Some(true) => {
                // SAFETY: checked above: the memory is this process's, and lives as long as `self`.
                let bytes = unsafe { std::slice::from_raw_parts(self.data as *const u8, self.bytes) };
                let shape: Vec<usize> = self.shape.iter().map(|&side| side as usize).collect();
                (&Self::copy_of(bytes, self.element, &shape), DlpackFlags::IS_COPIED)
            }
            _ if self.is_own() => (self, DlpackFlags::empty()),
            _ => (self, DlpackFlags::READ_ONLY),
        };
        match request.abi() {
            ExportAbi::Versioned => Ok(array.managed::<DLManagedTensorVersioned>(flags)?.into_pyobject(py)?.unbind()),
            // It has no flags. Whoever writes gets pages of its own.
            ExportAbi::Legacy => {
                Ok(array.managed::<DLManagedTensor>(DlpackFlags::empty())?.into_pyobject(py)?.unbind())
            }
        }
    }

    /// The buffer interface.
    ///
    /// # Safety
    /// Called by the interpreter with a buffer to fill.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let format = slf.get().element.describe().1.ok_or_else(|| {
            PyBufferError::new_err("bfloat16 has no format in the buffer interface (use .torch() or torch.from_dlpack)")
        })?;
        // SAFETY: as this method.
        unsafe { slf.get().fill(slf.as_any().as_borrowed(), view, flags, format) }
    }

    /// # Safety
    /// Called by the interpreter with a buffer that [`Array::__getbuffer__`] filled.
    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        self.released();
    }
}

impl Array {
    /// As a tensor where the other is one, else as a numpy array.
    fn as_like<'py>(slf: &Bound<'py, Self>, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let in_torch = slf.get().device.is_some() || other.hasattr(intern!(slf.py(), "__torch_function__"))?;
        if in_torch { Self::torch(slf) } else { Self::numpy(slf) }
    }

    /// Fills a buffer, which keeps `owner` and with it this array.
    ///
    /// # Safety
    /// `view` is null or a buffer to fill; `owner` owns this array.
    unsafe fn fill(
        &self,
        owner: Borrowed<'_, '_, PyAny>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
        format: &'static CStr,
    ) -> PyResult<()> {
        self.check()?;
        self.check_memory()?;
        if view.is_null() {
            return Err(PyBufferError::new_err("no buffer to fill"));
        }
        if flags & ffi::PyBUF_WRITABLE != 0 && !self.is_own() {
            return Err(PyBufferError::new_err(
                "the images lie in shared memory, which is read-only here (copy them: .numpy().copy())",
            ));
        }
        let wants = |flag: c_int| flags & flag == flag;
        if wants(ffi::PyBUF_F_CONTIGUOUS) && self.shape.len() > 1 {
            return Err(PyBufferError::new_err("the axes lie in C's order, not in Fortran's"));
        }
        if let Memory::Slot(held) = &*self.memory {
            held.buffers.add_one();
            fault::catch_writes();
        }
        // SAFETY: `view` is to be filled. The memory, shape and strides are this array's, which does not move, never changes and lives as long
        // as `obj`; nobody writes through the pointers to shape and strides (PEP 3118).
        unsafe {
            (*view).obj = owner.to_owned().into_ptr();
            (*view).buf = self.data as *mut _;
            (*view).len = self.bytes as isize;
            (*view).readonly = c_int::from(!self.is_own());
            (*view).itemsize = self.element.describe().2.element_size() as isize;
            (*view).format = if wants(ffi::PyBUF_FORMAT) { format.as_ptr().cast_mut() } else { std::ptr::null_mut() };
            (*view).ndim = self.shape.len() as c_int;
            (*view).shape = if wants(ffi::PyBUF_ND) { self.shape.as_ptr().cast_mut() } else { std::ptr::null_mut() };
            (*view).strides =
                if wants(ffi::PyBUF_STRIDES) { self.strides.as_ptr().cast_mut() } else { std::ptr::null_mut() };
            (*view).suboffsets = std::ptr::null_mut();
            (*view).internal = std::ptr::null_mut();
        }
        Ok(())
    }

    fn released(&self) {
        if let Memory::Slot(held) = &*self.memory {
            held.buffers.drop_one();
        }
    }
}

/// Imports a package; the error where there is none says `remedy`.
fn import<'py>(name: &Bound<'py, PyString>, remedy: &'static str) -> PyResult<Bound<'py, PyModule>> {
    let py = name.py();
    py.import(name).map_err(|error| {
        if !error.is_instance_of::<PyModuleNotFoundError>(py) {
            return error;
        }
        let missing = PyModuleNotFoundError::new_err(remedy);
        missing.set_cause(py, Some(error));
        missing
    })
}

/// The bits of an array of bfloat16, as u16.
#[pyclass(frozen)]
struct Bits(Py<Array>);

#[pymethods]
impl Bits {
    /// # Safety
    /// Called by the interpreter with a buffer to fill.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        // SAFETY: as this method; `slf` owns the array.
        unsafe { slf.get().0.get().fill(slf.as_any().as_borrowed(), view, flags, c"H") }
    }

    /// # Safety
    /// Called by the interpreter with a buffer that [`Bits::__getbuffer__`] filled.
    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        self.0.get().released();
    }
}

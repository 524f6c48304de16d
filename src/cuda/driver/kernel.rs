//! Compiled code on a device.
#![expect(unsafe_code, reason = "calls the CUDA driver")]

use super::Context;
use crate::cuda::CudaError;
use cudarc::driver::{result, sys};
use std::sync::Arc;

/// Compiled code on the device; it goes with the context.
#[derive(Debug)]
pub struct Kernel {
    pub(super) raw: sys::CUfunction,
}

// SAFETY: functions may be used from any thread.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

impl Kernel {
    /// The kernels of these names in what NVRTC has made: machine code, or PTX that ends with a 0.
    pub fn load<const N: usize>(
        context: &Arc<Context>,
        image: &[std::ffi::c_char],
        names: [&std::ffi::CStr; N],
    ) -> Result<[Self; N], CudaError> {
        let load = || {
            // SAFETY: an image that says itself where it ends; the module lives as long as the context.
            let module = unsafe { result::module::load_data(image.as_ptr().cast()) }?;
            let mut kernels = Vec::with_capacity(N);
            for name in names {
                // SAFETY: the module was loaded just now.
                kernels.push(Self { raw: unsafe { result::module::get_function(module, name.to_owned()) }? });
            }
            Ok(kernels.try_into().expect("one a name"))
        };
        context.call("load the kernels", load)
    }
}

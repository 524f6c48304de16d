//! The kernels, compiled for the device that is there when it is first asked for a kind of batch.
#![expect(unsafe_code, reason = "calls NVRTC, and starts kernels")]

use super::driver::Kernel;
use super::{CudaError, Gpu, Stream};
use crate::types::{Dtype, Layout};
use bytemuck::{Pod, Zeroable};
use cudarc::nvrtc::{result as nvrtc, sys};
use std::sync::{Arc, PoisonError};

const SOURCE: &str = include_str!("kernels.cu");

/// Threads of a block (`BLOCK` in `kernels.cu`).
const BLOCK: u32 = 128;
/// Bytes that a thread stores at once.
const CHUNK: usize = 16;
/// Chunks that a thread has under way at once (`AHEAD` in `kernels.cu`).
const AHEAD: usize = 4;
/// Blocks that copy samples from main memory, each one after the other: enough to keep the bus busy, few enough that a batch is mixed beside
/// them. Where samples begin anywhere a thread has a quarter of the bytes under way, so that there are four times as many blocks.
const FETCH_BLOCKS: u32 = 32;

/// Pixels that each thread tests against the erased boxes; most lie in none.
const ERASE_PIXELS: usize = 8;

/// The most lines that a grid may have; few in tests, whose images are small.
const GRID_LINES: usize = if cfg!(test) { 2 } else { 65_535 };

/// The newest compute capability that every NVRTC of CUDA 12 knows. Newer devices are given PTX for it, which the driver compiles, where it is
/// as new as that NVRTC is; the others machine code, which any driver of CUDA's major version takes.
const NEWEST: (i32, i32) = (9, 0);

/// What a batch is made of.
pub type Kind = (Dtype, Layout);

/// The kernels of one kind of batch.
#[derive(Debug)]
pub struct Kernels {
    mix: Kernel,
    erase: Kernel,
    fetch: Kernel,
}

/// One row of a batch, as `mix` reads it.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct KernelRow {
    /// The own sample on the device: u8 `[3, H, W]`, 16-byte aligned.
    pub own: u64,
    /// The partner's; the own one where it has no part in the row.
    pub partner: u64,
    /// A, B and C of each channel: a value is `(A·u_own + B·u_partner) + C`.
    pub own_factor: [f32; 3],
    /// B.
    pub partner_factor: [f32; 3],
    /// C.
    pub offset: [f32; 3],
    /// Top, bottom, left and right of the box that shows the partner.
    pub cut: [u16; 4],
    /// The flags below.
    pub flags: u32,
}

impl KernelRow {
    /// There is a box.
    pub const CUT: u32 = 1;
    /// The own sample is flipped.
    pub const FLIP: u32 = 2;
    /// The partner is.
    pub const PARTNER_FLIP: u32 = 4;
}

/// The erased boxes of an image, as `erase` reads them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct KernelBoxes {
    /// Top, bottom, left and right of each.
    pub boxes: [[u16; 4]; 8],
    /// How many there are.
    pub len: u32,
    /// 0 for constants, 1 for a number a channel of a box, 2 for one a value.
    pub mode: u32,
    /// Random bits.
    pub key: u32,
}

/// What is erased in a row's image, as `erase` reads it.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct KernelPatch {
    /// Which row.
    pub row: u32,
    /// Weight of the own image.
    pub weight: f32,
    /// The partner's share of C.
    pub without_own: [f32; 3],
    /// The own image's share of C.
    pub without_partner: [f32; 3],
    /// Of the own image before the mix.
    pub own: KernelBoxes,
    /// Of the partner.
    pub partner: KernelBoxes,
    /// Of the mixed image.
    pub whole: KernelBoxes,
}

/// A sample's way to the device, as `fetch` reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct KernelCopy {
    /// Where it lies in pinned main memory.
    pub from: u64,
    /// Where it goes on the device, 16-byte aligned.
    pub to: u64,
}

/// The parameter of `mix`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Batch {
    rows: u64,
    out: u64,
    height: u32,
    width: u32,
    /// The next number above 2⁴⁰ / chunks of a line; 0 where a line is not whole chunks.
    of_line: u64,
}

/// The parameter of `erase`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Patches {
    batch: Batch,
    list: u64,
    noise: u64,
    constant: [f32; 3],
    _end: u32,
}

/// The parameter of `fetch`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Copies {
    list: u64,
    len: u32,
    bytes: u32,
}

const _: () = assert!(size_of::<KernelRow>() == 64 && size_of::<KernelCopy>() == 16 && size_of::<KernelPatch>() == 260);
const _: () = assert!(size_of::<Patches>() == 64);

impl Gpu {
    /// The kernels of a kind of batch.
    ///
    /// # Errors
    /// When NVRTC is not there or cannot compile them.
    pub fn kernels(&self, kind: Kind) -> Result<Arc<Kernels>, CudaError> {
        let mut known = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, kernels)) = known.iter().find(|(known, _)| *known == kind) {
            return Ok(Arc::clone(kernels));
        }
        let image = compile(kind, self.capability)?;
        let [mix, erase, fetch] = Kernel::load(&self.context, &image, [c"mix", c"erase", c"fetch"])?;
        let kernels = Arc::new(Kernels { mix, erase, fetch });
        known.push((kind, Arc::clone(&kernels)));
        Ok(kernels)
    }
}

/// What the driver loads on a device of this compute capability.
fn compile((dtype, layout): Kind, capability: (i32, i32)) -> Result<Vec<std::ffi::c_char>, CudaError> {
    let is_known = capability <= NEWEST;
    let (major, minor) = capability.min(NEWEST);
    // SAFETY: loads a library, whose initialisers are NVRTC's own.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::Compile("there is no libnvrtc.so".to_owned()));
    }
    let options = [
        format!("--gpu-architecture={}_{major}{minor}", if is_known { "sm" } else { "compute" }),
        format!("-DELEMENT={}", dtype.name().to_uppercase()),
        format!("-DPIXELS={}", u8::from(layout == Layout::Nhwc)),
    ];
    let source = std::ffi::CString::new(SOURCE).expect("a text without a 0");
    let refused = |error: nvrtc::NvrtcError| CudaError::Compile(format!("NVRTC says {error:?}"));
    let program = nvrtc::create_program(&source, Some(c"kernels.cu")).map_err(refused)?;
    // SAFETY: the program was made just now, and is destroyed below.
    let compiled = unsafe {
        nvrtc::compile_program(program, &options)
            .and_then(|()| if is_known { machine_code(program) } else { nvrtc::get_ptx(program) })
    };
    let image = compiled.map_err(|error| {
        // SAFETY: as above.
        let log = unsafe { nvrtc::get_program_log(program) }.unwrap_or_default();
        let log: Vec<u8> = log.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
        CudaError::Compile(format!("{error:?}: {}", String::from_utf8_lossy(&log).trim()))
    });
    // SAFETY: as above.
    let _ = unsafe { nvrtc::destroy_program(program) };
    image
}

/// The machine code of a program.
///
/// # Safety
/// The program was compiled for a device, and not destroyed.
unsafe fn machine_code(program: sys::nvrtcProgram) -> Result<Vec<std::ffi::c_char>, nvrtc::NvrtcError> {
    let mut bytes = 0;
    // SAFETY: as this function; the code has as many bytes as NVRTC says.
    unsafe {
        sys::nvrtcGetCUBINSize(program, &raw mut bytes).result()?;
        let mut code = vec![0; bytes];
        sys::nvrtcGetCUBIN(program, code.as_mut_ptr()).result()?;
        Ok(code)
    }
}

impl Kernels {
    /// Queues the mix of `len` rows, listed on the device at `rows`, into images at `out`.
    ///
    /// # Safety
    /// The rows, their samples and the images are valid on the device, and stay so and unchanged by others until the stream has come so far.
    pub unsafe fn mix(
        &self,
        stream: &Stream,
        format: &crate::format::Format,
        rows: u64,
        out: u64,
        len: usize,
    ) -> Result<(), CudaError> {
        let size = format.image_size;
        let (chunks, count) = (format.image_bytes().div_ceil(CHUNK), (CHUNK / format.dtype.bytes()) as u32);
        let is_whole = size.width.is_multiple_of(count);
        let of_thread = match format.layout {
            _ if !is_whole => 1,
            Layout::Nchw => AHEAD,
            Layout::Nhwc => 3,
        };
        let lines = chunks.div_ceil(BLOCK as usize * of_thread).min(GRID_LINES) as u32;
        let of_line = if is_whole { (1 << 40) / u64::from(size.width / count) + 1 } else { 0 };
        let batch = Batch { rows, out, height: size.height, width: size.width, of_line };
        // SAFETY: as this function.
        unsafe { stream.launch(&self.mix, (len as u32, lines), BLOCK, batch) }
    }

    /// Queues the erasing of boxes in mixed images at `out`: `len` patches of `rows`, listed on the device at `list`, with the table of noise at
    /// `noise`, f32 `[3, 4096]`.
    ///
    /// # Safety
    /// As [`Kernels::mix`].
    #[expect(clippy::too_many_arguments, reason = "addresses, and how much is there")]
    pub unsafe fn erase(
        &self,
        stream: &Stream,
        format: &crate::format::Format,
        (rows, list): (u64, u64),
        out: u64,
        len: usize,
        noise: u64,
        constant: [f32; 3],
    ) -> Result<(), CudaError> {
        let size = format.image_size;
        let lines = size.pixels().div_ceil(BLOCK as usize * ERASE_PIXELS).min(GRID_LINES) as u32;
        let batch = Batch { rows, out, height: size.height, width: size.width, of_line: 0 };
        let patches = Patches { batch, list, noise, constant, _end: 0 };
        // SAFETY: as this function.
        unsafe { stream.launch(&self.erase, (len as u32, lines), BLOCK, patches) }
    }

    /// Queues copies of `bytes` bytes each from pinned main memory, listed on the device at `list`.
    ///
    /// # Safety
    /// As [`Kernels::mix`].
    pub unsafe fn fetch(&self, stream: &Stream, list: u64, len: usize, bytes: usize) -> Result<(), CudaError> {
        let copies = Copies { list, len: len as u32, bytes: bytes as u32 };
        let blocks = if bytes.is_multiple_of(CHUNK) { FETCH_BLOCKS } else { 4 * FETCH_BLOCKS };
        // SAFETY: as this function.
        unsafe { stream.launch(&self.fetch, ((len as u32).min(blocks), 1), BLOCK, copies) }
    }
}

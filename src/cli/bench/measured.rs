//! What ceilings come to, in one round.

/// Ceilings.
pub struct Measured {
    /// Images a second: decoding and resizing (or rendering random views) with nothing else, on as many threads as the daemon has workers.
    pub decode: f64,
    /// Images a second: rendering random views of decoded images with nothing else, on as many threads.
    pub render: Option<f64>,
    /// Images a second: rendering as many and mixing them, a batch of its own on each thread.
    pub render_and_mix: Option<f64>,
    /// Images a second: writing finished images to the slots of a ring.
    pub write: f64,
    /// Of the CUDA device that mixes.
    pub device: Option<DeviceMeasured>,
    /// Microseconds until a sleeping thread is awake that nothing keeps from running: what the kernel takes for a hand-over.
    pub wake_us: Vec<f64>,
}

/// Ceilings of a CUDA device.
#[derive(Debug, Clone)]
pub struct DeviceMeasured {
    /// What it is called.
    pub name: String,
    /// Bytes a second, read and written, of copies within its memory.
    pub copy: f64,
    /// Bytes a second of copies from pinned main memory.
    pub host_copy: f64,
    /// Bytes a second of copies to pinned main memory.
    pub copy_back: f64,
    /// Images a second that the kernel alone mixes.
    pub kernel: f64,
}

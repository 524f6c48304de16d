//! Slots whose images lie in a device's memory: what the ring asks of whoever has that memory.
//!
//! The slot in shared memory carries everything but the images. A batch is published when its images are complete on the device, so that
//! readers wait for nothing. A reader's own work on them may still be queued when it drops its lease: that ends once the device has come so far.

/// CUDA's name of a thread's own default stream. Whoever drops a lease may be another thread, so it stands for any stream of the device.
pub const ANY_STREAM: usize = 2;

/// The images of a ring's slots, as a reader has them.
pub trait DeviceSlots: Send + Sync {
    /// Which CUDA device of this process.
    fn ordinal(&self) -> u32;

    /// Address of a slot's images in this process.
    fn address(&self, slot: u32) -> u64;

    /// Marks what is queued so far on each of these streams; of [`ANY_STREAM`], on the whole device.
    fn mark(&self, streams: &[usize]) -> Vec<Box<dyn Mark>>;
}

/// A mark in a device's queue of work.
pub trait Mark: Send + Sync {
    /// Whether the device has come so far.
    fn is_done(&self) -> bool;

    /// Waits until it has.
    fn wait(&self);
}

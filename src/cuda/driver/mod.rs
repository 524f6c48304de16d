//! The driver's objects as values that free themselves: contexts, streams and their events, kernels, memory of four kinds.

mod context;
mod kernel;
mod memory;
mod shared_memory;
mod stream;

pub use context::Context;
pub use kernel::Kernel;
pub use memory::{DeviceMemory, Pin, PinnedMemory};
pub use shared_memory::SharedMemory;
pub use stream::{Event, Stream};

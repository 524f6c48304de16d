//! The atomics of the ring's protocol; `tests/loom.rs` compiles that protocol against loom's in their place.

pub use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

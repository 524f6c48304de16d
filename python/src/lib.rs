//! The native half of the package `mixd`: the Rust client, its batches as Python sees them, and nothing that Python does as well.
//!
//! Reading order: what can go wrong, what is held, what memory looks like from Python, a batch, a feed; `fault.rs` is why writing to a batch is
//! no crash.

mod array;
mod batch;
mod errors;
mod fault;
mod feed;
mod held;

#[pyo3::pymodule]
mod _native {
    #[pymodule_export]
    use crate::array::Array;
    #[pymodule_export]
    use crate::batch::Batch;
    #[pymodule_export]
    use crate::feed::{Feed, Spec, attach, daemon, default_socket, forget};
}

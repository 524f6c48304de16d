//! A batch that is leased, and what keeps it.

use crate::errors::MixdError;
use mixd::client::{self, RingError};
use pyo3::PyResult;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many there are of something.
#[derive(Debug, Default)]
pub struct Count(AtomicUsize);

impl Count {
    pub fn add_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn drop_one(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A leased batch, and what keeps it.
pub struct Held {
    pub lease: client::Batch,
    /// The mixer that digests name.
    pub mixer: String,
    pid: u32,
    /// Tensors that lie in it.
    pub tensors: Count,
    /// Buffers, such as numpy arrays, that lie in it.
    pub buffers: Count,
}

impl Held {
    /// What was leased just now.
    pub fn new(lease: client::Batch, mixer: &str) -> Self {
        let (tensors, buffers) = (Count::default(), Count::default());
        Self { lease, mixer: mixer.to_owned(), pid: std::process::id(), tensors, buffers }
    }

    /// Whether this is the process that leased it.
    pub fn check(&self) -> PyResult<()> {
        if self.pid == std::process::id() {
            Ok(())
        } else {
            Err(MixdError::new_err(RingError::Forked(self.pid).to_string()))
        }
    }

    /// Which batch it is, and what keeps it: for people.
    pub fn describe(&self) -> String {
        let counts = [(&self.tensors, "tensor"), (&self.buffers, "numpy array or other buffer")];
        let counts = counts.map(|(count, what)| (count.0.load(Ordering::Relaxed), what));
        let by: Vec<String> =
            counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} × {what}")).collect();
        let by = if by.is_empty() { "the batch itself".to_owned() } else { by.join(", ") };
        format!("{} (by {by})", self.lease.place())
    }
}

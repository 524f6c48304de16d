//! `mixd` decodes and resizes every image of a data set once per machine, mixes batches (mixup) and publishes them in
//! shared memory to trainer processes.
//!
//! Reading order is the order below: words first, then what is computed, then who computes it, then who asks for it.

#![cfg_attr(
    not(test),
    warn(clippy::print_stdout, clippy::print_stderr, reason = "they panic where nobody reads what they print")
)]

// The words.
pub mod batch;
pub mod columns;
pub mod format;
pub mod spec;
pub mod status;
pub mod types;
// What is computed.
pub mod decode;
pub mod mix;
pub mod plan;
pub mod render;
pub mod rng;
pub mod source;
pub mod stamp;
// Who computes it.
pub mod cpus;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod pipeline;
pub mod ring;
pub mod stats;
pub mod store;
pub mod sync;
pub mod usage;
// Who asks for it.
pub mod cli;
pub mod client;
pub mod control;
#[cfg(feature = "torch")]
pub mod train;
pub mod view;
pub mod wire;

#[cfg(test)]
mod fixtures;

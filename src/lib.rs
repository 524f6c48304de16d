//! Batches of images from the `mixd` daemon, which decodes and augments them once per machine and publishes them in shared memory.
//!
//! A trainer uses [`client`], which attaches to a feed, [`spec`], which says what the feed delivers, [`batch`] with its [`columns`], which
//! is what arrives, and [`types`] and [`status`]. Without the default feature `daemon` the crate ends with [`client`]. The modules that the
//! documentation does not list are public for mixd's program, tests and benchmarks, and may change with any version.
//!
//! A module imports only modules that are declared above it (`tests/layers.rs` checks this), so the order below is also the order to read in.

#![cfg_attr(
    not(test),
    warn(clippy::print_stdout, clippy::print_stderr, reason = "they panic where nobody reads what they print")
)]

// The vocabulary: sizes, element types, what a batch is, what a feed is asked to deliver.
pub mod types;
#[doc(hidden)]
pub mod escape;
pub mod operation;
#[doc(hidden)]
pub mod format;
pub mod columns;
pub mod batch;
pub mod spec;
pub mod status;

// From the daemon to a trainer: shared memory, device memory, the control protocol.
#[doc(hidden)]
pub mod sync;
#[doc(hidden)]
pub mod usage;
#[doc(hidden)]
pub mod memory;
#[doc(hidden)]
pub mod ring;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod cuda;
#[doc(hidden)]
pub mod wire;
pub mod client;

// What a batch is made of: plans, samples, views, mixes.
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod rng;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod plan;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod stamp;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod source;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod decode;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod render;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod store;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod cpus;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod mix;

// Who makes them: the stages, the daemon, the command line.
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod stats;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod verdict;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod pipeline;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod control;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod pack;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod view;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod lesson;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod web;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod cli;

#[cfg(test)]
mod fixtures;

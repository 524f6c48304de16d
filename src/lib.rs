//! `mixd` decodes and resizes every image of a data set once per machine, mixes batches (mixup) and publishes them in
//! shared memory to trainer processes.
//!
//! Reading order is the order below: words first, then what is computed, then who computes it, then who asks for it.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(test)]
mod fixtures;
pub mod types;
pub mod batch;
pub mod dataset;
pub mod image;
pub mod mix;
#[cfg(feature = "torch")]
pub mod train;
pub mod view;

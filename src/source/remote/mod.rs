//! Objects in stores: S3, Google's, Azure's, and web servers, read by ranges through a cache on disk.
//!
//! `profile.rs` completes credentials from files, `process.rs` has a program give them, `store.rs` makes single requests, `disk.rs` keeps the blocks of objects, `fetch.rs` decides what is fetched when and how often, `ahead.rs` what
//! is kept for those who announced that they will read it, `client.rs` is what data sets use. All of that is there with the feature `cloud`; without it addresses are refused by name.

#[cfg(feature = "cloud")]
mod ahead;
#[cfg(feature = "cloud")]
mod client;
#[cfg(feature = "cloud")]
mod disk;
#[cfg(feature = "cloud")]
mod fetch;
#[cfg(not(feature = "cloud"))]
mod none;
#[cfg(feature = "cloud")]
mod object;
mod options;
#[cfg(feature = "cloud")]
mod process;
#[cfg(feature = "cloud")]
mod profile;
#[cfg(feature = "cloud")]
mod store;
#[cfg(feature = "cloud")]
mod trouble;
mod url;

#[cfg(feature = "cloud")]
pub use client::{Remote, RemoteError, RemoteFile};
#[cfg(feature = "cloud")]
pub use fetch::Counters;
#[cfg(not(feature = "cloud"))]
pub use none::RemoteFile;
pub use options::{DiskCache, StoreOptions};
#[cfg(feature = "cloud")]
pub use profile::Variables;
#[cfg(feature = "cloud")]
pub use store::Found;
pub use url::{Scheme, Url};

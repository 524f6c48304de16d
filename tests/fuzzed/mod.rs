//! What is run over hostile bytes: one function a target of `make fuzz`, over whatever the fuzzer comes up with there, and over the seeds in
//! `fuzz/corpus` in `tests/corpora.rs`. A body panics where the product breaks a promise.
#![allow(missing_docs, reason = "a name a target; the files say what is checked")]

pub mod archive;
pub mod binaries;
pub mod cache;
pub mod config;
pub mod cursor;
pub mod image;
pub mod jpeg;
pub mod labels;
pub mod proto;
pub mod recipe;
pub mod ring;
pub mod shard;
pub mod table;
mod script;
mod views;

/// What a target does with bytes.
type Body = fn(&[u8]);

/// Every target and its body.
pub const TARGETS: [(&str, Body); 13] = [
    ("archive", archive::archive),
    ("binaries", binaries::binaries),
    ("cache", cache::cache),
    ("config", config::config),
    ("cursor", cursor::cursor),
    ("image", image::image),
    ("jpeg", jpeg::jpeg),
    ("labels", labels::labels),
    ("proto", proto::proto),
    ("recipe", recipe::recipe),
    ("ring", ring::ring),
    ("shard", shard::shard),
    ("table", table::table),
];

/// A folder in main memory, where there is one.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary folder can be made")
}

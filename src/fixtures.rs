//! Where tests find the reference fixtures.

use std::path::{Path, PathBuf};

/// The folder of golden values: `$MIXD_REFERENCE`, else `../shared/reference`; says so where there is none.
pub fn reference() -> Option<PathBuf> {
    let path = std::env::var_os("MIXD_REFERENCE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/reference"), PathBuf::from);
    if path.is_dir() {
        return Some(path);
    }
    eprintln!("left out: no reference fixtures at {} (set MIXD_REFERENCE)", path.display());
    None
}

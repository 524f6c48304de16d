//! Where tests find the reference fixtures.

use std::io::Write;
use std::path::{Path, PathBuf};

/// Says that a test was left out, past the harness, which shows what passing tests print to nobody.
fn say_left_out(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    writeln!(std::io::stderr(), "left out: {test}: {why}").expect("standard error is open");
}

/// The folder of golden values: `$MIXD_REFERENCE`, else `../shared/reference`; says so where there is none.
pub fn reference() -> Option<PathBuf> {
    let path = std::env::var_os("MIXD_REFERENCE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/reference"), PathBuf::from);
    if path.is_dir() {
        return Some(path);
    }
    say_left_out(&format!("no reference fixtures at {} (set MIXD_REFERENCE)", path.display()));
    None
}

/// The folder of the full Imagenette (`train/` and `val/` in it): `$MIXD_IMAGENETTE`, a folder or an archive; says so where
/// the variable is not set.
pub fn imagenette() -> Option<PathBuf> {
    let Some(path) = std::env::var_os("MIXD_IMAGENETTE") else {
        say_left_out("no full Imagenette (set MIXD_IMAGENETTE to its folder or archive)");
        return None;
    };
    let source = crate::source::open(Path::new(&path), None, &mut |_| {}).expect("MIXD_IMAGENETTE is usable");
    let first = Path::new(&source.location()).join(source.name(crate::types::Split::Train, 0));
    Some(first.ancestors().nth(3).expect("root/train/class/file").to_owned())
}

#[cfg(feature = "cuda")]
#[path = "../tests/cuda_on_cpu/mod.rs"]
mod cuda_on_cpu;

/// A CUDA device: the machine's first, or where there is none one that runs on the processor; with `MIXD_TEST_DEVICE` set it must be the former.
#[cfg(feature = "cuda")]
pub fn gpu() -> std::sync::Arc<crate::cuda::Gpu> {
    use std::sync::{Arc, OnceLock};
    // Open to the end: a true device takes its time to open.
    static GPU: OnceLock<Arc<crate::cuda::Gpu>> = OnceLock::new();
    let open = || {
        match crate::cuda::Gpu::open(0) {
            Ok(gpu) => return gpu,
            Err(error) if std::env::var_os("MIXD_TEST_DEVICE").is_some() => panic!("{error}"),
            Err(_) => cuda_on_cpu::load(),
        }
        crate::cuda::Gpu::open(0).expect("a device on the processor")
    };
    Arc::clone(GPU.get_or_init(open))
}

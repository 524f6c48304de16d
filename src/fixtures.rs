//! Where tests find golden values and data sets (docs/spec/golden.md).

use std::io::Write;
use std::path::{Path, PathBuf};

/// Says that a test was left out, past the harness, which shows what passing tests print to nobody.
pub fn say_left_out(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    writeln!(std::io::stderr(), "left out: {test}: {why}").expect("standard error is open");
}

/// The folder of golden values: `tests/golden` of this repository, or `$MIXD_GOLDEN` where the test binary runs elsewhere.
///
/// # Panics
/// When it is missing.
pub fn golden() -> PathBuf {
    let path = std::env::var_os("MIXD_GOLDEN")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"), PathBuf::from);
    assert!(path.is_dir(), "no golden values at {} (set MIXD_GOLDEN to the repository's tests/golden)", path.display());
    path
}

/// The larger set of golden values, where there is one: `$MIXD_REFERENCE`, which must exist, else `../shared/reference`.
fn larger() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("MIXD_REFERENCE").map(PathBuf::from) {
        assert!(path.is_dir(), "MIXD_REFERENCE is no folder: {}", path.display());
        return Some(path);
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/reference");
    path.is_dir().then_some(path)
}

/// Every folder of golden values, in one format: [`golden`], then the larger set. A test runs over all of them.
pub fn roots() -> impl Iterator<Item = PathBuf> {
    std::iter::once(golden()).chain(larger())
}

/// The files, archives and layouts that people really have, where there is the larger set; says so where it is missing.
///
/// # Panics
/// When `$MIXD_REFERENCE` has none.
pub fn wild() -> Option<PathBuf> {
    let wild = larger().map(|root| root.join("wild"));
    if let Some(wild) = wild.filter(|wild| wild.is_dir()) {
        return Some(wild);
    }
    assert!(std::env::var_os("MIXD_REFERENCE").is_none(), "there is no wild/ in MIXD_REFERENCE");
    say_left_out("no wild set (set MIXD_REFERENCE to the folder that holds wild/)");
    None
}

/// The folder of the full Imagenette (`train/` and `val/` in it): `$MIXD_IMAGENETTE`, a folder or an archive; says so where
/// the variable is not set.
pub fn imagenette() -> Option<PathBuf> {
    let Some(path) = std::env::var_os("MIXD_IMAGENETTE") else {
        say_left_out("no full Imagenette (set MIXD_IMAGENETTE to its folder or archive)");
        return None;
    };
    let source = crate::source::open(&crate::source::DataSet::at(Path::new(&path)), &mut |_| {})
        .expect("MIXD_IMAGENETTE is usable");
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

/// Kolmogorov–Smirnov: `values` follow the law whose quantiles at `draw.q` stand under `name`.
pub fn assert_law(tensors: &safetensors::SafeTensors<'_>, name: &str, values: &[f64]) {
    let numbers = |name: &str| -> Vec<f64> {
        let data = tensors.tensor(name).unwrap().data();
        data.chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap())).collect()
    };
    let (q, quantiles, n) = (numbers("draw.q"), numbers(name), values.len() as f64);
    assert!(!quantiles.is_empty() && q.len() == quantiles.len());
    let worst = q.iter().zip(&quantiles).fold(0.0_f64, |worst, (&q, &quantile)| {
        let below = values.iter().filter(|&&value| value < quantile - 1e-9).count() as f64 / n;
        let up_to = values.iter().filter(|&&value| value <= quantile + 1e-9).count() as f64 / n;
        worst.max(below - q).max(q - up_to)
    });
    assert!(worst <= 1.95 / n.sqrt() + 0.003, "{name}: D = {worst}");
}

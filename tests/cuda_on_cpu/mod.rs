//! The CUDA driver that runs on the processor (`driver.cpp`), for tests.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Loads it into this process: what is loaded already is found by its name wherever it lies.
pub fn load() {
    for name in ["libcuda.so.1", "libnvrtc.so.1"] {
        // SAFETY: our own library, which does nothing when it is loaded and is never unloaded.
        #[expect(unsafe_code, reason = "loads a library")]
        let library = unsafe { libloading::Library::new(libraries().join(name)) };
        std::mem::forget(library.expect("built just now"));
    }
}

/// The folder of its libraries, to be put into `LD_LIBRARY_PATH`; built when it is first asked for.
pub fn libraries() -> PathBuf {
    let exe = std::env::current_exe().expect("a test has a program");
    let home = exe.ancestors().nth(2).expect("target/profile/deps/test").join("cuda_on_cpu");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda_on_cpu/build.sh");
    let built = Command::new(script).arg(home).output().expect("bash is here");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    String::from_utf8(built.stdout).expect("a path").trim().into()
}

//! The CUDA driver that runs on the processor (`driver.cpp`), for tests.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of its libraries, to be put into `LD_LIBRARY_PATH`; built when it is first asked for.
pub fn libraries() -> PathBuf {
    let exe = std::env::current_exe().expect("a test has a program");
    let home = exe.ancestors().nth(2).expect("target/profile/deps/test").join("cuda_on_cpu");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda_on_cpu/build.sh");
    let built = Command::new(script).arg(home).output().expect("bash is here");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    String::from_utf8(built.stdout).expect("a path").trim().into()
}

//! Compiles the control plane's protobuf, and lets what is built find libtorch at run time.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let control = protox::compile(["proto/mixd/v1/control.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(control)?;

    // Set by torch-sys, so only with feature `torch`. The rpath spares users LD_LIBRARY_PATH.
    if let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
    }
    Ok(())
}

//! Compiles the control plane's protobuf, and lets what is built find libtorch at run time.

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let control = protox::compile(["proto/mixd/v1/control.proto"], ["proto"])?;
    let empty = ["GetStatusRequest", "ListFeedsRequest", "DrainRequest", "DrainReply", "ShutdownRequest"];
    let generate = || {
        let generate = tonic_prost_build::configure();
        empty.iter().fold(generate, |generate, name| generate.extern_path(format!(".mixd.v1.{name}"), "()"))
    };
    // The messages, which src/wire/convert.rs alone sees.
    generate().build_client(false).build_server(false).compile_fds(control.clone())?;
    // The service over the types of src/wire; its codec converts them.
    let dir = PathBuf::from(std::env::var("OUT_DIR")?).join("service");
    std::fs::create_dir_all(&dir)?;
    let service = generate().out_dir(dir).extern_path(".mixd.v1", "crate::wire").codec_path("crate::wire::Codec");
    service.compile_fds(control)?;

    // Set by torch-sys, so only with feature `torch`. The rpath spares users LD_LIBRARY_PATH.
    if let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
    }
    Ok(())
}

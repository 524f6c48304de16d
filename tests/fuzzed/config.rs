//! `mixd.toml`.

use std::ffi::OsString;

/// Reads the text as the file of two commands, which between them have every option of a feed and of a daemon.
pub fn config(text: &[u8]) {
    // Files that a text names are not the test's.
    if text.windows(5).any(|part| part == b".toml") {
        return;
    }
    let dir = super::folder();
    let path = dir.path().join("mixd.toml");
    std::fs::write(&path, text).expect("the folder is writable");
    for command in ["plan", "serve"] {
        let args = ["mixd", command, "--config"].map(OsString::from);
        mixd::cli::accepts(args.into_iter().chain([path.clone().into()]));
    }
}

//! The command `mixd` under another name, for a build with feature `torch` beside one without: see `cli::main`.

use std::process::ExitCode;

fn main() -> ExitCode {
    mixd::cli::main()
}

//! The command `mixd`.

use std::process::ExitCode;

fn main() -> ExitCode {
    mixd::cli::main()
}

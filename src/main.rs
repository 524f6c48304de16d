//! The command `mixd`: parse, run, report.

use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match mixd::cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return error.report(),
    };
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mixd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

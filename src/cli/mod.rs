//! The command line: one file a command.

mod bench;
mod bench_trainer;
mod config_file;
mod options;
mod own_daemon;
mod plan;
mod plot;
mod preview;
mod replay;
mod serve;
mod status;
mod stop;
#[cfg(feature = "torch")]
mod train;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

/// Decodes images once per machine, mixes batches and serves them to trainers through shared memory.
#[derive(Debug, Parser)]
#[command(name = "mixd", version, max_term_width = 120)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Read options from this file; the command line and MIXD_… variables go before it.
    #[arg(long, global = true, env = "MIXD_CONFIG", value_name = "mixd.toml")]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    #[cfg(feature = "torch")]
    Train(train::Train),
    Bench(bench::Bench),
    #[command(hide = true)]
    BenchTrainer(bench_trainer::BenchTrainer),
    Replay(replay::Replay),
    Plan(plan::Plan),
    Preview(preview::Preview),
    Plot(plot::Plot),
    Status(status::Status),
    Stop(stop::Stop),
}

/// Why there is nothing to run.
pub enum ParseFailure {
    /// Bad usage, or a request for help.
    Usage(clap::Error),
    /// A bad configuration file.
    Config(anyhow::Error),
}

impl ParseFailure {
    /// Prints it and gives the exit code: 0 for help, 2 otherwise.
    pub fn report(self) -> ExitCode {
        match self {
            Self::Usage(error) => {
                let _ = error.print();
                ExitCode::from(error.exit_code() as u8)
            }
            Self::Config(error) => {
                eprintln!("mixd: {error:#}");
                ExitCode::from(2)
            }
        }
    }
}

/// Reads the command line, the environment and the configuration file.
///
/// # Errors
/// When either does not make sense.
pub fn parse(args: impl Iterator<Item = OsString>) -> Result<Cli, ParseFailure> {
    let mut args: Vec<OsString> = args.collect();
    let command = Cli::command();
    let matches = command.clone().try_get_matches_from(&args);
    // Before the file was read a required option may be missing; then only the file's path counts.
    let (path, given) = match matches {
        Ok(matches) => match config_file::path(&matches) {
            None => return from(&command, &matches),
            Some(path) => (path, matches),
        },
        Err(error) => {
            let lenient = config_file::lenient(&command).ignore_errors(true).get_matches_from(&args);
            match config_file::path(&lenient) {
                Some(path) if error.kind() == clap::error::ErrorKind::MissingRequiredArgument => (path, lenient),
                _ => return Err(ParseFailure::Usage(error)),
            }
        }
    };
    args.extend(config_file::arguments(&path, &command, &given).map_err(ParseFailure::Config)?);
    from(&command, &command.clone().try_get_matches_from(&args).map_err(ParseFailure::Usage)?)
}

fn from(command: &clap::Command, matches: &clap::ArgMatches) -> Result<Cli, ParseFailure> {
    Cli::from_arg_matches(matches).map_err(|error| ParseFailure::Usage(error.format(&mut command.clone())))
}

impl Cli {
    /// Runs the command.
    ///
    /// # Errors
    /// One line, ending with the remedy.
    pub fn run(self) -> anyhow::Result<()> {
        let level = if matches!(self.command, Command::Serve(_)) { "mixd=info" } else { "mixd=warn" };
        let filter = tracing_subscriber::EnvFilter::try_from_default_env();
        tracing_subscriber::fmt()
            .with_env_filter(filter.unwrap_or_else(|_| level.into()))
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .init();
        match self.command {
            Command::Serve(serve) => serve.run(),
            #[cfg(feature = "torch")]
            Command::Train(train) => train.run(),
            Command::Bench(bench) => bench.run(),
            Command::BenchTrainer(trainer) => trainer.run(),
            Command::Replay(replay) => replay.run(),
            Command::Plan(plan) => plan.run(),
            Command::Preview(preview) => preview.run(),
            Command::Plot(plot) => plot.run(),
            Command::Status(status) => status.run(),
            Command::Stop(stop) => stop.run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_option_has_a_variable() {
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            for arg in command.get_arguments().filter(|arg| arg.get_long().is_some() && !arg.is_hide_set()) {
                let expected = format!("MIXD_{}", arg.get_long().unwrap().to_uppercase().replace('-', "_"));
                assert_eq!(arg.get_env().and_then(|env| env.to_str()), Some(&*expected), "{}", command.get_name());
            }
        }
    }
}

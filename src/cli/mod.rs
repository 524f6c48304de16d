//! The command line: one file a command, folders for `bench` and `train`.

mod bench;
mod config_file;
mod doctor;
mod generate;
mod help;
mod index;
mod options;
mod own_daemon;
mod pack;
mod plan;
mod plot;
mod preview;
mod recipe;
mod replay;
mod rows;
mod serve;
mod service;
mod signals;
mod status;
mod stop;
mod top;
mod train;

use crate::escape::escaped;
use crate::mix::MixerKind;
use anyhow::Context;
use clap::{FromArgMatches, Parser, Subcommand};
use serve::LogFormat;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// Decodes images once per machine, mixes batches and serves them to trainers through shared memory.
#[derive(Debug, Parser)]
#[command(name = "mixd", version, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Read options from this file; the command line and MIXD_… variables go before it.
    #[arg(long, global = true, env = "MIXD_CONFIG", value_name = "mixd.toml")]
    config: Option<PathBuf>,
}

/// Libraries that log addresses and headers with what is secret in them: never shown, whatever `RUST_LOG` says.
const SECRETIVE: [&str; 5] = ["object_store", "reqwest", "hyper", "h2", "rustls"];

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<serve::Serve>),
    Train(Box<train::Train>),
    Bench(Box<bench::Bench>),
    #[command(hide = true)]
    BenchTrainer(Box<bench::BenchTrainer>),
    Replay(Box<replay::Replay>),
    Plan(Box<plan::Plan>),
    Preview(Box<preview::Preview>),
    Pack(pack::Pack),
    Index(index::Index),
    Recipe(recipe::PrintRecipe),
    Plot(plot::Plot),
    Status(status::Status),
    Top(top::Top),
    Stop(stop::Stop),
    Doctor(doctor::Doctor),
    Generate(generate::Generate),
    Help(help::Help),
}

/// Why there is nothing to run.
enum ParseFailure {
    /// Bad usage, or a request for help.
    Usage(clap::Error),
    /// A bad configuration file.
    Config(anyhow::Error),
}

impl ParseFailure {
    /// Prints it and gives the exit code: 0 for help, 2 otherwise.
    fn report(self) -> ExitCode {
        match self {
            Self::Usage(error) => {
                let _ = error.print();
                ExitCode::from(error.exit_code() as u8)
            }
            Self::Config(error) => {
                complain(&error);
                ExitCode::from(2)
            }
        }
    }
}

/// The program: parse, run, report.
pub fn main() -> ExitCode {
    // Handled in whatever way, a file that meets a limit of its size is an error where it is written, and no death.
    let too_large = rustix::process::Signal::XFSZ.as_raw();
    let _ = signal_hook::flag::register(too_large, Arc::default());
    let cli = match parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return error.report(),
    };
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// Says what went wrong, if anybody reads it, with each cause that is not in the words of what it caused already.
fn complain(error: &anyhow::Error) {
    let mut words = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !words.contains(&cause) {
            words = format!("{words}: {cause}");
        }
    }
    let _ = writeln!(io::stderr(), "mixd: {words}");
}

/// Writes a result to standard output.
///
/// # Errors
/// Where it cannot be written, but for a reader that has read enough, such as `head`.
fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}

/// Becomes `mixd-torch`, the same program built with feature `torch`, with the same arguments; returns only why it could not. Every
/// program that links libtorch loads it before `main`, which takes longer than most commands take altogether.
fn hand_over() -> anyhow::Error {
    let become_it = || -> anyhow::Result<std::convert::Infallible> {
        let path = program()?.with_file_name("mixd-torch");
        let error = std::process::Command::new(&path).args(std::env::args_os().skip(1)).exec();
        Err(error).with_context(|| {
            format!("cannot start {}, which this command needs (build it with `make build`)", escaped(&path))
        })
    };
    become_it().unwrap_err()
}

/// The program `mixd`, also where this is the one beside it.
fn program() -> anyhow::Result<PathBuf> {
    Ok(std::env::current_exe().context("cannot find the mixd command")?.with_file_name("mixd"))
}

/// Whether a command line, with the environment and its configuration file, is one that runs.
pub fn accepts(args: impl Iterator<Item = OsString>) -> bool {
    parse(args).is_ok()
}

/// Reads the command line, the environment and the configuration file.
///
/// # Errors
/// When either does not make sense.
fn parse(args: impl Iterator<Item = OsString>) -> Result<Cli, ParseFailure> {
    let mut args: Vec<OsString> = args.collect();
    let command = help::command();
    let matches = command.clone().try_get_matches_from(&args);
    // Before the file was read a required option may be missing; then only the file's path counts.
    let (path, given) = match matches {
        Ok(matches) => match config_file::path(&matches) {
            None => return from(&command, &matches),
            Some(path) => (path, matches),
        },
        Err(error) if error.kind() != clap::error::ErrorKind::MissingRequiredArgument => {
            return Err(ParseFailure::Usage(error));
        }
        Err(error) => {
            let lenient = config_file::lenient(&command).ignore_errors(true).get_matches_from(&args);
            match config_file::path(&lenient) {
                Some(path) => (path, lenient),
                None => return Err(ParseFailure::Usage(error)),
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
    fn needs_torch(&self) -> bool {
        match &self.command {
            Command::Train(_) => true,
            Command::Serve(serve) => serve.pipeline.mixer == Some(MixerKind::Torch),
            Command::Replay(replay) => replay.pipeline.mixer == Some(MixerKind::Torch),
            Command::Preview(preview) => preview.pipeline.mixer == Some(MixerKind::Torch),
            _ => false,
        }
    }

    fn run(self) -> anyhow::Result<()> {
        if cfg!(not(feature = "torch")) && self.needs_torch() {
            return Err(hand_over());
        }
        let level = if matches!(self.command, Command::Serve(_)) { "mixd=info" } else { "mixd=warn" };
        let filter = EnvFilter::builder().with_default_directive(level.parse().expect("a valid directive"));
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .with_target(false)
            // A log that cannot be written, on a full disk or to a reader that is gone, ends nobody.
            .log_internal_errors(false);
        let lines = match &self.command {
            Command::Serve(serve) if serve.log_format == LogFormat::Json => lines.json().flatten_event(true).boxed(),
            _ => lines.boxed(),
        };
        tracing_subscriber::registry()
            .with(filter.from_env().unwrap_or_else(|_| level.into()))
            .with(filter_fn(|event| !SECRETIVE.iter().any(|target| event.target().starts_with(target))))
            .with(lines)
            .init();
        match self.command {
            Command::Serve(serve) => serve.run(),
            #[cfg(feature = "torch")]
            Command::Train(train) => train.run(),
            #[cfg(not(feature = "torch"))]
            Command::Train(_) => unreachable!("handed over"),
            Command::Bench(bench) => bench.run(),
            Command::BenchTrainer(trainer) => trainer.run(),
            Command::Replay(replay) => replay.run(),
            Command::Plan(plan) => plan.run(),
            Command::Preview(preview) => preview.run(),
            Command::Pack(pack) => pack.run(),
            Command::Index(index) => index.run(),
            Command::Recipe(recipe) => recipe.run(),
            Command::Plot(plot) => plot.run(),
            Command::Status(status) => status.run(),
            Command::Top(top) => top.run(),
            Command::Stop(stop) => stop.run(),
            Command::Doctor(doctor) => doctor.run(),
            Command::Generate(generate) => generate.run(),
            Command::Help(help) => help.run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        help::command().debug_assert();
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

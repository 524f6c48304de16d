//! `mixd.toml`: every option of the command line as a key.
//!
//! Keys at the top hold for every command that has the option; keys of a table such as `[bench]` hold for that command. Words
//! are joined by `-` or `_`. What the command line or the environment says goes before the file, and before keys that it excludes.

use super::help::suggestion;
use crate::escape::escaped;
use anyhow::{Context, bail};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// The file that was named, before or after the command.
pub fn path(matches: &ArgMatches) -> Option<PathBuf> {
    let after = matches.subcommand().and_then(|(_, own)| own.try_get_one::<PathBuf>("config").ok().flatten());
    after.or_else(|| matches.try_get_one("config").ok().flatten()).cloned()
}

/// The same command line with nothing required, to see what was given before the file is read.
pub fn lenient(command: &Command) -> Command {
    command.clone().mut_subcommands(|subcommand| subcommand.mut_args(|arg| arg.required(false)))
}

/// The options of the file at `path` that the command line and the environment leave open, as arguments.
pub fn arguments(path: &Path, command: &Command, matches: &ArgMatches) -> anyhow::Result<Vec<OsString>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", escaped(&path)))?;
    let table: Table = text.parse().with_context(|| format!("{} is not a TOML file", escaped(&path)))?;
    let (name, given) = matches.subcommand().context("no command was given (see `mixd help`)")?;
    let chosen = command.find_subcommand(name).expect("it was parsed");
    let own: Vec<&String> = table.get(name).and_then(Value::as_table).into_iter().flat_map(Table::keys).collect();
    let mut arguments = Vec::new();
    for (key, value) in &table {
        match (value, command.find_subcommand(key)) {
            (Value::Table(own), Some(_)) if key == name => {
                for (key, value) in own {
                    let Some(arg) = option(chosen, key) else {
                        let nearest = suggestion(key, longs(chosen));
                        bail!("{}: `{name}` has no option `{key}`{nearest} (see `mixd help {name}`)", escaped(&path));
                    };
                    add(&mut arguments, chosen, arg, given, value).with_context(|| escaped(&path).to_string())?;
                }
            }
            (Value::Table(_), Some(_)) => {}
            _ => match option(chosen, key) {
                Some(arg)
                    if !own.iter().any(|own| option(chosen, own).is_some_and(|own| own.get_id() == arg.get_id())) =>
                {
                    add(&mut arguments, chosen, arg, given, value).with_context(|| escaped(&path).to_string())?;
                }
                Some(_) => {}
                None if command.get_subcommands().any(|other| option(other, key).is_some()) => {}
                None => {
                    let nearest = suggestion(key, command.get_subcommands().flat_map(longs));
                    bail!("{}: no command has an option `{key}`{nearest} (see `mixd help`)", escaped(&path));
                }
            },
        }
    }
    Ok(arguments)
}

fn option<'a>(command: &'a Command, key: &str) -> Option<&'a Arg> {
    let long = key.replace('_', "-");
    command.get_arguments().find(|arg| arg.get_long() == Some(&long) && arg.get_id() != "config")
}

fn longs(command: &Command) -> impl Iterator<Item = &str> {
    command.get_arguments().filter_map(Arg::get_long)
}

fn add(
    arguments: &mut Vec<OsString>,
    command: &Command,
    arg: &Arg,
    given: &ArgMatches,
    value: &Value,
) -> anyhow::Result<()> {
    let is_given = |arg: &Arg| {
        matches!(given.value_source(arg.get_id().as_str()), Some(ValueSource::CommandLine | ValueSource::EnvVariable))
    };
    // Whichever of the two says so.
    let excludes =
        |one: &Arg, other: &Arg| command.get_arg_conflicts_with(one).iter().any(|arg| arg.get_id() == other.get_id());
    let is_excluded = |other: &Arg| is_given(other) && (excludes(arg, other) || excludes(other, arg));
    if is_given(arg) || command.get_arguments().any(is_excluded) {
        return Ok(());
    }
    let long = arg.get_long().expect("found by its name");
    let scalar = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => Ok(value.to_string()),
        _ => bail!("`{long}` must be a text, a number, true or false, or a list of those"),
    };
    let takes_value = arg.get_action().takes_values();
    let may_stand_alone = arg.get_num_args().is_some_and(|count| count.min_values() == 0);
    match value {
        Value::Boolean(true) if !takes_value || may_stand_alone => arguments.push(format!("--{long}").into()),
        Value::Boolean(false) if !takes_value || may_stand_alone => {}
        _ if !takes_value => bail!("`{long}` must be true or false"),
        Value::Array(values) => {
            let values = values.iter().map(scalar).collect::<Result<Vec<_>, _>>()?;
            arguments.push(format!("--{long}={}", values.join(",")).into());
        }
        value => arguments.push(format!("--{long}={}", scalar(value)?).into()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{ParseFailure, parse};
    use std::ffi::OsString;

    fn shown(text: &str, args: &[&str]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mixd.toml");
        std::fs::write(&path, text).unwrap();
        let start = ["mixd", args[0], "--config", path.to_str().unwrap()];
        match parse(start.iter().chain(&args[1..]).map(OsString::from)) {
            Ok(cli) => format!("{cli:?}"),
            Err(ParseFailure::Config(error)) => format!("{error:#}"),
            Err(ParseFailure::Usage(error)) => error.to_string(),
        }
    }

    #[test]
    fn the_command_line_goes_before_the_table_and_the_table_before_the_top() {
        let text = "data = \"/d\"\nworkers = 3\nbatch_size = 5\n[plan]\nbatch-size = 6\nepoch = 1\n";
        let plan = shown(text, &["plan"]);
        assert!(plan.contains("batch_size: Some(6)") && plan.contains("data: \"/d\""), "{plan}");
        let plan = shown(text, &["plan", "--batch-size", "7"]);
        assert!(plan.contains("batch_size: Some(7)"), "{plan}");
    }

    #[test]
    fn what_is_given_goes_before_keys_that_it_excludes() {
        let text = "batch_size = 5\nlr = 0.1\nthreads = 3\nsocket = \"/s\"";
        let train = shown(text, &["train", "--resume", "f", "--data", "/d"]);
        assert!(train.contains("resume: Some(\"f\")") && train.contains("threads: Some(3)"), "{train}");
        assert!(train.contains("batch_size: None") && train.contains("socket: None"), "{train}");
        let plan = shown("alpha = 0.3", &["plan", "--data", "/d", "--epoch=0", "--no-mixup"]);
        assert!(plan.contains(" mixup: None") && plan.contains("no_mixup: true"), "{plan}");
    }

    #[test]
    fn flags_and_lists_are_read() {
        let plan = shown("data = \"/d\"\nepoch = 0\nno_fold = true\nflip = 0.25\nmean = [0.1, 0.2, 0.5]", &["plan"]);
        assert!(
            plan.contains("flip: Some(0.25)") && plan.contains("no_fold: true") && plan.contains("0.1, 0.2, 0.5"),
            "{plan}"
        );
    }

    #[test]
    fn unknown_keys_are_refused_by_name() {
        let anywhere = shown("batchsize = 5", &["plan"]);
        assert!(anywhere.contains("no command has an option `batchsize`, did you mean `batch-size`?"), "{anywhere}");
        let own = shown("[plan]\nworkers = 5\n", &["plan"]);
        assert!(own.contains("`plan` has no option `workers` (see"), "{own}");
        assert!(shown("[plan]\nlamda = 5\n", &["plan"]).contains(", did you mean `lambda`?"));
    }

    #[test]
    fn an_option_whose_value_may_be_left_out_is_switched_by_true_and_false() {
        let serve = |value: &str| shown(&format!("data = \"/d\"\nweb = {value}"), &["serve"]);
        assert!(serve("true").contains("web: Some(127.0.0.1:9466)"), "{}", serve("true"));
        assert!(serve("false").contains("web: None"), "{}", serve("false"));
        assert!(serve("\"0.0.0.0:80\"").contains("web: Some(0.0.0.0:80)"), "{}", serve("\"0.0.0.0:80\""));
    }
}

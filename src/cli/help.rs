//! Help: options in groups, the common ones by `--help` and all by `--help-all`, and topics, each with an example.

use super::Cli;
use clap::{Arg, ArgAction, Args, Command, CommandFactory};

/// How alike two names must be for one to be suggested for the other (Jaro-Winkler).
const LIKENESS_MIN: f64 = 0.8;

/// A subject with its options.
struct Topic {
    name: &'static str,
    /// Heading of its options.
    heading: &'static str,
    text: &'static str,
    example: &'static str,
    /// Those that `--help` shows.
    common: &'static [&'static str],
    /// Those that only `--help-all` does.
    more: &'static [&'static str],
}

const TOPICS: [Topic; 9] = [
    Topic {
        name: "data",
        heading: "Data set",
        text: "A data set is a folder with a folder for each class, an archive of one, images with a table of labels, WebDataset shards, Parquet files, CIFAR \
               or MNIST. An archive is unpacked once, into the cache folder. Splits are found by their usual names; what is left out is counted and reported. \
               docs/datasets.md has every form.",
        example: "mixd serve --data photos --labels photos/labels.csv --holdout 0.1",
        common: &["data", "labels"],
        more: &["splits", "image-key", "label-key", "holdout", "max-samples", "samples", "exif", "on-bad-image"],
    },
    Topic {
        name: "stores",
        heading: "Object stores",
        text: "Shards and tables are read from s3://, gs://, az:// and https:// through a cache on a local disk, which daemons share. An outage is waited for. \
               docs/object-stores.md has credentials and limits.",
        example: "mixd serve --data s3://bucket/imagenet --disk-cache /scratch/mixd:200G",
        common: &[],
        more: &["disk-cache", "store-timeout"],
    },
    Topic {
        name: "memory",
        heading: "Memory and processors",
        text: "Each image is decoded once and kept, while memory lasts: --cache bounds it, --cache-file keeps it over restarts, --source bounds the size of the \
               images that random views are rendered from. `mixd status` names what bounds the trainers; `mixd doctor` checks the machine.",
        example: "mixd serve --data imagenette2-160 --cache 8G --workers 6 --cpus 0-7 --source 256",
        common: &["workers", "cache"],
        more: &["cpus", "cache-file", "source", "resize", "decode"],
    },
    Topic {
        name: "gpu",
        heading: "GPU",
        text: "--device cuda mixes batches on a GPU and leaves them there, where trainers of the same device read them without a copy; others get them copied \
               back. The CPU's bits are the GPU's.",
        example: "mixd serve --data imagenette2-160 --device cuda:0 --device-cache 4G",
        common: &["device"],
        more: &["device-cache", "mixer", "copy-back"],
    },
    Topic {
        name: "views",
        heading: "Views",
        text: "A recipe is a named set of defaults: `mixd recipe` lists them, `mixd recipe NAME` prints one as TOML to start your own from, every option below \
               goes before it. `mixd preview --views` draws each stage. docs/spec/recipes.md is the specification.",
        example: "mixd preview --data sample-data --recipe torchvision-v2 --size 160 --policy rand-augment:2,9 --views --out views.png",
        common: &["recipe", "size"],
        more: &[
            "grow",
            "crop",
            "interpolation",
            "flip",
            "policy",
            "color-jitter",
            "grayscale",
            "blur",
            "solarize",
            "warp",
            "fill",
            "erase",
            "repeats",
            "views-per-sample",
        ],
    },
    Topic {
        name: "mixing",
        heading: "Mixing",
        text: "Mixup blends each image with a partner, λ of it from Beta(α, α); CutMix pastes a box of the partner. The trainer's loss is mixed by the same λ. \
               `mixd plot` draws the laws.",
        example: "mixd preview --data sample-data --alpha 0.4 --cutmix 1 --mix-switch 0.5 --out preview.png",
        common: &["alpha", "cutmix"],
        more: &[
            "no-mixup",
            "no-cutmix",
            "mix-prob",
            "mix-switch",
            "lambda",
            "fold",
            "no-fold",
            "pairing",
            "mixup-off-epoch",
        ],
    },
    Topic {
        name: "batches",
        heading: "Batches",
        text: "A batch depends on its feed's options and its place alone: `mixd plan` prints what an epoch's batches hold, `mixd replay` makes any of them again, \
               bit for bit. Ranks each read their part of an epoch.",
        example: "mixd replay --data sample-data --epoch 3 --batch 1 --batch-size 32 --seed 7 --out batch.safetensors",
        common: &["split", "batch-size", "dtype", "seed"],
        more: &["shuffle", "last", "digest", "layout", "mean", "std", "rank", "world-size", "consumed", "slots"],
    },
    Topic {
        name: "sharing",
        heading: "Sharing",
        text: "Trainers that name the same share, with the same options, read the same batches in the same memory: mixed once for all. In a lossless share all \
               wait for the slowest; of the latest the slow skip batches.",
        example: "mixd train --socket /run/mixd.sock --share sweep-1 --delivery latest --start next-epoch",
        common: &["share"],
        more: &["delivery", "max-lag", "start", "reconnect"],
    },
    Topic {
        name: "watching",
        heading: "Watching",
        text: "`mixd status` and `mixd top` name what bounds the trainers; --web shows it in a browser, with the last batch and what was drawn for each image; \
               --metrics answers Prometheus. docs/observe.md has the rest.",
        example: "mixd serve --data imagenette2-160 --web 127.0.0.1:9466 --metrics 127.0.0.1:9465 --log-format json",
        common: &["web", "metrics"],
        more: &["log-format"],
    },
];

/// Print help on a command or a topic: data, stores, memory, gpu, views, mixing, batches, sharing, watching.
#[derive(Debug, Args)]
pub struct Help {
    /// A command or a topic.
    subject: Option<String>,
}

impl Help {
    pub fn run(self) -> anyhow::Result<()> {
        let mut all = command();
        let Some(subject) = self.subject else {
            let text = all.render_help();
            return super::print(|out| write!(out, "{text}"));
        };
        // With the options that all commands have.
        all.build();
        if let Some(of) = all.find_subcommand_mut(&subject) {
            let text = of.render_help();
            return super::print(|out| write!(out, "{text}"));
        }
        let Some(topic) = TOPICS.iter().find(|topic| topic.name == subject) else {
            let names = TOPICS.iter().map(|topic| topic.name).chain(all.get_subcommands().map(Command::get_name));
            anyhow::bail!("there is no command or topic `{subject}`{} (see `mixd help`)", suggestion(&subject, names));
        };
        super::print(|out| write!(out, "{}", page(topic, &all)))
    }
}

/// A topic: text, example, and its options.
fn page(topic: &Topic, all: &Command) -> String {
    let find = |name: &&'static str| {
        let of_all = all.get_subcommands().flat_map(Command::get_arguments);
        let arg = of_all.into_iter().find(|arg| arg.get_long() == Some(name)).expect("an option that is there");
        // Alone: what it requires or excludes is not on this page.
        let alone = Arg::new(arg.get_id()).long(*name).help(arg.get_help().cloned().unwrap_or_default());
        alone.action(arg.get_action().clone()).value_names(arg.get_value_names().unwrap_or_default().to_vec())
    };
    let Topic { name, heading, text, example, common, more } = topic;
    let command = Command::new(name).disable_help_flag(true).args(common.iter().chain(*more).map(find));
    let command = command.about(format!("{heading}\n\n{text}\n\nFor example:\n  {example}"));
    command.help_template("{about}\n\n{options}\n").max_term_width(120).render_help().to_string()
}

/// «, did you mean …», if one of the names is like it.
pub fn suggestion<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> String {
    let likeness = |other: &&str| strsim::jaro_winkler(name, other);
    let nearest = names.max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    let nearest = nearest.filter(|nearest| likeness(nearest) >= LIKENESS_MIN);
    nearest.map_or(String::new(), |nearest| format!(", did you mean `{nearest}`?"))
}

/// The command line, with options in groups and what is rarely needed left out of `--help`.
pub fn command() -> Command {
    let command = Cli::command().disable_help_subcommand(true).mut_subcommands(grouped);
    let topics: Vec<&str> = TOPICS.iter().map(|topic| topic.name).collect();
    command.after_help(format!("Topics, each with an example: mixd help {}", topics.join("|")))
}

fn grouped(command: Command) -> Command {
    let mut hidden = 0;
    let command = command.mut_args(|arg| {
        let long = arg.get_long().unwrap_or_default().to_owned();
        let Some(topic) = TOPICS.iter().find(|topic| topic.common.contains(&&*long) || topic.more.contains(&&*long))
        else {
            return arg;
        };
        let is_hidden = topic.more.contains(&&*long);
        hidden += usize::from(is_hidden);
        arg.help_heading(topic.heading).hide_short_help(is_hidden)
    });
    let flag = |name: &'static str, help: &'static str, action| Arg::new(name).long(name).help(help).action(action);
    let command = command.disable_help_flag(true).arg(flag("help", "Print help", ArgAction::HelpShort).short('h'));
    if hidden == 0 {
        return command;
    }
    let name = command.get_name().to_owned();
    command
        .arg(flag("help-all", "Print help with all options", ArgAction::HelpLong))
        .after_help(format!("{hidden} more options: mixd {name} --help-all. Topics with examples: mixd help."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_topic_has_an_example_that_runs_and_options_that_exist() {
        let all = command();
        let longs: BTreeSet<&str> =
            all.get_subcommands().flat_map(Command::get_arguments).filter_map(Arg::get_long).collect();
        let mut seen = BTreeSet::new();
        for topic in &TOPICS {
            assert!(super::super::accepts(topic.example.split(' ').map(Into::into)), "{}", topic.example);
            for option in topic.common.iter().chain(topic.more) {
                assert!(longs.contains(option) && seen.insert(*option), "{option}");
            }
            let options: Vec<&str> = topic.example.split(' ').filter_map(|word| word.strip_prefix("--")).collect();
            let own = |option: &&&str| topic.common.contains(*option) || topic.more.contains(*option);
            assert!(options.iter().filter(own).count() > 0, "{}", topic.example);
            let page = page(topic, &all);
            for option in topic.common.iter().chain(topic.more) {
                assert!(
                    page.contains(&format!("--{option} ")) || page.contains(&format!("--{option}\n")),
                    "{option}: {page}"
                );
            }
        }
        // What is no topic's is a command's own.
        let serve = all.find_subcommand("serve").unwrap();
        let loose = serve
            .get_arguments()
            .filter(|arg| !arg.is_hide_set())
            .filter_map(Arg::get_long)
            .filter(|long| !seen.contains(long));
        assert_eq!(loose.collect::<Vec<_>>(), ["socket", "help", "help-all"]);
        // The command's own description lists the topics.
        let about = all.find_subcommand("help").unwrap().get_about().unwrap().to_string();
        assert!(TOPICS.iter().all(|topic| about.contains(topic.name)), "{about}");
    }

    #[test]
    fn names_that_are_alike_are_suggested() {
        let names = || ["batch-size", "cache", "workers"].into_iter();
        assert_eq!(suggestion("batchsize", names()), ", did you mean `batch-size`?");
        assert_eq!(suggestion("worker", names()), ", did you mean `workers`?");
        assert_eq!(suggestion("zzz", names()), "");
    }
}

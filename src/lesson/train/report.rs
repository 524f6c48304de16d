//! What people see of a training: a progress bar or plain lines, the table at the end, and JSON lines in a file.

use super::{EpochResult, Event, Options};
use crate::spec::FeedSpec;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::fmt::{Display, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::path::Path;

/// Without a terminal a line is written every so many batches.
const BATCHES_A_LINE: u64 = 25;

/// Progress on standard error.
pub struct Progress {
    bar: Option<ProgressBar>,
    epochs: u64,
}

impl Progress {
    /// A bar on a terminal, lines otherwise.
    pub fn new(epochs: u64) -> Self {
        let style =
            ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg} {eta}").expect("a valid template");
        let bar = std::io::stderr().is_terminal().then(|| ProgressBar::new(0).with_style(style));
        Self { bar, epochs }
    }

    /// Shows an event.
    pub fn observe(&mut self, event: &Event) {
        match (event, &self.bar) {
            (&Event::Step { epoch, index, batches, running_loss, running_acc, .. }, Some(bar)) => {
                bar.set_length(batches);
                bar.set_prefix(format!("epoch {epoch} of {}", self.epochs));
                bar.set_position(index + 1);
                bar.set_message(format!("loss {running_loss:.3} accuracy {running_acc:.3}"));
            }
            (&Event::Step { epoch, index, batches, running_loss, running_acc, .. }, None) => {
                if (index + 1) % BATCHES_A_LINE == 0 || index + 1 == batches {
                    let epochs = self.epochs;
                    let done = index + 1;
                    say(format_args!(
                        "epoch {epoch} of {epochs}, batch {done}/{batches}: loss {running_loss:.3} accuracy {running_acc:.3}"
                    ));
                }
            }
            (Event::Validating, Some(bar)) => bar.set_message("validating"),
            (Event::Validating, None) => {}
            (Event::Epoch(result), Some(bar)) => bar.suspend(|| say(line(result))),
            (Event::Epoch(result), None) => say(line(result)),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// To standard error, if it can be written.
fn say(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn line(result: &EpochResult) -> String {
    let EpochResult { epoch, train_loss, train_acc, valid_ce, valid_acc, images_per_s, .. } = result;
    format!(
        "epoch {epoch}: train loss {train_loss:.3} accuracy {train_acc:.3}, valid cross-entropy {valid_ce:.3} \
         accuracy {valid_acc:.3}, {images_per_s:.0} images/s"
    )
}

/// The table of all epochs.
pub fn table(results: &[EpochResult]) -> String {
    let mut out = String::from(
        "epoch  train loss  train acc  last 30  valid CE  valid LS  valid acc  train s  valid s  images/s\n",
    );
    for r in results {
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{:>5}  {:>10.4}  {:>9.4}  {:>7.4}  {:>8.4}  {:>8.4}  {:>9.4}  {:>7.1}  {:>7.1}  {:>8.0}",
            r.epoch,
            r.train_loss,
            r.train_acc,
            r.last30_loss,
            r.valid_ce,
            r.valid_ls,
            r.valid_acc,
            r.train_s,
            r.valid_s,
            r.images_per_s
        );
    }
    out
}

/// The last validation's result, beside what guessing gives.
pub fn conclusion(results: &[EpochResult], classes: usize) -> String {
    let Some(EpochResult { valid_acc, .. }) = results.last() else { return String::new() };
    format!("validation accuracy {valid_acc:.2} of {classes} classes (chance {:.2})\n", 1.0 / classes as f64)
}

/// A file of JSON lines: the options, then every step and every epoch, each line as soon as it happens.
pub struct JsonLog(File);

impl JsonLog {
    /// Starts the file, or that of a resumed training anew at its end, with the options.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn open(path: &Path, options: &Options, feed: &FeedSpec, resumed: bool) -> std::io::Result<Self> {
        let mut file = OpenOptions::new();
        let mut log = Self(file.create(true).write(true).append(resumed).truncate(!resumed).open(path)?);
        let version = env!("CARGO_PKG_VERSION");
        log.write(
            &json!({"event": "start", "resumed": resumed, "version": version, "options": options, "feed": feed}),
        )?;
        Ok(log)
    }

    /// Writes an event.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn observe(&mut self, event: &Event) -> std::io::Result<()> {
        match *event {
            Event::Step { epoch, index, loss, running_loss, running_acc, .. } => self.write(&json!({
                "event": "step", "epoch": epoch, "index": index, "loss": loss,
                "running_loss": running_loss, "running_acc": running_acc,
            })),
            Event::Validating => Ok(()),
            Event::Epoch(result) => {
                let mut value = serde_json::to_value(result)?;
                value["event"] = "epoch".into();
                self.write(&value)
            }
        }
    }

    fn write(&mut self, value: &Value) -> std::io::Result<()> {
        self.0.write_all(format!("{value}\n").as_bytes())
    }
}

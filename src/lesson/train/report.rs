//! What people see of a training: a progress bar or plain lines, the table at the end, and JSON lines in a file.

use super::{EpochResult, Event, Options, ValidResult};
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
    let EpochResult { epoch, train_loss, train_acc, valid, images_per_s, .. } = result;
    let valid = valid.map_or_else(String::new, |ValidResult { ce, acc, .. }| {
        format!(" valid cross-entropy {ce:.3} accuracy {acc:.3},")
    });
    format!("epoch {epoch}: train loss {train_loss:.3} accuracy {train_acc:.3},{valid} {images_per_s:.0} images/s")
}

/// A column of the table: its heading, the digits after the point, and an epoch's value.
type Column = (&'static str, usize, fn(&EpochResult) -> Option<f64>);

const COLUMNS: [Column; 10] = [
    ("epoch", 0, |result| Some(result.epoch as f64)),
    ("train loss", 4, |result| Some(result.train_loss)),
    ("train acc", 4, |result| Some(result.train_acc)),
    ("last 30", 4, |result| Some(result.last30_loss)),
    ("valid CE", 4, |result| result.valid.map(|valid| valid.ce)),
    ("valid LS", 4, |result| result.valid.map(|valid| valid.ls)),
    ("valid acc", 4, |result| result.valid.map(|valid| valid.acc)),
    ("train s", 1, |result| Some(result.train_s)),
    ("valid s", 1, |result| result.valid.map(|valid| valid.seconds)),
    ("images/s", 0, |result| Some(result.images_per_s)),
];

/// The table of all epochs, without the columns for which no epoch has a value.
pub fn table(results: &[EpochResult]) -> String {
    let has_value = |(_, _, value): &&Column| results.iter().any(|result| value(result).is_some());
    let columns: Vec<&Column> = COLUMNS.iter().filter(has_value).collect();
    let heading: Vec<&str> = columns.iter().map(|(name, ..)| *name).collect();
    let mut out = heading.join("  ") + "\n";
    for result in results {
        let cell = |&&(name, digits, value): &&Column| match value(result) {
            Some(value) => format!("{value:>width$.digits$}", width = name.len()),
            None => format!("{:>width$}", "-", width = name.len()),
        };
        let cells: Vec<String> = columns.iter().map(cell).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{}", cells.join("  "));
    }
    out
}

/// The last epoch's result beside what guessing gives: the validation's, or without one the training loss.
pub fn conclusion(results: &[EpochResult], classes: usize) -> String {
    let Some(EpochResult { train_loss, valid, .. }) = results.last() else { return String::new() };
    match valid {
        Some(ValidResult { acc, .. }) => {
            format!("validation accuracy {acc:.2} of {classes} classes (chance {:.2})\n", 1.0 / classes as f64)
        }
        // The cross-entropy of equal probabilities, whatever the targets are.
        None => format!("training loss {train_loss:.3} of {classes} classes (guessing {:.3})\n", (classes as f64).ln()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn result(valid: Option<ValidResult>) -> EpochResult {
        EpochResult {
            epoch: 3,
            train_loss: 2.0,
            train_acc: 0.25,
            last30_loss: 1.5,
            train_s: 7.0,
            images_per_s: 900.0,
            valid,
        }
    }

    const VALID: ValidResult = ValidResult { ce: 1.25, ls: 1.75, acc: 0.5, seconds: 2.0 };

    #[test]
    fn what_was_not_validated_is_neither_shown_nor_logged() {
        let (with, without) = (result(Some(VALID)), result(None));
        assert_eq!(
            table(&[with]),
            "epoch  train loss  train acc  last 30  valid CE  valid LS  valid acc  train s  valid s  images/s\n    \
                 3      2.0000     0.2500   1.5000    1.2500    1.7500     0.5000      7.0      2.0       900\n"
        );
        assert_eq!(
            table(&[without]),
            "epoch  train loss  train acc  last 30  train s  images/s\n    3      2.0000     0.2500   1.5000      7.0       900\n"
        );
        // A training that was resumed on a data set that has lost its validation split.
        assert!(table(&[with, without]).ends_with(
            "    3      2.0000     0.2500   1.5000         -         -          -      7.0        -       900\n"
        ));
        assert_eq!(conclusion(&[without, with], 10), "validation accuracy 0.50 of 10 classes (chance 0.10)\n");
        assert_eq!(conclusion(&[with, without], 10), "training loss 2.000 of 10 classes (guessing 2.303)\n");
        assert_eq!(line(&without), "epoch 3: train loss 2.000 accuracy 0.250, 900 images/s");
        assert_eq!(
            line(&with),
            "epoch 3: train loss 2.000 accuracy 0.250, valid cross-entropy 1.250 accuracy 0.500, 900 images/s"
        );
    }

    #[test]
    fn results_are_flat_in_json_and_come_back() {
        for result in [result(Some(VALID)), result(None)] {
            let json = serde_json::to_value(result).unwrap();
            assert_eq!(json.get("valid_acc").and_then(Value::as_f64), result.valid.map(|valid| valid.acc));
            assert_eq!(json.as_object().unwrap().len(), if result.valid.is_some() { 10 } else { 6 });
            assert_eq!(serde_json::from_value::<EpochResult>(json).unwrap(), result);
        }
    }
}

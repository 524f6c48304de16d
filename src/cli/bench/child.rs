//! A trainer as the bench has it: a child process that counts a round when it is asked to.

use super::Bench;
use super::report::{Report, Touch};
use crate::cli::own_daemon::{ENDING, OwnDaemon};
use crate::spec::{FeedOptions, ShareName};
use anyhow::Context;
use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

/// How long a signal that has ended a trainer may take to end this process, and its daemon before.
const OWN_SIGNAL_TIMEOUT: Duration = Duration::from_secs(5);

/// A trainer; it is killed when this is dropped.
pub struct Trainer {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Trainer {
    /// Asks it to count a round.
    pub fn begin(&mut self) -> anyhow::Result<()> {
        Ok(writeln!(self.child.stdin.as_mut().expect("piped"))?)
    }

    /// What it says next.
    pub fn report(&mut self) -> anyhow::Result<Report> {
        let Some(line) = self.lines.next() else {
            let status = self.child.wait()?;
            // A terminal's Ctrl-C ends trainers and this process, in any order: this process is to end by it, too.
            if status.signal().is_some_and(|signal| ENDING.contains(&signal)) {
                std::thread::park_timeout(OWN_SIGNAL_TIMEOUT);
            }
            anyhow::bail!("a trainer ended early ({status}; its own message is above)");
        };
        Ok(serde_json::from_str(&line?)?)
    }
}

impl Drop for Trainer {
    fn drop(&mut self) {
        // An error only says that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Bench {
    /// Starts a trainer, in Python where an interpreter is given.
    pub(super) fn trainer(
        &self,
        python: Option<&PathBuf>,
        daemon: &OwnDaemon,
        warmup: u64,
        seed: u32,
        share: Option<ShareName>,
    ) -> anyhow::Result<Trainer> {
        let touch = match self.touch {
            Touch::Element => "element",
            Touch::All => "all",
        };
        let mut command = Command::new(python.map_or_else(crate::cli::program, |python| Ok(python.clone()))?);
        // What stands in variables has been read by this command, and is not meant for that one.
        let variables = std::env::vars_os().map(|(name, _)| name);
        variables.filter(|name| name.as_encoded_bytes().starts_with(b"MIXD_")).for_each(|name| {
            command.env_remove(name);
        });
        match python {
            Some(_) => command.args(["-m", "mixd.bench"]),
            None => command.arg("bench-trainer"),
        };
        command.arg("--socket").arg(daemon.socket());
        let options = [
            ("touch", touch.to_owned()),
            ("warmup", warmup.to_string()),
            ("images", self.images.unwrap_or(0).to_string()),
            ("seconds", (self.seconds / f64::from(self.rounds)).to_string()),
            ("step-us", self.step_us.to_string()),
            // Its daemon is not started again.
            ("reconnect", "0".to_owned()),
        ];
        command.args(options.map(|(key, value)| format!("--{key}={value}")));
        let seed = self.feed.seed.unwrap_or(0).wrapping_add(seed.into());
        let feed = FeedOptions { seed: Some(seed), ..self.feed.clone() };
        match python {
            // A loop in Python reads main memory.
            Some(_) => command.arg(format!("--feed={}", serde_json::to_string(&feed)?)),
            None => command.arg(format!("--device={}", self.batch_device())).args(feed.arguments()),
        };
        command.args(share.map(|name| format!("--share={name}")));
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start a trainer")?;
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Ok(Trainer { child, lines })
    }
}

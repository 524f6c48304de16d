//! A daemon of one's own: a separate process that ends with the command that started it.

use anyhow::{Context, bail};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A running `mixd serve` that belongs to this process. It ends when this is dropped, or when this process dies: its standard
/// input is a pipe that only this process holds.
pub struct OwnDaemon {
    child: Child,
    socket: PathBuf,
}

impl OwnDaemon {
    /// Starts a daemon on `data` and waits until it serves.
    ///
    /// # Errors
    /// When it does not come up; its own words are on standard error then.
    pub fn start(data: &Path, arguments: &[String]) -> anyhow::Result<Self> {
        let socket = crate::control::default_socket().with_file_name(format!("own-{}.sock", std::process::id()));
        let mut command = Command::new(std::env::current_exe().context("cannot find the mixd command")?);
        command.arg("serve").arg("--data").arg(data).arg("--socket").arg(&socket).arg("--until-eof").args(arguments);
        // What it was told here must not be told otherwise by a file that was meant for this command.
        command.env_remove("MIXD_CONFIG");
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "mixd=warn");
        }
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start the daemon")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line)?;
        if line.is_empty() {
            let status = child.wait()?;
            bail!("the daemon did not come up ({status}; its own message is above)");
        }
        Ok(Self { child, socket })
    }

    /// Where it serves.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for OwnDaemon {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

//! A daemon of one's own: a separate process that ends with the command that started it.

use super::options::DataArgs;
use anyhow::{Context, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Signals that end this process once its daemon has ended.
pub const ENDING: [i32; 3] = [SIGHUP, SIGINT, SIGTERM];

/// A running `mixd serve` that belongs to this process. It ends when this is dropped, or when this process dies: its standard
/// input is a pipe that only this process holds. A signal that ends this process waits until the daemon has ended.
pub struct OwnDaemon {
    /// Whoever holds it ends the daemon.
    child: Arc<Mutex<Child>>,
    socket: PathBuf,
}

fn lock(child: &Mutex<Child>) -> MutexGuard<'_, Child> {
    child.lock().unwrap_or_else(PoisonError::into_inner)
}

fn end(child: &mut Child) -> io::Result<ExitStatus> {
    drop(child.stdin.take());
    child.wait()
}

impl OwnDaemon {
    /// Starts a daemon on a data set with these options of `mixd serve`, and waits until it serves.
    ///
    /// # Errors
    /// When it does not come up; its own words are on standard error then.
    pub fn start(data: &DataArgs, arguments: &[OsString]) -> anyhow::Result<Self> {
        // No process id, which other containers that share the folder of sockets have, too.
        let mut name = [0; 8];
        rustix::rand::getrandom(&mut name, rustix::rand::GetRandomFlags::empty())?;
        let name = format!("own-{:016x}.sock", u64::from_ne_bytes(name));
        let socket = crate::client::default_socket().with_file_name(name);
        let mut command = Command::new(super::program()?);
        command.arg("serve").arg("--socket").arg(&socket).arg("--until-eof").args(arguments);
        let (options, variables) = data.arguments();
        command.args(options).envs(variables.into_iter().filter(|(_, value)| !value.is_empty()));
        // What it was told here must not be told otherwise by a file that was meant for this command.
        command.env_remove("MIXD_CONFIG");
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "mixd=warn");
        }
        // In a group of its own, so that a terminal's Ctrl-C reaches it through us only.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start the daemon")?;
        let stdout = child.stdout.take().expect("piped");
        let child = Arc::new(Mutex::new(child));
        // What this process was started to ignore stays ignored.
        let ending = ENDING.into_iter().filter(|&signal| !super::signals::is_ignored(signal));
        let (mut signals, ended) = (Signals::new(ending)?, Arc::clone(&child));
        let watch = move || {
            if let Some(signal) = signals.forever().next() {
                // Held to the end: the main thread, which loses its feeds now, waits for it before it reports that.
                let mut child = lock(&ended);
                let _ = end(&mut child);
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
        };
        std::thread::Builder::new().name("mixd-signals".to_owned()).spawn(watch)?;
        let daemon = Self { child, socket };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        if line.is_empty() {
            let status = end(&mut lock(&daemon.child))?;
            bail!("the daemon did not come up ({status}; its own message is above)");
        }
        Ok(daemon)
    }

    /// Where it serves.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for OwnDaemon {
    fn drop(&mut self) {
        let _ = end(&mut lock(&self.child));
    }
}

//! `mixd stop`: ends a daemon in order.

use super::options::SocketArgs;
use crate::client;
use clap::Args;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// End a daemon: trainers finish what is published first.
#[derive(Debug, Args)]
pub struct Stop {
    #[command(flatten)]
    socket: SocketArgs,
}

impl Stop {
    pub fn run(self) -> anyhow::Result<()> {
        let socket = self.socket.path();
        // Known before it is asked to go, so that its end can be waited for.
        let pid = client::status(&socket)?.pid;
        let process = Pid::from_raw(pid as i32).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        client::shutdown(&socket)?;
        if let Some(process) = process {
            let limit = rustix::time::Timespec { tv_sec: 10, tv_nsec: 0 };
            let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit))?;
            anyhow::ensure!(ended > 0, "the daemon with pid {pid} has not ended within 10 s (see its log)");
        }
        super::print(|out| writeln!(out, "mixd: the daemon with pid {pid} has ended"))
    }
}

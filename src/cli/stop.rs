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
        let peer = client::peer_pid(&socket)?.and_then(Pid::from_raw);
        let process = peer.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let pid = client::shutdown(&socket)?;
        let Some(process) = process else {
            return super::print(|out| {
                writeln!(out, "mixd: the daemon, whose process is not seen from here, is ending")
            });
        };
        let limit = rustix::time::Timespec { tv_sec: 10, tv_nsec: 0 };
        let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit))?;
        anyhow::ensure!(ended > 0, "the daemon with pid {pid} has not ended within 10 s (see its log)");
        super::print(|out| writeln!(out, "mixd: the daemon with pid {pid} has ended"))
    }
}

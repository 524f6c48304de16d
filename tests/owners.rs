//! Daemons that belong to processes: owners join and leave over the socket, die, and come again; and signals that a daemon is started to ignore.

mod common;

use common::{DEADLINE, Daemon, sample_data, until};
use mixd::client;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A daemon of a job, whose first owner is the pipe at its standard input.
struct JobDaemon {
    daemon: Daemon,
}

impl JobDaemon {
    fn start(linger: &str) -> Self {
        Self { daemon: Daemon::start(&["--linger", linger, "--key=the-key"]) }
    }

    fn join(&self, launcher: Option<&OwnedFd>) -> UnixStream {
        let mut stream = UnixStream::connect(self.daemon.socket()).unwrap();
        let descriptors: Vec<_> = launcher.iter().map(|launcher| launcher.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        }
        sendmsg(&stream, &[IoSlice::new(b"mixd-own")], &mut control, SendFlags::empty()).unwrap();
        let mut answer = [0; 64];
        let count = stream.read(&mut answer).unwrap();
        assert_eq!(&answer[..count], b"+the-key");
        stream
    }

    fn is_there(&self) -> bool {
        client::status(&self.daemon.socket()).is_ok()
    }

    fn ended(&mut self) -> ExitStatus {
        until("it ends", || self.daemon.child.try_wait().unwrap())
    }
}

fn leave(mut owner: UnixStream) {
    owner.write_all(b"q").unwrap();
}

/// A process that runs until it is killed.
fn launcher() -> (Child, OwnedFd) {
    let child = Command::new("sleep").arg("1000").spawn().unwrap();
    let descriptor = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
    (child, descriptor)
}

#[test]
fn a_daemon_ends_when_its_last_owner_leaves_in_order() {
    let mut job = JobDaemon::start("1000");
    let owners = [job.join(None), job.join(None)];
    job.daemon.close_stdin(b"q");
    let [first, last] = owners;
    leave(first);
    assert!(job.is_there());
    let left = Instant::now();
    leave(last);
    assert_eq!(job.ended().code(), Some(0));
    assert!(left.elapsed() < DEADLINE);
}

#[test]
fn a_daemon_outlives_a_restart_of_its_owners_and_ends_with_their_launcher() {
    let mut job = JobDaemon::start("1000");
    let (mut launcher, descriptor) = launcher();
    let first = job.join(Some(&descriptor));
    job.daemon.close_stdin(b"");
    // Dies without a word.
    drop(first);
    assert!(job.is_there());
    let second = job.join(Some(&descriptor));
    assert!(job.is_there());
    drop(second);
    assert!(job.is_there());
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    assert_eq!(job.ended().code(), Some(0));
}

#[test]
fn a_daemon_whose_owners_have_died_and_have_no_launcher_waits_for_others_for_a_while() {
    let mut job = JobDaemon::start("1.5");
    let owner = job.join(None);
    job.daemon.close_stdin(b"");
    drop(owner);
    let died = Instant::now();
    assert!(job.is_there());
    assert_eq!(job.ended().code(), Some(0));
    assert!(died.elapsed() > Duration::from_secs(1));
}

#[test]
fn without_linger_a_daemon_ends_with_its_last_owner_however_that_ends() {
    let mut job = JobDaemon::start("0");
    let owner = job.join(None);
    job.daemon.close_stdin(b"");
    assert!(job.is_there());
    drop(owner);
    assert_eq!(job.ended().code(), Some(0));
}

#[test]
fn rubbish_on_the_socket_is_hung_up_on_and_nothing_else_happens() {
    let daemon = Daemon::start(&[]);
    for rubbish in [
        &b"mixd-own with more behind it"[..],
        b"mixd-fds",
        b"mixd-fds0123456789abcdef",
        b"mixd",
        b"GET / HTTP/1.1\r\n\r\n",
        &[0; 5000],
    ] {
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(rubbish).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        // A reset is as good as an end.
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"+"), "{answer:?}");
    }
    client::status(&daemon.socket()).unwrap();
}

/// `nohup mixd serve`, and `mixd serve &` in a script, whose shell has background jobs ignore Ctrl-C.
#[test]
fn signals_that_a_daemon_was_started_to_ignore_do_not_end_it() {
    for (signal, name) in [(Signal::HUP, "HUP"), (Signal::INT, "INT")] {
        let dir = tempfile::tempdir().unwrap();
        let mut script = common::command("sh");
        script.args([
            "-c",
            &format!("trap '' {name}; exec \"$@\""),
            "sh",
            env!("CARGO_BIN_EXE_mixd"),
            "serve",
            "--data",
        ]);
        script.arg(sample_data()).arg("--socket").arg(dir.path().join("s")).arg("--until-eof");
        let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        until("it serves", || client::status(&dir.path().join("s")).ok());
        kill_process(Pid::from_child(&child), signal).unwrap();
        // Answered after the signal, which would have stopped it from opening feeds.
        let spec = mixd::spec::FeedSpec { batch_size: 8, ..mixd::spec::FeedSpec::train() };
        assert_eq!(client::attach(&dir.path().join("s"), &spec).unwrap().epoch().count(), 25, "{name}");
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}

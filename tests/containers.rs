//! Processes of several containers, as namespaces of their own make them, around one folder of sockets: process ids and tmpfs mean something else in
//! each, and nothing may depend on them.

mod common;

use common::trainer::{Oracle, Orders, Trainer};
use common::{Daemon, sample_data, stderr};
use mixd::spec::FeedSpec;
use mixd::types::ImageSize;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Runs what follows as process 1 of its own process ids, with a /dev/shm and /proc of its own, and ends it with this command.
const CONTAINER: [&str; 10] = [
    "unshare",
    "--mount",
    "--pid",
    "--ipc",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "sh",
    "-ec",
    "mount -t tmpfs -o size=64k tmpfs /dev/shm; exec \"$@\"",
];

fn container() -> Vec<&'static str> {
    let mut command = CONTAINER.to_vec();
    command.push("sh");
    command
}

/// Whether this machine lets this process make namespaces.
fn can_contain() -> bool {
    let [program, args @ ..] = &container()[..] else { unreachable!() };
    let made = Command::new(program).args(args).arg("true").output().is_ok_and(|made| made.status.success());
    if !made {
        common::left_out("no right to make namespaces here");
    }
    made
}

struct Contained(Child);

impl Contained {
    fn command(socket: &Path) -> Command {
        let [program, args @ ..] = &container()[..] else { unreachable!() };
        let mut command = common::command(program);
        command.args(args).arg(env!("CARGO_BIN_EXE_mixd")).args(["serve", "--data"]).arg(sample_data());
        command.arg("--socket").arg(socket).env("RUST_LOG", "mixd=error");
        command
    }

    fn daemon(socket: &Path) -> Self {
        let mut child = Self::command(socket).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("mixd: serving") && line.contains("(pid 1)"), "{line:?}");
        Self(child)
    }
}

impl Drop for Contained {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "run by the others, in a process of its own"]
fn trainer_process() {
    common::trainer::run();
}

fn spec(seed: u64) -> FeedSpec {
    FeedSpec { batch_size: 16, image_size: ImageSize::square(48), digest: true, seed, ..FeedSpec::train() }
}

/// Two daemons with the same process id, whose first feeds have the same number: each trainer reads the batches of the daemon that it attached to,
/// though it shares neither process ids nor /dev/shm with either.
#[test]
fn trainers_in_other_containers_read_the_batches_of_the_daemon_that_they_attached_to() {
    if !can_contain() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let sockets = ["a", "b"].map(|name| dir.path().join(name));
    let _daemons = sockets.each_ref().map(|socket| Contained::daemon(socket));
    let start = |(socket, seed): (&Path, u64)| {
        let orders = Orders::new(socket.to_owned(), spec(seed), 60, 0);
        Trainer::within(&container(), orders)
    };
    let mut trainers = [(&*sockets[0], 1), (&*sockets[1], 7), (&*sockets[0], 7)].map(start);
    let mut oracle = Oracle::new();
    for trainer in &mut trainers {
        trainer.finish();
        assert_eq!(trainer.read.len(), 60);
        oracle.check(trainer);
    }
    let first = trainers.each_ref().map(|trainer| trainer.read[0].1);
    assert!(first[0] != first[1] && first[1] == first[2]);
}

/// Life is known by locks, not by process ids: a daemon's socket stays its own.
#[test]
fn a_daemon_in_another_container_is_refused_the_socket_of_one_that_lives() {
    if !can_contain() {
        return;
    }
    let daemon = Daemon::start(&[]);
    let refused = Contained::command(&daemon.socket()).output().unwrap();
    assert!(stderr(&refused).contains(&format!("a daemon with pid {} already serves", daemon.child.id())));
    assert_eq!(daemon.attach(spec(1)).unwrap().epoch().count(), 13);
}

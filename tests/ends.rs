//! Every way to end: trainers and daemons that stop, die or are killed.

mod common;

use common::{DEADLINE, Daemon, mixd, refusal, run, sample_data, stderr, until};
use mixd::client::{self, ClientError, Reason};
use mixd::spec::FeedSpec;
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

fn spec() -> FeedSpec {
    FeedSpec { batch_size: 8, ..FeedSpec::train() }
}

/// design.md §8: a trainer dies.
#[test]
fn a_killed_trainers_feed_is_freed_and_others_read_on() {
    let daemon = Daemon::start(&[]);
    let mut other = daemon.attach(spec()).unwrap();
    let mut victim = daemon.trainer();
    assert_eq!(client::status(&daemon.socket()).unwrap().feeds.len(), 2);
    victim.kill().unwrap();
    victim.wait().unwrap();
    until("its feed closes", || (client::status(&daemon.socket()).unwrap().feeds.len() == 1).then_some(()));
    until("its ring is gone", || (daemon.memory("mixd-ring") == 1).then_some(()));
    for (index, batch) in other.epoch().enumerate() {
        assert_eq!(batch.unwrap().view().head.index, index as u64);
    }
}

#[test]
fn a_trainer_that_dies_while_it_attaches_leaves_no_feed() {
    let daemon = Daemon::start(&[]);
    let rings = || daemon.memory("mixd-ring");
    // 200 MB, which take the daemon long enough to allocate.
    let mut trainer = daemon.bench_trainer(&["--batch-size=64", "--size=512", "--warmup=0"]);
    until("its ring is being made", || (rings() == 1).then_some(()));
    trainer.kill().unwrap();
    trainer.wait().unwrap();
    until("its ring is gone", || (rings() == 0).then_some(()));
    assert_eq!(client::status(&daemon.socket()).unwrap().feeds.len(), 0);
}

/// Runs a command on a terminal, types Ctrl-C once `sign` is there, and sees what is left when the prompt would be back.
fn ctrl_c(command: &[&str], sign: &str) {
    use std::io::{Read, Write};
    let dir = tempfile::tempdir().unwrap();
    let command =
        format!("'{}' {} --data '{}'", env!("CARGO_BIN_EXE_mixd"), command.join(" "), sample_data().display());
    let mut terminal = common::command("script")
        .args(["-qefc", &command, "/dev/null"])
        .env("XDG_RUNTIME_DIR", dir.path())
        .env("RUST_LOG", "mixd=info")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("`script` is a part of every Debian");
    let (mut screen, mut output, mut bytes) = (String::new(), terminal.stdout.take().unwrap(), [0; 4096]);
    while !screen.contains(sign) {
        let read = output.read(&mut bytes).unwrap();
        assert!(read > 0, "it ended: {screen}");
        screen += &String::from_utf8_lossy(&bytes[..read]);
    }
    terminal.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
    let start = Instant::now();
    output.read_to_string(&mut screen).unwrap();
    terminal.wait().unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(common::files(dir.path()), [] as [std::path::PathBuf; 0], "{screen}");
    let error = |line: &str| line.starts_with("mixd: ") && !line.starts_with("mixd: serving");
    assert!(!screen.lines().any(error), "{screen}");
}

#[test]
fn ctrl_c_on_a_terminal_leaves_nothing() {
    ctrl_c(&["serve"], "serving");
    ctrl_c(&["bench", "--seconds=600", "--batch-size=8"], "trainer attached");
    #[cfg(feature = "torch")]
    ctrl_c(&["train", "--epochs=1000", "--batch-size=8"], "accuracy");
}

/// design.md §8: the daemon dies, and none takes its place.
#[test]
fn a_killed_daemon_is_an_error_after_what_was_published() {
    let mut daemon = Daemon::start(&[]);
    let mut feed = client::attach_for(&daemon.socket(), &spec(), Duration::ZERO).unwrap();
    let held = feed.next_batch().unwrap();
    let before = held.view().x.to_vec();
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    let mut read = 1;
    // The ring has four slots, and no room after them while the first is held.
    let ended = (1..4).find_map(|_| match feed.next_batch() {
        Ok(batch) => {
            assert_eq!(batch.view().head.index, read);
            read += 1;
            None
        }
        Err(error) => Some(error),
    });
    assert!(held.view().x == before, "a held batch has changed");
    drop(held);
    let error = ended.unwrap_or_else(|| feed.next_batch().err().expect("more than the ring holds"));
    assert!(matches!(error, ClientError::DaemonGone(_)), "{error}");
}

#[test]
fn a_trainer_that_waits_learns_of_the_daemons_death() {
    let mut daemon = Daemon::start(&[]);
    let mut feed = client::attach_for(&daemon.socket(), &spec(), Duration::ZERO).unwrap();
    let waiting = std::thread::spawn(move || {
        loop {
            if let Err(error) = feed.next_batch() {
                return error;
            }
        }
    });
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    let killed = Instant::now();
    assert!(matches!(waiting.join().unwrap(), ClientError::DaemonGone(_)));
    assert!(killed.elapsed() < DEADLINE);
}

/// design.md §8: stale files of a dead daemon.
#[test]
fn the_next_daemon_removes_what_a_killed_one_left() {
    let mut first = Daemon::start(&[]);
    let feed = first.attach(spec()).unwrap();
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    assert_eq!(first.files().len(), 2, "nothing was left to remove");
    drop(feed);
    let dir = std::mem::replace(&mut first.dir, tempfile::tempdir().unwrap());
    let second = Daemon::again(dir, &sample_data(), &[]);
    assert_eq!(second.attach(spec()).unwrap().epoch().count(), 25);
}

/// design.md §8: SIGTERM and Ctrl-C.
#[test]
fn signals_end_a_daemon_in_order_and_leave_nothing() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon = Daemon::start(&[]);
        let mut feed = daemon.attach(spec()).unwrap();
        feed.next_batch().unwrap();
        let start = Instant::now();
        daemon.signal(signal);
        let error = loop {
            match feed.next_batch() {
                Ok(batch) => drop(batch),
                Err(error) => break error,
            }
        };
        assert!(matches!(&error, ClientError::Ended { failed: false, .. }), "{error}");
        drop(feed);
        assert_eq!(daemon.child.wait().unwrap().code(), Some(0));
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        assert_eq!(daemon.files(), [] as [std::path::PathBuf; 0]);
    }
}

#[test]
fn a_trainer_that_stalls_does_not_hold_up_the_end() {
    let mut daemon = Daemon::start(&[]);
    let mut feed = daemon.attach(spec()).unwrap();
    let _held = feed.next_batch().unwrap();
    let start = Instant::now();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.child.wait().unwrap().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(daemon.files(), [] as [std::path::PathBuf; 0]);
}

#[test]
fn images_that_take_long_do_not_hold_up_the_end() {
    let data = common::slow_folder();
    // A batch takes a worker far longer than any of these waits.
    let mut daemon = Daemon::on(data.path(), &["--workers=1"]);
    let mut trainer = daemon.bench_trainer(&["--batch-size=256", "--size=32", "--warmup=0"]);
    let feeds = |count| client::status(&daemon.socket()).unwrap().feeds.len() == count;
    until("it attaches", || feeds(1).then_some(()));
    trainer.kill().unwrap();
    trainer.wait().unwrap();
    until("its feed closes", || feeds(0).then_some(()));
    let mut feed = daemon.attach(FeedSpec { batch_size: 256, ..spec() }).unwrap();
    let start = Instant::now();
    daemon.signal(Signal::TERM);
    let error = feed.next_batch().err().unwrap();
    assert!(matches!(&error, ClientError::Ended { failed: false, .. }), "{error}");
    drop(feed);
    assert_eq!(daemon.child.wait().unwrap().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(daemon.files(), [] as [std::path::PathBuf; 0]);
}

/// design.md §8: a second daemon on the socket.
#[test]
fn a_second_daemon_is_refused_naming_the_first() {
    let daemon = Daemon::start(&[]);
    let second = Daemon::command(daemon.dir.path(), &sample_data()).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let text = stderr(&second);
    assert!(text.contains(&format!("a daemon with pid {} already serves", daemon.child.id())), "{text}");
    assert_eq!(daemon.attach(spec()).unwrap().epoch().count(), 25);
}

#[test]
fn stop_waits_for_the_end() {
    let mut daemon = Daemon::start(&[]);
    let stop = run(&["stop", "--socket", daemon.socket().to_str().unwrap()]);
    assert!(stop.status.success(), "{}", stderr(&stop));
    assert_eq!(daemon.child.try_wait().unwrap().and_then(|status| status.code()), Some(0));
    assert_eq!(daemon.files(), [] as [std::path::PathBuf; 0]);
}

/// A `mixd bench` with a trainer at its daemon: the command, that daemon's process id and socket, and what else the command says.
fn benching(dir: &Path) -> (Child, i32, PathBuf, impl Iterator<Item = std::io::Result<String>>) {
    // The daemon of its own finds the folder of its socket through this variable, so that the test can, too.
    let sockets = || common::files(dir).into_iter().filter(|path| path.extension().is_some_and(|end| end == "sock"));
    let others: Vec<_> = sockets().collect();
    let mut bench = mixd()
        .args(["bench", "--seconds=600", "--batch-size=8", "--data"])
        .arg(sample_data())
        .env("XDG_RUNTIME_DIR", dir)
        .env("RUST_LOG", "mixd=info")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(bench.stderr.take().unwrap()).lines();
    let attached = lines.find(|line| line.as_ref().unwrap().contains("trainer attached"));
    assert!(attached.is_some(), "no trainer attached");
    let socket = sockets().find(|path| !others.contains(path)).expect("a socket of its own");
    let pid = client::status(&socket).unwrap().pid as i32;
    (bench, pid, socket, lines)
}

#[test]
fn a_daemon_ends_with_the_command_that_it_belongs_to() {
    let dir = tempfile::tempdir().unwrap();
    let (mut bench, pid, socket, mut lines) = benching(dir.path());
    bench.kill().unwrap();
    bench.wait().unwrap();
    until("the daemon ends", || {
        (!Path::new(&format!("/proc/{pid}/cmdline")).exists() || !socket.exists()).then_some(())
    });
    until("its trainer ends", || lines.next().is_none().then_some(()));
}

#[test]
fn the_next_command_removes_what_the_killed_daemon_of_another_left() {
    let dir = tempfile::tempdir().unwrap();
    let (mut alive, _, living, _lines) = benching(dir.path());
    let (mut bench, pid, socket, _more_lines) = benching(dir.path());
    rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    bench.wait().unwrap();
    let lock = socket.with_extension("sock.lock");
    assert!(socket.exists() && lock.exists(), "nothing was left to remove");
    let (mut next, _, _, _next_lines) = benching(dir.path());
    assert!(!socket.exists() && !lock.exists());
    assert!(living.with_extension("sock.lock").exists());
    client::status(&living).unwrap();
    for command in [&mut alive, &mut next] {
        command.kill().unwrap();
        command.wait().unwrap();
    }
    until("the daemons end", || common::files(dir.path()).is_empty().then_some(()));
}

#[test]
fn words_that_cannot_be_written_end_nobody() {
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut daemon = Daemon::with(tempfile::tempdir().unwrap(), &sample_data(), &[], |command| {
        command.stderr(full()).env("RUST_LOG", "mixd=info");
    });
    assert_eq!(daemon.attach(spec()).unwrap().epoch().count(), 25);
    let socket = daemon.socket();
    let data = sample_data();
    let [socket, data] = [&socket, &data].map(|path| path.to_str().unwrap());
    for command in [&["status", "--socket", socket][..], &["plan", "--epoch=0", "--data", data]] {
        let (reader, closed) = std::io::pipe().unwrap();
        drop(reader);
        let output = mixd().args(command).stdout(closed).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{}", stderr(&output));
        let output = mixd().args(command).stdout(full()).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(
            stderr(&output).contains("mixd: cannot write to standard output: No space left"),
            "{}",
            stderr(&output)
        );
    }
    let bogus = mixd().args(["status", "--socket", socket]).env("RUST_LOG", "mixd=bogus").stderr(full()).status();
    assert!(bogus.unwrap().success());
    #[cfg(feature = "torch")]
    {
        let train = ["train", "--size=16", "--batch-size=50", "--socket", socket];
        let output = mixd().args(train).stderr(full()).stdout(Stdio::piped()).output().unwrap();
        assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("valid acc"));
    }
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.child.wait().unwrap().code(), Some(0));
}

/// design.md §8: a limit that a feed meets.
#[test]
fn a_log_that_meets_a_limit_of_its_size_ends_nobody_and_a_ring_that_does_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = std::fs::File::create(dir.path().join("log")).unwrap();
    let daemon = Daemon::with(dir, &sample_data(), &[], |command| {
        command.stderr(log).env("RUST_LOG", "mixd=info");
    });
    let limit = |bytes| {
        let limit = Rlimit { current: bytes, maximum: bytes };
        prlimit(Some(Pid::from_child(&daemon.child)), Resource::Fsize, limit).unwrap()
    };
    let mut feed = daemon.attach(spec()).unwrap();
    let published = || client::status(&daemon.socket()).unwrap().feeds[0].published;
    until("all slots have their memory", || (published() == 4).then_some(()));
    limit(Some(100_000));
    assert_eq!(refusal(daemon.attach(spec())), Reason::System);
    // The attaching was logged before.
    limit(Some(1));
    assert!(daemon.attach(FeedSpec { slots: 3, ..spec() }).is_err());
    assert_eq!(feed.epoch().count(), 25);
}

#[test]
fn what_is_asked_of_a_stopped_daemon_ends_in_time() {
    let daemon = Daemon::start(&[]);
    daemon.signal(Signal::STOP);
    let start = Instant::now();
    let output = run(&["status", "--socket", daemon.socket().to_str().unwrap()]);
    assert!(start.elapsed() < DEADLINE);
    assert!(
        stderr(&output).contains("it has not answered within 10 s (is its process stopped?)"),
        "{}",
        stderr(&output)
    );
    daemon.signal(Signal::CONT);
    client::status(&daemon.socket()).unwrap();
}

#[test]
fn trainers_in_other_folders_find_a_relative_socket() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::command(Path::new("here"), &sample_data())
        .current_dir(dir.path())
        .arg("--until-eof")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(client::attach(&dir.path().join("here/mixd.sock"), &spec()).unwrap().epoch().count(), 25);
    drop(daemon.stdin.take());
    assert_eq!(daemon.wait().unwrap().code(), Some(0));
}

//! Faults of the system, one at a time: a system call of each kind that matters fails in every thread at its n-th use, for each n: while a daemon
//! starts, while it serves, and in a trainer. Whatever happens ends in right batches or in an error with a message, in time.
//!
//! `strace --inject` makes the faults; without it, or without the right to trace, the tests are left out and print so. By default each sweep takes a
//! few of the n; all with `MIXD_FAULTS=all` (`make faults`).
//!
//! Calls of `futex` are left alone: strace cannot tell a wait, which may fail at any time, from a wake-up, which cannot fail, and without which a mutex of
//! the standard library hangs.

mod common;

use common::trainer::Oracle;
use common::{DEADLINE, mixd, sample_data};
use mixd::client;
use mixd::spec::FeedSpec;
use mixd::types::{ImageSize, Place};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// A call and an error that it may have.
type Fault = (&'static str, &'static str);

const AT_START: [Fault; 9] = [
    ("openat", "EMFILE"),
    ("socketpair", "EMFILE"),
    ("eventfd2", "EMFILE"),
    ("epoll_create1", "EMFILE"),
    ("mmap", "ENOMEM"),
    ("clone3", "EAGAIN"),
    ("socket", "EMFILE"),
    ("epoll_ctl", "ENOMEM"),
    ("flock", "ENOLCK"),
];
const IN_THE_DAEMON: [Fault; 13] = [
    ("openat", "EMFILE"),
    ("openat", "ESTALE"),
    ("read", "EIO"),
    ("mmap", "ENOMEM"),
    ("memfd_create", "EMFILE"),
    ("ftruncate", "ENOMEM"),
    ("fallocate", "ENOMEM"),
    ("pidfd_open", "EMFILE"),
    ("accept4", "EMFILE"),
    ("clone3", "EAGAIN"),
    ("recvmsg", "ENOMEM"),
    ("sendmsg", "ENOMEM"),
    ("epoll_ctl", "ENOMEM"),
];
const IN_A_TRAINER: [Fault; 10] = [
    ("socketpair", "EMFILE"),
    ("eventfd2", "EMFILE"),
    ("epoll_create1", "EMFILE"),
    ("mmap", "ENOMEM"),
    ("clone3", "EAGAIN"),
    ("socket", "EMFILE"),
    ("connect", "EAGAIN"),
    ("recvmsg", "ENOMEM"),
    ("fcntl", "EINVAL"),
    ("epoll_ctl", "ENOMEM"),
];

/// Uses of a call that are tried one after the other by default, before larger and larger steps.
const TRIES: usize = 2;

fn spec() -> FeedSpec {
    FeedSpec { batch_size: 4, image_size: ImageSize::square(32), digest: true, ..FeedSpec::train() }
}

/// Two classes, with four images of train and one of val each.
fn few_images() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (split, count) in [("train", 4), ("val", 1)] {
        for class in ["n01440764", "n02102040"] {
            let to = dir.path().join(split).join(class);
            std::fs::create_dir_all(&to).unwrap();
            let from = sample_data().join(split).join(class);
            for file in std::fs::read_dir(from).unwrap().take(count) {
                let file = file.unwrap();
                std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
            }
        }
    }
    dir
}

/// A command whose n-th use of a call fails, in each of its threads; `strace` notes that in `log`.
fn injecting(log: &Path, (call, error): Fault, nth: usize) -> Command {
    let mut strace = common::command("strace");
    strace.args(["-f", "-e", &format!("trace={call}"), "-e", &format!("inject={call}:error={error}:when={nth}")]);
    strace.arg("-o").arg(log);
    strace
}

/// How the standard library and tokio end a process that gets no memory for a thread's signal stack, no first thread or no pipe for signals: they report
/// no error. (Of those who lack descriptors for longer, `tests/control.rs` asks more.)
const ABORTS: [&str; 3] =
    ["failed to allocate an alternative stack", "OS can't spawn worker thread", "failed to create UnixStream"];

fn has_aborted(text: &str) -> bool {
    ABORTS.iter().any(|abort| text.contains(abort))
}

/// Whether a process failed of its own.
fn has_panicked(text: &str) -> bool {
    text.contains("panicked") && !has_aborted(text)
}

/// How often that happened.
fn injected(log: &Path) -> usize {
    std::fs::read_to_string(log).unwrap_or_default().matches("(INJECTED)").count()
}

/// A data set and its batches; `None` where this process may not trace others.
fn set_up() -> Option<(tempfile::TempDir, Oracle)> {
    if !common::may_trace() {
        common::left_out("no strace, or no right to trace, here");
        return None;
    }
    let data = few_images();
    let oracle = Oracle::of(data.path());
    Some((data, oracle))
}

/// A process whose lines are read as they come.
struct Talking {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Talking {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines }
    }

    fn serve(command: &mut Command, data: &Path, socket: &Path) -> Self {
        command.args(["serve", "--workers=1", "--until-eof", "--data"]).arg(data).arg("--socket").arg(socket);
        Self::start(command.env("RUST_LOG", "mixd=error"))
    }

    /// The next line, or none where it has ended; panics where neither comes in time.
    fn line(&self, what: &str) -> Option<String> {
        match self.lines.recv_timeout(DEADLINE) {
            Ok(line) => Some(line),
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("{what}: it hangs"),
        }
    }

    /// Injects into a process that runs, from its next call on, until it ends.
    fn inject(&self, log: &Path, fault: Fault, nth: usize) -> Child {
        let mut strace = injecting(log, fault, nth);
        let mut strace = strace.arg("-p").arg(self.child.id().to_string()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(strace.stderr.take().unwrap()).lines().map_while(Result::ok);
        assert!(said.any(|line| line.contains("attached")), "strace cannot attach");
        std::thread::spawn(move || said.for_each(drop));
        strace
    }

    /// Closes its standard input, and returns what it wrote to standard error.
    fn finish(mut self, what: &str) -> String {
        drop(self.child.stdin.take());
        while self.line(what).is_some() {}
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        self.child.wait().unwrap();
        text
    }
}

/// Not a test but a trainer: waits for a line, then prints two epochs' batches, or the error that it meets.
#[test]
#[ignore = "run by the others, in a process of its own"]
fn trainer_process() {
    let Some(socket) = std::env::var_os("INJECTED_SOCKET") else { return };
    println!("\nready");
    std::io::stdin().lines().next().unwrap().unwrap();
    let read = || -> Result<(), client::ClientError> {
        let mut feed = client::attach_for(Path::new(&socket), &spec(), Duration::from_secs(2))?;
        for _ in 0..2 * feed.batches() {
            let batch = feed.next_batch()?;
            let head = batch.view().head;
            assert!(feed.is_intact(&batch));
            println!("batch {} {} {}", head.epoch, head.index, head.digest);
        }
        feed.leave()
    };
    println!("{}", read().map_or_else(|error| format!("error {error}"), |()| "end".to_owned()));
}

/// Has a trainer read two epochs. Every batch must be the right one, and what ends it early have a message; returns whether nothing did.
fn train(oracle: &mut Oracle, socket: &Path, what: &str, inject: impl FnOnce(&Talking) -> Option<Child>) -> bool {
    let mut command = common::command(std::env::current_exe().unwrap().to_str().unwrap());
    command.args(["--exact", "trainer_process", "--ignored", "--nocapture"]).env("INJECTED_SOCKET", socket);
    let mut trainer = Talking::start(&mut command);
    while trainer.line(what).expect("it starts") != "ready" {}
    let strace = inject(&trainer);
    writeln!(trainer.child.stdin.as_mut().unwrap()).unwrap();
    let (mut next, mut end, mut failed) = (Place::default(), None, false);
    while let Some(line) = trainer.line(what) {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["batch", epoch, index, digest] => {
                let place = Place { epoch: epoch.parse().unwrap(), index: index.parse().unwrap() };
                assert_eq!(place, next, "{what}");
                assert_eq!(digest.parse(), Ok(oracle.digest(spec(), place)), "{what}: {place}");
                next = place.next(2);
            }
            ["end"] => end = Some(next == (Place { epoch: 2, index: 0 })),
            ["error", ..] => (end, failed) = (Some(line.len() > "error ".len() + 10), true),
            _ => {}
        }
    }
    let text = trainer.finish(what);
    strace.map(|mut strace| strace.wait().unwrap());
    assert!((end == Some(true) || has_aborted(&text)) && !has_panicked(&text), "{what}: {end:?} {text}");
    end == Some(true) && !failed
}

/// Runs the loop with the n-th use of each call failing, from `first` on, for those n that there are.
fn sweep(faults: &[Fault], first: impl Fn(&'static str) -> usize, mut run: impl FnMut(&Path, Fault, usize, &str)) {
    let all = std::env::var("MIXD_FAULTS").is_ok_and(|faults| faults == "all");
    for &fault in faults {
        let (call, error) = fault;
        let (first, mut tried, mut total) = (first(call), 0, 0);
        let mut nth = first;
        loop {
            let log = tempfile::NamedTempFile::new().unwrap();
            run(log.path(), fault, nth, &format!("{call} fails with {error} at its use {nth}"));
            let made = injected(log.path());
            total += made;
            if made == 0 {
                break;
            }
            tried += 1;
            nth += if all || tried < TRIES { 1 } else { 4 * (nth - first).max(1) };
        }
        assert!(total > 0, "{call} was never used");
        println!("{call} fails with {error}: {tried} runs, {total} faults");
    }
}

#[test]
fn a_daemon_whose_system_calls_fail_serves_right_batches_or_errors_and_then_serves_others() {
    let Some((data, mut oracle)) = set_up() else { return };
    sweep(
        &IN_THE_DAEMON,
        // The first read of a thread may be of standard input: as at its end, the daemon ends.
        |call| if call == "read" { 2 } else { 1 },
        |log, fault, nth, what| {
            let dir = tempfile::tempdir().unwrap();
            let socket = dir.path().join("s");
            let daemon = Talking::serve(&mut mixd(), data.path(), &socket);
            daemon.line(what).expect("it serves");
            let mut strace = daemon.inject(log, fault, nth);
            train(&mut oracle, &socket, what, |_| None);
            // It lets go of the daemon.
            kill_process(Pid::from_child(&strace), Signal::INT).unwrap();
            strace.wait().unwrap();
            assert!(train(&mut oracle, &socket, what, |_| None), "{what}: it does not serve others");
            let text = daemon.finish(what);
            assert!(!has_panicked(&text), "{what}: {text}");
        },
    );
}

#[test]
fn a_daemon_whose_system_calls_fail_at_its_start_serves_or_ends_with_a_message() {
    let Some((data, mut oracle)) = set_up() else { return };
    // What the loader does before the program begins.
    let before = |call: &'static str| {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut strace = injecting(log.path(), (call, "EIO"), 65_535);
        assert!(strace.args([env!("CARGO_BIN_EXE_mixd"), "--help"]).output().unwrap().status.success());
        1 + std::fs::read_to_string(log.path()).unwrap().matches(&format!("{call}(")).count()
    };
    sweep(&AT_START, before, |log, fault, nth, what| {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let mut command = injecting(log, fault, nth);
        let daemon = Talking::serve(command.arg("-qq").arg(env!("CARGO_BIN_EXE_mixd")), data.path(), &socket);
        let serves = daemon.line(what).is_some();
        if serves {
            train(&mut oracle, &socket, what, |_| None);
        }
        let text = daemon.finish(what);
        assert!(!has_panicked(&text), "{what}: {text}");
        assert!(serves || text.contains("mixd: ") || has_aborted(&text), "{what}: it ended without a message: {text}");
    });
}

#[test]
fn a_trainer_whose_system_calls_fail_reads_right_batches_or_gets_an_error_and_harms_no_other() {
    let Some((data, mut oracle)) = set_up() else { return };
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let daemon = Talking::serve(&mut mixd(), data.path(), &socket);
    daemon.line("the daemon").expect("it serves");
    sweep(
        &IN_A_TRAINER,
        |_| 1,
        |log, fault, nth, what| {
            train(&mut oracle, &socket, what, |trainer| Some(trainer.inject(log, fault, nth)));
            common::until("its feed closes", || client::status(&socket).unwrap().feeds.is_empty().then_some(()));
        },
    );
    assert!(train(&mut oracle, &socket, "after all", |_| None));
    assert!(!daemon.finish("the daemon").contains("panicked"));
}

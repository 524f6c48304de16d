//! A daemon as a service: what a manager is told, the log as JSON, and the unit that `deploy/` has for systemd.

mod common;

use common::{DEADLINE, Daemon, sample_data, until};
use mixd::spec::{FeedSpec, Share};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The other end of `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(dir: &Path) -> Self {
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { socket, path }
    }

    /// The lines of the next message.
    fn next(&self) -> Vec<String> {
        let mut bytes = [0; 4096];
        let count = self.socket.recv(&mut bytes).expect("a message in time");
        String::from_utf8_lossy(&bytes[..count]).lines().map(str::to_owned).collect()
    }

    /// The next message with a line.
    fn wait(&self, line: &str) -> Vec<String> {
        std::iter::repeat_with(|| self.next()).find(|lines| lines.iter().any(|found| found == line)).unwrap()
    }
}

#[test]
fn a_service_manager_hears_of_start_readiness_life_verdict_and_stop() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path());
    let mut command = Daemon::command(dir.path(), &sample_data());
    command.env("NOTIFY_SOCKET", &manager.path).env("WATCHDOG_USEC", "200000").stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    assert_eq!(manager.next(), ["STATUS=indexing the data set"]);
    // Ready only when trainers can attach.
    let ready = manager.wait("READY=1");
    assert!(ready.contains(&"WATCHDOG=1".to_owned()), "{ready:?}");
    let socket = dir.path().join("mixd.sock");
    let feed = mixd::client::attach(&socket, &FeedSpec::train()).unwrap();
    // Again and again, READY but once.
    for _ in 0..3 {
        let alive = manager.wait("WATCHDOG=1");
        assert!(!alive.contains(&"READY=1".to_owned()), "{alive:?}");
    }
    until("the verdict", || manager.next().iter().any(|line| line.starts_with("STATUS=trainer-bound: ")).then_some(()));
    drop(feed);
    mixd::client::shutdown(&socket).unwrap();
    let stopping = manager.wait("STOPPING=1");
    assert!(stopping.contains(&"STATUS=the daemon was stopped".to_owned()), "{stopping:?}");
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_trainer_s_own_daemon_tells_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path());
    let home = tempfile::tempdir().unwrap();
    let daemon = Daemon::with(home, &sample_data(), &[], |command| {
        command.env("NOTIFY_SOCKET", &manager.path);
    });
    drop(daemon.attach(FeedSpec::train()).unwrap());
    drop(daemon);
    manager.socket.set_nonblocking(true).unwrap();
    assert!(manager.socket.recv(&mut [0; 16]).is_err());
}

#[test]
fn the_log_is_json_where_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Daemon::command(dir.path(), &sample_data());
    command.args(["--log-format", "json", "--until-eof"]).env_remove("RUST_LOG");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    drop(mixd::client::attach(&dir.path().join("mixd.sock"), &FeedSpec::train()).unwrap());
    drop(child.stdin.take());
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(child.wait().unwrap().success());
    let events: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let attached = events.iter().find(|event| event["message"] == "trainer attached").expect(&log);
    assert_eq!(
        (&attached["level"], &attached["pid"], &attached["split"]),
        (&"INFO".into(), &std::process::id().into(), &"train".into())
    );
    assert!(attached["timestamp"].is_string(), "{attached}");
}

fn unit() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd/mixd@.service")).unwrap()
}

/// The unit as an instance of it, whose program is there.
fn instance(dir: &Path) -> PathBuf {
    let unit = unit();
    assert!(unit.contains("ExecStart=/usr/local/bin/mixd serve "));
    let path = dir.join("mixd@alice.service");
    std::fs::write(&path, unit.replace("/usr/local/bin/mixd", env!("CARGO_BIN_EXE_mixd"))).unwrap();
    path
}

fn systemd_analyze(args: &[&str]) -> (bool, String) {
    let output = Command::new("systemd-analyze").args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &common::stderr(&output);
    (output.status.success(), text)
}

#[test]
fn the_unit_is_one_that_systemd_accepts_and_finds_hardened() {
    let dir = tempfile::tempdir().unwrap();
    let path = instance(dir.path());
    let path = path.to_str().unwrap();
    if !common::has_tool("systemd-analyze") {
        return;
    }
    let (verified, text) = systemd_analyze(&["verify", "--man=no", path]);
    assert!(verified && text.trim().is_empty(), "{text}");
    // In tenths; 10.0 is a service without any of it.
    let (hardened, text) = systemd_analyze(&["security", "--offline=true", "--threshold=20", path]);
    assert!(hardened, "{text}");
}

/// The command that the unit starts is one that mixd understands.
#[test]
fn the_unit_s_command_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("alice.toml");
    std::fs::write(&config, "data = \"/data/imagenette2-160\"\nmetrics = \"127.0.0.1:9465\"\n").unwrap();
    let line = unit().lines().find_map(|line| line.strip_prefix("ExecStart=").map(str::to_owned)).unwrap();
    let line = line.replace("/etc/mixd/%i.toml", config.to_str().unwrap()).replace("%i", "alice");
    assert!(mixd::cli::accepts(line.split(' ').map(Into::into)), "{line}");
}

/// Every system call of a daemon that serves private and shared feeds is one that the unit allows.
#[test]
fn the_unit_allows_every_system_call_that_a_daemon_makes() {
    if !common::has_tool("systemd-analyze") {
        return;
    }
    if !common::may_trace() {
        return common::left_out("no strace, or no right to trace, here");
    }
    let allowed = allowed_calls();
    let (dir, log) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
    let mut strace = common::command("strace");
    strace.args(["-f", "-qq", "-o"]).arg(log.path()).arg(env!("CARGO_BIN_EXE_mixd")).args([
        "serve",
        "--until-eof",
        "--data",
    ]);
    strace
        .arg(sample_data())
        .arg("--socket")
        .arg(dir.path().join("mixd.sock"))
        .arg("--cache-file")
        .arg(dir.path().join("cache"));
    let mut child = strace.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let share = Share { delivery: mixd::spec::Delivery::Latest, ..Share::new("all".parse().unwrap()) };
    for share in [None, Some(share)] {
        let mut feed =
            mixd::client::attach(&dir.path().join("mixd.sock"), &FeedSpec { share, ..FeedSpec::train() }).unwrap();
        (0..6).for_each(|_| drop(feed.next_batch().unwrap()));
    }
    drop(child.stdin.take());
    child.wait().unwrap();
    let log = std::fs::read_to_string(log.path()).unwrap();
    let name = |line: &str| Some(line.split_once(char::is_whitespace)?.1.trim_start().split_once('(')?.0.to_owned());
    let is_name =
        |name: &String| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    let calls: std::collections::BTreeSet<String> = log.lines().filter_map(name).filter(is_name).collect();
    assert!(calls.len() > 20 && calls.contains("memfd_create"), "{calls:?}");
    let denied: Vec<_> = calls.iter().filter(|call| !allowed.contains(call)).collect();
    assert!(denied.is_empty(), "{denied:?}");
}

/// The calls of the unit's filter, groups taken apart.
fn allowed_calls() -> Vec<String> {
    let filter = unit().lines().find_map(|line| line.strip_prefix("SystemCallFilter=").map(str::to_owned)).unwrap();
    let (mut groups, mut calls): (Vec<String>, Vec<String>) =
        (filter.split(' ').map(str::to_owned).collect(), Vec::new());
    while let Some(group) = groups.pop() {
        let (_, text) = systemd_analyze(&["syscall-filter", &group]);
        let members = text.lines().skip(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let (more, names): (Vec<String>, Vec<String>) =
            members.map(str::to_owned).partition(|name| name.starts_with('@'));
        groups.extend(more);
        calls.extend(names);
    }
    calls
}

//! A real daemon process in folders of its own, and the data that tests use.
#![allow(dead_code, missing_docs, reason = "each test binary uses its own share of this")]

pub mod trainer;

use mixd::client::{self, ClientError, Reason};
use mixd::spec::FeedSpec;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long a test waits for something that should happen at once.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub fn sample_data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sample-data")
}

/// The command `mixd`.
pub fn mixd() -> Command {
    command(env!("CARGO_BIN_EXE_mixd"))
}

/// A command without the variables of whoever runs the tests, and with the signals that a background job ignores.
pub fn command(program: &str) -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal", "--", program]);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MIXD_")) {
        command.env_remove(name);
    }
    command.env_remove("RUST_LOG");
    command
}

/// Has a program find no credentials but those that a test gives it: neither in files nor in variables.
pub fn without_credentials(command: &mut Command, home: &Path) {
    let of_stores = |name: &str| ["AWS_", "GOOGLE_", "AZURE_", "AZURITE_"].iter().any(|begin| name.starts_with(begin));
    for (name, _) in std::env::vars_os().filter(|(name, _)| of_stores(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    command.env("HOME", home);
}

pub fn run(args: &[&str]) -> Output {
    mixd().args(args).output().unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Why the daemon refuses a feed.
pub fn refusal(attached: Result<client::Feed, ClientError>) -> Reason {
    match attached.err() {
        Some(ClientError::Refused(refusal)) => refusal.reason,
        other => panic!("not refused: {other:?}"),
    }
}

/// Whether a program is here that a test needs; the test is left out otherwise, or fails where it must run (`MIXD_TEST_TOOLS=required`, as in CI).
pub fn has_tool(program: &str) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let is_here = std::env::split_paths(&folders).any(|folder| folder.join(program).is_file());
    if !is_here {
        assert!(std::env::var_os("MIXD_TEST_TOOLS").is_none(), "no {program} here (.ci/run installs it)");
        left_out(&format!("no {program} here"));
    }
    is_here
}

/// A port that is free: bound once, and let go.
pub fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Status and body of the answer to a GET over HTTP; waits until something listens.
pub fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = until("a listener", || TcpStream::connect(address).ok());
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (status, body.to_owned())
}

/// Whether `strace` is here, and this process may trace others.
pub fn may_trace() -> bool {
    let traced = Command::new("strace").args(["-qq", "-e", "trace=none", "true"]).output();
    traced.is_ok_and(|traced| traced.status.success())
}

/// Notes that a test is left out, past the harness, which does not print what passing tests print.
pub fn left_out(why: &str) {
    std::io::stderr().write_all(format!("left out: {why}\n").as_bytes()).expect("standard error is open");
}

/// Looks at a condition until it holds; each look is a call to the daemon, not a sleep.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        std::thread::yield_now();
    }
}

/// All files in a folder.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

pub struct Daemon {
    pub child: Child,
    pub dir: tempfile::TempDir,
    lifeline: Option<ChildStdin>,
}

impl Daemon {
    pub fn start(args: &[&str]) -> Self {
        Self::on(&sample_data(), args)
    }

    pub fn on(data: &Path, args: &[&str]) -> Self {
        Self::again(tempfile::tempdir().unwrap(), data, args)
    }

    /// A daemon in the folder of an earlier one.
    pub fn again(dir: tempfile::TempDir, data: &Path, args: &[&str]) -> Self {
        Self::with(dir, data, args, |_| {})
    }

    /// The same, in an environment of its own.
    pub fn with(dir: tempfile::TempDir, data: &Path, args: &[&str], environment: impl FnOnce(&mut Command)) -> Self {
        let mut command = Self::command(dir.path(), data);
        environment(&mut command);
        // It ends with the test, however that ends: else it would hold the output of a test that crashed open.
        let mut child =
            command.arg("--until-eof").args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lifeline = child.stdin.take().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("mixd: serving"), "{line:?}");
        Self { child, dir, lifeline: Some(lifeline) }
    }

    pub fn command(dir: &Path, data: &Path) -> Command {
        let mut command = mixd();
        command.arg("serve").arg("--data").arg(data).arg("--socket").arg(dir.join("mixd.sock"));
        command.env("RUST_LOG", "mixd=error");
        command
    }

    /// Gives up its standard input, the part that this process has in it, with these last bytes.
    pub fn close_stdin(&mut self, last: &[u8]) {
        self.lifeline.take().expect("open").write_all(last).unwrap();
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("mixd.sock")
    }

    pub fn attach(&self, spec: FeedSpec) -> Result<client::Feed, ClientError> {
        client::attach(&self.socket(), &spec)
    }

    /// Sealed memory of this name, `mixd-ring` or `mixd-cursor`, that the daemon has open.
    pub fn memory(&self, name: &str) -> usize {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).into_iter().flatten().flatten();
        let links = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        links.filter(|link| link.starts_with(format!("/memfd:{name} (deleted)"))).count()
    }

    /// Files of sockets and locks that are there.
    pub fn files(&self) -> Vec<PathBuf> {
        files(self.dir.path())
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    /// A trainer in a process of its own that has read its first batches and goes on reading.
    pub fn trainer(&self) -> Child {
        let mut child = self.bench_trainer(&["--warmup=3", "--batch-size=8"]);
        let mut first = [0];
        child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
        child
    }

    /// A trainer in a process of its own.
    pub fn bench_trainer(&self, args: &[&str]) -> Child {
        let mut command = mixd();
        command.args(["bench-trainer", "--touch=all", "--images=0", "--seconds=600", "--socket"]).arg(self.socket());
        let mut child = command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // Asks for a round; the pipe stays open with the child.
        writeln!(child.stdin.as_mut().unwrap()).unwrap();
        child
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // An error says that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An image folder whose every image takes a decoder about a quarter of a second: one file under many names.
pub fn slow_folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("image.png");
    image::RgbImage::new(6_000, 6_000).save(&file).unwrap();
    for (split, count) in [("train", 400), ("val", 1)] {
        let folder = dir.path().join(split).join("class");
        std::fs::create_dir_all(&folder).unwrap();
        for nth in 0..count {
            std::fs::hard_link(&file, folder.join(format!("{nth:03}.png"))).unwrap();
        }
    }
    dir
}

/// The sample data with every image twice.
pub fn twice_the_sample_data() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let is_image = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "JPEG");
    for path in files(&sample_data()).into_iter().filter(is_image) {
        let to = dir.path().join(path.strip_prefix(sample_data()).unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(&path, to.with_extension("again.JPEG")).unwrap();
        std::fs::copy(&path, to).unwrap();
    }
    dir
}

/// A small image folder: two classes, `count` images each in train and two in val.
pub fn small_folder(count: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (split, count) in [("train", count), ("val", 2)] {
        for (class, wnid) in ["n01440764", "n03394916"].into_iter().enumerate() {
            let folder = dir.path().join(split).join(wnid);
            std::fs::create_dir_all(&folder).unwrap();
            for nth in 0..count {
                let pixel = |x: u32, y: u32| image::Rgb([(x * 9) as u8, (y * 7) as u8, (nth * 40 + class * 90) as u8]);
                let picture = image::RgbImage::from_fn(24, 20, pixel);
                picture.save(folder.join(format!("{nth:03}.png"))).unwrap();
            }
        }
    }
    dir
}

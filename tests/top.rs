//! `mixd top` as a terminal shows it: a real emulator's screen, at the other end of a pseudoterminal.

mod common;

use common::{DEADLINE, Daemon, until};
use mixd::spec::FeedSpec;
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::num::NonZero;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Instant;
use vt100::Parser;

fn cells(count: u16) -> NonZero<u16> {
    NonZero::new(count).expect("a screen has cells")
}

/// A terminal in which a shell runs `mixd top`, with a line before it, and its exit code in a line after it.
struct Terminal {
    /// The emulator's end.
    file: File,
    parser: Parser,
    shell: Child,
}

impl Terminal {
    fn start(socket: &Path, (columns, rows): (u16, u16)) -> Self {
        let file = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&file).unwrap();
        unlockpt(&file).unwrap();
        let path = PathBuf::from(std::ffi::OsString::from_vec(ptsname(&file, Vec::new()).unwrap().into_bytes()));
        fcntl_setfl(&file, OFlags::NONBLOCK).unwrap();
        let end = || File::options().read(true).write(true).open(&path).unwrap();
        let parser = Parser::new(cells(rows), cells(columns), 0);
        tcsetwinsize(&file, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let script = "echo before; \"$0\" top --interval-ms 100 --socket \"$1\"; echo \"exit $?\"; read -r line";
        // A session of its own, whose terminal is standard input.
        let mut command = common::command("setsid");
        command.args(["--ctty", "sh", "-c", script, env!("CARGO_BIN_EXE_mixd")]).arg(socket);
        command.env("TERM", "xterm-256color").stdin(end()).stdout(end()).stderr(end());
        Self { file: file.into(), parser, shell: command.spawn().unwrap() }
    }

    /// What the screen shows, a line each.
    fn screen(&mut self) -> String {
        let mut bytes = [0; 4096];
        loop {
            match self.file.read(&mut bytes) {
                Ok(0) => break,
                Ok(count) => self.parser.process(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        self.parser.screen().contents()
    }

    /// Waits for a screen.
    fn wait(&mut self, what: &str, is_it: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let screen = self.screen();
            if is_it(&screen) {
                return screen;
            }
            assert!(start.elapsed() < DEADLINE, "{what} does not come:\n{screen}");
            std::thread::yield_now();
        }
    }

    fn contains(&mut self, part: &str) -> String {
        self.wait(part, |screen| screen.contains(part))
    }

    fn press(&mut self, keys: &[u8]) {
        self.file.write_all(keys).unwrap();
    }

    fn resize(&mut self, (columns, rows): (u16, u16)) {
        self.parser.screen_mut().set_size(cells(rows), cells(columns));
        tcsetwinsize(&self.file, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    }

    fn is_alternate(&self) -> bool {
        self.parser.screen().alternate_screen()
    }

    /// The end of `mixd top`: the screen is as it was before, and lines are typed as usual.
    fn ended(&mut self) {
        self.wait("a good end", |screen| screen.starts_with("before\nexit 0"));
        assert!(!self.is_alternate() && !self.parser.screen().hide_cursor());
        self.press(b"typed");
        self.contains("typed");
    }

    /// The process of `mixd top`.
    fn top(&self) -> Pid {
        let shell = self.shell.id();
        let children = until("a child of the shell", || {
            let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).unwrap();
            (!children.trim().is_empty()).then_some(children)
        });
        Pid::from_raw(children.trim().parse().unwrap()).unwrap()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The line that the shell waits for.
        let _ = self.file.write_all(b"\x03\n");
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

#[test]
fn a_screen_of_80_by_24_shows_verdict_stages_feeds_trainers_and_keys() {
    let daemon = Daemon::start(&[]);
    let mut terminal = Terminal::start(&daemon.socket(), (80, 24));
    terminal.contains("idle: no trainer is attached");
    terminal.contains("0 feeds, 0 trainers");
    let mut trainer = daemon.bench_trainer(&["--warmup=0", "--batch-size=16"]);
    let pid = format!("{} ", trainer.id());
    let parts = [
        "mixd 0",
        "200 train, 50 val: ",
        "-bound: ",
        "plan ",
        "read ",
        "decode ",
        "render ",
        "mix ",
        "cache   train views 128x128: 200 of 200 decoded",
        "1 feed, 1 trainer",
        "private: train 16x128x128 f32",
        &pid,
        "images/s  waits ",
        "q quit",
    ];
    // Looked for together: the emulator may have half of a screen that changes.
    let screen = terminal.wait("all of it", |screen| parts.iter().all(|part| screen.contains(part)));
    assert!(terminal.is_alternate());
    // Nothing is written over the edge.
    assert!(screen.lines().next().unwrap().starts_with(" mixd "), "{screen}");
    trainer.kill().unwrap();
    trainer.wait().unwrap();
    terminal.contains("idle: no trainer is attached");
    terminal.press(b"q");
    terminal.ended();
}

#[test]
fn it_follows_the_size_of_the_terminal() {
    let daemon = Daemon::start(&[]);
    let _feeds: Vec<_> =
        (0..8).map(|_| daemon.attach(FeedSpec { batch_size: 4, ..FeedSpec::train() }).unwrap()).collect();
    let mut terminal = Terminal::start(&daemon.socket(), (80, 24));
    let small = terminal.contains("lines below");
    assert!(!small.contains("   8 private"), "{small}");
    terminal.press(b"\x1b[6~");
    terminal.contains("   8 private");
    terminal.resize((120, 50));
    terminal.wait("all feeds, and the keys in the last line", |screen| {
        let has_keys = screen.lines().nth(49).is_some_and(|line| line.contains("q quit"));
        has_keys && screen.contains("   1 private") && screen.contains("   8 private") && !screen.contains("below")
    });
    terminal.resize((30, 8));
    terminal.wait("the keys in line 8", |screen| screen.lines().nth(7).is_some_and(|line| line.contains("q quit")));
    terminal.press(b"\x03");
    terminal.ended();
}

#[test]
fn a_paused_screen_stays_and_a_daemon_that_is_gone_is_waited_for() {
    let daemon = Daemon::start(&[]);
    let socket = daemon.socket();
    let mut terminal = Terminal::start(&socket, (80, 24));
    terminal.contains("0 feeds");
    terminal.press(b" ");
    terminal.contains("paused");
    let feed = daemon.attach(FeedSpec::train()).unwrap();
    terminal.press(b" ");
    terminal.contains("1 feed, 1 trainer");
    drop(feed);
    daemon.signal(Signal::TERM);
    terminal.contains("no daemon answers on");
    until("its end", || (!socket.exists()).then_some(()));
    let mut again = Daemon::command(socket.parent().unwrap(), &common::sample_data());
    let mut again = again
        .arg("--until-eof")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    terminal.contains(&format!("(pid {})", again.id()));
    terminal.contains("idle: no trainer is attached");
    kill_process(terminal.top(), Signal::TERM).unwrap();
    terminal.ended();
    drop(again.stdin.take());
    again.wait().unwrap();
}

#[test]
fn without_a_terminal_or_a_daemon_it_gives_the_remedy() {
    let daemon = Daemon::start(&[]);
    let output = common::run(&["top", "--socket", daemon.socket().to_str().unwrap()]);
    let text = common::stderr(&output);
    assert!(!output.status.success() && text.contains("use `mixd status`"), "{text}");
    let mut terminal = Terminal::start(Path::new("/no/such/socket"), (100, 24));
    let screen = terminal.contains("exit 1");
    assert!(screen.contains("no daemon answers on /no/such/socket") && !terminal.is_alternate(), "{screen}");
}

//! `mixd top` as a terminal shows it: a real emulator's screen, at the other end of a pseudoterminal.

mod common;

use alacritty_terminal::Term;
use alacritty_terminal::event::{OnResize, VoidListener, WindowSize};
use alacritty_terminal::grid::Dimensions;
use alacritty_terminal::index::{Column, Line};
use alacritty_terminal::term::{Config, TermMode};
use alacritty_terminal::tty::{self, Options, Pty, Shell};
use alacritty_terminal::vte::ansi::Processor;
use common::{DEADLINE, Daemon, until};
use mixd::spec::FeedSpec;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::time::Instant;

/// Columns and lines.
#[derive(Clone, Copy)]
struct Size(usize, usize);

impl Dimensions for Size {
    fn total_lines(&self) -> usize {
        self.1
    }
    fn screen_lines(&self) -> usize {
        self.1
    }
    fn columns(&self) -> usize {
        self.0
    }
}

fn window(size: Size) -> WindowSize {
    WindowSize { num_cols: size.0 as u16, num_lines: size.1 as u16, cell_width: 8, cell_height: 16 }
}

/// A terminal in which a shell runs `mixd top`, with a line before it, and its exit code in a line after it.
struct Terminal {
    pty: Pty,
    file: File,
    term: Term<VoidListener>,
    parser: Processor,
    size: Size,
}

impl Terminal {
    fn start(socket: &Path, size: Size) -> Self {
        let script = "echo before; \"$0\" top --interval-ms 100 --socket \"$1\"; echo \"exit $?\"; read -r line";
        let args = ["-c", script, env!("CARGO_BIN_EXE_mixd"), socket.to_str().unwrap()].map(str::to_owned);
        let env = [("TERM".to_owned(), "xterm-256color".to_owned())].into();
        let shell = Some(Shell::new("/bin/sh".to_owned(), args.into()));
        let pty = tty::new(&Options { shell, env, ..Options::default() }, window(size), 0).unwrap();
        let file = pty.file().try_clone().unwrap();
        Self { pty, file, term: Term::new(Config::default(), &size, VoidListener), parser: Processor::new(), size }
    }

    /// What the screen shows, a line each.
    fn screen(&mut self) -> String {
        let mut bytes = [0; 4096];
        loop {
            match self.file.read(&mut bytes) {
                Ok(0) => break,
                Ok(count) => self.parser.advance(&mut self.term, &bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // The shell has ended.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => break,
                Err(error) => panic!("{error}"),
            }
        }
        let line =
            |line| (0..self.size.0).map(|column| self.term.grid()[Line(line as i32)][Column(column)].c).collect();
        (0..self.size.1)
            .map(|number| {
                let text: String = line(number);
                text.trim_end().to_owned() + "\n"
            })
            .collect()
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

    fn resize(&mut self, size: Size) {
        self.size = size;
        self.term.resize(size);
        self.pty.on_resize(window(size));
    }

    fn is_alternate(&self) -> bool {
        self.term.mode().contains(TermMode::ALT_SCREEN)
    }

    /// The end of `mixd top`: the screen is as it was before, and lines are typed as usual.
    fn ended(&mut self) {
        let screen = self.contains("exit ");
        assert!(screen.starts_with("before\nexit 0\n"), "{screen}");
        assert!(!self.is_alternate() && self.term.mode().contains(TermMode::SHOW_CURSOR));
        self.press(b"typed");
        self.contains("typed");
    }

    /// The process of `mixd top`.
    fn top(&self) -> Pid {
        let shell = self.pty.child().id();
        let children = until("a child of the shell", || {
            let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).unwrap();
            (!children.trim().is_empty()).then_some(children)
        });
        Pid::from_raw(children.trim().parse().unwrap()).unwrap()
    }
}

#[test]
fn a_screen_of_80_by_24_shows_verdict_stages_feeds_trainers_and_keys() {
    let daemon = Daemon::start(&[]);
    let mut terminal = Terminal::start(&daemon.socket(), Size(80, 24));
    terminal.contains("idle: no trainer is attached");
    terminal.contains("0 feeds, 0 trainers");
    let mut trainer = daemon.bench_trainer(&["--warmup=0", "--batch-size=16"]);
    let screen =
        terminal.wait("a verdict", |screen| screen.contains("-bound: ") && screen.contains("1 feed, 1 trainer"));
    assert!(terminal.is_alternate());
    for part in [
        "mixd 0",
        "(200 train, 50 val)",
        "plan ",
        "read ",
        "decode ",
        "render ",
        "mix ",
        "cache   train views 128x128: 200 of 200 decoded",
        "private: train 16x128x128 f32",
        &format!("{} ", trainer.id()),
        "images/s  waits ",
        "q quit",
    ] {
        assert!(screen.contains(part), "{part}:\n{screen}");
    }
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
    let mut terminal = Terminal::start(&daemon.socket(), Size(80, 24));
    let small = terminal.contains("lines below");
    assert!(!small.contains("   8 private"), "{small}");
    terminal.press(b"\x1b[6~");
    terminal.contains("   8 private");
    terminal.resize(Size(120, 50));
    let large = terminal
        .wait("the keys in the last line", |screen| screen.lines().nth(49).is_some_and(|line| line.contains("q quit")));
    assert!(large.contains("   1 private") && large.contains("   8 private") && !large.contains("below"), "{large}");
    terminal.resize(Size(30, 8));
    terminal.wait("the keys in line 8", |screen| screen.lines().nth(7).is_some_and(|line| line.contains("q quit")));
    terminal.press(b"\x03");
    terminal.ended();
}

#[test]
fn a_paused_screen_stays_and_a_daemon_that_is_gone_is_waited_for() {
    let daemon = Daemon::start(&[]);
    let socket = daemon.socket();
    let mut terminal = Terminal::start(&socket, Size(80, 24));
    terminal.contains("0 feeds");
    terminal.press(b" ");
    terminal.contains("paused");
    let feed = daemon.attach(FeedSpec::train()).unwrap();
    terminal.press(b" ");
    terminal.contains("1 feed, 1 trainer");
    drop(feed);
    let Daemon { .. } = &daemon;
    daemon.signal(Signal::TERM);
    terminal.contains("no daemon answers on");
    let dir = until("its end", || (!socket.exists()).then(tempfile::tempdir)).unwrap();
    drop(dir);
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
    let mut terminal = Terminal::start(Path::new("/no/such/socket"), Size(100, 24));
    let screen = terminal.contains("exit 1");
    assert!(screen.contains("no daemon answers on /no/such/socket") && !terminal.is_alternate(), "{screen}");
}

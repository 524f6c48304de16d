//! `mixd top`: a daemon's feeds, trainers and stages on a terminal, and what bounds them.

mod rates;
mod screen;

use super::options::SocketArgs;
use crate::client::{self, ClientError, Status};
use anyhow::Context;
use clap::Args;
use crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::DefaultTerminal;
use rates::History;
use screen::{Screen, State};
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

/// How often keys and statuses are looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How often a daemon that is gone is looked for.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Show what a daemon is doing on this terminal: what bounds its trainers, its stages, feeds, trainers and caches.
#[derive(Debug, Args)]
pub struct Top {
    #[command(flatten)]
    socket: SocketArgs,
    /// Milliseconds between two updates.
    #[arg(long, env = "MIXD_INTERVAL_MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    interval_ms: u64,
}

impl Top {
    pub fn run(self) -> anyhow::Result<()> {
        anyhow::ensure!(
            io::stdin().is_terminal() && io::stdout().is_terminal(),
            "top draws on a terminal, and standard input or output is none (use `mixd status`)"
        );
        let (socket, interval) = (self.socket.path(), Duration::from_millis(self.interval_ms));
        // A socket without a daemon is reported before the screen is taken.
        client::status(&socket)?;
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [rustix::process::Signal::TERM, rustix::process::Signal::HUP, rustix::process::Signal::INT] {
            signal_hook::flag::register(signal.as_raw(), Arc::clone(&stop)).context("cannot handle signals")?;
        }
        let statuses = watch(socket.clone(), interval);
        let mut terminal = ratatui::try_init().context("cannot draw on this terminal")?;
        let shown = show(&mut terminal, &socket, &statuses, &stop);
        ratatui::try_restore().context("cannot restore the terminal")?;
        shown.context("cannot draw on this terminal")
    }
}

/// Watches in a thread of its own, again and again when the daemon is gone; it ends with its receiver.
fn watch(socket: PathBuf, interval: Duration) -> mpsc::Receiver<Result<Status, ClientError>> {
    let (sender, statuses) = mpsc::channel();
    std::thread::spawn(move || {
        loop {
            let gone = match client::watch(&socket, interval) {
                Err(error) => error,
                Ok(mut watch) => loop {
                    match watch.next_status() {
                        Err(error) => break error,
                        Ok(status) => {
                            if sender.send(Ok(status)).is_err() {
                                return;
                            }
                        }
                    }
                },
            };
            if sender.send(Err(gone)).is_err() {
                return;
            }
            std::thread::sleep(RETRY_INTERVAL);
        }
    });
    statuses
}

/// Draws until a key or a signal ends it.
fn show(
    terminal: &mut DefaultTerminal,
    socket: &Path,
    statuses: &mpsc::Receiver<Result<Status, ClientError>>,
    stop: &AtomicBool,
) -> io::Result<()> {
    let (mut history, mut state, mut is_changed) = (History::default(), State::default(), true);
    while !stop.load(Ordering::Relaxed) {
        for status in statuses.try_iter() {
            match status {
                Ok(status) => {
                    state.gone = None;
                    if !state.is_paused {
                        history.push(status);
                    }
                }
                Err(error) => state.gone = Some(error.to_string()),
            }
            is_changed = true;
        }
        if is_changed {
            terminal.draw(|frame| Screen { history: &history, socket, state: &mut state }.draw(frame))?;
            is_changed = false;
        }
        if event::poll(LOOK_INTERVAL)? {
            match event::read()? {
                Event::Key(key) if key.kind != KeyEventKind::Release && !obey(key, &mut state) => return Ok(()),
                _ => {}
            }
            is_changed = true;
        }
    }
    Ok(())
}

/// Does what a key asks for; returns whether to go on.
fn obey(key: KeyEvent, state: &mut State) -> bool {
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return false,
        KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
        KeyCode::Char(' ' | 'p') => state.is_paused = !state.is_paused,
        KeyCode::Up | KeyCode::Char('k') => state.first = state.first.saturating_sub(1),
        // The screen bounds it.
        KeyCode::Down | KeyCode::Char('j') => state.first += 1,
        KeyCode::PageUp => state.first = state.first.saturating_sub(10),
        KeyCode::PageDown => state.first += 10,
        KeyCode::Home => state.first = 0,
        _ => {}
    }
    true
}

//! What `mixd top` draws.

use super::rates::{History, TrainerRate};
use crate::escape::escaped;
use crate::status::{Feed, Status, Trainer, Verdict};
use crate::types::Device;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph, Sparkline, Wrap};
use std::path::Path;

const KEYS: &str = " q quit   space pause   ↑↓ scroll";
/// Columns of a stage's name, of its share, of its rate.
const STAGE_COLUMNS: [u16; 3] = [8, 21, 18];

/// What keys have changed.
#[derive(Default)]
pub struct State {
    /// Whether new statuses are not shown.
    pub is_paused: bool,
    /// Why there is no daemon.
    pub gone: Option<String>,
    /// The first line of feeds that is shown.
    pub first: usize,
}

/// A screen to draw.
pub struct Screen<'a> {
    /// What is shown.
    pub history: &'a History,
    /// Where it comes from.
    pub socket: &'a Path,
    /// How.
    pub state: &'a mut State,
}

impl Screen<'_> {
    /// Draws all of it, at any size.
    pub fn draw(&mut self, frame: &mut Frame<'_>) {
        let area = frame.area();
        let Some(status) = self.history.now() else {
            let text = self.state.gone.clone().unwrap_or_else(|| format!("connecting to {} …", escaped(self.socket)));
            return frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), area);
        };
        let (text, color) = self.verdict(status);
        let verdict = wrapped(&text, area.width.saturating_sub(2).into());
        let stores = caches(status);
        let [head, verdict_area, stages, caches_area, feeds, keys] = Layout::vertical([
            Constraint::Length(1),
            // With its borders.
            Constraint::Length(verdict.len() as u16 + 2),
            Constraint::Length(status.stages.len() as u16 + 2),
            Constraint::Length(stores.len() as u16),
            Constraint::Min(3),
            Constraint::Length(1),
        ])
        .areas(area);
        self.head(frame, head, status);
        let block = Block::bordered().title(" verdict ").border_style(Style::new().fg(color));
        frame.render_widget(Paragraph::new(verdict).block(block), verdict_area);
        self.stages(frame, stages, status);
        frame.render_widget(Paragraph::new(stores), caches_area);
        self.feeds(frame, feeds, status);
        self.keys(frame, keys);
    }

    fn head(&self, frame: &mut Frame<'_>, area: Rect, status: &Status) {
        let draining = if status.draining { ", draining" } else { "" };
        let uptime = status.uptime_s as u64;
        let title = format!(
            " mixd {} (pid {}), up {}:{:02}:{:02}{draining}  ",
            status.version,
            status.pid,
            uptime / 3600,
            uptime / 60 % 60,
            uptime % 60
        );
        let title = Span::styled(title, Style::new().add_modifier(Modifier::BOLD));
        let counts = format!("{} train, {} val: ", status.train_samples, status.val_samples);
        // Of a long path the end tells more.
        let room = usize::from(area.width).saturating_sub(title.width() + counts.len());
        let length = status.data.chars().count();
        let data = match length <= room {
            true => status.data.clone(),
            false => "…".chars().chain(status.data.chars().skip(length + 1 - room.max(1))).collect(),
        };
        frame.render_widget(Line::from(vec![title, Span::raw(counts), Span::raw(data)]), area);
    }

    fn verdict(&self, status: &Status) -> (String, Color) {
        if let Some(gone) = &self.state.gone {
            return (format!("{gone}; waiting for another"), Color::Red);
        }
        let Some(Verdict { bound, text, .. }) = &status.verdict else { return (String::new(), Color::Reset) };
        let color = match &**bound {
            "trainer" => Color::Green,
            "idle" | "measuring" => Color::Reset,
            _ => Color::Yellow,
        };
        (text.clone(), color)
    }

    /// A bar for each stage: the share of its threads' time that it was at work.
    fn stages(&self, frame: &mut Frame<'_>, area: Rect, status: &Status) {
        let rate = self.history.rate(|status| status.mixed.images as f64);
        let block = Block::bordered().title(format!(" stages: {} images/s mixed ", short(rate)));
        let inner = block.inner(area);
        frame.render_widget(block, area);
        let [left, right] = Layout::horizontal([Constraint::Min(0), Constraint::Percentage(25)]).areas(inner);
        for (nth, stage) in status.stages.iter().enumerate() {
            let y = left.y + nth as u16;
            if y >= left.bottom() {
                break;
            }
            let busy = self.history.stage_rate(&stage.name, |stage| stage.busy_s);
            let share = (busy / f64::from(stage.threads.max(1))).min(1.0);
            let [name, of, rate] = STAGE_COLUMNS;
            let bar_width = left.width.saturating_sub(name + of + rate);
            let items = match &*stage.name {
                "read" | "decode" => "images/s",
                "render" => "views/s",
                _ => "batches/s",
            };
            let done = self.history.stage_rate(&stage.name, |stage| stage.items as f64);
            let threads = if stage.threads == 1 { "thread" } else { "threads" };
            let line = Line::from(vec![
                Span::raw(format!("{:<width$}", stage.name, width = name.into())),
                Span::styled(bar(share, bar_width), Style::new().fg(heat(share))),
                Span::raw(format!("{:>4.0} % of {:>3} {threads:<7}", share * 100.0, stage.threads)),
                Span::raw(format!("{:>8} {items}", short(done))),
            ]);
            frame.render_widget(line, Rect { y, height: 1, ..left });
        }
        let curve: Vec<u64> =
            self.history.images_per_s().rev().take(right.width.into()).map(|rate| rate as u64).collect();
        let curve: Vec<u64> = curve.into_iter().rev().collect();
        let sparkline = Sparkline::default().data(&curve).style(Style::new().fg(Color::Cyan));
        frame.render_widget(sparkline.block(Block::new().borders(Borders::LEFT)), right);
    }

    fn feeds(&mut self, frame: &mut Frame<'_>, area: Rect, status: &Status) {
        let trainers: usize = status.feeds.iter().map(|feed| feed.trainers.len()).sum();
        let title = format!(" {}, {} ", counted(status.feeds.len(), "feed"), counted(trainers, "trainer"));
        let block = Block::bordered().title(title);
        let inner = block.inner(area);
        frame.render_widget(block, area);
        let mut lines = Vec::new();
        for feed in &status.feeds {
            lines.push(Line::styled(feed_line(feed), Style::new().add_modifier(Modifier::BOLD)));
            for trainer in &feed.trainers {
                lines.push(trainer_line(trainer, &self.history.trainer_rate(feed, trainer)));
            }
        }
        if lines.is_empty() {
            lines.push(Line::raw("no trainer is attached: mixd.connect() in Python, mixd::client::attach in Rust"));
        }
        self.state.first = self.state.first.min(lines.len().saturating_sub(inner.height.into()));
        let below = lines.len().saturating_sub(self.state.first + usize::from(inner.height));
        let shown: Vec<Line<'_>> = lines.into_iter().skip(self.state.first).collect();
        frame.render_widget(Paragraph::new(shown), inner);
        if below > 0 && area.height > 1 {
            let more = Line::raw(format!(" {} below ", counted(below, "line"))).right_aligned();
            frame.render_widget(more, Rect { y: area.bottom() - 1, height: 1, ..area });
        }
    }

    fn keys(&self, frame: &mut Frame<'_>, area: Rect) {
        let paused = if self.state.is_paused { "   paused" } else { "" };
        let style = Style::new().add_modifier(Modifier::REVERSED);
        frame.render_widget(
            Line::styled(format!("{KEYS}{paused}{:width$}", "", width = area.width.into()), style),
            area,
        );
    }
}

/// A text in lines of so many columns, broken at spaces; a longer word is cut off by the screen.
fn wrapped(text: &str, width: usize) -> Vec<Line<'static>> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut().filter(|line| Line::raw(line.as_str()).width() + 1 + Line::raw(word).width() <= width) {
            Some(line) => *line += &format!(" {word}"),
            None => lines.push(word.to_owned()),
        }
    }
    lines.into_iter().map(Line::raw).collect()
}

/// Of the caches and the object store a line each.
fn caches(status: &Status) -> Vec<Line<'static>> {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let views = status.stores.iter().map(|of| {
        let devices =
            if of.device_bytes > 0 { format!(", {:.0} MiB on devices", mib(of.device_bytes)) } else { String::new() };
        format!(
            " cache   {} views {}: {} of {} decoded, room for {} ({:.0} MiB){devices}",
            of.split,
            of.size,
            of.decoded,
            of.samples,
            of.capacity,
            mib(of.bytes)
        )
    });
    let sources = status.sources.iter().map(|of| {
        format!(
            " cache   {} images ({}): {} of {} kept ({:.0} MiB)",
            of.split,
            of.size,
            of.kept,
            of.samples,
            mib(of.bytes)
        )
    });
    let fetched = status.fetched.iter().map(|of| {
        format!(
            " store   {:.0} MiB fetched, {} retries; disk cache {:.0} of {:.0} MiB, {} evicted",
            mib(of.bytes),
            of.retries,
            mib(of.cached_bytes),
            mib(of.budget_bytes),
            of.evictions
        )
    });
    let bad = (!status.bad_samples.is_empty()).then(|| {
        format!(" bad     {} failed to decode (`mixd status` lists them)", counted(status.bad_samples.len(), "image"))
    });
    views.chain(sources).chain(fetched).chain(bad).map(Line::raw).collect()
}

fn feed_line(feed: &Feed) -> String {
    let spec = &feed.spec;
    let share = spec.share.map_or("private".to_owned(), |share| format!("`{}` ({})", share.name, share.delivery));
    let device = if spec.device == Device::Cpu { String::new() } else { format!(" on {}", spec.device) };
    format!(
        "{:>4} {share}: {} {}x{} {}{device}, epoch {}, batch {} of {}",
        feed.feed_id,
        spec.split,
        spec.batch_size,
        spec.image_size,
        spec.dtype,
        feed.next.epoch,
        feed.next.index,
        feed.batches
    )
}

fn trainer_line(trainer: &Trainer, rate: &TrainerRate) -> Line<'static> {
    let evicted = if trainer.evicted { "  evicted" } else { "" };
    let skipped = if trainer.skipped > 0 { format!("  {} skipped", trainer.skipped) } else { String::new() };
    let name: String = trainer.name.chars().take(20).collect();
    Line::from(vec![
        Span::raw(format!("     {name:<20} {:>8} {:>7} images/s", trainer.pid, short(rate.images_per_s))),
        Span::styled(format!("  waits {:>3.0} %", rate.waited * 100.0), Style::new().fg(heat(rate.waited))),
        Span::raw(format!("  {} behind{skipped}{evicted}", trainer.lag)),
    ])
}

/// A bar in eighths of a column.
fn bar(share: f64, width: u16) -> String {
    const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let eighths = (share * f64::from(width) * 8.0).round() as usize;
    let (full, part) = (eighths / 8, eighths % 8);
    let mut bar = "█".repeat(full);
    if full < width.into() {
        bar.push(EIGHTHS[part]);
        bar.push_str(&" ".repeat(usize::from(width) - full - 1));
    }
    bar
}

fn heat(share: f64) -> Color {
    match share {
        _ if share >= 0.9 => Color::Red,
        _ if share >= 0.5 => Color::Yellow,
        _ => Color::Green,
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A rate in at most four characters.
fn short(rate: f64) -> String {
    match rate {
        _ if rate < 9.95 => format!("{rate:.1}"),
        _ if rate < 999.5 => format!("{rate:.0}"),
        _ if rate < 9_950.0 => format!("{:.1}k", rate / 1e3),
        _ if rate < 999_500.0 => format!("{:.0}k", rate / 1e3),
        _ => format!("{:.1}M", rate / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::FeedSpec;
    use crate::status::{Mixed, Stage};
    use crate::types::Place;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn status(uptime_s: f64, feeds: usize) -> Status {
        let stage = |name: &str, busy_s| Stage {
            name: name.to_owned(),
            items: (uptime_s * 100.0) as u64,
            busy_s,
            waiting_in_s: 0.0,
            waiting_out_s: 0.0,
            threads: 2,
        };
        let trainer = |pid| Trainer {
            pid,
            read: uptime_s as u64,
            skipped: 3,
            waited_s: uptime_s / 4.0,
            lag: 2,
            place: Place::default(),
            evicted: false,
            name: "train.py".to_owned(),
            reader: 1,
        };
        let feed = |feed_id| Feed {
            feed_id,
            spec: FeedSpec::train(),
            published: 9,
            next: Place { epoch: 1, index: 2 },
            batches: 148,
            ring_bytes: 0,
            trainers: vec![trainer(40 + feed_id as u32)],
        };
        Status {
            pid: 7,
            version: "1.2.3".to_owned(),
            data: "imagenette2-160".to_owned(),
            notes: Vec::new(),
            uptime_s,
            cpu_s: 1.0,
            peak_rss_bytes: 0,
            decode_workers: 2,
            jpeg_decoder: String::new(),
            mixer: String::new(),
            train_samples: 9_469,
            val_samples: 3_925,
            stores: Vec::new(),
            sources: Vec::new(),
            feeds: (1..=feeds as u64).map(feed).collect(),
            bad_samples: Vec::new(),
            decode_warnings: 0,
            last_decode_warning: None,
            fetched: None,
            stages: vec![stage("plan", 0.0), stage("decode", uptime_s), stage("mix", uptime_s * 2.0)],
            draining: false,
            mixed: Mixed { images: (uptime_s * 640.0) as u64, ..Mixed::default() },
            recipe: None,
            classes: Vec::new(),
            read_bytes: 0,
            idle_cpu_s: 0.0,
            available_cpus: 2,
            verdict: Some(Verdict {
                bound: "mix".to_owned(),
                text: "mix-bound: ".to_owned() + &"word ".repeat(40),
                seconds: 10.0,
                images_per_s: 640.0,
                headroom_images_per_s: None,
            }),
        }
    }

    fn drawn(width: u16, height: u16, state: &mut State, statuses: Vec<Status>) -> String {
        let mut history = History::default();
        statuses.into_iter().for_each(|status| history.push(status));
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| Screen { history: &history, socket: Path::new("/s"), state }.draw(frame)).unwrap();
        let cells: Vec<&str> = terminal.backend().buffer().content().iter().map(|cell| cell.symbol()).collect();
        cells.chunks(width.max(1).into()).map(|row| row.concat() + "\n").collect()
    }

    #[test]
    fn rates_and_shares_are_those_between_two_statuses() {
        let screen = drawn(100, 30, &mut State::default(), vec![status(10.0, 1), status(12.0, 1)]);
        for part in [
            "mixd 1.2.3 (pid 7), up 0:00:12",
            "9469 train, 3925 val: imagenette2-160",
            "stages: 640 images/s mixed",
            "50 % of   2 threads     100 images/s",
            "100 % of   2 threads     100 batches/s",
            "1 feed, 1 trainer",
            "1 private: train 64x128x128 f32, epoch 1, batch 2 of 148",
            "train.py                   41      64 images/s  waits  25 %  2 behind  3 skipped",
        ] {
            assert!(screen.contains(part), "{part}:\n{screen}");
        }
    }

    #[test]
    fn of_a_long_path_the_end_is_shown() {
        let data = "/a/very/long/path/to/a/data/set/somewhere/imagenette2-160".to_owned();
        let first = |width| {
            let status = Status { data: data.clone(), ..status(1.0, 0) };
            drawn(width, 24, &mut State::default(), vec![status]).lines().next().unwrap().trim_end().to_owned()
        };
        assert!(first(80).ends_with("9469 train, 3925 val: …omewhere/imagenette2-160"), "{}", first(80));
        assert!(first(120).ends_with(&format!("val: {data}")), "{}", first(120));
        assert!(first(30).chars().count() <= 30);
    }

    #[test]
    fn lines_that_do_not_fit_are_counted_and_scrolled_to() {
        let statuses = || vec![status(1.0, 20), status(2.0, 20)];
        let top = drawn(80, 24, &mut State::default(), statuses());
        assert!(top.contains("20 feeds, 20 trainers") && top.contains("lines below"), "{top}");
        assert!(!top.contains("  20 private"), "{top}");
        let mut state = State { first: 1_000, ..State::default() };
        let end = drawn(80, 24, &mut state, statuses());
        assert!(end.contains("  20 private") && !end.contains("below"), "{end}");
        assert!(state.first < 40, "{}", state.first);
    }

    #[test]
    fn every_size_is_drawn() {
        for width in (1..140).step_by(3) {
            for height in (1..50).step_by(3) {
                drawn(width, height, &mut State::default(), vec![status(1.0, 5), status(2.0, 5)]);
                drawn(width, height, &mut State { gone: Some("no daemon".to_owned()), ..State::default() }, Vec::new());
            }
        }
    }

    #[test]
    fn bars_and_rates_have_their_width() {
        for eighth in 0..=80 {
            assert_eq!(bar(f64::from(eighth) / 80.0, 10).chars().count(), 10, "{eighth}");
        }
        assert_eq!((bar(0.5, 4), bar(1.0, 2), bar(0.0, 0)), ("██  ".into(), "██".into(), String::new()));
        assert_eq!(
            [0.0, 9.94, 9.96, 999.4, 1_000.0, 12_345.0, 1.2e6].map(short),
            ["0.0", "9.9", "10", "999", "1.0k", "12k", "1.2M"]
        );
    }
}

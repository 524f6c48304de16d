//! The verdict: which stage, or which trainer, bounds the rate of a daemon's trainers, from two readings of its counters.
//!
//! Trainers that hardly wait are the bottleneck themselves. Where one waits, the stages are: the mixers, unless they mostly wait for samples; else
//! whichever is busier, the planners or the workers, whose time is split between reading, decoding and rendering.

use crate::spec::Delivery;
use crate::status::{Stage, Status, Verdict};
use std::collections::BTreeSet;
use std::fmt;

/// Share of its time that a trainer may wait for batches and still count as the bottleneck itself.
const WAIT_SHARE_MAX: f64 = 0.1;
/// Processors that must be idle for another worker to bring anything.
const IDLE_CPUS_MIN: f64 = 0.25;
/// Of a trainer that waits for more of its time than this nobody knows how much it could take.
const WAIT_SHARE_KNOWN: f64 = 0.95;
/// Where a stage is busy for less of its time than this, how much more it could do is not known.
const BUSY_SHARE_KNOWN: f64 = 0.02;
/// Share of the decoded images that must be new to the cache for a pass to be the first.
const NEW_SHARE_MIN: f64 = 0.9;

/// What bounds the rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Nobody reads.
    Idle,
    /// Trainers that have attached just now.
    Measuring,
    /// The trainers.
    Trainer,
    /// Planning.
    Plan,
    /// Reading encoded images.
    Disk,
    /// Decoding.
    Decode,
    /// Rendering random views.
    Render,
    /// Mixing.
    Mix,
}

impl Bound {
    /// Each of them.
    pub const ALL: &[Self] =
        &[Self::Idle, Self::Measuring, Self::Trainer, Self::Plan, Self::Disk, Self::Decode, Self::Render, Self::Mix];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Measuring => "measuring",
            Self::Trainer => "trainer",
            Self::Plan => "plan",
            Self::Disk => "disk",
            Self::Decode => "decode",
            Self::Render => "render",
            Self::Mix => "mix",
        }
    }
}

/// The counters of one moment that a verdict takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Seconds since the daemon's start.
    pub at_s: f64,
    /// In the order of the data's way.
    pub stages: Vec<Stage>,
    /// Images mixed.
    pub images: u64,
    /// Trainers that are attached, and neither evicted nor of a closed feed.
    pub trainers: Vec<TrainerReading>,
    /// Idle time of the processors that the daemon may run on, in seconds.
    idle_cpu_s: f64,
    /// Processors that it may use, and their time that it has used, in seconds.
    cpus: f64,
    cpu_s: f64,
    /// Bytes of encoded images read.
    read_bytes: u64,
    /// Decoded images that are kept, and how many there are to keep.
    kept: u64,
    keepable: u64,
    /// Whether the images come from an object store.
    is_remote: bool,
}

/// The counters of a trainer.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainerReading {
    /// Its feed.
    pub feed: u64,
    /// Which of the feed's readers it is.
    pub reader: u64,
    /// Its process id.
    pub pid: u32,
    /// What to call it.
    pub name: String,
    /// Batches that it has read.
    pub read: u64,
    /// Seconds for which it had nothing to read.
    pub waited_s: f64,
    /// Whether it waits for nobody but the daemon.
    is_latest: bool,
}

impl Reading {
    /// The reading that a status gives.
    pub fn of(status: &Status) -> Self {
        let trainers = status.feeds.iter().flat_map(|feed| {
            let is_latest = feed.spec.share.is_some_and(|share| share.delivery == Delivery::Latest);
            feed.trainers.iter().filter(|trainer| !trainer.evicted).map(move |trainer| TrainerReading {
                feed: feed.feed_id,
                reader: trainer.reader,
                pid: trainer.pid,
                name: trainer.name.clone(),
                read: trainer.read,
                waited_s: trainer.waited_s,
                is_latest,
            })
        });
        let (stores, sources) = (&status.stores, &status.sources);
        let kept = stores.iter().map(|store| store.decoded).chain(sources.iter().map(|of| of.kept.into()));
        let keepable = stores.iter().map(|store| store.capacity).chain(sources.iter().map(|of| of.samples));
        Self {
            at_s: status.uptime_s,
            stages: status.stages.clone(),
            images: status.mixed.images,
            trainers: trainers.collect(),
            idle_cpu_s: status.idle_cpu_s,
            cpus: status.available_cpus.into(),
            cpu_s: status.cpu_s,
            read_bytes: status.read_bytes,
            kept: kept.sum(),
            keepable: keepable.map(u64::from).sum(),
            is_remote: status.fetched.is_some(),
        }
    }

    fn trainer(&self, of: &TrainerReading) -> Option<&TrainerReading> {
        self.trainers.iter().find(|trainer| (trainer.feed, trainer.reader) == (of.feed, of.reader))
    }

    /// Whether this reading has all trainers of another.
    pub fn has_trainers_of(&self, other: &Self) -> bool {
        other.trainers.iter().all(|trainer| self.trainer(trainer).is_some())
    }
}

/// What bounds the trainers of the second reading, from what was counted between the two.
pub fn verdict(before: &Reading, after: &Reading) -> Verdict {
    let seconds = after.at_s - before.at_s;
    if after.trainers.is_empty() {
        return Finding::without_rate(Bound::Idle, seconds, "idle: no trainer is attached");
    }
    if seconds <= 0.0 || !before.has_trainers_of(after) {
        return Finding::without_rate(Bound::Measuring, seconds.max(0.0), "measuring: trainers have attached just now");
    }
    let window = Window { before, after, seconds };
    let starving = window.starving();
    let finding = match starving.first() {
        None => window.trainers(),
        Some(hungriest) => window.stages(hungriest, starving.len()),
    };
    Verdict {
        bound: finding.bound.name().to_owned(),
        text: finding.text,
        seconds,
        images_per_s: window.images_per_s(),
        headroom_images_per_s: finding.headroom,
    }
}

/// What was found, and images a second that its remedy brings.
struct Finding {
    bound: Bound,
    text: String,
    headroom: Option<f64>,
}

impl Finding {
    fn without_rate(bound: Bound, seconds: f64, text: &str) -> Verdict {
        Verdict {
            bound: bound.name().to_owned(),
            text: text.to_owned(),
            seconds,
            images_per_s: 0.0,
            headroom_images_per_s: None,
        }
    }
}

/// A trainer that waits, with the share of its time.
struct Waiting<'a> {
    trainer: &'a TrainerReading,
    share: f64,
}

/// What was counted between two readings.
struct Window<'a> {
    before: &'a Reading,
    after: &'a Reading,
    seconds: f64,
}

impl Window<'_> {
    fn images_per_s(&self) -> f64 {
        self.after.images.saturating_sub(self.before.images) as f64 / self.seconds
    }

    fn wait_share(&self, trainer: &TrainerReading) -> f64 {
        let before = self.before.trainer(trainer).map_or(0.0, |before| before.waited_s);
        ((trainer.waited_s - before) / self.seconds).clamp(0.0, 1.0)
    }

    /// For each feed that keeps its trainers waiting one of them, the hungriest feed first: the one that waits least, for which the others of a
    /// lossless feed wait, too; of a latest feed, where nobody does, the one that waits most.
    fn starving(&self) -> Vec<Waiting<'_>> {
        let mut feeds: Vec<Waiting<'_>> = Vec::new();
        for trainer in &self.after.trainers {
            let waiting = Waiting { trainer, share: self.wait_share(trainer) };
            match feeds.iter_mut().find(|known| known.trainer.feed == trainer.feed) {
                Some(known) if (known.share <= waiting.share) != trainer.is_latest => {}
                Some(known) => *known = waiting,
                None => feeds.push(waiting),
            }
        }
        feeds.retain(|waiting| waiting.share >= WAIT_SHARE_MAX);
        feeds.sort_by(|a, b| b.share.total_cmp(&a.share));
        feeds
    }

    /// What a stage has done: items, seconds at work, seconds without input.
    fn stage(&self, name: &str) -> StageDelta {
        let find = |reading: &Reading| reading.stages.iter().find(|stage| stage.name == name).cloned();
        let (Some(before), Some(after)) = (find(self.before), find(self.after)) else { return StageDelta::default() };
        StageDelta {
            items: after.items.saturating_sub(before.items) as f64,
            busy_s: after.busy_s - before.busy_s,
            waiting_in_s: after.waiting_in_s - before.waiting_in_s,
            threads: f64::from(after.threads),
        }
    }

    /// Threads of a stage, on average, that were at work.
    fn busy(&self, name: &str) -> f64 {
        self.stage(name).busy_s / self.seconds
    }

    /// Workers, and how many were at work: all of them at most, though what took longer than the window counts when it ends.
    fn workers(&self) -> (f64, f64) {
        let workers = self.stage("decode").threads.max(1.0);
        (workers, ["read", "decode", "render"].map(|name| self.busy(name)).iter().sum::<f64>().min(workers))
    }

    /// The share of its time that a thread of a stage that has one for each of so many feeds was at work.
    fn of_feeds(&self, name: &str, feeds: f64) -> f64 {
        (self.busy(name) / feeds.max(1.0)).min(1.0)
    }

    /// Processors that nobody used and that this daemon may.
    fn idle_cpus(&self) -> f64 {
        let left = self.after.cpus - (self.after.cpu_s - self.before.cpu_s) / self.seconds;
        ((self.after.idle_cpu_s - self.before.idle_cpu_s) / self.seconds).min(left).max(0.0)
    }

    /// Feeds that were read.
    fn feeds_read(&self) -> f64 {
        let reads =
            |trainer: &&TrainerReading| self.before.trainer(trainer).is_none_or(|before| trainer.read > before.read);
        let feeds: BTreeSet<u64> = self.after.trainers.iter().filter(reads).map(|trainer| trainer.feed).collect();
        feeds.len() as f64
    }

    /// Where trainers hardly wait.
    fn trainers(&self) -> Finding {
        let rate = self.images_per_s();
        let waits = self.after.trainers.iter().map(|trainer| self.wait_share(trainer)).fold(0.0, f64::max);
        let (reads, waits) = (per_s(rate), percent(waits));
        let taken = match &self.after.trainers[..] {
            [one] => format!("{one} reads {reads} and waits {waits} of its time"),
            // Of a shared feed the faster wait for the slowest.
            many => {
                format!("{} trainers read {reads}, and none waits for mixd more than {waits} of its time", many.len())
            }
        };
        if rate == 0.0 {
            let nobody = match &self.after.trainers[..] {
                [one] => format!("{one} has read nothing"),
                many => format!("none of {} trainers has read anything", many.len()),
            };
            let text = format!("trainer-bound: {nobody} for {:.0} s, though batches are there", self.seconds);
            return Finding { bound: Bound::Trainer, text, headroom: None };
        }
        // The busiest stage is the first that would be full, unless processors are before.
        let ((workers, busy), feeds) = (self.workers(), self.feeds_read());
        let (mixing, planning) = (self.of_feeds("mix", feeds), self.of_feeds("plan", feeds));
        let used = (busy / workers).max(mixing).max(planning);
        let threads = busy + self.busy("mix") + self.busy("plan");
        let more = (1.0 / used - 1.0).min(self.idle_cpus() / threads);
        let headroom = (used > BUSY_SHARE_KNOWN).then_some(rate * more);
        let room = match headroom {
            Some(more) => format!("; mixd could deliver ≈ {} more", per_s(more)),
            None => "; mixd could deliver many times as much".to_owned(),
        };
        Finding { bound: Bound::Trainer, text: format!("trainer-bound: {taken}{room}"), headroom }
    }

    /// Where trainers wait for batches.
    fn stages(&self, hungriest: &Waiting<'_>, starving: usize) -> Finding {
        let (rate, feeds) = (self.images_per_s(), starving as f64);
        let others = match starving - 1 {
            0 => String::new(),
            1 => ", and a trainer of another feed less".to_owned(),
            others => format!(", and trainers of {others} other feeds less"),
        };
        let waits = format!("{} waits {} of its time{others}", hungriest.trainer, percent(hungriest.share));
        // What the trainers would take if they did not wait.
        let taken = rate / (1.0 - hungriest.share) - rate;
        let taken = (hungriest.share <= WAIT_SHARE_KNOWN).then_some(taken);
        let wanted = taken.map_or("it could read many times as much".to_owned(), |more| {
            format!("it could read ≈ {} more", per_s(more))
        });
        let (workers, busy) = self.workers();
        let (mixing, planning) = (self.of_feeds("mix", feeds), self.of_feeds("plan", feeds));
        let mix = self.stage("mix");
        if rate == 0.0 && mixing.max(planning).max(busy / workers) < BUSY_SHARE_KNOWN {
            // A stage counts its time when it has an image or a batch; what takes longer than the window is a read that hangs or is retried.
            let text = format!(
                "disk-bound: nothing has come for {:.0} s; {waits}: the log names what cannot be read",
                self.seconds
            );
            return Finding { bound: Bound::Disk, text, headroom: None };
        }
        // A mixer that mostly waits for samples holds nobody up.
        if mix.waiting_in_s <= mix.busy_s && mixing >= planning.max(busy / workers) {
            let text = format!(
                "mix-bound: mixing takes {} of a thread; {waits}; {wanted}: dtype u8 or bf16 moves fewer bytes, trainers that share a feed have it mixed \
                 once, --device cuda mixes on a GPU",
                percent(mixing)
            );
            return Finding { bound: Bound::Mix, text, headroom: None };
        }
        if planning > busy / workers {
            let planning = percent(planning);
            let text = format!(
                "plan-bound: planning takes {planning} of a thread; {waits}; {wanted}: batches of more images take less planning"
            );
            return Finding { bound: Bound::Plan, text, headroom: None };
        }
        let [read, decode, render] = ["read", "decode", "render"].map(|name| self.busy(name));
        let busy_of = format!("{busy:.1} of {workers} {} busy", if workers == 1.0 { "worker" } else { "workers" });
        if read >= decode.max(render) {
            let bytes = self.after.read_bytes.saturating_sub(self.before.read_bytes) as f64 / self.seconds / 1e6;
            let (what, where_from) = match self.after.is_remote {
                true => ("an object store", "a larger --disk-cache fetches less"),
                false => ("a disk", "a larger --cache reads less"),
            };
            let text = format!(
                "disk-bound: {busy_of}, {} of it reading from {what} ({bytes:.0} MB/s); {waits}; {wanted}: more --workers read more at once, {where_from}",
                percent((read / (read + decode + render)).min(1.0))
            );
            return Finding { bound: Bound::Disk, text, headroom: None };
        }
        let bound = if render > decode { Bound::Render } else { Bound::Decode };
        let (remedy, headroom) = self.more_workers(bound, workers, taken);
        Finding { bound, text: format!("{}-bound: {busy_of}; {waits}; {remedy}", bound.name()), headroom }
    }

    /// What brings more where workers are busy: time, in a first pass; another worker, where a processor is idle; less work otherwise.
    fn more_workers(&self, bound: Bound, workers: f64, taken: Option<f64>) -> (String, Option<f64>) {
        let decoded = self.stage("decode").items;
        let new = self.after.kept.saturating_sub(self.before.kept) as f64;
        let left = self.after.keepable.saturating_sub(self.after.kept) as f64;
        let first_pass = if bound == Bound::Decode && left > 0.0 && new > NEW_SHARE_MIN * decoded {
            format!(
                "the first pass decodes at most {} images more (≈ {:.0} s); then they come from memory; ",
                left,
                left * self.seconds / new
            )
        } else {
            String::new()
        };
        let idle = self.idle_cpus();
        let (remedy, headroom) = if idle >= IDLE_CPUS_MIN {
            let more = (self.images_per_s() / workers * idle.min(1.0)).min(taken.unwrap_or(f64::INFINITY));
            (format!("one more worker (--workers {}) ≈ +{}", workers + 1.0, per_s(more)), Some(more))
        } else {
            let less = match bound {
                Bound::Render => "smaller --source images or fewer operations take less time",
                _ => "a larger --cache decodes less, --decode scaled takes less time",
            };
            (format!("every processor is busy: {less}"), None)
        };
        (first_pass + &remedy, headroom)
    }
}

/// What a stage has done in a window.
#[derive(Default)]
struct StageDelta {
    items: f64,
    busy_s: f64,
    waiting_in_s: f64,
    threads: f64,
}

impl fmt::Display for TrainerReading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.is_empty() {
            true => write!(f, "pid {}", self.pid),
            false => write!(f, "`{}` (pid {})", self.name, self.pid),
        }
    }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

/// Images a second in at most three digits.
fn per_s(rate: f64) -> String {
    match rate {
        _ if rate < 999.5 => format!("{rate:.0} images/s"),
        _ if rate < 9_950.0 => format!("{:.1}k images/s", rate / 1e3),
        _ => format!("{:.0}k images/s", rate / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(name: &str, threads: u32, items: u64, busy_s: f64, waiting_in_s: f64) -> Stage {
        Stage { name: name.to_owned(), items, busy_s, waiting_in_s, waiting_out_s: 0.0, threads }
    }

    fn trainer(feed: u64, name: &str, waited_s: f64) -> TrainerReading {
        // Of one process, whose readers are told apart by their numbers.
        let reader = name.bytes().map(u64::from).sum();
        TrainerReading { feed, reader, pid: 7, name: name.to_owned(), read: 100, waited_s, is_latest: false }
    }

    /// Ten seconds of two workers that decode, with one trainer that waits for four of them and a processor that idles.
    fn after() -> Reading {
        let stages = vec![
            stage("plan", 1, 100, 0.1, 0.0),
            stage("read", 2, 6_400, 1.0, 0.0),
            stage("decode", 2, 6_400, 18.0, 0.0),
            stage("render", 2, 0, 0.0, 0.0),
            stage("mix", 1, 100, 1.0, 8.0),
        ];
        Reading {
            at_s: 30.0,
            stages,
            images: 6_400,
            trainers: vec![trainer(1, "a", 4.0)],
            idle_cpu_s: 10.0,
            cpus: 4.0,
            cpu_s: 20.0,
            read_bytes: 1_000_000_000,
            kept: 0,
            keepable: 0,
            is_remote: false,
        }
    }

    fn before(after: &Reading) -> Reading {
        let stages = after.stages.iter().map(|of| stage(&of.name, of.threads, 0, 0.0, 0.0)).collect();
        let trainers =
            after.trainers.iter().map(|of| TrainerReading { waited_s: 0.0, read: 0, ..of.clone() }).collect();
        Reading {
            at_s: 20.0,
            stages,
            images: 0,
            trainers,
            idle_cpu_s: 0.0,
            cpu_s: 0.0,
            read_bytes: 0,
            kept: 0,
            ..after.clone()
        }
    }

    fn text(after: &Reading) -> String {
        verdict(&before(after), after).text
    }

    #[test]
    fn another_worker_brings_what_one_does_and_no_more_than_trainers_take() {
        let found = verdict(&before(&after()), &after());
        assert_eq!(
            found.text,
            "decode-bound: 1.9 of 2 workers busy; `a` (pid 7) waits 40 % of its time; one more worker (--workers 3) ≈ +320 images/s"
        );
        assert_eq!((found.images_per_s, found.headroom_images_per_s), (640.0, Some(320.0)));
        // With a tenth of its time left to wait the trainer takes an eighth more.
        let little = Reading { trainers: vec![trainer(1, "a", 1.2)], ..after() };
        assert!(text(&little).ends_with("≈ +87 images/s"), "{}", text(&little));
        // Half a processor is half a worker.
        let busy = Reading { idle_cpu_s: 5.0, ..after() };
        assert!(text(&busy).ends_with("≈ +160 images/s"), "{}", text(&busy));
        // A quota is no idle processor.
        let quota = Reading { cpus: 2.0, ..after() };
        assert!(text(&quota).contains("every processor is busy"), "{}", text(&quota));
        let full = Reading { idle_cpu_s: 1.0, ..after() };
        assert!(text(&full).contains("every processor is busy: a larger --cache"), "{}", text(&full));
    }

    #[test]
    fn a_first_pass_is_said_to_end() {
        let filling = Reading { kept: 6_400, keepable: 9_600, ..after() };
        assert!(
            text(&filling).contains("the first pass decodes at most 3200 images more (≈ 5 s)"),
            "{}",
            text(&filling)
        );
        let thrashing = Reading { kept: 100, keepable: 9_600, ..after() };
        assert!(!text(&thrashing).contains("first pass"), "{}", text(&thrashing));
    }

    #[test]
    fn a_trainer_that_hardly_waits_is_the_bottleneck_and_room_is_what_the_busiest_stage_leaves() {
        let mut slow = Reading { trainers: vec![trainer(1, "a", 0.5)], ..after() };
        slow.stages[2].busy_s = 4.0;
        assert_eq!(
            text(&slow),
            "trainer-bound: `a` (pid 7) reads 640 images/s and waits 5 % of its time; mixd could deliver ≈ 1.0k images/s more"
        );
    }

    #[test]
    fn a_trainer_that_reads_nothing_is_said_to() {
        let still = Reading { images: 0, trainers: vec![trainer(1, "a", 0.0)], ..after() };
        assert_eq!(text(&still), "trainer-bound: `a` (pid 7) has read nothing for 10 s, though batches are there");
    }

    #[test]
    fn the_slowest_trainer_of_a_shared_feed_sets_its_pace_unless_none_waits_for_another() {
        let shared = Reading { trainers: vec![trainer(1, "slow", 0.1), trainer(1, "fast", 8.0)], ..after() };
        assert!(text(&shared).starts_with("trainer-bound: 2 trainers read 640 images/s"), "{}", text(&shared));
        let mut latest = shared;
        latest.trainers.iter_mut().for_each(|trainer| trainer.is_latest = true);
        assert!(text(&latest).starts_with("decode-bound: "), "{}", text(&latest));
        // One mixer of a latest feed is one, however many trainers wait.
        latest.stages[4] = stage("mix", 1, 100, 9.5, 0.0);
        latest.stages[2].busy_s = 8.0;
        assert!(text(&latest).starts_with("mix-bound: mixing takes 95 % of a thread; `fast`"), "{}", text(&latest));
        // One starving feed is enough, whatever others do.
        let two = Reading { trainers: vec![trainer(1, "slow", 0.1), trainer(2, "fast", 8.0)], ..after() };
        assert!(text(&two).contains("`fast` (pid 7) waits 80 % of its time;"), "{}", text(&two));
    }

    #[test]
    fn a_standstill_is_the_disk_s() {
        let mut still = Reading { images: 0, trainers: vec![trainer(1, "a", 10.0)], ..after() };
        still.stages.iter_mut().for_each(|stage| (stage.busy_s, stage.waiting_in_s, stage.items) = (0.0, 0.0, 0));
        assert_eq!(
            text(&still),
            "disk-bound: nothing has come for 10 s; `a` (pid 7) waits 100 % of its time: the log names what cannot be read"
        );
    }

    #[test]
    fn trainers_that_came_meanwhile_are_not_judged() {
        let (now, then) = (after(), before(&after()));
        let alone = Reading { trainers: Vec::new(), ..then.clone() };
        assert_eq!((verdict(&alone, &now).bound, verdict(&now, &now).bound), ("measuring".into(), "measuring".into()));
        assert_eq!(verdict(&then, &Reading { trainers: Vec::new(), ..now }).bound, "idle");
    }

    #[test]
    fn rates_have_three_digits_at_most() {
        assert_eq!(
            [0.4, 999.4, 999.6, 9_949.0, 9_950.0, 123_456.0].map(per_s),
            ["0 images/s", "999 images/s", "1.0k images/s", "9.9k images/s", "10k images/s", "123k images/s"]
        );
    }
}

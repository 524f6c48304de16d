//! One round: what trainers counted, and what the daemon did meanwhile.

use super::child::Trainer;
use super::measured::Measured;
use super::report::{Counted, Report};
use crate::cli::own_daemon::OwnDaemon;
use crate::client;
use crate::status::{Mixed, Status, Verdict};
use crate::verdict::{Reading, verdict};

/// A round: what trainers counted, and what the daemon did meanwhile.
pub struct Round {
    /// By trainer.
    pub trainers: Vec<Counted>,
    /// The daemon's counters before it.
    pub before: Status,
    /// And after it.
    pub after: Status,
    /// The machine's ceilings just before.
    pub ceiling: Option<Measured>,
    /// What a trainer with a feed of its own counted just before, where the others share one.
    pub alone: Option<Box<Round>>,
    /// What a loop in Python counted just after.
    pub python: Option<Box<Round>>,
}

/// Has all trainers count once.
pub fn round(daemon: &OwnDaemon, trainers: &mut [Trainer]) -> anyhow::Result<Round> {
    trainers.iter_mut().try_for_each(Trainer::begin)?;
    for trainer in &mut *trainers {
        let report = trainer.report()?;
        anyhow::ensure!(matches!(report, Report::Counting), "a trainer does not begin to count: {report:?}");
    }
    let before = client::status(daemon.socket())?;
    let counted = trainers.iter_mut().map(|trainer| match trainer.report()? {
        Report::Round(counted) => Ok(counted),
        report => anyhow::bail!("a trainer has not counted: {report:?}"),
    });
    let trainers = counted.collect::<anyhow::Result<_>>()?;
    let after = client::status(daemon.socket())?;
    Ok(Round { trainers, before, after, ceiling: None, alone: None, python: None })
}

impl Round {
    /// Images a second of all trainers.
    pub fn images_per_s(&self) -> f64 {
        self.trainers.iter().map(|one| one.images as f64 / one.seconds).sum()
    }

    /// Images a second of the slowest trainer.
    pub fn slowest(&self) -> f64 {
        self.trainers.iter().map(|one| one.images as f64 / one.seconds).fold(f64::INFINITY, f64::min)
    }

    /// Seconds of the trainer that counted longest.
    pub fn seconds(&self) -> f64 {
        self.trainers.iter().map(|one| one.seconds).fold(0.0, f64::max)
    }

    /// What bounds the trainers.
    pub fn verdict(&self) -> Verdict {
        verdict(&Reading::of(&self.before), &Reading::of(&self.after))
    }

    /// Processor time of the daemon.
    pub fn cpu_seconds(&self) -> f64 {
        self.after.cpu_s - self.before.cpu_s
    }

    /// What the daemon's mixers did in the round.
    pub fn mixed(&self, of: fn(&Mixed) -> u64) -> f64 {
        let count = |status: &Status| of(&status.mixed);
        (count(&self.after) - count(&self.before)) as f64
    }

    /// Images that the daemon mixed, if any. It runs ahead of trainers by what is in flight, so its work is set against these.
    pub fn mixed_images(&self) -> Option<f64> {
        Some(self.mixed(|mixed| mixed.images)).filter(|&images| images > 0.0)
    }

    /// Processor time of the daemon for the images that it mixed.
    pub fn cpu_ms_per_1000_images(&self) -> Option<f64> {
        Some(self.cpu_seconds() * 1e6 / self.mixed_images()?)
    }
}

/// The round whose rate is the median, of an even number the lower of the middle two.
///
/// # Panics
/// Without rounds.
pub fn typical(rounds: &[Round]) -> &Round {
    let mut rounds: Vec<&Round> = rounds.iter().collect();
    rounds.sort_by(|a, b| a.images_per_s().total_cmp(&b.images_per_s()));
    rounds[(rounds.len() - 1) / 2]
}

/// The median; of an even number of values the mean of the middle two.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len().checked_sub(1)? / 2;
    Some((values[middle] + values[values.len() / 2]) / 2.0)
}

//! The plan stage: one thread a feed, which plans batches and requests their samples.

use super::ahead::Announcer;
use super::render_stage::Job;
use super::request::{Location, Pending, Requester, Scratch};
use super::{FeedError, OpenError};
use crate::memory::Promise;
use crate::plan::{ImagePlan, Plan, Sampler};
use crate::ring::RingError;
use crate::spec::{Erase, FeedSpec};
use crate::stats::{Clock, Doing};
use crate::store::Rows;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::sync::Arc;

/// Plans the batches of a feed and requests their samples.
pub struct PlanStage {
    requester: Requester,
    erase: Erase,
    free: Receiver<Scratch>,
}

impl PlanStage {
    /// The stage of a feed of `spec`, with scratch for `ahead` batches, and where finished batches give theirs back.
    ///
    /// # Errors
    /// When there is no memory for staging.
    pub fn new(requester: Requester, spec: &FeedSpec, ahead: usize) -> Result<(Self, Sender<Scratch>), OpenError> {
        let samples = spec.samples_max();
        let staging_rows = if requester.entry.store.holds_all() { 0 } else { samples };
        let row_bytes = spec.image_size.values();
        let (recycler, free) = bounded(ahead);
        for _ in 0..ahead {
            let settled = Arc::clone(&requester.shared.settled);
            let promise = Promise::new(u64::from(staging_rows) * row_bytes as u64, 0).map_err(RingError::from)?;
            let staging = Rows::promised(staging_rows, row_bytes, promise, settled).map_err(OpenError::Memory)?;
            let scratch = Scratch { locations: Vec::with_capacity(samples as usize), erasures: Vec::new(), staging };
            recycler.send(scratch).expect("both ends are here");
        }
        Ok((Self { requester, erase: spec.erase, free }, recycler))
    }

    /// Waits for free scratch and requests every sample of `plan`; books on `clock` how long it waited for either.
    ///
    /// # Errors
    /// When the pipeline is going down.
    pub fn request(&mut self, plan: Plan, clock: &mut Clock) -> Result<Pending, FeedError> {
        clock.lap(Doing::Busy);
        let Scratch { mut locations, mut erasures, mut staging } = self.free.recv().map_err(|_| FeedError::Stopping)?;
        if !Rows::reuse(&mut staging, || self.requester.is_stopped()) {
            return Err(FeedError::Stopping);
        }
        clock.lap(Doing::WaitingOut);
        locations.clear();
        let size = plan.image_size;
        let mut send = |job: Job| {
            clock.lap(Doing::Busy);
            let sent = self.requester.send(job);
            clock.lap(Doing::WaitingOut);
            sent
        };
        // Consecutive views of one sample share a job.
        let mut unsent: Option<Job> = None;
        let mut ask = |image: &ImagePlan, at: usize| -> Result<Location, FeedError> {
            let (location, job) = self.requester.locate(image, size, &staging, at as u32);
            let another = job.and_then(|job| match &mut unsent {
                Some(unsent) => unsent.join(job),
                None => Some(job),
            });
            if let Some(previous) = another.and_then(|job| unsent.replace(job)) {
                send(previous)?;
            }
            Ok(location)
        };
        for (at, row) in plan.rows.iter().enumerate() {
            locations.push(ask(&row.own, at)?);
        }
        if plan.takes_others() {
            for (at, row) in plan.rows.iter().enumerate() {
                // A partner from this batch has been located as its own row's image.
                let located = usize::try_from(row.partner_row).ok().map(|row| locations[row]);
                locations.push(located.map_or_else(|| ask(&row.partner, plan.len() + at), Ok)?);
            }
        }
        unsent.map_or(Ok(()), send)?;
        erasures.clear();
        if self.erase.prob > 0.0 {
            let draw = |image: &ImagePlan| image.view.erasure(&self.erase, plan.image_size);
            erasures.extend(plan.rows.iter().map(|row| draw(&row.own)));
            if plan.takes_others() {
                for row in &plan.rows {
                    let known = usize::try_from(row.partner_row).ok().map(|partner| erasures[partner]);
                    erasures.push(known.unwrap_or_else(|| draw(&row.partner)));
                }
            }
        }
        Ok(Pending { plan, locations, erasures, staging })
    }

    /// Plans and requests one batch after the other, until the mix stage has ended or the pipeline goes down.
    pub fn run(mut self, sampler: &Sampler, batches: &Sender<Pending>) {
        let shared = Arc::clone(&self.requester.shared);
        let mut clock = Clock::start(&shared.stats.plan);
        let mut place = sampler.start();
        let mut epoch = sampler.epoch(place.epoch);
        let mut announcer = Announcer::new(Arc::clone(&shared.source), sampler.spec().split);
        loop {
            if epoch.number() != place.epoch {
                epoch = sampler.epoch(place.epoch);
            }
            announcer.reach(sampler, place);
            // Either fails only when the other side has ended.
            let Ok(pending) = self.request(epoch.plan(place.index), &mut clock) else { return };
            clock.lap(Doing::Busy);
            if batches.send(pending).is_err() {
                return;
            }
            clock.count();
            clock.lap(Doing::WaitingOut);
            place = place.next(sampler.batches());
        }
    }
}

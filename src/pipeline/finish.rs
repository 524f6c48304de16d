//! The mix stage's work on one batch: wait for its samples, put substitutes for bad ones, mix.

use super::fetch::{Location, Pending, Requester, Scratch};
use super::ledger::{BadSample, OnBadImage};
use super::{BATCHES_AT_ONCE, FeedError, Shared};
use crate::batch::BatchView;
use crate::config::FeedSpec;
use crate::mix::{Mixer, Moved, Notice, Row, Target};
use crate::sampler::Plan;
use crate::types::SampleId;
use crossbeam_channel::Sender;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use xxhash_rust::xxh3::Xxh3;

/// Finishes batches of one feed.
pub struct Finisher {
    requester: Requester,
    mixer: Box<dyn Mixer>,
    spec: FeedSpec,
    recycler: Sender<Scratch>,
    /// The batch after the one that was mixed last, where the mixer has asked for it.
    next: Option<Pending>,
    /// Scratch to be given back.
    finished: Vec<Scratch>,
}

/// A batch's labels, beside its plan.
#[derive(Debug, Default)]
pub struct Labels {
    /// Class of each row's own sample.
    pub label_a: Vec<i64>,
    /// Class of each row's partner.
    pub label_b: Vec<i64>,
}

impl Finisher {
    /// A finisher for feeds of `spec`.
    pub fn new(requester: Requester, mixer: Box<dyn Mixer>, spec: FeedSpec, recycler: Sender<Scratch>) -> Self {
        Self { requester, mixer, spec, recycler, next: None, finished: Vec::with_capacity(BATCHES_AT_ONCE) }
    }

    /// What the feed was asked to be.
    pub fn spec(&self) -> &FeedSpec {
        &self.spec
    }

    /// The mixer's name.
    pub fn mixer(&self) -> &'static str {
        self.mixer.name()
    }

    /// Hash of everything beside the feed spec that its bytes depend on, but for what the files hold.
    pub fn identity(&self) -> u64 {
        let mut hash = Xxh3::with_seed(self.requester.entry.pixels_key);
        hash.update(self.mixer.name().as_bytes());
        hash.digest()
    }

    /// What feeds share.
    pub fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.requester.shared)
    }

    /// What ends the feed once it is set and announced.
    pub fn stopped(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.requester.stopped)
    }

    /// Waits for every sample of the batch; bad ones are substituted, in the plan, too.
    ///
    /// # Errors
    /// When the policy for bad images ends the feed, or it was stopped.
    pub fn settle(&self, pending: &mut Pending) -> Result<(), FeedError> {
        let rows = pending.plan.own.len();
        let mut substituted = false;
        // The last first: it was asked for last, so that once it is there most others are, and this thread is woken once.
        for at in (0..pending.locations.len()).rev() {
            let Plan { own, partner, .. } = &pending.plan;
            let planned = if at < rows { own[at] } else { partner[at - rows] };
            if let Some(location) = pending.settle(&self.requester, planned, at as u32, pending.locations[at])? {
                pending.locations[at] = location;
                continue;
            }
            substituted = true;
            let (sample, location) = self.substitute(pending, planned, at as u32)?;
            pending.locations[at] = location;
            let Plan { own, partner, .. } = &mut pending.plan;
            *(if at < rows { &mut own[at] } else { &mut partner[at - rows] }) = sample;
        }
        if substituted {
            let Plan { own, partner, partner_row, .. } = &mut pending.plan;
            for (partner, &row) in partner.iter_mut().zip(&*partner_row).filter(|(_, row)| **row >= 0) {
                *partner = own[row as usize];
            }
        }
        Ok(())
    }

    /// The next readable sample of the same class, in the order of the index, and where it is.
    fn substitute(&self, pending: &Pending, bad: SampleId, staged: u32) -> Result<(SampleId, Location), FeedError> {
        let (shared, split) = (&self.requester.shared, self.spec.split);
        let (source, samples) = (&shared.source, shared.source.len(split));
        let label = source.label(split, bad);
        let entry = |sample_id| {
            shared.ledger.find(split, sample_id).unwrap_or_else(|| BadSample {
                split,
                sample_id,
                name: source.name(split, sample_id),
                cause: "cannot be decoded".to_owned(),
            })
        };
        if shared.options.on_bad_image == OnBadImage::Fail {
            return Err(FeedError::BadImage(entry(bad)));
        }
        let count = shared.ledger.count(split);
        if count * 20 > samples as usize {
            return Err(FeedError::TooManyBad { bad: count, samples, split });
        }
        let after = (bad + 1..samples).chain(0..bad);
        for candidate in after.filter(|&id| source.label(split, id) == label) {
            let location = self.requester.request(candidate, &pending.staging, staged)?;
            if let Some(location) = pending.settle(&self.requester, candidate, staged, location)? {
                return Ok((candidate, location));
            }
        }
        let class = source.class_name(label).to_owned();
        Err(FeedError::NoSubstitute { class, split, last: entry(bad) })
    }

    /// The batch that `look` gave when the last one was mixed: it is to be mixed next.
    pub fn next(&mut self) -> Option<Pending> {
        self.next.take()
    }

    /// Mixes a settled batch to `target` and notes its labels; returns what a device moved. A mixer that has use for the batch after it takes
    /// that from `look`.
    ///
    /// # Errors
    /// When the mixer's device fails.
    pub fn mix(
        &mut self,
        pending: &Pending,
        look: &mut dyn FnMut() -> Option<Pending>,
        target: Target<'_>,
        labels: &mut Labels,
        notice: Option<&Notice<'_>>,
    ) -> Result<Moved, FeedError> {
        let (plan, Self { requester, mixer, next, .. }) = (&pending.plan, &mut *self);
        let own = if mixer.has_sent() { Vec::new() } else { rows(requester, pending) };
        let mut tell = |take: &mut dyn FnMut(&[Row<'_>])| {
            *next = look();
            // One whose samples are not there, or bad, waits for its turn.
            if let Some(next) = next.as_ref().filter(|next| next.is_there(requester)) {
                take(&rows(requester, next));
            }
        };
        let moved = mixer.mix(&own, target, notice, Some(&mut tell))?;
        let (source, split) = (&self.requester.shared.source, self.spec.split);
        for (labels, ids) in [(&mut labels.label_a, &plan.own), (&mut labels.label_b, &plan.partner)] {
            labels.clear();
            labels.extend(ids.iter().map(|&id| i64::from(source.label(split, id))));
        }
        Ok(moved)
    }

    /// The digest of a mixed batch, where the feed makes digests; 0 otherwise.
    pub fn digest(&self, plan: &Plan, labels: &Labels, x: &[u8]) -> u64 {
        if self.spec.digest { view(&self.spec, plan, labels, x, 0).digest_by(self.mixer.name()) } else { 0 }
    }

    /// Gives a finished batch's scratch back, [`BATCHES_AT_ONCE`] together.
    pub fn recycle(&mut self, pending: Pending) -> Plan {
        let (plan, scratch) = pending.into_scratch();
        self.finished.push(scratch);
        if self.finished.len() == BATCHES_AT_ONCE {
            // Full is impossible; disconnected means that the plan stage has ended.
            self.finished.drain(..).for_each(|scratch| drop(self.recycler.try_send(scratch)));
        }
        plan
    }
}

/// A settled batch's rows, as the mixer is told them.
fn rows<'a>(requester: &'a Requester, pending: &'a Pending) -> Vec<Row<'a>> {
    let (plan, rows) = (&pending.plan, pending.plan.own.len());
    let sample = |at: usize| {
        let (memory, row) = pending.row(&requester.entry, pending.locations[at]).expect("settled");
        memory.get(row).expect("settled")
    };
    (0..rows)
        .map(|at| {
            let partner_row = plan.partner_row[at];
            let partner = usize::try_from(partner_row).unwrap_or(rows + at);
            let cut = plan.cuts.get(at).copied();
            // A box shows the partner as it is, and the rest the own image.
            let lambda = if cut.is_some() { 1.0 } else { plan.lambda[at] };
            let flip = |flips: &[bool]| flips.get(at).copied().unwrap_or(false);
            let (flip, partner_flip) = (flip(&plan.flip), flip(&plan.partner_flip));
            Row { own: sample(at), partner: sample(partner), lambda, partner_row, cut, flip, partner_flip }
        })
        .collect()
}

/// A batch whose parts lie here and there.
fn view<'a>(spec: &FeedSpec, plan: &'a Plan, labels: &'a Labels, x: &'a [u8], digest: u64) -> BatchView<'a> {
    BatchView {
        x,
        x_on_device: None,
        dtype: spec.dtype,
        layout: spec.layout,
        image_size: spec.image_size,
        label_a: &labels.label_a,
        label_b: &labels.label_b,
        lambda: &plan.lambda,
        partner: &plan.partner_row,
        sample_id: &plan.own,
        partner_id: &plan.partner,
        epoch: plan.place.epoch,
        index: plan.place.index,
        batches: plan.batches,
        pad: plan.pad,
        digest,
    }
}

/// A batch in memory of its own.
pub struct OwnedBatch {
    spec: FeedSpec,
    /// What was made, with substitutes in place.
    pub plan: Plan,
    labels: Labels,
    x: Vec<u128>,
    x_bytes: usize,
    digest: u64,
    /// The names of the own samples in the source.
    pub names: Vec<String>,
}

impl OwnedBatch {
    /// Finishes a pending batch.
    pub(super) fn finish(finisher: &mut Finisher, mut pending: Pending) -> Result<Self, FeedError> {
        finisher.settle(&mut pending)?;
        let spec = *finisher.spec();
        let x_bytes = pending.plan.own.len() * spec.format().image_bytes();
        let (mut x, mut labels) = (vec![0_u128; x_bytes.div_ceil(16)], Labels::default());
        let target = Target::Memory(&mut bytemuck::cast_slice_mut(&mut x)[..x_bytes]);
        finisher.mix(&pending, &mut || None, target, &mut labels, None)?;
        let digest = finisher.digest(&pending.plan, &labels, &bytemuck::cast_slice(&x)[..x_bytes]);
        let plan = finisher.recycle(pending);
        let shared = finisher.shared();
        let names = plan.own.iter().map(|&id| shared.source.name(spec.split, id)).collect();
        Ok(Self { spec, plan, labels, x, x_bytes, digest, names })
    }

    /// The batch.
    pub fn view(&self) -> BatchView<'_> {
        view(&self.spec, &self.plan, &self.labels, &bytemuck::cast_slice(&self.x)[..self.x_bytes], self.digest)
    }
}

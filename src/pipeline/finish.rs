//! The mix stage's work on one batch: wait for its samples, put substitutes for bad ones, mix.

use super::fetch::{Location, Pending, Requester, Scratch};
use super::ledger::{BadSample, OnBadImage};
use super::{BATCHES_AT_ONCE, FeedError, Shared};
use crate::batch::{BatchView, Head};
use crate::columns::{Columns, OwnedColumns};
use crate::mix::{Mixer, Moved, Notice, Row, Sample, Target};
use crate::plan::{ImagePlan, Plan, RowPlan};
use crate::spec::FeedSpec;
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
        let rows = pending.plan.len();
        let mut substituted = false;
        // The last first: it was asked for last, so that once it is there most others are, and this thread is woken once.
        for at in (0..pending.locations.len()).rev() {
            let planned = if at < rows { pending.plan.rows[at].own } else { pending.plan.rows[at - rows].partner };
            if at >= rows && pending.plan.rows[at - rows].partner_row >= 0 {
                continue;
            }
            if let Some(location) = pending.settle(&self.requester, planned, at as u32, pending.locations[at])? {
                pending.locations[at] = location;
                continue;
            }
            substituted = true;
            let (image, location) = self.substitute(pending, planned, at as u32)?;
            pending.locations[at] = location;
            let plans = &mut pending.plan.rows;
            *(if at < rows { &mut plans[at].own } else { &mut plans[at - rows].partner }) = image;
        }
        // A partner from this batch is what its own row has become.
        let has_others = pending.locations.len() > rows;
        for at in 0..rows {
            let Ok(row) = usize::try_from(pending.plan.rows[at].partner_row) else { continue };
            if substituted {
                pending.plan.rows[at].partner = pending.plan.rows[row].own;
            }
            if has_others {
                pending.locations[rows + at] = pending.locations[row];
            }
        }
        Ok(())
    }

    /// The next readable sample of the same class, in the order of the index, and where it is.
    fn substitute(&self, pending: &Pending, image: ImagePlan, staged: u32) -> Result<(ImagePlan, Location), FeedError> {
        let (shared, split, bad) = (&self.requester.shared, self.spec.split, image.sample);
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
            let image = ImagePlan { sample: candidate, ..image };
            let location = self.requester.request(image, &pending.staging, staged)?;
            if let Some(location) = pending.settle(&self.requester, image, staged, location)? {
                return Ok((image, location));
            }
        }
        let class = source.class_name(label).to_owned();
        Err(FeedError::NoSubstitute { class, split, last: entry(bad) })
    }

    /// The batch that `look` gave when the last one was mixed: it is to be mixed next.
    pub fn next(&mut self) -> Option<Pending> {
        self.next.take()
    }

    /// Mixes a settled batch to `target` and fills its columns; returns what a device moved. A mixer that has use for the batch after it takes
    /// that from `look`.
    ///
    /// # Errors
    /// When the mixer's device fails.
    pub fn mix(
        &mut self,
        pending: &Pending,
        look: &mut dyn FnMut() -> Option<Pending>,
        target: Target<'_>,
        columns: &mut OwnedColumns,
        notice: Option<&Notice<'_>>,
    ) -> Result<Moved, FeedError> {
        let (plan, Self { requester, mixer, next, spec, .. }) = (&pending.plan, &mut *self);
        let own = if mixer.has_sent() { Vec::new() } else { rows(requester, pending) };
        let mut tell = |take: &mut dyn FnMut(&[Row<'_>])| {
            *next = look();
            // One whose samples are not there, or bad, waits for its turn.
            if let Some(next) = next.as_ref().filter(|next| next.is_there(requester)) {
                take(&rows(requester, next));
            }
        };
        let moved = mixer.mix(&own, target, notice, Some(&mut tell))?;
        let (source, split) = (&requester.shared.source, spec.split);
        plan.fill(columns, |id| i64::from(source.label(split, id)), |at| requester.crop(&plan.rows[at].own));
        Ok(moved)
    }

    /// The head of a mixed batch, with its digest where the feed makes digests.
    pub fn head(&self, plan: &Plan, columns: Columns<'_>, x: &[u8]) -> Head {
        let head = plan.head();
        let digest = if self.spec.digest { view(&self.spec, head, columns, x).digest_by(self.mixer.name()) } else { 0 };
        Head { digest, ..head }
    }

    /// The own images' views, flipped: u8 `[B, 3, H, W]`.
    fn views(&self, pending: &Pending) -> Vec<u8> {
        let mut views = Vec::with_capacity(pending.plan.len() * self.spec.image_size.values());
        for row in rows(&self.requester, pending) {
            let first = views.len();
            views.extend_from_slice(row.own.bytes);
            if row.flip {
                views[first..].chunks_exact_mut(self.spec.image_size.width as usize).for_each(<[u8]>::reverse);
            }
        }
        views
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
    let (plan, rows) = (&pending.plan, pending.plan.len());
    let rendered = requester.entry.views.are_random();
    let sample = |at: usize| {
        let location = pending.locations[at];
        let (memory, row) = pending.row(&requester.entry, location).expect("settled");
        let stored = matches!(location, Location::Stored(_)).then_some(row);
        Sample { bytes: memory.get(row).expect("settled"), stored }
    };
    let row = |(at, row): (usize, &RowPlan)| {
        let partner = usize::try_from(row.partner_row).unwrap_or(rows + at);
        Row {
            own: sample(at),
            partner: sample(partner),
            weight: row.mix.pixel_weight(),
            partner_row: row.partner_row,
            cut: row.mix.cut(),
            // A rendered view has its flip.
            flip: row.own.view.flip && !rendered,
            partner_flip: row.partner.view.flip && !rendered,
        }
    };
    plan.rows.iter().enumerate().map(row).collect()
}

/// A batch whose parts lie here and there.
fn view<'a>(spec: &FeedSpec, head: Head, columns: Columns<'a>, x: &'a [u8]) -> BatchView<'a> {
    let FeedSpec { dtype, layout, image_size, .. } = *spec;
    BatchView { x, x_on_device: None, dtype, layout, image_size, columns, head }
}

/// A batch in memory of its own.
pub struct OwnedBatch {
    spec: FeedSpec,
    /// What was made, with substitutes in place.
    pub plan: Plan,
    head: Head,
    columns: OwnedColumns,
    x: Vec<u128>,
    x_bytes: usize,
    /// The own images' views before they were normalised and mixed: u8 `[B, 3, H, W]`.
    pub views: Vec<u8>,
    /// The names of the own samples in the source.
    pub names: Vec<String>,
}

impl OwnedBatch {
    /// Finishes a pending batch.
    pub(super) fn finish(finisher: &mut Finisher, mut pending: Pending) -> Result<Self, FeedError> {
        finisher.settle(&mut pending)?;
        let spec = *finisher.spec();
        let x_bytes = pending.plan.len() * spec.format().image_bytes();
        let (mut x, mut columns) = (vec![0_u128; x_bytes.div_ceil(16)], OwnedColumns::default());
        let target = Target::Memory(&mut bytemuck::cast_slice_mut(&mut x)[..x_bytes]);
        finisher.mix(&pending, &mut || None, target, &mut columns, None)?;
        let head = finisher.head(&pending.plan, columns.view(), &bytemuck::cast_slice(&x)[..x_bytes]);
        let views = finisher.views(&pending);
        let plan = finisher.recycle(pending);
        let shared = finisher.shared();
        let names = plan.own().into_iter().map(|id| shared.source.name(spec.split, id)).collect();
        Ok(Self { spec, plan, head, columns, x, x_bytes, views, names })
    }

    /// The batch.
    pub fn view(&self) -> BatchView<'_> {
        view(&self.spec, self.head, self.columns.view(), &bytemuck::cast_slice(&self.x)[..self.x_bytes])
    }
}

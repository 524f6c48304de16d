//! The mix stage: one thread a feed, which waits for the samples of each batch, puts substitutes for bad ones, and mixes into a slot.

use super::ledger::OnBadImage;
use super::request::{Location, Pending, Requester, STOP_INTERVAL, Scratch};
use super::{BATCHES_AT_ONCE, FeedError, Shared};
use crate::batch::{BatchView, Head};
use crate::columns::{Columns, OwnedColumns};
use crate::mix::{Mixer, Moved, Notice, Row, Sample, Target};
use crate::plan::{ImagePlan, Plan, RowPlan};
use crate::ring::{RingWriter, WriterStopped};
use crate::spec::{EraseWhen, FeedSpec};
use crate::stats::{Clock, Doing};
use crate::types::ImageSize;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use xxhash_rust::xxh3::Xxh3;

/// Why the stage ends.
enum Stop {
    Ring(WriterStopped),
    Failed(FeedError),
}

/// Mixes the batches of one feed.
pub struct MixStage {
    requester: Requester,
    mixer: Box<dyn Mixer>,
    spec: FeedSpec,
    recycler: Sender<Scratch>,
    /// The batch after the one that was mixed last, where the mixer has asked for it.
    next: Option<Pending>,
    /// Scratch to be given back.
    finished: Vec<Scratch>,
}

impl MixStage {
    /// The stage of a feed of `spec`.
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
        // Pixels that are kept do not depend on them.
        self.requester.shared.source.hash_labels(self.requester.entry.split, &mut hash);
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
    pub fn wait_for_samples(&self, pending: &mut Pending) -> Result<(), FeedError> {
        let rows = pending.plan.len();
        let mut substituted = false;
        // The last first: it was asked for last, so that once it is there most others are, and this thread is woken once.
        for at in (0..pending.locations.len()).rev() {
            let planned = if at < rows { pending.plan.rows[at].own } else { pending.plan.rows[at - rows].partner };
            if at >= rows && pending.plan.rows[at - rows].partner_row >= 0 {
                continue;
            }
            if let Some(location) = pending.wait_for(&self.requester, planned, at as u32, pending.locations[at])? {
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

    /// The next readable sample of the same class, in the order of the index, and where it is. Of several labels any sample has its own.
    fn substitute(&self, pending: &Pending, image: ImagePlan, staged: u32) -> Result<(ImagePlan, Location), FeedError> {
        // An image is not to be blamed for a damaged file.
        self.requester.entry.check_batch(pending)?;
        let (shared, split, bad) = (&self.requester.shared, self.spec.split, image.sample);
        let (source, samples) = (&shared.source, shared.source.len(split));
        let label = source.label(split, bad);
        let entry = |sample_id| shared.ledger.find(&**source, split, sample_id);
        if shared.options.on_bad_image == OnBadImage::Fail {
            return Err(FeedError::BadImage(entry(bad)));
        }
        let allowed = samples as usize / 20;
        if shared.ledger.count(split) > allowed && self.recheck(allowed)? > allowed {
            return Err(FeedError::TooManyBad { bad: shared.ledger.count(split), samples, split });
        }
        let after = (bad + 1..samples).chain(0..bad);
        for candidate in after.filter(|&id| source.label_sets().is_some() || source.label(split, id) == label) {
            let image = ImagePlan { sample: candidate, ..image };
            let location = self.requester.request(image, pending.plan.image_size, &pending.staging, staged)?;
            if let Some(location) = pending.wait_for(&self.requester, image, staged, location)? {
                return Ok((image, location));
            }
        }
        let class = source.label_name(label);
        Err(FeedError::NoSubstitute { class, split, last: entry(bad) })
    }

    /// How many images of the split are bad still ([`Ledger::recheck`](super::ledger::Ledger::recheck)). They are read by a thread of its own:
    /// a read that hangs must not keep the feed from its end.
    ///
    /// # Errors
    /// When the feed was stopped.
    fn recheck(&self, allowed: usize) -> Result<usize, FeedError> {
        let (shared, split, (done, count)) = (self.shared(), self.spec.split, bounded(1));
        let run = move || {
            // Fails only when the feed was stopped.
            let _ = done.send(shared.ledger.recheck(&*shared.source, split, allowed));
        };
        if std::thread::Builder::new().name("mixd-recheck".to_owned()).spawn(run).is_err() {
            return Ok(self.requester.shared.ledger.count(split));
        }
        while !self.requester.is_stopped() {
            match count.recv_timeout(STOP_INTERVAL) {
                Ok(count) => return Ok(count),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(self.requester.shared.ledger.count(split)),
            }
        }
        Err(FeedError::Stopping)
    }

    /// The batch that `look` gave when the last one was mixed: it is to be mixed next.
    pub fn next(&mut self) -> Option<Pending> {
        self.next.take()
    }

    /// Mixes a batch whose samples are there to `target` and fills its columns; returns what a device moved. A mixer that has use for the batch after it takes
    /// that from `look`.
    ///
    /// # Errors
    /// When the mixer's device fails, or a file that the samples are kept in was damaged.
    pub fn mix(
        &mut self,
        pending: &Pending,
        look: &mut dyn FnMut() -> Option<Pending>,
        target: Target<'_>,
        columns: &mut OwnedColumns,
        notice: Option<&Notice<'_>>,
    ) -> Result<Moved, FeedError> {
        let (plan, Self { requester, mixer, next, spec, .. }) = (&pending.plan, &mut *self);
        let when = spec.erase.when;
        let own = if mixer.has_sent() { Vec::new() } else { rows(requester, pending, when) };
        let mut tell = |take: &mut dyn FnMut(ImageSize, &[Row<'_>])| {
            *next = look();
            // One whose samples are not there, or bad, waits for its turn.
            if let Some(next) = next.as_ref().filter(|next| next.is_there(requester)) {
                take(next.plan.image_size, &rows(requester, next, when));
            }
        };
        let moved = mixer.mix(plan.image_size, &own, target, notice, Some(&mut tell))?;
        // After the last look at samples in files: what was read from a file that was cut short, or that another program has changed, is not published.
        requester.entry.check_batch(pending)?;
        let (source, split) = (&requester.shared.source, spec.split);
        plan.fill(
            columns,
            |id| i64::from(source.label(split, id)),
            |at| requester.crop(&plan.rows[at].own, plan.image_size),
        );
        Ok(moved)
    }

    /// The head of a mixed batch, with its digest where the feed makes digests.
    pub fn head(&self, plan: &Plan, columns: Columns<'_>, x: &[u8]) -> Head {
        let head = plan.head();
        let digest = if self.spec.digest {
            view(&self.spec, plan.image_size, head, columns, x).digest_by(self.mixer.name())
        } else {
            0
        };
        Head { digest, ..head }
    }

    /// The own images' views, flipped: u8 `[B, 3, H, W]`.
    pub fn views(&self, pending: &Pending) -> Vec<u8> {
        let size = pending.plan.image_size;
        let mut views = Vec::with_capacity(pending.plan.len() * size.values());
        for row in rows(&self.requester, pending, self.spec.erase.when) {
            let first = views.len();
            views.extend_from_slice(row.own.bytes);
            if row.flip {
                views[first..].chunks_exact_mut(size.width as usize).for_each(<[u8]>::reverse);
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

    /// Mixes and publishes planned batches until the feed stops, for the `reason` that was given, or fails; ends the ring.
    pub fn run(mut self, planned: &Receiver<Pending>, mut writer: RingWriter, reason: &Mutex<String>) {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.fill(planned, &mut writer)))
            .unwrap_or(Stop::Failed(FeedError::Panicked("mix")));
        let (reason, failed) = match outcome {
            Stop::Ring(WriterStopped::Stopped) | Stop::Failed(FeedError::Stopping) => {
                (reason.lock().unwrap_or_else(PoisonError::into_inner).clone(), false)
            }
            Stop::Ring(WriterStopped::Deserted) => ("nobody reads the feed any more".to_owned(), false),
            Stop::Ring(WriterStopped::Evicted(why) | WriterStopped::NoMemory(why)) => (why, true),
            Stop::Ring(WriterStopped::Kept) => {
                let why =
                    "trainers that were evicted keep all of its slots (end them, or open the feed with more slots)";
                (why.to_owned(), true)
            }
            Stop::Failed(error) => {
                tracing::error!("a feed ends: {error}");
                (error.to_string(), true)
            }
        };
        writer.end(&reason, failed);
    }

    /// Mixes and publishes planned batches until there is no going on.
    fn fill(&mut self, planned: &Receiver<Pending>, writer: &mut RingWriter) -> Stop {
        let shared = self.shared();
        let (mut clock, mut columns) = (Clock::start(&shared.stats.mix), OwnedColumns::default());
        let (caller, digests) = (writer.caller(), self.spec().digest);
        let call = || caller.call();
        loop {
            let Some(mut pending) = self.next().or_else(|| planned.recv().ok()) else {
                let is_stopped = self.requester.is_stopped();
                return Stop::Failed(if is_stopped { FeedError::Stopping } else { FeedError::Panicked("plan") });
            };
            if let Err(error) = self.wait_for_samples(&mut pending) {
                return Stop::Failed(error);
            }
            clock.lap(Doing::WaitingIn);
            let mut slot = match writer.next_slot() {
                Ok(slot) => slot,
                Err(stopped) => return Stop::Ring(stopped),
            };
            clock.lap(Doing::WaitingOut);
            let (len, size) = (pending.plan.len(), pending.plan.image_size);
            // A digest takes longer than readers to wake.
            let ahead = if digests { None } else { caller.ahead() };
            let notice = ahead.map(|(ahead, waiters)| Notice { ahead, waiters, give: &call });
            let look = &mut || planned.try_recv().ok();
            let target = slot.on_device().map_or_else(|| Target::Memory(slot.x_mut(size, len)), Target::Slot);
            let moved = match self.mix(&pending, look, target, &mut columns, notice.as_ref()) {
                Ok(moved) => moved,
                Err(error) => return Stop::Failed(error),
            };
            let head = self.head(&pending.plan, columns.view(), slot.x_mut(size, len));
            slot.publish(size, head, columns.view());
            self.recycle(pending);
            self.shared().stats.count_mixed(len, moved);
            clock.count();
            clock.lap(Doing::Busy);
        }
    }
}

/// The rows of a batch whose samples are there, as the mixer is told them.
fn rows<'a>(requester: &'a Requester, pending: &'a Pending, when: EraseWhen) -> Vec<Row<'a>> {
    let (plan, rows) = (&pending.plan, pending.plan.len());
    let rendered = requester.entry.views.are_random();
    let erasure = |at: usize| pending.erasures.get(at).and_then(Option::as_ref);
    let sample = |at: usize| {
        let location = pending.locations[at];
        let (memory, row) = pending.row(&requester.entry, location);
        let stored = matches!(location, Location::Stored(_)).then_some(row);
        let erasure = erasure(at).filter(|_| when == EraseWhen::BeforeMix);
        // A staged view may be smaller than its row.
        let bytes = &memory.get(row).expect("it was waited for")[..plan.image_size.values()];
        Sample { bytes, stored, erasure }
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
            erasure: erasure(at).filter(|_| when == EraseWhen::AfterMix),
        }
    };
    plan.rows.iter().enumerate().map(row).collect()
}

/// A batch whose parts lie here and there.
pub fn view<'a>(
    spec: &FeedSpec,
    image_size: ImageSize,
    head: Head,
    columns: Columns<'a>,
    x: &'a [u8],
) -> BatchView<'a> {
    let FeedSpec { dtype, layout, .. } = *spec;
    BatchView { x, x_on_device: None, dtype, layout, image_size, columns, head }
}

//! A feed: its ring, its two threads, who joins and leaves it, and how it stops.

use super::device::Slots;
use super::mix_stage::MixStage;
use super::plan_stage::PlanStage;
use super::{BATCHES_AHEAD, OpenError, Shared};
use crate::mix::MixError;
use crate::plan::Sampler;
use crate::ring::{self, Pace, ReaderId, RingError, RingHandle};
use crate::spec::Delivery;
use crate::types::{Place, Start};
use crossbeam_channel::bounded;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// An open feed. Dropping it stops it and waits for its threads.
pub struct Feed {
    ring: RingHandle,
    sampler: Sampler,
    identity: u64,
    mixer: &'static str,
    /// The slots' images of a ring on a device: their memory, and its bytes.
    slots: Option<(Arc<File>, u64)>,
    shared: Arc<Shared>,
    stopped: Arc<AtomicBool>,
    reason: Arc<Mutex<String>>,
    /// Stands in the ring for trainers that are still to come.
    hold: Mutex<Option<ReaderId>>,
    threads: Vec<JoinHandle<()>>,
}

/// A trainer's place at a feed.
#[derive(Debug, Clone)]
pub struct Seat {
    /// Which reader of the ring it is.
    pub reader: ReaderId,
    /// Its cursor's memory.
    pub cursor: Arc<File>,
    /// The first batch that it gets.
    pub start: Place,
}

impl Feed {
    /// Makes the ring, with a seat for the trainer that opens the feed, and starts the threads. With `hold` the first batches stay
    /// in the ring until [`Feed::release_hold`].
    pub(super) fn start(
        sampler: Sampler,
        plan_stage: PlanStage,
        mix_stage: MixStage,
        slots: Option<Slots>,
        hold: bool,
    ) -> Result<(Self, Seat), OpenError> {
        let (spec, shared, stopped) = (*mix_stage.spec(), mix_stage.shared(), mix_stage.stopped());
        let pace = spec.share.map_or(Pace::PRIVATE, |share| Pace {
            delivery: share.delivery,
            max_lag: Duration::from_secs_f64(share.max_lag_s),
        });
        let (writer, ring) = ring::create(&spec.format(), spec.batch_size, spec.slots, pace)?;
        let export = |slots: Slots| Ok::<_, MixError>((Arc::new(slots.export()?.into()), slots.bytes()));
        let slots = slots.map(export).transpose()?;
        let hold = hold.then(|| ring.hold(0)).transpose()?;
        let reason = Arc::new(Mutex::new("the feed was closed".to_owned()));
        let (identity, mixer) = (mix_stage.identity(), mix_stage.mixer());
        let (hold, threads) = (Mutex::new(hold), Vec::new());
        let mut feed = Self { ring, sampler, identity, mixer, slots, shared, stopped, reason, hold, threads };
        // Before the writer runs: without a reader to wait for it would end.
        let seat = feed.join(spec.start)?;
        let (batches, planned) = bounded(BATCHES_AHEAD);
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let made = std::thread::Builder::new().name(name.to_owned()).spawn(run);
            made.map_err(|source| RingError::Io { action: "start a thread of the feed", source })
        };
        let plans = {
            let sampler = feed.sampler.clone();
            move || plan_stage.run(&sampler, &batches)
        };
        let mixes = {
            let reason = Arc::clone(&feed.reason);
            move || mix_stage.run(&planned, writer, &reason)
        };
        // In this order: a mix thread without plans fails the feed.
        feed.threads.push(spawn("mixd-plan", Box::new(plans))?);
        feed.threads.push(spawn("mixd-mix", Box::new(mixes))?);
        Ok((feed, seat))
    }

    /// The ring.
    pub fn ring(&self) -> &RingHandle {
        &self.ring
    }

    /// Gives another trainer a seat.
    ///
    /// # Errors
    /// When the feed has passed the batch to start with, has ended, or has no seat left.
    pub fn join(&self, start: Start) -> Result<Seat, OpenError> {
        let (origin, batches) = (self.sampler.start().number(self.batches()), u128::from(self.batches()));
        let mut number = 0;
        let choose = |published: u64| {
            let next = origin + u128::from(published);
            number = match start {
                Start::Now => next,
                Start::NextEpoch => next.div_ceil(batches) * batches,
                Start::At(place) => place.number(self.batches()),
            };
            if self.waits_for_nobody() {
                number = number.max(next);
            }
            number.checked_sub(origin).and_then(|seq| seq.try_into().ok())
        };
        let added = self.ring.add_reader(choose);
        let start = Place::of_number(number, self.batches());
        match added {
            Ok((reader, cursor)) => Ok(Seat { reader, cursor, start }),
            Err(RingError::Gone { published, .. }) => Err(OpenError::Passed { start, next: self.place(published) }),
            Err(error) => Err(error.into()),
        }
    }

    fn waits_for_nobody(&self) -> bool {
        self.sampler.spec().share.is_some_and(|share| share.delivery == Delivery::Latest)
    }

    /// Takes a trainer's seat: its leases are free.
    pub fn leave(&self, reader: ReaderId) {
        self.ring.remove_reader(reader);
    }

    /// Releases the reconnect hold.
    pub fn release_hold(&self) {
        let hold = self.hold.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(hold) = hold {
            self.ring.remove_reader(hold);
        }
    }

    /// The place of the ring's batch `seq`.
    pub fn place(&self, seq: u64) -> Place {
        Place::of_number(self.sampler.start().number(self.batches()) + u128::from(seq), self.batches())
    }

    /// Hash of everything beside its spec that its bytes depend on, but for what the files hold.
    pub fn identity(&self) -> u64 {
        self.identity
    }

    /// The mixer's name.
    pub fn mixer(&self) -> &'static str {
        self.mixer
    }

    /// The slots' images of a ring on a device: their memory, and its bytes.
    pub fn slots(&self) -> Option<(Arc<File>, u64)> {
        self.slots.clone()
    }

    /// Batches in each epoch.
    pub fn batches(&self) -> u64 {
        self.sampler.batches()
    }

    /// Publishes no more batches, and lets readers know why after the last.
    pub fn stop(&self, reason: &str) {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = reason.to_owned();
        self.wake();
    }

    fn wake(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.shared.settled.announce();
        self.ring.stop();
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.wake();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{OnBadImage, Options, Pipeline};
    use super::*;
    use crate::ring::{Next, RingReader};
    use crate::source::{Class, ReadError, Source, Stamp};
    use crate::spec::{FeedSpec, Mix, Shuffle};
    use crate::types::{ClassId, EPOCH_BITS, ImageSize, SampleId, Split};
    use std::path::Path;
    use std::time::Instant;
    use xxhash_rust::xxh3::Xxh3;

    /// The sample data, whose first image makes those panic who read it, or ask for its label.
    #[derive(Debug)]
    struct Panicking {
        source: Arc<dyn Source>,
        on_read: bool,
        on_label: bool,
    }

    impl Source for Panicking {
        fn location(&self) -> String {
            self.source.location()
        }

        fn classes(&self) -> &[Class] {
            self.source.classes()
        }

        fn len(&self, split: Split) -> u32 {
            self.source.len(split)
        }

        fn label(&self, split: Split, sample: SampleId) -> ClassId {
            assert!(sample != 0 || !self.on_label, "on purpose");
            self.source.label(split, sample)
        }

        fn name(&self, split: Split, sample: SampleId) -> String {
            self.source.name(split, sample)
        }

        fn read(&self, split: Split, sample: SampleId, bytes: &mut Vec<u8>) -> Result<Option<Stamp>, ReadError> {
            assert!(sample != 0 || !self.on_read, "on purpose");
            self.source.read(split, sample, bytes)
        }

        fn stamp(&self, split: Split, sample: SampleId) -> Option<Stamp> {
            self.source.stamp(split, sample)
        }

        fn hash_samples(&self, split: Split, hash: &mut Xxh3) {
            self.source.hash_samples(split, hash);
        }
    }

    fn pipeline(on_read: bool, on_label: bool) -> Pipeline {
        let data = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/sample-data"));
        let source = crate::source::open(&crate::source::DataSet::at(data), &mut |_| {}).unwrap();
        let options = Options { on_bad_image: OnBadImage::Substitute, ..Options::single(0) };
        Pipeline::start(Arc::new(Panicking { source, on_read, on_label }), options).unwrap()
    }

    fn spec() -> FeedSpec {
        let image_size = ImageSize::square(16);
        FeedSpec { batch_size: 4, image_size, shuffle: Shuffle::Off, mix: Mix::NONE, ..FeedSpec::train() }
    }

    /// What a feed's first batch, or its end, is.
    fn first((feed, seat): &(Feed, Seat)) -> Next {
        let mut reader = RingReader::open(feed.ring.data(), Arc::clone(&seat.cursor), Arc::new(())).unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        reader.next_batch(|| Instant::now() > end).unwrap()
    }

    #[test]
    fn a_feed_whose_threads_panic_ends_with_an_error() {
        let labels = pipeline(false, true);
        let mixing = labels.open(spec(), Place::default(), false).unwrap();
        let sound = pipeline(false, false);
        // No daemon opens a feed at an epoch that the plan cannot draw.
        let start = Start::At(Place { epoch: 1 << EPOCH_BITS, index: 0 });
        let sampler = Sampler::new(FeedSpec { start, ..spec() }, sound.source().len(Split::Train)).unwrap();
        let (plan_stage, mix_stage, _) = sound.stages(spec()).unwrap();
        let planning = Feed::start(sampler, plan_stage, mix_stage, None, false).unwrap();
        for (feed, thread) in [(mixing, "mix"), (planning, "plan")] {
            let Next::Ended { reason, failed: true } = first(&feed) else { panic!("{thread}: it did not fail") };
            assert!(reason.contains(&format!("{thread} thread")), "{reason}");
        }
    }

    #[test]
    fn the_only_decode_thread_goes_on_after_a_panic() {
        let pipeline = pipeline(true, false);
        for _ in 0..2 {
            let feed = pipeline.open(spec(), Place::default(), false).unwrap();
            assert!(matches!(first(&feed), Next::Batch(_)));
        }
        let batch = pipeline.batch(spec(), Place::default()).unwrap();
        assert_eq!(batch.view().sample_id, [1, 1, 2, 3], "the second image stands in for the first");
        let bad = pipeline.bad_samples();
        assert!(bad.len() == 1 && bad[0].sample_id == 0 && bad[0].cause.contains("panicked"), "{bad:?}");
    }
}

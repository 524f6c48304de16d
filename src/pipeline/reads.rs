//! Reading encoded images: failures that may pass are retried.
//!
//! A failed read has one of three reasons. The machine lacks descriptors: that is no fault of the image, and its reader waits. The data is away,
//! since a disk, a mount or a network fails: nothing else can be read either, and readers wait for [`OUTAGE_MAX`] from its beginning. Or it is the image's
//! own trouble: it fails for [`IMAGE_RETRY`] while another image of its split, the last that was read, can be read. So a split with many missing files
//! costs [`IMAGE_RETRY`] for each, and an outage [`OUTAGE_MAX`] once, whatever the number of images.
//!
//! An object store's outages are its source's to judge, which retries requests for as long as its user allows and gives a final error then. Until
//! its bytes have come a read ends every so often without them, so that its reader can look whether they are wanted still.

use crate::source::{ReadError, Source, Stamp};
use crate::types::{SampleId, Split};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The shortest and the longest pause before a retry; each is twice the one before.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(160);
/// How long an image is retried while others can be read: a file that is being replaced is away for less.
const IMAGE_RETRY: Duration = Duration::from_millis(150);
/// How long images are retried while none can be read, from the first that failed.
const OUTAGE_MAX: Duration = Duration::from_secs(5);
/// How often a wait is logged.
const NOTICE: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
struct State {
    /// When the first and the last read of the current outage failed.
    outage: Option<[Instant; 2]>,
    /// The image of each split that was read last: splits may lie on different disks.
    last: [Option<SampleId>; Split::ALL.len()],
    /// When a wait was last logged.
    noticed: Option<Instant>,
}

/// What the readers of a daemon know of each other's reads.
#[derive(Debug, Default)]
pub struct Reads(Mutex<State>);

impl Reads {
    /// Reads an encoded image into `bytes`, retrying failures that may pass unless the image is `known` to be bad. `None` when it is no
    /// longer wanted.
    ///
    /// # Errors
    /// Within the result: when the image cannot be read in the time that it is given.
    pub fn read(
        &self,
        source: &dyn Source,
        image: (Split, SampleId),
        bytes: &mut Vec<u8>,
        known: bool,
        is_wanted: &dyn Fn() -> bool,
    ) -> Option<Result<Option<Stamp>, ReadError>> {
        let (start, mut pause) = (Instant::now(), PAUSE_MIN);
        loop {
            let error = match source.read(image.0, image.1, bytes) {
                Ok(stamp) => {
                    self.succeed(image);
                    return Some(Ok(stamp));
                }
                Err(error) => error,
            };
            if !is_wanted() {
                return None;
            }
            let retry = match &error {
                // The read has waited a moment already.
                ReadError::NotYet => continue,
                ReadError::DescriptorShortage(_) => true,
                ReadError::Io(_) | ReadError::Removed { .. } => !known && self.may_pass(source, image, start),
                ReadError::TooLarge { .. } | ReadError::FileChanged { .. } | ReadError::Store { .. } => false,
            };
            if !retry {
                return Some(Err(error));
            }
            self.notice(source, image, &error);
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn succeed(&self, image: (Split, SampleId)) {
        let mut state = self.state();
        state.outage = None;
        state.last[image.0 as usize] = Some(image.1);
    }

    /// Whether an image that failed since `start` is retried.
    fn may_pass(&self, source: &dyn Source, image: (Split, SampleId), start: Instant) -> bool {
        let (mut state, now) = (self.state(), Instant::now());
        // A failure long after the last one begins another outage.
        let current = state.outage.filter(|[_, last]| now - *last < OUTAGE_MAX);
        let since = current.map_or(now, |[since, _]| since);
        state.outage = Some([since, now]);
        let other = state.last[image.0 as usize].filter(|&other| other != image.1);
        drop(state);
        if now - start < IMAGE_RETRY && now - since < OUTAGE_MAX {
            return true;
        }
        if let Some(other) = other
            && source.read(image.0, other, &mut Vec::new()).is_ok()
        {
            self.succeed((image.0, other));
            return false;
        }
        now - since < OUTAGE_MAX
    }

    fn notice(&self, source: &dyn Source, (split, sample): (Split, SampleId), error: &ReadError) {
        let mut state = self.state();
        if state.noticed.is_none_or(|at| at.elapsed() > NOTICE) {
            state.noticed = Some(Instant::now());
            tracing::warn!("images wait to be read: {}: {error}", source.name(split, sample));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BatchError, FeedError, OnBadImage, Options, Pipeline};
    use super::*;
    use crate::cpus::Workers;
    use crate::spec::{Crop, FeedSpec, Mix, Shuffle};
    use crate::types::{Class, ClassId, Place};
    use rustix::io::Errno;
    use std::io;
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use xxhash_rust::xxh3::Xxh3;

    /// Ten samples, of which reading fails as `fails` decides from the sample and the number of reads before.
    struct Flaky<F> {
        fails: F,
        reads: AtomicUsize,
    }

    impl<F> std::fmt::Debug for Flaky<F> {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Flaky")
        }
    }

    impl<F: Fn(SampleId, usize) -> Option<Errno> + Send + Sync> Source for Flaky<F> {
        fn location(&self) -> String {
            String::new()
        }
        fn classes(&self) -> &[Class] {
            &[]
        }
        fn len(&self, _: Split) -> u32 {
            10
        }
        fn label(&self, _: Split, _: SampleId) -> ClassId {
            0
        }
        fn name(&self, _: Split, sample: SampleId) -> String {
            sample.to_string()
        }
        fn read(&self, _: Split, sample: SampleId, bytes: &mut Vec<u8>) -> Result<Option<Stamp>, ReadError> {
            match (self.fails)(sample, self.reads.fetch_add(1, Ordering::SeqCst)) {
                Some(Errno::INPROGRESS) => Err(ReadError::NotYet),
                Some(Errno::HOSTDOWN) => Err(ReadError::Store { url: "s3://b/a".into(), cause: "away".into() }),
                Some(errno) => Err(io::Error::from(errno).into()),
                None => {
                    bytes.push(sample as u8);
                    Ok(None)
                }
            }
        }
        fn stamp(&self, _: Split, _: SampleId) -> Option<Stamp> {
            None
        }
        fn hash_samples(&self, _: Split, _: &mut Xxh3) {}
    }

    fn flaky<F: Fn(SampleId, usize) -> Option<Errno>>(fails: F) -> Flaky<F> {
        Flaky { fails, reads: AtomicUsize::new(0) }
    }

    fn read(reads: &Reads, source: &dyn Source, sample: SampleId, known: bool) -> Result<Vec<u8>, ReadError> {
        let mut bytes = Vec::new();
        let read = reads.read(source, (Split::Train, sample), &mut bytes, known, &|| true);
        read.expect("it is wanted").map(|_| bytes)
    }

    #[test]
    fn failures_that_pass_are_retried_whatever_they_are() {
        for errno in [Errno::IO, Errno::NOENT, Errno::STALE, Errno::TIMEDOUT, Errno::ACCESS, Errno::MFILE, Errno::NFILE]
        {
            let source = flaky(|_, before| (before < 4).then_some(errno));
            assert_eq!(read(&Reads::default(), &source, 3, false).unwrap(), [3], "{errno}");
            assert_eq!(source.reads.into_inner(), 5, "{errno}");
        }
    }

    #[test]
    fn an_image_that_fails_while_others_are_read_is_given_up_soon_and_then_tried_once() {
        let (reads, source) = (Reads::default(), flaky(|sample, _| (sample == 1).then_some(Errno::IO)));
        read(&reads, &source, 0, false).unwrap();
        let start = Instant::now();
        assert!(read(&reads, &source, 1, false).is_err());
        assert!(start.elapsed() < OUTAGE_MAX, "it was taken for an outage: {:?}", start.elapsed());
        let before = source.reads.load(Ordering::SeqCst);
        assert!(before > 4, "{before} reads");
        assert!(read(&reads, &source, 1, true).is_err());
        assert_eq!(source.reads.load(Ordering::SeqCst), before + 1);
    }

    #[test]
    fn an_outage_is_waited_for_once_whatever_the_number_of_images() {
        let (reads, source) = (Reads::default(), flaky(|_, before| (before > 0).then_some(Errno::STALE)));
        read(&reads, &source, 0, false).unwrap();
        let start = Instant::now();
        assert!(read(&reads, &source, 1, false).is_err());
        assert!(start.elapsed() >= OUTAGE_MAX, "{:?}", start.elapsed());
        let before = source.reads.load(Ordering::SeqCst);
        (2..10).for_each(|sample| assert!(read(&reads, &source, sample, false).is_err()));
        // Each is tried, and looks whether the image that was read before can be read.
        assert_eq!(source.reads.load(Ordering::SeqCst), before + 2 * 8);
    }

    #[test]
    fn what_is_no_longer_wanted_is_not_read_on() {
        for errno in [Errno::MFILE, Errno::INPROGRESS] {
            let source = flaky(|_, _| Some(errno));
            let looks = AtomicUsize::new(0);
            let is_wanted = || looks.fetch_add(1, Ordering::SeqCst) < 3;
            let read = Reads::default().read(&source, (Split::Train, 0), &mut Vec::new(), false, &is_wanted);
            assert!(read.is_none() && source.reads.into_inner() == 4);
        }
    }

    #[test]
    fn bytes_on_their_way_are_waited_for_and_what_a_store_does_not_give_is_an_error_at_once() {
        // Also of an image that was bad before, and without the pauses of other failures.
        let source = flaky(|_, before| (before < 1_000).then_some(Errno::INPROGRESS));
        let start = Instant::now();
        assert_eq!(read(&Reads::default(), &source, 3, true).unwrap(), [3]);
        assert!(start.elapsed() < PAUSE_MAX * 100, "{:?}", start.elapsed());
        let source = flaky(|_, _| Some(Errno::HOSTDOWN));
        assert!(matches!(read(&Reads::default(), &source, 3, false), Err(ReadError::Store { .. })));
        assert_eq!(source.reads.into_inner(), 1);
    }

    fn squashed() -> FeedSpec {
        FeedSpec { batch_size: 20, shuffle: Shuffle::Off, mix: Mix::NONE, ..FeedSpec::train() }
    }

    fn random() -> FeedSpec {
        FeedSpec { crop: Crop::RandomResizedCrop { scale: [0.3, 1.0], ratio: [0.75, 1.5] }, ..squashed() }
    }

    /// The sample data in a folder of its own, and a pipeline over it.
    fn start(cache_bytes: u64) -> (tempfile::TempDir, Pipeline) {
        let dir = tempfile::tempdir().unwrap();
        copy(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/sample-data")), dir.path());
        let pipeline = Pipeline::start(
            crate::source::open(&crate::source::DataSet::at(dir.path()), &mut |_| {}).unwrap(),
            options(cache_bytes),
        );
        (dir, pipeline.unwrap())
    }

    fn options(cache_bytes: u64) -> Options {
        Options { workers: Workers::Auto, on_bad_image: OnBadImage::Substitute, ..Options::single(cache_bytes) }
    }

    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
            let to = to.join(entry.file_name());
            if entry.path().is_dir() {
                copy(&entry.path(), &to);
            } else {
                std::fs::copy(entry.path(), to).unwrap();
            }
        }
    }

    /// The ids and the images of a batch of the first epoch.
    fn batch(pipeline: &Pipeline, spec: FeedSpec, index: u64) -> Result<(Vec<i64>, Vec<u8>), BatchError> {
        let batch = pipeline.batch(spec, Place { epoch: 0, index })?;
        let view = batch.view();
        Ok((view.sample_id.iter().map(|&id| i64::from(id)).collect(), view.x.to_vec()))
    }

    #[test]
    fn a_bad_image_that_is_replaced_serves_again() {
        // Finished views in the store, random views from kept sources, and both without a cache.
        for (cache_bytes, spec) in [(1 << 30, squashed()), (0, squashed()), (1 << 30, random()), (0, random())] {
            let (dir, pipeline) = start(cache_bytes);
            let (dir, pipeline) = (dir.path(), &pipeline);
            let bad = dir.join(pipeline.source().name(Split::Train, 7));
            let good = std::fs::read(&bad).unwrap();
            // Cut as one that is being written, then no image, then away, then there.
            let decoded = || pipeline.stats().decode.read().items;
            for content in [Some(&good[..good.len() / 2]), Some(b"no image"), None] {
                match content {
                    Some(bytes) => std::fs::write(&bad, bytes).unwrap(),
                    None => std::fs::remove_file(&bad).unwrap(),
                }
                let ids = batch(pipeline, spec, 0).unwrap().0;
                assert!(!ids.contains(&7) && ids[7] == 8, "{ids:?}");
                let before = decoded();
                assert_eq!(batch(pipeline, spec, 0).unwrap().0, ids);
                assert!(decoded() > before, "it was not tried again");
                let list = pipeline.bad_samples();
                assert_eq!(list.len(), 1, "{list:?}");
                let cause = if content.is_some() { "image" } else { "cannot be read" };
                assert!(
                    list[0].sample_id == 7 && (list[0].cause.contains(cause) || list[0].cause.contains("cut off")),
                    "{list:?}"
                );
            }
            std::fs::write(&bad, &good).unwrap();
            let served = batch(pipeline, spec, 0).unwrap();
            assert_eq!(served.0[7], 7);
            let undisturbed = Pipeline::start(
                crate::source::open(&crate::source::DataSet::at(dir), &mut |_| {}).unwrap(),
                options(0),
            )
            .unwrap();
            assert!(served == batch(&undisturbed, spec, 0).unwrap(), "other bytes");
            assert_eq!(pipeline.bad_samples(), []);
        }
    }

    #[test]
    fn an_outage_that_has_passed_does_not_count_as_bad_images() {
        for (cache_bytes, spec) in [(1 << 30, squashed()), (0, random())] {
            let (dir, pipeline) = start(cache_bytes);
            let (dir, pipeline) = (dir.path(), &pipeline);
            let (train, away) = (dir.join("train"), dir.join("away"));
            std::fs::rename(&train, &away).unwrap();
            let error = batch(pipeline, spec, 0).unwrap_err();
            assert!(matches!(error, BatchError::Feed(FeedError::TooManyBad { samples: 200, .. })), "{error}");
            assert!(pipeline.bad_samples().len() > 10);
            std::fs::rename(&away, &train).unwrap();
            // Of the next batch one image is bad in earnest, so that the share of bad images is looked at.
            std::fs::write(dir.join(pipeline.source().name(Split::Train, 39)), "no image").unwrap();
            let (ids, _) = batch(pipeline, spec, 1).unwrap();
            assert!(ids[..19].iter().copied().eq(20..39) && ids[19] != 39, "{ids:?}");
            let bad: Vec<_> = pipeline.bad_samples().iter().map(|bad| bad.sample_id).collect();
            assert_eq!(bad, [39]);
        }
    }
}

//! How epochs are dealt to ranks: the rows and batches of each, and how a feed goes on with another world size in the middle of an
//! epoch (docs/spec/batches.md#plans).

use super::{Consumed, FeedSpec, Shuffle};
use crate::types::{BATCH_BITS, Last, Place, ROW_BITS, Split, Start};
use std::ops::Range;

/// A feed that would never deliver a batch, or more than can be numbered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DealError {
    /// The data set has no validation split.
    #[error(
        "the data set has no validation split: there is no val/, valid/, validation/ or test/ beside train/ (name its folder with \
         --splits val=FOLDER, or set training images aside with --holdout 0.1, where the daemon is started)"
    )]
    NoValidation,
    /// The samples lie in no shards.
    #[error("shuffle is {0}, but the data set has neither shards nor tables (use shuffle=global)")]
    NoShards(Shuffle),
    /// No batch fills.
    #[error(
        "an epoch has no batch: {samples} samples dealt to {world_size} ranks do not fill one batch of {batch_size} \
         (use last keep or a smaller batch size)"
    )]
    NoBatch {
        /// Samples of the split.
        samples: u32,
        /// Ranks.
        world_size: u32,
        /// Rows a batch.
        batch_size: u32,
    },
    /// An epoch has too many batches, or a batch too many rows over all ranks.
    #[error(
        "an epoch of {batches} batches of {rows} rows over all ranks cannot be numbered: both must be below 2^24 (use another batch size)"
    )]
    TooMany {
        /// Batches an epoch.
        batches: u64,
        /// Rows a batch over all ranks.
        rows: u64,
    },
    /// The place to start from does not exist.
    #[error("start is {start}, but an epoch has {batches} batches")]
    StartOutOfRange {
        /// What was asked for.
        start: Place,
        /// Batches an epoch.
        batches: u64,
    },
    /// The place to start from lies before what is left of the epoch.
    #[error(
        "start is {start}, but of epoch {} {} samples are consumed: the first batch of the rest is {first} (start there or later, or leave \
         out consumed)",
        consumed.epoch, consumed.samples
    )]
    StartConsumed {
        /// What was asked for.
        start: Place,
        /// The first place that there is.
        first: Place,
        /// What was read before.
        consumed: Consumed,
    },
    /// What is left of the epoch fills no batch.
    #[error(
        "nothing is left of epoch {} after {} samples: the rest of {samples} samples, dealt to {world_size} ranks, fills no batch (leave out \
         consumed, and start at the next epoch)",
        consumed.epoch, consumed.samples
    )]
    NothingLeft {
        /// What was read before.
        consumed: Consumed,
        /// Samples of the split.
        samples: u32,
        /// Ranks.
        world_size: u32,
    },
}

/// An epoch of repeats is cut to a multiple of so many samples (timm and torchvision's RASampler).
const REPEATS_OF: u64 = 256;

/// What is dealt of one epoch: all of it, or its rest.
#[derive(Debug, Clone, Copy)]
struct Part {
    /// Positions of the epoch's order before it.
    consumed: u64,
    /// Rows of each rank.
    rows: u64,
    /// Batches of each rank: the epoch's last ones.
    batches: u64,
}

impl Part {
    fn new(spec: &FeedSpec, samples: u32, consumed: u64) -> Self {
        let (n, world, batch) = (u64::from(samples), u64::from(spec.world_size), u64::from(spec.batch_size));
        // An epoch of repeats is no longer than one without (docs/spec/recipes.md, Repeats).
        let is_cut = spec.repeats > 1 && n >= REPEATS_OF;
        let left = (if is_cut { n / REPEATS_OF * REPEATS_OF } else { n }).saturating_sub(consumed);
        // Positions of a rank; each has `views` rows.
        let dealt = match (spec.repeats, spec.last) {
            (1, Last::Keep) => left.div_ceil(world),
            _ => left / world,
        };
        let rows = dealt * u64::from(spec.views);
        match spec.last {
            Last::Keep => Self { consumed, rows, batches: rows.div_ceil(batch) },
            Last::Drop => Self { consumed, rows: rows / batch * batch, batches: rows / batch },
        }
    }
}

/// How a feed's epochs are dealt to its rank.
#[derive(Debug, Clone)]
pub struct Deal {
    spec: FeedSpec,
    samples: u32,
    whole: Part,
    /// Of the epoch of `first`.
    rest: Part,
    /// The first place that the feed has.
    first: Place,
}

impl Deal {
    /// The deal of a valid `spec` over a split of `samples` samples.
    ///
    /// # Errors
    /// When an epoch, or the rest of one, would have no batch, or more than can be numbered, or `spec.start` lies outside of them.
    pub fn new(spec: FeedSpec, samples: u32) -> Result<Self, DealError> {
        let FeedSpec { world_size, batch_size, consumed, .. } = spec;
        let whole = Part::new(&spec, samples, 0);
        let (batches, rows) = (whole.batches, u64::from(batch_size) * u64::from(world_size));
        if samples == 0 && spec.split == Split::Val {
            return Err(DealError::NoValidation);
        } else if batches == 0 {
            return Err(DealError::NoBatch { samples, world_size, batch_size });
        } else if batches >> BATCH_BITS != 0 || rows >> ROW_BITS != 0 {
            return Err(DealError::TooMany { batches, rows });
        }
        let rest = consumed.map_or(whole, |consumed| Part::new(&spec, samples, consumed.samples.into()));
        let first = Place { epoch: consumed.map_or(0, |consumed| consumed.epoch), index: batches - rest.batches };
        if let Some(consumed) = consumed.filter(|_| rest.batches == 0) {
            return Err(DealError::NothingLeft { consumed, samples, world_size });
        }
        let deal = Self { spec, samples, whole, rest, first };
        deal.check(deal.start())?;
        Ok(deal)
    }

    /// What is dealt.
    pub fn spec(&self) -> &FeedSpec {
        &self.spec
    }

    /// Samples of the split.
    pub fn samples(&self) -> u32 {
        self.samples
    }

    /// Batches in each epoch, the same for every rank. Of an epoch that other ranks have begun the last ones are left.
    pub fn batches(&self) -> u64 {
        self.whole.batches
    }

    /// The first place to deliver.
    pub fn start(&self) -> Place {
        self.spec.start.of_a_new_feed(self.first)
    }

    /// The batches of an epoch, without those that were consumed.
    ///
    /// # Errors
    /// When it lies before the feed's first place.
    pub fn indices(&self, epoch: u64) -> Result<Range<u64>, DealError> {
        let first = self.whole.batches - self.part(epoch).batches;
        self.check(Place { epoch, index: first })?;
        Ok(first..self.whole.batches)
    }

    /// The positions in the epoch's order, each repeat counted, that the rows of a batch show: past its end where they are padding.
    ///
    /// # Panics
    /// When the feed has no such batch.
    pub fn positions(&self, place: Place) -> impl ExactSizeIterator<Item = u64> + Clone + use<> {
        if let Err(error) = self.check(place) {
            panic!("{error}");
        }
        let FeedSpec { batch_size, views, world_size, rank, .. } = self.spec;
        let Part { consumed, rows, .. } = self.part(place.epoch);
        let from = self.before(place) * u64::from(batch_size);
        let len = (rows - from).min(batch_size.into()) as u32;
        // What is left goes to the ranks in turn.
        let dealt = move |row: u64| row / u64::from(views) * u64::from(world_size) + u64::from(rank);
        (0..len).map(move |at| consumed + dealt(from + u64::from(at)))
    }

    /// `spec`, a feed of the same batches for ranks of another world size, as it delivers what this one's ranks together would from their
    /// start on: with what they have consumed, and its start.
    ///
    /// # Errors
    /// When such ranks would have no batch, or more than can be numbered.
    pub fn resharded(&self, spec: FeedSpec) -> Result<FeedSpec, DealError> {
        let start = self.start();
        if spec.world_size == self.spec.world_size {
            return Ok(FeedSpec { consumed: self.spec.consumed, start: Start::At(start), ..spec });
        }
        let rows = self.before(start) * u64::from(self.spec.batch_size);
        let samples =
            self.part(start.epoch).consumed + rows / u64::from(self.spec.views) * u64::from(self.spec.world_size);
        let whole = |epoch| FeedSpec { consumed: None, start: Start::At(Place { epoch, index: 0 }), ..spec };
        if samples == 0 {
            return Ok(whole(start.epoch));
        }
        // A batch begins before the end of the samples.
        let consumed = Consumed { epoch: start.epoch, samples: samples as u32 };
        match Self::new(FeedSpec { consumed: Some(consumed), start: Start::Now, ..spec }, self.samples) {
            Ok(Self { first, .. }) => Ok(FeedSpec { consumed: Some(consumed), start: Start::At(first), ..spec }),
            Err(DealError::NothingLeft { .. }) => Ok(whole(start.epoch + 1)),
            Err(error) => Err(error),
        }
    }

    fn part(&self, epoch: u64) -> Part {
        if epoch == self.first.epoch { self.rest } else { self.whole }
    }

    /// How many batches the feed has in the epoch before this one.
    fn before(&self, Place { epoch, index }: Place) -> u64 {
        index - (self.whole.batches - self.part(epoch).batches)
    }

    /// Whether the feed has such a batch.
    fn check(&self, place: Place) -> Result<(), DealError> {
        let Self { first, whole: Part { batches, .. }, .. } = *self;
        match self.spec.consumed {
            _ if place.index >= batches => Err(DealError::StartOutOfRange { start: place, batches }),
            Some(consumed) if place < first => Err(DealError::StartConsumed { start: place, first, consumed }),
            _ => Ok(()),
        }
    }
}

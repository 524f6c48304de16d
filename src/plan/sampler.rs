//! Which samples, partners, views and weights make each batch, as a pure function of the feed spec and the samples' numbering.

use super::view::first_block;
use super::{Draws, ImagePlan, Numbering, Plan, RowMix, RowPlan, ViewPlan, Windows};
use crate::rng::{self, Stream};
use crate::spec::{Deal, DealError, FeedSpec, MixPer, Pairing, Shuffle};
use crate::types::{Cut, ImageSize, Place, SampleId};
use rand_distr::{Beta, Distribution};
use std::ops::Range;
use std::sync::Arc;

/// Makes the plans of one feed.
#[derive(Debug, Clone)]
pub struct Sampler {
    deal: Deal,
    numbering: Arc<Numbering>,
}

impl Sampler {
    /// A sampler for a valid `spec` over a split, whose samples are numbered so.
    ///
    /// # Errors
    /// As [`Deal::new`], and when samples that lie in no shards are to be shuffled by shards.
    pub fn new(spec: FeedSpec, numbering: impl Into<Numbering>) -> Result<Self, DealError> {
        let numbering = numbering.into();
        let deal = Deal::new(spec, numbering.samples)?;
        if matches!(spec.shuffle, Shuffle::Shards(_)) && numbering.shards.is_empty() {
            return Err(DealError::NoShards(spec.shuffle));
        }
        Ok(Self { deal, numbering: Arc::new(numbering) })
    }

    /// What is sampled.
    pub fn spec(&self) -> &FeedSpec {
        self.deal.spec()
    }

    /// Batches in each epoch ([`Deal::batches`]).
    pub fn batches(&self) -> u64 {
        self.deal.batches()
    }

    /// The first place to deliver.
    pub fn start(&self) -> Place {
        self.deal.start()
    }

    /// The batches of an epoch, without those that were consumed.
    ///
    /// # Errors
    /// As [`Deal::indices`].
    pub fn indices(&self, epoch: u64) -> Result<Range<u64>, DealError> {
        self.deal.indices(epoch)
    }

    /// The shards that an epoch reads, so many at a time.
    pub fn windows(&self, epoch: u64) -> Windows {
        self.numbering.windows(self.spec(), epoch)
    }

    /// The position in the epoch's order of a batch's first sample.
    ///
    /// # Panics
    /// When the feed has no such batch.
    pub fn position(&self, place: Place) -> u64 {
        let first = self.deal.positions(place).next().expect("a batch has rows");
        first / u64::from(self.spec().repeats)
    }

    /// The order of an epoch, from which its plans are made. Costs O(samples); any epoch can be had alone.
    pub fn epoch(&self, epoch: u64) -> Epoch<'_> {
        let spec = self.spec();
        let order = |second| self.numbering.order(spec, epoch, second);
        Epoch {
            sampler: self,
            epoch,
            order: order(false),
            second: spec.mix.takes_a_second_batch().then(|| order(true)),
        }
    }
}

/// One epoch of a feed.
#[derive(Debug, Clone)]
pub struct Epoch<'a> {
    sampler: &'a Sampler,
    epoch: u64,
    order: Vec<SampleId>,
    second: Option<Vec<SampleId>>,
}

impl Epoch<'_> {
    /// This epoch's number.
    pub fn number(&self) -> u64 {
        self.epoch
    }

    /// The plan of batch `index`.
    ///
    /// # Panics
    /// When the feed has no such batch.
    pub fn plan(&self, index: u64) -> Plan {
        let (deal, spec) = (&self.sampler.deal, self.sampler.spec());
        let place = Place { epoch: self.epoch, index };
        let (positions, samples) = (deal.positions(place), u64::from(deal.samples()));
        // Past the end the head of the order comes again.
        let nth = |position: u64| position / u64::from(spec.repeats);
        let pad = positions.clone().filter(|&position| nth(position) >= samples).count() as u32;
        let pick = |order: &[SampleId], position: u64| order[(nth(position) % samples) as usize];
        let len = positions.len() as u32;
        let (mut views, mut mixes) = (Views::new(self, index), Mixes::new(self, index, len));
        let own = |(position, at): (u64, u32)| {
            let own = ImagePlan { sample: pick(&self.order, position), view: views.own(at) };
            RowPlan { own, partner: own, partner_row: at as i32, mix: mixes.of(at) }
        };
        let mut plans: Vec<RowPlan> = positions.clone().zip(0..).map(own).collect();
        let partner_rows = self.partner_rows(index, len);
        for (at, position) in positions.enumerate() {
            if plans[at].mix == RowMix::Alone {
                continue;
            }
            (plans[at].partner, plans[at].partner_row) = match &self.second {
                Some(second) => (ImagePlan { sample: pick(second, position), view: views.second(at as u32) }, -1),
                None => (plans[partner_rows[at] as usize].own, partner_rows[at]),
            };
        }
        let image_size = spec.size_at(self.epoch);
        Plan { place, batches: deal.batches(), pad, image_size, rows: plans }
    }

    /// Rows of the partners, where these are of the same batch; none of a feed that mixes nothing.
    fn partner_rows(&self, index: u64, len: u32) -> Vec<i32> {
        let spec = self.sampler.spec();
        match spec.mix.pairing {
            _ if !spec.mix.is_on() => Vec::new(),
            Pairing::SecondBatch => Vec::new(),
            Pairing::Reverse => (0..len as i32).rev().collect(),
            Pairing::Roll => (0..len as i32).map(|row| (row + len as i32 - 1) % len as i32).collect(),
            Pairing::Shuffle => {
                let rng = rng::at(spec.seed, Stream::Shuffle, self.epoch, index, u64::from(spec.rank));
                rng::permutation(rng, len).into_iter().map(|row| row as i32).collect()
            }
        }
    }

    /// The generators of a batch's rows, which no row of another rank has.
    fn generators(&self, stream: Stream, index: u64) -> rng::Rows {
        rng::Rows::new(self.sampler.spec().seed, stream, self.epoch, index)
    }

    /// A row's number over all ranks.
    fn global_row(&self, row: u32) -> u64 {
        let spec = self.sampler.spec();
        u64::from(row) * u64::from(spec.world_size) + u64::from(spec.rank)
    }
}

/// Draws how the rows of a batch are mixed: a draw a row, a pair of rows, or for all.
struct Mixes<'a> {
    epoch: &'a Epoch<'a>,
    len: u32,
    choices: rng::Rows,
    lambdas: rng::Rows,
    mixup: Option<Beta<f64>>,
    cutmix: Option<Beta<f64>>,
    /// The unit that was drawn last, by its first row, and its draw.
    last: Option<(u32, RowMix)>,
}

impl<'a> Mixes<'a> {
    fn new(epoch: &'a Epoch<'a>, index: u64, len: u32) -> Self {
        let mix = &epoch.sampler.spec().mix;
        let [choices, lambdas] = [Stream::Mix, Stream::Lambda].map(|stream| epoch.generators(stream, index));
        let [mixup, cutmix] = [mix.mixup, mix.cutmix].map(|alpha| alpha.map(rng::beta));
        Self { epoch, len, choices, lambdas, mixup, cutmix, last: None }
    }

    /// How this row is mixed.
    fn of(&mut self, row: u32) -> RowMix {
        let unit = match self.epoch.sampler.spec().mix.per {
            MixPer::Image => row,
            MixPer::Pair => row.min(self.len - 1 - row),
            MixPer::Batch => 0,
        };
        if let Some((last, mix)) = self.last
            && last == unit
        {
            return mix;
        }
        let mix = self.draw(unit);
        self.last = Some((unit, mix));
        mix
    }

    /// How the unit that begins with this row is mixed.
    fn draw(&mut self, row: u32) -> RowMix {
        let mix = &self.epoch.sampler.spec().mix;
        let row = self.epoch.global_row(row);
        let is_by_chance = mix.prob < 1.0 || mix.mixup.is_some() && mix.cutmix.is_some();
        let [is_mixed, is_cut] = match is_by_chance {
            // Both are drawn, so that a change of one probability leaves the other's outcome as it is.
            true => {
                let choice = self.choices.at(row);
                [mix.prob, mix.switch].map(|prob| rng::chance(choice, prob))
            }
            false => [true, false],
        };
        match (self.mixup, self.cutmix) {
            _ if !is_mixed || mix.off_epoch.is_some_and(|off| self.epoch.epoch >= off) => RowMix::Alone,
            (Some(beta), None) => self.mixup(row, beta),
            (None, Some(beta)) => self.cutmix(row, beta),
            (Some(_), Some(beta)) if is_cut => self.cutmix(row, beta),
            (Some(beta), Some(_)) => self.mixup(row, beta),
            (None, None) => RowMix::Alone,
        }
    }

    fn mixup(&mut self, row: u64, beta: Beta<f64>) -> RowMix {
        let raw = beta.sample(self.lambdas.at(row));
        RowMix::Mixup { lambda: (if self.epoch.sampler.spec().mix.fold { raw.max(1.0 - raw) } else { raw }) as f32 }
    }

    /// A box of Yun et al. 2019, algorithm 1.
    fn cutmix(&mut self, row: u64, beta: Beta<f64>) -> RowMix {
        let image_size @ ImageSize { height, width } = self.epoch.sampler.spec().size_at(self.epoch.epoch);
        let rng = self.lambdas.at(row);
        let side = (1.0 - beta.sample(rng)).sqrt();
        let mut span = |extent: u32| {
            let (half, centre) = ((f64::from(extent) * side) as u32 / 2, rng::below(rng, extent));
            (centre.saturating_sub(half), (centre + half).min(extent))
        };
        let ((top, bottom), (left, right)) = (span(height), span(width));
        let cut = Cut { top, bottom, left, right };
        RowMix::CutMix { cut, share: (1.0 - cut.pixels() as f64 / image_size.pixels() as f64) as f32 }
    }
}

/// Draws the views of a batch's images.
struct Views<'a> {
    epoch: &'a Epoch<'a>,
    index: u64,
    coins: rng::Rows,
}

impl<'a> Views<'a> {
    fn new(epoch: &'a Epoch<'a>, index: u64) -> Self {
        Self { epoch, index, coins: epoch.generators(Stream::Augmentation, index) }
    }

    /// The view of a row's own image.
    fn own(&mut self, row: u32) -> ViewPlan {
        self.draw(row, false)
    }

    /// The view of a row's image of a second batch.
    fn second(&mut self, row: u32) -> ViewPlan {
        self.draw(row, true)
    }

    fn draw(&mut self, row: u32, second: bool) -> ViewPlan {
        let spec = self.epoch.sampler.spec();
        // Batches begin with a sample's first view.
        let (nth, row) = (row % spec.views, self.epoch.global_row(row));
        // Of the row's two coins the second is a second batch's.
        let flip = spec.flip > 0.0 && {
            let rng = self.coins.at(row);
            rng::skip_blocks(rng, first_block(spec.views));
            [(); 2].map(|()| rng::chance(rng, spec.flip))[usize::from(second)]
        };
        let draws = || Draws::at(spec.seed, second, self.epoch.epoch, self.index, row).of_view(nth, spec.views);
        ViewPlan { draws: spec.draws_views().then(draws), flip }
    }
}

#[cfg(test)]
mod tests;

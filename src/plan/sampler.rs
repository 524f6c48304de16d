//! Which samples, partners, views and weights make each batch, as a pure function of the feed spec and the number of samples.

use super::view::first_block;
use super::{Draws, ImagePlan, Plan, RowMix, RowPlan, ViewPlan};
use crate::rng::{self, Stream};
use crate::spec::{FeedSpec, MixPer, Pairing};
use crate::types::{BATCH_BITS, Cut, ImageSize, Last, Place, ROW_BITS, SampleId};
use rand_distr::{Beta, Distribution};

/// A feed that would never deliver a batch, or more than can be numbered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SamplerError {
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
}

/// An epoch of repeats is cut to a multiple of so many samples (timm and torchvision's RASampler).
const REPEATS_OF: u64 = 256;

/// Makes the plans of one feed.
#[derive(Debug, Clone)]
pub struct Sampler {
    spec: FeedSpec,
    samples: u32,
    rows_per_epoch: u64,
    batches: u64,
}

impl Sampler {
    /// A sampler for a valid `spec` over a split of `samples` samples.
    ///
    /// # Errors
    /// When an epoch would have no batch, or more than can be numbered, or `spec.start` lies beyond it.
    pub fn new(spec: FeedSpec, samples: u32) -> Result<Self, SamplerError> {
        let (n, world, batch) = (u64::from(samples), u64::from(spec.world_size), u64::from(spec.batch_size));
        // Samples of a rank; each has `views` rows.
        let dealt = match (spec.repeats, spec.last) {
            (1, Last::Keep) => n.div_ceil(world),
            (1, Last::Drop) => n / world,
            // An epoch of repeats is no longer than one without (docs/spec/recipes.md, Repeats).
            _ => (if n < REPEATS_OF { n } else { n / REPEATS_OF * REPEATS_OF }) / world,
        };
        let rows = dealt * u64::from(spec.views);
        let (rows_per_epoch, batches) = match spec.last {
            Last::Keep => (rows, rows.div_ceil(batch)),
            Last::Drop => (rows / batch * batch, rows / batch),
        };
        let start = spec.start.of_a_new_feed();
        if batches == 0 {
            Err(SamplerError::NoBatch { samples, world_size: spec.world_size, batch_size: spec.batch_size })
        } else if batches >> BATCH_BITS != 0 || (batch * world) >> ROW_BITS != 0 {
            Err(SamplerError::TooMany { batches, rows: batch * world })
        } else if start.index >= batches {
            Err(SamplerError::StartOutOfRange { start, batches })
        } else {
            Ok(Self { spec, samples, rows_per_epoch, batches })
        }
    }

    /// What is sampled.
    pub fn spec(&self) -> &FeedSpec {
        &self.spec
    }

    /// Batches in each epoch, the same for every rank.
    pub fn batches(&self) -> u64 {
        self.batches
    }

    /// The first place to deliver.
    pub fn start(&self) -> Place {
        self.spec.start.of_a_new_feed()
    }

    /// The order of an epoch, from which its plans are made. Costs O(samples); any epoch can be had alone.
    pub fn epoch(&self, epoch: u64) -> Epoch<'_> {
        let shuffled =
            |nth| rng::permutation(rng::at(self.spec.seed, Stream::Permutation, epoch, nth, 0), self.samples);
        let order = if self.spec.shuffle { shuffled(0) } else { (0..self.samples).collect() };
        // A second order is always a shuffled one: in the order of the index every row would be its own partner.
        let second = self.spec.mix.takes_a_second_batch().then(|| shuffled(1));
        Epoch { sampler: self, epoch, order, second }
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
    /// When the epoch has no such batch.
    pub fn plan(&self, index: u64) -> Plan {
        let Sampler { spec, samples, rows_per_epoch, batches } = self.sampler;
        assert!(index < *batches, "batch {index} of {batches}");
        let (world, rank) = (u64::from(spec.world_size), u64::from(spec.rank));
        let first = index * u64::from(spec.batch_size);
        let rows = first..(first + u64::from(spec.batch_size)).min(*rows_per_epoch);
        // Of the epoch's samples the r-th goes to rank r mod world_size; past the end, the head of the order comes again.
        let global = |row: u64| (row / u64::from(spec.views) * world + rank) / u64::from(spec.repeats);
        let pad = rows.clone().filter(|&row| global(row) >= u64::from(*samples)).count() as u32;
        let pick = |order: &[SampleId], row: u64| order[(global(row) % u64::from(*samples)) as usize];
        let len = (rows.end - rows.start) as u32;
        let (mut views, mut mixes) = (Views::new(self, index), Mixes::new(self, index, len));
        let own = |(row, at): (u64, u32)| {
            let own = ImagePlan { sample: pick(&self.order, row), view: views.own(at) };
            RowPlan { own, partner: own, partner_row: at as i32, mix: mixes.of(at) }
        };
        let mut plans: Vec<RowPlan> = rows.clone().zip(0..).map(own).collect();
        let partner_rows = self.partner_rows(index, len);
        for (at, row) in (0..plans.len()).zip(rows) {
            if plans[at].mix == RowMix::Alone {
                continue;
            }
            (plans[at].partner, plans[at].partner_row) = match &self.second {
                Some(second) => (ImagePlan { sample: pick(second, row), view: views.second(at as u32) }, -1),
                None => (plans[partner_rows[at] as usize].own, partner_rows[at]),
            };
        }
        let image_size = spec.size_at(self.epoch);
        Plan { place: Place { epoch: self.epoch, index }, batches: *batches, pad, image_size, rows: plans }
    }

    /// Rows of the partners, where these are of the same batch; none of a feed that mixes nothing.
    fn partner_rows(&self, index: u64, len: u32) -> Vec<i32> {
        let spec = &self.sampler.spec;
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
        rng::Rows::new(self.sampler.spec.seed, stream, self.epoch, index)
    }

    /// A row's number over all ranks.
    fn global_row(&self, row: u32) -> u64 {
        let spec = &self.sampler.spec;
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
        let mix = &epoch.sampler.spec.mix;
        let [choices, lambdas] = [Stream::Mix, Stream::Lambda].map(|stream| epoch.generators(stream, index));
        let [mixup, cutmix] = [mix.mixup, mix.cutmix].map(|alpha| alpha.map(rng::beta));
        Self { epoch, len, choices, lambdas, mixup, cutmix, last: None }
    }

    /// How this row is mixed.
    fn of(&mut self, row: u32) -> RowMix {
        let unit = match self.epoch.sampler.spec.mix.per {
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
        let mix = &self.epoch.sampler.spec.mix;
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
        RowMix::Mixup { lambda: (if self.epoch.sampler.spec.mix.fold { raw.max(1.0 - raw) } else { raw }) as f32 }
    }

    /// A box of Yun et al. 2019, algorithm 1.
    fn cutmix(&mut self, row: u64, beta: Beta<f64>) -> RowMix {
        let image_size @ ImageSize { height, width } = self.epoch.sampler.spec.size_at(self.epoch.epoch);
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
        let spec = &self.epoch.sampler.spec;
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
mod tests {
    use super::*;
    use crate::spec::Mix;
    use crate::types::Start;
    use proptest::prelude::*;

    fn spec(batch_size: u32, last: Last, rank: u32, world_size: u32) -> FeedSpec {
        FeedSpec { batch_size, last, rank, world_size, ..FeedSpec::train() }
    }

    proptest! {
        #[test]
        fn ranks_cover_each_epoch_once_with_equal_counts(
            samples in 0_u32..=200, world in 1_u32..=17, batch in 1_u32..=9, keep: bool, epoch in 0_u64..3,
        ) {
            let last = if keep { Last::Keep } else { Last::Drop };
            let mut seen = vec![0_u32; samples as usize];
            let (mut pads, mut counts) = (0, Vec::new());
            for rank in 0..world {
                match Sampler::new(spec(batch, last, rank, world), samples) {
                    Err(error) => {
                        prop_assert!(samples == 0 || !keep && samples / world < batch, "{error}");
                        return Ok(());
                    }
                    Ok(sampler) => {
                        counts.push(sampler.batches());
                        let order = sampler.epoch(epoch);
                        for index in 0..sampler.batches() {
                            let plan = order.plan(index);
                            pads += plan.pad;
                            let kept = plan.len() - plan.pad as usize;
                            for &id in &plan.own()[..kept] {
                                seen[id as usize] += 1;
                            }
                        }
                    }
                }
            }
            prop_assert!(counts.iter().all(|&n| n == counts[0]));
            prop_assert!(pads < world);
            if keep {
                prop_assert!(seen.iter().all(|&n| n == 1));
            } else {
                prop_assert!(seen.iter().all(|&n| n <= 1));
                let rows: u32 = seen.iter().sum();
                prop_assert_eq!(u64::from(rows), counts[0] * u64::from(batch) * u64::from(world));
            }
        }

        #[test]
        fn partners_are_a_permutation_and_lambda_is_folded(
            samples in 1_u32..300, batch in 1_u32..=64, seed: u64, alpha in 0.05_f64..4.0,
        ) {
            let mix = Mix::mixup(alpha);
            let sampler = Sampler::new(FeedSpec { seed, mix, ..spec(batch, Last::Keep, 0, 1) }, samples).unwrap();
            let plan = sampler.epoch(5).plan(sampler.batches() - 1);
            let mut rows = plan.partner_rows();
            rows.sort_unstable();
            prop_assert!(rows.into_iter().eq(0..plan.len() as i32));
            for row in &plan.rows {
                prop_assert_eq!(row.partner, plan.rows[row.partner_row as usize].own);
            }
            prop_assert!(plan.lambdas().iter().all(|lambda| (0.5..=1.0).contains(lambda)));
        }

        #[test]
        fn a_batch_alone_equals_the_batch_in_sequence(samples in 1_u32..300, batch in 1_u32..=64, seed: u64) {
            let sampler = Sampler::new(FeedSpec { seed, ..spec(batch, Last::Keep, 0, 1) }, samples).unwrap();
            let mut place = Place::default();
            let in_sequence: Vec<Plan> = (0..2 * sampler.batches())
                .map(|_| {
                    let plan = sampler.epoch(place.epoch).plan(place.index);
                    place = place.next(sampler.batches());
                    plan
                })
                .collect();
            let alone = Sampler::new(FeedSpec { seed, ..spec(batch, Last::Keep, 0, 1) }, samples).unwrap();
            for plan in in_sequence.iter().rev() {
                prop_assert_eq!(plan, &alone.epoch(plan.place.epoch).plan(plan.place.index));
            }
        }
    }

    #[test]
    fn a_second_batch_is_a_second_order_of_the_epoch() {
        let mix = Mix { pairing: Pairing::SecondBatch, ..Mix::mixup(0.4) };
        let sampler = Sampler::new(FeedSpec { mix, ..spec(8, Last::Keep, 0, 1) }, 61).unwrap();
        let epoch = sampler.epoch(0);
        let plans: Vec<Plan> = (0..sampler.batches()).map(|index| epoch.plan(index)).collect();
        let mut partners: Vec<SampleId> = plans.iter().flat_map(Plan::partners).collect();
        assert!(plans.iter().all(|plan| plan.partner_rows().iter().all(|&row| row == -1)));
        assert_ne!(partners, plans.iter().flat_map(Plan::own).collect::<Vec<_>>());
        partners.sort_unstable();
        assert!(partners.into_iter().eq(0..61));
    }

    #[test]
    fn one_lambda_a_batch_is_one_lambda_a_batch() {
        let mix = Mix { per: MixPer::Batch, ..Mix::mixup(0.4) };
        let sampler = Sampler::new(FeedSpec { mix, ..FeedSpec::train() }, 640).unwrap();
        let epoch = sampler.epoch(0);
        let firsts: Vec<f32> = (0..10).map(|index| epoch.plan(index).lambdas()[0]).collect();
        for (index, &first) in firsts.iter().enumerate() {
            assert_eq!(epoch.plan(index as u64).lambdas(), vec![first; 64]);
        }
        assert!(firsts.iter().any(|&lambda| lambda != firsts[0]));
    }

    proptest! {
        #[test]
        fn boxes_lie_in_the_image_and_lambda_is_what_they_leave(
            height in 1_u32..40, width in 1_u32..40, alpha in 0.1_f64..3.0, seed: u64, per_batch: bool,
        ) {
            let per = if per_batch { MixPer::Batch } else { MixPer::Image };
            let (image_size, mix) = (ImageSize { height, width }, Mix { per, ..Mix::cutmix(alpha) });
            let spec = FeedSpec { image_size, mix, seed, ..spec(16, Last::Keep, 0, 1) };
            let plan = Sampler::new(spec, 50).unwrap().epoch(2).plan(1);
            prop_assert_eq!((plan.len(), plan.partner_rows().into_iter().min()), (16, Some(0)));
            let cuts: Vec<Cut> = plan.each(|row| row.mix.cut().unwrap());
            for (&Cut { top, bottom, left, right }, lambda) in cuts.iter().zip(plan.lambdas()) {
                prop_assert!(top <= bottom && bottom <= height && left <= right && right <= width);
                let inside = f64::from((bottom - top) * (right - left)) / f64::from(height * width);
                prop_assert!((f64::from(lambda) - (1.0 - inside)).abs() < 1e-6);
            }
            prop_assert!(!per_batch || cuts.iter().all(|&cut| cut == cuts[0]));
        }
    }

    /// Unclipped boxes have the area that λ asks for; over many, with α = 1, their mean is near that of uniform λ and clipping.
    #[test]
    fn boxes_are_as_large_as_lambda_says() {
        let (side, mix) = (200, Mix::cutmix(1.0));
        let spec = FeedSpec { image_size: ImageSize::square(side), mix, ..spec(1_000, Last::Keep, 0, 1) };
        let sampler = Sampler::new(spec, 20_000).unwrap();
        let epoch = sampler.epoch(0);
        let (mut unclipped, mut lambdas) = (0, Vec::new());
        for index in 0..20 {
            let plan = epoch.plan(index);
            for (row, cut) in plan.each(|row| row.mix.cut().unwrap()).iter().enumerate() {
                let raw =
                    rng::beta(1.0).sample(epoch.generators(Stream::Lambda, index).at(epoch.global_row(row as u32)));
                let wanted = 2 * ((f64::from(side) * (1.0 - raw).sqrt()) as u32 / 2);
                let (height, width) = (cut.bottom - cut.top, cut.right - cut.left);
                let inside = cut.top > 0 && cut.left > 0 && cut.bottom < side && cut.right < side;
                assert!(height <= wanted && width <= wanted && (!inside || (height, width) == (wanted, wanted)));
                unclipped += u32::from(inside);
            }
            lambdas.extend(plan.lambdas().into_iter().map(f64::from));
        }
        assert!(unclipped > 2_000, "{unclipped}");
        // A side of share s keeps s − s²/4 of its length in the mean over the centre, and E (s − s²/4)² over s = √u is 83/240.
        let (mean, exact) = (lambdas.iter().sum::<f64>() / lambdas.len() as f64, 1.0 - EXPECTED_INSIDE);
        assert!((mean - exact).abs() < 0.01, "{mean} for {exact}");
    }
    const EXPECTED_INSIDE: f64 = 1.0 / 2.0 - 1.0 / 5.0 + 1.0 / 48.0;

    #[test]
    fn half_of_the_rows_are_flipped_anew_each_epoch_and_partners_with_their_rows() {
        let spec = FeedSpec { flip: 0.5, ..spec(50, Last::Keep, 1, 2) };
        let plans = |spec| {
            let sampler = Sampler::new(spec, 4_000).unwrap();
            let epoch =
                |epoch| (0..sampler.batches()).map(|index| sampler.epoch(epoch).plan(index)).collect::<Vec<_>>();
            [epoch(0), epoch(1)]
        };
        let flips =
            |plans: &[Plan]| plans.iter().flat_map(|plan| plan.each(|row| row.own.view.flip)).collect::<Vec<_>>();
        let [first, second] = plans(spec);
        let count = flips(&first).iter().filter(|&&flip| flip).count();
        assert!((900..1_100).contains(&count), "{count} of 2,000");
        assert_ne!(flips(&first), flips(&second));
        assert_ne!(flips(&first), flips(&plans(FeedSpec { rank: 0, ..spec })[0]));
        for plan in &first {
            for row in &plan.rows {
                assert_eq!(row.partner.view.flip, plan.rows[row.partner_row as usize].own.view.flip);
            }
        }
        let pairing = Pairing::SecondBatch;
        let [other, _] = plans(FeedSpec { mix: Mix { pairing, ..Mix::mixup(0.4) }, ..spec });
        assert_eq!(flips(&other), flips(&first));
        assert!(other.iter().any(|plan| plan.rows.iter().any(|row| row.own.view.flip != row.partner.view.flip)));
        // Nothing else changes with the flips.
        let [plain, _] = plans(FeedSpec { flip: 0.0, ..spec });
        assert!(plain.iter().all(|plan| plan.rows.iter().all(|row| !row.own.view.flip && !row.partner.view.flip)));
        assert!(plain.iter().zip(&first).all(|(a, b)| (a.own(), a.lambdas()) == (b.own(), b.lambdas())));
    }

    #[test]
    fn partners_are_whom_the_pairing_names() {
        let rows = |pairing, samples| {
            let mix = Mix { pairing, ..Mix::mixup(0.4) };
            Sampler::new(FeedSpec { mix, ..spec(8, Last::Keep, 0, 1) }, samples)
                .unwrap()
                .epoch(0)
                .plan(0)
                .partner_rows()
        };
        assert_eq!(rows(Pairing::Reverse, 5), [4, 3, 2, 1, 0]);
        assert_eq!(rows(Pairing::Roll, 5), [4, 0, 1, 2, 3]);
        assert_eq!(rows(Pairing::Roll, 1), [0]);
    }

    #[test]
    fn both_mixes_come_by_chance_as_often_as_they_should_and_units_share_theirs() {
        let mixes = |mix| {
            let sampler = Sampler::new(FeedSpec { mix, ..spec(64, Last::Keep, 0, 1) }, 6_400).unwrap();
            let epoch = sampler.epoch(0);
            (0..100).map(|index| epoch.plan(index).each(|row| row.mix)).collect::<Vec<_>>()
        };
        let both = Mix { cutmix: Some(1.0), fold: false, prob: 0.8, switch: 0.25, ..Mix::mixup(0.8) };
        let plans = mixes(both);
        let share = |is: fn(&RowMix) -> bool| plans.iter().flatten().filter(|mix| is(mix)).count() as f64 / 6_400.0;
        assert!((share(|mix| matches!(mix, RowMix::Alone)) - 0.2).abs() < 0.02);
        assert!((share(|mix| matches!(mix, RowMix::CutMix { .. })) - 0.2).abs() < 0.02);
        let pairs = mixes(Mix { per: MixPer::Pair, ..both });
        assert!(pairs.iter().all(|batch| (0..64).all(|row| batch[row] == batch[63 - row])));
        assert!(pairs.iter().filter(|batch| batch[0] != batch[1]).count() > 80);
        for batch in mixes(Mix { per: MixPer::Batch, ..both }) {
            assert!(batch.iter().all(|mix| *mix == batch[0]));
        }
        // Rows that are left alone are their own partners.
        let sampler = Sampler::new(FeedSpec { mix: both, ..spec(64, Last::Keep, 0, 1) }, 640).unwrap();
        for (at, row) in sampler.epoch(0).plan(3).rows.iter().enumerate().filter(|(_, row)| row.mix == RowMix::Alone) {
            assert_eq!((row.partner, row.partner_row), (row.own, at as i32));
        }
    }

    #[test]
    fn repeats_come_in_a_row_and_are_dealt_to_ranks_in_an_epoch_of_the_usual_length() {
        let epoch = |rank, world, samples| -> Vec<SampleId> {
            let sampler = Sampler::new(FeedSpec { repeats: 3, ..spec(50, Last::Keep, rank, world) }, samples).unwrap();
            let epoch = sampler.epoch(1);
            (0..sampler.batches()).flat_map(|index| epoch.plan(index).own()).collect()
        };
        let order = Sampler::new(spec(50, Last::Keep, 0, 1), 600).unwrap().epoch(1).order.clone();
        let all = epoch(0, 1, 600);
        assert_eq!(all.len(), 512);
        assert!(all.iter().enumerate().all(|(row, &sample)| sample == order[row / 3]));
        let ranks = [epoch(0, 2, 600), epoch(1, 2, 600)];
        let dealt: Vec<_> = ranks[0].iter().zip(&ranks[1]).flat_map(|(&zero, &one)| [zero, one]).collect();
        assert_eq!(dealt, all);
        assert_eq!(epoch(0, 1, 200).len(), 200);
    }

    #[test]
    fn every_use_of_an_image_has_a_crop_of_its_own_and_nothing_else_moves() {
        let feed = FeedSpec { crop: crate::spec::Crop::RANDOM_RESIZED, flip: 0.5, ..spec(50, Last::Keep, 0, 1) };
        let plans = |spec: FeedSpec| {
            let sampler = Sampler::new(spec, 100).unwrap();
            [0, 1].map(|epoch| sampler.epoch(epoch).plan(0))
        };
        let second = Mix { pairing: Pairing::SecondBatch, ..Mix::mixup(0.4) };
        let [first, other] = plans(FeedSpec { mix: second, ..feed });
        let mut crops: Vec<_> =
            [&first, &other].into_iter().flat_map(|plan| plan.each(|row| row.own.view.draws.unwrap())).collect();
        crops.extend(first.each(|row| row.partner.view.draws.unwrap()));
        for (at, crop) in crops.iter().enumerate() {
            assert!(!crops[..at].contains(crop), "row {at}");
        }
        let [whole, _] = plans(FeedSpec { crop: crate::spec::Crop::Squash, mix: second, ..feed });
        assert_eq!((whole.own(), whole.lambdas()), (first.own(), first.lambdas()));
        assert_eq!(whole.each(|row| row.own.view.flip), first.each(|row| row.own.view.flip));
        assert!(whole.rows.iter().all(|row| row.own.view.draws.is_none()));
    }

    #[test]
    fn views_of_a_sample_come_in_a_row_and_share_no_draw_with_another_feed_s() {
        let crop = crate::spec::Crop::RandomResizedCrop { scale: [0.1, 1.0], ratio: [0.5, 2.0] };
        let rows = |views, rank, world| {
            let spec = FeedSpec { views, crop, flip: 0.5, mix: Mix::NONE, ..spec(8 * views, Last::Keep, rank, world) };
            let sampler = Sampler::new(spec, 21).unwrap();
            let epoch = sampler.epoch(3);
            (0..sampler.batches()).flat_map(|index| epoch.plan(index).rows).collect::<Vec<_>>()
        };
        let samples = |rows: &[RowPlan]| rows.iter().map(|row| row.own.sample).collect::<Vec<_>>();
        let [one, two, eight] = [1, 2, 8].map(|views| rows(views, 0, 1));
        for (rows, views) in [(&two, 2), (&eight, 8)] {
            let expected: Vec<SampleId> =
                samples(&one).into_iter().flat_map(|sample| std::iter::repeat_n(sample, views)).collect();
            assert_eq!(samples(rows), expected);
        }
        let mut drawn: Vec<u64> = [&one, &two, &eight]
            .into_iter()
            .flatten()
            .map(|row| row.own.view.draws.unwrap().attempts([0.1, 1.0], [0.5, 2.0]).next().unwrap().0.to_bits())
            .collect();
        let all = drawn.len();
        drawn.sort_unstable();
        drawn.dedup();
        assert_eq!((drawn.len(), all), (all, 21 * 11));
        // All views of a sample go to one rank.
        let ranks = [rows(2, 0, 2), rows(2, 1, 2)].map(|rows| samples(&rows));
        let dealt = ranks[0].chunks(2).zip(ranks[1].chunks(2)).flat_map(|(zero, one)| [zero[0], one[0]]);
        assert_eq!(dealt.take(21).collect::<Vec<_>>(), samples(&one));
    }

    #[test]
    fn an_unmixed_feed_in_order_is_the_index() {
        let sampler = Sampler::new(FeedSpec::val(), 300).unwrap();
        let plan = sampler.epoch(9).plan(2);
        assert_eq!(plan.own(), (256..300).collect::<Vec<_>>());
        assert_eq!((plan.partners(), plan.lambdas()), (plan.own(), vec![1.0; 44]));
        assert_eq!(plan.partner_rows(), (0..44).collect::<Vec<_>>());
    }

    #[test]
    fn orders_differ_by_epoch_by_seed_and_by_rank() {
        let plan = |seed, epoch, rank| {
            let spec = FeedSpec { seed, ..spec(32, Last::Keep, rank, 2) };
            Sampler::new(spec, 500).unwrap().epoch(epoch).plan(0)
        };
        let base = plan(0, 0, 0);
        for other in [plan(1, 0, 0), plan(0, 1, 0), plan(0, 0, 1)] {
            assert_ne!(base.own(), other.own());
            assert_ne!(base.partner_rows(), other.partner_rows());
            assert_ne!(base.lambdas(), other.lambdas());
        }
    }

    #[test]
    fn feeds_without_a_batch_are_refused() {
        let refused = |spec, samples| Sampler::new(spec, samples).unwrap_err();
        assert!(matches!(refused(spec(8, Last::Drop, 0, 1), 7), SamplerError::NoBatch { .. }));
        assert!(matches!(refused(spec(1, Last::Keep, 0, 1), 0), SamplerError::NoBatch { .. }));
        assert!(matches!(refused(spec(1, Last::Keep, 0, 1), 1 << 25), SamplerError::TooMany { .. }));
        let start = FeedSpec { start: Start::At(Place { epoch: 0, index: 5 }), ..FeedSpec::train() };
        assert!(matches!(refused(start, 128), SamplerError::StartOutOfRange { batches: 2, .. }));
    }

    /// Kolmogorov–Smirnov of our draws against the goldens' folded quantiles (docs/spec/golden.md#tolerances).
    #[test]
    fn lambda_follows_the_reference_quantiles() {
        for reference in crate::fixtures::roots() {
            let bytes = std::fs::read(reference.join("beta.safetensors")).unwrap();
            let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let numbers = |name: &str| -> Vec<f64> {
                let data = tensors.tensor(name).unwrap().data();
                data.chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap())).collect()
            };
            let (alphas, quantiles, q) = (numbers("alphas"), numbers("folded_quantile"), numbers("q"));
            let (mean, var) = (numbers("folded_mean"), numbers("folded_var"));
            for (nth, &alpha) in alphas.iter().enumerate() {
                let mix = Mix::mixup(alpha);
                let sampler = Sampler::new(FeedSpec { mix, seed: 11, ..FeedSpec::train() }, 64_000).unwrap();
                let epoch = sampler.epoch(0);
                let draws: Vec<f64> = (0..1000).flat_map(|index| epoch.plan(index).lambdas()).map(f64::from).collect();
                let n = draws.len() as f64;
                let worst = q.iter().zip(&quantiles[nth * q.len()..]).fold(0.0_f64, |worst, (&q, &t)| {
                    // Draws round to f32: those within a rounding of t count as neither side's fault.
                    let below = draws.iter().filter(|&&draw| draw < t - 1e-7).count() as f64 / n;
                    let up_to = draws.iter().filter(|&&draw| draw <= t + 1e-7).count() as f64 / n;
                    worst.max(below - q).max(q - up_to)
                });
                assert!(worst <= 1.95 / n.sqrt(), "α = {alpha}: D = {worst}");
                let average = draws.iter().sum::<f64>() / n;
                assert!((average - mean[nth]).abs() <= 4.0 * (var[nth] / n).sqrt(), "α = {alpha}: mean {average}");
            }
        }
    }
}

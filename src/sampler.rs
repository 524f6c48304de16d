//! Plans: which samples, partners and λ make each batch, as a pure function of the feed spec and the number of samples.

use crate::config::{CutMix, FeedSpec, LambdaPer, Mix, Mixup, Pairing};
use crate::rng::{self, Stream};
use crate::types::{Cut, ImageSize, Last, Place, SampleId};

/// One batch before any pixel is touched. All vectors have one element a row.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The batch's place.
    pub place: Place,
    /// Batches in each epoch.
    pub batches: u64,
    /// The own samples.
    pub own: Vec<SampleId>,
    /// Row of each partner; -1 where the partners are a second batch.
    pub partner_row: Vec<i32>,
    /// The partners' samples.
    pub partner: Vec<SampleId>,
    /// Weight of each own sample; 1 where nothing is mixed.
    pub lambda: Vec<f32>,
    /// CutMix: the partner's box in each image. Empty where the feed cuts nothing.
    pub cuts: Vec<Cut>,
    /// Whether each own sample is flipped. Empty where the feed flips nothing.
    pub flip: Vec<bool>,
    /// Whether each partner is flipped: as its own row's sample is, or by a coin of its own where partners are a second batch.
    pub partner_flip: Vec<bool>,
    /// Rows at the end that repeat the head of the permutation.
    pub pad: u32,
}

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
        let (rows_per_epoch, batches) = match spec.last {
            Last::Keep => (n.div_ceil(world), n.div_ceil(world).div_ceil(batch)),
            Last::Drop => (n / world / batch * batch, n / world / batch),
        };
        let start = spec.start.of_a_new_feed();
        if batches == 0 {
            Err(SamplerError::NoBatch { samples, world_size: spec.world_size, batch_size: spec.batch_size })
        } else if batches >> rng::BATCH_BITS != 0 || (batch * world) >> rng::ROW_BITS != 0 {
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
        let len = rows.end - rows.start;
        // Row r of the epoch goes to rank r mod world_size; past the end, the head of the order comes again.
        let global = |row: u64| row * world + rank;
        let pad = rows.clone().filter(|&row| global(row) >= u64::from(*samples)).count() as u32;
        let pick = |order: &[SampleId]| -> Vec<SampleId> {
            rows.clone().map(|row| order[(global(row) % u64::from(*samples)) as usize]).collect()
        };
        let own = pick(&self.order);
        let (len, mut cuts) = (len as u32, Vec::new());
        let (partner_row, lambda) = match spec.mix {
            Mix::None => ((0..len as i32).collect(), vec![1.0; len as usize]),
            Mix::Mixup(mixup @ Mixup { pairing: Pairing::SecondBatch, .. }) => {
                (vec![-1; len as usize], self.lambdas(index, len, mixup))
            }
            Mix::Mixup(mixup) => (self.partner_rows(index, len), self.lambdas(index, len, mixup)),
            Mix::CutMix(cut_mix) => {
                cuts = self.cuts(index, len, cut_mix);
                (self.partner_rows(index, len), cuts.iter().map(|&cut| share_outside(cut, spec.image_size)).collect())
            }
        };
        let partner = match &self.second {
            Some(second) => pick(second),
            None => partner_row.iter().map(|&row| own[row as usize]).collect(),
        };
        let (flip, partner_flip) = if spec.flip { self.flips(index, &partner_row) } else { Default::default() };
        let place = Place { epoch: self.epoch, index };
        Plan { place, batches: *batches, own, partner_row, partner, lambda, cuts, flip, partner_flip, pad }
    }

    fn partner_rows(&self, index: u64, len: u32) -> Vec<i32> {
        let spec = &self.sampler.spec;
        let rng = rng::at(spec.seed, Stream::Shuffle, self.epoch, index, u64::from(spec.rank));
        rng::permutation(rng, len).into_iter().map(|row| row as i32).collect()
    }

    /// The generator of a row of a batch, which no row of another rank has.
    fn row(&self, stream: Stream, index: u64, row: u32) -> rand_chacha::ChaCha8Rng {
        let spec = &self.sampler.spec;
        let row = u64::from(row) * u64::from(spec.world_size) + u64::from(spec.rank);
        rng::at(spec.seed, stream, self.epoch, index, row)
    }

    fn lambdas(&self, index: u64, len: u32, mixup: Mixup) -> Vec<f32> {
        per(mixup.lambda, len, |row| {
            let raw = rng::beta(&mut self.row(Stream::Lambda, index, row), mixup.alpha);
            (if mixup.fold { raw.max(1.0 - raw) } else { raw }) as f32
        })
    }

    /// The boxes of Yun et al. 2019, algorithm 1.
    fn cuts(&self, index: u64, len: u32, cut_mix: CutMix) -> Vec<Cut> {
        let ImageSize { height, width } = self.sampler.spec.image_size;
        per(cut_mix.lambda, len, |row| {
            let mut rng = self.row(Stream::Lambda, index, row);
            let side = (1.0 - rng::beta(&mut rng, cut_mix.alpha)).sqrt();
            let mut span = |extent: u32| {
                let (half, centre) = ((f64::from(extent) * side) as u32 / 2, rng::below(&mut rng, extent));
                (centre.saturating_sub(half), (centre + half).min(extent))
            };
            let ((top, bottom), (left, right)) = (span(height), span(width));
            Cut { top, bottom, left, right }
        })
    }

    fn flips(&self, index: u64, partner_row: &[i32]) -> (Vec<bool>, Vec<bool>) {
        let toss = |row| {
            let mut rng = self.row(Stream::Augmentation, index, row);
            [rng::coin(&mut rng), rng::coin(&mut rng)]
        };
        let coins: Vec<[bool; 2]> = (0..partner_row.len() as u32).map(toss).collect();
        let partner = |(row, &from): (usize, &i32)| usize::try_from(from).map_or(coins[row][1], |from| coins[from][0]);
        (coins.iter().map(|coin| coin[0]).collect(), partner_row.iter().enumerate().map(partner).collect())
    }
}

/// A draw for each row, or the first row's for all.
fn per<T: Copy>(per: LambdaPer, len: u32, draw: impl Fn(u32) -> T) -> Vec<T> {
    match per {
        LambdaPer::Image => (0..len).map(draw).collect(),
        LambdaPer::Batch => vec![draw(0); len as usize],
    }
}

/// λ of CutMix: the share of the image outside the box.
fn share_outside(cut: Cut, image_size: ImageSize) -> f32 {
    (1.0 - cut.pixels() as f64 / image_size.pixels() as f64) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
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
                            let kept = plan.own.len() - plan.pad as usize;
                            for &id in &plan.own[..kept] {
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
            let mix = Mix::Mixup(Mixup { alpha, ..Mixup::default() });
            let sampler = Sampler::new(FeedSpec { seed, mix, ..spec(batch, Last::Keep, 0, 1) }, samples).unwrap();
            let plan = sampler.epoch(5).plan(sampler.batches() - 1);
            let mut rows = plan.partner_row.clone();
            rows.sort_unstable();
            prop_assert!(rows.into_iter().eq(0..plan.own.len() as i32));
            for (row, &partner) in plan.partner_row.iter().enumerate() {
                prop_assert_eq!(plan.partner[row], plan.own[partner as usize]);
            }
            prop_assert!(plan.lambda.iter().all(|lambda| (0.5..=1.0).contains(lambda)));
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
        let mix = Mix::Mixup(Mixup { pairing: Pairing::SecondBatch, ..Mixup::default() });
        let sampler = Sampler::new(FeedSpec { mix, ..spec(8, Last::Keep, 0, 1) }, 61).unwrap();
        let epoch = sampler.epoch(0);
        let plans: Vec<Plan> = (0..sampler.batches()).map(|index| epoch.plan(index)).collect();
        let mut partners: Vec<SampleId> = plans.iter().flat_map(|plan| plan.partner.clone()).collect();
        assert!(plans.iter().all(|plan| plan.partner_row.iter().all(|&row| row == -1)));
        assert_ne!(partners, plans.iter().flat_map(|plan| plan.own.clone()).collect::<Vec<_>>());
        partners.sort_unstable();
        assert!(partners.into_iter().eq(0..61));
    }

    #[test]
    fn one_lambda_a_batch_is_one_lambda_a_batch() {
        let mix = Mix::Mixup(Mixup { lambda: LambdaPer::Batch, ..Mixup::default() });
        let sampler = Sampler::new(FeedSpec { mix, ..FeedSpec::train() }, 640).unwrap();
        let epoch = sampler.epoch(0);
        let firsts: Vec<f32> = (0..10).map(|index| epoch.plan(index).lambda[0]).collect();
        for (index, &first) in firsts.iter().enumerate() {
            assert_eq!(epoch.plan(index as u64).lambda, vec![first; 64]);
        }
        assert!(firsts.iter().any(|&lambda| lambda != firsts[0]));
    }

    proptest! {
        #[test]
        fn boxes_lie_in_the_image_and_lambda_is_what_they_leave(
            height in 1_u32..40, width in 1_u32..40, alpha in 0.1_f64..3.0, seed: u64, per_batch: bool,
        ) {
            let lambda = if per_batch { LambdaPer::Batch } else { LambdaPer::Image };
            let (image_size, mix) = (ImageSize { height, width }, Mix::CutMix(CutMix { alpha, lambda }));
            let spec = FeedSpec { image_size, mix, seed, ..spec(16, Last::Keep, 0, 1) };
            let plan = Sampler::new(spec, 50).unwrap().epoch(2).plan(1);
            prop_assert_eq!((plan.cuts.len(), plan.partner_row.iter().min()), (16, Some(&0)));
            for (&Cut { top, bottom, left, right }, &lambda) in plan.cuts.iter().zip(&plan.lambda) {
                prop_assert!(top <= bottom && bottom <= height && left <= right && right <= width);
                let inside = f64::from((bottom - top) * (right - left)) / f64::from(height * width);
                prop_assert!((f64::from(lambda) - (1.0 - inside)).abs() < 1e-6);
            }
            prop_assert!(!per_batch || plan.cuts.iter().all(|&cut| cut == plan.cuts[0]));
        }
    }

    /// Unclipped boxes have the area that λ asks for; over many, with α = 1, their mean is near that of uniform λ and clipping.
    #[test]
    fn boxes_are_as_large_as_lambda_says() {
        let (side, mix) = (200, Mix::CutMix(CutMix::default()));
        let spec = FeedSpec { image_size: ImageSize::square(side), mix, ..spec(1_000, Last::Keep, 0, 1) };
        let sampler = Sampler::new(spec, 20_000).unwrap();
        let epoch = sampler.epoch(0);
        let (mut unclipped, mut lambdas) = (0, Vec::new());
        for index in 0..20 {
            let plan = epoch.plan(index);
            for (row, cut) in plan.cuts.iter().enumerate() {
                let raw = rng::beta(&mut epoch.row(Stream::Lambda, index, row as u32), 1.0);
                let wanted = 2 * ((f64::from(side) * (1.0 - raw).sqrt()) as u32 / 2);
                let (height, width) = (cut.bottom - cut.top, cut.right - cut.left);
                let inside = cut.top > 0 && cut.left > 0 && cut.bottom < side && cut.right < side;
                assert!(height <= wanted && width <= wanted && (!inside || (height, width) == (wanted, wanted)));
                unclipped += u32::from(inside);
            }
            lambdas.extend(plan.lambda.iter().map(|&lambda| f64::from(lambda)));
        }
        assert!(unclipped > 2_000, "{unclipped}");
        // A side of share s keeps s − s²/4 of its length in the mean over the centre, and E (s − s²/4)² over s = √u is 83/240.
        let (mean, exact) = (lambdas.iter().sum::<f64>() / lambdas.len() as f64, 1.0 - EXPECTED_INSIDE);
        assert!((mean - exact).abs() < 0.01, "{mean} for {exact}");
    }
    const EXPECTED_INSIDE: f64 = 1.0 / 2.0 - 1.0 / 5.0 + 1.0 / 48.0;

    #[test]
    fn half_of_the_rows_are_flipped_anew_each_epoch_and_partners_with_their_rows() {
        let spec = FeedSpec { flip: true, ..spec(50, Last::Keep, 1, 2) };
        let plans = |spec| {
            let sampler = Sampler::new(spec, 4_000).unwrap();
            let epoch =
                |epoch| (0..sampler.batches()).map(|index| sampler.epoch(epoch).plan(index)).collect::<Vec<_>>();
            [epoch(0), epoch(1)]
        };
        let flips = |plans: &[Plan]| plans.iter().flat_map(|plan| plan.flip.clone()).collect::<Vec<_>>();
        let [first, second] = plans(spec);
        let count = flips(&first).iter().filter(|&&flip| flip).count();
        assert!((900..1_100).contains(&count), "{count} of 2,000");
        assert_ne!(flips(&first), flips(&second));
        assert_ne!(flips(&first), flips(&plans(FeedSpec { rank: 0, ..spec })[0]));
        for plan in &first {
            for (row, &from) in plan.partner_row.iter().enumerate() {
                assert_eq!(plan.partner_flip[row], plan.flip[from as usize]);
            }
        }
        let pairing = Pairing::SecondBatch;
        let [other, _] = plans(FeedSpec { mix: Mix::Mixup(Mixup { pairing, ..Mixup::default() }), ..spec });
        assert_eq!(flips(&other), flips(&first));
        assert!(other.iter().any(|plan| plan.flip != plan.partner_flip));
        // Nothing else changes with the flips.
        let [plain, _] = plans(FeedSpec { flip: false, ..spec });
        assert!(plain.iter().all(|plan| plan.flip.is_empty() && plan.partner_flip.is_empty()));
        assert!(plain.iter().zip(&first).all(|(a, b)| (&a.own, &a.lambda) == (&b.own, &b.lambda)));
    }

    #[test]
    fn an_unmixed_feed_in_order_is_the_index() {
        let sampler = Sampler::new(FeedSpec::val(), 300).unwrap();
        let plan = sampler.epoch(9).plan(2);
        assert_eq!(plan.own, (256..300).collect::<Vec<_>>());
        assert_eq!((plan.partner, plan.lambda), (plan.own, vec![1.0; 44]));
        assert_eq!(plan.partner_row, (0..44).collect::<Vec<_>>());
    }

    #[test]
    fn orders_differ_by_epoch_by_seed_and_by_rank() {
        let plan = |seed, epoch, rank| {
            let spec = FeedSpec { seed, ..spec(32, Last::Keep, rank, 2) };
            Sampler::new(spec, 500).unwrap().epoch(epoch).plan(0)
        };
        let base = plan(0, 0, 0);
        for other in [plan(1, 0, 0), plan(0, 1, 0), plan(0, 0, 1)] {
            assert_ne!(base.own, other.own);
            assert_ne!(base.partner_row, other.partner_row);
            assert_ne!(base.lambda, other.lambda);
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

    /// Kolmogorov–Smirnov of our draws against the goldens' folded quantiles (SPEC §8).
    #[test]
    fn lambda_follows_the_reference_quantiles() {
        let Some(reference) = crate::fixtures::reference() else { return };
        let bytes = std::fs::read(reference.join("beta.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let numbers = |name: &str| -> Vec<f64> {
            let data = tensors.tensor(name).unwrap().data();
            data.chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap())).collect()
        };
        let (alphas, quantiles, q) = (numbers("alphas"), numbers("folded_quantile"), numbers("q"));
        let (mean, var) = (numbers("folded_mean"), numbers("folded_var"));
        for (nth, &alpha) in alphas.iter().enumerate() {
            let mix = Mix::Mixup(Mixup { alpha, ..Mixup::default() });
            let sampler = Sampler::new(FeedSpec { mix, seed: 11, ..FeedSpec::train() }, 64_000).unwrap();
            let epoch = sampler.epoch(0);
            let draws: Vec<f64> = (0..1000).flat_map(|index| epoch.plan(index).lambda).map(f64::from).collect();
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

//! Tests of the plans.

use super::*;
use crate::spec::{Consumed, Mix, Shuffle, WORLD_SIZE_MAX};
use crate::types::{Last, Split, Start};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::num::NonZeroU32;

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

/// A window order by its definition (docs/spec/batches.md): each sample's shard is looked up, and each window a list of its own.
fn naive_windows(spec: &FeedSpec, samples: u32, firsts: &[u32], count: usize, epoch: u64) -> Vec<Vec<SampleId>> {
    let shard_of = |id: SampleId| firsts.iter().rposition(|first| *first <= id).unwrap() as u32;
    let shards = rng::permutation(rng::at(spec.seed, Stream::Permutation, epoch, 0, 0), firsts.len() as u32);
    let mut rng = rng::at(spec.seed, Stream::Permutation, epoch, 1, 0);
    let mut windows = Vec::new();
    for window in shards.chunks(count) {
        let mut ids: Vec<SampleId> =
            window.iter().flat_map(|&shard| (0..samples).filter(move |&id| shard_of(id) == shard)).collect();
        for last in (1..ids.len()).rev() {
            let other = rng::below(&mut rng, last as u32 + 1) as usize;
            (ids[last], ids[other]) = (ids[other], ids[last]);
        }
        windows.push(ids);
    }
    windows
}

proptest! {
    #[test]
    fn windows_of_shards_are_read_one_after_the_other_by_all_ranks(
        sizes in prop::collection::vec(1_u32..20, 1..12), count in 1_u32..14, batch in 1_u32..9, world in 1_u32..4,
        seed: u64, epoch in 0_u64..3, repeats in 1_u32..3,
    ) {
        let shards: Vec<u32> = (0..sizes.len()).map(|nth| sizes[..nth].iter().sum()).collect();
        let samples = sizes.iter().sum();
        let shuffle = Shuffle::Shards(NonZeroU32::new(count).unwrap());
        let feed = |rank| FeedSpec { seed, shuffle, repeats, ..spec(batch, Last::Keep, rank, world) };
        let numbering = Numbering { samples, shards: shards.clone() };
        let Ok(sampler) = Sampler::new(feed(0), numbering.clone()) else { return Ok(()) };
        let expected = naive_windows(&feed(0), samples, &shards, count as usize, epoch);
        let order: Vec<SampleId> = expected.concat();
        let (mut reached, windows) = (0, sampler.windows(epoch));
        for (window, ids) in expected.iter().enumerate() {
            let firsts: BTreeSet<u32> = windows.shards[window].iter().copied().collect();
            prop_assert_eq!(&firsts, &ids.iter().map(|id| *shards.iter().rfind(|first| *first <= id).unwrap()).collect());
            for position in reached..reached + ids.len() as u64 {
                prop_assert_eq!(windows.at(position), window);
            }
            reached += ids.len() as u64;
        }
        prop_assert_eq!((windows.at(reached), windows.shards.len()), (0, expected.len()));
        for rank in 0..world {
            let sampler = Sampler::new(feed(rank), numbering.clone()).unwrap();
            let plans = sampler.epoch(epoch);
            for index in 0..sampler.batches() {
                for (row, id) in plans.plan(index).own().into_iter().enumerate() {
                    let position = ((index * u64::from(batch) + row as u64) * u64::from(world) + u64::from(rank)) / u64::from(repeats);
                    prop_assert_eq!(id, order[(position % u64::from(samples)) as usize]);
                    if row == 0 {
                        prop_assert_eq!(sampler.position(Place { epoch, index }), position);
                    }
                }
            }
        }
    }
}

#[test]
fn a_second_batch_goes_through_the_same_shards_at_the_same_time() {
    let mix = Mix { pairing: Pairing::SecondBatch, ..Mix::mixup(0.4) };
    let shuffle = Shuffle::Shards(NonZeroU32::new(2).unwrap());
    let numbering = Numbering { samples: 60, shards: vec![0, 10, 20, 30, 40, 50] };
    let sampler = Sampler::new(FeedSpec { mix, shuffle, ..spec(20, Last::Keep, 0, 1) }, numbering).unwrap();
    let mut orders = BTreeSet::new();
    for number in 0..4 {
        let epoch = sampler.epoch(number);
        let mut all = Vec::new();
        for index in 0..3 {
            let plan = epoch.plan(index);
            let sorted = |mut ids: Vec<SampleId>| {
                ids.sort_unstable();
                ids
            };
            assert_ne!(plan.own(), plan.partners());
            assert_eq!(sorted(plan.own()), sorted(plan.partners()));
            all.extend(plan.own());
        }
        orders.insert(all);
    }
    assert_eq!(orders.len(), 4);
}

#[test]
fn samples_that_lie_in_no_shards_are_not_shuffled_by_shards() {
    let shuffle = Shuffle::Shards(NonZeroU32::new(2).unwrap());
    let error = Sampler::new(FeedSpec { shuffle, ..FeedSpec::train() }, 600).unwrap_err().to_string();
    assert!(error.contains("shards:2") && error.contains("global"), "{error}");
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
            let raw = rng::beta(1.0).sample(epoch.generators(Stream::Lambda, index).at(epoch.global_row(row as u32)));
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
        let epoch = |epoch| (0..sampler.batches()).map(|index| sampler.epoch(epoch).plan(index)).collect::<Vec<_>>();
        [epoch(0), epoch(1)]
    };
    let flips = |plans: &[Plan]| plans.iter().flat_map(|plan| plan.each(|row| row.own.view.flip)).collect::<Vec<_>>();
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
        Sampler::new(FeedSpec { mix, ..spec(8, Last::Keep, 0, 1) }, samples).unwrap().epoch(0).plan(0).partner_rows()
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
    assert!(matches!(refused(spec(8, Last::Drop, 0, 1), 7), DealError::NoBatch { .. }));
    assert!(matches!(refused(spec(1, Last::Keep, 0, 1), 0), DealError::NoBatch { .. }));
    let val = FeedSpec { split: Split::Val, ..spec(1, Last::Keep, 0, 1) };
    assert!(matches!(refused(val, 0), DealError::NoValidation));
    assert!(matches!(refused(spec(1, Last::Keep, 0, 1), 1 << 25), DealError::TooMany { .. }));
    let start = FeedSpec { start: Start::At(Place { epoch: 0, index: 5 }), ..FeedSpec::train() };
    assert!(matches!(refused(start, 128), DealError::StartOutOfRange { batches: 2, .. }));
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

/// Reads `count` batches at each rank of `spec`, or what is left of the epoch: what they show, padding aside, and the place after it.
fn read(spec: FeedSpec, samples: u32, count: u64, shown: &mut Vec<SampleId>) -> Place {
    let mut next = Place::default();
    for rank in 0..spec.world_size {
        let sampler = Sampler::new(FeedSpec { rank, ..spec }, samples).unwrap();
        next = sampler.start();
        let epoch = sampler.epoch(next.epoch);
        for _ in 0..count {
            if next.epoch != epoch.number() {
                break;
            }
            let plan = epoch.plan(next.index);
            shown.extend(&plan.own()[..plan.len() - plan.pad as usize]);
            next = next.next(sampler.batches());
        }
    }
    next
}

proptest! {
    /// One continuation after the other: what all ranks of all world sizes show together is the head of the epoch's order, once.
    #[test]
    fn epochs_go_on_with_other_world_sizes_and_lose_and_repeat_nothing(
        samples in 1_u32..=600, worlds in [1_u32..=9, 1..=9, 1..=9, 1..=9], counts in [0_u64..=9, 0..=9, 0..=9],
        batch in 1_u32..=6, views in 1_u32..=3, is_repeated: bool, keep: bool, epoch in 0_u64..3,
    ) {
        let (last, repeats) = (if keep { Last::Keep } else { Last::Drop }, if is_repeated { 3 } else { 1 });
        let base = FeedSpec { views, repeats, ..spec(batch * views, last, 0, 1) };
        let of = |world_size| FeedSpec { world_size, ..base };
        prop_assume!(worlds.iter().all(|&world| Sampler::new(of(world), samples).is_ok()));
        let mut feed = FeedSpec { start: Start::At(Place { epoch, index: 0 }), ..of(worlds[0]) };
        let (mut shown, mut next) = (Vec::new(), Place { epoch, index: 0 });
        for (count, &world) in counts.into_iter().zip(&worlds[1..]) {
            next = read(feed, samples, count, &mut shown);
            if next.epoch > epoch {
                break;
            }
            let stopped = Deal::new(FeedSpec { start: Start::At(next), ..feed }, samples).unwrap();
            feed = stopped.resharded(of(world)).unwrap();
            next = feed.start.of_a_new_feed(next);
            if next.epoch > epoch {
                break;
            }
        }
        if next.epoch == epoch {
            next = read(feed, samples, u64::MAX, &mut shown);
        }
        prop_assert_eq!(next, Place { epoch: epoch + 1, index: 0 });
        let whole = Sampler::new(of(1), samples).unwrap();
        let order = whole.epoch(epoch).order;
        let length = if is_repeated && samples >= 256 { samples / 256 * 256 } else { samples } as usize;
        prop_assert_eq!(shown.len() % views as usize, 0);
        let (dealt, world) = (shown.len() / views as usize, feed.world_size as usize);
        let mut expected: Vec<SampleId> = (0..dealt * views as usize).map(|row| order[row / views as usize / repeats as usize]).collect();
        expected.sort_unstable();
        shown.sort_unstable();
        prop_assert_eq!(shown, expected);
        match (keep, is_repeated) {
            (true, false) => prop_assert_eq!(dealt, length),
            (true, true) => prop_assert!(length - dealt < world),
            (false, _) => prop_assert!(length - dealt < world * batch as usize),
        }
        // The next epoch is an ordinary one.
        let (rest, plain) = (Sampler::new(feed, samples).unwrap(), Sampler::new(of(feed.world_size), samples).unwrap());
        for index in rest.indices(epoch + 1).unwrap() {
            prop_assert_eq!(rest.epoch(epoch + 1).plan(index), plain.epoch(epoch + 1).plan(index));
        }
        prop_assert_eq!(rest.indices(epoch + 1), plain.indices(epoch + 1));
    }

    #[test]
    fn the_rest_of_an_epoch_dealt_to_as_many_ranks_is_the_same_batches(
        samples in 1_u32..=300, world in 1_u32..=5, batch in 1_u32..=6, views in 1_u32..=2, keep: bool, stop in 0.0_f64..1.0,
    ) {
        let last = if keep { Last::Keep } else { Last::Drop };
        let feed = FeedSpec { views, flip: 0.5, ..spec(batch * views, last, world - 1, world) };
        let Ok(sampler) = Sampler::new(feed, samples) else { return Ok(()) };
        let index = (stop * sampler.batches() as f64) as u64;
        let consumed = Some(Consumed { epoch: 2, samples: index as u32 * batch * world });
        let rest = Sampler::new(FeedSpec { consumed, ..feed }, samples).unwrap();
        prop_assert_eq!(rest.start(), Place { epoch: 2, index });
        for index in rest.indices(2).unwrap() {
            prop_assert_eq!(rest.epoch(2).plan(index), sampler.epoch(2).plan(index));
        }
    }
}

#[test]
fn places_that_were_consumed_and_rests_without_a_batch_are_refused_with_the_remedy() {
    let consumed = |samples| Some(Consumed { epoch: 3, samples });
    // 100 samples in 5 batches at each of 2 ranks; 40 leave 3 of them.
    let rest = FeedSpec { consumed: consumed(40), ..spec(10, Last::Drop, 1, 2) };
    let starting = |epoch, index| Sampler::new(FeedSpec { start: Start::At(Place { epoch, index }), ..rest }, 100);
    assert_eq!(Sampler::new(rest, 100).unwrap().start(), Place { epoch: 3, index: 2 });
    for place in [(3, 2), (3, 4), (4, 0)] {
        starting(place.0, place.1).unwrap();
    }
    for place in [(3, 1), (3, 0), (2, 4), (0, 0)] {
        let error = starting(place.0, place.1).unwrap_err();
        assert!(matches!(error, DealError::StartConsumed { first: Place { epoch: 3, index: 2 }, .. }), "{error}");
        assert!(error.to_string().ends_with("(start there or later, or leave out consumed)"), "{error}");
    }
    assert!(Sampler::new(rest, 100).unwrap().indices(2).is_err());
    for (samples, last) in [(100, Last::Keep), (u32::MAX, Last::Keep), (81, Last::Drop)] {
        let error = Sampler::new(FeedSpec { consumed: consumed(samples), last, ..rest }, 100).unwrap_err();
        assert!(matches!(error, DealError::NothingLeft { .. }), "{error}");
        assert!(error.to_string().contains("start at the next epoch"), "{error}");
    }
}

#[test]
fn an_epoch_is_dealt_to_33_nodes_of_8_gpus_and_to_as_many_ranks_as_there_may_be() {
    let (mut seen, world_size) = (vec![0_u32; 10_000], 33 * 8);
    for rank in 0..world_size {
        let feed = FeedSpec { shuffle: Shuffle::Off, ..spec(16, Last::Keep, rank, world_size) };
        feed.validate().unwrap();
        let sampler = Sampler::new(feed, 10_000).unwrap();
        assert_eq!(sampler.batches(), 3);
        for plan in (0..3).map(|index| sampler.epoch(0).plan(index)) {
            plan.own()[..plan.len() - plan.pad as usize].iter().for_each(|&sample| seen[sample as usize] += 1);
        }
    }
    assert!(seen.iter().all(|&times| times == 1));
    // Rows of a batch are numbered over all ranks: 255 · 65,536 is below 2^24.
    let most = |batch_size| {
        let feed = spec(batch_size, Last::Keep, WORLD_SIZE_MAX - 1, WORLD_SIZE_MAX);
        feed.validate().unwrap();
        Sampler::new(feed, WORLD_SIZE_MAX).map(|sampler| sampler.epoch(0).plan(0).own().len())
    };
    assert_eq!((most(255), most(256)), (Ok(1), Err(DealError::TooMany { batches: 1, rows: 1 << 24 })));
}

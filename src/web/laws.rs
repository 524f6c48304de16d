//! How λ and the operations of a feed's last batches are distributed, beside their laws.

use super::batch::Published;
use crate::control::Daemon;
use crate::lesson::{beta_density, folded_density};
use crate::plan::{Plan, Sampler};
use crate::spec::{FeedSpec, Mix};
use crate::types::{Place, Start};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The most batches that are looked back.
const BATCHES_MAX: u64 = 100;
/// Views that are drawn for the law of the operations, and seeds that they are drawn from at most.
const DRAWS: usize = 20_000;
const SEEDS_MAX: u64 = 100;
/// Bins of λ.
const BINS: usize = 25;
/// Points of the integral over a bin.
const POINTS: usize = 64;

/// Counts of λ and of operations.
#[derive(Default)]
struct Counts {
    rows: usize,
    lambda: [usize; BINS],
    operations: BTreeMap<&'static str, usize>,
}

impl Counts {
    fn add(&mut self, spec: &FeedSpec, plan: &Plan, from: f64) {
        for row in &plan.rows {
            let lambda = f64::from(row.mix.lambda());
            let bin = ((lambda - from) / (1.0 - from) * BINS as f64) as usize;
            self.rows += 1;
            self.lambda[bin.min(BINS - 1)] += 1;
            for operation in row.own.view.operations(&spec.augment, plan.image_size).iter() {
                *self.operations.entry(operation.name()).or_default() += 1;
            }
        }
    }

    fn shares(&self) -> Vec<f64> {
        self.lambda.iter().map(|&count| count as f64 / self.rows.max(1) as f64).collect()
    }

    /// Uses of an operation, a view.
    fn uses(&self, operation: &str) -> f64 {
        *self.operations.get(operation).unwrap_or(&0) as f64 / self.rows.max(1) as f64
    }
}

/// The λ and the operations of the last hundred batches, and what their laws expect: of mixup's λ alone its density, of everything else
/// the shares among 20,000 views of other seeds.
///
/// # Errors
/// When the spec cannot be planned; for people.
pub fn laws(daemon: &Daemon, published: &Published) -> Result<Value, String> {
    let &Published { spec, last, batches, count, .. } = published;
    let spec = FeedSpec { start: Start::Now, share: None, ..spec };
    let sampler = |spec: FeedSpec| daemon.pipeline().sampler(&spec).map_err(|error| error.to_string());
    let from = if spec.mix.cutmix.is_none() && spec.mix.fold { 0.5 } else { 0.0 };
    let last = last.number(batches);
    let mut seen = Counts::default();
    let places = (0..count.min(BATCHES_MAX)).filter_map(|back| last.checked_sub(back.into()));
    each(&sampler(spec)?, places.map(|number| Place::of_number(number, batches)), |plan| seen.add(&spec, plan, from));
    let mut law = Counts::default();
    // In the epoch of the last batch, since mixing may end with an epoch; from other seeds where it has too few.
    let epoch = (last / u128::from(batches)) as u64;
    for seed in 1.. {
        let other = sampler(FeedSpec { seed: spec.seed.wrapping_add(seed << 32), ..spec })?;
        let enough = (DRAWS - law.rows).div_ceil(spec.batch_size as usize) as u64;
        let places = (0..batches.min(enough)).map(|index| Place { epoch, index });
        each(&other, places, |plan| law.add(&spec, plan, from));
        if law.rows >= DRAWS || seed == SEEDS_MAX {
            break;
        }
    }
    let density = mixup_law(&spec.mix, epoch, from);
    let names: Vec<&str> = law.operations.keys().copied().collect();
    let operations = names.iter().map(|name| json!({"name": name, "share": seen.uses(name), "law": law.uses(name)}));
    Ok(json!({
        "rows": seen.rows,
        "lambda": {
            "from": from, "shares": seen.shares(), "law": density.as_ref().map_or_else(|| law.shares(), |(_, law)| law.clone()),
            "law_name": density.map_or_else(|| format!("{} rows of other seeds", law.rows), |(name, _)| name),
        },
        "operations": operations.collect::<Vec<_>>(),
        "operations_law_name": format!("{} views of other seeds", law.rows),
    }))
}

/// Plans batches, an epoch's order once as long as they are of the same.
fn each(sampler: &Sampler, places: impl Iterator<Item = Place>, mut look: impl FnMut(&Plan)) {
    let mut epoch = None;
    for place in places {
        let epoch = match &mut epoch {
            Some((number, epoch)) if *number == place.epoch => epoch,
            other => &mut other.insert((place.epoch, sampler.epoch(place.epoch))).1,
        };
        look(&epoch.plan(place.index));
    }
}

/// Shares of λ in bins from `from` to 1 by mixup's law, r of Beta(α, α) or, folded, max(r, 1−r); `None` where rows are cut, or nothing is mixed in
/// this epoch. Below α = 1 the density has a pole at 1; over u = (1−x)^α the integrand is bounded.
fn mixup_law(mix: &Mix, epoch: u64, from: f64) -> Option<(String, Vec<f64>)> {
    let alpha = mix.mixup.filter(|_| mix.cutmix.is_none() && mix.off_epoch.is_none_or(|off| epoch < off))?;
    let density = if mix.fold { folded_density } else { beta_density };
    // Of the density's constant and its powers of x and 1−x, which alone leave the range of f64 for a large α.
    let factor = density(alpha, 0.5).ln() + 2.0 * 2.0_f64.ln() * (alpha - 1.0);
    let power = alpha.min(1.0);
    let edge = |bin: usize| (1.0 - (from + (1.0 - from) * bin as f64 / BINS as f64)).max(0.0).powf(power);
    let share = |bin: usize| {
        let (low, high) = (edge(bin + 1), edge(bin));
        let step = (high - low) / POINTS as f64;
        let points = (0..POINTS).map(|nth| {
            let distance = (low + (nth as f64 + 0.5) * step).powf(1.0 / power);
            let powers = (alpha - 1.0) * (-distance).ln_1p() + (alpha - power) * distance.ln();
            (factor + powers).exp() / power
        });
        mix.prob * points.sum::<f64>() * step
    };
    // Unfolded it is symmetric, and its lower half unbounded.
    let upper = |bin: usize| if mix.fold { bin } else { bin.max(BINS - 1 - bin) };
    let mut law: Vec<f64> = (0..BINS).map(|bin| share(upper(bin))).collect();
    // What is not mixed has λ = 1.
    law[BINS - 1] += 1.0 - mix.prob;
    Some((format!("Beta({alpha}, {alpha}){}", if mix.fold { ", folded" } else { "" }), law))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixup_s_law_sums_to_one_and_has_known_shares() {
        let law = |alpha, prob| mixup_law(&Mix { mixup: Some(alpha), prob, ..Mix::NONE }, 0, 0.5).unwrap().1;
        for alpha in [0.1, 0.4, 1.0, 3.0, 40.0, 1000.0] {
            let sum: f64 = law(alpha, 1.0).iter().sum();
            assert!((sum - 1.0).abs() < 1e-3, "{alpha}: {sum}");
        }
        for alpha in [0.1, 0.4, 1.0, 3.0, 40.0, 1000.0] {
            let law = mixup_law(&Mix { mixup: Some(alpha), fold: false, ..Mix::NONE }, 0, 0.0).unwrap().1;
            assert!((law.iter().sum::<f64>() - 1.0).abs() < 1e-3 && law[0] == law[BINS - 1], "{alpha}: {law:?}");
        }
        // Beta(1, 1) is uniform; Beta(½, ½) has the arcsine's law: P(λ > x) = (4/π)·asin(√(1−x)).
        law(1.0, 1.0).iter().for_each(|share| assert!((share - 0.04).abs() < 1e-9, "{share}"));
        let tail = 4.0 / std::f64::consts::PI * 0.02_f64.sqrt().asin();
        assert!((law(0.5, 1.0)[BINS - 1] - tail).abs() < 1e-4, "{tail}");
        assert!((law(1.0, 0.25)[BINS - 1] - 0.76).abs() < 1e-9);
        assert!(mixup_law(&Mix { cutmix: Some(1.0), ..Mix::NONE }, 0, 0.0).is_none());
        assert!(mixup_law(&Mix { mixup: Some(1.0), off_epoch: Some(3), ..Mix::NONE }, 3, 0.5).is_none());
    }
}

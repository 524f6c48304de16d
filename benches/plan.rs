//! Planning alone: the order of an epoch, and the plan of a batch of 64, for as many samples as imagenette and ImageNet have.
//!
//! `cargo bench --bench plan`. What it leaves out: finding the samples, decoding, mixing; `mixd bench` has those.
#![allow(missing_docs, reason = "criterion's macros")]

use criterion::{Criterion, criterion_group, criterion_main};
use mixd::plan::Sampler;
use mixd::spec::FeedSpec;

fn plan(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("plan");
    group.sample_size(20);
    for samples in [9_469, 1_281_167] {
        let sampler = Sampler::new(FeedSpec::train(), samples).unwrap();
        let mut number = 0;
        group.bench_function(format!("epoch of {samples}"), |bencher| {
            bencher.iter(|| {
                number += 1;
                sampler.epoch(number)
            });
        });
        let (epoch, mut index) = (sampler.epoch(0), 0);
        group.bench_function(format!("batch of {samples}"), |bencher| {
            bencher.iter(|| {
                index = (index + 1) % sampler.batches();
                epoch.plan(index)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, plan);
criterion_main!(benches);

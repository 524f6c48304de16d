//! The CPU mixer alone: batches of 64 mixed images of 128 × 128, in one thread, for each element type, order of axes and instruction
//! set; and flipped, and with a CutMix box.
//!
//! `cargo bench --bench mix`. Samples are rows of 2,000 (98 MB: not in cache), the output goes round four slots. What it leaves
//! out: decoding, waking, other processes; `mixd bench` has those.
#![allow(missing_docs, reason = "criterion's macros")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mixd::mix::{CpuMixer, Helpers, Level, Mixer, Row, Target};
use mixd::spec::FeedSpec;
use mixd::types::{Cut, Dtype, ImageSize, Layout};
use std::sync::Arc;

const SLOTS: usize = 4;

fn mix(criterion: &mut Criterion) {
    let values = FeedSpec::train().format().image_size.values();
    let samples: Vec<Vec<u8>> =
        (0..2_000).map(|n| (0..values).map(|at| (at * 31 + n * 7 + at / 97) as u8).collect()).collect();
    let alone = Arc::new(Helpers::start(0).expect("no thread is started"));
    let mut group = criterion.benchmark_group("mix");
    group.sample_size(20);
    group.throughput(Throughput::Elements(64));
    let layouts = |dtype| Layout::ALL.iter().map(move |&layout| (dtype, layout));
    let plain = Dtype::ALL.iter().flat_map(|&dtype| layouts(dtype)).map(|(dtype, layout)| (dtype, layout, "mixup"));
    let kinds = [Dtype::F32, Dtype::U8].into_iter().flat_map(|dtype| ["flipped", "cutmix"].map(|kind| (dtype, kind)));
    for (dtype, layout, kind) in plain.chain(kinds.map(|(dtype, kind)| (dtype, Layout::Nchw, kind))) {
        let format = FeedSpec { dtype, layout, ..FeedSpec::train() }.format();
        let slot_bytes = 64 * format.image_bytes();
        let mut slots = vec![vec![0_u64; slot_bytes / 8]; SLOTS];
        let cut = (kind == "cutmix").then_some(Cut { top: 20, bottom: 90, left: 33, right: 103 });
        let lambda = if cut.is_some() { 1.0 } else { 0.7 };
        for level in Level::available() {
            let mut mixer = CpuMixer::new(format, Arc::clone(&alone)).at(level);
            let mut turn = 0;
            group.bench_function(format!("{kind} {dtype} {layout} {level:?}"), |bencher| {
                bencher.iter(|| {
                    turn += 1;
                    let row = |at: usize| {
                        let sample = |salt: usize| &samples[(turn * 64 + at * salt) % samples.len()][..];
                        let (flip, partner_flip) = (kind == "flipped" && at % 4 > 1, kind == "flipped" && at % 8 > 3);
                        Row { flip, partner_flip, cut, ..Row::new(sample(17), sample(29), lambda) }
                    };
                    let rows: Vec<Row<'_>> = (0..64).map(row).collect();
                    mixer
                        .mix(
                            ImageSize::square(128),
                            &rows,
                            Target::Memory(bytemuck::cast_slice_mut(&mut slots[turn % SLOTS])),
                            None,
                            None,
                        )
                        .unwrap();
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, mix);
criterion_main!(benches);

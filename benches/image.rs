//! Decoding and resizing alone, in one thread: images of the sample data, to 128 × 128.
//!
//! `cargo bench --bench image`. Files are read before; what it leaves out besides: waking, mixing, other processes.
#![allow(missing_docs, reason = "criterion's macros")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mixd::image::{Decoder, Picture, Resize, ResizeKind};
use mixd::types::ImageSize;
use std::path::Path;

fn files() -> Vec<Vec<u8>> {
    let train = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample-data/train");
    let classes = std::fs::read_dir(train).unwrap().map(|class| class.unwrap().path());
    let files = classes.flat_map(|class| std::fs::read_dir(class).unwrap().take(10).map(|file| file.unwrap().path()));
    files.map(|file| std::fs::read(file).unwrap()).collect()
}

fn decode(criterion: &mut Criterion) {
    let files = files();
    let mut group = criterion.benchmark_group("decode");
    group.sample_size(20);
    group.throughput(Throughput::Elements(files.len() as u64));
    let mut decoder = Decoder::default();
    group.bench_function("160 px", |bencher| {
        bencher.iter(|| files.iter().map(|file| decoder.decode(file, None).unwrap().values.len()).sum::<usize>())
    });
    group.finish();
}

fn resize(criterion: &mut Criterion) {
    let size = ImageSize::square(128);
    let mut group = criterion.benchmark_group("resize");
    group.sample_size(20);
    group.throughput(Throughput::Elements(1));
    for (width, height) in [(213, 160), (667, 500)] {
        let values: Vec<u8> = (0..width * height * 3).map(|at| (at * 31 + at / 97) as u8).collect();
        let picture = Picture::new(width, height, 3, &values);
        let mut out = vec![0; size.values()];
        for kind in ResizeKind::ALL {
            let mut resize = Resize::new(*kind);
            group.bench_function(format!("{width}x{height} {kind}"), |bencher| {
                bencher.iter(|| resize.run(&picture, size, &mut out))
            });
        }
    }
    group.finish();
}

criterion_group!(benches, decode, resize);
criterion_main!(benches);

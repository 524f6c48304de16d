//! The ring alone: what publishing, leasing and releasing a batch cost beside its pixels.
//!
//! `cargo bench --bench ring`. `in turn` is one thread, so nobody waits; `two threads` hand batches over as fast as they can, so that
//! the one or the other often sleeps. What it leaves out: filling slots, other processes; `mixd bench` has those.
#![allow(missing_docs, reason = "criterion's macros")]

use criterion::{Criterion, criterion_group, criterion_main};
use mixd::batch::Head;
use mixd::columns::OwnedColumns;
use mixd::plan::Sampler;
use mixd::ring::{self, Next, Pace, RingReader, RingWriter};
use mixd::spec::FeedSpec;
use mixd::types::{CropBox, ImageSize};
use std::time::Instant;

struct Ends {
    writer: RingWriter,
    reader: RingReader,
    batch: (Head, OwnedColumns),
}

fn ends() -> Ends {
    let spec = FeedSpec::train();
    let (writer, handle) = ring::create(&spec.format(), spec.batch_size, spec.slots, Pace::PRIVATE).unwrap();
    let (_, cursor) = handle.add_reader(Some).unwrap();
    let reader = RingReader::open(handle.data(), cursor, std::sync::Arc::new(())).unwrap();
    let (plan, mut columns) = (Sampler::new(spec, 6_400).unwrap().epoch(0).plan(0), OwnedColumns::default());
    plan.fill(&mut columns, |_| 0, |_| CropBox::default());
    Ends { writer, reader, batch: (plan.head(), columns) }
}

fn publish(writer: &mut RingWriter, (head, columns): &(Head, OwnedColumns)) {
    writer.next_slot().unwrap().publish(ImageSize::square(128), *head, columns.view());
}

fn take(reader: &mut RingReader) {
    assert!(matches!(reader.next_batch(|| false), Ok(Next::Batch(_))));
}

fn ring(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring");
    group.sample_size(20);
    group.bench_function("in turn", |bencher| {
        let Ends { mut writer, mut reader, batch } = ends();
        bencher.iter(|| {
            publish(&mut writer, &batch);
            take(&mut reader);
        });
    });
    group.bench_function("two threads", |bencher| {
        bencher.iter_custom(|batches| {
            let Ends { mut writer, mut reader, batch } = ends();
            let start = Instant::now();
            std::thread::scope(|scope| {
                scope.spawn(|| (0..batches).for_each(|_| publish(&mut writer, &batch)));
                (0..batches).for_each(|_| take(&mut reader));
            });
            start.elapsed()
        });
    });
    group.finish();
}

criterion_group!(benches, ring);
criterion_main!(benches);

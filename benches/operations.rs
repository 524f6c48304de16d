//! Each operation alone on 224 × 224 views of the sample data, in one thread, at the best level of the machine.
//!
//! `cargo bench --bench operations`. Views are copied back before each pass, which takes about 4 µs that count.
#![allow(missing_docs, reason = "criterion's macros")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mixd::decode::Decoder;
use mixd::operation::{Operation, WarpFilter, Warping};
use mixd::render::{Geometry, Level, Operator, Renderer, ResizeKind};
use mixd::types::{ImageSize, Interpolation};
use std::path::Path;

/// Views that are taken in turn.
const VIEWS: usize = 16;
const SIZE: ImageSize = ImageSize::square(224);

/// The first image of each class in the order of names, squashed; then the second, as many as are needed.
fn views() -> Vec<Vec<u8>> {
    let names = |folder: &Path| {
        let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    };
    let classes: Vec<_> = names(&Path::new(env!("CARGO_MANIFEST_DIR")).join("sample-data/train"));
    let (mut decoder, mut renderer) = (Decoder::default(), Renderer::new(ResizeKind::Exact));
    let view = |nth: usize| {
        let file = std::fs::read(&names(&classes[nth % classes.len()])[nth / classes.len()]).unwrap();
        let picture = decoder.decode(&file, None).unwrap();
        let mut view = vec![0; SIZE.values()];
        renderer.run(&picture, &Geometry::squash(picture.size(), SIZE, Interpolation::Bilinear), SIZE, &mut view);
        view
    };
    (0..VIEWS).map(view).collect()
}

fn operations(criterion: &mut Criterion) {
    let views = views();
    let mut group = criterion.benchmark_group("operations");
    group.sample_size(20);
    group.throughput(Throughput::Elements(1));
    let (mut operator, mut planes) = (Operator::new(Level::best()), vec![0; SIZE.values()]);
    let mut run = |name: String, operations: &[Operation], filter: WarpFilter| {
        let warping = Warping { filter, fill: [124, 116, 104] };
        let mut views = views.iter().cycle();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                planes.copy_from_slice(views.next().expect("endless"));
                operator.run(operations, &warping, SIZE, &mut planes);
            })
        });
    };
    for operation in [
        Operation::Identity,
        Operation::AutoContrast,
        Operation::Equalize,
        Operation::Invert,
        Operation::Grayscale,
        Operation::Brightness(1.3),
        Operation::Contrast(1.3),
        Operation::Saturation(1.3),
        Operation::Sharpness(1.3),
        Operation::Hue(0.1),
        Operation::Posterize(4),
        Operation::Solarize(128.0),
        Operation::SolarizeAdd(50),
        Operation::GaussianBlur(0.7),
        Operation::GaussianBlur(2.0),
    ] {
        let argument = if operation == Operation::GaussianBlur(0.7) { " 0.7" } else { "" };
        run(format!("{}{argument}", operation.name()), &[operation], WarpFilter::Nearest);
    }
    for &filter in WarpFilter::ALL {
        for operation in [
            Operation::Rotate(17.0),
            Operation::ShearX(0.2),
            Operation::ShearY(0.2),
            Operation::TranslateX(9.5),
            Operation::TranslateY(9.5),
        ] {
            run(format!("{} {filter}", operation.name()), &[operation], filter);
        }
    }
    let jitter =
        [Operation::Brightness(0.8), Operation::Contrast(1.2), Operation::Saturation(1.1), Operation::Hue(0.05)];
    run("color jitter".to_owned(), &jitter, WarpFilter::Nearest);
    group.finish();
}

criterion_group!(benches, operations);
criterion_main!(benches);

//! Decoding and rendering alone, in one thread: images of the sample data to 128 × 128, random crops to 224 × 224.
//!
//! `cargo bench --bench image`. Files are read before; what it leaves out besides: waking, mixing, other processes. Rendering
//! reads the same few pictures over and over, which stay in the caches; but for `render from memory`, whose sources are
//! larger than those.
#![allow(missing_docs, reason = "criterion's macros")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mixd::decode::{Decoder, Picture};
use mixd::render::{Geometry, Level, Renderer, ResizeKind};
use mixd::types::{CropBox, ImageSize, Interpolation, PadMode};
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
            let mut renderer = Renderer::new(*kind);
            let geometry = Geometry::squash(picture.size(), size, Interpolation::Bilinear);
            group.bench_function(format!("{width}x{height} {kind}"), |bencher| {
                bencher.iter(|| renderer.run(&picture, &geometry, size, &mut out))
            });
        }
    }
    group.finish();
}

/// Sources of 262 KB that no cache holds together.
const SOURCES: usize = 512;

/// Boxes as random resized crop draws them: scale 0.08 to 1, ratio 3/4 to 4/3, each drawn evenly by a low-discrepancy sequence.
fn crops(image: ImageSize, count: usize) -> Vec<CropBox> {
    let (height, width) = (f64::from(image.height), f64::from(image.width));
    let draw = |nth: usize, step: f64| (nth as f64 * step).fract();
    let crop = |nth: usize| {
        let area = width * height * (0.08 + 0.92 * draw(nth, 0.8191725134));
        let ratio = (3.0_f64 / 4.0).powf(1.0 - 2.0 * draw(nth, 0.6710436067));
        let (w, h) = ((area * ratio).sqrt().round(), (area / ratio).sqrt().round());
        let place = |rest: f64, step: f64| (draw(nth, step) * (rest + 1.0)) as i32;
        (w <= width && h <= height).then(|| CropBox {
            top: place(height - h, 0.5497004779),
            left: place(width - w, 0.4503087174),
            height: h as u32,
            width: w as u32,
        })
    };
    (1..).filter_map(crop).take(count).collect()
}

fn render(criterion: &mut Criterion) {
    let (image, size) = (ImageSize { height: 256, width: 341 }, ImageSize::square(224));
    let values: Vec<u8> = (0..image.values()).map(|at| (at * 31 + at / 97) as u8).collect();
    let picture = Picture::new(image.width, image.height, 3, &values);
    let mut out = vec![0; size.values()];
    let mut group = criterion.benchmark_group("render");
    group.sample_size(20);
    let crops = crops(image, 4096);
    let mut run = |name: String, kind: ResizeKind, level: Level, geometries: Vec<Geometry>| {
        let mut renderer = Renderer::with_level(kind, level);
        let mut geometries = geometries.iter().cycle();
        group.throughput(Throughput::Elements(1));
        group.bench_function(name, |bencher| {
            bencher.iter(|| renderer.run(&picture, geometries.next().expect("endless"), size, &mut out))
        });
    };
    for &interpolation in Interpolation::ALL {
        let of = |(nth, crop): (usize, &CropBox)| {
            Geometry::resized_crop(*crop, size, interpolation).flipped(nth.is_multiple_of(2))
        };
        let geometries: Vec<Geometry> = crops.iter().enumerate().map(of).collect();
        for level in Level::available() {
            run(format!("random crop {interpolation} {level:?}"), ResizeKind::Exact, level, geometries.clone());
        }
        run(format!("random crop {interpolation} fast"), ResizeKind::Fast, Level::best(), geometries);
    }
    let center = Geometry::short_center(image, 256, size, Interpolation::Bilinear);
    run("center crop, not resized".to_owned(), ResizeKind::Exact, Level::best(), vec![center]);
    let padded = Geometry::pad_crop(image, 4, PadMode::Reflect, 0, 0, size).flipped(true);
    run("padded crop, flipped".to_owned(), ResizeKind::Exact, Level::best(), vec![padded]);
    group.finish();
}

/// Random crops of sources that are read from memory, as a daemon reads them.
fn render_from_memory(criterion: &mut Criterion) {
    let (image, size) = (ImageSize { height: 256, width: 341 }, ImageSize::square(224));
    let values: Vec<u8> = (0..image.values()).map(|at| (at * 31 + at / 97) as u8).collect();
    let sources: Vec<Vec<u8>> = (0..SOURCES).map(|_| values.clone()).collect();
    let pictures: Vec<Picture<'_>> = sources.iter().map(|of| Picture::new(image.width, image.height, 3, of)).collect();
    let (crops, mut out) = (crops(image, 4096), vec![0; size.values()]);
    let mut group = criterion.benchmark_group("render from memory");
    group.sample_size(20);
    group.throughput(Throughput::Elements(1));
    for level in Level::available() {
        let mut renderer = Renderer::with_level(ResizeKind::Exact, level);
        // What follows each other does not lie side by side.
        let mut pictures = (0..).map(|nth: usize| &pictures[nth * 199 % SOURCES]);
        let mut crops = crops.iter().cycle();
        group.bench_function(format!("random crop {level:?}"), |bencher| {
            bencher.iter(|| {
                let (picture, crop) = (pictures.next().expect("endless"), crops.next().expect("endless"));
                renderer.run(picture, &Geometry::resized_crop(*crop, size, Interpolation::Bilinear), size, &mut out);
            })
        });
    }
    group.finish();
}

criterion_group!(benches, decode, resize, render, render_from_memory);
criterion_main!(benches);

//! Plans of a feed, and the views that they draw.

use mixd::decode::Picture;
use mixd::pipeline::Views;
use mixd::plan::Sampler;
use mixd::render::{ResizeKind, ViewMaker};
use mixd::spec::FeedSpec;
use mixd::types::ImageSize;

/// Samples of the split: several epochs of batches, or a part of one.
const SAMPLES: u32 = 300;
/// Larger batches and views only take longer.
const ROWS_MAX: u32 = 64;
const PIXELS_MAX: usize = 64 * 64;
/// Sizes of images that are rendered: wide, and a single pixel.
const IMAGES: [ImageSize; 2] = [ImageSize { height: 9, width: 41 }, ImageSize { height: 1, width: 1 }];

/// Plans the first batch of a valid feed, and one of the epoch after it, and renders views of them.
pub fn planned_if_valid(spec: FeedSpec) {
    if spec.validate().is_err() || spec.batch_size > ROWS_MAX {
        return;
    }
    let Ok(sampler) = Sampler::new(spec, SAMPLES) else { return };
    let start = sampler.start();
    for epoch in [start.epoch, start.epoch + 1] {
        let index = sampler.indices(epoch).expect("it does not lie before the start").start.max(start.index);
        let plan = sampler.epoch(epoch).plan(index);
        let (size, full) = (plan.image_size, spec.image_size);
        assert!((1..=full.height).contains(&size.height) && (1..=full.width).contains(&size.width), "{size}");
        assert!(!plan.is_empty() && plan.len() <= spec.batch_size as usize);
        assert!(plan.lambdas().iter().all(|lambda| (0.0..=1.0).contains(lambda)), "{:?}", plan.lambdas());
        if size.pixels() > PIXELS_MAX {
            continue;
        }
        let (views, mut maker) = (Views { size, ..Views::of(&spec) }, ViewMaker::new(ResizeKind::default()));
        let mut out = vec![0; size.values()];
        for row in plan.rows.iter().take(4) {
            let image = IMAGES[row.own.sample as usize % IMAGES.len()];
            let values: Vec<u8> = (0..image.values()).map(|at| (at * 37) as u8).collect();
            let picture = Picture::new(image.width, image.height, 3, &values);
            maker.run(&picture, &views.random(&row.own.view, image), size, &mut out);
            if let Some(erasure) = row.own.view.erasure(&spec.erase, size) {
                let inside = |cut: &mixd::types::Cut| cut.bottom <= size.height && cut.right <= size.width;
                assert!(erasure.boxes().iter().all(inside), "{:?} of {size}", erasure.boxes());
            }
        }
    }
}

//! `mixd preview`: a mixed batch as a labelled grid.

use super::options::{DataArgs, PipelineArgs};
use crate::batch::BatchView;
use crate::pipeline::{OwnedBatch, Pipeline};
use crate::render::Loader;
use crate::source::Source;
use crate::spec::{FeedOptions, FeedSpec};
use crate::types::{CropBox, ImageSize, Place};
use crate::view;
use ::image::{Rgb, RgbImage};
use anyhow::Context;
use clap::Args;
use std::path::{Path, PathBuf};

/// Draw a batch as a grid with captions such as «70 % French horn + 30 % tench».
#[derive(Debug, Args)]
pub struct Preview {
    #[command(flatten)]
    data: DataArgs,
    /// Which epoch.
    #[arg(long, env = "MIXD_EPOCH", default_value_t = 0)]
    epoch: u64,
    /// Which batch of it.
    #[arg(long, env = "MIXD_BATCH", default_value_t = 0)]
    batch: u64,
    #[command(flatten)]
    feed: FeedOptions,
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Show images beside their views, with the crop drawn in, in place of the mixed batch.
    #[arg(long, env = "MIXD_VIEWS")]
    views: bool,
    /// Where to write the picture.
    #[arg(long, env = "MIXD_OUT")]
    out: PathBuf,
}

impl Preview {
    pub fn run(self) -> anyhow::Result<()> {
        let spec = self.feed.spec()?;
        let pipeline = Pipeline::start(self.data.open()?, self.pipeline.options()?)?;
        let batch = pipeline.batch(spec, Place { epoch: self.epoch, index: self.batch })?;
        if self.views {
            return draw_views(&batch, &spec, &pipeline, &self.out);
        }
        draw(&batch.view(), &spec, pipeline.source(), &self.out)
    }
}

/// The most images of a picture: more cannot be read at a glance.
const TILES_MAX: usize = 16;

/// The most images that are shown beside their views.
const PAIRS_MAX: usize = 8;

/// Draws images with their crops beside their views to a PNG.
fn draw_views(batch: &OwnedBatch, spec: &FeedSpec, pipeline: &Pipeline, out: &Path) -> anyhow::Result<()> {
    let (view, size, source) = (batch.view(), spec.image_size, pipeline.source());
    let (mut loader, mut bytes) = (Loader::new(pipeline.options().load), Vec::new());
    let mut tiles = Vec::new();
    for (at, row) in batch.plan.rows.iter().enumerate().take(PAIRS_MAX) {
        source.read(spec.split, row.own.sample, &mut bytes)?;
        let original = loader.source(&bytes, |picture, _| (picture.size(), picture.to_rgb()))?;
        let (ImageSize { height, width }, values) = original;
        let mut original = RgbImage::from_raw(width, height, values).expect("as many values as it has pixels");
        let [top, left, rows, columns] = view.crop[at];
        let name = source.class_name(view.label_a[at] as u32);
        let mut caption = format!("all of {width}x{height}");
        if spec.renders() {
            view::frame(&mut original, CropBox { top, left, height: rows as u32, width: columns as u32 });
            caption = format!("{columns}x{rows} at ({left}, {top})");
        }
        let planes = &batch.views[at * size.values()..][..size.values()];
        let pixel = |x: u32, y: u32| {
            let at = (y * size.width + x) as usize;
            Rgb([0, 1, 2].map(|channel| planes[channel * size.pixels() + at]))
        };
        let flipped = if row.own.view.flip { ", flipped" } else { "" };
        tiles.push(view::Tile { rgb: original, caption });
        let rgb = RgbImage::from_fn(size.width, size.height, pixel);
        tiles.push(view::Tile { rgb, caption: format!("{name}{flipped}") });
    }
    let (head, crop) = (view.head, spec.crop.to_string());
    let kind = crop.split(':').next().unwrap_or_default();
    let title =
        format!("{}: epoch {}, batch {}: {kind} to {size}, {}", spec.split, head.epoch, head.index, spec.interpolation);
    save(&title, &tiles, out)
}

/// Draws tiles beneath a title to a PNG.
fn save(title: &str, tiles: &[view::Tile], out: &Path) -> anyhow::Result<()> {
    let sheet = view::grid(title, tiles);
    sheet.save_with_format(out, ::image::ImageFormat::Png).with_context(|| format!("cannot write {}", out.display()))
}

/// Draws a batch to a PNG.
pub fn draw(batch: &BatchView<'_>, spec: &FeedSpec, source: &dyn Source, out: &Path) -> anyhow::Result<()> {
    let name = |label: i64| source.class_name(label as u32).to_owned();
    let tiles = view::tiles(batch, spec.mean, spec.std, &name, TILES_MAX);
    let shown = if tiles.len() < batch.len() {
        format!("{} of {} images", tiles.len(), batch.len())
    } else {
        format!("{} images", batch.len())
    };
    let title = format!(
        "{}: epoch {}, batch {} of {} ({shown})",
        spec.split, batch.head.epoch, batch.head.index, batch.head.batches
    );
    save(&title, &tiles, out)
}

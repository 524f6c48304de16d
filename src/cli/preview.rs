//! `mixd preview`: a mixed batch as a labelled grid.

use super::options::{DataArgs, PipelineArgs};
use crate::batch::BatchView;
use crate::escape::escaped;
use crate::operation::Operations;
use crate::pipeline::{OwnedBatch, Pipeline, Views};
use crate::render::{Loader, ViewSteps};
use crate::source::Source;
use crate::spec::{EraseWhen, FeedOptions, FeedSpec, Mix};
use crate::types::{ImageSize, Place};
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
    /// Show each stage of a few images in place of the mixed batch: the crop drawn in, the view, after the operations with their names, erased, mixed.
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
            return draw_stages(&batch, &spec, &pipeline, &self.out);
        }
        draw(&batch.view(), &spec, pipeline.source(), &self.out)
    }
}

/// The most images of a picture: more cannot be read at a glance.
const TILES_MAX: usize = 16;

/// The most images whose stages are shown.
const STRIPS_MAX: usize = 6;

/// Draws the stages of images, a strip for each, to a PNG: the image with its crop, the view, after the operations, erased, mixed; those that the
/// feed has.
fn draw_stages(batch: &OwnedBatch, spec: &FeedSpec, pipeline: &Pipeline, out: &Path) -> anyhow::Result<()> {
    let (view, size, source) = (batch.view(), batch.plan.image_size, pipeline.source());
    let place = Place { epoch: view.head.epoch, index: view.head.index };
    let class_name = |label: i64| source.label_name(label as u32);
    let tiles_of = |view: &BatchView<'_>| view::tiles(view, spec.mean, spec.std, &class_name, STRIPS_MAX);
    let erased = (spec.erase.prob > 0.0 && spec.erase.when == EraseWhen::BeforeMix)
        .then(|| pipeline.batch(FeedSpec { mix: Mix::NONE, ..*spec }, place))
        .transpose()?
        .map(|batch| tiles_of(&batch.view()));
    let is_finished = spec.mix.is_on() || spec.erase.prob > 0.0 && erased.is_none();
    let finished = is_finished.then(|| tiles_of(&view));
    let (mut loader, mut bytes) = (Loader::new(pipeline.options().load), Vec::new());
    let mut tiles = Vec::new();
    for (at, row) in batch.plan.rows.iter().enumerate().take(STRIPS_MAX) {
        let (views, mut rendered) = (Views { size, ..Views::of(spec) }, vec![0; size.values()]);
        source.read_waiting(spec.split, row.own.sample, &mut bytes)?;
        let (mut original, cut, operations) = loader.source(&bytes, |picture, maker| {
            let steps = views.random(&row.own.view, picture.size());
            maker.run(picture, &ViewSteps { operations: Operations::NONE, ..steps }, size, &mut rendered);
            let ImageSize { height, width } = picture.size();
            let original =
                RgbImage::from_raw(width, height, picture.to_rgb()).expect("as many values as it has pixels");
            (original, views.crop_box(&row.own.view, picture.size()), steps.operations)
        })?;
        let (width, height) = original.dimensions();
        let mut caption = format!("all of {width}x{height}");
        if spec.crop.is_random() {
            view::frame(&mut original, cut);
            caption = format!("{}x{} at ({}, {})", cut.width, cut.height, cut.left, cut.top);
        }
        tiles.push(view::Tile { rgb: original, caption });
        let picture = |planes: &[u8]| {
            RgbImage::from_fn(size.width, size.height, |x, y| {
                let at = (y * size.width + x) as usize;
                Rgb([0, 1, 2].map(|channel| planes[channel * size.pixels() + at]))
            })
        };
        let flipped = if row.own.view.flip { ", flipped" } else { "" };
        let caption = format!("{}{flipped}", class_name(view.label_a[at]));
        tiles.push(view::Tile { rgb: picture(&rendered), caption });
        if spec.augment.is_on() {
            let names: Vec<String> = operations.iter().map(ToString::to_string).collect();
            let caption = if names.is_empty() { "no operation".to_owned() } else { names.join(", ") };
            let made = picture(&batch.views[at * size.values()..][..size.values()]);
            tiles.push(view::Tile { rgb: made, caption });
        }
        if let Some(erased) = &erased {
            let boxes = row.own.view.erasure(&spec.erase, size);
            let caption = match boxes.map_or(0, |erasure| erasure.boxes().len()) {
                0 => "not erased".to_owned(),
                1 => "1 box erased".to_owned(),
                count => format!("{count} boxes erased"),
            };
            tiles.push(view::Tile { caption, ..erased[at].clone() });
        }
        tiles.extend(finished.as_ref().map(|finished| finished[at].clone()));
    }
    let (head, crop) = (view.head, spec.crop.to_string());
    let kind = crop.split(':').next().unwrap_or_default();
    let title =
        format!("{}: epoch {}, batch {}: {kind} to {size}, {}", spec.split, head.epoch, head.index, spec.interpolation);
    let columns = tiles.len() / batch.plan.len().clamp(1, STRIPS_MAX);
    save(&view::strips(&title, &tiles, columns as u32), out)
}

/// Writes a sheet to a PNG.
fn save(sheet: &RgbImage, out: &Path) -> anyhow::Result<()> {
    sheet.save_with_format(out, ::image::ImageFormat::Png).with_context(|| format!("cannot write {}", escaped(&out)))
}

/// Draws a batch to a PNG.
pub fn draw(batch: &BatchView<'_>, spec: &FeedSpec, source: &dyn Source, out: &Path) -> anyhow::Result<()> {
    let name = |label: i64| source.label_name(label as u32);
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
    save(&view::grid(&title, &tiles), out)
}

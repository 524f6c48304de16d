//! `mixd preview`: a mixed batch as a labelled grid.

use super::options::{DataArgs, PipelineArgs};
use crate::batch::BatchView;
use crate::pipeline::Pipeline;
use crate::source::Source;
use crate::spec::{FeedOptions, FeedSpec};
use crate::types::Place;
use crate::view;
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
    /// Where to write the picture.
    #[arg(long, env = "MIXD_OUT")]
    out: PathBuf,
}

impl Preview {
    pub fn run(self) -> anyhow::Result<()> {
        let spec = self.feed.spec()?;
        let pipeline = Pipeline::start(self.data.open()?, self.pipeline.options()?)?;
        let batch = pipeline.batch(spec, Place { epoch: self.epoch, index: self.batch })?;
        draw(&batch.view(), &spec, pipeline.source(), &self.out)
    }
}

/// The most images of a picture: more cannot be read at a glance.
const TILES_MAX: usize = 16;

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
    view::grid(&title, &tiles)
        .save_with_format(out, ::image::ImageFormat::Png)
        .with_context(|| format!("cannot write {}", out.display()))
}

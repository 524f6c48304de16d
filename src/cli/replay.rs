//! `mixd replay`: one batch again, with every field.

use super::options::{DataArgs, PipelineArgs};
use super::rows::{self, Headers};
use crate::batch::Head;
use crate::columns::{COLUMNS, Columns, Number};
use crate::decode::{ExifOrientation, JPEG_DECODER};
use crate::escape::escaped;
use crate::pipeline::{OwnedBatch, Pipeline};
use crate::source::Source;
use crate::spec::FeedOptions;
use crate::spec::FeedSpec;
use crate::types::{CropBox, Dtype, Place};
use anyhow::{Context, bail};
use clap::Args;
use safetensors::tensor::{Dtype as Element, SafeTensorError, TensorView};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Make one batch again, bit for bit, and write it to a file.
#[derive(Debug, Args)]
pub struct Replay {
    #[command(flatten)]
    data: DataArgs,
    /// Which epoch.
    #[arg(long, env = "MIXD_EPOCH")]
    epoch: u64,
    /// Which batch of it.
    #[arg(long, env = "MIXD_BATCH")]
    batch: u64,
    #[command(flatten)]
    feed: FeedOptions,
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Where to write the batch's fields, as safetensors.
    #[arg(long, env = "MIXD_OUT", required_unless_present_any = ["verify", "png"])]
    out: Option<PathBuf>,
    /// Where to write the batch as a picture, too.
    #[arg(long, env = "MIXD_PNG")]
    png: Option<PathBuf>,
    /// Check that the batch has this digest, as a batch's header or `replay` names it: 0x and hexadecimal digits, or a decimal number.
    #[arg(long, env = "MIXD_VERIFY", value_name = "DIGEST", value_parser = digest)]
    verify: Option<u64>,
}

fn digest(text: &str) -> Result<u64, std::num::ParseIntError> {
    text.strip_prefix("0x").map_or_else(|| text.parse(), |digits| u64::from_str_radix(digits, 16))
}

impl Replay {
    pub fn run(self) -> anyhow::Result<()> {
        let pipeline = Pipeline::start(self.data.open()?, self.pipeline.options()?)?;
        let spec = FeedSpec { digest: true, ..self.feed.spec()? };
        let batch = pipeline.batch(spec, Place { epoch: self.epoch, index: self.batch })?;
        let view = batch.view();
        if let Some(out) = &self.out {
            write(&batch, &spec, pipeline.source(), self.pipeline.exif, out)
                .with_context(|| format!("cannot write {}", escaped(&out)))?;
        }
        if let Some(png) = &self.png {
            super::preview::draw(&view, &spec, pipeline.source(), png)?;
        }
        let (digest, mixer) = (view.head.digest, self.pipeline.mixer());
        super::print(|out| {
            writeln!(
                out,
                "epoch {}, batch {} of {}: digest {digest:#018x}, mixer {mixer}",
                view.head.epoch, view.head.index, view.head.batches
            )
        })?;
        match self.verify {
            Some(expected) if expected != digest => bail!(
                "the digest is {digest:#018x}, not {expected:#018x}: another batch, feed, data set, decoder ({JPEG_DECODER} here) or \
                 mixer (batches in floating point are verified with the --mixer that made them)"
            ),
            _ => Ok(()),
        }
    }
}

/// Writes the fields of a batch under their names; scalars are tensors of one element. Of feeds with a recipe there are the views, too: their
/// pixels before they were normalised and mixed, and what they show.
fn write(
    batch: &OwnedBatch,
    spec: &FeedSpec,
    source: &dyn Source,
    exif: ExifOrientation,
    out: &Path,
) -> anyhow::Result<()> {
    let view = batch.view();
    let (mut crops, mut metadata) = (Vec::new(), HashMap::new());
    if rows::has_views(spec) {
        let mut headers = Headers::of(source, exif);
        let mut views = Vec::new();
        for (row, crop) in batch.plan.rows.iter().zip(view.crop) {
            // Of random views it is known from rendering them.
            let cut = match *crop {
                _ if !spec.crop.is_random() => headers.crop(spec, &row.own)?,
                [top, left, height, width] => CropBox { top, left, height: height as u32, width: width as u32 },
            };
            crops.push([cut.top, cut.left, cut.height as i32, cut.width as i32]);
            views.push(rows::view(spec, view.image_size, &row.own, Some(cut)));
        }
        metadata.insert("recipe".to_owned(), serde_json::to_string(&views)?);
    }
    let dtype = match view.dtype {
        Dtype::F32 => Element::F32,
        Dtype::F16 => Element::F16,
        Dtype::Bf16 => Element::BF16,
        Dtype::U8 => Element::U8,
    };
    let Head { epoch, index, batches, digest, pad, .. } = view.head;
    let wide = [("epoch", epoch), ("index", index), ("batches", batches), ("digest", digest)]
        .map(|(name, n)| (name, n.to_le_bytes()));
    let narrow = [("len", view.len() as u32), ("pad", pad)].map(|(name, n)| (name, n.to_le_bytes()));
    let mut fields: Vec<(&str, Element, Vec<usize>, &[u8])> = vec![("x", dtype, view.shape().to_vec(), view.x)];
    let columns = if crops.is_empty() { view.columns } else { Columns { crop: &crops, ..view.columns } };
    for (column, bytes) in COLUMNS.iter().zip(columns.bytes()) {
        let element = match column.number {
            Number::I64 => Element::I64,
            Number::F32 => Element::F32,
            Number::I32 => Element::I32,
            Number::U32 => Element::U32,
            Number::U8 => Element::U8,
        };
        let shape = if column.count == 1 { vec![view.len()] } else { vec![view.len(), column.count] };
        fields.push((column.name, element, shape, bytes));
    }
    fields.extend(wide.iter().map(|(name, bytes)| (*name, Element::U64, vec![1], &bytes[..])));
    fields.extend(narrow.iter().map(|(name, bytes)| (*name, Element::U32, vec![1], &bytes[..])));
    if rows::has_views(spec) {
        let shape = vec![view.len(), 3, view.image_size.height as usize, view.image_size.width as usize];
        fields.push(("view", Element::U8, shape, &batch.views));
    }
    let view = |(name, dtype, shape, bytes)| Ok((name, TensorView::new(dtype, shape, bytes)?));
    let tensors: Vec<_> = fields.into_iter().map(view).collect::<Result<_, SafeTensorError>>()?;
    let bytes = safetensors::serialize(tensors, Some(metadata).filter(|metadata| !metadata.is_empty()))?;
    // Not by serialize_to_file, which puts a new file in the place of whatever is there, a pipe and /dev/null included.
    Ok(std::fs::write(out, bytes)?)
}

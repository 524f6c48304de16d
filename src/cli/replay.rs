//! `mixd replay`: one batch again, with every field.

use super::options::{DataArgs, FeedArgs, PipelineArgs};
use crate::batch::BatchView;
use crate::config::FeedSpec;
use crate::image::JPEG_DECODER;
use crate::pipeline::Pipeline;
use crate::types::{Dtype, Place};
use anyhow::{Context, bail};
use clap::Args;
use safetensors::tensor::Dtype as Element;
use std::borrow::Cow;
use std::path::PathBuf;

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
    feed: FeedArgs,
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
            safetensors::serialize_to_file(tensors(&view), None, out)
                .with_context(|| format!("cannot write {}", out.display()))?;
        }
        if let Some(png) = &self.png {
            super::preview::draw(&view, &spec, pipeline.dataset(), png)?;
        }
        let (digest, mixer) = (view.digest, self.pipeline.mixer);
        println!(
            "epoch {}, batch {} of {}: digest {digest:#018x}, mixer {mixer}",
            view.epoch, view.index, view.batches
        );
        match self.verify {
            Some(expected) if expected != digest => bail!(
                "the digest is {digest:#018x}, not {expected:#018x}: another batch, feed, data set, decoder ({JPEG_DECODER} here) or \
                 mixer (batches in floating point are verified with the --mixer that made them)"
            ),
            _ => Ok(()),
        }
    }
}

/// The fields of a batch under their names; scalars are tensors of one element.
fn tensors<'a>(view: &BatchView<'a>) -> Vec<(&'static str, Tensor<'a>)> {
    let dtype = match view.dtype {
        Dtype::F32 => Element::F32,
        Dtype::F16 => Element::F16,
        Dtype::Bf16 => Element::BF16,
        Dtype::U8 => Element::U8,
    };
    let rows = |dtype, data: &'a [u8]| Tensor { dtype, shape: vec![view.len()], data: data.into() };
    let scalar = |value: u64| Tensor { dtype: Element::U64, shape: vec![1], data: value.to_le_bytes().to_vec().into() };
    let small = |value: u32| Tensor { dtype: Element::U32, shape: vec![1], data: value.to_le_bytes().to_vec().into() };
    vec![
        ("x", Tensor { dtype, shape: view.shape().to_vec(), data: view.x.into() }),
        ("label_a", rows(Element::I64, bytemuck::cast_slice(view.label_a))),
        ("label_b", rows(Element::I64, bytemuck::cast_slice(view.label_b))),
        ("lambda", rows(Element::F32, bytemuck::cast_slice(view.lambda))),
        ("partner", rows(Element::I32, bytemuck::cast_slice(view.partner))),
        ("sample_id", rows(Element::U32, bytemuck::cast_slice(view.sample_id))),
        ("partner_id", rows(Element::U32, bytemuck::cast_slice(view.partner_id))),
        ("epoch", scalar(view.epoch)),
        ("index", scalar(view.index)),
        ("batches", scalar(view.batches)),
        ("len", small(view.len() as u32)),
        ("pad", small(view.pad)),
        ("digest", scalar(view.digest)),
    ]
}

/// A tensor to be written.
struct Tensor<'a> {
    dtype: Element,
    shape: Vec<usize>,
    data: Cow<'a, [u8]>,
}

impl safetensors::View for Tensor<'_> {
    fn dtype(&self) -> Element {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.data)
    }
    fn data_len(&self) -> usize {
        self.data.len()
    }
}

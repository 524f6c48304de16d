//! `mixd plan`: the plans of an epoch, without a pixel.

use super::options::DataArgs;
use super::rows::{self, Headers};
use crate::decode::ExifOrientation;
use crate::plan::{ImagePlan, RowPlan, Sampler};
use crate::spec::FeedOptions;
use crate::types::EPOCH_BITS;
use clap::Args;
use serde_json::json;

/// Print which samples, crops, partners and λ make each batch of an epoch.
#[derive(Debug, Args)]
pub struct Plan {
    #[command(flatten)]
    data: DataArgs,
    /// Which epoch.
    #[arg(long, env = "MIXD_EPOCH")]
    epoch: u64,
    #[command(flatten)]
    feed: FeedOptions,
    /// With --json: name crops in pixels of the decoded images, for which the images are read.
    #[arg(long, env = "MIXD_RESOLVE", requires = "json")]
    resolve: bool,
    /// Whether those images are turned as their Exif orientation says: apply, or ignore.
    #[arg(long, env = "MIXD_EXIF", default_value = "ignore")]
    exif: ExifOrientation,
    /// Print one line of JSON a batch.
    #[arg(long, env = "MIXD_JSON")]
    json: bool,
}

impl Plan {
    pub fn run(self) -> anyhow::Result<()> {
        let (source, spec) = (self.data.open()?, self.feed.spec()?);
        let labels = |ids: &[u32]| ids.iter().map(|&id| source.label(spec.split, id)).collect::<Vec<_>>();
        let sampler = Sampler::new(spec, source.numbering(spec.split))?;
        anyhow::ensure!(self.epoch >> EPOCH_BITS == 0, "--epoch is {}: it must be below 2^56", self.epoch);
        let (epoch, indices) = (sampler.epoch(self.epoch), sampler.indices(self.epoch)?);
        let mut headers = Headers::of(&*source, self.exif);
        super::print(|out| {
            for index in indices.clone() {
                let plan = epoch.plan(index);
                if self.json {
                    let (own, partner) = (plan.own(), plan.partners());
                    let mut line = json!({
                        "epoch": plan.place.epoch, "index": index, "len": plan.len(), "sample_id": own,
                        "label_a": labels(&own), "partner": plan.partner_rows(), "partner_id": partner,
                        "label_b": labels(&partner), "lambda": plan.lambdas(),
                    });
                    // Only of feeds that cut or flip: the fields of every plan come first and are the same for all.
                    if spec.mix.cutmix.is_some() {
                        let cut = |row: &RowPlan| row.mix.cut().map(|cut| [cut.top, cut.bottom, cut.left, cut.right]);
                        line["box"] = json!(plan.each(cut));
                    }
                    if spec.flip > 0.0 {
                        line["flip"] = json!(plan.each(|row| row.own.view.flip));
                        line["partner_flip"] = json!(plan.each(|row| row.partner.view.flip));
                    }
                    if rows::has_views(&spec) {
                        let view = |row: &RowPlan| {
                            let cut = self.resolve.then(|| headers.crop(&spec, &row.own)).transpose()?;
                            Ok(rows::view(&spec, plan.image_size, &row.own, cut))
                        };
                        let views: anyhow::Result<Vec<_>> = plan.rows.iter().map(view).collect();
                        line["recipe"] = json!(views.map_err(std::io::Error::other)?);
                    }
                    writeln!(out, "{line}")?;
                    continue;
                }
                writeln!(out, "epoch {}, batch {index} of {}", self.epoch, plan.batches)?;
                for (at, row) in plan.rows.iter().enumerate() {
                    let image = |image: &ImagePlan| {
                        let flipped = if image.view.flip { " flipped" } else { "" };
                        format!("{}{flipped}", source.name(spec.split, image.sample))
                    };
                    let (own, partner, lambda) = (image(&row.own), image(&row.partner), row.mix.lambda());
                    let cut = row.mix.cut().map_or(String::new(), |cut| {
                        format!(" in rows {}..{}, columns {}..{}", cut.top, cut.bottom, cut.left, cut.right)
                    });
                    writeln!(out, "  {at:>4}  {lambda:.4} {own}  +  {:.4} {partner}{cut}", 1.0 - lambda)?;
                }
            }
            Ok(())
        })
    }
}

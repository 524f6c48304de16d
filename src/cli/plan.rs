//! `mixd plan`: the plans of an epoch, without a pixel.

use super::options::{DataArgs, FeedArgs};
use crate::sampler::Sampler;
use clap::Args;
use serde_json::json;

/// Print which samples, partners and λ make each batch of an epoch.
#[derive(Debug, Args)]
pub struct Plan {
    #[command(flatten)]
    data: DataArgs,
    /// Which epoch.
    #[arg(long, env = "MIXD_EPOCH")]
    epoch: u64,
    #[command(flatten)]
    feed: FeedArgs,
    /// Print one line of JSON a batch.
    #[arg(long, env = "MIXD_JSON")]
    json: bool,
}

impl Plan {
    pub fn run(self) -> anyhow::Result<()> {
        let (source, spec) = (self.data.open()?, self.feed.spec()?);
        let labels = |ids: &[u32]| ids.iter().map(|&id| source.label(spec.split, id)).collect::<Vec<_>>();
        let sampler = Sampler::new(spec, source.len(spec.split))?;
        anyhow::ensure!(self.epoch >> crate::rng::EPOCH_BITS == 0, "--epoch is {}: it must be below 2^56", self.epoch);
        let epoch = sampler.epoch(self.epoch);
        super::print(|out| {
            for index in 0..sampler.batches() {
                let plan = epoch.plan(index);
                if self.json {
                    let mut line = json!({
                        "epoch": plan.place.epoch, "index": index, "len": plan.own.len(), "sample_id": plan.own,
                        "label_a": labels(&plan.own), "partner": plan.partner_row, "partner_id": plan.partner,
                        "label_b": labels(&plan.partner), "lambda": plan.lambda,
                    });
                    // Only of feeds that cut or flip: the fields of every plan come first and are the same for all.
                    if !plan.cuts.is_empty() {
                        let cuts = plan.cuts.iter().map(|cut| [cut.top, cut.bottom, cut.left, cut.right]);
                        line["box"] = json!(cuts.collect::<Vec<_>>());
                    }
                    if !plan.flip.is_empty() {
                        line["flip"] = json!(plan.flip);
                        line["partner_flip"] = json!(plan.partner_flip);
                    }
                    writeln!(out, "{line}")?;
                    continue;
                }
                writeln!(out, "epoch {}, batch {index} of {}", self.epoch, plan.batches)?;
                for (row, &own) in plan.own.iter().enumerate() {
                    let lambda = plan.lambda[row];
                    let name = |id: u32| source.name(spec.split, id);
                    let (own, partner) = (name(own), name(plan.partner[row]));
                    let flipped = |flips: &[bool]| if flips.get(row) == Some(&true) { " flipped" } else { "" };
                    let (own_flip, partner_flip) = (flipped(&plan.flip), flipped(&plan.partner_flip));
                    let cut = plan.cuts.get(row).map_or(String::new(), |cut| {
                        format!(" in rows {}..{}, columns {}..{}", cut.top, cut.bottom, cut.left, cut.right)
                    });
                    writeln!(
                        out,
                        "  {row:>4}  {lambda:.4} {own}{own_flip}  +  {:.4} {partner}{partner_flip}{cut}",
                        1.0 - lambda
                    )?;
                }
            }
            Ok(())
        })
    }
}

//! `mixd plot`: the curves behind mixup.

use crate::lesson::{self, Figure};
use crate::plan::Sampler;
use crate::spec::{FeedSpec, Mix};
use clap::Args;
use std::path::PathBuf;

/// Draw the density of Beta(α, α), the Γ function, or λ as feeds draw it.
#[derive(Debug, Args)]
pub struct Plot {
    /// beta, gamma or lambda.
    figure: Figure,
    /// Where to write the picture: an .svg or a .png.
    #[arg(long, env = "MIXD_OUT")]
    out: PathBuf,
    /// α; may be repeated [default: 0.1, 0.4 and 0.8].
    #[arg(long, env = "MIXD_ALPHA", value_delimiter = ',')]
    alpha: Vec<f64>,
}

impl Plot {
    pub fn run(self) -> anyhow::Result<()> {
        let alphas = if self.alpha.is_empty() { vec![0.1, 0.4, 0.8] } else { self.alpha };
        let spec = |alpha| FeedSpec { mix: Mix::mixup(alpha), ..FeedSpec::train() };
        for &alpha in &alphas {
            spec(alpha).validate()?;
        }
        // What a feed with this α delivers, not a distribution of its own.
        let draws = |alpha| {
            let sampler = Sampler::new(spec(alpha), 64 * 500).expect("500 batches");
            let epoch = sampler.epoch(0);
            (0..500).flat_map(|index| epoch.plan(index).lambdas()).collect()
        };
        Ok(lesson::plot(self.figure, &alphas, &draws, &self.out)?)
    }
}

//! `mixd plot`: the curves behind mixup, and what policies draw.

use crate::lesson::{self, DrawnOperation, Figure, Material};
use crate::plan::{Draws, Sampler};
use crate::spec::{Augment, FeedSpec, Mix, Policy, Recipe, RecipeChoice, TrainView};
use clap::Args;
use std::path::PathBuf;

/// Draw the density of Beta(α, α), the Γ function, λ as feeds draw it, or what a policy draws.
#[derive(Debug, Args)]
pub struct Plot {
    /// beta, gamma, lambda or policy.
    figure: Figure,
    /// Where to write the picture: an .svg or a .png.
    #[arg(long, env = "MIXD_OUT")]
    out: PathBuf,
    /// α; may be repeated [default: 0.1, 0.4 and 0.8].
    #[arg(long, env = "MIXD_ALPHA", value_delimiter = ',')]
    alpha: Vec<f64>,
    /// Recipe whose policy and stages of color are drawn: a name that `mixd recipe` lists, or a .toml file [default: torchvision-v2].
    #[arg(long, env = "MIXD_RECIPE", value_name = "NAME|FILE.toml")]
    recipe: Option<RecipeChoice>,
    /// A policy in its place, as feeds take it.
    #[arg(long, env = "MIXD_POLICY")]
    policy: Option<Policy>,
}

/// Views whose operations are counted.
const VIEWS: u64 = 50_000;

impl Plot {
    pub fn run(self) -> anyhow::Result<()> {
        let alphas = if self.alpha.is_empty() { vec![0.1, 0.4, 0.8] } else { self.alpha };
        let spec = |alpha| FeedSpec { mix: Mix::mixup(alpha), ..FeedSpec::train() };
        for &alpha in &alphas {
            spec(alpha).validate()?;
        }
        // What a feed with this α delivers, not a distribution of its own.
        let lambdas = |alpha| {
            let sampler = Sampler::new(spec(alpha), 64 * 500).expect("500 batches");
            let epoch = sampler.epoch(0);
            (0..500).flat_map(|index| epoch.plan(index).lambdas()).collect()
        };
        let operations = if self.figure == Figure::Policy {
            let recipe = self.recipe.map_or_else(|| Recipe::load("torchvision-v2"), |recipe| recipe.load())?.train;
            let augment = self.policy.map_or(recipe.augment, |policy| Augment { policy, ..Augment::default() });
            drawn(&TrainView { augment, ..recipe })
        } else {
            Vec::new()
        };
        Ok(lesson::plot(
            self.figure,
            &Material { alphas: &alphas, lambdas: &lambdas, operations: &operations },
            &self.out,
        )?)
    }
}

/// The operations that feeds draw.
fn drawn(recipe: &TrainView) -> Vec<DrawnOperation> {
    let mut drawn: Vec<DrawnOperation> = Vec::new();
    for view in 0..VIEWS {
        let of_sample = (view % u64::from(recipe.views)) as u32;
        let draws = Draws::at(0, false, 0, view >> 16, view & 0xFFFF).of_view(of_sample, recipe.views);
        for operation in draws.operations(&recipe.augment, recipe.size).iter() {
            let name = operation.name();
            let at = drawn.iter().position(|drawn| drawn.name == name).unwrap_or_else(|| {
                drawn.push(DrawnOperation { name, per_view: 0.0, arguments: Vec::new() });
                drawn.len() - 1
            });
            drawn[at].per_view += 1.0 / VIEWS as f64;
            drawn[at].arguments.extend(operation.argument());
        }
    }
    // Those without an argument last.
    drawn.sort_by_key(|drawn| (drawn.arguments.is_empty(), drawn.name));
    drawn
}

//! `mixd recipe`: lists the presets, or prints one as TOML.

use crate::spec::{Recipe, RecipeChoice};
use clap::Args;

/// List the recipes, or print one as TOML, with every default written out: the beginning of a recipe of your own.
#[derive(Debug, Args)]
pub struct PrintRecipe {
    /// Which: a name from the list, or a .toml file, which is checked.
    #[arg(value_name = "NAME|FILE.toml")]
    recipe: Option<RecipeChoice>,
}

impl PrintRecipe {
    pub fn run(self) -> anyhow::Result<()> {
        let recipe = self.recipe.as_ref().map(RecipeChoice::load).transpose()?;
        super::print(|out| match &recipe {
            Some(recipe) => write!(out, "{}", recipe.to_toml()),
            None => Recipe::presets().iter().try_for_each(|Recipe { name, about, train, val, .. }| {
                writeln!(out, "{name:<16} train {} {}, val {} {}: {about}", train.size, train.crop, val.size, val.crop)
            }),
        })
    }
}

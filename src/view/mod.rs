//! Pictures: what a batch looks like, and the laws that λ follows.

mod grid;
mod plot;
pub mod special;
mod text;

pub use grid::{Tile, caption, frame, grid, tiles};
pub use plot::{Figure, PlotError, plot};

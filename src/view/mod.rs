//! Pictures of batches, with captions.

mod grid;
pub mod text;

pub use grid::{Tile, caption, frame, grid, strips, tiles};

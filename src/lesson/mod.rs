//! The lesson that mixd began with, which is no part of the daemon: the plots of mixup's laws, and the training of a small network.

mod plot;
mod special;
#[cfg(feature = "torch")]
pub mod train;

pub use plot::{DrawnOperation, Figure, Material, PlotError, plot};
pub use special::{beta_density, folded_density};

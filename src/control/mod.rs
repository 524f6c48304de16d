//! The daemon's side of the control plane: its state, its service and the ownership of its socket. No pixel passes here.

mod connections;
mod daemon;
mod history;
mod owners;
mod server;
mod socket;
mod totals;

pub use connections::DESCRIPTOR_PAUSE;
pub use daemon::{Daemon, FeedKind};
pub use owners::Owners;
pub use server::serve;
pub use socket::{Home, SocketError};
pub use totals::{Histogram, Totals};

//! The daemon's side of the control plane: its state, its service and metrics, and the ownership of its socket. No pixel passes here.

mod connections;
mod daemon;
mod history;
mod metrics;
mod owners;
mod server;
mod socket;

pub use daemon::Daemon;
pub use metrics::serve_metrics;
pub use owners::Owners;
pub use server::serve;
pub use socket::{Home, SocketError};

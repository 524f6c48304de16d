//! The control plane: how trainers attach to feeds, and how people look after the daemon. No pixel passes here.

mod convert;
mod daemon;
mod metrics;
mod server;
mod socket;

pub use convert::{PROTOCOL_VERSION, place_from_proto, place_to_proto, spec_from_proto, spec_to_proto, versions};
pub use daemon::Daemon;
pub use metrics::serve_metrics;
pub use server::serve;
pub use socket::{Home, SocketError, default_socket};

/// The messages of `proto/mixd/v1/control.proto`.
#[allow(missing_docs, clippy::all, reason = "generated; the documentation stands in the proto file")]
pub mod proto {
    tonic::include_proto!("mixd.v1");
}

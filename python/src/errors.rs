//! What can go wrong, as the exceptions of `mixd.errors`.

use mixd::client::ClientError;
use pyo3::{PyErr, import_exception};

import_exception!(mixd.errors, MixdError);
import_exception!(mixd.errors, NoDaemonError);
import_exception!(mixd.errors, SpecError);
import_exception!(mixd.errors, DaemonGoneError);
import_exception!(mixd.errors, EvictedError);
import_exception!(mixd.errors, FeedEndedError);

/// The exception that an error of the client is.
pub fn raised(error: &ClientError) -> PyErr {
    let text = error.to_string();
    match error {
        ClientError::NoDaemon { .. } => NoDaemonError::new_err(text),
        ClientError::Refused(_) => SpecError::new_err(text),
        ClientError::DaemonGone(_) | ClientError::OtherDaemon(_) => DaemonGoneError::new_err(text),
        ClientError::Evicted { .. } | ClientError::CorruptCursor => EvictedError::new_err(text),
        ClientError::Ended { .. } => FeedEndedError::new_err(text),
        ClientError::Device(_) | ClientError::Recipe(_) | ClientError::Ring(_) | ClientError::Start(_) => {
            MixdError::new_err(text)
        }
    }
}

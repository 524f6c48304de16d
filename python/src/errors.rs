//! What can go wrong, as Python's exceptions.

use mixd::client::ClientError;
use pyo3::exceptions::PyException;
use pyo3::{PyErr, create_exception};

create_exception!(mixd, MixdError, PyException, "Anything that goes wrong between a trainer and its daemon.");
create_exception!(mixd, NoDaemon, MixdError, "No daemon answers, or none could be started.");
create_exception!(
    mixd,
    SpecRefused,
    MixdError,
    "The daemon will not serve this feed: a value is out of range, memory is short."
);
create_exception!(mixd, DaemonGone, MixdError, "The daemon has died, and none has taken its place in time.");
create_exception!(mixd, Evicted, MixdError, "The daemon has put this trainer out of a shared feed.");
create_exception!(mixd, FeedEnded, MixdError, "The daemon has ended the feed, in order or because it could not go on.");
/// The exception that an error of the client is.
pub fn raised(error: &ClientError) -> PyErr {
    let text = error.to_string();
    match error {
        ClientError::NoDaemon { .. } => NoDaemon::new_err(text),
        ClientError::Refused(_) => SpecRefused::new_err(text),
        ClientError::DaemonGone(_) | ClientError::OtherDaemon(_) => DaemonGone::new_err(text),
        ClientError::Evicted(_) => Evicted::new_err(text),
        ClientError::Ended(_) => FeedEnded::new_err(text),
        ClientError::Device(_) | ClientError::Ring(_) | ClientError::Start(_) => MixdError::new_err(text),
    }
}

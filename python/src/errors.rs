//! What can go wrong, as the exceptions of `mixd.errors`.

use mixd::client::{ClientError, Reason, Refusal};
use pyo3::prelude::*;
use pyo3::{IntoPyObject, import_exception};

import_exception!(mixd.errors, MixdError);
import_exception!(mixd.errors, NoDaemonError);
import_exception!(mixd.errors, SpecError);
import_exception!(mixd.errors, RefusedError);
import_exception!(mixd.errors, NoRoomError);
import_exception!(mixd.errors, DaemonGoneError);
import_exception!(mixd.errors, EvictedError);
import_exception!(mixd.errors, CorruptCursorError);
import_exception!(mixd.errors, FeedEndedError);

/// The exception that an error of the client is.
pub fn raised(error: &ClientError) -> PyErr {
    let text = error.to_string();
    match error {
        ClientError::NoDaemon { .. } => NoDaemonError::new_err(text),
        ClientError::Refused(refusal) => refused(refusal, text),
        ClientError::DaemonGone(_) | ClientError::OtherDaemon(_) => DaemonGoneError::new_err(text),
        ClientError::Evicted { .. } => EvictedError::new_err(text),
        ClientError::CorruptCursor => CorruptCursorError::new_err(text),
        ClientError::Ended { failed, .. } => with(FeedEndedError::new_err(text), "failed", failed),
        ClientError::Device(_)
        | ClientError::Recipe(_)
        | ClientError::Ring(_)
        | ClientError::Start(_)
        | ClientError::NoDescriptors => MixdError::new_err(text),
    }
}

/// The exception that a daemon's refusal is, with what a program can act on.
fn refused(refusal: &Refusal, text: String) -> PyErr {
    let kind = |kind: &str| with(RefusedError::new_err(text.clone()), "kind", kind);
    match &refusal.reason {
        Reason::Spec => SpecError::new_err(text),
        Reason::OtherSpec { keys } => with(SpecError::new_err(text), "keys", keys),
        Reason::Passed { next } => with(SpecError::new_err(text), "next", (next.epoch, next.index)),
        Reason::Behind { .. } => DaemonGoneError::new_err(text),
        Reason::NoRoom { need, free } => with(with(NoRoomError::new_err(text), "need_bytes", need), "free_bytes", free),
        Reason::TooManyTrainers => kind("too-many-trainers"),
        Reason::Stopping => kind("stopping"),
        Reason::Device => kind("device"),
        Reason::Version => kind("version"),
        Reason::OtherUser => kind("other-user"),
        Reason::System => kind("system"),
        _ => kind("other"),
    }
}

/// An exception with an attribute.
fn with(error: PyErr, name: &str, value: impl for<'py> IntoPyObject<'py>) -> PyErr {
    match Python::attach(|py| error.value(py).setattr(name, value)) {
        Ok(()) => error,
        Err(error) => error,
    }
}

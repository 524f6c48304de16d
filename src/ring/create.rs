//! Making a ring: its memory, the end that writes and the end that the control plane holds.

use super::error::RingError;
use super::layout::{DataHeader, SPARES};
use super::readers::{Pace, RingHandle, Shared};
use super::region::Data;
use super::wake::can_wait_for_several;
use super::writer::RingWriter;
use crate::format::Format;
use crate::spec::Delivery;
use crate::types::Device;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Makes a ring.
///
/// # Errors
/// When there is no memory for it, naming bytes needed and available, or a system call fails or is not there.
pub fn create(format: &Format, batch_size: u32, slots: u32, pace: Pace) -> Result<(RingWriter, RingHandle), RingError> {
    if pace.delivery == Delivery::Latest && !can_wait_for_several() {
        return Err(RingError::OldKernel);
    }
    // A device's slots are all there from the beginning: trainers cannot ask for more of them once the daemon is dead.
    let evicts = pace.delivery == Delivery::Lossless && pace.max_lag < Duration::MAX;
    let spares = if evicts && format.device == Device::Cpu { SPARES } else { 0 };
    let header = DataHeader::fixed(format, batch_size, slots, spares, pace.delivery);
    let data = Data::create(header)?;
    let shared = Arc::new(Shared {
        data,
        pace,
        readers: Mutex::default(),
        next_reader: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    Ok((RingWriter::new(Arc::clone(&shared)), RingHandle(shared)))
}

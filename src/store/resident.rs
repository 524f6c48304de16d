//! Samples of a store on a device: rows that were copied there once and stay, as far as they fit, and main memory that the device reads.

use super::Rows;
use crate::cuda::{Context, CudaError, DeviceMemory, Gpu, Pin};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Main memory that is pinned at a time: pinning all of a store before it is filled would take its memory, and seconds.
const PIN_BYTES: usize = 64 << 20;
const PAGE_BYTES: usize = 4096;

/// A store's rows, pinned piece by piece when devices first read them. One for all devices.
#[derive(Debug)]
pub struct PinnedRows {
    /// By their number; `None` where the system has refused. They go before the rows.
    pieces: Mutex<HashMap<usize, Option<Pin>>>,
    rows: Arc<Rows>,
    context: Arc<Context>,
}

impl PinnedRows {
    /// Of these rows, nothing pinned yet.
    pub fn new(gpu: &Gpu, rows: Arc<Rows>) -> Self {
        Self { pieces: Mutex::default(), rows, context: Arc::clone(gpu.context()) }
    }

    /// Pins the pieces that a row lies in; whether a device may read it.
    fn pin(&self, row: u32) -> bool {
        let (range, bytes) = (self.rows.range(), self.rows.row_bytes());
        let first = range.start + row as usize * bytes;
        let last = first + bytes - 1;
        let (start, end) = (range.start / PAGE_BYTES * PAGE_BYTES, range.end.next_multiple_of(PAGE_BYTES));
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pin = |piece: usize| {
            let from = start + piece * PIN_BYTES;
            if let Some(known) = pieces.get(&piece) {
                return known.is_some();
            }
            let pinned = Pin::new(&self.context, from as *const u8, PIN_BYTES.min(end - from));
            if let Err(error) = &pinned {
                // Those that had pinned it are letting go of it just now.
                if error.is_pinned_already() {
                    return false;
                }
                tracing::warn!(
                    "samples go to the device by way of a copy, since their memory cannot be pinned: {error}"
                );
            }
            pieces.entry(piece).or_insert(pinned.ok()).is_some()
        };
        ((first - start) / PIN_BYTES..=(last - start) / PIN_BYTES).all(&mut pin)
    }
}

/// A store's samples on one device.
#[derive(Debug)]
pub struct Resident {
    gpu: Arc<Gpu>,
    host: Arc<PinnedRows>,
    /// The first rows of the store, `stride` apart; none where nothing fits.
    memory: Option<DeviceMemory>,
    stride: usize,
    /// Whether each of them was copied.
    copied: Box<[AtomicBool]>,
}

/// Where a row of the store is for a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residency {
    /// On the device, at this address.
    OnDevice(u64),
    /// In main memory; the device has room for it at this address, where it stays once it was copied.
    ToCopy(u64),
    /// In main memory; the device has no room for it.
    InMain,
}

impl Resident {
    /// Room for as many of the rows as `budget` bytes hold.
    ///
    /// # Errors
    /// When the device does not have them.
    pub fn new(gpu: &Arc<Gpu>, host: Arc<PinnedRows>, budget: u64) -> Result<Self, CudaError> {
        let stride = sample_stride(host.rows.row_bytes());
        let rows = (budget / stride as u64).min(host.rows.len().into()) as usize;
        let memory = (rows > 0).then(|| DeviceMemory::new(gpu.context(), rows * stride)).transpose()?;
        let copied = (0..rows).map(|_| AtomicBool::new(false)).collect();
        Ok(Self { gpu: Arc::clone(gpu), host, memory, stride, copied })
    }

    /// The device.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// The rows in main memory.
    pub fn host(&self) -> &Arc<PinnedRows> {
        &self.host
    }

    /// Bytes of the device's memory.
    pub fn bytes(&self) -> usize {
        self.memory.as_ref().map_or(0, DeviceMemory::bytes)
    }

    /// Whether there is room for all rows.
    pub fn holds_all(&self) -> bool {
        self.copied.len() == self.host.rows.len() as usize
    }

    /// Where a row is.
    pub fn find(&self, row: u32) -> Residency {
        let (Some(copied), Some(memory)) = (self.copied.get(row as usize), &self.memory) else {
            return Residency::InMain;
        };
        let address = memory.address() + row as u64 * self.stride as u64;
        // Acquire, as the store below is a Release: the copy was complete.
        if copied.load(Ordering::Acquire) { Residency::OnDevice(address) } else { Residency::ToCopy(address) }
    }

    /// Notes that a row's copy is complete. Two feeds, or two batches of one, may copy the same row: all write the same bytes.
    pub fn mark_copied(&self, row: u32) {
        self.copied[row as usize].store(true, Ordering::Release);
    }

    /// Whether the device can read a row where it lies in main memory.
    pub fn is_readable(&self, row: u32) -> bool {
        self.gpu.reads_pins() && self.host.pin(row)
    }
}

/// Bytes from one sample on the device to the next, so that each begins where 16 bytes can be read at once.
pub const fn sample_stride(row_bytes: usize) -> usize {
    row_bytes.next_multiple_of(16)
}

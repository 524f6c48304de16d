//! What images are decoded into. A large decode takes its memory from what is free before it begins, and waits for others where that is short.

use super::orientation::Orientation;
use super::{ImageError, Picture};
use crate::memory::{self, Lack, Promise};
use crate::types::CropBox;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Decodes that take fewer bytes begin at once.
const LARGE_BYTES: usize = 16 << 20;
/// Bytes that large decodes leave free, for others.
const SPARE_BYTES: u64 = 2 * LARGE_BYTES as u64;
/// Scratch of a large decode is kept for the next one where this is free beside it, which is more than any decode takes.
const AMPLE_BYTES: u64 = 2 << 30;

static LARGE: Large = Large::new();

/// The large decodes of a process.
struct Large {
    /// Held by the one that waits, so that smaller ones do not overtake it.
    turn: Mutex<()>,
    in_flight: Mutex<usize>,
    ended: Condvar,
}

impl Large {
    const fn new() -> Self {
        Self { turn: Mutex::new(()), in_flight: Mutex::new(0), ended: Condvar::new() }
    }

    /// Waits until `promise` succeeds.
    ///
    /// # Errors
    /// When it fails while no other large decode is in flight.
    fn admit(&self, promise: impl Fn() -> Result<Promise, Lack>) -> Result<Admission<'_>, Lack> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut in_flight = self.in_flight();
        loop {
            match promise() {
                Ok(promise) => {
                    *in_flight += 1;
                    return Ok(Admission { large: self, promise });
                }
                Err(lack) if *in_flight == 0 => return Err(lack),
                Err(_) => in_flight = self.ended.wait(in_flight).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn in_flight(&self) -> MutexGuard<'_, usize> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A large decode in flight.
struct Admission<'a> {
    large: &'a Large,
    /// Of what is not taken yet.
    promise: Promise,
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        self.promise = Promise::default();
        *self.large.in_flight() -= 1;
        self.large.ended.notify_one();
    }
}

/// The memory that images are decoded into, one after the other.
#[derive(Default)]
pub struct Output {
    // Declared, and so dropped, before the admission of its memory.
    values: Vec<u8>,
    /// How the picture has to be turned once it is decoded, and memory for the turned one.
    orientation: Orientation,
    turned: Vec<u8>,
    admission: Option<Admission<'static>>,
}

impl Output {
    /// The pictures that follow have to be turned so; [`room`](Self::room) sees to it that there is memory for that.
    pub fn set_orientation(&mut self, orientation: Orientation) {
        self.orientation = orientation;
    }

    /// Turns the picture that was decoded, at least this box of the upright one; with how it was turned.
    pub fn turn(&mut self, width: u32, height: u32, channels: usize, region: Option<CropBox>) -> Orientation {
        if self.orientation.is_upright() {
            return self.orientation;
        }
        let bytes = width as usize * height as usize * channels;
        if self.turned.len() < bytes {
            self.turned.resize(bytes, 0);
        }
        let picture = Picture::new(width, height, channels, &self.values);
        self.orientation.turn(&picture, region, &mut self.turned);
        std::mem::swap(&mut self.values, &mut self.turned);
        self.orientation
    }

    /// Memory for `bytes` values, at least, of an image whose decoder takes `own_bytes` more. What it holds is unspecified.
    ///
    /// # Errors
    /// [`ImageError::Memory`].
    pub fn room(&mut self, bytes: usize, own_bytes: usize) -> Result<&mut Vec<u8>, ImageError> {
        self.admission = None;
        let new_bytes = if bytes > self.values.capacity() { bytes } else { 0 };
        let turned_bytes = if self.orientation.is_upright() { 0 } else { bytes.saturating_sub(self.turned.capacity()) };
        let need = new_bytes + own_bytes + turned_bytes;
        if need >= LARGE_BYTES {
            if new_bytes > 0 {
                // Moving it would take both.
                self.values = Vec::new();
            }
            self.admission = Some(LARGE.admit(|| Promise::new(need as u64, SPARE_BYTES)).map_err(ImageError::Memory)?);
        }
        if self.values.len() < bytes {
            self.values.resize(bytes, 0);
        }
        if let Some(admission) = &self.admission {
            admission.promise.take(new_bytes as u64);
        }
        Ok(&mut self.values)
    }

    /// The values, which were decoded: what the decoder took is free again.
    pub fn values(&self) -> &[u8] {
        if let Some(admission) = &self.admission {
            admission.promise.take(admission.promise.bytes());
        }
        &self.values
    }

    /// Ends a large decode, and frees memory above `bytes`, or where there is little, all of it.
    pub fn shrink_to(&mut self, bytes: usize) {
        let is_ample = || memory::free().is_none_or(|free| free >= AMPLE_BYTES);
        let capacity = self.values.capacity() + self.turned.capacity();
        if capacity > bytes || capacity >= LARGE_BYTES && !is_ample() {
            (self.values, self.turned) = (Vec::new(), Vec::new());
        }
        self.admission = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::sync::mpsc::channel;
    use std::time::Duration;

    const DEADLINE: Duration = Duration::from_secs(20);

    /// Takes what a decode needs from what is free.
    fn promise(free: &AtomicU64, need: u64) -> Result<Promise, Lack> {
        let left = |free: u64| free.checked_sub(need);
        let taken = free.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left);
        taken.map(|_| Promise::default()).map_err(|free| Lack { need, free })
    }

    #[test]
    fn large_decodes_run_together_where_there_is_room() {
        let (large, free) = (Large::new(), AtomicU64::new(80));
        let admit = || large.admit(|| promise(&free, 10)).unwrap();
        let all: Vec<_> = (0..8).map(|_| admit()).collect();
        assert_eq!((all.len(), *large.in_flight()), (8, 8));
        drop(all);
        assert_eq!(*large.in_flight(), 0);
    }

    #[test]
    fn large_decodes_wait_for_each_other_where_memory_is_short() {
        static LARGE: Large = Large::new();
        static FREE: AtomicU64 = AtomicU64::new(100);
        let (done, finished) = channel();
        for need in [30, 40, 50, 60, 70, 80, 90, 100] {
            let done = done.clone();
            std::thread::spawn(move || {
                for _ in 0..200 {
                    let admission = LARGE.admit(|| promise(&FREE, need));
                    done.send(admission.is_ok()).unwrap();
                    std::thread::yield_now();
                    FREE.fetch_add(need, Ordering::SeqCst);
                    drop(admission);
                }
            });
        }
        for nth in 0..8 * 200 {
            assert!(finished.recv_timeout(DEADLINE).expect("it waits for ever"), "number {nth} was refused");
        }
    }

    #[test]
    fn what_would_not_fit_alone_is_refused_once_it_is_alone() {
        let (large, free) = (Large::new(), AtomicU64::new(100));
        let first = large.admit(|| promise(&free, 60)).unwrap();
        let tried = AtomicBool::new(false);
        let admit = || {
            large.admit(|| {
                let promised = promise(&free, 101);
                tried.store(true, Ordering::SeqCst);
                promised
            })
        };
        std::thread::scope(|scope| {
            let refused = scope.spawn(|| admit().err());
            while !tried.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            free.fetch_add(60, Ordering::SeqCst);
            drop(first);
            assert_eq!(refused.join().unwrap(), Some(Lack { need: 101, free: 100 }));
        });
        // That leaves room for others.
        assert!(large.admit(|| promise(&free, 100)).is_ok());
    }

    #[test]
    fn smaller_decodes_do_not_overtake_one_that_waits() {
        let (large, free) = (Large::new(), AtomicU64::new(100));
        let first = large.admit(|| promise(&free, 60)).unwrap();
        let (order, tried) = (Mutex::new(Vec::new()), AtomicBool::new(false));
        let admit = |need| {
            let admission = large.admit(|| {
                let promised = promise(&free, need);
                tried.store(true, Ordering::SeqCst);
                promised
            });
            order.lock().unwrap().push(need);
            free.fetch_add(need, Ordering::SeqCst);
            drop(admission);
        };
        std::thread::scope(|scope| {
            scope.spawn(|| admit(90));
            while !tried.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            scope.spawn(|| admit(20));
            // Time enough to overtake where that is wrong.
            (0..10_000).for_each(|_| std::thread::yield_now());
            assert!(order.lock().unwrap().is_empty());
            free.fetch_add(60, Ordering::SeqCst);
            drop(first);
        });
        assert_eq!(*order.lock().unwrap(), [90, 20]);
    }

    #[test]
    fn an_image_is_refused_before_more_is_taken_than_is_free() {
        let mut output = Output::default();
        for (bytes, own_bytes) in [(1 << 50, 0), (1, 1 << 50), (1 << 49, 1 << 49)] {
            let Err(ImageError::Memory(lack)) = output.room(bytes, own_bytes) else { panic!("there was room") };
            assert_eq!(lack.need, (bytes + own_bytes) as u64);
        }
        assert!(output.room(LARGE_BYTES, 0).unwrap().len() >= LARGE_BYTES && output.admission.is_some());
        assert_eq!(output.admission.as_ref().unwrap().promise.bytes(), 0, "what is taken is not promised");
        // In memory that it has, one like it asks for none.
        assert!(output.room(LARGE_BYTES, 0).is_ok() && output.admission.is_none());
        output.room(LARGE_BYTES, LARGE_BYTES).unwrap();
        assert_eq!(output.admission.as_ref().unwrap().promise.bytes(), LARGE_BYTES as u64);
        output.shrink_to(0);
        assert!(output.values.capacity() == 0 && output.admission.is_none());
        // A picture that has to be turned takes its memory twice.
        output.set_orientation(Orientation::of_number(6));
        let Err(ImageError::Memory(lack)) = output.room(1 << 50, 7) else { panic!("there was room") };
        assert_eq!(lack.need, (2 << 50) + 7);
    }
}

//! Rows of memory that are written once by whoever claims them and then read by anyone.
#![expect(unsafe_code, reason = "hands out disjoint rows of one mapping across threads")]

use super::file::RowsFile;
use crate::memory::Promise;
use memmap2::{MmapOptions, MmapRaw};
use std::io;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// What a row holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Nothing.
    Empty = 0,
    /// Somebody is writing it.
    Claimed = 1,
    /// A sample.
    Ready = 2,
    /// Nothing: its sample could not be decoded when it was last tried.
    Bad = 3,
}

impl State {
    fn from(byte: u8) -> Self {
        [Self::Empty, Self::Claimed, Self::Ready, Self::Bad, Self::Claimed, Self::Empty][usize::from(byte)]
    }
}

/// What a claimed row's state is while somebody waits for it: whoever settles it tells them. Nobody else is woken, since samples settle
/// many times as often as batches are complete.
const AWAITED: u8 = 4;

/// What an empty row's state is whose memory was never written: it counts among the promised bytes.
const FRESH: u8 = 5;

/// Where to wait for claimed rows to settle; one for all rows of a daemon.
#[derive(Debug, Default)]
pub struct Settled {
    waiting: AtomicUsize,
    /// Those that may wait until rows are let go of.
    reusing: AtomicUsize,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Settled {
    /// Has everyone who waits look again.
    pub fn announce(&self) {
        // Pairs with `wait`: either this sees the waiter, or the waiter sees what was stored before.
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.changed.notify_all();
        }
    }

    /// Waits until `done`, which looks at rows of this group.
    pub fn wait(&self, done: impl Fn() -> bool) {
        if done() {
            return;
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !done() {
            guard = self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        drop(guard);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rows({} of {} bytes)", self.len(), self.row_bytes)
    }
}

/// A fixed number of rows of equal size, each 64-byte aligned when the row size is.
pub struct Rows {
    memory: Memory,
    row_bytes: usize,
    states: Box<[AtomicU8]>,
    settled: Arc<Settled>,
    /// Of the rows that are fresh.
    promise: Promise,
}

enum Memory {
    /// No rows.
    None,
    /// This process's own.
    Anonymous(MmapRaw),
    /// A file's.
    File(RowsFile),
}

impl Rows {
    /// `rows` empty rows of `row_bytes` bytes; memory is taken as they fill.
    ///
    /// # Errors
    /// When the memory cannot be mapped.
    pub fn new(rows: u32, row_bytes: usize, settled: Arc<Settled>) -> io::Result<Arc<Self>> {
        Self::promised(rows, row_bytes, Promise::default(), settled)
    }

    /// The same, in memory that was promised.
    ///
    /// # Errors
    /// When the memory cannot be mapped.
    pub fn promised(rows: u32, row_bytes: usize, promise: Promise, settled: Arc<Settled>) -> io::Result<Arc<Self>> {
        let memory = match rows as usize * row_bytes {
            0 => Memory::None,
            bytes => {
                let map: MmapRaw = MmapOptions::new().len(bytes).map_anon()?.into();
                // Fewer page faults and TLB misses where the kernel grants it; nothing depends on it.
                let _ = map.advise(memmap2::Advice::HugePage);
                Memory::Anonymous(map)
            }
        };
        Ok(Self::over(memory, rows, row_bytes, promise, settled))
    }

    /// The rows of a file, all empty until what they hold was checked.
    pub fn in_file(file: RowsFile, settled: Arc<Settled>) -> Arc<Self> {
        let (rows, row_bytes) = (file.capacity(), file.row_bytes());
        Self::over(Memory::File(file), rows, row_bytes, Promise::default(), settled)
    }

    fn over(memory: Memory, rows: u32, row_bytes: usize, promise: Promise, settled: Arc<Settled>) -> Arc<Self> {
        let state = if promise.bytes() > 0 { FRESH } else { State::Empty as u8 };
        let states = (0..rows).map(|_| AtomicU8::new(state)).collect();
        Arc::new(Self { memory, row_bytes, states, settled, promise })
    }

    /// The file that the rows lie in.
    pub fn file(&self) -> Option<&RowsFile> {
        match &self.memory {
            Memory::File(file) => Some(file),
            Memory::None | Memory::Anonymous(_) => None,
        }
    }

    /// How many rows there are.
    pub fn len(&self) -> u32 {
        self.states.len() as u32
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// The addresses that the rows take, one after the other.
    pub fn range(&self) -> std::ops::Range<usize> {
        if self.is_empty() {
            return 0..0;
        }
        let start = self.start(0).addr();
        start..start + self.states.len() * self.row_bytes
    }

    /// What a row holds now.
    pub fn state(&self, row: u32) -> State {
        State::from(self.states[row as usize].load(Ordering::SeqCst))
    }

    /// Takes a row that holds no sample for writing: an empty one, or one whose sample was bad, which is tried again. `None` for any other.
    pub fn claim(self: &Arc<Self>, row: u32) -> Option<Claim> {
        let state = &self.states[row as usize];
        let from = state.load(Ordering::Relaxed);
        if ![State::Empty as u8, State::Bad as u8, FRESH].contains(&from) {
            return None;
        }
        let won = state.compare_exchange(from, State::Claimed as u8, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        let fresh = from == FRESH;
        won.then(|| Claim { rows: Some(Arc::clone(self)), row, fresh, bad_on_panic: false, outcome: State::Empty })
    }

    /// The sample in a row that is [`State::Ready`].
    pub fn get(&self, row: u32) -> Option<&[u8]> {
        // SAFETY: a ready row has been written (its state is stored after the bytes and loaded before them), and it is not
        // written again while anyone holds `&self`: only `reuse`, which owns the rows alone, makes it empty.
        (self.state(row) == State::Ready)
            .then(|| unsafe { std::slice::from_raw_parts(self.start(row), self.row_bytes) })
    }

    /// Waits until nobody else holds these rows, and empties them for the next batch; false when `give_up` came first.
    pub fn reuse(rows: &mut Arc<Self>, give_up: impl Fn() -> bool) -> bool {
        let settled = Arc::clone(&rows.settled);
        settled.reusing.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst); // Pairs with that of a claim's end.
        settled.wait(|| Arc::strong_count(rows) == 1 || give_up());
        settled.reusing.fetch_sub(1, Ordering::SeqCst);
        let Some(rows) = Arc::get_mut(rows) else { return false };
        for state in rows.states.iter_mut().map(AtomicU8::get_mut).filter(|state| **state != FRESH) {
            *state = State::Empty as u8;
        }
        true
    }

    /// Waits until a row is not claimed, or `give_up`; returns what it holds then.
    pub fn wait_settled(&self, row: u32, give_up: impl Fn() -> bool) -> State {
        let (claimed, state) = (State::Claimed as u8, &self.states[row as usize]);
        let is_claimed = || match state.compare_exchange(claimed, AWAITED, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => true,
            Err(state) => state == AWAITED,
        };
        self.settled.wait(|| !is_claimed() || give_up());
        self.state(row)
    }

    fn start(&self, row: u32) -> *mut u8 {
        assert!((row as usize) < self.states.len());
        let first = match &self.memory {
            Memory::Anonymous(map) => map.as_mut_ptr(),
            Memory::File(file) => file.rows(),
            Memory::None => unreachable!("there is a row, so there is memory"),
        };
        // SAFETY: the memory holds `states.len()` rows of `row_bytes`.
        unsafe { first.add(row as usize * self.row_bytes) }
    }
}

/// The exclusive right to write one row. Dropped unsettled, the row is empty again.
pub struct Claim {
    /// `None` only while dropping.
    rows: Option<Arc<Rows>>,
    row: u32,
    /// Whether nobody had the row before.
    fresh: bool,
    bad_on_panic: bool,
    outcome: State,
}

impl Claim {
    fn rows(&self) -> &Arc<Rows> {
        self.rows.as_ref().expect("held until dropped")
    }

    /// The row's memory.
    pub fn bytes(&mut self) -> &mut [u8] {
        let rows = self.rows();
        // SAFETY: the claim was won by compare-exchange, so this is the only reference to the row until it settles.
        unsafe { std::slice::from_raw_parts_mut(rows.start(self.row), rows.row_bytes) }
    }

    /// Which row it is.
    pub fn row(&self) -> u32 {
        self.row
    }

    /// Has the sample count as one that could not be decoded where this thread panics: or others would ask for it again and again.
    pub fn bad_on_panic(&mut self) {
        self.bad_on_panic = true;
    }

    /// The row holds its sample.
    pub fn ready(mut self) {
        self.outcome = State::Ready;
    }

    /// The sample could not be decoded.
    pub fn bad(mut self) {
        self.outcome = State::Bad;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let rows = self.rows.take().expect("dropped once");
        if self.fresh {
            rows.promise.take(rows.row_bytes as u64);
        }
        let outcome = if self.bad_on_panic && std::thread::panicking() { State::Bad } else { self.outcome };
        let before = rows.states[self.row as usize].swap(outcome as u8, Ordering::SeqCst);
        let settled = Arc::clone(&rows.settled);
        // First let go, then announce: `reuse` waits for the last holder.
        drop(rows);
        fence(Ordering::SeqCst); // Either this sees who wants to reuse the rows, or they see that this has let go.
        if before == AWAITED || settled.reusing.load(Ordering::SeqCst) > 0 {
            settled.announce();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn whoever_waits_for_a_row_is_woken_by_that_row_alone() {
        let rows = Rows::new(50, 1, Arc::default()).unwrap();
        let mut claims: Vec<Claim> = (0..50).map(|row| rows.claim(row).unwrap()).collect();
        let (awaited, looks) = (claims.pop().unwrap(), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                rows.wait_settled(49, || {
                    looks.fetch_add(1, Ordering::SeqCst);
                    false
                })
            });
            let deadline = Instant::now() + Duration::from_secs(20);
            while looks.load(Ordering::SeqCst) < 2 {
                assert!(Instant::now() < deadline, "nobody waits");
                std::thread::yield_now();
            }
            for claim in claims {
                claim.ready();
                // Time enough to be woken where that is wrong.
                (0..1_000).for_each(|_| std::thread::yield_now());
            }
            assert!(looks.load(Ordering::SeqCst) < 10, "woken by others");
            assert_eq!(rows.state(49), State::Claimed);
            awaited.ready();
            assert_eq!(waiting.join().unwrap(), State::Ready);
        });
    }

    #[test]
    fn rows_are_promised_until_they_are_first_written() {
        let promise = Promise::new(40, 0).unwrap();
        let mut rows = Rows::promised(4, 10, promise, Arc::default()).unwrap();
        let claims: Vec<Claim> = (0..3).map(|row| rows.claim(row).unwrap()).collect();
        assert_eq!(rows.promise.bytes(), 40);
        for (nth, claim) in claims.into_iter().enumerate() {
            let settle = [Claim::ready, Claim::bad, drop][nth];
            settle(claim);
            assert_eq!(rows.promise.bytes(), 30 - 10 * nth as u64);
        }
        assert_eq!(rows.state(3), State::Empty);
        for _ in 0..2 {
            assert!(Rows::reuse(&mut rows, || false));
            (0..3).for_each(|row| rows.claim(row).unwrap().ready());
            assert_eq!(rows.promise.bytes(), 10);
        }
        rows.claim(3).unwrap().ready();
        assert_eq!(rows.promise.bytes(), 0);
    }
}

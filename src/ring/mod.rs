//! The ring: batches in shared memory, from one writer (the daemon) to up to [`READERS_MAX`] readers (trainers).
//!
//! **Files.** On tmpfs, mode 0600 in a folder of mode 0700: `data` holds a header page and the slots, and readers map it
//! read-only; each reader has a page of its own, its *cursor*, the only thing that it may write.
//!
//! **Counters.** `published` counts the batches made so far, so batch number `seq` (from 0) is readable once
//! `published > seq`, and it lies in slot `seq mod slots`. A reader's `released` counts the batches it has given back:
//! every batch below it may be overwritten as far as that reader is concerned.
//!
//! **Writing** batch `seq`: wait until `seq − released < slots` for every live reader (*sync point B*), fill the slot and its
//! header, store `published = seq + 1` (*sync point A*), wake.
//!
//! **Reading** batch `seq`: wait until `published > seq` (*sync point A*), read the slot in place, store
//! `released` past the oldest batch still leased (*sync point B*), wake. Several leases may be held and dropped in any order.
//!
//! **Memory order.** A: the writer's Release store of `published` pairs with the reader's Acquire load, so the slot's bytes
//! are seen whole. B: the reader's Release store of `released` pairs with the writer's Acquire load, so no read of the old
//! bytes is overtaken by a write of the new.
//!
//! **Waiting.** A short spin, then a futex. Each side has an event word that its waker increments after the counter:
//! `event` in the data header for readers, `event` in the cursor for the writer. A waiter announces itself (`reader_waiting`,
//! `writer_waiting`), looks again, and sleeps only while the event word still has the value that it read first. Waker: counter,
//! event, SeqCst fence, announcement. Waiter: announcement, SeqCst fence, counter and event. So one of the two sees the other
//! (*sync point C*), and the wake-up system call is made only when somebody sleeps. The event word is incremented with Release
//! and first read with Acquire: whoever sleeps on its new value has seen the new counter (*sync point D*). Every sleep has a
//! deadline.
//!
//! **Trust.** The daemon checks what it reads in a cursor: `released` never falls and never passes `published`; else that
//! reader is evicted. A reader's event word and announcement cost at most a needless wake-up. When a reader goes, the daemon
//! takes it off the list and wakes the writer, which no longer waits for it.
//!
//! **End.** `ended` becomes non-zero after the last `published`, with the reason beside it. Readers first read what is published.

mod layout;
pub mod protocol;
mod reader;
mod region;
mod wake;
mod writer;

pub use layout::{BatchHeader, LAYOUT_VERSION};
pub use reader::{GiveUp, Lease, Next, RingReader};
pub use region::RingError;
pub use wake::now_ns;
pub use writer::{ReaderId, RingHandle, RingWriter, SlotMut, WriterStopped, create};

/// The most readers of one ring.
pub const READERS_MAX: usize = 64;

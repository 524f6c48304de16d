//! The ring: batches in shared memory, from one writer (the daemon) to up to [`READERS_MAX`] readers (trainers).
//!
//! **Memory.** Two sealed memfds, whose descriptors the daemon passes to each reader: the *data* holds a header page, the directory and the slots,
//! and readers can only map it read-only; each reader has a page of its own, its *cursor*, the only thing that it may write.
//!
//! **Counters.** `published` counts the batches made so far, so batch number `seq` (from 0) is readable once
//! `published > seq`; the directory says which slot it lies in. A reader's `released` counts the batches it has given back:
//! every batch below it may be overwritten as far as that reader is concerned. A reader that joins begins with the `released` that
//! it is given: the next batch, or a later one, up to which it holds up nobody.
//!
//! **Writing** batch `seq`, delivery *lossless*: wait until every live reader has released batch `seq − slots` (*sync point B*), claim the
//! slot of the newest batch that all have released, fill it, note `seq` in the directory, store `published = seq + 1` (*sync point A*),
//! wake. So readers that keep up are served from few slots, which stay in the caches. *Latest*: wait until the oldest slot that nobody
//! has leased holds a batch that the fastest reader has released, and claim that.
//!
//! **Reading** batch `seq`: wait until `published > seq` (*sync point A*), lease its slot, read it in place, let go of the slot (*sync
//! point E*), store `released` past the oldest batch still leased (*sync point B*), wake. Several leases may be held and dropped in any
//! order; of a latest feed, one. There, a reader that has fallen behind by the whole ring goes on with the newest batch.
//!
//! **Leasing.** A reader sets the slot's bit in its cursor, and then looks whether the directory still says `seq` and it was not evicted;
//! else it takes the bit back. To claim a slot the writer takes its number out of the directory, and then looks at the bits; if one is
//! set it puts the number back and takes another slot. A SeqCst fence on either side between the two steps (*sync point F*) sees to it
//! that one of them sees the other. The writer looks at the bits of everybody (latest), or of those that it has evicted (lossless: the
//! others have released what it claims).
//!
//! **Eviction.** A reader of a lossless feed that keeps others waiting for longer than `max_lag` is put out: the daemon stores `evicted`
//! in its cursor and waits for it no more. Time counts as lag only while a reader that waits looks again and again (`looks`): where all are
//! stopped nobody is kept waiting. What it had leased then is not overwritten until it lets go or its process is gone; spare
//! slots, which follow the others and take memory from their first use, stand in for it. If these are kept, too, for `max_lag`, the
//! feed ends. A ring on a device has none.
//!
//! **Memory order.** A: the writer's Release store of `published` pairs with the reader's Acquire load, so the slot's bytes
//! are seen whole. B: the reader's Release store of `released` pairs with the writer's Acquire load, so no read of the old
//! bytes is overtaken by a write of the new. G: the fence in `evict`, between the writer's store of `evicted` and its claim of a slot, pairs with
//! the Acquire fence in a failed `lease`, between the reader's search of the directory and its load of `evicted`. So a reader that sees its
//! slot claimed sees that it was evicted, and does not report a damaged ring. The thread that evicts must be the thread that claims.
//!
//! **Waiting.** A short spin, then a futex. Each side has an event word that its waker increments after the counter:
//! `event` in the data header for readers, `event` in the cursor for the writer. A waiter announces itself (`reader_waiting`,
//! `writer_waiting`), looks again, and sleeps only while the event word still has the value that it read first. Waker: counter,
//! event, SeqCst fence, announcement. Waiter: announcement, SeqCst fence, counter and event. So one of the two sees the other
//! (*sync point C*), and the wake-up system call is made only when somebody sleeps. The event word is incremented with Release
//! and first read with Acquire: whoever sleeps on its new value has seen the new counter (*sync point D*). Every sleep has a
//! deadline. The writer of a latest feed sleeps on the events of all readers at once (`futex_waitv`). Ends of leases change event words
//! as counters do.
//!
//! **Calling.** A processor that has gone idle takes tens of microseconds to wake. So readers note how long waking them takes, and the
//! writer may wake those that wait as much before it publishes: it stores `near`, and whoever waits for a batch below that spins longer
//! before it sleeps again. A call that is missed, or comes in vain, costs time and nothing else.
//!
//! **Trust.** The daemon checks what it reads in a cursor: `released` never falls and never passes `published`, and a reader of a latest
//! feed leases one slot; else that reader is evicted, and its leases count for nothing. What else a cursor holds costs little: its event word
//! a needless wake-up; its announcement and its looks, that readers which it outruns count as late while it reads on; the time that it takes to
//! wake, a call 100 µs early at most. Its other counters are for people to see. When a reader goes, the daemon takes it off the list and wakes the
//! writer, which no longer waits for it; when the last goes, the feed is over.
//!
//! **Keeping.** A reader may keep a batch for longer than the ring can wait: it puts a copy in the place where it saw the slot, and ends the
//! lease. So a reader also leaves at once, whatever it holds.
//!
//! **Forks.** A child of a reader's process has none of its leases: it opens a feed of its own.
//!
//! **End.** `ended` becomes non-zero after the last `published`, with the reason beside it. Readers first read what is published.

mod create;
mod device;
mod error;
mod layout;
pub mod protocol;
mod reader;
mod readers;
mod region;
mod view;
mod wake;
mod writer;

pub use create::create;
pub use device::{ANY_STREAM, DeviceSlots, Mark};
pub use error::RingError;
pub use layout::{BatchHeader, LAYOUT_VERSION};
pub use reader::{Eviction, GiveUp, Lease, Next, RingReader};
pub use readers::{Pace, ReaderId, ReaderStatus, RingHandle};
pub use region::promised_bytes;
pub use view::{forget, lessee, make_private};
pub use wake::now_ns;
pub use writer::{Caller, RingWriter, SlotMut, WriterStopped};

/// The most readers of one ring.
pub const READERS_MAX: usize = 64;

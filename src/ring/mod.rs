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
//! **Waiting.** A short spin, then a futex. Each side has an event word that its waker increments after the counter:
//! `event` in the data header for readers, `event` in the cursor for the writer. A waiter reads the event word, then the counter, announces itself
//! (`reader_waiting`, `writer_waiting`), and sleeps only while the event word still has the value that it read. The wake-up system call is
//! made only when somebody has announced that it sleeps; where the daemon changes something else (`dismiss`), always. Every sleep has a
//! deadline. The writer of a latest feed sleeps on the events of all readers at once (`futex_waitv`). Ends of leases change event words
//! as counters do.
//!
//! **Memory order.** What comes before each pair, its two ends, and what comes after it:
//!
//! | | before | one end | other end | after |
//! |---|---|---|---|---|
//! | A | slot and directory written, or the reason of the end | store of `published`, `ended`: Release | their loads: Acquire | these are read |
//! | B | slots below `released` read | store of `released`: Release | its load: Acquire | these are written |
//! | C | event word incremented | SeqCst fence, load of the announcement | announcement, SeqCst fence | event word compared, by the futex call |
//! | D | counter or lease changed | increment of the event word: Release | its first load: Acquire | counters and leases are read |
//! | E | slot read | its bit taken back: Release | load of the bits: Acquire | slot written |
//! | F | directory, or `evicted`, written | SeqCst fence, load of the bits | bit set, SeqCst fence | directory and `evicted` are read |
//! | G | `evicted` stored | SeqCst fence, then slots claimed | directory read, then an Acquire fence | `evicted` is read |
//!
//! A, B, D and E are happens-before edges. Bits are changed by read-modify-writes only, so E holds although the reader has leased other slots
//! since. C and F: two threads each write one word and then read the other's, so at least one of them sees the other. After C either the waker
//! sees the announcement, or the waiter finds the event word changed; by D, it has not read the new event word with an old counter.
//! G: a reader that sees its slot claimed sees that it was evicted, and does not report a damaged ring. The thread that evicts must be
//! the thread that claims.
//!
//! **Slots are plain memory**, a `&mut [u8]` from the claim until the batch is published, a `&[u8]` while it is leased. A orders each write before
//! its reads. B, or E where the writer looks at bits, orders each read before the next write. C, F and G are not needed for that, so ThreadSanitizer,
//! which models no fences, can check it (`make tsan`). Lock-free atomics do not depend on the address (C++, `[atomics.lockfree]`), so two processes
//! that map the same pages synchronize as two threads do; and a compiler must assume that others know a mapping, so it moves no access past
//! A, B or E. A read-only mapping allows relaxed loads only: readers load the writer's words relaxed, and an Acquire fence follows.
//! Miri supports neither shared mappings of files nor futexes on them, hence this argument.
//!
//! **Peers that break these rules.** Readers cannot write to header, directory and slots (they are sealed), and reading what is not leased
//! changes nothing for others. Of a cursor the daemon reads atomics only: whatever instructions a process executes there, the daemon
//! sees stores of some values, and *Trust* says what each can cause. A process that is killed has executed a prefix of its accesses, which
//! is a state that a slow process passes through, too. Its slots are written again once its socket is closed, which the kernel does after
//! its last thread has stopped. A reader trusts its daemon: if that wrote to a leased slot, the reader's `&[u8]` would change, which is undefined
//! behavior. In a slot every bit pattern is valid, and each length is checked against the slot where it is used.
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
pub use layout::{BUCKETS, BatchHeader, LAYOUT_VERSION, bucket_max_ns};
pub use reader::{Eviction, GiveUp, Lease, Next, RingReader};
pub use readers::{Pace, ReaderId, ReaderStatus, RingHandle};
pub use view::{forget, lessee, make_private};
pub use wake::now_ns;
pub use writer::{Caller, RingWriter, SlotMut, WriterStopped};

/// The most readers of one ring.
pub const READERS_MAX: usize = 64;

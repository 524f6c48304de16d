//! An attached feed: a thread that keeps the control stream open, and attaches again when the daemon was gone; and a reader of the
//! ring.

use super::call::{LOOK_INTERVAL, connect, runtime};
use super::device::OpenDevice as Device;
use super::{Batch, ClientError, Reason, lacks_descriptors};
use crate::ring::{Eviction, GiveUp, Next, RingError, RingReader};
use crate::spec::FeedSpec;
use crate::types::{Class, LabelSet, Place, Start};
use crate::wire::{AttachRequest, Attached, Former, take_seat};
use std::io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, WouldBlock};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

/// How long a trainer waits by default for a daemon that is gone to be started again.
pub const RECONNECT: Duration = Duration::from_secs(30);

/// How long a daemon may take to answer the attempt to come back that begins when the time for it is over.
const LAST_ATTEMPT: Duration = Duration::from_secs(5);

/// How long a daemon may take to let a trainer go.
const LEAVE_MAX: Duration = Duration::from_secs(1);

/// A feed that this process reads. Dropping it detaches, once every batch is dropped, too.
pub struct Feed {
    reader: RingReader,
    attached: Attached,
    spec: FeedSpec,
    place: Place,
    /// The first batch of another epoch than was asked for, which comes next.
    ahead: Option<Batch>,
    socket: PathBuf,
    /// What comes after the reader gave up.
    later: Later,
    /// The client's thread.
    keeper: JoinHandle<()>,
}

type Opened = Result<(Attached, RingReader), ClientError>;

/// What the client's thread opens. Dropping it cancels an attempt to attach.
struct Later {
    opened: mpsc::Receiver<Opened>,
    _wanted: oneshot::Sender<()>,
}

/// Opens a feed on the daemon behind `socket`, or joins a shared one. Should the daemon die, the feed waits [`RECONNECT`] for the next
/// and goes on with the next batch.
///
/// # Errors
/// When no daemon answers, versions differ, or the spec is refused.
pub fn attach(socket: &Path, spec: &FeedSpec) -> Result<Feed, ClientError> {
    attach_for(socket, spec, RECONNECT)
}

/// [`attach`], but waits `reconnect` for the next daemon.
///
/// # Errors
/// As [`attach`].
pub fn attach_for(socket: &Path, spec: &FeedSpec, reconnect: Duration) -> Result<Feed, ClientError> {
    Ok(attach_unless(socket, spec, reconnect, &|| false)?.expect("nobody interrupts"))
}

/// [`attach_for`], but gives up, with `None`, when `interrupted`, which is asked every 50 ms.
///
/// # Errors
/// As [`attach`].
pub fn attach_unless(
    socket: &Path,
    spec: &FeedSpec,
    reconnect: Duration,
    interrupted: &dyn Fn() -> bool,
) -> Result<Option<Feed>, ClientError> {
    let ((opened, receiver), (wanted, unwanted)) = (mpsc::channel(), oneshot::channel());
    let later = Later { opened: receiver, _wanted: wanted };
    let runtime = runtime()?;
    let device = Device::open(spec.device)?;
    let attachment = Attachment { socket: socket.to_owned(), spec: *spec, device, reconnect, opened };
    let run = move || runtime.block_on(attachment.keep(unwanted));
    let keeper = std::thread::Builder::new().name("mixd-client".to_owned()).spawn(run).map_err(ClientError::Start)?;
    let Some((attached, reader)) = receive(&later, socket, interrupted)? else { return Ok(None) };
    let place = attached.start;
    Ok(Some(Feed { reader, attached, spec: *spec, place, ahead: None, socket: socket.to_owned(), later, keeper }))
}

/// Waits for the client's thread; `None` when `interrupted`.
fn receive(
    later: &Later,
    socket: &Path,
    interrupted: &dyn Fn() -> bool,
) -> Result<Option<(Attached, RingReader)>, ClientError> {
    loop {
        match later.opened.recv_timeout(LOOK_INTERVAL) {
            Ok(opened) => return opened.map(Some),
            Err(mpsc::RecvTimeoutError::Timeout) if interrupted() => return Ok(None),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err(ClientError::DaemonGone(socket.to_owned())),
        }
    }
}

/// What the client's thread needs.
struct Attachment {
    socket: PathBuf,
    spec: FeedSpec,
    device: Option<Device>,
    reconnect: Duration,
    opened: mpsc::Sender<Opened>,
}

/// An open stream, as the client's thread has it.
struct Stream {
    /// While it is there the daemon waits for more from us.
    outbound: tokio::sync::mpsc::Sender<AttachRequest>,
    inbound: tonic::Streaming<Attached>,
    attached: Attached,
    ring: GiveUp,
    /// Resolves when the reader and its last lease are gone.
    closed: oneshot::Receiver<()>,
}

impl Stream {
    /// Tells the daemon of the end, and waits until it has let the trainer go. Closing the socket alone would not do: children that were
    /// forked from this process keep it open.
    async fn end(mut self) {
        drop(self.outbound);
        let _ = timeout(LEAVE_MAX, self.inbound.message()).await;
    }
}

impl Attachment {
    /// Attaches, and keeps the stream open until the reader is gone; again and again while daemons die. An attempt that is `unwanted`
    /// is canceled: a daemon that is stopped might never answer.
    async fn keep(self, mut unwanted: oneshot::Receiver<()>) {
        let attached = tokio::select! {
            attached = self.attach(self.spec.start, None) => attached,
            _ = &mut unwanted => return,
        };
        let mut stream = match attached {
            Err(error) => {
                let _ = self.opened.send(Err(error));
                return;
            }
            Ok((stream, reader)) => {
                let opened = self.opened.send(Ok((stream.attached.clone(), reader)));
                if opened.is_err() {
                    return;
                }
                stream
            }
        };
        loop {
            tokio::select! {
                _ = &mut stream.closed => return stream.end().await,
                _ = stream.inbound.message() => {}
            }
            if stream.ring.has_ended() || stream.ring.was_evicted() {
                return stream.ring.give_up();
            }
            let Stream { attached, ring, closed, .. } = &mut stream;
            let next = tokio::select! {
                _ = closed => return,
                _ = &mut unwanted => return,
                next = self.again(attached, ring) => next,
            };
            let (outcome, next) = match next {
                Ok((next, reader)) => (Ok((next.attached.clone(), reader)), Some(next)),
                Err(error) => (Err(error), None),
            };
            let heard = self.opened.send(outcome).is_ok();
            stream.ring.give_up();
            match next {
                Some(next) if heard => stream = next,
                _ => return,
            }
        }
    }

    /// Attaches to a daemon that takes the place of one that is gone.
    async fn again(&self, gone: &Attached, ring: &GiveUp) -> Result<(Stream, RingReader), ClientError> {
        if self.reconnect.is_zero() {
            return Err(ClientError::DaemonGone(self.socket.clone()));
        }
        let (since, batches) = (Instant::now(), gone.batches);
        let origin = gone.origin.number(batches);
        let place = |seq| Place::of_number(origin + u128::from(seq), batches);
        // What was published is read from the old ring, by all that share it; so all of them go on with the same batch, but for those
        // that were to begin with a later one.
        let published = ring.published();
        let former = Former { next: place(published), trainers: ring.readers() };
        let start = Start::At(place(published.max(ring.first())));
        loop {
            let left = self.reconnect.saturating_sub(since.elapsed());
            let attached = timeout(left.max(LAST_ATTEMPT), self.attach(start, Some(former))).await;
            match attached.unwrap_or_else(|_| Err(ClientError::DaemonGone(self.socket.clone()))) {
                // Only now: this process may have been stopped for all of the time.
                Err(error) if may_come_back(&error) && left.is_zero() => {
                    let lacks = matches!(error, ClientError::NoDescriptors);
                    return Err(if lacks { error } else { ClientError::DaemonGone(self.socket.clone()) });
                }
                Err(error) if may_come_back(&error) => sleep(LOOK_INTERVAL.min(left)).await,
                Err(error) => return Err(error),
                Ok((next, reader)) => {
                    let key = |attached: &Attached| (attached.identity, attached.batches, attached.classes.clone());
                    return if key(&next.attached) == key(gone) {
                        Ok((next, reader))
                    } else {
                        Err(ClientError::OtherDaemon(self.socket.clone()))
                    };
                }
            }
        }
    }

    async fn attach(&self, start: Start, former: Option<Former>) -> Result<(Stream, RingReader), ClientError> {
        let spec = FeedSpec { start, ..self.spec };
        let (pid, device_uuid) = (std::process::id(), self.device.as_ref().map(Device::uuid).unwrap_or_default());
        let request = AttachRequest { spec, pid, name: crate::usage::own_name(), former, device_uuid };
        let mut client = connect(&self.socket).await?;
        let refused = |status| ClientError::from_status(&self.socket, &status);
        // The request stream stays open after its one message, for as long as the feed.
        let (outbound, more) = tokio::sync::mpsc::channel(1);
        let requests = tokio_stream::once(request).chain(ReceiverStream::new(more));
        let mut inbound = client.attach(requests).await.map_err(refused)?.into_inner();
        let attached = inbound.message().await.map_err(refused)?;
        let attached = attached.ok_or_else(|| ClientError::DaemonGone(self.socket.clone()))?;
        let (session, closed) = oneshot::channel::<()>();
        let gone = || ClientError::DaemonGone(self.socket.clone());
        // Asked of whichever daemon has the socket now: another one does not know this seat. Its queue of connections may be full.
        let memory = take_seat(&self.socket, attached.seat).await.map_err(|source| match source.kind() {
            _ if lacks_descriptors(&source) => ClientError::NoDescriptors,
            NotFound | ConnectionRefused | ConnectionReset | BrokenPipe | WouldBlock => gone(),
            _ => RingError::Io { action: "take the feed's memory from the daemon", source }.into(),
        })?;
        let memory = memory.ok_or_else(gone)?;
        let slots = |bytes, slots| match (&self.device, &memory.slots) {
            (Some(device), Some((memory, found))) => device.slots(memory, *found, bytes, slots),
            _ => Err(RingError::NoDevice),
        };
        let reader = RingReader::open_on_device(memory.data, memory.cursor, session, slots)?;
        Ok((Stream { outbound, inbound, attached, ring: reader.give_up_handle(), closed }, reader))
    }
}

/// Whether a later attempt may succeed: the daemon is gone, or ends, or this process lacks descriptors now.
fn may_come_back(error: &ClientError) -> bool {
    match error {
        ClientError::NoDaemon { .. } | ClientError::DaemonGone(_) | ClientError::NoDescriptors => true,
        ClientError::Refused(refusal) => refusal.reason == Reason::Stopping,
        _ => false,
    }
}

impl Feed {
    /// Waits for the next batch of the endless sequence.
    ///
    /// # Errors
    /// When the feed ended, or the daemon is gone and no other takes its place in time, after everything published was read; when this
    /// trainer was evicted; or when it holds all the slots that it may.
    pub fn next_batch(&mut self) -> Result<Batch, ClientError> {
        Ok(self.next_batch_unless(&|| false)?.expect("nobody interrupts"))
    }

    /// [`Feed::next_batch`], but gives up, with `None`, when `interrupted`, which is asked whenever this thread is awake: every 250 ms at
    /// least, and at once after a signal's handler has run in it. The next call waits on.
    ///
    /// # Errors
    /// As [`Feed::next_batch`].
    pub fn next_batch_unless(&mut self, interrupted: &dyn Fn() -> bool) -> Result<Option<Batch>, ClientError> {
        let batch = match self.ahead.take() {
            Some(batch) => Some(batch),
            None => self.read(interrupted)?,
        };
        if let Some(batch) = &batch {
            self.place = batch.place().next(self.batches());
        }
        Ok(batch)
    }

    fn read(&mut self, interrupted: &dyn Fn() -> bool) -> Result<Option<Batch>, ClientError> {
        loop {
            match self.reader.next_batch(interrupted)? {
                Next::Batch(batch) => return Ok(Some(batch)),
                Next::Interrupted => return Ok(None),
                Next::Ended { reason, failed } => return Err(ClientError::Ended { reason, failed }),
                Next::Evicted(Eviction::Lag) => {
                    let max_lag_s = self.spec.share.map_or(0.0, |share| share.max_lag_s);
                    return Err(ClientError::Evicted { max_lag_s });
                }
                Next::Evicted(Eviction::Unlawful) => return Err(ClientError::CorruptCursor),
                Next::GaveUp => match receive(&self.later, &self.socket, interrupted)? {
                    Some((attached, reader)) => (self.attached, self.reader) = (attached, reader),
                    None => return Ok(None),
                },
            }
        }
    }

    /// Keeps the oldest batch that is held, so that the feed goes on without it: it becomes a copy in memory of this process's own, at the
    /// very same address.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn keep_oldest(&mut self) -> Result<(), ClientError> {
        Ok(self.reader.keep_oldest()?)
    }

    /// Leaves the feed, and keeps the batches that are held; the daemon has closed it when this returns.
    ///
    /// # Errors
    /// When there is no memory for the copies; then the feed is left when the last of them is dropped.
    pub fn leave(self) -> Result<(), ClientError> {
        drop(self.ahead);
        // A child has nothing to leave, and no such thread.
        let has_left = match self.reader.leave() {
            Err(RingError::Forked(_)) => return Ok(()),
            left => left?,
        };
        // The reader of the next daemon's ring may be there already.
        drop(self.later);
        // It ends once the daemon has let us go: where batches on a device are held still, after the last. A panic has been reported, and
        // leaves nothing to do.
        if has_left {
            let _ = self.keeper.join();
        }
        Ok(())
    }

    /// The batches from the next one to the end of its epoch, as far as they are not skipped.
    pub fn epoch(&mut self) -> Epoch<'_> {
        Epoch { feed: self, number: None, over: false }
    }

    /// The place of the next batch, unless batches are skipped. A feed that is opened with this as its start goes on from here.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Whether a batch, this daemon's, is what its digest says; true of batches without one.
    pub fn is_intact(&self, batch: &Batch) -> bool {
        let view = batch.view();
        view.head.digest == 0 || view.head.digest == view.digest_by(&self.attached.mixer)
    }

    /// Whether the next batch is there already.
    pub fn is_ready(&self) -> bool {
        self.ahead.is_some() || self.reader.is_ready()
    }

    /// Batches in each epoch.
    pub fn batches(&self) -> u64 {
        self.attached.batches
    }

    /// Samples of the split.
    pub fn samples(&self) -> u32 {
        self.attached.samples
    }

    /// The classes, in the order of their labels.
    pub fn classes(&self) -> &[Class] {
        &self.attached.classes
    }

    /// Where images have several labels: the sets of classes that `label_a` and `label_b` number; else empty, and these are classes.
    pub fn label_sets(&self) -> &[LabelSet] {
        &self.attached.label_sets
    }

    /// Hash of everything beside its spec that the feed's bytes depend on: the data set's paths, decoder, resize, mixer, version.
    pub fn identity(&self) -> u64 {
        self.attached.identity
    }

    /// The mixer that digests name.
    pub fn mixer(&self) -> &str {
        &self.attached.mixer
    }

    /// The daemon's process id.
    pub fn daemon_pid(&self) -> u32 {
        self.attached.pid
    }
}

/// Iterator over the rest of an epoch.
pub struct Epoch<'a> {
    feed: &'a mut Feed,
    number: Option<u64>,
    over: bool,
}

impl Iterator for Epoch<'_> {
    type Item = Result<Batch, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let batch = self.feed.next_batch();
        self.over = batch.as_ref().map_or(true, |batch| batch.view().ends_epoch());
        match batch {
            // The end of the epoch was skipped.
            Ok(batch) if *self.number.get_or_insert(batch.place().epoch) != batch.place().epoch => {
                self.over = true;
                self.feed.place = batch.place();
                self.feed.ahead = Some(batch);
                None
            }
            batch => Some(batch),
        }
    }
}

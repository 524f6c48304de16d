//! An attached feed: a thread that keeps the control stream open, and a reader of the ring.

use super::call::{connect, runtime};
use super::{Batch, ClientError};
use crate::config::FeedSpec;
use crate::control::proto::{AttachRequest, Attached, Class};
use crate::control::{spec_to_proto, versions};
use crate::ring::{Next, RingReader};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use tokio::sync::oneshot;
use tokio_stream::StreamExt;

/// A feed that this process reads. Dropping it detaches. Batches that are still held stay readable: their memory stays mapped,
/// and nobody writes it any more.
pub struct Feed {
    reader: RingReader,
    attached: Attached,
    socket: PathBuf,
    close: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Opens a private feed on the daemon behind `socket`.
///
/// # Errors
/// When no daemon answers, versions differ, or the spec is refused.
pub fn attach(socket: &Path, spec: &FeedSpec) -> Result<Feed, ClientError> {
    let (close, closed) = oneshot::channel();
    let (opened, opening) = mpsc::sync_channel(1);
    let request =
        AttachRequest { versions: Some(versions()), spec: Some(spec_to_proto(spec)), pid: std::process::id() };
    let path = socket.to_owned();
    let runtime = runtime()?;
    let run = move || runtime.block_on(keep_open(&path, request, &opened, closed));
    let thread = std::thread::Builder::new().name("mixd-client".to_owned()).spawn(run).map_err(ClientError::Start)?;
    let (attached, reader) = opening.recv().map_err(|_| ClientError::DaemonGone(socket.to_owned()))??;
    Ok(Feed { reader, attached, socket: socket.to_owned(), close: Some(close), thread: Some(thread) })
}

type Opened = Result<(Attached, RingReader), ClientError>;

/// Attaches, reports how that went, and holds the streams until either side ends them.
async fn keep_open(
    socket: &Path,
    request: AttachRequest,
    opened: &mpsc::SyncSender<Opened>,
    closed: oneshot::Receiver<()>,
) {
    let attach = async {
        let mut client = connect(socket).await?;
        let refused = |status| ClientError::from_status(socket, &status);
        // The request stream stays open after its one message, for as long as the feed.
        let outbound = tokio_stream::once(request).chain(tokio_stream::pending());
        let mut inbound = client.attach(outbound).await.map_err(refused)?.into_inner();
        let attached = inbound.message().await.map_err(refused)?;
        let attached = attached.ok_or_else(|| ClientError::DaemonGone(socket.to_owned()))?;
        let reader = RingReader::open(Path::new(&attached.data_path), Path::new(&attached.cursor_path))?;
        Ok((attached, reader, inbound))
    };
    match attach.await {
        Err(error) => {
            let _ = opened.send(Err(error));
        }
        Ok((attached, reader, mut inbound)) => {
            let give_up = reader.give_up_handle();
            if opened.send(Ok((attached, reader))).is_ok() {
                tokio::select! {
                    _ = closed => {}
                    _ = inbound.message() => give_up.give_up(),
                }
            }
        }
    }
}

impl Feed {
    /// Waits for the next batch of the endless sequence.
    ///
    /// # Errors
    /// When the feed ended or the daemon is gone, after everything published was read; or when this trainer itself holds
    /// every slot.
    pub fn next_batch(&mut self) -> Result<Batch, ClientError> {
        match self.reader.next_batch()? {
            Next::Batch(batch) => Ok(batch),
            Next::Ended { reason, .. } => Err(ClientError::Ended(reason)),
            Next::GaveUp => Err(ClientError::DaemonGone(self.socket.clone())),
        }
    }

    /// The batches up to the end of the current epoch.
    pub fn epoch(&mut self) -> Epoch<'_> {
        Epoch { feed: self, over: false }
    }

    /// Whether the next batch is there already.
    pub fn is_ready(&self) -> bool {
        self.reader.is_ready()
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

    /// The daemon's process id.
    pub fn daemon_pid(&self) -> u32 {
        self.attached.pid
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        // Dropping the sender ends the thread's wait.
        self.close = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Iterator over the rest of an epoch.
pub struct Epoch<'a> {
    feed: &'a mut Feed,
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
        Some(batch)
    }
}

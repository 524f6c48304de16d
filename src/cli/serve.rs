//! `mixd serve`: the daemon.

use super::options::{DataArgs, PipelineArgs, SocketArgs};
use crate::control::{Daemon, Home, serve, serve_metrics};
use crate::pipeline::Pipeline;
use crate::spec::RecipeChoice;
use crate::types::Split;
use anyhow::Context;
use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// Serve a data set to trainers on this machine.
#[derive(Debug, Args)]
pub struct Serve {
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    socket: SocketArgs,
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Recipe of feeds that name none: a name that `mixd recipe` lists, or a .toml file [default: lesson].
    #[arg(long, env = "MIXD_RECIPE", value_name = "NAME|FILE.toml")]
    recipe: Option<RecipeChoice>,
    /// The tmpfs for batches.
    #[arg(long, env = "MIXD_SHM_DIR", default_value = "/dev/shm")]
    shm_dir: PathBuf,
    /// Also answer HTTP requests here with figures for Prometheus, e.g. 127.0.0.1:9465.
    #[arg(long, env = "MIXD_METRICS", value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
    /// End when standard input ends: for a daemon that belongs to one process.
    #[arg(long, hide = true)]
    until_eof: bool,
}

impl Serve {
    pub fn run(self) -> anyhow::Result<()> {
        let options = self.pipeline.options()?;
        let recipe = self.recipe.as_ref().map(RecipeChoice::load).transpose()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            // Its threads open and close feeds. The first, which starts the pipeline, stays: one that comes later may be refused.
            .thread_keep_alive(Duration::from_secs(u32::MAX.into()))
            .build()
            .context("cannot start the control plane")?;
        // From here on signals wait for their turn, so that whatever is made is removed again.
        let stop = {
            let _context = runtime.enter();
            stop_signal(self.until_eof)?
        };
        raise_descriptor_limit();
        let home = Home::take(&self.socket.path(), &self.shm_dir)?;
        let served = runtime.block_on(async {
            let mut stop = std::pin::pin!(stop);
            let (data, options) = (self.data, options);
            let start = tokio::task::spawn_blocking(move || {
                let source = data.open()?;
                Pipeline::start(source, options).context("cannot start the decoders")
            });
            let pipeline = tokio::select! {
                pipeline = start => pipeline.context("the start failed")??,
                _ = &mut stop => return Ok(()),
            };
            let source = pipeline.source();
            let (train, val) = (source.len(Split::Train), source.len(Split::Val));
            let what = format!("{} ({train} train, {val} val, {} classes)", source.location(), source.classes().len());
            let daemon = Arc::new(Daemon::new(pipeline, home.shm_dir().to_owned(), recipe.as_ref()));
            let listener = UnixListener::bind(home.socket())
                .with_context(|| format!("cannot listen on {}", home.socket().display()))?;
            std::fs::set_permissions(home.socket(), PermissionsExt::from_mode(0o600))?;
            if let Some(address) = self.metrics {
                let listener = TcpListener::bind(address)
                    .await
                    .with_context(|| format!("cannot listen on {address} (--metrics)"))?;
                tokio::spawn(serve_metrics(listener, Arc::clone(&daemon)));
            }
            // The one line on standard output: who started us may wait for it, or may have closed it.
            let line = format!("mixd: serving {what} on {} (pid {})", home.socket().display(), std::process::id());
            let _ = writeln!(std::io::stdout(), "{line}");
            serve(listener, daemon, stop).await.context("the control plane failed")
        });
        runtime.shutdown_timeout(Duration::from_secs(1));
        drop(home);
        served
    }
}

/// Takes what the machine grants of file descriptors: a feed takes four, and what is usual at first is 1,024.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Resolves to the reason for which the daemon is to stop.
fn stop_signal(until_eof: bool) -> anyhow::Result<impl Future<Output = &'static str>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let (ended, end) = oneshot::channel::<()>();
    if until_eof {
        // A plain thread, since a blocked read of standard input would hold up the runtime's end.
        std::thread::spawn(move || {
            let mut sink = [0; 64];
            while std::io::stdin().read(&mut sink).is_ok_and(|bytes| bytes > 0) {}
            drop(ended);
        });
    } else {
        std::mem::forget(ended);
    }
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "the daemon was stopped (SIGTERM)",
            _ = interrupt.recv() => "the daemon was stopped (Ctrl-C)",
            _ = hangup.recv() => "the daemon was stopped (its terminal was closed)",
            _ = end => "the process that the daemon belongs to has ended",
        }
    })
}

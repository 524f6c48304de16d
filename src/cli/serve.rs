//! `mixd serve`: the daemon.

use super::options::{DataArgs, PipelineArgs, SocketArgs};
use super::service;
use crate::control::{Daemon, Home, Owners, SocketError, serve};
use crate::decode::JPEG_DECODER_COST;
use crate::escape::escaped;
use crate::pipeline::Pipeline;
use crate::spec::RecipeChoice;
use crate::types::Split;
use crate::web::{Site, serve_metrics, serve_page};
use anyhow::Context;
use clap::{Args, ValueEnum};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long a job's daemon waits for one that the job had before, and that is ending.
const HANDOVER_MAX: Duration = Duration::from_secs(10);
const HANDOVER_PAUSE: Duration = Duration::from_millis(20);

/// File descriptors without which no daemon is started: it would have none for feeds and images.
const DESCRIPTORS_MIN: u64 = 32;

/// How lines of the log are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

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
    /// Also serve /metrics for Prometheus, /healthz and /readyz over HTTP here, e.g. 127.0.0.1:9465.
    #[arg(long, env = "MIXD_METRICS", value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
    /// Also serve a live page over HTTP: the last batch, rates, stages, trainers; --web alone is --web 127.0.0.1:9466. Whoever reaches the address
    /// sees the images.
    #[arg(long, env = "MIXD_WEB", value_name = "ADDRESS:PORT", num_args = 0..=1, default_missing_value = "127.0.0.1:9466")]
    web: Option<SocketAddr>,
    /// How the log is written on standard error: text, or json (one object a line).
    #[arg(long, env = "MIXD_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// End when standard input ends: for a daemon that belongs to one process.
    #[arg(long, hide = true)]
    until_eof: bool,
    /// With --until-eof: seconds for which a daemon whose owners have died waits for others, while their launcher runs.
    #[arg(long, hide = true, default_value_t = 0.0, value_name = "SECONDS")]
    linger: f64,
    /// With --until-eof: sent to owners that join, so that they know what is served.
    #[arg(long, hide = true, default_value = "", value_name = "KEY")]
    key: String,
}

impl Serve {
    pub fn run(self) -> anyhow::Result<()> {
        let options = self.pipeline.options()?;
        let recipe = self.recipe.as_ref().map(RecipeChoice::load).transpose()?;
        raise_descriptor_limit()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            // Its threads open and close feeds. The first, which starts the pipeline, stays: one that comes later may be refused.
            .thread_keep_alive(Duration::from_secs(u32::MAX.into()))
            .build()
            .context("cannot start the control plane")?;
        // From here on signals wait for their turn, so that whatever is made is removed again.
        let stop = {
            let _context = runtime.enter();
            stop_signal()?
        };
        let owners = Owners::of(&self.key);
        let linger = Duration::try_from_secs_f64(self.linger).context("--linger is a number of seconds")?;
        if !linger.is_zero() && self.pipeline.cpus.is_none() {
            // `mpirun` and `srun` bind each rank to processors of its own, and this daemon serves all ranks.
            crate::cpus::unbind();
        }
        if self.until_eof {
            owners.add_stdin().context("cannot watch standard input (--until-eof)")?;
        }
        let home = take_home(&self.socket.path(), if linger.is_zero() { Duration::ZERO } else { HANDOVER_MAX })?;
        let served = runtime.block_on(async {
            let mut stop = std::pin::pin!(stop);
            let gone = async |linger| {
                if self.until_eof {
                    owners.gone(linger).await
                } else {
                    std::future::pending().await
                }
                "the process that the daemon belongs to has ended"
            };
            // Before the data set is opened, which may take minutes: probes get an answer.
            let site = Site::default();
            let listen = async |address, option| {
                TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} ({option})"))
            };
            if let Some(address) = self.metrics {
                tokio::spawn(serve_metrics(listen(address, "--metrics").await?, Arc::clone(&site)));
            }
            if let Some(address) = self.web {
                let listener = listen(address, "--web").await?;
                tracing::info!("the live page is at http://{}/", listener.local_addr()?);
                tokio::spawn(serve_page(listener, Arc::clone(&site)));
            }
            // A daemon of a trainer's own is none of its service manager's.
            let is_service = !self.until_eof;
            if is_service {
                service::starting().await;
            }
            let (data, options) = (self.data, options);
            let start = tokio::task::spawn_blocking(move || {
                let source = data.open()?;
                Pipeline::start(source, options).context("cannot start the decoders")
            });
            let pipeline = tokio::select! {
                pipeline = start => pipeline.context("the start failed")??,
                _ = &mut stop => return Ok(()),
                // Others cannot have joined yet: the next of them starts another.
                _ = gone(Duration::ZERO) => return Ok(()),
            };
            if let Some(cost) = JPEG_DECODER_COST {
                tracing::warn!("{cost}");
            }
            let source = pipeline.source();
            let (train, val) = (source.len(Split::Train), source.len(Split::Val));
            let what = format!("{} ({train} train, {val} val, {} classes)", source.location(), source.classes().len());
            let daemon = Arc::new(Daemon::new(pipeline, recipe.as_ref()));
            let listener = UnixListener::bind(home.socket())
                .with_context(|| format!("cannot listen on {}", escaped(&home.socket())))?;
            std::fs::set_permissions(home.socket(), PermissionsExt::from_mode(0o600))?;
            let _ = site.set(Arc::clone(&daemon));
            if is_service {
                tokio::spawn(service::ready(Arc::clone(&daemon)));
            }
            // The one line on standard output: who started us may wait for it, or may have closed it.
            let line = format!("mixd: serving {what} on {} (pid {})", escaped(&home.socket()), std::process::id());
            let _ = writeln!(std::io::stdout(), "{line}");
            let stop = async {
                tokio::select! {
                    reason = stop => reason,
                    reason = gone(linger) => reason,
                }
            };
            let stopping = async |reason| {
                if is_service {
                    service::stopping(reason).await;
                }
            };
            serve(listener, daemon, owners.clone(), stop, stopping).await.context("the control plane failed")
        });
        runtime.shutdown_timeout(Duration::from_secs(1));
        drop(home);
        served
    }
}

/// Takes the daemon's places, and waits for a daemon that is about to leave them.
fn take_home(socket: &Path, patience: Duration) -> Result<Home, SocketError> {
    let since = Instant::now();
    loop {
        match Home::take(socket) {
            Err(SocketError::Occupied { .. }) if since.elapsed() < patience => std::thread::sleep(HANDOVER_PAUSE),
            taken => return taken,
        }
    }
}

/// Takes what the machine grants of file descriptors: a feed takes four, and what is usual at first is 1,024.
fn raise_descriptor_limit() -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    match getrlimit(Resource::Nofile).current {
        Some(count) if count < DESCRIPTORS_MIN => {
            anyhow::bail!(
                "this process may open {count} files, and a daemon needs {DESCRIPTORS_MIN} (raise `ulimit -n`)"
            )
        }
        _ => Ok(()),
    }
}

/// Resolves to the signal for which the daemon is to stop. Those that it was started to ignore, by nohup or by a shell that started it in the
/// background, stay ignored.
fn stop_signal() -> anyhow::Result<impl Future<Output = &'static str>> {
    let listen = |kind: SignalKind| {
        let is_ignored = super::signals::is_ignored(kind.as_raw_value());
        (!is_ignored).then(|| signal(kind)).transpose()
    };
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut hangup = listen(SignalKind::hangup())?;
    let next = async |signal: &mut Option<Signal>| match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    };
    Ok(async move {
        tokio::select! {
            () = next(&mut terminate) => "the daemon was stopped (SIGTERM)",
            () = next(&mut interrupt) => "the daemon was stopped (Ctrl-C)",
            () = next(&mut hangup) => "the daemon was stopped (its terminal was closed)",
        }
    })
}

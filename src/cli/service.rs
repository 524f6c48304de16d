//! What a service manager is told of a daemon, by systemd's protocol (sd_notify(3)); nothing without `NOTIFY_SOCKET`.

use crate::control::Daemon;
use sd_notify::NotifyState;
use std::sync::Arc;
use std::time::Duration;

/// How often the status line is sent, where the watchdog does not ask for more.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);

/// Notifies in a thread of its own: neither a manager that does not read nor a status that takes long must hold up the control plane.
async fn notify(notify: impl FnOnce() -> std::io::Result<()> + Send + 'static) {
    if let Ok(Err(error)) = tokio::task::spawn_blocking(notify).await {
        tracing::debug!("the service manager cannot be notified: {error}");
    }
}

/// Tells that the daemon starts.
pub async fn starting() {
    notify(|| sd_notify::notify(&[NotifyState::Status("indexing the data set")])).await;
}

/// Tells that the daemon is ready, and then, until the runtime ends, what bounds its trainers and that its control plane is alive: twice in the
/// watchdog's time.
pub async fn ready(daemon: Arc<Daemon>) {
    let watchdog = sd_notify::watchdog_enabled();
    let interval =
        watchdog.map_or(STATUS_INTERVAL, |time| (time / 2).clamp(Duration::from_millis(10), STATUS_INTERVAL));
    let mut ticks = tokio::time::interval(interval);
    let mut ready = true;
    loop {
        ticks.tick().await;
        let daemon = Arc::clone(&daemon);
        notify(move || {
            let verdict = daemon.status().verdict.map_or(String::new(), |verdict| verdict.text);
            let mut states = vec![NotifyState::Status(&verdict)];
            states.extend(ready.then_some(NotifyState::Ready));
            states.extend(watchdog.is_some().then_some(NotifyState::Watchdog));
            sd_notify::notify(&states)
        })
        .await;
        ready = false;
    }
}

/// Tells that the daemon stops, and why.
pub async fn stopping(reason: &'static str) {
    notify(move || sd_notify::notify(&[NotifyState::Stopping, NotifyState::Status(reason)])).await;
}

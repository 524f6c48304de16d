//! What a service manager is told of a daemon, by systemd's protocol (sd_notify(3)); nothing without `NOTIFY_SOCKET`.

use crate::control::Daemon;
use sd_notify::NotifyState;
use std::sync::Arc;
use std::time::Duration;

/// How often the status line is sent, where the watchdog does not ask for more.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);

/// Sends a state, in a thread of its own: a manager that does not read must not hold up the control plane.
async fn send(ready: bool, watchdog: bool, status: String) {
    let send = move || {
        let mut states = vec![NotifyState::Status(&status)];
        states.extend(ready.then_some(NotifyState::Ready));
        states.extend(watchdog.then_some(NotifyState::Watchdog));
        sd_notify::notify(&states)
    };
    if let Ok(Err(error)) = tokio::task::spawn_blocking(send).await {
        tracing::debug!("the service manager cannot be notified: {error}");
    }
}

/// Tells that the daemon starts.
pub async fn starting() {
    send(false, false, "indexing the data set".to_owned()).await;
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
        let verdict = daemon.status().verdict.map_or(String::new(), |verdict| verdict.text);
        send(ready, watchdog.is_some(), verdict).await;
        ready = false;
    }
}

/// Tells that the daemon stops, and why.
pub async fn stopping(reason: &'static str) {
    let send = move || sd_notify::notify(&[NotifyState::Stopping, NotifyState::Status(reason)]);
    let _ = tokio::task::spawn_blocking(send).await;
}

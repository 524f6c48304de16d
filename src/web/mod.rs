//! What a daemon answers over HTTP: metrics, health and readiness, and the live page.

mod batch;
mod laws;
mod metrics;
mod page;

use crate::control::{DESCRIPTOR_PAUSE, Daemon};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// The most time for the head of a request, and for all of it with its answer.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// The most connections at a time: they must not take the descriptors that feeds and images need.
const CONNECTIONS_MAX: usize = 32;

/// The daemon, once its data set is indexed. Listeners are open before, so that probes get an answer.
pub type Site = Arc<OnceLock<Arc<Daemon>>>;

/// Answers requests for metrics, health and readiness until the runtime ends; every other path is not found.
pub async fn serve_metrics(listener: TcpListener, site: Site) {
    serve(listener, probes().with_state(site)).await;
}

/// Answers requests for the live page until the runtime ends, and what [`serve_metrics`] does.
pub async fn serve_page(listener: TcpListener, site: Site) {
    let is_local = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
    serve(listener, probes().with_state(Arc::clone(&site)).merge(page::routes(site, is_local))).await;
}

fn probes() -> Router<Site> {
    Router::new()
        .route(
            "/metrics",
            get(|State(site): State<Site>| async move {
                let made = tokio::task::spawn_blocking(move || metrics::text(site.get().map(|daemon| &**daemon)));
                made.await.map_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response(), text)
            }),
        )
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(|State(site): State<Site>| async move { readiness(&site) }))
}

/// Whether trainers may attach.
fn readiness(site: &Site) -> Response {
    match site.get() {
        None => (StatusCode::SERVICE_UNAVAILABLE, "indexing the data set\n").into_response(),
        Some(daemon) if daemon.is_draining() => (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response(),
        Some(_) => "ready\n".into_response(),
    }
}

/// Prometheus's text format.
fn text(body: String) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], body).into_response()
}

/// Answers each connection's one request. A connection that is closed early, or sends no request in time, is no error of the daemon's.
async fn serve(listener: TcpListener, router: Router) {
    let mut http = http1::Builder::new();
    http.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let service = TowerToHyperService::new(router.clone());
                // The next one waits in the kernel's queue.
                let place = Arc::clone(&places).acquire_owned().await;
                let connection = http.serve_connection(TokioIo::new(stream), service);
                tokio::spawn(async move {
                    let _place = place;
                    let _ = tokio::time::timeout(REQUEST_TIMEOUT, connection).await;
                });
            }
            Err(error) => {
                tracing::debug!("a connection over HTTP waits: {error}");
                tokio::time::sleep(DESCRIPTOR_PAUSE).await;
            }
        }
    }
}

//! The live page: one document with its style and script, and the data that it asks for. It reads, and changes nothing.

use super::Site;
use super::batch::{self, Sheet};
use super::laws;
use crate::control::Daemon;
use crate::types::Place;
use axum::Json;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// A sheet serves for so long: drawing takes time that decoding needs, too.
const SHEET_TIME: Duration = Duration::from_millis(1_500);

const SECURITY: [(header::HeaderName, &str); 5] = [
    (header::CONTENT_SECURITY_POLICY, "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
];

/// A sheet, and when it was asked for.
type LastSheet = Option<(Instant, Arc<Sheet>)>;

/// What requests share.
#[derive(Clone)]
struct Page {
    site: Site,
    /// Whether requests come from this machine alone.
    is_local: bool,
    /// Held by whoever draws: one at a time, and the others wait without a thread.
    drawing: Arc<Semaphore>,
    sheet: Arc<Mutex<LastSheet>>,
}

/// The page and its data; on a loopback address, for hosts of that name only.
pub fn routes(site: Site, is_local: bool) -> Router {
    let asset = |kind: &'static str, text: &'static str| {
        get(async move |State(page): State<Page>, headers: HeaderMap| {
            page.answer(&headers, || Ok(([(header::CONTENT_TYPE, kind)], text)))
        })
    };
    Router::new()
        .route("/", asset("text/html; charset=utf-8", include_str!("page/index.html")))
        .route("/page.css", asset("text/css; charset=utf-8", include_str!("page/page.css")))
        .route("/page.js", asset("text/javascript; charset=utf-8", include_str!("page/page.js")))
        .route(
            "/api/status",
            get(async |State(page): State<Page>, headers: HeaderMap| {
                page.work(headers, |page| Ok(Json(status(page.daemon()?)))).await
            }),
        )
        .route(
            "/api/feeds/{feed}/batch",
            get(async |State(page): State<Page>, Path(feed): Path<u64>, headers: HeaderMap| {
                page.work(headers, move |page| {
                    Ok(Json(page.sheet(feed, None)?.map_or(Value::Null, |sheet| sheet.description.clone())))
                })
                .await
            }),
        )
        .route(
            "/api/feeds/{feed}/batches/{epoch}/{index}",
            get(async |State(page): State<Page>, Path((feed, epoch, index)), headers: HeaderMap| {
                page.work(headers, move |page| {
                    let sheet = page.sheet(feed, Some(Place { epoch, index }))?;
                    let sheet = sheet.ok_or_else(|| not_found("nothing is published yet".to_owned()))?;
                    Ok(([(header::CONTENT_TYPE, "image/png")], sheet.png.clone()))
                })
                .await
            }),
        )
        .route(
            "/api/feeds/{feed}/laws",
            get(async |State(page): State<Page>, Path(feed): Path<u64>, headers: HeaderMap| {
                page.work(headers, move |page| {
                    let daemon = page.daemon()?;
                    let published = batch::published(daemon, feed).map_err(not_found)?;
                    let laws = published.map_or(Ok(Value::Null), |published| laws::laws(daemon, &published));
                    laws.map(Json).map_err(not_found)
                })
                .await
            }),
        )
        .with_state(Page { site, is_local, drawing: Arc::new(Semaphore::new(1)), sheet: Arc::default() })
}

/// An answer that is none.
type Refused = (StatusCode, String);

fn not_found(why: String) -> Refused {
    (StatusCode::NOT_FOUND, why)
}

impl Page {
    /// Answers, unless a page of another site has its name point to this machine (DNS rebinding).
    fn answer<T: IntoResponse>(&self, headers: &HeaderMap, make: impl FnOnce() -> Result<T, Refused>) -> Response {
        if self.is_local && !headers.get(header::HOST).and_then(|host| host.to_str().ok()).is_some_and(is_local_name) {
            return (StatusCode::FORBIDDEN, "this page is for browsers on its machine: open it by its address")
                .into_response();
        }
        if headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site") {
            return (StatusCode::FORBIDDEN, "this page answers no other site").into_response();
        }
        (SECURITY, make()).into_response()
    }

    /// The same, in a thread that may work for longer.
    async fn work<T: IntoResponse + Send + 'static>(
        self,
        headers: HeaderMap,
        make: impl FnOnce(&Self) -> Result<T, Refused> + Send + 'static,
    ) -> Response {
        // Fails only where the semaphore is closed, which nobody does.
        let turn = Arc::clone(&self.drawing).acquire_owned().await;
        let work = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            self.answer(&headers, || make(&self))
        });
        work.await.unwrap_or_else(|panic| (StatusCode::INTERNAL_SERVER_ERROR, panic.to_string()).into_response())
    }

    fn daemon(&self) -> Result<&Daemon, Refused> {
        let indexing = || (StatusCode::SERVICE_UNAVAILABLE, "indexing the data set".to_owned());
        self.site.get().map(|daemon| &**daemon).ok_or_else(indexing)
    }

    /// The sheet of a batch of a feed, by default of its last, or of one that was its last a moment ago; `None` before its first.
    fn sheet(&self, feed: u64, place: Option<Place>) -> Result<Option<Arc<Sheet>>, Refused> {
        let daemon = self.daemon()?;
        let mut last = self.sheet.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(published) = batch::published(daemon, feed).map_err(not_found)? else { return Ok(None) };
        let is_recent = |since: &Instant, sheet: &Sheet| match place {
            Some(place) => place == sheet.place,
            None => since.elapsed() < SHEET_TIME || sheet.place == published.last,
        };
        if let Some((since, sheet)) = &*last
            && sheet.feed == feed
            && is_recent(since, sheet)
        {
            return Ok(Some(Arc::clone(sheet)));
        }
        let sheet = batch::sheet(daemon, &published, place.unwrap_or(published.last)).map_err(not_found)?;
        let sheet = Arc::new(sheet);
        *last = Some((Instant::now(), Arc::clone(&sheet)));
        Ok(Some(sheet))
    }
}

/// Whether a Host header names this machine by an address or as localhost.
fn is_local_name(host: &str) -> bool {
    let name = host
        .rsplit_once(':')
        .filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()))
        .map_or(host, |(name, _)| name);
    name == "localhost" || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
}

fn status(daemon: &Daemon) -> Value {
    json!({"status": daemon.status().to_json(), "history": daemon.series()})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_other_names_are_none_of_this_machine() {
        for host in ["localhost", "localhost:9466", "127.0.0.1", "127.0.0.1:9466", "[::1]:9466", "[::1]"] {
            assert!(is_local_name(host), "{host}");
        }
        for host in ["example.com", "example.com:9466", "localhost.example.com", "127.0.0.1.nip.io:80", ""] {
            assert!(!is_local_name(host), "{host}");
        }
    }
}

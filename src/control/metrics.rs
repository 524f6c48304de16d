//! Figures for Prometheus: every HTTP request is answered with the daemon's counters as text.

use super::connections::DESCRIPTOR_PAUSE;
use super::daemon::Daemon;
use crate::status::{Feed, Sources, Stage, Status, Store, Trainer};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// A request may take this long and be this large; whoever asks for more is not a scraper.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(5);
const REQUEST_BYTES_MAX: u64 = 16 << 10;

/// Answers until the runtime ends.
pub async fn serve_metrics(listener: TcpListener, daemon: Arc<Daemon>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let daemon = Arc::clone(&daemon);
                // Whoever hangs up early has no use for an error.
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(REQUEST_TIME_MAX, answer(stream, &daemon)).await;
                });
            }
            Err(error) => {
                tracing::debug!("a request for metrics waits: {error}");
                tokio::time::sleep(DESCRIPTOR_PAUSE).await;
            }
        }
    }
}

async fn answer(mut stream: TcpStream, daemon: &Daemon) -> std::io::Result<()> {
    let (read, mut write) = stream.split();
    let mut lines = BufReader::new(read.take(REQUEST_BYTES_MAX)).lines();
    // The head of the request, to its empty line; it has no body.
    while lines.next_line().await?.is_some_and(|line| !line.is_empty()) {}
    let body = text(&daemon.status());
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    write.write_all(head.as_bytes()).await?;
    write.write_all(body.as_bytes()).await?;
    write.shutdown().await
}

fn text(status: &Status) -> String {
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, help: &str, values: Vec<(String, f64)>| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "# HELP mixd_{name} {help}\n# TYPE mixd_{name} {kind}");
        for (labels, value) in values {
            let _ = writeln!(out, "mixd_{name}{labels} {value}");
        }
    };
    let plain = |value: f64| vec![(String::new(), value)];
    family("cpu_seconds_total", "counter", "Processor time of the daemon.", plain(status.cpu_s));
    family("peak_resident_bytes", "gauge", "Largest resident set so far.", plain(status.peak_rss_bytes as f64));
    family("bad_samples", "gauge", "Images that could not be decoded.", plain(status.bad_samples.len() as f64));
    let warnings = plain(status.decode_warnings as f64);
    family("decode_warnings_total", "counter", "Images decoded with a warning, each counted once.", warnings);
    if let Some(fetched) = status.fetched {
        let mut one = |name, kind, help, value: u64| family(name, kind, help, plain(value as f64));
        one("store_fetched_bytes_total", "counter", "Bytes that object stores sent.", fetched.bytes);
        one("store_requests_total", "counter", "Requests to object stores for blocks.", fetched.requests);
        one(
            "store_retries_total",
            "counter",
            "Requests to object stores that failed and were repeated.",
            fetched.retries,
        );
        one("disk_cache_evictions_total", "counter", "Objects evicted from the disk cache.", fetched.evictions);
        one("disk_cache_bytes", "gauge", "Bytes in the disk cache, by all daemons.", fetched.cached_bytes);
        one("disk_cache_budget_bytes", "gauge", "The most bytes that are kept in it.", fetched.budget_bytes);
    }
    family("feeds", "gauge", "Feeds that are open.", plain(status.feeds.len() as f64));
    let stages = |value: fn(&Stage) -> f64| {
        status.stages.iter().map(|stage| (format!("{{stage=\"{}\"}}", stage.name), value(stage))).collect()
    };
    family("stage_items_total", "counter", "Samples (decode) or batches done.", stages(|stage| stage.items as f64));
    family("stage_busy_seconds_total", "counter", "Time at work, over all threads.", stages(|stage| stage.busy_s));
    family("stage_waiting_in_seconds_total", "counter", "Time without work.", stages(|stage| stage.waiting_in_s));
    family(
        "stage_waiting_out_seconds_total",
        "counter",
        "Time with untaken results.",
        stages(|stage| stage.waiting_out_s),
    );
    let stores = |value: fn(&Store) -> f64| {
        let labels = |store: &Store| {
            let Store { split, size, view, .. } = store;
            format!("{{split=\"{split}\",size=\"{size}\",view=\"{view}\"}}")
        };
        status.stores.iter().map(|store| (labels(store), value(store))).collect()
    };
    family("store_samples", "gauge", "Samples decoded into the store.", stores(|store| store.decoded as f64));
    family("store_capacity_samples", "gauge", "Samples that fit.", stores(|store| f64::from(store.capacity)));
    let sources = |value: fn(&Sources) -> f64| {
        status
            .sources
            .iter()
            .map(|of| (format!("{{split=\"{}\",size=\"{}\"}}", of.split, of.size), value(of)))
            .collect()
    };
    family("sources_kept_samples", "gauge", "Decoded images kept for random views.", sources(|of| f64::from(of.kept)));
    family("sources_bytes", "gauge", "Bytes that they take.", sources(|of| of.bytes as f64));
    let feed = |feed: &Feed| format!("feed=\"{}\"", feed.feed_id);
    let published = status.feeds.iter().map(|x| (format!("{{{}}}", feed(x)), x.published as f64)).collect();
    family("feed_published_batches", "gauge", "Batches published.", published);
    let trainers = |value: fn(&Trainer) -> f64| {
        let of = |x: &Feed| {
            let feed = feed(x);
            x.trainers.clone().into_iter().map(move |one| (format!("{{{feed},pid=\"{}\"}}", one.pid), value(&one)))
        };
        status.feeds.iter().flat_map(of).collect()
    };
    family("trainer_read_batches", "gauge", "Batches read.", trainers(|one| one.read as f64));
    family("trainer_skipped_batches", "gauge", "Batches skipped.", trainers(|one| one.skipped as f64));
    family("trainer_waited_seconds", "gauge", "Time with nothing to read.", trainers(|one| one.waited_s));
    family("trainer_lag_batches", "gauge", "Batches published and not given back.", trainers(|one| one.lag as f64));
    out
}

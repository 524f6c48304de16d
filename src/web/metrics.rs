//! A daemon's counters in Prometheus's text format (version 0.0.4).

use crate::control::{Daemon, FeedKind, Histogram, Totals};
use crate::ring::bucket_max_ns;
use crate::status::{Sources, Stage, Status, Store};
use crate::verdict::Bound;
use std::fmt::{Display, Write};

/// A document of metric families.
struct Document(String);

/// A sample's labels, in the order in which they are written.
type Labels<'a> = &'a [(&'a str, &'a dyn Display)];

impl Document {
    /// Begins a family.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP mixd_{name} {help}\n# TYPE mixd_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: Labels<'_>, value: f64) {
        let escape =
            |value: &dyn Display| value.to_string().replace('\\', r"\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<String> =
            labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escape(*value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "mixd_{name}{labels} {value}");
    }

    /// A family of one sample.
    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    /// A family with a sample for each item.
    fn each<'a, T: 'a>(
        &mut self,
        (name, kind, help): (&str, &str, &str),
        items: impl IntoIterator<Item = &'a T>,
        sample: impl Fn(&mut dyn FnMut(Labels<'_>, f64), &'a T),
    ) {
        self.family(name, kind, help);
        items.into_iter().for_each(|item| sample(&mut |labels, value| self.sample(name, labels, value), item));
    }

    /// A family of histograms in seconds.
    fn histograms<'a>(
        &mut self,
        name: &str,
        help: &str,
        items: impl IntoIterator<Item = (&'a FeedKind, &'a Histogram)>,
    ) {
        self.family(name, "histogram", help);
        for (FeedKind { split, share }, Histogram { counts, sum }) in items {
            let mut total = 0;
            for (nth, count) in counts.iter().enumerate() {
                total += count;
                let bound = bucket_max_ns(nth).map_or("+Inf".to_owned(), |ns| (ns as f64 / 1e9).to_string());
                self.sample(
                    &format!("{name}_bucket"),
                    &[("split", split), ("share", share), ("le", &bound)],
                    total as f64,
                );
            }
            self.sample(&format!("{name}_sum"), &[("split", split), ("share", share)], sum.as_secs_f64());
            self.sample(&format!("{name}_count"), &[("split", split), ("share", share)], total as f64);
        }
    }
}

/// The metrics of a daemon; of one that is still indexing its data set, those of the build.
pub fn text(daemon: Option<&Daemon>) -> String {
    let mut to = Document(String::new());
    to.family("build_info", "gauge", "The build, as labels; 1.");
    let (version, decoder) = (env!("CARGO_PKG_VERSION"), crate::decode::JPEG_DECODER);
    to.sample("build_info", &[("version", &version), ("jpeg_decoder", &decoder)], 1.0);
    let is_ready = daemon.is_some_and(|daemon| !daemon.is_draining());
    to.one("ready", "gauge", "Whether trainers may attach: 1, or 0 while indexing or draining.", is_ready.into());
    if let Some(daemon) = daemon {
        let status = daemon.status();
        process(&mut to, &status);
        stages(&mut to, &status);
        caches(&mut to, &status);
        object_store(&mut to, &status);
        feeds(&mut to, daemon, &status);
    }
    to.0
}

fn process(to: &mut Document, status: &Status) {
    to.one("uptime_seconds", "gauge", "Time since the daemon's start.", status.uptime_s);
    to.one("cpu_seconds_total", "counter", "Processor time of the daemon, user and system.", status.cpu_s);
    let peak = status.peak_rss_bytes as f64;
    to.one("resident_memory_max_bytes", "gauge", "Largest resident set so far.", peak);
    to.one("decode_workers", "gauge", "Threads that read, decode and render.", status.decode_workers.into());
    let bad = status.bad_samples.len() as f64;
    to.one("bad_samples", "gauge", "Images that fail to decode; at most 1000 are listed.", bad);
    let warnings = status.decode_warnings as f64;
    to.one("decode_warnings_total", "counter", "Images decoded with a warning, each counted once.", warnings);
    to.one("images_mixed_total", "counter", "Images mixed, in whole batches.", status.mixed.images as f64);
    to.one("read_bytes_total", "counter", "Bytes of encoded images read.", status.read_bytes as f64);
}

fn stages(to: &mut Document, status: &Status) {
    type Value = fn(&Stage) -> f64;
    let families: [(&str, &str, &str, Value); 5] = [
        ("stage_items_total", "counter", "Samples (read, decode), views (render) or batches (plan, mix) done.", |s| {
            s.items as f64
        }),
        ("stage_busy_seconds_total", "counter", "Time at work, over all threads.", |s| s.busy_s),
        ("stage_waiting_in_seconds_total", "counter", "Time without input, over all threads.", |s| s.waiting_in_s),
        ("stage_waiting_out_seconds_total", "counter", "Time with output that nothing took, over all threads.", |s| {
            s.waiting_out_s
        }),
        ("stage_threads", "gauge", "Threads; read, decode and render share theirs.", |s| s.threads.into()),
    ];
    for (name, kind, help, value) in families {
        to.each((name, kind, help), &status.stages, |sample, stage| sample(&[("stage", &stage.name)], value(stage)));
    }
    let Some(verdict) = &status.verdict else { return };
    let help = "What bounds the trainers' rate now: 1 for that, 0 for the others.";
    to.each(("bottleneck", "gauge", help), Bound::ALL, |sample, bound| {
        sample(&[("bound", &bound.name())], f64::from(u8::from(verdict.bound == bound.name())));
    });
    let help =
        "Images a second more, about, that another worker brings (decode, render) or that mixd has room for (trainer).";
    to.each(("headroom_images_per_second", "gauge", help), &verdict.headroom_images_per_s, |sample, more| {
        sample(&[], *more)
    });
}

fn caches(to: &mut Document, status: &Status) {
    type OfStore = fn(&Store) -> f64;
    let stores: [(&str, &str, &str, OfStore); 3] = [
        ("view_cache_decoded_total", "counter", "Samples decoded into the cache of finished views.", |of| {
            of.decoded as f64
        }),
        ("view_cache_capacity_samples", "gauge", "Samples that fit the cache of finished views.", |of| {
            of.capacity.into()
        }),
        ("view_cache_bytes", "gauge", "Bytes of the cache of finished views when full.", |of| of.bytes as f64),
    ];
    for (name, kind, help, value) in stores {
        to.each((name, kind, help), &status.stores, |sample, of| {
            sample(&[("split", &of.split), ("size", &of.size), ("view", &of.view)], value(of));
        });
    }
    type OfSources = fn(&Sources) -> f64;
    let sources: [(&str, &str, &str, OfSources); 3] = [
        ("source_cache_decoded_total", "counter", "Samples decoded for random views.", |of| of.decoded as f64),
        ("source_cache_samples", "gauge", "Decoded images kept for random views.", |of| of.kept.into()),
        ("source_cache_bytes", "gauge", "Bytes that they take.", |of| of.bytes as f64),
    ];
    for (name, kind, help, value) in sources {
        to.each((name, kind, help), &status.sources, |sample, of| {
            sample(&[("split", &of.split), ("size", &of.size)], value(of));
        });
    }
}

fn object_store(to: &mut Document, status: &Status) {
    let Some(fetched) = status.fetched else { return };
    let mut one = |name, kind, help, value: u64| to.one(name, kind, help, value as f64);
    one("object_store_fetched_bytes_total", "counter", "Bytes that object stores sent.", fetched.bytes);
    one("object_store_requests_total", "counter", "Requests to object stores for blocks.", fetched.requests);
    one("object_store_retries_total", "counter", "Requests to object stores that were retried.", fetched.retries);
    one("disk_cache_evictions_total", "counter", "Objects evicted from the disk cache.", fetched.evictions);
    one("disk_cache_bytes", "gauge", "Bytes in the disk cache, by all daemons.", fetched.cached_bytes);
    one("disk_cache_budget_bytes", "gauge", "The most bytes that are kept in the disk cache.", fetched.budget_bytes);
}

fn feeds(to: &mut Document, daemon: &Daemon, status: &Status) {
    to.one("feeds", "gauge", "Feeds that are open.", status.feeds.len() as f64);
    let trainers: usize = status.feeds.iter().map(|feed| feed.trainers.len()).sum();
    to.one("trainers", "gauge", "Trainers that are attached.", trainers as f64);
    let totals: Vec<_> = daemon.totals().into_iter().collect();
    type Value = fn(&Totals) -> u64;
    let families: [(&str, &str, Value); 4] = [
        ("batches_published_total", "Batches published, by split and share; private feeds have no share.", |of| {
            of.published
        }),
        ("batches_read_total", "Batches read, by each trainer.", |of| of.read),
        ("batches_skipped_total", "Batches skipped (delivery latest).", |of| of.skipped),
        ("trainers_evicted_total", "Trainers evicted from shared feeds.", |of| of.evicted),
    ];
    for (name, help, value) in families {
        to.each((name, "counter", help), &totals, |sample, (FeedKind { split, share }, (of, _))| {
            sample(&[("split", split), ("share", share)], value(of) as f64);
        });
    }
    let help = "Batches published and not released, by the slowest trainer.";
    to.each(("lag_batches", "gauge", help), &totals, |sample, (FeedKind { split, share }, (_, lag))| {
        if let Some(lag) = lag {
            sample(&[("split", split), ("share", share)], *lag as f64);
        }
    });
    let waits = totals.iter().map(|(kind, (of, _))| (kind, &of.waits));
    to.histograms("wait_seconds", "How long trainers waited for each batch.", waits);
    let handovers = totals.iter().map(|(kind, (of, _))| (kind, &of.handovers));
    let help = "From the publication of a batch until a trainer that waited for it had it.";
    to.histograms("handover_seconds", help, handovers);
}

//! `mixd status`: what a daemon is doing.

use super::options::SocketArgs;
use crate::client;
use crate::status;
use crate::types::{Device, Place};
use clap::Args;
use std::fmt::Write;

/// Show what a daemon is doing.
#[derive(Debug, Args)]
pub struct Status {
    #[command(flatten)]
    socket: SocketArgs,
    /// Print one line of JSON.
    #[arg(long, env = "MIXD_JSON")]
    json: bool,
}

impl Status {
    pub fn run(self) -> anyhow::Result<()> {
        let status = client::status(&self.socket.path())?;
        let mut text = String::new();
        if self.json { writeln!(text, "{}", status.to_json()) } else { to_text(&status, &mut text) }?;
        super::print(|out| out.write_all(text.as_bytes()))
    }
}

fn to_text(s: &status::Status, out: &mut String) -> std::fmt::Result {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    writeln!(out, "mixd {} (pid {}){}", s.version, s.pid, if s.draining { ", draining" } else { "" })?;
    writeln!(out, "data     {} ({} train, {} val)", s.data, s.train_samples, s.val_samples)?;
    s.notes.iter().try_for_each(|note| writeln!(out, "note     {note}"))?;
    s.verdict.iter().try_for_each(|verdict| writeln!(out, "verdict  {}", verdict.text))?;
    writeln!(
        out,
        "process  up {:.0} s, {:.2} s of CPU, at most {:.0} MiB resident, {} decode threads ({}), mixer {}",
        s.uptime_s,
        s.cpu_s,
        mib(s.peak_rss_bytes),
        s.decode_workers,
        s.jpeg_decoder,
        s.mixer
    )?;
    for x in &s.stores {
        let devices =
            if x.device_bytes > 0 { format!(", {:.0} MiB on devices", mib(x.device_bytes)) } else { String::new() };
        writeln!(
            out,
            "store    {} {} {}: {} of {} samples decoded, room for {} ({:.0} MiB){devices}",
            x.split,
            x.size,
            x.view,
            x.decoded,
            x.samples,
            x.capacity,
            mib(x.bytes)
        )?;
    }
    for x in &s.sources {
        writeln!(
            out,
            "sources  {} {}: {} of {} images kept ({:.0} MiB)",
            x.split,
            x.size,
            x.kept,
            x.samples,
            mib(x.bytes)
        )?;
    }
    if let Some(x) = &s.fetched {
        writeln!(
            out,
            "objects  {:.0} MiB fetched by {} requests, {} retries; {:.0} of {:.0} MiB in the disk cache, {} objects evicted",
            mib(x.bytes),
            x.requests,
            x.retries,
            mib(x.cached_bytes),
            mib(x.budget_bytes),
            x.evictions
        )?;
    }
    for x in &s.stages {
        writeln!(
            out,
            "stage    {:<7} {:>9} items, {} threads, busy {:.2} s, waiting for input {:.2} s, for output {:.2} s",
            x.name, x.items, x.threads, x.busy_s, x.waiting_in_s, x.waiting_out_s
        )?;
    }
    for x in &s.feeds {
        let (spec, mib) = (&x.spec, mib(x.ring_bytes));
        let device = if spec.device == Device::Cpu { String::new() } else { format!(" on {}", spec.device) };
        let what = format!("{} in batches of {} {}{device}", spec.split, spec.batch_size, spec.dtype);
        let share = spec.share.map_or("private".to_owned(), |share| {
            format!("shared as {} ({}, at most {} s of lag)", share.name, share.delivery, share.max_lag_s)
        });
        let next = place(x.next, x.batches);
        writeln!(out, "feed     {}: {what}, {share}, {} published, next {next}, {mib:.0} MiB", x.feed_id, x.published)?;
        for one in &x.trainers {
            let evicted = if one.evicted { ", evicted" } else { "" };
            writeln!(
                out,
                "trainer  {} (pid {}) of feed {}: at {}, {} read, {} skipped, {:.2} s waited, {} behind{evicted}",
                one.name,
                one.pid,
                x.feed_id,
                place(one.place, x.batches),
                one.read,
                one.skipped,
                one.waited_s,
                one.lag
            )?;
        }
    }
    if let Some(last) = &s.last_decode_warning {
        let images = if s.decode_warnings == 1 { "image" } else { "images" };
        writeln!(out, "warned   {} {images} decoded with warnings (last: {last})", s.decode_warnings)?;
    }
    for x in &s.bad_samples {
        writeln!(out, "bad      {} {}: {}: {}", x.split, x.sample_id, x.name, x.cause)?;
    }
    Ok(())
}

fn place(Place { epoch, index }: Place, batches: u64) -> String {
    format!("epoch {epoch}, batch {index} of {batches}")
}

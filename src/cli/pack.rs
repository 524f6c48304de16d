//! `mixd pack`: a data set as shards.

use super::options::{DataArgs, size_bytes};
use crate::decode::ExifOrientation;
use crate::pack::{PackOptions, pack};
use crate::render::SourceSize;
use anyhow::ensure;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;

/// Write a data set as shards, for sequential reads and object stores.
#[derive(Debug, Args)]
pub struct Pack {
    #[command(flatten)]
    data: DataArgs,
    /// The format of the shards.
    #[arg(long, env = "MIXD_TO", default_value = "webdataset")]
    to: Format,
    /// A new folder for them.
    #[arg(long, env = "MIXD_OUT", value_name = "DIR")]
    out: PathBuf,
    /// Resize images whose short side has more pixels than this, and encode them anew as JPEG; others stay as they are.
    #[arg(long, env = "MIXD_SIZE", value_name = "full|SHORT", default_value = "full")]
    size: SourceSize,
    /// Quality of images that are encoded anew, 1 to 100; given, all images are [default: 90, of images that are resized].
    #[arg(long, env = "MIXD_QUALITY", value_parser = clap::value_parser!(u8).range(1..=100))]
    quality: Option<u8>,
    /// Whether images that are encoded anew are turned upright before, as their Exif orientation says: ignore, or apply.
    #[arg(long, env = "MIXD_EXIF", default_value = "ignore")]
    exif: ExifOrientation,
    /// About so many bytes a shard.
    #[arg(long, env = "MIXD_SHARD_SIZE", value_name = "SIZE", default_value = "512M", value_parser = size_bytes)]
    shard_size: u64,
    /// Keep the order of training samples [default: a random order, always the same, for readers that shuffle within a window].
    #[arg(long, env = "MIXD_IN_ORDER")]
    in_order: bool,
    /// Threads [default: one a processor].
    #[arg(long, env = "MIXD_WORKERS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: Option<u16>,
}

/// What is written.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// Tars of images and labels, as the package webdataset reads them.
    Webdataset,
}

impl Pack {
    pub fn run(self) -> anyhow::Result<()> {
        let Format::Webdataset = self.to;
        let source = self.data.open()?;
        let workers =
            self.workers.map_or_else(|| std::thread::available_parallelism().map_or(1, Into::into), usize::from);
        let options = PackOptions {
            size: self.size,
            quality: self.quality,
            exif: self.exif,
            shard_bytes: self.shard_size,
            in_order: self.in_order,
            workers,
        };
        let bar = ProgressBar::new(0).with_style(
            ProgressStyle::with_template("packing {wide_bar} {pos}/{len} {per_sec} {eta}").expect("a valid template"),
        );
        let mut show = |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        };
        let packed = pack(&*source, &self.out, &options, &mut show);
        bar.finish_and_clear();
        let packed = packed?;
        for bad in packed.bad.iter().take(10) {
            tracing::warn!("left out: {bad}");
        }
        let [train, val] = packed.samples;
        ensure!(train + val > 0, "no sample could be packed");
        super::print(|out| {
            let mb = packed.bytes as f64 / 1e6;
            write!(out, "{train} train and {val} val samples in {} shards, {mb:.1} MB", packed.shards)?;
            match packed.bad.len() {
                0 => writeln!(out),
                bad => writeln!(out, "; {bad} left out, which cannot be read"),
            }
        })
    }
}

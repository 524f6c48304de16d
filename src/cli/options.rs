//! Groups of options that several commands share, and how they become the domain's types.

use crate::client;
use crate::cpus::{Cpus, Workers};
use crate::decode::{DecodeKind, ExifOrientation, JPEG_DECODER};
use crate::escape::{escaped, printable};
use crate::mix::MixerKind;
use crate::pipeline::{self, OnBadImage};
use crate::render::{LoadOptions, ResizeKind, SourceSize};
use crate::source::remote::{DiskCache, StoreOptions};
use crate::source::{self, DataSet, Fraction, Progress, Selection, Source, Splits};
use crate::spec::{Delivery, FeedSpec, Share, ShareName};
use crate::types::{Device, ParseError, Start, parse_bytes};
use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::ffi::OsString;
use std::io::{self, Write};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// The data set.
#[derive(Debug, Clone, Args)]
pub struct DataArgs {
    /// An image folder, with folders of classes in train/ and, if there is one, val/, or its .tgz, .tar.zst or .tar; images with a table of labels;
    /// the folder of ILSVRC/; WebDataset shards, such as 'shards/train-{000..146}.tar', or Hugging Face's Parquet or save_to_disk, both also at s3://, gs://, az://
    /// and https:// (in builds with the feature `cloud`); cifar10:PATH, cifar100:PATH, mnist:PATH, fashion-mnist:PATH.
    // An address may be signed, and help texts show variables.
    #[arg(long, env = "MIXD_DATA", hide_env_values = true)]
    data: PathBuf,
    /// Where the splits are, such as train=training,val=/data/other [default: train, and val or what stands for it].
    #[arg(long, env = "MIXD_SPLITS", value_name = "train=PLACE,val=PLACE", hide_env_values = true)]
    splits: Option<Splits>,
    /// Labels in a .csv, .tsv or .jsonl: a file and its label or labels in each row [default: the folder's metadata.csv or metadata.jsonl].
    #[arg(long, env = "MIXD_LABELS", value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Column of the images of Parquet or Arrow tables, where more than one might be.
    #[arg(long, env = "MIXD_IMAGE_KEY", value_name = "KEY")]
    image_key: Option<String>,
    /// What holds the label: a column of a table, or a key in the json of WebDataset shards [default: label, and other usual names; of shards
    /// the field cls, else label or cls in json].
    #[arg(long, env = "MIXD_LABEL_KEY", value_name = "KEY")]
    label_key: Option<String>,
    /// Set this part of each training class aside as the validation split, where the data set has none.
    #[arg(long, env = "MIXD_HOLDOUT", value_name = "FRACTION")]
    holdout: Option<Fraction>,
    /// Use at most this many samples of each split, always the same, with classes in about their proportions.
    #[arg(long, env = "MIXD_MAX_SAMPLES", value_name = "N")]
    max_samples: Option<NonZeroU32>,
    /// Use only the samples that a file names, one a line, by their paths in the data set or their file names; a split of which it names none stays whole.
    #[arg(long, env = "MIXD_SAMPLES", value_name = "FILE")]
    samples: Option<PathBuf>,
    /// Where objects of a store are kept, and the most bytes of them, such as /scratch/mixd:200G [default: half of what is free in the cache folder].
    #[arg(long, env = "MIXD_DISK_CACHE", value_name = "DIR:SIZE")]
    disk_cache: Option<DiskCache>,
    /// Seconds for which an object store that does not answer is waited for.
    #[arg(long, env = "MIXD_STORE_TIMEOUT", value_name = "S", default_value_t = StoreOptions::TIMEOUT.as_secs_f64())]
    store_timeout: f64,
}

impl DataArgs {
    /// Opens the data set, unpacking it first if need be.
    ///
    /// An archive is unpacked with a progress bar on a terminal and a line otherwise.
    pub fn open(&self) -> anyhow::Result<Arc<dyn Source>> {
        let bar = ProgressBar::new(0).with_style(
            ProgressStyle::with_template("unpacking {wide_bar} {bytes}/{total_bytes} {eta}").expect("a valid template"),
        );
        let mut show = |progress: Progress| {
            if bar.is_hidden() && bar.position() == 0 {
                let _ = writeln!(io::stderr(), "unpacking {}", escaped(&self.data));
            }
            bar.set_length(progress.total_bytes);
            bar.set_position(progress.read_bytes);
        };
        let source = source::open(&self.set()?, &mut show);
        bar.finish_and_clear();
        let source = source?;
        for note in source.notes() {
            tracing::info!("{}: {}", source.location(), printable(note));
        }
        Ok(source)
    }

    /// The data set as it was named.
    pub fn set(&self) -> anyhow::Result<DataSet> {
        let Self { data, splits, labels, image_key, label_key, holdout, max_samples, samples, .. } = self.clone();
        let (splits, selection) = (splits.unwrap_or_default(), Selection { samples, holdout, max_samples });
        let store = self.store()?;
        Ok(DataSet { data, splits, labels, image_key, label_key, selection, store, cache_dir: None })
    }

    fn store(&self) -> anyhow::Result<StoreOptions> {
        let timeout = Duration::try_from_secs_f64(self.store_timeout);
        let timeout = timeout
            .with_context(|| format!("--store-timeout is {}: it must be a number of seconds", self.store_timeout))?;
        Ok(StoreOptions { disk_cache: self.disk_cache.clone(), timeout })
    }

    /// The same data set for a daemon of our own: options, and variables for what may be a signed address, since all users see options.
    pub fn arguments(&self) -> (Vec<OsString>, [(&'static str, OsString); 2]) {
        let Self {
            data,
            splits,
            labels,
            image_key,
            label_key,
            holdout,
            max_samples,
            samples,
            disk_cache,
            store_timeout,
        } = self;
        let texts = [
            ("image-key", image_key.clone()),
            ("label-key", label_key.clone()),
            ("holdout", holdout.map(|holdout| holdout.to_string())),
            ("max-samples", max_samples.map(|most| most.to_string())),
            ("disk-cache", disk_cache.as_ref().map(DiskCache::to_string)),
            ("store-timeout", Some(store_timeout.to_string())),
        ];
        let texts = texts.into_iter().filter_map(|(key, text)| Some(format!("--{key}={}", text?).into()));
        let paths = [("--labels", labels.as_ref()), ("--samples", samples.as_ref())];
        let paths = paths.into_iter().filter_map(|(key, path)| Some([key.into(), path?.into()]));
        let splits = splits.as_ref().map(Splits::to_string).unwrap_or_default();
        (paths.flatten().chain(texts).collect(), [("MIXD_DATA", data.into()), ("MIXD_SPLITS", splits.into())])
    }
}

/// How much memory decoded samples may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// Half of what is available at the start.
    Auto,
    /// None: every sample is decoded each time.
    Off,
    /// This many bytes.
    Bytes(u64),
}

/// The bytes of a size such as 512M or 2G.
pub fn size_bytes(text: &str) -> Result<u64, String> {
    parse_bytes(text).ok_or_else(|| format!("`{text}` is no size (use one such as 512M or 2G)"))
}

impl FromStr for Cache {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let refused = || ParseError {
            what: "cache size",
            found: text.to_owned(),
            expected: "auto, off, or a size such as 512M or 2G",
        };
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            _ => parse_bytes(text).map(Self::Bytes).ok_or_else(refused),
        }
    }
}

impl std::fmt::Display for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Off => f.write_str("off"),
            Self::Bytes(bytes) => write!(f, "{bytes}"),
        }
    }
}

impl Cache {
    /// The budget in bytes, of main memory.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Off => 0,
            Self::Bytes(bytes) => bytes,
            Self::Auto => crate::usage::available_memory(Path::new("/")).map_or(1 << 30, |bytes| bytes / 2),
        }
    }
}

/// The pipeline's set-up.
#[derive(Debug, Args)]
pub struct PipelineArgs {
    /// Decode threads; auto is one a processor, and these give way to trainers.
    #[arg(long, env = "MIXD_WORKERS", default_value = "auto")]
    pub workers: Workers,
    /// Processors to run on, such as 0-3,6 [default: all].
    #[arg(long, env = "MIXD_CPUS", value_name = "LIST")]
    pub cpus: Option<Cpus>,
    /// Memory for decoded samples: auto (half of what is available), off, or a size such as 2G; less where memory becomes short.
    #[arg(long, env = "MIXD_CACHE", default_value = "auto")]
    pub cache: Cache,
    /// Keep decoded samples over restarts, in files whose names begin with this one; a changed image or setting is decoded anew.
    #[arg(long, env = "MIXD_CACHE_FILE", value_name = "PATH")]
    pub cache_file: Option<PathBuf>,
    /// How to resize: exact (Pillow's pixels), or fast (fast_image_resize).
    #[arg(long, env = "MIXD_RESIZE", default_value = "exact")]
    pub resize: ResizeKind,
    /// How much of a JPEG to decode: full, or scaled (a fraction that covers the output; in builds with libjpeg-turbo).
    #[arg(long, env = "MIXD_DECODE", default_value = "full", value_parser = decode_kind)]
    pub decode: DecodeKind,
    /// What to do about the Exif orientation of photos: ignore (as torchvision), or apply (as Hugging Face; turns them upright).
    #[arg(long, env = "MIXD_EXIF", default_value = "ignore")]
    pub exif: ExifOrientation,
    /// What random views are rendered from: full (images as decoded), or the pixels that their short side is bounded by, such as 256.
    #[arg(long, env = "MIXD_SOURCE", value_name = "full|SHORT", default_value = "full")]
    pub source: SourceSize,
    /// What mixes: cpu, torch or cuda (the last two in builds with the feature) [default: cpu, or cuda with --device cuda].
    #[arg(long, env = "MIXD_MIXER")]
    pub mixer: Option<MixerKind>,
    /// Where to mix: cpu, cuda or cuda:N.
    #[arg(long, env = "MIXD_DEVICE", default_value = "cpu")]
    pub device: Device,
    /// Memory for decoded samples on each CUDA device: auto (an eighth of it, and half of what is free of it), off, or a size such as 2G.
    #[arg(long, env = "MIXD_DEVICE_CACHE", default_value = "auto")]
    pub device_cache: Cache,
    /// What happens to images that cannot be decoded: substitute (another of the class), or fail.
    #[arg(long, env = "MIXD_ON_BAD_IMAGE", default_value = "substitute")]
    pub on_bad_image: OnBadImage,
}

fn decode_kind(text: &str) -> Result<DecodeKind, String> {
    match text.parse() {
        Ok(DecodeKind::Scaled) if JPEG_DECODER != "libjpeg-turbo" => {
            Err("this build has no libjpeg-turbo (build it with the feature `turbojpeg`)".to_owned())
        }
        Ok(kind) => Ok(kind),
        Err(error) => Err(ParseError::to_string(&error)),
    }
}

impl PipelineArgs {
    /// The options as the pipeline takes them; from here on the process runs where it is to.
    pub fn options(&self) -> anyhow::Result<pipeline::Options> {
        if let Some(cpus) = &self.cpus {
            cpus.pin().with_context(|| format!("cannot run on processors {cpus} (--cpus)"))?;
        }
        if self.cache_file.is_some() && self.cache == Cache::Off {
            bail!("--cache-file keeps what --cache off does not: leave one of them out");
        }
        Ok(pipeline::Options {
            workers: self.workers,
            cache_bytes: self.cache.bytes(),
            cache_file: self.cache_file.clone(),
            load: self.load(),
            mixer: self.mixer(),
            device: self.device,
            device_cache_bytes: (self.device_cache != Cache::Auto).then(|| self.device_cache.bytes()),
            on_bad_image: self.on_bad_image,
        })
    }

    /// What mixes.
    pub fn mixer(&self) -> MixerKind {
        self.mixer.unwrap_or(if self.device == Device::Cpu { MixerKind::Cpu } else { MixerKind::Cuda })
    }

    /// Where this command's own batches are to lie: on the device, if that is where they are mixed and can stay.
    pub fn batch_device(&self) -> Device {
        if self.mixer() == MixerKind::Cuda { self.device } else { Device::Cpu }
    }

    /// How files become samples.
    pub fn load(&self) -> LoadOptions {
        LoadOptions { decode: self.decode, exif: self.exif, resize: self.resize, sources: self.source }
    }

    /// The same options for a daemon of our own. To the cpu mixer the device is none of its business: it is the trainer's.
    pub fn arguments(&self) -> Vec<OsString> {
        // Without `..`, so that an option that is forgotten here does not compile.
        let Self {
            workers,
            cpus,
            cache,
            cache_file,
            resize,
            decode,
            exif,
            source,
            mixer: _,
            device: _,
            device_cache,
            on_bad_image,
        } = self;
        let device = if self.mixer() == MixerKind::Cpu { Device::Cpu } else { self.device };
        let options = [
            ("workers", workers.to_string()),
            ("cache", cache.to_string()),
            ("device-cache", device_cache.to_string()),
            ("resize", resize.to_string()),
            ("decode", decode.to_string()),
            ("exif", exif.to_string()),
            ("source", source.to_string()),
            ("mixer", self.mixer().to_string()),
            ("device", device.to_string()),
            ("on-bad-image", on_bad_image.to_string()),
        ];
        let cpus = cpus.as_ref().map(|cpus| ("cpus", cpus.to_string()));
        let mut arguments: Vec<OsString> =
            options.into_iter().chain(cpus).map(|(key, value)| format!("--{key}={value}").into()).collect();
        if let Some(path) = cache_file {
            arguments.extend(["--cache-file".into(), path.into()]);
        }
        arguments
    }
}

/// How a trainer takes part in a feed.
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// Share the feed with the trainers that name the same, with the same options: they read the same batches [default: a feed of its
    /// own].
    #[arg(long, env = "MIXD_SHARE", value_name = "NAME")]
    pub share: Option<ShareName>,
    /// Who waits for whom in a shared feed: lossless (all for the slowest) or latest (nobody; the slow skip batches).
    #[arg(long, env = "MIXD_DELIVERY", default_value = "lossless", requires = "share")]
    pub delivery: Delivery,
    /// Seconds for which a trainer of a lossless shared feed may keep others waiting before it is evicted.
    #[arg(long, env = "MIXD_MAX_LAG", value_name = "S", default_value_t = Share::MAX_LAG_S, requires = "share")]
    pub max_lag: f64,
    /// Where to begin: now, next-epoch, or EPOCH,BATCH [default: now; of a feed of its own 0,0].
    #[arg(long, env = "MIXD_START", default_value = "now", hide_default_value = true)]
    pub start: Start,
    /// Seconds to wait for a daemon that is gone to be started again.
    #[arg(long, env = "MIXD_RECONNECT", value_name = "S", default_value_t = client::RECONNECT.as_secs_f64())]
    pub reconnect: f64,
}

impl JoinArgs {
    /// The spec with these options.
    pub fn spec(&self, spec: FeedSpec) -> anyhow::Result<FeedSpec> {
        let share = self.share.map(|name| Share { name, delivery: self.delivery, max_lag_s: self.max_lag });
        let spec = FeedSpec { share, start: self.start, ..spec };
        spec.validate()?;
        Ok(spec)
    }

    /// How long to wait for a daemon that is gone.
    pub fn reconnect(&self) -> anyhow::Result<Duration> {
        let seconds = Duration::try_from_secs_f64(self.reconnect);
        seconds.with_context(|| format!("--reconnect is {}: it must be a number of seconds", self.reconnect))
    }
}

/// Which daemon.
#[derive(Debug, Args)]
pub struct SocketArgs {
    /// The daemon's socket [default: $XDG_RUNTIME_DIR/mixd/mixd.sock, else `mixd-<uid>/mixd.sock` in the temporary folder].
    #[arg(long, env = "MIXD_SOCKET")]
    pub socket: Option<PathBuf>,
}

impl SocketArgs {
    /// The socket.
    pub fn path(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(crate::client::default_socket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Parsed {
        #[command(flatten)]
        pipeline: PipelineArgs,
    }

    /// What decides about pixels reaches a command's own daemon.
    #[test]
    fn a_daemon_of_ones_own_loads_images_as_it_was_told() {
        use clap::Parser;
        for given in [&["mixd"][..], &["mixd", "--exif=apply", "--resize=fast", "--source=99"]] {
            let given = Parsed::parse_from(given).pipeline;
            let arguments = [vec!["serve".into()], given.arguments()].concat();
            assert_eq!(Parsed::parse_from(arguments).pipeline.load(), given.load());
        }
    }

    #[test]
    fn cache_sizes_are_read() {
        let sizes = [("512M", Cache::Bytes(512 << 20)), ("2GiB", Cache::Bytes(2 << 30)), ("7", Cache::Bytes(7))];
        for (text, cache) in sizes.into_iter().chain([("auto", Cache::Auto), ("off", Cache::Off)]) {
            assert_eq!(text.parse(), Ok(cache));
        }
        for text in ["", "2T", "-1", "1.5G", "99999999999G"] {
            assert!(text.parse::<Cache>().is_err(), "{text}");
        }
    }
}

//! Groups of options that several commands share, and how they become the domain's types.

use crate::client;
use crate::config::{CutMix, Delivery, FeedSpec, LambdaPer, Mix, Mixup, Pairing, Share, ShareName};
use crate::cpus::{Cpus, Workers};
use crate::dataset::{Dataset, Progress};
use crate::decode::{DecodeKind, JPEG_DECODER};
use crate::mix::MixerKind;
use crate::pipeline::{self, OnBadImage};
use crate::render::{LoadOptions, ResizeKind};
use crate::types::{Device, Dtype, ImageSize, Last, Layout, ParseError, Split, Start};
use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// The data set.
#[derive(Debug, Args)]
pub struct DataArgs {
    /// An image folder with train/ and val/, a folder a class in each; or its .tgz or .tar.
    #[arg(long, env = "MIXD_DATA")]
    pub data: PathBuf,
}

impl DataArgs {
    /// Opens the data set, unpacking it first if need be.
    pub fn open(&self) -> anyhow::Result<Dataset> {
        open_dataset(&self.data)
    }
}

/// Opens a data set; an archive is unpacked once, with a progress bar on a terminal and a line otherwise.
fn open_dataset(path: &Path) -> anyhow::Result<Dataset> {
    let bar = ProgressBar::new(0).with_style(
        ProgressStyle::with_template("unpacking {wide_bar} {bytes}/{total_bytes} {eta}").expect("a valid template"),
    );
    let mut show = |progress: Progress| {
        if bar.is_hidden() && bar.position() == 0 {
            let _ = writeln!(io::stderr(), "unpacking {}", path.display());
        }
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.read_bytes);
    };
    let dataset = Dataset::open(path, None, &mut show);
    bar.finish_and_clear();
    Ok(dataset?)
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
            _ => {
                let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
                let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
                    "" | "B" => 0,
                    "K" | "KB" | "KIB" => 10,
                    "M" | "MB" | "MIB" => 20,
                    "G" | "GB" | "GIB" => 30,
                    _ => return Err(refused()),
                };
                let number: u64 = digits.parse().map_err(|_| refused())?;
                number.checked_mul(1 << shift).map(Self::Bytes).ok_or_else(refused)
            }
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
    /// Memory for decoded samples: auto (half of what is available), off, or a size such as 2G.
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
        LoadOptions { decode: self.decode, resize: self.resize }
    }

    /// The same options for a daemon of our own. To the cpu mixer the device is none of its business: it is the trainer's.
    pub fn arguments(&self) -> Vec<OsString> {
        let device = if self.mixer() == MixerKind::Cpu { Device::Cpu } else { self.device };
        let options = [
            ("workers", self.workers.to_string()),
            ("cache", self.cache.to_string()),
            ("device-cache", self.device_cache.to_string()),
            ("resize", self.resize.to_string()),
            ("decode", self.decode.to_string()),
            ("mixer", self.mixer().to_string()),
            ("device", device.to_string()),
            ("on-bad-image", self.on_bad_image.to_string()),
        ];
        let cpus = self.cpus.as_ref().map(|cpus| ("cpus", cpus.to_string()));
        let mut arguments: Vec<OsString> =
            options.into_iter().chain(cpus).map(|(key, value)| format!("--{key}={value}").into()).collect();
        if let Some(path) = &self.cache_file {
            arguments.extend(["--cache-file".into(), path.into()]);
        }
        arguments
    }
}

/// The feed spec. What is left out has the default of the split.
#[derive(Debug, Args)]
pub struct FeedArgs {
    /// Which images: train or val.
    #[arg(long, env = "MIXD_SPLIT", default_value = "train")]
    pub split: Split,
    /// Rows a batch [default: 64 for train, 128 for val].
    #[arg(long, env = "MIXD_BATCH_SIZE")]
    pub batch_size: Option<u32>,
    /// Side of the images, or HEIGHTxWIDTH [default: 128].
    #[arg(long, env = "MIXD_SIZE")]
    pub size: Option<ImageSize>,
    /// A new order each epoch: true or false [default: true for train].
    #[arg(long, env = "MIXD_SHUFFLE")]
    pub shuffle: Option<bool>,
    /// Seed of all randomness.
    #[arg(long, env = "MIXD_SEED", default_value_t = 0)]
    pub seed: u64,
    /// Rows that do not fill a batch: keep or drop.
    #[arg(long, env = "MIXD_LAST", default_value = "keep")]
    pub last: Last,
    /// Mixup's α [default: 0.4 for train; val is mixed only if this is given].
    #[arg(long, env = "MIXD_ALPHA", conflicts_with_all = ["no_mixup", "cutmix"])]
    pub alpha: Option<f64>,
    /// CutMix instead of mixup, with this α (the paper's is 1).
    #[arg(long, env = "MIXD_CUTMIX", value_name = "ALPHA", conflicts_with_all = ["no_mixup", "no_fold", "pairing"])]
    pub cutmix: Option<f64>,
    /// Do not mix.
    #[arg(long, env = "MIXD_NO_MIXUP")]
    pub no_mixup: bool,
    /// One λ (CutMix: one box) per-image or per-batch.
    #[arg(long, env = "MIXD_LAMBDA", default_value = "per-image")]
    pub lambda: LambdaPer,
    /// Leave λ as drawn, in [0, 1], instead of max(λ, 1−λ).
    #[arg(long, env = "MIXD_NO_FOLD")]
    pub no_fold: bool,
    /// Partners from a shuffle of the batch, or from a second-batch.
    #[arg(long, env = "MIXD_PAIRING", default_value = "shuffle")]
    pub pairing: Pairing,
    /// Flip images horizontally, each with a chance of one half, anew each epoch.
    #[arg(long, env = "MIXD_FLIP")]
    pub flip: bool,
    /// Put a digest of its plan and pixels in every batch.
    #[arg(long, env = "MIXD_DIGEST")]
    pub digest: bool,
    /// Element type: f32, f16, bf16, or u8 (raw pixels).
    #[arg(long, env = "MIXD_DTYPE", default_value = "f32")]
    pub dtype: Dtype,
    /// Order of the axes: nchw or nhwc.
    #[arg(long, env = "MIXD_LAYOUT", default_value = "nchw")]
    pub layout: Layout,
    /// Mean of each channel, of values in [0, 1].
    #[arg(long, env = "MIXD_MEAN", value_delimiter = ',', default_value = "0.47,0.48,0.45")]
    pub mean: Vec<f32>,
    /// Standard deviation of each channel.
    #[arg(long, env = "MIXD_STD", value_delimiter = ',', default_value = "0.29,0.28,0.30")]
    pub std: Vec<f32>,
    /// Which of the ranks that share each epoch.
    #[arg(long, env = "MIXD_RANK", default_value_t = 0)]
    pub rank: u32,
    /// How many ranks share each epoch.
    #[arg(long, env = "MIXD_WORLD_SIZE", default_value_t = 1)]
    pub world_size: u32,
    /// Slots of the ring [default: 4].
    #[arg(long, env = "MIXD_SLOTS")]
    pub slots: Option<u32>,
}

impl FeedArgs {
    /// The feed spec that the options describe.
    pub fn spec(&self) -> anyhow::Result<FeedSpec> {
        let base = match self.split {
            Split::Train => FeedSpec::train(),
            Split::Val => FeedSpec::val(),
        };
        let channels = |name: &str, values: &[f32]| match *values {
            [r, g, b] => Ok([r, g, b]),
            _ => bail!("--{name} has {} numbers: it must have three, such as 0.47,0.48,0.45", values.len()),
        };
        let mixup =
            |alpha| Mix::Mixup(Mixup { alpha, lambda: self.lambda, fold: !self.no_fold, pairing: self.pairing });
        let spec = FeedSpec {
            batch_size: self.batch_size.unwrap_or(base.batch_size),
            image_size: self.size.unwrap_or(base.image_size),
            shuffle: self.shuffle.unwrap_or(base.shuffle),
            seed: self.seed,
            last: self.last,
            mix: match (self.no_mixup, self.cutmix, self.alpha, base.mix) {
                (true, ..) => Mix::None,
                (_, Some(alpha), ..) => Mix::CutMix(CutMix { alpha, lambda: self.lambda }),
                (_, _, Some(alpha), _) | (_, _, None, Mix::Mixup(Mixup { alpha, .. })) => mixup(alpha),
                (.., mix) => mix,
            },
            flip: self.flip,
            digest: self.digest,
            dtype: self.dtype,
            layout: self.layout,
            mean: channels("mean", &self.mean)?,
            std: channels("std", &self.std)?,
            rank: self.rank,
            world_size: self.world_size,
            slots: self.slots.unwrap_or(base.slots),
            ..base
        };
        spec.validate()?;
        Ok(spec)
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
    /// The daemon's socket [default: $XDG_RUNTIME_DIR/mixd/mixd.sock, else mixd-<uid>/mixd.sock in the temporary folder].
    #[arg(long, env = "MIXD_SOCKET")]
    pub socket: Option<PathBuf>,
}

impl SocketArgs {
    /// The socket.
    pub fn path(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(crate::control::default_socket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

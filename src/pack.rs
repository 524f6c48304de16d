//! Packing: the samples of any source as shards that WebDataset reads, images as they are or smaller.
//!
//! A shard is a tar of about [`PackOptions::shard_bytes`]; a sample is its image (`00000042.jpg`, by its content) and `00000042.cls`, the number of its
//! class, or `00000042.json` with all of them (`{"label": [3, 7]}`) where samples have several. Training samples are in a random order that is always the same, so that readers that shuffle only within a window get mixed classes. The
//! same source and options make the same bytes.

use crate::decode::{DecodeKind, Decoder, ExifOrientation, ImageError};
use crate::escape::escaped;
use crate::render::{LoadOptions, Loader, ResizeKind, SourceSize};
use crate::source::{ReadError, Source, format_of};
use crate::types::{SampleId, Split};
use jpeg_encoder::{ColorType, Encoder};
use serde_json::json;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use tar::{Builder, Header};
use xxhash_rust::xxh3::xxh3_64;

/// Samples that each thread prepares before they are written.
const SAMPLES_A_TURN: usize = 32;
/// The quality of images that are encoded anew, where none is given.
const QUALITY: u8 = 90;

/// What becomes of the samples.
#[derive(Debug, Clone, Copy)]
pub struct PackOptions {
    /// Images whose short side has more pixels are resized to it, and encoded anew.
    pub size: SourceSize,
    /// With a quality, 1 to 100, every image that is not resized is encoded anew, too.
    pub quality: Option<u8>,
    /// Whether images that are encoded anew, and lose their Exif, are turned upright before.
    pub exif: ExifOrientation,
    /// About so many bytes a shard.
    pub shard_bytes: u64,
    /// Whether training samples keep their order.
    pub in_order: bool,
    /// Threads.
    pub workers: usize,
}

/// What was written.
#[derive(Debug, Default)]
pub struct Packed {
    /// Samples of the training split, then of the validation split.
    pub samples: [u64; Split::ALL.len()],
    /// Shards of both.
    pub shards: u64,
    /// Bytes of all shards.
    pub bytes: u64,
    /// Samples that were left out, each with the reason.
    pub bad: Vec<String>,
}

/// Why nothing more is written.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The folder has files already.
    #[error("{}: is not empty (name a new folder)", escaped(.0))]
    NotEmpty(PathBuf),
    /// A sample cannot be read, which may pass.
    #[error("{name} {source} (the folder is not whole: remove it, and pack again)")]
    Read {
        /// The sample.
        name: String,
        /// Why.
        source: ReadError,
    },
    /// A system call failed.
    #[error("cannot write {}: {source}", escaped(&path))]
    Io {
        /// What.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Writes the samples of `source` to shards in the folder `out`; `progress` gets the samples done and all samples.
///
/// # Errors
/// When the folder is not empty or cannot be written to, or a sample cannot be read. Samples that are no images are left out and listed.
pub fn pack(
    source: &dyn Source,
    out: &Path,
    options: &PackOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Packed, PackError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| PackError::Io { path, source }
    };
    std::fs::create_dir_all(out).map_err(failed(out))?;
    if std::fs::read_dir(out).map_err(failed(out))?.next().is_some() {
        return Err(PackError::NotEmpty(out.to_owned()));
    }
    let total = Split::ALL.iter().map(|&split| u64::from(source.len(split))).sum();
    let (mut packed, mut splits, mut done) = (Packed::default(), serde_json::Map::new(), 0);
    let mut packers: Vec<Packer> = (0..options.workers.max(1)).map(|_| Packer::new(options)).collect();
    for &split in Split::ALL {
        let mut order: Vec<SampleId> = (0..source.len(split)).collect();
        if split == Split::Train && !options.in_order {
            order.sort_by_cached_key(|id| xxh3_64(&id.to_le_bytes()));
        }
        let mut shards = Shards::new(out, split, options.shard_bytes);
        for turn in order.chunks(SAMPLES_A_TURN * packers.len()) {
            for (image, &sample) in prepared(&mut packers, source, split, turn).into_iter().zip(turn) {
                match image? {
                    Ok(image) => shards.push(&image, source, split, sample).map_err(failed(out))?,
                    Err(cause) => packed.bad.push(format!("{}: {cause}", source.name(split, sample))),
                }
            }
            done += turn.len() as u64;
            progress(done, total);
        }
        let Written { names, lengths, bytes } = shards.finish().map_err(failed(out))?;
        let samples = lengths.iter().sum();
        packed.samples[split as usize] = samples;
        packed.shards += names.len() as u64;
        packed.bytes += bytes;
        if samples > 0 {
            let name = if split == Split::Train { "train" } else { "validation" };
            let entry = json!({"name": name, "num_samples": samples, "filenames": names, "shard_lengths": lengths});
            splits.insert(name.to_owned(), entry);
        }
    }
    let classes: Vec<&str> = source.classes().iter().map(|class| &*class.id).collect();
    let names: Vec<&str> = source.classes().iter().map(|class| &*class.name).collect();
    let info = json!({"splits": splits, "class_ids": classes, "class_names": names});
    // Last: a folder with it is whole.
    let path = out.join("_info.json");
    std::fs::write(&path, format!("{info:#}\n")).map_err(failed(&path))?;
    Ok(packed)
}

/// An image as it is written, with its ending.
struct Image {
    bytes: Vec<u8>,
    ending: &'static str,
}

/// The images of some samples, in their order.
fn prepared(
    packers: &mut [Packer],
    source: &dyn Source,
    split: Split,
    samples: &[SampleId],
) -> Vec<Result<Result<Image, String>, PackError>> {
    let each = samples.len().div_ceil(packers.len());
    let parts: Vec<_> = std::thread::scope(|scope| {
        let parts = packers.iter_mut().zip(samples.chunks(each));
        let threads: Vec<_> = parts
            .map(|(packer, part)| {
                scope.spawn(move || part.iter().map(|&sample| packer.image(source, split, sample)).collect::<Vec<_>>())
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("decoders' panics are caught")).collect()
    });
    parts.into_iter().flatten().collect()
}

/// A thread's scratch.
struct Packer {
    loader: Loader,
    size: SourceSize,
    quality: Option<u8>,
    exif: ExifOrientation,
}

impl Packer {
    fn new(options: &PackOptions) -> Self {
        let &PackOptions { size, quality, exif, .. } = options;
        let load = LoadOptions { decode: DecodeKind::Full, exif, resize: ResizeKind::Exact, sources: size };
        Self { loader: Loader::new(load), size, quality, exif }
    }

    /// A sample's image as it is to be written, or why it is none.
    fn image(
        &mut self,
        source: &dyn Source,
        split: Split,
        sample: SampleId,
    ) -> Result<Result<Image, String>, PackError> {
        let mut bytes = Vec::new();
        match source.read_waiting(split, sample, &mut bytes) {
            Ok(_) => Ok(self.encoded(bytes)),
            Err(error @ ReadError::TooLarge { .. }) => Ok(Err(error.to_string())),
            Err(error) => Err(PackError::Read { name: source.name(split, sample), source: error }),
        }
    }

    fn encoded(&mut self, bytes: Vec<u8>) -> Result<Image, String> {
        let ending = format_of(&bytes).ok_or_else(|| ImageError::UnknownFormat.to_string())?;
        if self.quality.is_none() && !self.is_larger(&bytes)? {
            return Ok(Image { bytes, ending });
        }
        let quality = self.quality.unwrap_or(QUALITY);
        let encoded = self.loader.source(&bytes, |picture, _| {
            let [width, height] = [picture.width, picture.height].map(u16::try_from);
            let (Ok(width), Ok(height)) = (width, height) else {
                return Err("is larger than a JPEG may be (65,535 pixels a side): give a smaller --size".to_owned());
            };
            let mut jpeg = Vec::with_capacity(bytes.len());
            let color = if picture.channels == 1 { ColorType::Luma } else { ColorType::Rgb };
            let values = &picture.values[..picture.width as usize * picture.height as usize * picture.channels];
            let encoder = Encoder::new(&mut jpeg, quality);
            encoder.encode(values, width, height, color).map_err(|error| format!("cannot be encoded: {error}"))?;
            Ok(jpeg)
        });
        let bytes = encoded.map_err(|error| error.to_string())??;
        Ok(Image { bytes, ending: "jpg" })
    }

    /// Whether an image is to be resized.
    fn is_larger(&self, file: &[u8]) -> Result<bool, String> {
        let SourceSize::Short(short) = self.size else { return Ok(false) };
        let size = Decoder::size(file, self.exif).map_err(|error| error.to_string())?;
        Ok(size.height.min(size.width) > short)
    }
}

/// The shards of a split.
struct Shards<'a> {
    out: &'a Path,
    split: Split,
    shard_bytes: u64,
    /// The current one, and its bytes so far.
    open: Option<(Builder<BufWriter<File>>, u64)>,
    written: Written,
}

#[derive(Default)]
struct Written {
    names: Vec<String>,
    /// Samples of each.
    lengths: Vec<u64>,
    bytes: u64,
}

impl<'a> Shards<'a> {
    fn new(out: &'a Path, split: Split, shard_bytes: u64) -> Self {
        Self { out, split, shard_bytes, open: None, written: Written::default() }
    }

    fn push(&mut self, image: &Image, source: &dyn Source, split: Split, sample: SampleId) -> io::Result<()> {
        if self.open.as_ref().is_some_and(|&(_, bytes)| bytes >= self.shard_bytes) {
            self.close()?;
        }
        if self.open.is_none() {
            let name = format!("{}-{:06}.tar", self.split, self.written.names.len());
            self.open = Some((Builder::new(BufWriter::new(File::create(self.partial(&name))?)), 0));
            self.written.names.push(name);
            self.written.lengths.push(0);
        }
        let key = format!("{:08}", self.written.lengths.iter().sum::<u64>());
        let (tar, bytes) = self.open.as_mut().expect("just made");
        let label = source.label(split, sample);
        let (field, label) = match source.label_sets() {
            Some(sets) => ("json", json!({"label": &*sets[label as usize]}).to_string()),
            None => ("cls", label.to_string()),
        };
        let fields = [(image.ending, &*image.bytes), (field, label.as_bytes())];
        for (field, content) in fields {
            let mut header = Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, format!("{key}.{field}"), content)?;
            *bytes += 512 + (content.len() as u64).next_multiple_of(512);
        }
        *self.written.lengths.last_mut().expect("just made") += 1;
        Ok(())
    }

    fn partial(&self, name: &str) -> PathBuf {
        self.out.join(format!("{name}.partial"))
    }

    /// Ends the current shard, which gets its name now that it is whole.
    fn close(&mut self) -> io::Result<()> {
        let Some((tar, bytes)) = self.open.take() else { return Ok(()) };
        let mut file = tar.into_inner()?;
        file.flush()?;
        let name = self.written.names.last().expect("it is open");
        std::fs::rename(self.partial(name), self.out.join(name))?;
        self.written.bytes += bytes + 1024;
        Ok(())
    }

    fn finish(mut self) -> io::Result<Written> {
        self.close()?;
        Ok(self.written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::difference;
    use crate::source::{DataSet, open};
    use std::collections::BTreeMap;
    use std::io::Read;
    use std::sync::Arc;

    fn sample_data() -> Arc<dyn Source> {
        open(&DataSet::at(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/sample-data"))), &mut |_| {}).unwrap()
    }

    fn options() -> PackOptions {
        PackOptions {
            size: SourceSize::Full,
            quality: None,
            exif: ExifOrientation::Ignore,
            shard_bytes: 300_000,
            in_order: false,
            workers: 3,
        }
    }

    /// The files of all shards, by shard and name.
    fn files(out: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for shard in std::fs::read_dir(out).unwrap().map(|entry| entry.unwrap().path()) {
            if shard.extension().unwrap() != "tar" {
                continue;
            }
            for entry in tar::Archive::new(File::open(&shard).unwrap()).entries().unwrap() {
                let mut entry = entry.unwrap();
                let name = entry.path().unwrap().to_string_lossy().into_owned();
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).unwrap();
                files.insert(format!("{}/{name}", shard.file_name().unwrap().to_string_lossy()), bytes);
            }
        }
        files
    }

    #[test]
    fn every_sample_is_packed_once_as_it_is_with_its_label() {
        let (source, dir) = (sample_data(), tempfile::tempdir().unwrap());
        let mut seen = Vec::new();
        let packed = pack(&*source, dir.path(), &options(), &mut |done, total| seen.push((done, total))).unwrap();
        assert_eq!(
            (packed.bad.len(), packed.samples),
            (0, [Split::Train, Split::Val].map(|split| source.len(split).into()))
        );
        let total = packed.samples.iter().sum();
        assert!(seen.is_sorted() && *seen.last().unwrap() == (total, total));
        let files = files(dir.path());
        assert_eq!(files.len() as u64, 2 * total);
        for (split, prefix) in [(Split::Train, "train-"), (Split::Val, "val-")] {
            let mut expected: Vec<(Vec<u8>, String)> = (0..source.len(split))
                .map(|sample| {
                    let mut bytes = Vec::new();
                    source.read(split, sample, &mut bytes).unwrap();
                    (bytes, source.label(split, sample).to_string())
                })
                .collect();
            let images = files.iter().filter(|(name, _)| name.starts_with(prefix) && name.ends_with(".jpg"));
            let mut packed: Vec<(Vec<u8>, String)> = images
                .map(|(name, bytes)| {
                    (bytes.clone(), String::from_utf8(files[&name.replace(".jpg", ".cls")].clone()).unwrap())
                })
                .collect();
            assert!((split == Split::Train) == (packed != expected), "{split}: the order");
            packed.sort();
            expected.sort();
            assert!(packed == expected, "{split}");
        }
        let info: serde_json::Value =
            serde_json::from_slice(&std::fs::read(dir.path().join("_info.json")).unwrap()).unwrap();
        let train = &info["splits"]["train"];
        let lengths: Vec<u64> = serde_json::from_value(train["shard_lengths"].clone()).unwrap();
        assert_eq!(lengths.iter().sum::<u64>(), packed.samples[0]);
        assert!(lengths.len() > 1 && lengths.len() == train["filenames"].as_array().unwrap().len());
        assert_eq!(info["class_ids"].as_array().unwrap().len(), source.classes().len());
        assert!(matches!(pack(&*source, dir.path(), &options(), &mut |_, _| {}), Err(PackError::NotEmpty(_))));
    }

    #[test]
    fn the_same_source_and_options_make_the_same_bytes() {
        let (source, dirs) = (sample_data(), [(); 2].map(|()| tempfile::tempdir().unwrap()));
        for (dir, workers) in dirs.iter().zip([1, 4]) {
            let options = PackOptions { workers, size: SourceSize::Short(64), in_order: true, ..options() };
            pack(&*source, dir.path(), &options, &mut |_, _| {}).unwrap();
        }
        let shards = |dir: &tempfile::TempDir| {
            let each = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap());
            each.map(|entry| (entry.file_name(), std::fs::read(entry.path()).unwrap())).collect::<BTreeMap<_, _>>()
        };
        assert!(shards(&dirs[0]) == shards(&dirs[1]));
    }

    #[test]
    fn larger_images_are_resized_and_others_kept() {
        let dir = tempfile::tempdir().unwrap();
        let set = dir.path().join("set");
        for folder in ["train/a", "val/a"] {
            std::fs::create_dir_all(set.join(folder)).unwrap();
        }
        let picture = |width: u32, height: u32| {
            image::RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 2) as u8, (y * 3) as u8, 90]))
        };
        picture(120, 80).save(set.join("train/a/large.png")).unwrap();
        picture(60, 40).save(set.join("train/a/small.png")).unwrap();
        std::fs::write(set.join("train/a/bad.jpg"), "no image").unwrap();
        picture(40, 40).save(set.join("val/a/1.png")).unwrap();
        let source = open(&DataSet::at(&set), &mut |_| {}).unwrap();
        let run = |quality| {
            let out = dir.path().join(format!("out-{quality:?}"));
            let options = PackOptions { size: SourceSize::Short(40), quality, in_order: true, ..options() };
            let packed = pack(&*source, &out, &options, &mut |_, _| {}).unwrap();
            assert_eq!((packed.samples, packed.bad.len()), ([2, 1], 1));
            assert!(packed.bad[0].contains("bad.jpg: is not an image"), "{:?}", packed.bad);
            files(&out)
        };
        let kept = run(None);
        assert_eq!(kept["train-000000.tar/00000001.png"], std::fs::read(set.join("train/a/small.png")).unwrap());
        let mut decoder = Decoder::new(ExifOrientation::Ignore);
        let resized = decoder.decode(&kept["train-000000.tar/00000000.jpg"], None).unwrap();
        assert_eq!((resized.width, resized.height), (60, 40));
        // The slopes of the picture of that size are twice as steep.
        let expected = image::RgbImage::from_fn(60, 40, |x, y| image::Rgb([(x * 4 + 1) as u8, (y * 6 + 1) as u8, 90]));
        let (mean, _) = difference(&resized.to_rgb(), &expected);
        assert!(mean < 4.0, "{mean}");
        let anew = run(Some(50));
        assert!(anew.keys().filter(|name| name.ends_with(".jpg")).count() == 3, "{:?}", anew.keys());
        assert!(anew["train-000000.tar/00000000.jpg"].len() < kept["train-000000.tar/00000000.jpg"].len());
    }
}

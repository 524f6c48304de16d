//! The latest batch of a feed as a sheet of small images, with what was drawn for each.
//!
//! A batch depends on its feed's spec and its place alone, so the page has its own copy made: neither slots nor trainers are touched.

use crate::control::Daemon;
use crate::pipeline::OwnedBatch;
use crate::plan::ImagePlan;
use crate::spec::FeedSpec;
use crate::types::{CropBox, Dtype, ImageSize, Place, Start};
use crate::view;
use ::image::imageops::{self, FilterType};
use ::image::{ImageFormat, RgbImage};
use serde_json::{Value, json};
use std::io::Cursor;

/// The most images of a sheet.
const TILES_MAX: usize = 64;
/// Images in a row of it.
const COLUMNS: u32 = 8;
/// The longer side of an image on it, in pixels.
const SIDE_MAX: u32 = 160;
/// The most bytes of a batch that is made for the page.
const BATCH_BYTES_MAX: usize = 1 << 30;

/// A batch to look at.
pub struct Sheet {
    /// Its feed.
    pub feed: u64,
    /// Its place.
    pub place: Place,
    /// The place, the size of the sheet's tiles, and for each row its caption, λ and what was drawn.
    pub description: Value,
    /// The tiles, row by row.
    pub png: Vec<u8>,
}

/// A feed that has published.
pub struct Published {
    feed: u64,
    /// What it delivers.
    pub spec: FeedSpec,
    /// Its last batch.
    pub last: Place,
    /// Batches in each epoch.
    pub batches: u64,
    /// Batches published.
    pub count: u64,
}

/// What a feed has published; `None` before its first batch.
///
/// # Errors
/// When it is not open.
pub fn published(daemon: &Daemon, feed: u64) -> Result<Option<Published>, String> {
    let feeds = daemon.feeds();
    let open = feeds.iter().find(|open| open.feed_id == feed).ok_or("the feed is closed")?;
    let last = |number| Place::of_number(number, open.batches);
    let before = open.next.number(open.batches).checked_sub(1).filter(|_| open.published > 0);
    let of = |last| Published { feed, spec: open.spec, last, batches: open.batches, count: open.published };
    Ok(before.map(last).map(of))
}

/// Makes the sheet of a batch that a feed has published.
///
/// # Errors
/// When there is no such batch, or it cannot be made; for people.
pub fn sheet(daemon: &Daemon, published: &Published, place: Place) -> Result<Sheet, String> {
    let &Published { feed, ref spec, last, batches, .. } = published;
    if place > last || place.index >= batches {
        return Err(format!("{place} is not published yet"));
    }
    // A quarter of the bytes; where a feed's options need floating point it keeps its type.
    let small = FeedSpec { dtype: Dtype::U8, share: None, digest: false, start: Start::Now, ..*spec };
    let spec = if small.validate().is_ok() { small } else { FeedSpec { dtype: spec.dtype, ..small } };
    let bytes = spec.batch_size as usize * spec.format().image_bytes();
    if bytes > BATCH_BYTES_MAX {
        return Err(format!("batches of {} MB are not drawn", bytes / 1_000_000));
    }
    let pipeline = daemon.pipeline();
    let batch = pipeline.batch(spec, place).map_err(|error| error.to_string())?;
    let source = pipeline.source();
    let tiles = view::tiles(&batch.view(), spec.mean, spec.std, &|label| source.label_name(label as u32), TILES_MAX);
    let tile = shown(batch.plan.image_size);
    let columns = COLUMNS.min(tiles.len() as u32).max(1);
    let mut sheet = RgbImage::new(columns * tile.width, (tiles.len() as u32).div_ceil(columns) * tile.height);
    for (drawn, at) in tiles.iter().zip(0..) {
        let (x, y) = (at % columns * tile.width, at / columns * tile.height);
        let rgb = imageops::resize(&drawn.rgb, tile.width, tile.height, FilterType::Triangle);
        imageops::replace(&mut sheet, &rgb, x.into(), y.into());
    }
    let mut png = Cursor::new(Vec::new());
    sheet.write_to(&mut png, ImageFormat::Png).map_err(|error| error.to_string())?;
    let rows: Vec<Value> = tiles.iter().enumerate().map(|(at, tile)| row(&spec, &batch, at, &tile.caption)).collect();
    let description = json!({
        "feed": feed, "epoch": place.epoch, "index": place.index, "batches": batches, "rows_of_batch": batch.plan.len(),
        "size": batch.plan.image_size.to_string(), "tile": [tile.width, tile.height], "columns": columns, "rows": rows,
    });
    Ok(Sheet { feed, place, description, png: png.into_inner() })
}

/// The size of a tile: that of the images, unless they are large.
fn shown(size: ImageSize) -> ImageSize {
    let longer = size.height.max(size.width);
    let scaled = |side: u32| if longer <= SIDE_MAX { side } else { (side * SIDE_MAX / longer).max(1) };
    ImageSize { height: scaled(size.height), width: scaled(size.width) }
}

/// A row: its caption, λ, and what was drawn for its own image and its partner.
fn row(spec: &FeedSpec, batch: &OwnedBatch, at: usize, caption: &str) -> Value {
    let (plan, view) = (&batch.plan.rows[at], batch.view());
    let [top, left, height, width] = view.crop[at];
    let cut = CropBox { top, left, height: height as u32, width: width as u32 };
    let size = batch.plan.image_size;
    let is_mixed = plan.mix.lambda() < 1.0;
    let partner = is_mixed.then(|| drawn(spec, size, &plan.partner, None));
    let cut_in = plan
        .mix
        .cut()
        .map(|cut| format!("partner in rows {} to {}, columns {} to {}", cut.top, cut.bottom, cut.left, cut.right));
    json!({
        "caption": caption, "name": batch.names[at], "lambda": plan.mix.lambda(), "cut": cut_in,
        "own": drawn(spec, size, &plan.own, Some(cut)), "partner": partner,
    })
}

/// What was drawn for an image, in the order in which it is done.
fn drawn(spec: &FeedSpec, size: ImageSize, image: &ImagePlan, cut: Option<CropBox>) -> Vec<String> {
    let mut steps = Vec::new();
    if let Some(CropBox { top, left, height, width }) = cut.filter(|_| spec.crop.is_random()) {
        steps.push(format!("crop {width}x{height} at ({left}, {top})"));
    }
    if image.view.flip {
        steps.push("flipped".to_owned());
    }
    steps.extend(image.view.operations(&spec.augment, size).iter().map(ToString::to_string));
    match image.view.erasure(&spec.erase, size).map_or(0, |erasure| erasure.boxes().len()) {
        0 => {}
        1 => steps.push("1 box erased".to_owned()),
        count => steps.push(format!("{count} boxes erased")),
    }
    steps
}

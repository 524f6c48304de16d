//! Which names are those of images. Names only select: the decoder goes by the content.

use std::ffi::OsStr;
use std::path::Path;

/// Endings of images' names, lower case. Of a sample in a shard that has several the first counts: webdataset's own come first.
pub const ENDINGS: [&str; 14] =
    ["jpg", "jpeg", "png", "webp", "ppm", "pgm", "pbm", "pnm", "jpe", "jfif", "bmp", "gif", "tif", "tiff"];

/// Whether a name is that of an image.
pub fn is_image(path: &Path) -> bool {
    let ending = path.extension().and_then(OsStr::to_str);
    ending.is_some_and(|ending| ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known)))
}

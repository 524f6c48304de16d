//! Sound JPEGs of any content, size and sampling: both decoders accept them, and make nearly the same of those whose chroma is not subsampled.

use super::script::Script;
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use mixd::decode::Decoder;

/// In the mean, and at most: README.md#what-is-guaranteed.
const DIFFERENCE_MAX: (f64, u8) = (0.4, 10);

/// Encodes what the bytes describe, and compares what the decoders make of it.
pub fn jpeg(bytes: &[u8]) {
    let _ = compare(&mut Script(bytes));
}

fn compare(script: &mut Script<'_>) -> Option<()> {
    // At most 4 pixels wide, with subsampled chroma, the decoder in Rust refuses (README.md#what-it-does-not-do).
    let [width, height] = [5 + u16::from(script.byte()? % 60), 1 + u16::from(script.byte()? % 64)];
    let (sampling, flags, restarts, quality) = (script.byte()? % 7, script.byte()?, script.byte()?, script.byte()?);
    let (sampling, is_gray) =
        ([(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (4, 2), (1, 4)][usize::from(sampling)], flags & 1 == 1);
    let (color, channels) = if is_gray { (ColorType::Luma, 1) } else { (ColorType::Rgb, 3) };
    let content = script.0;
    if content.is_empty() {
        return None;
    }
    // A slope that the content bends, so that neighbours are related, as they are in photographs.
    let value = |at: usize| content[at / (1 + usize::from(flags >> 4)) % content.len()];
    let values: Vec<u8> = (0..usize::from(width) * usize::from(height) * channels).map(value).collect();
    let mut file = Vec::new();
    let mut encoder = Encoder::new(&mut file, quality % 100 + 1);
    encoder.set_progressive(flags & 2 == 2);
    encoder.set_restart_interval(restarts.into());
    encoder.set_sampling_factor(SamplingFactor::from_factors(sampling.0, sampling.1).expect("one of its factors"));
    encoder.encode(&values, width, height, color).expect("written to memory");
    let (mut decoder, mut other) = (Decoder::default(), Decoder::default());
    let picture = decoder.decode(&file, None).expect("a sound file");
    let in_rust = other.decode_in_rust(&file).expect("a sound file");
    assert_eq!((picture.size(), picture.channels), (in_rust.size(), in_rust.channels));
    let each = picture.to_rgb().into_iter().zip(in_rust.to_rgb()).map(|(a, b)| a.abs_diff(b)).collect::<Vec<u8>>();
    let mean = each.iter().copied().map(f64::from).sum::<f64>() / each.len() as f64;
    let max = each.into_iter().max().expect("it has pixels");
    let of = format!("{width}x{height}, {sampling:?}, flags {flags:#x}, restarts {restarts}, quality {quality}");
    // Interpolated chroma differs by up to 140 levels at edges that are sharper than those of photographs.
    let is_interpolated = !is_gray && sampling != (1, 1);
    assert!(is_interpolated || mean <= DIFFERENCE_MAX.0 && max <= DIFFERENCE_MAX.1, "{of}: mean {mean}, max {max}");
    Some(())
}

use super::super::tests::difference;
use super::super::{Decoder, ExifOrientation};
use crate::fixtures;
use safetensors::SafeTensors;
use serde_json::Value;

/// Why a file is not treated as its entry says it should be (docs/spec/golden.md#tolerances).
fn wrong(file: &[u8], entry: &Value, rgb: Option<&[u8]>) -> Option<String> {
    let (decodes, tolerance) = (entry["decodes"] == true, &entry["tolerance"]);
    let size = Decoder::size(file, ExifOrientation::Ignore);
    let mut decoder = Decoder::default();
    let picture = match decoder.decode(file, None) {
        Ok(picture) => picture,
        Err(error) => {
            let may_refuse = !decodes || ["exact-or-refused", "free", "refused"].iter().any(|may| tolerance == may);
            return (!may_refuse || error.to_string().len() < 11).then(|| error.to_string());
        }
    };
    if !decodes || tolerance == "refused" {
        return (tolerance != "free").then(|| "it was decoded".to_owned());
    }
    let expected = [&entry["width"], &entry["height"]].map(|side| side.as_u64().unwrap() as u32);
    if [picture.width, picture.height] != expected || size.as_ref().ok() != Some(&picture.size()) {
        return Some(format!("it has {}x{} pixels, its header {size:?}", picture.width, picture.height));
    }
    let (mean, max) = difference(&picture.to_rgb(), rgb.unwrap());
    let (mean_max, max_max) = match (&tolerance["mean"], &tolerance["max"]) {
        (Value::Number(mean), Value::Number(max)) => (mean.as_f64().unwrap(), max.as_u64().unwrap()),
        _ => (0.0, 0),
    };
    (mean > mean_max || u64::from(max) > max_max).then(|| format!("mean {mean}, max {max}"))
}

/// Files of every format but JPEG have Pillow's pixels, or are refused where their entry allows that.
#[test]
fn files_of_other_formats_are_read_as_pillow_reads_them_or_refused() {
    let (mut seen, mut failures) = (0, Vec::new());
    for root in fixtures::roots() {
        for name in ["wild", "odd", "formats"] {
            let folder = root.join(name);
            // Of the sets each root has its own.
            if !folder.is_dir() {
                continue;
            }
            let list = std::fs::read(folder.join(format!("{name}.json"))).unwrap();
            let list: Value = serde_json::from_slice(&list).unwrap();
            let bytes = std::fs::read(folder.join(format!("{name}.safetensors"))).unwrap();
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            for entry in list["files"].as_array().unwrap() {
                let name = entry["file"].as_str().unwrap();
                let file = match tensors.tensor(&format!("file.{name}")) {
                    Ok(file) => file.data().to_vec(),
                    Err(_) => std::fs::read(folder.join(name)).unwrap(),
                };
                if !file.starts_with(&[0xFF, 0xD8]) {
                    seen += 1;
                    let rgb = tensors.tensor(&format!("rgb.{name}")).ok();
                    let cause = wrong(&file, entry, rgb.as_ref().map(|rgb| rgb.data()));
                    failures.extend(cause.map(|cause| format!("{name}: {cause}")));
                }
            }
        }
    }
    assert!(seen > 150 && failures.is_empty(), "{seen} files: {failures:#?}");
}

/// The table that users read names every cause for which a file is refused that Pillow reads, in the words of the error.
#[test]
fn the_table_of_formats_has_the_words_of_each_refusal() {
    let table = include_str!("../../../docs/formats.md");
    let folder = fixtures::golden().join("formats");
    let list: Value = serde_json::from_slice(&std::fs::read(folder.join("formats.json")).unwrap()).unwrap();
    let bytes = std::fs::read(folder.join("formats.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut refused = 0;
    for entry in list["files"].as_array().unwrap().iter().filter(|entry| entry["tolerance"] == "exact-or-refused") {
        let file = tensors.tensor(&format!("file.{}", entry["file"].as_str().unwrap())).unwrap();
        let Err(error) = Decoder::default().decode(file.data(), None) else { continue };
        let words = error.to_string();
        let words = words.trim_start_matches("cannot be decoded: ").split(" (save").next().unwrap();
        let digits = |text: &str| text.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
        assert!(digits(table).contains(&digits(words)), "docs/formats.md does not have: {words}");
        refused += 1;
    }
    assert!(refused > 5);
}

#[test]
fn other_formats_are_refused_by_their_names() {
    let table = include_str!("../../../docs/formats.md");
    let error = |file: &[u8]| Decoder::default().decode(file, None).unwrap_err().to_string();
    let avif = error(b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf");
    let icon = error(&[0, 0, 1, 0, 1, 0, 16, 16, 0, 0, 1, 0, 32, 0]);
    assert!(avif.contains("The image format Avif is not supported") && icon.contains("The image format Ico"), "{icon}");
    assert!(table.contains("The image format Avif is not supported"));
    for unknown in [&b"8BPS\0\x01"[..], b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<!DOCTYPE html>"] {
        assert!(table.contains(&error(unknown)), "{}", error(unknown));
    }
}

/// Whatever is cut from a file's end, and whatever of its bytes is changed: a picture of the header's size, or an error.
#[test]
fn damaged_files_of_other_formats_are_pictures_or_errors() {
    let folder = fixtures::golden().join("formats");
    let bytes = std::fs::read(folder.join("formats.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut decoder = Decoder::new(ExifOrientation::Apply);
    // From here on one of the WebP files has its decoder panic.
    let mut state = 79_190_u32;
    let mut files: Vec<_> = tensors.iter().filter(|(name, _)| name.starts_with("file.")).collect();
    // Not by chance.
    files.sort_unstable_by_key(|(name, _)| *name);
    for (name, file) in files {
        let file = file.data();
        for nth in 0..60 {
            let mut damaged = file.to_vec();
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = state as usize / 7 % file.len();
            match nth % 3 {
                0 => damaged.truncate(at),
                1 => damaged[at] = (state >> 24) as u8,
                // Headers, where most can go wrong.
                _ => damaged[at % 60] ^= 1 << (state >> 29),
            }
            let size = Decoder::size(&damaged, ExifOrientation::Apply);
            // Larger ones only take longer.
            if size.as_ref().is_ok_and(|size| size.pixels() > 1 << 18) {
                continue;
            }
            if let Ok(picture) = decoder.decode(&damaged, None) {
                assert_eq!(size.ok(), Some(picture.size()), "{name}, {nth}");
                assert_eq!(picture.to_rgb().len(), picture.size().values(), "{name}, {nth}");
            }
        }
    }
}

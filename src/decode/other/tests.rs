use super::super::tests::difference;
use super::super::{Decoder, ExifOrientation};
use crate::fixtures;
use safetensors::SafeTensors;
use serde_json::Value;

/// docs/spec/golden.md#tolerances: files of every format but JPEG, as they occur, have Pillow's pixels, or are refused with a cause
/// where that is allowed.
#[test]
fn files_as_they_occur_have_pillows_pixels_or_are_refused() {
    let mut seen = 0;
    for folder in fixtures::roots().flat_map(|root| ["wild", "odd"].map(|name| (root.join(name), name))) {
        let (folder, name) = folder;
        let Ok(list) = std::fs::read(folder.join(format!("{name}.json"))) else { continue };
        let list: Value = serde_json::from_slice(&list).unwrap();
        let bytes = std::fs::read(folder.join(format!("{name}.safetensors"))).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        for entry in list["files"].as_array().unwrap() {
            let name = entry["file"].as_str().unwrap();
            let file = std::fs::read(folder.join(name)).unwrap();
            if file.starts_with(&[0xFF, 0xD8]) {
                continue;
            }
            seen += 1;
            let tolerance = &entry["tolerance"];
            let size = Decoder::size(&file, ExifOrientation::Ignore);
            let mut decoder = Decoder::default();
            match decoder.decode(&file, None) {
                Ok(picture) => {
                    let may_decode = entry["decodes"] == true || tolerance == "free";
                    assert!(may_decode, "{name} was decoded");
                    assert_eq!(size.unwrap(), picture.size(), "{name}");
                    if entry["decodes"] != true {
                        continue;
                    }
                    let expected = [&entry["width"], &entry["height"]].map(|side| side.as_u64().unwrap() as u32);
                    assert_eq!([picture.width, picture.height], expected, "{name}");
                    let (mean, max) =
                        difference(&picture.to_rgb(), tensors.tensor(&format!("rgb.{name}")).unwrap().data());
                    let (mean_max, max_max) = match (&tolerance["mean"], &tolerance["max"]) {
                        (Value::Number(mean), Value::Number(max)) => (mean.as_f64().unwrap(), max.as_u64().unwrap()),
                        // docs/spec/pixels.md#decode: of 16 bits a channel the high byte is taken, where Pillow clips gray.
                        _ if entry["mode"] == "I;16" => continue,
                        _ => (0.0, 0),
                    };
                    assert!(mean <= mean_max && u64::from(max) <= max_max, "{name}: mean {mean}, max {max}");
                }
                Err(error) => {
                    let may_refuse = entry["decodes"] == false
                        || ["exact-or-refused", "free"].contains(&tolerance.as_str().unwrap_or(""));
                    assert!(may_refuse, "{name}: {error}");
                    println!("{name}: {error}");
                    assert!(error.to_string().len() > 10, "{name}: {error}");
                }
            }
        }
    }
    assert!(seen > 0);
}

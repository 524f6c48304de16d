//! The segments of a JPEG before its first scan: whether libjpeg-turbo keeps the whole file's coefficients.

/// Markers and contents of the segments, up to bytes that are none.
fn segments(file: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut at = 2;
    std::iter::from_fn(move || {
        loop {
            match *file.get(at..at + 4)? {
                // A fill byte before a marker.
                [0xFF, 0xFF, ..] => at += 1,
                // Markers without a length belong into scans.
                [0xFF, 0x00 | 0x01 | 0xD0..=0xD9, ..] => return None,
                [0xFF, marker, high, low] => {
                    let content = &file[at + 4..];
                    at += 2 + usize::from(u16::from_be_bytes([high, low]));
                    return Some((marker, content));
                }
                _ => return None,
            }
        }
    })
}

/// Whether a decoder keeps the coefficients of all scans until it has read the last one: unless it is clear that the file is sequential, with all
/// components in its first scan.
pub fn keeps_coefficients(file: &[u8]) -> bool {
    let mut components = None;
    for (marker, content) in segments(file) {
        match marker {
            0xC0 | 0xC1 => components = content.get(5).copied(),
            0xC2 => return true,
            0xDA => return content.first().copied() < components || components.is_none(),
            _ => {}
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use jpeg_encoder::{ColorType, Encoder};

    #[test]
    fn only_of_sequential_files_of_one_scan_no_coefficients_are_kept() {
        let encoded = |progressive, optimized| {
            let mut file = Vec::new();
            let mut encoder = Encoder::new(&mut file, 90);
            encoder.set_progressive(progressive);
            // With these tables, the encoder writes a scan for each component.
            encoder.set_optimized_huffman_tables(optimized);
            encoder.encode(&[0; 32 * 32 * 3], 32, 32, ColorType::Rgb).unwrap();
            file
        };
        let simple = encoded(false, false);
        assert!(!keeps_coefficients(&simple));
        assert!(keeps_coefficients(&encoded(true, false)) && keeps_coefficients(&encoded(false, true)));
        // What is not understood may be anything: stray bytes, a marker without a length, no scan.
        let with = |bytes: &[u8]| [&simple[..2], bytes, &simple[2..]].concat();
        assert!(!keeps_coefficients(&with(&[0xFF])));
        assert!([&[7][..], &[0xFF, 0xD0], &[0xFF, 0x01]].iter().all(|bytes| keeps_coefficients(&with(bytes))));
        assert!(keeps_coefficients(&simple[..100]));
    }
}

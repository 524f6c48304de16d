//! Text on pixels: one proportional, anti-aliased face.

use std::sync::LazyLock;

use ::image::{Rgb, RgbImage};
use ab_glyph::{Font, FontRef, Glyph, PxScale, ScaleFont, point};
use epaint_default_fonts::UBUNTU_LIGHT;

/// The file of the face, for others who rasterise it.
pub const TTF: &[u8] = UBUNTU_LIGHT;

static FACE: LazyLock<FontRef<'static>> =
    LazyLock::new(|| FontRef::try_from_slice(TTF).expect("the built-in font is a valid TTF"));

/// The face is a light one: raising the coverage of edge pixels makes it legible at small sizes.
const COVERAGE_EXPONENT: f32 = 0.7;

/// Places the glyphs of `text` on a baseline at the origin; returns them with the width in pixels.
fn layout(text: &str, height: f32) -> (Vec<Glyph>, f32) {
    let face = FACE.as_scaled(PxScale::from(height));
    let (mut glyphs, mut x, mut last) = (Vec::new(), 0.0, None);
    for character in text.chars() {
        let id = face.glyph_id(character);
        x += last.map_or(0.0, |last| face.kern(last, id));
        glyphs.push(id.with_scale_and_position(height, point(x, 0.0)));
        x += face.h_advance(id);
        last = Some(id);
    }
    (glyphs, x)
}

/// Width of `text` in pixels at a line height of `height` pixels.
pub fn width(text: &str, height: f32) -> f32 {
    layout(text, height).1
}

/// `text` where it is at most `room` pixels wide, else the longest beginning of it that is with «…» at its end.
pub fn fit(text: &str, height: f32, room: f32) -> String {
    if width(text, height) <= room {
        return text.to_owned();
    }
    let ends = text.char_indices().map(|(end, _)| end).rev();
    let cut = |end: usize| format!("{}…", text[..end].trim_end());
    ends.map(cut).find(|cut| width(cut, height) <= room).unwrap_or_else(|| "…".to_owned())
}

/// Writes `text` with the left end of its line's top at (`x`, `y`); what falls outside of `canvas` is left out.
pub fn draw(canvas: &mut RgbImage, text: &str, (x, y): (f32, f32), height: f32, ink: Rgb<u8>) {
    let baseline = y + FACE.as_scaled(PxScale::from(height)).ascent();
    for mut glyph in layout(text, height).0 {
        glyph.position.x += x;
        glyph.position.y += baseline;
        let Some(outline) = FACE.outline_glyph(glyph) else { continue };
        let corner = outline.px_bounds().min;
        outline.draw(|dx, dy, coverage| {
            let (column, row) = (corner.x as i64 + i64::from(dx), corner.y as i64 + i64::from(dy));
            let (Ok(column), Ok(row)) = (u32::try_from(column), u32::try_from(row)) else { return };
            let Some(pixel) = canvas.get_pixel_mut_checked(column, row) else { return };
            let weight = coverage.clamp(0.0, 1.0).powf(COVERAGE_EXPONENT);
            for (below, above) in pixel.0.iter_mut().zip(ink.0) {
                *below = (f32::from(*below) * (1.0 - weight) + f32::from(above) * weight).round() as u8;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn face_knows_every_sign_that_the_pictures_use() {
        for character in "Γαλβ−–…·%+=()½".chars() {
            assert_ne!(FACE.glyph_id(character).0, 0, "{character}");
        }
    }

    #[test]
    fn long_text_is_cut_to_its_room() {
        assert_eq!(fit("tench", 20.0, 200.0), "tench");
        let cut = fit("a very long class name", 20.0, 100.0);
        assert!(cut.ends_with('…') && width(&cut, 20.0) <= 100.0, "{cut}");
        assert!(cut.starts_with("a very"), "{cut}");
    }

    #[test]
    fn ink_lands_inside_the_line_and_never_panics_outside() {
        let mut canvas = RgbImage::from_pixel(100, 40, Rgb([255; 3]));
        draw(&mut canvas, "Ag", (10.0, 5.0), 24.0, Rgb([0; 3]));
        let inked: Vec<_> = canvas.enumerate_pixels().filter(|(.., pixel)| pixel.0[0] < 128).collect();
        assert!(!inked.is_empty());
        assert!(inked.iter().all(|(x, y, _)| (10..10 + 30).contains(x) && (5..5 + 24).contains(y)));
        draw(&mut canvas, "out of here", (80.0, -10.0), 24.0, Rgb([0; 3]));
    }
}

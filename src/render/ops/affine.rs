//! Where each pixel of a warp comes from, as pure data (docs/spec/recipes.md#warps).

use crate::operation::Operation;
use crate::types::ImageSize;

/// Output pixel (x, y) shows the place `(a·(x+½) + b·(y+½) + c, d·(x+½) + e·(y+½) + f)` of the image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Affine {
    pub a: f64,
    pub b: f64,
    pub c: f64,
    pub d: f64,
    pub e: f64,
    pub f: f64,
}

/// A place between pixels: the pixel left of it and above, and the distance from there.
#[derive(Debug, Clone, Copy)]
pub struct At {
    pub x: i32,
    pub y: i32,
    pub dx: f64,
    pub dy: f64,
}

impl Affine {
    /// Whether every pixel moves by the same whole pixels: then all filters give what the nearest pixel does.
    pub fn moves_by_pixels(&self) -> bool {
        let Self { a, b, c, d, e, f } = *self;
        (a, b, d, e) == (1.0, 0.0, 0.0, 1.0) && c.fract() == 0.0 && f.fract() == 0.0
    }

    /// Whether rows move along themselves and nothing else happens.
    pub fn moves_rows(&self) -> bool {
        (self.a, self.d, self.e, self.f) == (1.0, 0.0, 1.0, 0.0)
    }

    /// Whether columns do, and not by whole pixels.
    pub fn moves_columns(&self) -> bool {
        (self.a, self.b, self.c, self.e) == (1.0, 0.0, 0.0, 1.0) && (self.d != 0.0 || self.f.fract() != 0.0)
    }

    /// The same warp of the transposed image.
    pub fn transposed(&self) -> Self {
        let Self { a, b, c, d, e, f } = *self;
        Self { a: e, b: d, c: f, d: b, e: a, f: c }
    }

    /// Where output pixel (x, y) comes from; `None` outside the image.
    pub fn place(&self, width: usize, height: usize, x: usize, y: usize) -> Option<At> {
        let Self { a, b, c, d, e, f } = *self;
        let (x, y) = (x as f64 + 0.5, y as f64 + 0.5);
        let (x, y) = (a * x + b * y + c, d * x + e * y + f);
        let is_inside = x >= 0.0 && x < width as f64 && y >= 0.0 && y < height as f64;
        let (x, y) = (x - 0.5, y - 0.5);
        let (left, top) = (x.floor(), y.floor());
        is_inside.then_some(At { x: left as i32, y: top as i32, dx: x - left, dy: y - top })
    }
}

/// Where the pixels of a warp come from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Placement {
    /// Every pixel stays.
    Same,
    /// Half a turn.
    Half,
    /// A quarter turn counter-clockwise, of a square.
    Quarter,
    /// Three quarters, of a square.
    ThreeQuarters,
    /// Anywhere.
    Affine(Affine),
}

impl Placement {
    /// That of a warp of an image of this size.
    ///
    /// # Panics
    /// When the operation is no warp.
    pub fn of(operation: Operation, size: ImageSize) -> Self {
        let still = Affine { a: 1.0, b: 0.0, c: 0.0, d: 0.0, e: 1.0, f: 0.0 };
        match operation {
            Operation::Rotate(degrees) => Self::rotation(degrees, size),
            Operation::ShearX(b) => Self::Affine(Affine { b, ..still }),
            Operation::ShearY(d) => Self::Affine(Affine { d, ..still }),
            Operation::TranslateX(c) => Self::Affine(Affine { c, ..still }),
            Operation::TranslateY(f) => Self::Affine(Affine { f, ..still }),
            other => unreachable!("{other} is no warp"),
        }
    }

    /// Counter-clockwise about the centre, as Pillow's `Image.rotate` sets it up.
    fn rotation(degrees: f64, size: ImageSize) -> Self {
        let (turn, square) = (degrees.rem_euclid(360.0), size.width == size.height);
        match turn {
            0.0 => return Self::Same,
            90.0 if square => return Self::Quarter,
            180.0 => return Self::Half,
            270.0 if square => return Self::ThreeQuarters,
            _ => {}
        }
        let (sin, cos) = (-turn.to_radians()).sin_cos();
        let (a, b, d) = (to_15_decimals(cos), to_15_decimals(sin), to_15_decimals(-sin));
        let (x, y) = (f64::from(size.width) / 2.0, f64::from(size.height) / 2.0);
        Self::Affine(Affine { a, b, c: a * -x + b * -y + x, d, e: a, f: d * -x + a * -y + y })
    }
}

/// The nearest number of 15 decimals to a number in [−1, 1], as Python's `round` finds it.
fn to_15_decimals(value: f64) -> f64 {
    let scaled = value * 1e15;
    let whole = scaled.round_ties_even();
    // The product was rounded, which decides only where it came to lie halfway: there its error does.
    let error = value.mul_add(1e15, -scaled);
    let halfway = (scaled - whole).abs() == 0.5 && error != 0.0;
    (if halfway { scaled + 0.5_f64.copysign(error) } else { whole }) / 1e15
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decimals_are_rounded_as_text_is(value in -1.0_f64..=1.0) {
            prop_assert_eq!(to_15_decimals(value).to_bits(), format!("{value:.15}").parse::<f64>().unwrap().to_bits());
        }
    }
}

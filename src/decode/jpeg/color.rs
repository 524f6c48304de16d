//! From components to RGB: libjpeg's conversion, and Pillow's of inks.

/// How components make a color.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Color {
    Gray,
    Rgb,
    Ycc,
    Cmyk,
    Ycck,
}

impl Color {
    /// Values of a pixel.
    pub fn channels(self) -> usize {
        if self == Self::Gray { 1 } else { 3 }
    }

    /// Converts a row of each component, of at least as many samples as there are pixels, to pixels.
    pub fn write(self, [first, second, third, fourth]: [&[u8]; 4], out: &mut [u8]) {
        let three = || first.iter().zip(second).zip(third).map(|((a, b), c)| [*a, *b, *c]);
        let four = || three().zip(fourth).map(|([a, b, c], d)| [a, b, c, *d]);
        match self {
            Self::Gray => out.copy_from_slice(&first[..out.len()]),
            Self::Rgb => put(three(), out),
            Self::Ycc => put(three().map(|[y, cb, cr]| ycc_to_rgb(y, cb, cr)), out),
            Self::Cmyk => put(four().map(inks_to_rgb), out),
            Self::Ycck => put(four().map(ycck_to_rgb), out),
        }
    }
}

#[inline(always)]
fn put(pixels: impl Iterator<Item = [u8; 3]>, out: &mut [u8]) {
    for (out, pixel) in out.chunks_exact_mut(3).zip(pixels) {
        out.copy_from_slice(&pixel);
    }
}

/// `y + c·x`, for factors of 16 fractional bits.
fn sum(y: u8, offset: i32) -> u8 {
    (i32::from(y) + (offset >> 16)).clamp(0, 255) as u8
}

/// One pixel.
#[inline(always)]
pub fn ycc_to_rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let (cb, cr) = (i32::from(cb) - 128, i32::from(cr) - 128);
    // 1.402, 0.34414, 0.71414 and 1.772 times 2¹⁶.
    [sum(y, 91_881 * cr + HALF), sum(y, HALF - 22_554 * cb - 46_802 * cr), sum(y, 116_130 * cb + HALF)]
}

/// One pixel, of values that count as inverted inks, as Pillow converts it.
pub fn inks_to_rgb([cyan, magenta, yellow, black]: [u8; 4]) -> [u8; 3] {
    // Of inverted black: what the other inks leave of white.
    let white = u32::from(black);
    [cyan, magenta, yellow].map(|ink| {
        let product = u32::from(255 - ink) * white + 128;
        (white - ((product + (product >> 8)) >> 8)) as u8
    })
}

/// One pixel of luma, chroma and black.
pub fn ycck_to_rgb([y, cb, cr, black]: [u8; 4]) -> [u8; 3] {
    let [cyan, magenta, yellow] = ycc_to_rgb(y, cb, cr).map(|value| 255 - value);
    inks_to_rgb([cyan, magenta, yellow, black])
}

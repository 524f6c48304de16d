//! From components to RGB: libjpeg's conversion, and Pillow's of inks.

/// How components make a color.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Color {
    Gray,
    Rgb,
    Ycc,
    Cmyk,
    Ycck,
    /// Four components, not converted.
    Four,
}

impl Color {
    /// Values of a pixel.
    pub fn channels(self) -> usize {
        match self {
            Self::Gray => 1,
            Self::Four => 4,
            Self::Rgb | Self::Ycc | Self::Cmyk | Self::Ycck => 3,
        }
    }

    /// Converts a row of each component, of at least as many samples as there are pixels, to pixels.
    pub fn write(self, [first, second, third, fourth]: [&[u8]; 4], out: &mut [u8]) {
        let three = || first.iter().zip(second).zip(third).map(|((a, b), c)| [*a, *b, *c]);
        let four = || three().zip(fourth).map(|([a, b, c], d)| [a, b, c, *d]);
        match self {
            Self::Gray => out.copy_from_slice(&first[..out.len()]),
            Self::Rgb => put(three(), out),
            Self::Ycc => put_ycc(first, second, third, out),
            Self::Cmyk => put(four().map(inks_to_rgb), out),
            Self::Ycck => put(four().map(ycck_to_rgb), out),
            Self::Four => put(four(), out),
        }
    }
}

/// Pixels that are converted at once, into planes.
const CHUNK: usize = 64;

fn put_ycc(y: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) {
    let whole = out.len() / 3 / CHUNK * CHUNK;
    for (at, out) in (0..whole).step_by(CHUNK).zip(out.chunks_exact_mut(3 * CHUNK)) {
        let part = |of: &[u8]| -> [u8; CHUNK] { of[at..at + CHUNK].try_into().expect("as long") };
        let (y, cb, cr) = (part(y), part(cb), part(cr));
        let mut planes = [[0; CHUNK]; 3];
        for at in 0..CHUNK {
            let [red, green, blue] = ycc_to_rgb(y[at], cb[at], cr[at]);
            (planes[0][at], planes[1][at], planes[2][at]) = (red, green, blue);
        }
        for (at, pixel) in out.chunks_exact_mut(3).enumerate() {
            (pixel[0], pixel[1], pixel[2]) = (planes[0][at], planes[1][at], planes[2][at]);
        }
    }
    let rest = y[whole..].iter().zip(&cb[whole..]).zip(&cr[whole..]);
    put(rest.map(|((y, cb), cr)| ycc_to_rgb(*y, *cb, *cr)), &mut out[3 * whole..]);
}

#[inline(always)]
fn put<const CHANNELS: usize>(pixels: impl Iterator<Item = [u8; CHANNELS]>, out: &mut [u8]) {
    for (out, pixel) in out.chunks_exact_mut(CHANNELS).zip(pixels) {
        out.copy_from_slice(&pixel);
    }
}

/// One pixel. Factors are split so that products of 16 bits are enough, which vectors have more of.
#[inline(always)]
fn ycc_to_rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    let (y, cb, cr) = (i16::from(y), i16::from(cb) - 128, i16::from(cr) - 128);
    // The upper half of twice a product with a factor of 16 fractional bits, rounded.
    let times = |value: i16, factor: i16| (((i32::from(2 * value) * i32::from(factor)) >> 16) as i16 + 1) >> 1;
    // 1.402 - 1 and 1.772 - 2.
    let (red, blue) = (cr + times(cr, 26_345), 2 * cb + times(cb, -14_942));
    // -0.34414 and 1 - 0.71414.
    let green = ((-22_554 * i32::from(cb) + 18_734 * i32::from(cr) + (1 << 15)) >> 16) as i16 - cr;
    [red, green, blue].map(|difference| (y + difference).clamp(0, 255) as u8)
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

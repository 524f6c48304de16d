//! The oracle: each operation as docs/spec/recipes.md#operations defines it, one value at a time. Planes are u8 `[3, H, W]`.

use crate::operation::{Operation, WarpFilter, Warping};
use crate::types::ImageSize;

/// An image of three planes.
pub struct Naive {
    width: i64,
    height: i64,
    planes: Vec<u8>,
}

fn clip(value: f32) -> u8 {
    value.clamp(0.0, 255.0) as u8
}

fn blend(d: u8, c: u8, factor: f64) -> u8 {
    let (factor, from) = (factor as f32, f32::from(d));
    match factor {
        0.0 => d,
        1.0 => c,
        _ => clip(from + factor * (f32::from(c) - from)),
    }
}

/// Applies operations in turn.
pub fn apply(operations: &[Operation], warping: &Warping, size: ImageSize, planes: &[u8]) -> Vec<u8> {
    let (width, height) = (i64::from(size.width), i64::from(size.height));
    let mut image = Naive { width, height, planes: planes.to_vec() };
    operations.iter().for_each(|&operation| image.apply(operation, warping));
    image.planes
}

impl Naive {
    fn pixels(&self) -> usize {
        (self.width * self.height) as usize
    }

    fn at(&self, channel: usize, x: i64, y: i64) -> u8 {
        self.planes[channel * self.pixels() + (y * self.width + x) as usize]
    }

    fn rgb(&self, pixel: usize) -> [u8; 3] {
        [0, 1, 2].map(|channel| self.planes[channel * self.pixels() + pixel])
    }

    fn luma(&self, pixel: usize) -> u8 {
        let [r, g, b] = self.rgb(pixel).map(u32::from);
        ((19_595 * r + 38_470 * g + 7_471 * b + 32_768) >> 16) as u8
    }

    /// Each value anew from its channel, column and row.
    fn map(&mut self, of: impl Fn(&Self, usize, i64, i64) -> u8) {
        let mut planes = Vec::new();
        for channel in 0..3 {
            for y in 0..self.height {
                planes.extend((0..self.width).map(|x| of(self, channel, x, y)));
            }
        }
        self.planes = planes;
    }

    fn histogram(&self, channel: usize) -> [u64; 256] {
        let mut counts = [0; 256];
        let pixels = self.pixels();
        self.planes[channel * pixels..][..pixels].iter().for_each(|&value| counts[usize::from(value)] += 1);
        counts
    }

    /// Each value through a table of its channel.
    fn through(&mut self, table: impl Fn(&[u64; 256]) -> Option<Vec<u8>>) {
        for channel in 0..3 {
            let Some(table) = table(&self.histogram(channel)) else { continue };
            let pixels = self.pixels();
            self.planes[channel * pixels..][..pixels].iter_mut().for_each(|value| *value = table[usize::from(*value)]);
        }
    }

    fn apply(&mut self, operation: Operation, warping: &Warping) {
        let width = self.width;
        let pixel = |x: i64, y: i64| (y * width + x) as usize;
        match operation {
            Operation::Identity => {}
            Operation::Invert => self.map(|image, channel, x, y| 255 - image.at(channel, x, y)),
            Operation::Grayscale => self.map(|image, _, x, y| image.luma(pixel(x, y))),
            Operation::Brightness(f) => self.map(|image, channel, x, y| blend(0, image.at(channel, x, y), f)),
            Operation::Contrast(f) => {
                let sum: u64 = (0..self.pixels()).map(|at| u64::from(self.luma(at))).sum();
                let mean = (sum as f64 / self.pixels() as f64 + 0.5).floor() as u8;
                self.map(|image, channel, x, y| blend(mean, image.at(channel, x, y), f));
            }
            Operation::Saturation(f) => {
                self.map(|image, channel, x, y| blend(image.luma(pixel(x, y)), image.at(channel, x, y), f));
            }
            Operation::Sharpness(f) => {
                self.map(|image, channel, x, y| blend(image.smooth(channel, x, y), image.at(channel, x, y), f));
            }
            Operation::Posterize(bits) => {
                self.map(|image, channel, x, y| image.at(channel, x, y) & !((1_u32 << (8 - bits)) - 1) as u8);
            }
            Operation::Solarize(threshold) => self.map(|image, channel, x, y| match image.at(channel, x, y) {
                value if f64::from(value) < threshold => value,
                value => 255 - value,
            }),
            Operation::SolarizeAdd(add) => self.map(|image, channel, x, y| match image.at(channel, x, y) {
                value @ 0..128 => value.saturating_add(add),
                value => value,
            }),
            Operation::AutoContrast => self.through(|counts| {
                let present = || (0..256).filter(|&value| counts[value] > 0).map(|value| value as f64);
                let (low, high) = (present().next()?, present().next_back()?);
                let scale = 255.0 / (high - low);
                let offset = -low * scale;
                let value = |value: i32| (f64::from(value) * scale + offset).trunc().clamp(0.0, 255.0) as u8;
                (high > low).then(|| (0..256).map(value).collect())
            }),
            Operation::Equalize => self.through(|counts| {
                let last = counts.iter().rev().find(|&&count| count > 0)?;
                let step = (counts.iter().sum::<u64>() - last) / 255;
                if counts.iter().filter(|&&count| count > 0).count() < 2 || step == 0 {
                    return None;
                }
                let mut n = step / 2;
                let mut table = Vec::new();
                for count in counts {
                    table.push((n / step).min(255) as u8);
                    n += count;
                }
                Some(table)
            }),
            Operation::Hue(f) => {
                let shift = (f * 255.0).trunc() as i64;
                self.map(|image, channel, x, y| {
                    let [h, s, v] = to_hsv(image.rgb(pixel(x, y)));
                    to_rgb([(i64::from(h) + shift).rem_euclid(256) as u8, s, v])[channel]
                });
            }
            Operation::GaussianBlur(sigma) => {
                for _ in 0..3 {
                    self.map(|image, channel, x, y| {
                        box_blur(sigma, |k| image.at(channel, (x + k).clamp(0, width - 1), y))
                    });
                }
                let last = self.height - 1;
                for _ in 0..3 {
                    self.map(|image, channel, x, y| box_blur(sigma, |k| image.at(channel, x, (y + k).clamp(0, last))));
                }
            }
            Operation::Rotate(_)
            | Operation::ShearX(_)
            | Operation::ShearY(_)
            | Operation::TranslateX(_)
            | Operation::TranslateY(_) => self.warp(operation, warping),
        }
    }

    /// The 3×3 filter of Pillow's SMOOTH; the outermost pixels stay.
    fn smooth(&self, channel: usize, x: i64, y: i64) -> u8 {
        if x == 0 || y == 0 || x == self.width - 1 || y == self.height - 1 {
            return self.at(channel, x, y);
        }
        let mut sum = 0.5_f32;
        for (dy, centre) in [(1, 1.0_f32), (0, 5.0), (-1, 1.0)] {
            let term = |dx: i64, weight: f32| f32::from(self.at(channel, x + dx, y + dy)) * (weight / 13.0);
            sum += term(-1, 1.0) + term(0, centre) + term(1, 1.0);
        }
        clip(sum)
    }

    fn warp(&mut self, operation: Operation, warping: &Warping) {
        let (w, h) = (self.width as f64, self.height as f64);
        let (width, height) = (self.width, self.height);
        let [a, b, c, d, e, f] = match operation {
            Operation::ShearX(m) => [1.0, m, 0.0, 0.0, 1.0, 0.0],
            Operation::ShearY(m) => [1.0, 0.0, 0.0, m, 1.0, 0.0],
            Operation::TranslateX(t) => [1.0, 0.0, t, 0.0, 1.0, 0.0],
            Operation::TranslateY(t) => [1.0, 0.0, 0.0, 0.0, 1.0, t],
            Operation::Rotate(degrees) => {
                let degrees = degrees.rem_euclid(360.0);
                match degrees {
                    0.0 => return,
                    180.0 => return self.map(|image, channel, x, y| image.at(channel, width - 1 - x, height - 1 - y)),
                    90.0 if width == height => {
                        return self.map(|image, channel, x, y| image.at(channel, width - 1 - y, x));
                    }
                    270.0 if width == height => {
                        return self.map(|image, channel, x, y| image.at(channel, y, height - 1 - x));
                    }
                    _ => {}
                }
                let angle = -degrees.to_radians();
                // To 15 decimals.
                let rounded = |value: f64| format!("{value:.15}").parse::<f64>().unwrap();
                let (a, b) = (rounded(angle.cos()), rounded(angle.sin()));
                let (d, e) = (rounded(-angle.sin()), rounded(angle.cos()));
                // About the centre, in Pillow's order.
                let (cx, cy) = (w / 2.0, h / 2.0);
                [a, b, a * -cx + b * -cy + 0.0 + cx, d, e, d * -cx + e * -cy + 0.0 + cy]
            }
            other => unreachable!("{other} is no warp"),
        };
        let inside = |x: f64, y: f64| x >= 0.0 && x < w && y >= 0.0 && y < h;
        let at = |image: &Self, channel: usize, x: i64, y: i64| f64::from(image.at(channel, x, y));
        self.map(|image, channel, x, y| {
            let fill = warping.fill[channel];
            let (xc, yc) = (x as f64 + 0.5, y as f64 + 0.5);
            let (xin, yin) = (a * xc + b * yc + c, d * xc + e * yc + f);
            let column = |x: i64| x.clamp(0, width - 1);
            match warping.filter {
                WarpFilter::Nearest if b == 0.0 && d == 0.0 => {
                    let (mut xo, mut yo) = (c + a * 0.5, f + e * 0.5);
                    (0..x).for_each(|_| xo += a);
                    (0..y).for_each(|_| yo += e);
                    if inside(xo, yo) { image.at(channel, xo as i64, yo as i64) } else { fill }
                }
                WarpFilter::Nearest => {
                    let fix = |value: f64| (value * 65_536.0 + 0.5).floor() as i64;
                    let xin = (fix(c + a * 0.5 + b * 0.5) + fix(b) * y + fix(a) * x) >> 16;
                    let yin = (fix(f + d * 0.5 + e * 0.5) + fix(e) * y + fix(d) * x) >> 16;
                    let inside = (0..width).contains(&xin) && (0..height).contains(&yin);
                    if inside { image.at(channel, xin, yin) } else { fill }
                }
                _ if !inside(xin, yin) => fill,
                WarpFilter::Bilinear => {
                    let (xin, yin) = (xin - 0.5, yin - 0.5);
                    let (x0, y0) = (xin.floor() as i64, yin.floor() as i64);
                    let (dx, dy) = (xin - x0 as f64, yin - y0 as f64);
                    let row = |y: i64| {
                        let (left, right) = (at(image, channel, column(x0), y), at(image, channel, column(x0 + 1), y));
                        left + (right - left) * dx
                    };
                    let above = row(y0.clamp(0, height - 1));
                    let below = if (0..height).contains(&(y0 + 1)) { row(y0 + 1) } else { above };
                    (above + (below - above) * dy) as u8
                }
                WarpFilter::Bicubic => {
                    let (xin, yin) = (xin - 0.5, yin - 0.5);
                    let (x0, y0) = (xin.floor() as i64, yin.floor() as i64);
                    let (dx, dy) = (xin - x0 as f64, yin - y0 as f64);
                    let row = |y: i64| cubic([-1, 0, 1, 2].map(|k| at(image, channel, column(x0 + k), y)), dx);
                    let mut rows = [row((y0 - 1).clamp(0, height - 1)); 4];
                    for k in 1..4 {
                        let y = y0 - 1 + k as i64;
                        rows[k] = if (0..height).contains(&y) { row(y) } else { rows[k - 1] };
                    }
                    cubic(rows, dy).clamp(0.0, 255.0) as u8
                }
            }
        });
    }
}

fn cubic([v1, v2, v3, v4]: [f64; 4], d: f64) -> f64 {
    let (p1, p2, p3, p4) = (v2, -v1 + v3, 2.0 * (v1 - v2) + v3 - v4, -v1 + v2 - v3 + v4);
    p1 + d * (p2 + d * (p3 + d * p4))
}

/// One output of a box blur over `at(offset)`.
fn box_blur(sigma: f64, at: impl Fn(i64) -> u8) -> u8 {
    let variance = (sigma as f32) * (sigma as f32) / 3.0;
    let l = ((12.0_f64 * f64::from(variance) + 1.0).sqrt() as f32 - 1.0) / 2.0;
    let l = l.floor();
    let a = (2.0 * l + 1.0) * (l * (l + 1.0) - 3.0 * variance) / (6.0 * (variance - (l + 1.0) * (l + 1.0)));
    let radius = l + a;
    let r = radius as i64;
    let ww = ((1 << 24) as f32 / (radius * 2.0 + 1.0)) as u64;
    let fw = ((1 << 24) - (r as u64 * 2 + 1) * ww) / 2;
    let sum: u64 = (-r..=r).map(|k| u64::from(at(k))).sum();
    let edges = u64::from(at(-r - 1)) + u64::from(at(r + 1));
    ((ww * sum + fw * edges + (1 << 23)) >> 24) as u8
}

fn to_hsv([r, g, b]: [u8; 3]) -> [u8; 3] {
    let (max, min) = (r.max(g).max(b), r.min(g).min(b));
    if max == min {
        return [0, 0, max];
    }
    let range = f32::from(max - min);
    let [rc, gc, bc] = [r, g, b].map(|value| f32::from(max - value) / range);
    let h = if r == max {
        bc - gc
    } else if g == max {
        (2.0 + f64::from(rc) - f64::from(bc)) as f32
    } else {
        (4.0 + f64::from(gc) - f64::from(rc)) as f32
    };
    let h = ((f64::from(h) / 6.0 + 1.0) % 1.0) as f32;
    let s = range / f32::from(max);
    [(f64::from(h) * 255.0) as u8, (f64::from(s) * 255.0) as u8, max]
}

fn to_rgb([h, s, v]: [u8; 3]) -> [u8; 3] {
    if s == 0 {
        return [v; 3];
    }
    let sixths = f64::from(h) * 6.0 / 255.0;
    let i = sixths.floor();
    let f = (sixths - i) as f32;
    let (fs, value) = (f32::from(s) / 255.0, f64::from(v));
    let (f, fs) = (f64::from(f), f64::from(fs));
    let [p, q, t] = [1.0 - fs, 1.0 - fs * f, 1.0 - fs * (1.0 - f)].map(|part| (value * part).round() as u8);
    match i as u8 % 6 {
        0 => [v, t, p],
        1 => [q, v, p],
        2 => [p, v, t],
        3 => [p, q, v],
        4 => [t, p, v],
        _ => [v, p, q],
    }
}

//! From a component's samples to as many as the image has: libjpeg's triangle filter ("fancy upsampling") for halves, repetition for the rest.

use super::frame::{Component, Frame, refused};
use crate::decode::ImageError;

/// How a component becomes as large as the image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Upsampling {
    /// It is.
    None,
    /// Twice as wide, smoothed.
    Wider,
    /// Twice as high, smoothed.
    Higher,
    /// Twice as wide and as high, smoothed.
    Both,
    /// So many times as wide and as high, each sample repeated.
    Repeated(usize, usize),
}

impl Upsampling {
    /// How libjpeg does it for a component.
    pub fn of(component: &Component, frame: &Frame) -> Result<Self, ImageError> {
        let Component { across, down, size: [width, _], .. } = *component;
        if !(frame.across.is_multiple_of(across) && frame.down.is_multiple_of(down)) {
            return refused("its sampling is not supported: some chroma samples cover a fraction of pixels");
        }
        Ok(match (frame.across / across, frame.down / down) {
            (1, 1) => Self::None,
            (2, 1) if width > 2 => Self::Wider,
            (2, 2) if width > 2 => Self::Both,
            (1, 2) => Self::Higher,
            (across, down) => Self::Repeated(across, down),
        })
    }
}

/// A row in the making.
#[derive(Default)]
pub struct Row {
    /// Weighted sums of two rows, with the first and the last one repeated at the ends.
    sums: Vec<u16>,
    out: Vec<u8>,
}

impl Row {
    /// Row `y` of the image, from rows of `size[0]` samples that are `stride` apart; the width may be the next multiple.
    pub fn make<'a>(
        &'a mut self,
        how: Upsampling,
        samples: &'a [u8],
        size: [usize; 2],
        stride: usize,
        y: usize,
    ) -> &'a [u8] {
        let [width, height] = size;
        let row = |y: usize| &samples[y * stride..][..width];
        // The row that a row between two is nearer to, and the other one: beyond the edge, the same one.
        let near = y / 2;
        let far = if y.is_multiple_of(2) { near.saturating_sub(1) } else { (near + 1).min(height - 1) };
        match how {
            Upsampling::None => return row(y),
            Upsampling::Wider => {
                self.put_sums(row(y).iter().map(|sample| u16::from(*sample)));
                self.widen::<2>([1, 2]);
            }
            Upsampling::Higher => {
                let bias = 1 + (y % 2) as u16;
                self.out.clear();
                self.out.extend(weighted(row(near), row(far)).map(|sum| ((sum + bias) >> 2) as u8));
            }
            Upsampling::Both => {
                self.put_sums(weighted(row(near), row(far)));
                self.widen::<4>([8, 7]);
            }
            Upsampling::Repeated(across, down) => {
                self.out.clear();
                self.out.extend(row(y / down).iter().flat_map(|sample| std::iter::repeat_n(*sample, across)));
            }
        }
        &self.out
    }

    fn put_sums(&mut self, sums: impl ExactSizeIterator<Item = u16>) {
        self.sums.resize(sums.len() + 2, 0);
        let last = sums.len() + 1;
        for (to, sum) in self.sums[1..last].iter_mut().zip(sums) {
            *to = sum;
        }
        (self.sums[0], self.sums[last]) = (self.sums[1], self.sums[last - 1]);
    }

    /// Makes two samples of each sum: three quarters of it, and one of its neighbour.
    fn widen<const SHIFT: u32>(&mut self, [left, right]: [u16; 2]) {
        self.out.resize(2 * (self.sums.len() - 2), 0);
        for (pair, sums) in self.out.chunks_exact_mut(2).zip(self.sums.windows(3)) {
            let near = 3 * sums[1];
            pair[0] = ((near + sums[0] + left) >> SHIFT) as u8;
            pair[1] = ((near + sums[2] + right) >> SHIFT) as u8;
        }
    }
}

fn weighted<'a>(near: &'a [u8], far: &'a [u8]) -> impl ExactSizeIterator<Item = u16> + 'a {
    near.iter().zip(far).map(|(near, far)| 3 * u16::from(*near) + u16::from(*far))
}

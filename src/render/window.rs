//! Where the outputs of one axis lie in the resized image.

use crate::types::PadMode;

/// The outputs of an axis as a window of the resized image's pixels, which may reach beyond them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Pixels of the resized image on this axis, at least 1.
    pub resized: u32,
    /// The resized pixel of the first output, before flipping; negative or beyond the image: padding.
    pub start: i32,
    /// Outputs.
    pub outputs: u32,
    /// What lies outside the resized image.
    pub pad: PadMode,
    /// Whether the outputs are in reverse order.
    pub flip: bool,
}

impl Window {
    /// The resized pixel that an output shows; `None` is constant padding.
    #[inline]
    pub fn pixel(&self, output: u32) -> Option<u32> {
        let nth = if self.flip { self.outputs - 1 - output } else { output };
        let (at, length) = (i64::from(self.start) + i64::from(nth), i64::from(self.resized));
        if (0..length).contains(&at) {
            return Some(at as u32);
        }
        match self.pad {
            PadMode::Constant => None,
            PadMode::Reflect if length == 1 => Some(0),
            PadMode::Reflect => {
                let period = 2 * (length - 1);
                let at = at.rem_euclid(period);
                Some(at.min(period - at) as u32)
            }
        }
    }

    /// The range of resized pixels that outputs show; the first pixel where they show none.
    pub fn visible(&self) -> std::ops::Range<u32> {
        let pixels = || (0..self.outputs).filter_map(|output| self.pixel(output));
        match (pixels().min(), pixels().max()) {
            (Some(first), Some(last)) => first..last + 1,
            _ => 0..1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pixels(resized: u32, start: i32, outputs: u32, pad: PadMode, flip: bool) -> Vec<Option<u32>> {
        let window = Window { resized, start, outputs, pad, flip };
        (0..outputs).map(|output| window.pixel(output)).collect()
    }

    #[test]
    fn outside_is_constant_or_mirrored_without_the_edge() {
        assert_eq!(pixels(3, -1, 5, PadMode::Constant, false), [None, Some(0), Some(1), Some(2), None]);
        assert_eq!(pixels(3, -1, 5, PadMode::Constant, true), [None, Some(2), Some(1), Some(0), None]);
        assert_eq!(pixels(3, -3, 8, PadMode::Reflect, false), [1, 2, 1, 0, 1, 2, 1, 0].map(Some));
        assert_eq!(pixels(1, -2, 4, PadMode::Reflect, false), [Some(0); 4]);
    }

    #[test]
    fn visible_covers_what_outputs_show() {
        let window = Window { resized: 10, start: -4, outputs: 6, pad: PadMode::Constant, flip: true };
        assert_eq!(window.visible(), 0..2);
        assert_eq!(Window { pad: PadMode::Reflect, ..window }.visible(), 0..5);
        assert_eq!(Window { start: 30, ..window }.visible(), 0..1);
    }
}

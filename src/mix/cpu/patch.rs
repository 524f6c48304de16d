//! Erased boxes: a second pass over the pixels in them, once the fused one has made the image.
//!
//! An erased image's term is `λ·z` in place of `A·u`, and its share of C is left out; all else is the fused formula.

use super::{BLOCK, Element, Factors, Level};
use crate::format::Format;
use crate::mix::erase::{Fills, overlap};
use crate::mix::{Row, Sample};
use crate::plan::Erasure;
use crate::types::Layout;
use std::ops::Range;

/// Whether anything is erased in the row's image.
pub fn erases(row: &Row<'_>) -> bool {
    row.erasure.is_some() || row.own.erasure.is_some() || row.partner.erasure.is_some() && shows_partner(row)
}

fn shows_partner(row: &Row<'_>) -> bool {
    row.weight != 1.0 || row.cut.is_some()
}

/// Values of one channel of a line, while their terms are gathered.
struct Line {
    own: [f32; BLOCK],
    partner: [f32; BLOCK],
    /// Which images are erased there: 1 the own one, 2 the partner.
    erased: [u8; BLOCK],
}

/// The formula's factors for one channel of a row, and C by what is erased.
struct Weights<'a> {
    factors: Factors<'a>,
    offsets: [f32; 4],
}

/// Where a line's values lie.
struct Place {
    channel: usize,
    y: usize,
    columns: Range<usize>,
}

/// Erases the boxes in the mixed image of a row.
pub fn erase<E: Element>(level: Level, fills: &Fills, format: &Format, row: &Row<'_>, image: &mut [E]) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,f16c")]
    fn avx2<E: Element>(fills: &Fills, format: &Format, row: &Row<'_>, image: &mut [E]) {
        erase_values(fills, format, row, image);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,f16c,avx512bw,avx512vbmi,avx512bf16")]
    fn avx512<E: Element>(fills: &Fills, format: &Format, row: &Row<'_>, image: &mut [E]) {
        erase_values(fills, format, row, image);
    }

    match level {
        Level::Baseline => erase_values(fills, format, row, image),
        // SAFETY: `Level::available` lists them only where the machine has the features.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { avx2(fills, format, row, image) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { avx512(fills, format, row, image) },
    }
}

/// The loop of [`erase`], compiled for each level.
#[inline(always)]
fn erase_values<E: Element>(fills: &Fills, format: &Format, row: &Row<'_>, image: &mut [E]) {
    let (height, width) = (format.image_size.height as usize, format.image_size.width as usize);
    let partner = Some(&row.partner).filter(|_| shows_partner(row));
    let erasures = [row.own.erasure, partner.and_then(|partner| partner.erasure), row.erasure];
    let boxes = || erasures.iter().copied().flatten().flat_map(Erasure::boxes);
    let channels: [Weights<'_>; 3] = std::array::from_fn(|channel| {
        let factors = Factors::new(format, row.weight, channel, None);
        Weights { offsets: factors.offsets(format, row.weight, channel), factors }
    });
    let mut line = Line { own: [0.0; BLOCK], partner: [0.0; BLOCK], erased: [0; BLOCK] };
    for y in 0..height {
        let spans = boxes().map(|cut| overlap(cut, y, &(0..width))).filter(|span| !span.is_empty());
        let Some(hull) = spans.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)) else { continue };
        for first in hull.clone().step_by(BLOCK) {
            let columns = first..hull.end.min(first + BLOCK);
            for (channel, weights) in channels.iter().enumerate() {
                let place = Place { channel, y, columns: columns.clone() };
                line.mix(fills, format, row, weights, &place);
                let values = &line.own[..columns.len()];
                let start = y * width + columns.start;
                match format.layout {
                    Layout::Nchw => {
                        let out = &mut image[channel * height * width + start..][..columns.len()];
                        out.iter_mut().zip(values).for_each(|(out, &value)| *out = E::of(value));
                    }
                    Layout::Nhwc => {
                        let out = image[3 * start..][..3 * columns.len()].chunks_exact_mut(3);
                        out.zip(values).for_each(|(pixel, &value)| pixel[channel] = E::of(value));
                    }
                }
            }
        }
    }
}

impl Line {
    /// Leaves the finished values in `own`.
    #[inline(always)]
    fn mix(&mut self, fills: &Fills, format: &Format, row: &Row<'_>, weights: &Weights<'_>, place: &Place) {
        let (len, channel) = (place.columns.len(), place.channel);
        let Weights { factors, offsets } = weights;
        let (own_weight, partner_weight) = (row.weight, 1.0 - row.weight);
        let terms = Terms { fills, format, place };
        let Self { own, partner, erased } = self;
        let (own, partner, erased) = (&mut own[..len], &mut partner[..len], &mut erased[..len]);
        erased.fill(0);
        terms.write(&row.own, row.flip, factors.own, own_weight, 1, own, erased);
        if let Some(cut) = row.cut {
            let span = overlap(&cut, place.y, &place.columns);
            if !span.is_empty() {
                let at = span.start - place.columns.start..span.end - place.columns.start;
                let place = Place { channel, y: place.y, columns: span };
                erased[at.clone()].fill(0);
                let terms = Terms { place: &place, ..terms };
                let (own, erased) = (&mut own[at.clone()], &mut erased[at]);
                terms.write(&row.partner, row.partner_flip, factors.own, own_weight, 1, own, erased);
            }
        }
        if row.weight == 1.0 {
            partner.fill(0.0);
        } else {
            terms.write(&row.partner, row.partner_flip, factors.partner, partner_weight, 2, partner, erased);
        }
        let [of_both, of_partner, of_own, of_none] = *offsets;
        for ((own, partner), erased) in own.iter_mut().zip(partner).zip(erased) {
            // Choices are faster than a look-up.
            let (kept, patched) = if *erased & 2 == 0 { (of_both, of_partner) } else { (of_own, of_none) };
            *own = (*own + *partner) + if *erased & 1 == 0 { kept } else { patched };
        }
        if let Some(erasure) = row.erasure {
            terms.overlay(erasure, 1.0, own, |_| {});
        }
    }
}

/// Writes the terms of images.
#[derive(Clone, Copy)]
struct Terms<'a> {
    fills: &'a Fills,
    format: &'a Format,
    place: &'a Place,
}

impl Terms<'_> {
    /// An image's terms: `factor`·u, or where it is erased `weight`·z, which `mark` is set for.
    #[expect(clippy::too_many_arguments, reason = "an image's, and where to")]
    #[inline(always)]
    fn write(
        &self,
        sample: &Sample<'_>,
        flip: bool,
        factor: f32,
        weight: f32,
        mark: u8,
        terms: &mut [f32],
        erased: &mut [u8],
    ) {
        let size = self.format.image_size;
        let (width, Place { channel, y, columns }) = (size.width as usize, self.place);
        let line = &sample.bytes[channel * size.pixels() + y * width..][..width];
        if flip {
            let mirrored = line[width - columns.end..width - columns.start].iter().rev();
            terms.iter_mut().zip(mirrored).for_each(|(term, &u)| *term = factor * f32::from(u));
        } else {
            terms.iter_mut().zip(&line[columns.clone()]).for_each(|(term, &u)| *term = factor * f32::from(u));
        }
        if let Some(erasure) = sample.erasure {
            self.overlay(erasure, weight, terms, |span| erased[span].iter_mut().for_each(|erased| *erased |= mark));
        }
    }

    /// Writes `weight`·z to the parts of the line that an erasure's boxes cover, and calls `covered` with each span.
    #[inline(always)]
    fn overlay(&self, erasure: &Erasure, weight: f32, terms: &mut [f32], mut covered: impl FnMut(Range<usize>)) {
        let (size, Place { channel, y, columns }) = (self.format.image_size, self.place);
        for (nth, cut) in erasure.boxes().iter().enumerate() {
            let span = overlap(cut, *y, columns);
            if !span.is_empty() {
                let index = channel * size.pixels() + y * size.width as usize + span.start;
                let span = span.start - columns.start..span.end - columns.start;
                self.fills.write(erasure, nth, *channel, index, &mut terms[span.clone()]);
                terms[span.clone()].iter_mut().for_each(|term| *term *= weight);
                covered(span);
            }
        }
    }
}

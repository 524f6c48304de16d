//! Random numbers as a pure function of seed, stream, epoch, batch and row.
//!
//! The generator is ChaCha8 with a 64-bit stream id and a 64-bit block counter. The mapping, which is part of plan
//! version [`crate::batch::PLAN_VERSION`], is:
//!
//! - **key**, 32 bytes: the seed as 8 little-endian bytes, then the 24 bytes of `"mixd: plan, version 1\0\0\0"` (as they have been
//!   since version 1, from which version 2 differs in second orders only);
//! - **stream id**: `stream << 56 | epoch`, with [`Stream`]'s numbers;
//! - **first block**: `batch << 40 | row << 16`, so that each row has 2¹⁶ blocks of 16 words to itself, and each batch 2⁴⁰.
//!
//! Rows are counted over all ranks: row `r` of rank `k` is `r · world_size + k`, so ranks never share a draw.

use crate::types::{BATCH_BITS, EPOCH_BITS, ROW_BITS};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rand_distr::Beta;

/// What a random number is for. The numbers are part of the plan version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Stream {
    /// The epoch's order of samples, which may take more words than a row has: batch 0 is the first order, batch 1 the second, for
    /// partners from a second batch.
    Permutation = 0,
    /// The partners within a batch.
    Shuffle = 1,
    /// λ and, after it, where a CutMix box lies: its row, then its column.
    Lambda = 2,
    /// Flips: a row's first word decides on its own image, the second on a second batch's.
    Augmentation = 3,
    /// The crop of a row's own image.
    Crop = 4,
    /// The crop of a row's image of a second batch.
    SecondCrop = 5,
    /// Whether a row is mixed, and whether it is cut.
    Mix = 6,
    /// The operations of a row's policy.
    Policy = 7,
    /// Whether colors are jittered, in which order, and how far.
    ColorJitter = 8,
    /// Whether an image becomes gray.
    Grayscale = 9,
    /// Whether an image is blurred, and how far.
    Blur = 10,
    /// Whether an image is solarized.
    Solarize = 11,
    /// Whether boxes of an image are erased, the noise in them, and where they are.
    Erase = 12,
}

/// The generator for one purpose at one place.
///
/// # Panics
/// When epoch, batch or row exceed their bits.
pub fn at(seed: u64, stream: Stream, epoch: u64, batch: u64, row: u64) -> ChaCha8Rng {
    let mut rows = Rows::new(seed, stream, epoch, batch);
    rows.at(row);
    rows.rng
}

/// The generators for one purpose of all rows of a batch. They differ in their first block only, so that one is moved
/// from row to row: setting one up costs half of what a row's first words do.
#[derive(Debug, Clone)]
pub struct Rows {
    rng: ChaCha8Rng,
    batch: u64,
}

impl Rows {
    /// Those of a batch.
    ///
    /// # Panics
    /// When epoch or batch exceed their bits.
    pub fn new(seed: u64, stream: Stream, epoch: u64, batch: u64) -> Self {
        assert!(epoch >> EPOCH_BITS == 0 && batch >> BATCH_BITS == 0, "place out of range");
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..].copy_from_slice(b"mixd: plan, version 1\0\0\0");
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_stream((stream as u64) << EPOCH_BITS | epoch);
        Self { rng, batch }
    }

    /// The generator of a row, before its first word: what [`at`] returns.
    ///
    /// # Panics
    /// When the row exceeds its bits.
    pub fn at(&mut self, row: u64) -> &mut ChaCha8Rng {
        assert!(row >> ROW_BITS == 0, "place out of range");
        self.rng.set_word_pos(u128::from(self.batch << 40 | row << 16) * 16);
        &mut self.rng
    }
}

/// Moves the generator of a row, before its first word, by so many blocks.
pub fn skip_blocks(rng: &mut ChaCha8Rng, blocks: u32) {
    rng.set_word_pos(rng.get_word_pos() + u128::from(blocks) * 16);
}

/// A uniform number in `0..bound` by multiplication, with rejection (Lemire 2019), from 32-bit words.
pub fn below(rng: &mut ChaCha8Rng, bound: u32) -> u32 {
    let threshold = bound.wrapping_neg() % bound;
    loop {
        let product = u64::from(rng.next_u32()) * u64::from(bound);
        if product as u32 >= threshold {
            return (product >> 32) as u32;
        }
    }
}

/// A uniform number in [0, 1) of 32 random bits.
pub fn uniform(bits: u32) -> f64 {
    f64::from(bits) / 4_294_967_296.0
}

/// A uniform number in `0..=most` of 32 random bits.
pub fn up_to(bits: u32, most: u32) -> u32 {
    ((u64::from(bits) * (u64::from(most) + 1)) >> 32) as u32
}

/// Brings up to 2³² values into a uniformly random order (Fisher–Yates, from the end).
pub fn shuffle<T>(rng: &mut ChaCha8Rng, values: &mut [T]) {
    for last in (1..values.len()).rev() {
        values.swap(last, below(rng, last as u32 + 1) as usize);
    }
}

/// A uniform permutation of `0..n`.
pub fn permutation(mut rng: ChaCha8Rng, n: u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n).collect();
    shuffle(&mut rng, &mut order);
    order
}

/// Whether something of this probability happens: whether the next 32-bit word lies in the upper `prob` of its range. With ½ that is its top
/// bit; what is certain, or impossible, takes a word like the rest.
pub fn chance(rng: &mut ChaCha8Rng, prob: f64) -> bool {
    f64::from(rng.next_u32()) >= (1.0 - prob) * 4_294_967_296.0
}

/// Beta(α, α), over [0, 1].
///
/// # Panics
/// When `alpha` is not a positive, finite number.
pub fn beta(alpha: f64) -> Beta<f64> {
    Beta::new(alpha, alpha).expect("α is validated with the feed spec")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_distr::Distribution;

    #[test]
    fn the_mapping_of_plan_version_2_is_pinned() {
        let words = |stream, epoch, batch, row| at(7, stream, epoch, batch, row).next_u64();
        let pinned =
            [words(Stream::Permutation, 0, 0, 0), words(Stream::Shuffle, 1, 2, 0), words(Stream::Lambda, 3, 4, 5)];
        assert_eq!(pinned, PINNED_WORDS);
        assert_eq!(permutation(at(7, Stream::Permutation, 0, 0, 0), 10), PINNED_PERMUTATION);
        assert_eq!(beta(0.4).sample(&mut at(7, Stream::Lambda, 0, 0, 0)).to_bits(), PINNED_BETA);
    }
    const PINNED_WORDS: [u64; 3] = [14903477740133753189, 12691110767023999054, 17437460801570986790];
    const PINNED_PERMUTATION: [u32; 10] = [8, 2, 1, 0, 5, 3, 4, 6, 7, 9];
    const PINNED_BETA: u64 = 4605896218636578881;

    const STREAMS: [Stream; 13] = [
        Stream::Permutation,
        Stream::Shuffle,
        Stream::Lambda,
        Stream::Augmentation,
        Stream::Crop,
        Stream::SecondCrop,
        Stream::Mix,
        Stream::Policy,
        Stream::ColorJitter,
        Stream::Grayscale,
        Stream::Blur,
        Stream::Solarize,
        Stream::Erase,
    ];

    #[test]
    fn chances_are_what_they_say_and_a_half_is_the_top_bit() {
        let words = || at(3, Stream::Augmentation, 0, 0, 0);
        for prob in [0.0, 0.1, 0.5, 0.9, 1.0] {
            let mut rng = words();
            let hits = (0..10_000).filter(|_| chance(&mut rng, prob)).count() as f64 / 10_000.0;
            assert!((hits - prob).abs() < 0.02 && (prob.fract() != 0.0 || hits == prob), "{prob}: {hits}");
        }
        let (mut bits, mut rng) = (words(), words());
        assert!((0..1_000).all(|_| chance(&mut rng, 0.5) == (bits.next_u32() >> 31 == 1)));
    }

    #[test]
    fn a_generator_moved_to_a_row_is_the_rows_own() {
        let mut rows = Rows::new(7, Stream::Lambda, 3, 4);
        for row in [5, 0, 5, (1 << ROW_BITS) - 1] {
            let moved = rows.at(row);
            let words = |rng: &mut ChaCha8Rng| [(); 5].map(|()| rng.next_u32());
            assert_eq!(words(moved), words(&mut at(7, Stream::Lambda, 3, 4, row)));
        }
    }

    #[test]
    fn places_do_not_share_words() {
        let mut seen = std::collections::HashSet::new();
        for seed in 0..3 {
            for stream in STREAMS {
                for place in 0..64 {
                    let (epoch, batch, row) = (place >> 4, place >> 2 & 3, place & 3);
                    assert!(seen.insert(at(seed, stream, epoch, batch, row).next_u64()));
                }
            }
        }
    }

    #[test]
    fn below_is_uniform_over_small_bounds() {
        let mut rng = at(1, Stream::Shuffle, 0, 0, 0);
        for bound in 1..=7 {
            let mut counts = vec![0_u32; bound as usize];
            for _ in 0..7_000 {
                counts[below(&mut rng, bound) as usize] += 1;
            }
            let expected = 7_000.0 / f64::from(bound);
            let chi2: f64 = counts.iter().map(|&n| (f64::from(n) - expected).powi(2) / expected).sum();
            assert!(chi2 < 25.0, "bound {bound}: {counts:?}");
        }
    }
}

//! Lookup tables, one a channel, and the histograms from which some of them are made.
#![expect(unsafe_code, reason = "calls functions compiled for instruction sets that were detected at run time")]

use crate::render::each_level::each_level;
use crate::render::level::Level;

/// What each value of each channel becomes.
#[derive(Debug, Clone, PartialEq)]
pub struct Tables {
    channels: [[u8; 256]; 3],
}

const IDENTITY: [u8; 256] = {
    let (mut table, mut value) = ([0; 256], 0);
    while value < 256 {
        table[value] = value as u8;
        value += 1;
    }
    table
};

impl Tables {
    /// Nothing changes.
    pub const IDENTITY: Self = Self { channels: [IDENTITY; 3] };

    /// Maps what the tables give once more, the same way in each channel.
    pub fn then(&mut self, of: impl Fn(u8) -> u8) {
        self.channels.as_flattened_mut().iter_mut().for_each(|value| *value = of(*value));
    }

    /// Stretches each channel from its least and largest value to 0..=255, given the histograms of what the tables give.
    pub fn stretch(&mut self, histograms: &Histograms) {
        for (table, counts) in self.channels.iter_mut().zip(&histograms.channels) {
            let least = counts.iter().position(|&count| count > 0).unwrap_or(0);
            let largest = counts.iter().rposition(|&count| count > 0).unwrap_or(0);
            if largest > least {
                let scale = 255.0 / (largest - least) as f64;
                let offset = -(least as f64) * scale;
                table.iter_mut().for_each(|value| *value = (f64::from(*value) * scale + offset) as u8);
            }
        }
    }

    /// Equalizes the histogram of each channel, given the histograms of what the tables give.
    pub fn equalize(&mut self, histograms: &Histograms) {
        for (table, counts) in self.channels.iter_mut().zip(&histograms.channels) {
            let Some(last) = counts.iter().rposition(|&count| count > 0) else { continue };
            let step = (counts.iter().sum::<u32>() - counts[last]) / 255;
            // A channel of one value has a step of 0.
            if step == 0 {
                continue;
            }
            let (mut below, mut equalized) = (step / 2, [0; 256]);
            for (value, count) in equalized.iter_mut().zip(counts) {
                *value = (below / step).min(255) as u8;
                below += count;
            }
            table.iter_mut().for_each(|value| *value = equalized[usize::from(*value)]);
        }
    }

    /// Maps `planes`, u8 `[3, H, W]`. Returns whether there was anything to do.
    pub fn apply(&self, level: Level, planes: &mut [u8]) -> bool {
        if *self == Self::IDENTITY {
            return false;
        }
        let pixels = planes.len() / 3;
        for (table, plane) in self.channels.iter().zip(planes.chunks_exact_mut(pixels.max(1))) {
            match level {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: a level exists only where the machine has its features.
                Level::Avx512 => unsafe { look_up_avx512(table, plane) },
                _ => look_up(level, table, plane),
            }
        }
        true
    }
}

each_level! {
    /// Maps bytes by a table.
    fn look_up(table: &[u8; 256], values: &mut [u8]) {
        for value in values {
            *value = table[usize::from(*value)];
        }
    }
}

/// The same, 64 bytes at a time: the table fills four registers, of which two permutations select.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn look_up_avx512(table: &[u8; 256], values: &mut [u8]) {
    use std::arch::x86_64::*;
    // SAFETY: the table has 256 bytes.
    let [a, b, c, d] = [0, 64, 128, 192].map(|at| unsafe { _mm512_loadu_si512(table.as_ptr().add(at).cast()) });
    let (blocks, rest) = values.as_chunks_mut::<64>();
    for block in blocks {
        // SAFETY: a block has 64 bytes.
        let value = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
        let (low, high) = (_mm512_permutex2var_epi8(a, value, b), _mm512_permutex2var_epi8(c, value, d));
        let mapped = _mm512_mask_blend_epi8(_mm512_movepi8_mask(value), low, high);
        // SAFETY: as above.
        unsafe { _mm512_storeu_si512(block.as_mut_ptr().cast(), mapped) };
    }
    rest.iter_mut().for_each(|value| *value = table[usize::from(*value)]);
}

/// How often each value occurs in each channel.
pub struct Histograms {
    channels: [[u32; 256]; 3],
}

impl Histograms {
    /// Counts the values of `planes`, u8 `[3, H, W]`.
    pub fn of(planes: &[u8]) -> Self {
        let pixels = planes.len() / 3;
        Self { channels: [0, 1, 2].map(|channel| count(&planes[channel * pixels..][..pixels])) }
    }

    /// The histograms of what tables make of these values.
    pub fn through(&self, tables: &Tables) -> Self {
        let mut channels = [[0; 256]; 3];
        for ((to, from), table) in channels.iter_mut().zip(&self.channels).zip(&tables.channels) {
            for (count, &value) in from.iter().zip(table) {
                to[usize::from(value)] += count;
            }
        }
        Self { channels }
    }
}

/// Counts bytes, with a row of counters for each of eight neighbours: equal ones would wait for each other's store.
fn count(values: &[u8]) -> [u32; 256] {
    let mut counts = [[0_u32; 256]; 8];
    let (blocks, rest) = values.as_chunks::<8>();
    for block in blocks {
        counts.iter_mut().zip(block).for_each(|(counts, &value)| counts[usize::from(value)] += 1);
    }
    rest.iter().for_each(|&value| counts[0][usize::from(value)] += 1);
    std::array::from_fn(|value| counts.iter().map(|counts| counts[value]).sum())
}

//! The instruction sets that the pass is written for, and the choice between them.
#![expect(unsafe_code, reason = "calls functions compiled for instruction sets that were detected at run time")]

use super::lines::lines;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};

/// Instruction sets that the pass is written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// What every processor of the target has.
    Baseline,
    /// AVX2 and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 with VBMI and BF16: from Zen 4 and Sapphire Rapids on.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// Those that this machine has, best last.
    pub fn available() -> Vec<Self> {
        let mut levels = vec![Self::Baseline];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
            levels.push(Self::Avx2);
            if is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vbmi")
                && is_x86_feature_detected!("avx512bf16")
            {
                levels.push(Self::Avx512);
            }
        }
        levels
    }

    /// The best that this machine has.
    pub fn best() -> Self {
        *Self::available().last().expect("the baseline is always there")
    }

    /// The rounded products by which bytes are mixed, where the instruction set is faster with them and the weight allows it.
    pub fn table(self, weight: f32) -> Option<[u8; 256]> {
        match self {
            // SAFETY: `available` lists it only where the machine has the features.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { avx512::table(weight) },
            _ => None,
        }
    }

    /// Copies values `first..first + out.len()` of a plane whose lines are flipped.
    pub fn flip(self, plane: &[u8], width: usize, first: usize, out: &mut [u8]) {
        match self {
            Self::Baseline => {
                for (line, columns, at) in lines(width, first, out.len()) {
                    let from = &plane[line * width..][width - columns.end..width - columns.start];
                    out[at..at + columns.len()].iter_mut().zip(from.iter().rev()).for_each(|(to, &from)| *to = from);
                }
            }
            // SAFETY: `available` lists it only where the machine has the features.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 | Self::Avx512 => unsafe { avx2::flip(plane, width, first, out) },
        }
    }
}

//! The instruction sets that the renderer is written for.

/// Instruction sets that the renderer is written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// What every processor of the target has.
    Baseline,
    /// AVX2.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 with DQ, VL, VBMI and VNNI: from Ice Lake and Zen 4 on.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// The levels that this machine has, best last.
    pub fn available() -> Vec<Self> {
        let mut levels = vec![Self::Baseline];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            levels.push(Self::Avx2);
            if is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vbmi")
                && is_x86_feature_detected!("avx512vnni")
            {
                levels.push(Self::Avx512);
            }
        }
        levels
    }

    /// The best level that this machine has.
    pub fn best() -> Self {
        *Self::available().last().expect("the baseline is always there")
    }

    /// Whether AVX2 is part of it.
    #[cfg(target_arch = "x86_64")]
    pub fn has_avx2(self) -> bool {
        matches!(self, Self::Avx2 | Self::Avx512)
    }
}

//! Loops that are compiled for every instruction set of [`super::Level`].

/// Defines functions whose first argument is a level, and which run their body as compiled for it: the same operations in the same order,
/// so that every level gives the same bits.
macro_rules! each_level {
    ($($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)? $body:block)+) => {
        $($(#[$doc])*
        $vis fn $name(level: Level, $($arg: $type),*) $(-> $out)? {
            #[inline(always)]
            fn body($($arg: $type),*) $(-> $out)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $type),*) $(-> $out)? {
                    body($($arg),*)
                }

                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
                fn avx512($($arg: $type),*) $(-> $out)? {
                    body($($arg),*)
                }

                match level {
                    Level::Baseline => body($($arg),*),
                    // SAFETY: a level exists only where the machine has its features.
                    Level::Avx2 => unsafe { avx2($($arg),*) },
                    // SAFETY: as above.
                    Level::Avx512 => unsafe { avx512($($arg),*) },
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            match level {
                Level::Baseline => body($($arg),*),
            }
        })+
    };
}
pub(super) use each_level;

//! Keeps freed tensors' memory in the process.
#![expect(unsafe_code, reason = "a setting of the C library's allocator")]

/// Tells the C library to hand out large blocks from the heap and to keep the heap.
///
/// By default it maps every activation anew and unmaps it after the step, and the kernel clears each page again: a training
/// step of the seed's network took 3.6 times as long, half of it in the kernel (2 cores, 2026-11-23).
pub fn keep() {
    #[cfg(target_env = "gnu")]
    {
        let settings = [(libc::M_MMAP_MAX, 0), (libc::M_TRIM_THRESHOLD, i32::MAX), (libc::M_TOP_PAD, 256 << 20)];
        for (name, value) in settings {
            // SAFETY: mallopt takes two integers, may be called at any time, and refuses what it does not know.
            unsafe { libc::mallopt(name, value) };
        }
    }
}

//! What this process has used: processor time and memory.

use std::time::Duration;

/// A reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Processor time of all threads, user and system.
    pub cpu: Duration,
    /// Largest resident set so far, in bytes; 0 where the system does not say.
    pub peak_rss_bytes: u64,
}

/// What this process has used so far.
pub fn own() -> Usage {
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).and_then(|rest| {
        let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    });
    Usage { cpu: Duration::new(cpu.tv_sec as u64, cpu.tv_nsec as u32), peak_rss_bytes: peak.unwrap_or(0) }
}

//! What this process has used: processor time and memory.

use std::path::Path;
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
    let peak = kib(Path::new("/proc/self/status"), "VmHWM:");
    Usage { cpu: Duration::new(cpu.tv_sec as u64, cpu.tv_nsec as u32), peak_rss_bytes: peak.unwrap_or(0) }
}

/// The bytes that a file of /proc gives under a name.
fn kib(file: &Path, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Memory in bytes that this process could take without making the system swap, or its cgroup, a container's for example, kill it; `None`
/// where the system does not say. `root` is that of the file system.
pub fn available_memory(root: &Path) -> Option<u64> {
    let machine = kib(&root.join("proc/meminfo"), "MemAvailable:");
    let cgroups = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let groups = cgroups.lines().filter_map(|line| {
        // cgroup(7): a number, controllers (none in version 2), and the path, which in a container may be the host's.
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        match controllers {
            "" => Some(("sys/fs/cgroup", path, ["memory.max", "memory.current", ""])),
            _ if controllers.split(',').any(|controller| controller == "memory") => {
                let files = ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_"];
                Some(("sys/fs/cgroup/memory", path, files))
            }
            _ => None,
        }
    });
    let left = groups.flat_map(|(mount, path, [limit, usage, prefix])| {
        let mount = root.join(mount);
        // Any group above may be the one that is short.
        let left = move |group: &Path| {
            let dir = mount.join(group.strip_prefix("/").ok()?);
            let number = |name: &str| std::fs::read_to_string(dir.join(name)).ok()?.trim().parse::<u64>().ok();
            let limit = number(limit)?;
            let stat = std::fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
            // Pages of files, which the kernel takes back before it kills.
            let pages = |line: &str| {
                let (name, bytes) = line.strip_prefix(prefix)?.split_once(' ')?;
                ["active_file", "inactive_file"].contains(&name).then(|| bytes.parse::<u64>().ok())?
            };
            let cached: u64 = stat.lines().filter_map(pages).sum();
            Some(limit.saturating_sub(number(usage)?.saturating_sub(cached)))
        };
        Path::new(path).ancestors().filter_map(left).collect::<Vec<_>>()
    });
    left.chain(machine).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn available(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        available_memory(root.path())
    }

    #[test]
    fn the_tightest_of_machine_and_cgroups_counts() {
        let machine = ("proc/meminfo", "MemTotal: 90 kB\nMemAvailable:    4096 kB\n");
        assert_eq!(available(&[]), None);
        assert_eq!(available(&[machine]), Some(4096 << 10));
        let second = |path: &'static str, max: &'static str| {
            available(&[
                machine,
                ("proc/self/cgroup", path),
                ("sys/fs/cgroup/memory.max", "max\n"),
                ("sys/fs/cgroup/memory.current", "1\n"),
                ("sys/fs/cgroup/a/memory.max", max),
                ("sys/fs/cgroup/a/memory.current", "700\n"),
                ("sys/fs/cgroup/a/memory.stat", "anon 9\ninactive_file 150\nactive_file 50\n"),
                ("sys/fs/cgroup/a/b/memory.max", "max\n"),
                ("sys/fs/cgroup/a/b/memory.current", "5\n"),
            ])
        };
        assert_eq!(second("0::/a/b\n", "1000\n"), Some(500));
        assert_eq!(second("0::/a/b\n", "400\n"), Some(0));
        assert_eq!(second("0::/a/b\n", "max\n"), Some(4096 << 10));
        assert_eq!(second("0::/\n", "1000\n"), Some(4096 << 10));
        let first = available(&[
            machine,
            ("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:hugetlb,memory:/docker/of-the-host\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1000"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "300"),
            ("sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 80\ntotal_active_file 20\n"),
        ]);
        assert_eq!(first, Some(800));
    }
}

//! What this process and its machine use: processor time and memory.

use rustix::thread::CpuSet;
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

/// Time since the machine's start for which the processors that this process may run on were idle, summed over them; zero where the system does not
/// report it.
pub fn idle() -> Duration {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let allowed = rustix::thread::sched_getaffinity(None).ok();
    idle_of(&stat, |cpu| allowed.is_none_or(|allowed| cpu < CpuSet::MAX_CPU && allowed.is_set(cpu)))
}

/// [`idle`] from the text of /proc/stat (proc(5)): `cpuN user nice system idle iowait …`, in hundredths of a second.
fn idle_of(stat: &str, is_allowed: impl Fn(usize) -> bool) -> Duration {
    let ticks = stat.lines().filter_map(|line| {
        let mut words = line.strip_prefix("cpu")?.split(' ');
        let cpu = words.next()?.parse().ok()?;
        let idle = words.nth(3)?.parse::<u64>().ok()?;
        is_allowed(cpu).then_some(idle + words.next()?.parse::<u64>().ok()?)
    });
    Duration::from_millis(ticks.sum::<u64>() * 10)
}

/// Name of this process's script or module where an interpreter runs one, of its program otherwise, mixd's with the command; at most [`NAME_MAX`]
/// characters.
pub fn own_name() -> String {
    name_of(&std::fs::read("/proc/self/cmdline").unwrap_or_default())
}

/// Longest name of a process, in characters.
pub const NAME_MAX: usize = 64;

/// [`own_name`] from the process's arguments, each ended by a zero byte.
fn name_of(arguments: &[u8]) -> String {
    let words = String::from_utf8_lossy(arguments);
    let mut words = words.split('\0').filter(|word| !word.is_empty());
    let file = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    let program = file(words.next().unwrap_or_default());
    let mut name = program.clone();
    if program == "mixd" || program == "mixd-torch" {
        name.extend(words.next().iter().flat_map(|command| [" ", command]));
    } else if program.starts_with("python") || program.starts_with("pypy") {
        while let Some(word) = words.next() {
            match word {
                "-m" => name = words.next().unwrap_or_default().to_owned(),
                // Options that take a value of their own.
                "-W" | "-X" => {
                    words.next();
                    continue;
                }
                "-c" => {}
                _ if word.starts_with('-') => continue,
                script => name = file(script),
            }
            break;
        }
    }
    name.chars().take(NAME_MAX).collect()
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
    fn a_process_is_named_by_its_script() {
        let name =
            |words: &[&str]| name_of(words.iter().map(|word| format!("{word}\0")).collect::<String>().as_bytes());
        assert_eq!(name(&["/usr/bin/trainer", "--epochs", "5"]), "trainer");
        assert_eq!(name(&["/opt/venv/bin/python3", "-u", "-X", "dev", "/home/me/train.py", "-m"]), "train.py");
        assert_eq!(name(&["python", "-m", "mixd.bench", "--socket", "s"]), "mixd.bench");
        assert_eq!(
            (name(&["bin/mixd-torch", "train", "--lr=1"]), name(&["mixd"])),
            ("mixd-torch train".into(), "mixd".into())
        );
        assert_eq!(name(&["python", "-c", "import mixd"]), "python");
        assert_eq!((name(&["python3"]), name(&[])), ("python3".to_owned(), String::new()));
        assert_eq!(name(&[&"é".repeat(100)]).chars().count(), NAME_MAX);
    }

    #[test]
    fn idle_time_is_that_of_the_allowed_processors() {
        let stat = "cpu  9 9 9 900 90 9\ncpu0 1 2 3 100 20 6 0\ncpu1 1 2 3 400 50 6\ncpu10 0 0 0 7 0 0\nintr 5 6\n";
        assert_eq!(idle_of(stat, |_| true), Duration::from_millis(5_770));
        assert_eq!(idle_of(stat, |cpu| cpu == 1), Duration::from_millis(4_500));
        assert_eq!(idle_of("", |_| true), Duration::ZERO);
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

//! `mixd doctor`: what of this machine mixd's speed depends on, what to change, and what that brings.

use super::options::SocketArgs;
use crate::client::{self, ClientError};
use crate::cpus;
use crate::decode::{JPEG_DECODER, JPEG_DECODER_COST};
use crate::escape::escaped;
use crate::usage::available_memory;
use clap::Args;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::process::{Resource, getrlimit};
use serde_json::json;
use std::fmt::Display;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

/// File descriptors that a machine should allow: a feed takes four, and each image that is read one.
const DESCRIPTORS: u64 = 4_096;
/// Memory below which few data sets stay decoded.
const MEMORY: u64 = 4 << 30;
/// The first kernel whose futexes wait for several words at once.
const KERNEL: (u32, u32) = (5, 16);
/// Bytes of the file whose reads are measured, and how often.
const FILE_BYTES: usize = 64 << 20;
const READS: usize = 5;
/// Bytes of one read.
const PART_BYTES: usize = 1 << 20;

/// Check the machine: processors, instruction sets, JPEG decoder, memory, limits, kernel, page cache, GPU, daemon. Exits with 1 where mixd cannot work.
#[derive(Debug, Args)]
pub struct Doctor {
    #[command(flatten)]
    socket: SocketArgs,
    /// Print one line of JSON.
    #[arg(long, env = "MIXD_JSON")]
    json: bool,
}

/// How well something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    /// As it should be.
    Ok,
    /// Something is to be gained.
    Note,
    /// mixd cannot work like this.
    Fail,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Fail => "FAIL",
        }
    }
}

/// What was found, and for all but what is well what to change, and what that brings.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    level: Level,
    subject: &'static str,
    found: String,
    remedy: String,
}

fn ok(subject: &'static str, found: impl Display) -> Finding {
    Finding { level: Level::Ok, subject, found: found.to_string(), remedy: String::new() }
}

fn note(subject: &'static str, found: impl Display, remedy: impl Display) -> Finding {
    Finding { level: Level::Note, subject, found: found.to_string(), remedy: remedy.to_string() }
}

fn fail(subject: &'static str, found: impl Display, remedy: impl Display) -> Finding {
    Finding { level: Level::Fail, ..note(subject, found, remedy) }
}

impl Doctor {
    pub fn run(self) -> anyhow::Result<()> {
        let root = Path::new("/");
        let findings = [
            processors(cpus::available(), cpus::online()),
            instructions(),
            governor(root),
            decoder(),
            memory(available_memory(root)),
            shared_memory(),
            descriptors(getrlimit(Resource::Nofile).maximum),
            kernel(&rustix::system::uname().release().to_string_lossy()),
            page_cache(&std::env::temp_dir()),
            gpu(),
            daemon(&self.socket.path()),
        ];
        super::print(|out| {
            if self.json {
                let list = findings.iter().map(|finding| {
                    let Finding { level, subject, found, remedy } = finding;
                    json!({"level": level.name().to_lowercase(), "subject": subject, "found": found, "remedy": remedy})
                });
                return writeln!(out, "{}", json!(list.collect::<Vec<_>>()));
            }
            findings.iter().try_for_each(|finding| print(out, finding))
        })?;
        let failed = findings.iter().filter(|finding| finding.level == Level::Fail).count();
        anyhow::ensure!(failed == 0, "{failed} of {} checks failed (see the remedies above)", findings.len());
        Ok(())
    }
}

fn print(out: &mut dyn Write, finding: &Finding) -> std::io::Result<()> {
    let Finding { level, subject, found, remedy } = finding;
    writeln!(out, "{:<5} {subject:<14} {found}", level.name())?;
    if remedy.is_empty() { Ok(()) } else { writeln!(out, "{:<5} {:<14} → {remedy}", "", "") }
}

fn processors(available: usize, online: usize) -> Finding {
    let found = format!("{available} of {online}");
    if available < online {
        let remedy = "decoding and rendering scale with them: raise the quota (docker --cpus, resources.limits.cpu, --cpus-per-task) or the affinity (taskset, cpuset)";
        return note("processors", found, remedy);
    }
    ok("processors", found)
}

fn instructions() -> Finding {
    let (mixer, renderer) = (crate::mix::Level::best(), crate::render::Level::best());
    let found = format!("mixer {mixer:?}, renderer {renderer:?}");
    if cfg!(target_arch = "x86_64") && mixer == crate::mix::Level::Baseline {
        let remedy = "this processor, or its virtual machine, has no AVX2 and F16C: mixing and resizing take several times as long; choose a CPU model that has them";
        return note("instructions", found, remedy);
    }
    ok("instructions", found)
}

/// What sets the clock of the processors, below `root`.
fn governor(root: &Path) -> Finding {
    match std::fs::read_to_string(root.join("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")) {
        Ok(text) if text.trim() == "powersave" => {
            let driver = std::fs::read_to_string(root.join("sys/devices/system/cpu/cpu0/cpufreq/scaling_driver"));
            // These choose clocks themselves, whatever the name.
            match driver.as_deref().map(str::trim) {
                Ok("intel_pstate" | "amd-pstate-epp") => {
                    ok("clock", format!("powersave of {}", driver.expect("read").trim()))
                }
                _ => note(
                    "clock",
                    "powersave",
                    "`cpupower frequency-set -g performance` (or schedutil): processors run at their lowest clock now",
                ),
            }
        }
        Ok(text) => ok("clock", text.trim()),
        Err(_) => ok("clock", "set by the host"),
    }
}

fn decoder() -> Finding {
    match JPEG_DECODER_COST {
        None => ok("jpeg decoder", JPEG_DECODER),
        Some(cost) => note("jpeg decoder", JPEG_DECODER, cost),
    }
}

fn memory(available: Option<u64>) -> Finding {
    let Some(bytes) = available else { return ok("memory", "the system does not report what is available") };
    let found = format!("{:.1} GiB available, of which --cache auto takes half", bytes as f64 / f64::from(1 << 30));
    if bytes < MEMORY {
        let remedy = "images that do not fit are decoded in each epoch: give the machine or container more, or use --source 256 and --cache-file";
        return note("memory", found, remedy);
    }
    ok("memory", found)
}

/// Rings are sealed memfds: the size of /dev/shm does not matter.
fn shared_memory() -> Finding {
    let make = || -> rustix::io::Result<()> {
        let file = memfd_create("mixd-doctor", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, 1 << 20)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE)
    };
    match make() {
        Ok(()) => ok("shared memory", "sealed memfds; /dev/shm is not used, whatever its size"),
        Err(error) => fail(
            "shared memory",
            format!("a sealed memfd cannot be made: {error}"),
            "Linux 5.1 or newer, and a seccomp profile that allows memfd_create",
        ),
    }
}

fn descriptors(maximum: Option<u64>) -> Finding {
    match maximum {
        Some(count) if count < 32 => fail(
            "files",
            format!("{count} may be open"),
            "raise `ulimit -Hn` (LimitNOFILE= of systemd, --ulimit nofile= of docker)",
        ),
        Some(count) if count < DESCRIPTORS => {
            let remedy = "each feed takes four, and each worker one: raise `ulimit -Hn` for many trainers (LimitNOFILE= of systemd, --ulimit nofile= of docker)";
            note("files", format!("{count} may be open"), remedy)
        }
        Some(count) => ok("files", format!("{count} may be open")),
        None => ok("files", "no limit"),
    }
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < KERNEL {
        let remedy = format!(
            "Linux {}.{} or newer wakes a shared feed with delivery latest at once; before, it polls",
            KERNEL.0, KERNEL.1
        );
        return note("kernel", release, remedy);
    }
    ok("kernel", release)
}

/// How fast a file that is in the page cache is read.
fn page_cache(folder: &Path) -> Finding {
    let measure = || -> std::io::Result<f64> {
        let path = folder.join(format!("mixd-doctor-{}", std::process::id()));
        let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path)?;
        // It has no name from here on, whatever happens.
        std::fs::remove_file(&path)?;
        let mut bytes = vec![1; PART_BYTES];
        let places = (0..FILE_BYTES).step_by(PART_BYTES);
        places.clone().try_for_each(|at| file.write_all_at(&bytes, at as u64))?;
        let mut best = 0.0_f64;
        for _ in 0..READS {
            let start = Instant::now();
            places.clone().try_for_each(|at| file.read_exact_at(&mut bytes, at as u64))?;
            best = best.max(FILE_BYTES as f64 / start.elapsed().as_secs_f64());
        }
        Ok(best)
    };
    match measure() {
        Ok(rate) => ok(
            "page cache",
            format!("reads {:.1} GB/s on one processor: {:.0}k JPEGs of 110 KB a second", rate / 1e9, rate / 110e6),
        ),
        Err(error) => note(
            "page cache",
            format!("not measured: {error}"),
            format!("make {} writable (TMPDIR), with 64 MiB free", escaped(folder)),
        ),
    }
}

#[cfg(feature = "cuda")]
fn gpu() -> Finding {
    match crate::cuda::Gpu::open(0) {
        Err(error) => ok("gpu", format!("none for --device cuda: {error}")),
        Ok(gpu) => {
            let pipes = std::env::var_os("CUDA_MPS_PIPE_DIRECTORY").unwrap_or("/tmp/nvidia-mps".into());
            if Path::new(&pipes).join("control").exists() {
                return ok("gpu", format!("{}, MPS is on", gpu.name()));
            }
            let remedy = "with --device cuda the daemon and trainers take turns on the GPU: `nvidia-cuda-mps-control -d` lets their kernels run at once";
            note("gpu", format!("{}, MPS is off", gpu.name()), remedy)
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn gpu() -> Finding {
    ok("gpu", "this build has no --device cuda (`make` builds it)")
}

fn daemon(socket: &Path) -> Finding {
    match client::status(socket) {
        Ok(status) if status.version != env!("CARGO_PKG_VERSION") => {
            let found = format!("version {} on {}", status.version, escaped(socket));
            note("daemon", found, concat!("this is ", env!("CARGO_PKG_VERSION"), ": use the same mixd on both sides"))
        }
        Ok(status) => ok("daemon", format!("{} (pid {}) on {}", status.data, status.pid, escaped(socket))),
        Err(ClientError::NoDaemon { .. }) if !socket.exists() => ok("daemon", format!("none on {}", escaped(socket))),
        Err(error) => note("daemon", error, "trainers would meet the same error"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(findings: &[Finding]) -> Vec<Level> {
        findings.iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn what_is_short_has_a_remedy_and_what_is_well_has_none() {
        use Level::{Fail, Note, Ok};
        let clock = |governor: &str, driver: &str| {
            let root = tempfile::tempdir().unwrap();
            let folder = root.path().join("sys/devices/system/cpu/cpu0/cpufreq");
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("scaling_governor"), governor).unwrap();
            std::fs::write(folder.join("scaling_driver"), driver).unwrap();
            super::governor(root.path())
        };
        let findings = [
            processors(2, 2),
            processors(2, 64),
            memory(Some(64 << 30)),
            memory(Some(1 << 30)),
            memory(None),
            descriptors(None),
            descriptors(Some(1 << 20)),
            descriptors(Some(1_024)),
            descriptors(Some(20)),
            kernel("6.1.0-13-amd64"),
            kernel("5.15.0"),
            kernel("strange"),
            clock("performance\n", "acpi-cpufreq\n"),
            clock("powersave\n", "acpi-cpufreq\n"),
            clock("powersave\n", "intel_pstate\n"),
            governor(Path::new("/no/such/root")),
            page_cache(Path::new("/no/such/folder")),
        ];
        let expected = [Ok, Note, Ok, Note, Ok, Ok, Ok, Note, Fail, Ok, Note, Note, Ok, Note, Ok, Ok, Note];
        assert_eq!(levels(&findings), expected);
        assert!(findings.iter().all(|finding| finding.remedy.is_empty() == (finding.level == Ok)), "{findings:?}");
    }
}

//! Which processors the daemon uses, and whether its threads give way to others.

use rustix::thread::{CpuSet, sched_setaffinity};
use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::str::FromStr;

/// Processors by number, as `0-3,6`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpus(Vec<usize>);

/// A list of processors that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a list of processors (use numbers and ranges up to {max}, such as 0-3,6)", max = CpuSet::MAX_CPU - 1)]
pub struct CpusError(String);

impl FromStr for Cpus {
    type Err = CpusError;

    fn from_str(text: &str) -> Result<Self, CpusError> {
        let refused = || CpusError(text.to_owned());
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| text.trim().parse::<usize>().ok().filter(|&cpu| cpu < CpuSet::MAX_CPU);
            let (first, last) = (number(first).ok_or_else(refused)?, number(last).ok_or_else(refused)?);
            if first > last {
                return Err(refused());
            }
            cpus.extend(first..=last);
        }
        cpus.sort_unstable();
        cpus.dedup();
        Ok(Self(cpus))
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(usize::to_string).collect();
        f.write_str(&numbers.join(","))
    }
}

impl Cpus {
    /// Has the calling thread, and threads that it starts from now on, run on these processors only.
    ///
    /// # Errors
    /// When the machine has none of them, or does not let this process use them.
    pub fn pin(&self) -> io::Result<()> {
        let mut set = CpuSet::new();
        self.0.iter().for_each(|&cpu| set.set(cpu));
        Ok(sched_setaffinity(None, &set)?)
    }
}

/// How many processors the calling thread may use: those that it may run on, or fewer where its cgroup has a quota.
pub fn available() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// How many processors the machine has, for whichever process.
pub fn online() -> usize {
    let list = std::fs::read_to_string("/sys/devices/system/cpu/online").ok();
    list.and_then(|list| list.trim().parse().ok()).map_or_else(available, |cpus: Cpus| cpus.0.len())
}

/// How many decode threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workers {
    /// As many as there are processors, which give way to trainers.
    Auto,
    /// This many, which do not.
    Count(NonZeroUsize),
}

impl Workers {
    /// The number of threads.
    pub fn count(self) -> usize {
        match self {
            Self::Auto => available(),
            Self::Count(count) => count.get(),
        }
    }
}

impl FromStr for Workers {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => text.parse().map(Self::Count).map_err(|_| "use auto or a number from 1"),
        }
    }
}

impl fmt::Display for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Count(count) => count.fmt(f),
        }
    }
}

/// Has the calling thread, and threads that it starts from now on, run on every processor that the system grants it.
pub fn unbind() {
    let mut all = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|cpu| all.set(cpu));
    // The kernel takes those that there are and that the cgroup may use.
    let _ = sched_setaffinity(None, &all);
}

/// How far threads that give way stand back: a trainer that wants a processor gets nine tenths of it.
const NICE: i32 = 10;

/// Has the calling thread give way to others that want its processor.
pub fn give_way() {
    // Refused at most where somebody wants it otherwise.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        let read = |text: &str| text.parse::<Cpus>().map(|cpus| cpus.to_string());
        for (text, cpus) in [("0", "0"), ("0-3,6", "0,1,2,3,6"), ("6, 2-3,3", "2,3,6")] {
            assert_eq!(read(text), Ok(cpus.to_owned()));
        }
        for text in ["", "a", "3-1", "1,", "-1", "1-", "99999"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_machine_has_at_least_the_processors_of_this_thread() {
        assert!(online() >= available());
    }

    #[test]
    fn a_pinned_thread_has_what_it_was_given() {
        std::thread::spawn(|| {
            let set = rustix::thread::sched_getaffinity(None).unwrap();
            let first = (0..CpuSet::MAX_CPU).find(|&cpu| set.is_set(cpu)).unwrap();
            Cpus(vec![first]).pin().unwrap();
            assert_eq!((available(), Workers::Auto.count()), (1, 1));
            assert!(Cpus(vec![CpuSet::MAX_CPU - 1]).pin().is_err());
            unbind();
            assert_eq!(rustix::thread::sched_getaffinity(None).unwrap(), set);
        })
        .join()
        .unwrap();
    }
}

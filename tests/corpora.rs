//! The seeds of `make fuzz` as plain tests: what has once broken a promise of the product, and an example of each kind of input.

mod fuzzed;

use std::path::Path;
use std::time::{Duration, Instant};

#[test]
fn every_target_has_seeds_and_none_of_them_breaks_a_promise() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (target, body) in fuzzed::TARGETS {
        let entries = std::fs::read_dir(corpora.join(target)).unwrap_or_else(|error| panic!("{target}: {error}"));
        let seeds: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        assert!(!seeds.is_empty(), "{target} has no seeds");
        for seed in seeds {
            // Printed where the test fails.
            println!("{}", seed.display());
            body(&std::fs::read(&seed).unwrap());
        }
    }
}

#[test]
fn every_target_of_the_fuzzer_is_one_of_these() {
    let manifest: toml::Table = include_str!("../fuzz/Cargo.toml").parse().unwrap();
    let bins = manifest["bin"].as_array().unwrap().iter().map(|bin| bin["name"].as_str().unwrap());
    assert_eq!(bins.collect::<Vec<_>>(), fuzzed::TARGETS.map(|(target, _)| target));
}

/// Seeds with a few bytes changed, moved or cut, for a second a target: what `make fuzz` does for longer and by coverage.
#[test]
fn changed_seeds_of_data_sets_break_no_promise() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = |below: usize| {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % below.max(1)
    };
    for (target, body) in fuzzed::TARGETS {
        if !["archive", "binaries", "labels", "shard", "table"].contains(&target) {
            continue;
        }
        let mut paths: Vec<_> =
            std::fs::read_dir(corpora.join(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort_unstable();
        let seeds: Vec<_> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
        let start = Instant::now();
        for round in 0.. {
            if start.elapsed() > Duration::from_secs(1) {
                break;
            }
            let mut bytes = seeds[random(seeds.len())].clone();
            for _ in 0..=random(4) {
                let at = random(bytes.len());
                match random(4) {
                    0 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7F, 0x80, 0xFF, b'\n', b'"'][random(7)],
                    1 if !bytes.is_empty() => bytes[at] ^= 1 << random(8),
                    2 => bytes.truncate(at),
                    _ => {
                        let from = &seeds[random(seeds.len())];
                        let first = random(from.len());
                        let part = &from[first..from.len().min(first + random(64))];
                        bytes.splice(at..at, part.iter().copied());
                    }
                }
            }
            // Printed where the test fails.
            println!("{target} {round}: {}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
            body(&bytes);
        }
    }
}

//! The seeds of `make fuzz` as plain tests: what has once broken a promise of the product, and an example of each kind of input.

mod fuzzed;

use std::path::Path;

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

//! Runs that a store dies under: what they read is what they would have read.

use super::*;

/// How long the store is away: `MIXD_OUTAGE_S=20` for the time in the requirement.
fn outage() -> Duration {
    Duration::from_secs_f64(std::env::var("MIXD_OUTAGE_S").ok().and_then(|text| text.parse().ok()).unwrap_or(2.0))
}

/// Reads what a trainer says while the store is away; it must have needed the store.
fn away(trainer: &mut Trainer, batches_max: usize) {
    let until = Instant::now() + outage();
    let before = trainer.read.len();
    while let Ok(line) = trainer.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
        let Some(line) = line.strip_prefix("batch ") else { continue };
        let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
        trainer.read.push((mixd::types::Place { epoch: numbers[0], index: numbers[1] }, numbers[2]));
    }
    assert!(trainer.read.len() - before < batches_max, "there was no need of the store");
}

/// Reads to the end: nothing is lost, repeated or changed, and no sample bad.
fn finish(world: &World, daemon: &Daemon, trainer: &mut Trainer, batches: usize) {
    trainer.finish();
    assert_eq!(trainer.read.len(), batches);
    Oracle::of(world.shards.dir.path()).check(trainer);
    let status = client::status(&daemon.socket()).unwrap();
    assert!(status.bad_samples.is_empty(), "{:?}", status.bad_samples);
}

#[test]
fn a_run_survives_the_stores_death_and_loses_repeats_and_changes_nothing() {
    let mut world = World::new(40, 400_000);
    let data = format!("s3://{BUCKET}/set");
    drop(world.daemon(&data, &[]));
    std::fs::remove_dir_all(world.cache()).unwrap();
    world.proxy.hold(BLOCK as u64..u64::MAX);
    let daemon = world.daemon(&data, &["--store-timeout", "60", "--cache", "off"]);
    let spec = FeedSpec { shuffle: Shuffle::Off, batch_size: 8, mix: mixd::spec::Mix::NONE, ..spec() };
    let mut trainer = Trainer::start(&daemon, spec, 60, 0);
    trainer.batches(1);
    world.server.die();
    world.proxy.hold(0..0);
    away(&mut trainer, 25);
    world.server.come_back();
    finish(&world, &daemon, &mut trainer, 60);
}

/// As runs are: shuffled over all shards, mixed, and with more shards than the disk cache has room for.
#[test]
fn a_shuffled_run_on_more_than_fits_survives_the_stores_death() {
    let mut world = World::new(10, 1_000_000);
    let data = format!("s3://{BUCKET}/set");
    let cache = format!("--disk-cache={}:64M", world.cache().display());
    let daemon = world.daemon(&data, &[&cache, "--store-timeout", "60", "--cache", "off"]);
    let mut trainer = Trainer::start(&daemon, FeedSpec { batch_size: 8, ..spec() }, 40, 0);
    trainer.batches(1);
    world.server.die();
    away(&mut trainer, 39);
    world.server.come_back();
    finish(&world, &daemon, &mut trainer, 40);
}

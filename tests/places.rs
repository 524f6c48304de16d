//! A batch is a function of its place: plans, replays, later starts and ranks on other daemons all make the same.

mod common;

use common::{Daemon, mixd, refusal, run, sample_data, stderr, until};
use mixd::client::{self, ClientError, Reason};
use mixd::pipeline::in_flight;
use mixd::plan::Sampler;
use mixd::spec::{Consumed, FeedSpec, Mix, MixPer, Pairing, Share};
use mixd::types::{Dtype, ImageSize, Last, Layout, Place, Start};

fn spec() -> FeedSpec {
    FeedSpec { batch_size: 16, image_size: ImageSize::square(48), digest: true, seed: 3, ..FeedSpec::train() }
}

#[test]
fn a_feed_that_starts_anywhere_decodes_nothing_of_what_it_skips() {
    let daemon = Daemon::start(&["--cache=off"]);
    let spec = FeedSpec { batch_size: 4, start: Start::At(Place { epoch: 40, index: 30 }), ..spec() };
    let mut feed = daemon.attach(spec).unwrap();
    assert_eq!(feed.place(), Place { epoch: 40, index: 30 });
    let batch = feed.next_batch().unwrap();
    assert_eq!((batch.view().head.epoch, batch.view().head.index, feed.place().index), (40, 30, 31));
    drop((batch, feed));
    until("the feed closes", || client::status(&daemon.socket()).unwrap().feeds.is_empty().then_some(()));
    let status = client::status(&daemon.socket()).unwrap();
    let decoded = status.stages.iter().find(|stage| stage.name == "decode").unwrap().items;
    // What may be made ahead of the trainer, and the one batch that it gave back.
    assert!(decoded <= 4 * (in_flight(spec.slots) + 1), "{decoded}");
}

/// What `mixd replay` says of a digest.
fn verify(place: Place, digest: u64, options: &[&str]) -> std::process::Output {
    let data = sample_data();
    let place = [format!("--epoch={}", place.epoch), format!("--batch={}", place.index)];
    let verify = format!("--verify={digest:#x}");
    let fixed = ["replay", "--data", data.to_str().unwrap(), &place[0], &place[1], &verify, "--cache=off"];
    run(&[&fixed[..], &["--batch-size=16", "--size=48", "--seed=3", "--workers=1"], options].concat())
}

#[test]
fn replay_verifies_the_digests_of_whatever_is_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let cache_file = format!("--cache-file={}", dir.path().join("cache").display());
    let daemons = [Daemon::start(&[]), Daemon::start(&["--workers=3", &cache_file])];
    let unfolded = Mix { per: MixPer::Batch, fold: false, ..Mix::mixup(0.4) };
    let second = Mix { pairing: Pairing::SecondBatch, ..Mix::mixup(1.0) };
    let cut_by_batch = Mix { per: MixPer::Batch, ..Mix::cutmix(1.0) };
    let val = FeedSpec { batch_size: 16, image_size: ImageSize::square(48), digest: true, seed: 3, ..FeedSpec::val() };
    let at = |index| Place { epoch: 2, index };
    let cases: [(FeedSpec, Place, &[&str]); 10] = [
        (spec(), at(4), &[]),
        (FeedSpec { share: Some(Share::new("any".parse().unwrap())), ..spec() }, at(12), &[]),
        (FeedSpec { flip: 0.5, mix: Mix::cutmix(1.0), ..spec() }, at(4), &["--flip", "--cutmix=1"]),
        (
            FeedSpec { mix: cut_by_batch, dtype: Dtype::Bf16, ..spec() },
            at(4),
            &["--cutmix=1", "--lambda=per-batch", "--dtype=bf16"],
        ),
        (FeedSpec { dtype: Dtype::U8, layout: Layout::Nhwc, ..spec() }, at(4), &["--dtype=u8", "--layout=nhwc"]),
        (
            FeedSpec { mix: unfolded, dtype: Dtype::F16, mean: [0.1, 0.2, 0.5], std: [0.5, 0.25, 1.0], ..spec() },
            at(4),
            &["--lambda=per-batch", "--no-fold", "--dtype=f16", "--mean=0.1,0.2,0.5", "--std=0.5,0.25,1"],
        ),
        (
            FeedSpec { mix: second, last: Last::Drop, ..spec() },
            at(11),
            &["--pairing=second-batch", "--alpha=1", "--last=drop"],
        ),
        // Its last batch of three rows, of which one is padding.
        (FeedSpec { rank: 2, world_size: 3, ..spec() }, at(4), &["--rank=2", "--world-size=3"]),
        // The last of the four batches that 40 samples, which others have read, leave of five.
        (
            FeedSpec { rank: 2, world_size: 3, consumed: Some(Consumed { epoch: 2, samples: 40 }), ..spec() },
            at(4),
            &["--rank=2", "--world-size=3", "--consumed=2,40"],
        ),
        (val, at(3), &["--split=val"]),
    ];
    for (spec, place, options) in cases {
        for daemon in &daemons {
            let mut feed = daemon.attach(FeedSpec { start: Start::At(place), ..spec }).unwrap();
            let batch = feed.next_batch().unwrap();
            let digest = batch.header().digest;
            assert!(batch.place() == place && batch.header().pad == u32::from(spec.world_size == 3));
            let right = verify(place, digest, options);
            assert!(right.status.success(), "{options:?}: {}", stderr(&right));
            assert!(String::from_utf8_lossy(&right.stdout).contains(&format!("{digest:#018x}")));
            let wrong = verify(at(place.index - 1), digest, options);
            assert!(wrong.status.code() == Some(1) && stderr(&wrong).contains(&format!("not {digest:#018x}")));
        }
    }
}

/// In floating point mixers round differently, which digests say; u8 is the same from all.
#[test]
#[cfg(feature = "torch")]
fn replay_verifies_what_torch_has_mixed_with_torch_and_u8_with_any_mixer() {
    let daemon = Daemon::start(&["--mixer=torch"]);
    for (dtype, by_cpu) in [(Dtype::F32, false), (Dtype::F16, false), (Dtype::U8, true)] {
        let spec = FeedSpec { dtype, flip: 0.5, ..spec() };
        let mut feed = daemon.attach(spec).unwrap();
        let batch = feed.next_batch().unwrap();
        assert!(feed.is_intact(&batch) && feed.mixer() == "torch");
        let dtype = format!("--dtype={dtype}");
        let verify = |mixer| verify(batch.place(), batch.header().digest, &["--flip", &dtype, mixer]).status.success();
        assert_eq!((verify("--mixer=torch"), verify("--mixer=cpu")), (true, by_cpu), "{dtype}");
    }
}

#[test]
fn two_ranks_on_two_daemons_are_one_world() {
    let daemons = [Daemon::start(&[]), Daemon::start(&["--workers=1", "--cache=off"])];
    let whole = FeedSpec { batch_size: 20, flip: 0.5, ..spec() };
    let epoch = |daemon: &Daemon, spec: FeedSpec| -> Vec<(u32, i64)> {
        let mut feed = daemon.attach(FeedSpec { start: Start::At(Place { epoch: 1, index: 0 }), ..spec }).unwrap();
        let rows = |batch: Result<client::Batch, ClientError>| {
            let batch = batch.unwrap();
            let view = batch.view();
            assert_eq!(view.head.pad, 0);
            view.sample_id.iter().copied().zip(view.label_a.iter().copied()).collect::<Vec<_>>()
        };
        feed.epoch().flat_map(rows).collect()
    };
    let ranks =
        [0, 1].map(|rank| epoch(&daemons[rank as usize], FeedSpec { batch_size: 10, rank, world_size: 2, ..whole }));
    assert_eq!(ranks.each_ref().map(Vec::len), [100, 100]);
    let dealt: Vec<_> = ranks[0].iter().zip(&ranks[1]).flat_map(|(&zero, &one)| [zero, one]).collect();
    assert_eq!(dealt, epoch(&daemons[0], whole));
}

#[test]
fn the_rest_of_an_epoch_is_where_its_feed_begins_and_another_feed_than_the_whole() {
    let daemon = Daemon::start(&[]);
    let share = Some(Share::new("rest".parse().unwrap()));
    let rest = FeedSpec { world_size: 3, consumed: Some(Consumed { epoch: 2, samples: 40 }), share, ..spec() };
    let mut feed = daemon.attach(rest).unwrap();
    assert_eq!((feed.place(), feed.batches()), (Place { epoch: 2, index: 1 }, 5));
    let keys = vec!["consumed".to_owned()];
    assert_eq!(refusal(daemon.attach(FeedSpec { consumed: None, ..rest })), Reason::OtherSpec { keys });
    let before = FeedSpec { share: None, start: Start::At(Place { epoch: 2, index: 0 }), ..rest };
    assert_eq!(refusal(daemon.attach(before)), Reason::Spec);
    let shown: Vec<u32> = feed.epoch().flat_map(|batch| batch.unwrap().view().sample_id.to_vec()).collect();
    // As `mixd plan` prints them, which has no plan of an epoch before.
    let data = sample_data();
    let plan = |epoch: &str| {
        let fixed = ["plan", "--data", data.to_str().unwrap(), epoch, "--json", "--consumed=2,40", "--world-size=3"];
        run(&[&fixed[..], &["--batch-size=16", "--size=48", "--seed=3"]].concat())
    };
    let output = String::from_utf8(plan("--epoch=2").stdout).unwrap();
    let lines: Vec<serde_json::Value> = output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.iter().map(|line| line["index"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 3, 4]);
    let planned = lines.iter().flat_map(|line| line["sample_id"].as_array().unwrap());
    assert!(planned.map(|id| id.as_u64().unwrap()).eq(shown.iter().map(|&id| u64::from(id))));
    let before = plan("--epoch=1");
    assert!(!before.status.success() && stderr(&before).contains("40 samples are consumed"), "{}", stderr(&before));
}

#[test]
fn plans_name_boxes_and_flips() {
    let data = sample_data();
    let output = mixd()
        .args(["plan", "--data", data.to_str().unwrap(), "--epoch=0", "--cutmix=1", "--flip", "--json", "--size=32"])
        .output()
        .unwrap();
    let line = String::from_utf8(output.stdout).unwrap();
    let plan: serde_json::Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
    let spec = FeedSpec { image_size: ImageSize::square(32), mix: Mix::cutmix(1.0), ..FeedSpec::train() };
    let expected = Sampler::new(FeedSpec { flip: 0.5, ..spec }, 200).unwrap().epoch(0).plan(0);
    let boxes = expected.each(|row| row.mix.cut().map(|cut| [cut.top, cut.bottom, cut.left, cut.right]));
    assert_eq!(plan["box"], serde_json::json!(boxes));
    assert_eq!(plan["flip"], serde_json::json!(expected.each(|row| row.own.view.flip)));
    assert_eq!(plan["partner_flip"], serde_json::json!(expected.each(|row| row.partner.view.flip)));
}

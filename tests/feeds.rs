//! Trainers in processes of their own, at private and shared feeds, that come, stall, are killed and lose their daemon: each gets every
//! batch that it should, once, in order and whole.

mod common;

use common::trainer::{ENDLESS, Oracle, Orders, Trainer};
use common::{DEADLINE, Daemon, refusal, run, sample_data, stderr, twice_the_sample_data, until};
use mixd::client::{self, ClientError, Reason};
use mixd::spec::{Delivery, FeedSpec, Mix, Pairing, Share};
use mixd::status::Feed;
use mixd::types::{Dtype, ImageSize, Layout, Place, Start};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use std::io::Write;
use std::time::{Duration, Instant};

fn spec() -> FeedSpec {
    FeedSpec { batch_size: 16, image_size: ImageSize::square(48), digest: true, seed: 3, ..FeedSpec::train() }
}

fn shared(name: &str, delivery: Delivery) -> Option<Share> {
    Some(Share { delivery, ..Share::new(name.parse().unwrap()) })
}

#[test]
#[ignore = "run by the others, in a process of its own"]
fn trainer_process() {
    common::trainer::run();
}

#[test]
fn eight_trainers_get_what_they_should_while_some_are_killed_and_others_join() {
    let data = twice_the_sample_data();
    let daemon = Daemon::on(data.path(), &[]);
    let base = spec();
    let second = Mix { pairing: Pairing::SecondBatch, ..Mix::mixup(0.4) };
    let lossless = FeedSpec { flip: 0.5, share: shared("all", Delivery::Lossless), ..base };
    let cut = Mix::cutmix(1.0);
    let latest = FeedSpec { share: shared("newest", Delivery::Latest), dtype: Dtype::U8, mix: cut, slots: 6, ..base };
    let latest = FeedSpec { batch_size: 32, layout: Layout::Nhwc, ..latest };
    let start = |spec, batches, step_ms| Trainer::start(&daemon, spec, batches, step_ms);
    let mut trainers = vec![
        start(FeedSpec { batch_size: 7, ..base }, ENDLESS, 1),
        start(FeedSpec { batch_size: 256, dtype: Dtype::U8, mix: second, ..base }, 12, 0),
        start(FeedSpec { batch_size: 50, dtype: Dtype::Bf16, flip: 0.5, ..FeedSpec { slots: 2, ..base } }, 30, 1),
        start(FeedSpec { digest: true, batch_size: 21, image_size: base.image_size, ..FeedSpec::val() }, 30, 0),
        start(lossless, ENDLESS, 1),
        start(lossless, 120, 2),
        start(latest, ENDLESS, 1),
        Trainer::obey(Orders { holds_the_first: true, ..Orders::new(daemon.socket(), latest, ENDLESS, 15) }),
    ];
    assert_eq!(trainers.iter().filter(|trainer| trainer.spec.share.is_some()).count(), 4);
    trainers[0].batches(40);
    trainers[4].batches(20);
    trainers[6].batches(20);
    // By now its feed has gone round the ring, but for the batch that it holds.
    writeln!(trainers[7].child.stdin.as_mut().unwrap()).unwrap();
    trainers[0].kill();
    trainers[4].kill();
    let goes_on = Start::At(Place { epoch: 1, index: 5 });
    trainers.push(start(FeedSpec { start: Start::NextEpoch, ..lossless }, 30, 0));
    trainers.push(start(FeedSpec { start: goes_on, ..trainers[0].spec }, 30, 0));
    trainers.push(start(FeedSpec { start: Start::NextEpoch, ..latest }, 20, 3));
    assert_eq!((trainers[8].start.index, trainers[9].start), (0, Place { epoch: 1, index: 5 }));
    until("the slow one has skipped batches, and the fast one waited", || {
        let trainers_of_all = || feeds(&daemon).into_iter().flat_map(|feed| feed.trainers);
        let status = |at: usize| trainers_of_all().find(|status| status.pid == trainers[at].child.id());
        (status(7)?.skipped > 0 && status(6)?.waited_s > 0.0).then_some(())
    });
    for at in [1, 2, 3, 5, 8, 9, 10] {
        trainers[at].finish();
    }
    trainers[7].batches(20);
    trainers[6].kill();
    trainers[7].kill();
    let mut oracle = Oracle::of(data.path());
    for trainer in &trainers {
        oracle.check(trainer);
    }
    for (at, batches) in [(1, 12), (2, 30), (3, 30), (5, 120), (8, 30), (9, 30), (10, 20)] {
        assert_eq!(trainers[at].read.len(), batches);
    }
    let Trainer { start: first, read, .. } = &trainers[7];
    let passed = |place: Place| place.number(400_u64.div_ceil(32)) - first.number(400_u64.div_ceil(32)) + 1;
    assert!(passed(read.last().unwrap().0) > read.len() as u128 && read.len() >= 20, "it should have skipped some");
    // One size, so each image of each split was decoded once, whoever asked.
    until("all feeds close", || client::status(&daemon.socket()).unwrap().feeds.is_empty().then_some(()));
    let status = client::status(&daemon.socket()).unwrap();
    let decoded: Vec<_> = status.stores.iter().map(|store| (store.split.name(), store.decoded)).collect();
    assert_eq!(decoded, [("train", 400), ("val", 100)]);
    assert_eq!(status.stages.iter().find(|stage| stage.name == "decode").unwrap().items, 500);
}

fn feeds(daemon: &Daemon) -> Vec<Feed> {
    client::status(&daemon.socket()).unwrap().feeds
}

/// The feed that is shared as `all`.
fn shared_by_all(daemon: &Daemon) -> Option<Feed> {
    feeds(daemon).into_iter().find(|feed| feed.spec.share.is_some_and(|share| &*share.name == "all"))
}

/// A daemon in the place of one that was killed.
fn killed_and_started_again(daemon: Daemon, args: &[&str]) -> Daemon {
    Daemon::again(killed(daemon), &sample_data(), args)
}

/// The folder of a daemon that is killed, unless it has ended.
fn killed(mut daemon: Daemon) -> tempfile::TempDir {
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    std::mem::replace(&mut daemon.dir, tempfile::tempdir().unwrap())
}

/// A trainer goes on at this daemon, with the batches that it should get.
fn goes_on(mut trainer: Trainer, daemon: &Daemon) {
    until("it reads", || (client::status(&daemon.socket()).unwrap().feeds.pop()?.trainers[0].read > 8).then_some(()));
    trainer.kill();
    Oracle::new().check(&trainer);
}

/// design.md §8: the daemon dies.
#[test]
fn trainers_go_on_with_the_next_batch_of_the_daemon_that_takes_the_place_of_a_killed_one() {
    let mut daemon = Daemon::start(&[]);
    let lossless = FeedSpec { batch_size: 24, share: shared("all", Delivery::Lossless), ..spec() };
    let start = |daemon: &Daemon, spec, step_ms| Trainer::start(daemon, spec, ENDLESS, step_ms);
    // One works long enough to sleep through a daemon's death.
    let mut trainers: Vec<Trainer> = [1, 3, 40].map(|step_ms| start(&daemon, lossless, step_ms)).into();
    let latest = FeedSpec { share: shared("newest", Delivery::Latest), ..spec() };
    trainers.extend([start(&daemon, spec(), 1), start(&daemon, latest, 1)]);
    for _ in 0..3 {
        trainers.iter_mut().for_each(|trainer| trainer.batches(8));
        // It comes back when the others have been back for a while, and had time to read many batches.
        trainers[1].signal(Signal::STOP);
        daemon = killed_and_started_again(daemon, &["--workers=1"]);
        until("two of three are back and wait", || {
            let feed = shared_by_all(&daemon)?;
            (feed.trainers.len() == 2 && feed.published == 4 && feed.trainers[0].read == 4).then_some(())
        });
        trainers[1].signal(Signal::CONT);
        // And have the ring in their memory: one that is still to open it when this daemon is killed, too, is too late.
        until("all are back", || {
            let trainers = shared_by_all(&daemon)?.trainers;
            (trainers.len() == 3 && trainers.iter().all(|trainer| trainer.read > 0)).then_some(())
        });
    }
    let mut oracle = Oracle::new();
    for trainer in &mut trainers {
        trainer.batches(8);
        trainer.kill();
        oracle.check(trainer);
        assert!(trainer.read.len() >= 4 * 8);
    }
}

#[test]
fn a_trainer_outlives_daemons_that_are_killed_while_it_comes_back() {
    let mut daemon = Daemon::start(&[]);
    let trainer = Trainer::start(&daemon, spec(), ENDLESS, 1);
    for _ in 0..5 {
        daemon = killed_and_started_again(daemon, &[]);
        // Stopped when it has a seat and not its memory yet, as a rule, so that it asks the next daemon for a seat that this one had.
        until("it has a seat", || (daemon.memory("mixd-cursor") == 1).then_some(()));
        trainer.signal(Signal::STOP);
        until("it is told", || client::status(&daemon.socket()).unwrap().feeds.pop());
        daemon = killed_and_started_again(daemon, &[]);
        trainer.signal(Signal::CONT);
    }
    goes_on(trainer, &daemon);
}

/// A daemon that ends refuses trainers while it waits for those that it has.
#[test]
fn a_trainer_that_comes_back_to_a_daemon_that_ends_waits_for_the_next() {
    let daemon = Daemon::start(&[]);
    let mut trainer = Trainer::start(&daemon, spec(), ENDLESS, 1);
    trainer.batches(3);
    trainer.signal(Signal::STOP);
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut ending = Daemon::with(killed(daemon), &sample_data(), &[], |command| {
        command.env("RUST_LOG", "mixd=info").stderr(log.reopen().unwrap());
    });
    let mut held = ending.trainer();
    let held_id = Pid::from_child(&held);
    rustix::process::kill_process(held_id, Signal::STOP).unwrap();
    ending.signal(Signal::TERM);
    let logs = |text: &str| std::fs::read_to_string(log.path()).unwrap().contains(text).then_some(());
    until("it ends", || logs("SIGTERM"));
    trainer.signal(Signal::CONT);
    until("it has refused the trainer", || logs("refused a trainer"));
    ending.child.wait().unwrap();
    held.kill().unwrap();
    held.wait().unwrap();
    let daemon = killed_and_started_again(ending, &[]);
    goes_on(trainer, &daemon);
}

#[test]
fn a_trainer_that_lacks_descriptors_for_a_moment_while_it_comes_back_still_does() {
    let daemon = Daemon::start(&[]);
    let mut trainer = Trainer::start(&daemon, spec(), ENDLESS, 1);
    trainer.batches(3);
    let (pid, limit) = (Some(Pid::from_child(&trainer.child)), getrlimit(Resource::Nofile));
    let usual = prlimit(pid, Resource::Nofile, Rlimit { current: Some(0), ..limit }).unwrap();
    let dir = killed(daemon);
    // It retries every 50 ms.
    let dead = Instant::now();
    until("a while has passed", || (dead.elapsed() > Duration::from_millis(500)).then_some(()));
    let daemon = Daemon::again(dir, &sample_data(), &[]);
    prlimit(pid, Resource::Nofile, usual).unwrap();
    goes_on(trainer, &daemon);
}

/// What a suspended trainer does not see of the time that it may wait for the next daemon does not count.
#[test]
fn a_trainer_that_is_stopped_for_all_of_its_time_to_come_back_still_comes_back() {
    const RECONNECT: Duration = Duration::from_secs(2);
    let daemon = Daemon::start(&[]);
    let orders = Orders::new(daemon.socket(), spec(), ENDLESS, 1);
    let mut trainer = Trainer::obey(Orders { reconnect: RECONNECT, ..orders });
    trainer.batches(3);
    let dir = killed(daemon);
    let dead = Instant::now();
    // By now it has noticed, or it begins to count later.
    until("a while has passed", || (dead.elapsed() > RECONNECT / 4).then_some(()));
    trainer.signal(Signal::STOP);
    until("its time is over", || (dead.elapsed() > RECONNECT * 5 / 4).then_some(()));
    let daemon = Daemon::again(dir, &sample_data(), &[]);
    trainer.signal(Signal::CONT);
    goes_on(trainer, &daemon);
}

/// The first to come back opens the feed for the others, also one that is not to read it as yet.
#[test]
fn a_trainer_that_waits_for_a_later_batch_takes_nothing_from_the_others_when_it_comes_back_first() {
    let mut daemon = Daemon::start(&[]);
    let lossless = FeedSpec { batch_size: 24, share: shared("all", Delivery::Lossless), ..spec() };
    let mut reads = Trainer::start(&daemon, lossless, ENDLESS, 1);
    reads.batches(3);
    reads.signal(Signal::STOP);
    let mut waits = daemon.attach(FeedSpec { start: Start::NextEpoch, ..lossless }).unwrap();
    let start = waits.place();
    daemon = killed_and_started_again(daemon, &[]);
    until("the one that waits is back", || shared_by_all(&daemon));
    reads.signal(Signal::CONT);
    let first = waits.next_batch().unwrap();
    assert_eq!((first.place(), start.index), (start, 0));
    drop((first, waits));
    reads.batches(20);
    reads.kill();
    Oracle::new().check(&reads);
}

#[test]
fn a_trainer_that_comes_back_to_the_feed_of_a_newcomer_is_told_so() {
    let mut daemon = Daemon::start(&[]);
    let lossless = FeedSpec { batch_size: 24, share: shared("all", Delivery::Lossless), ..spec() };
    let mut returns = Trainer::start(&daemon, lossless, ENDLESS, 0);
    returns.batches(30);
    returns.signal(Signal::STOP);
    daemon = killed_and_started_again(daemon, &[]);
    let mut newcomer = daemon.attach(lossless).unwrap();
    assert_eq!(newcomer.next_batch().unwrap().place(), Place::default());
    returns.signal(Signal::CONT);
    let error = returns.line("error ").expect("it is told");
    let expected =
        "the shared feed `all` was opened by another trainer before this one came back, and stands at epoch 0, batch ";
    assert!(error.contains(expected), "{error}");
    assert!(returns.child.wait().unwrap().success());
}

#[test]
fn an_evicted_trainer_takes_no_seat_at_the_next_daemon() {
    let mut daemon = Daemon::start(&[]);
    let share = shared("all", Delivery::Lossless).map(|share| Share { max_lag_s: 0.1, ..share });
    let spec = FeedSpec { share, ..spec() };
    let orders = Orders { holds_the_first: true, ..Orders::new(daemon.socket(), spec, 100, 0) };
    let mut evicted = Trainer::obey(orders);
    evicted.line("holding").unwrap();
    let mut other = Trainer::start(&daemon, spec, ENDLESS, 1);
    let is_evicted = |feed: Feed| feed.trainers.iter().any(|trainer| trainer.evicted).then_some(());
    until("one is evicted", || is_evicted(shared_by_all(&daemon)?));
    daemon = killed_and_started_again(daemon, &[]);
    // As many as it would be kept waiting before, had the evicted one a seat.
    until("the other has read many batches", || (shared_by_all(&daemon)?.trainers[0].read > 20).then_some(()));
    let there: Vec<u32> = shared_by_all(&daemon).unwrap().trainers.iter().map(|trainer| trainer.pid).collect();
    assert_eq!(there, [other.child.id()]);
    writeln!(evicted.child.stdin.as_mut().unwrap()).unwrap();
    evicted.batches(1);
    assert!(evicted.line("error ").expect("it is told").contains("evicted from the shared feed"));
    other.kill();
    let mut oracle = Oracle::new();
    oracle.check(&evicted);
    oracle.check(&other);
}

/// SIGSTOP of all, a cgroup that is frozen, a laptop whose lid is closed: the slower trainer is not to be evicted for that.
#[test]
fn time_for_which_trainers_are_stopped_is_no_lag() {
    let daemon = Daemon::start(&[]);
    let max_lag = Duration::from_millis(1_500);
    let share = shared("all", Delivery::Lossless).map(|share| Share { max_lag_s: max_lag.as_secs_f64(), ..share });
    let mut trainers = [0, 1].map(|_| Trainer::start(&daemon, FeedSpec { share, ..spec() }, ENDLESS, 1));
    for daemon_too in [false, true] {
        let [slow, fast] = &mut trainers;
        slow.batches(5);
        slow.signal(Signal::STOP);
        let waits = || shared_by_all(&daemon)?.trainers.iter().find(|trainer| trainer.lag == 0).map(drop);
        until("the other waits for it", waits);
        fast.signal(Signal::STOP);
        if daemon_too {
            daemon.signal(Signal::STOP);
        }
        let since = Instant::now();
        while since.elapsed() < 2 * max_lag {
            std::thread::park_timeout(2 * max_lag);
        }
        daemon.signal(Signal::CONT);
        fast.signal(Signal::CONT);
        slow.signal(Signal::CONT);
        slow.batches(20);
        fast.batches(20);
    }
    let mut oracle = Oracle::new();
    for trainer in &mut trainers {
        trainer.kill();
        oracle.check(trainer);
    }
}

#[test]
fn a_socket_that_nobody_answers_on_ends_the_wait_in_time() {
    let mut daemon = Daemon::start(&[]);
    let mut feed = client::attach_for(&daemon.socket(), &spec(), Duration::from_millis(300)).unwrap();
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    std::fs::remove_file(daemon.socket()).unwrap();
    let _silent = std::os::unix::net::UnixListener::bind(daemon.socket()).unwrap();
    let reading = std::thread::spawn(move || {
        loop {
            if let Err(error) = feed.next_batch() {
                return error;
            }
        }
    });
    until("it gives up", || reading.is_finished().then_some(()));
    assert!(matches!(reading.join().unwrap(), ClientError::DaemonGone(_)));
}

#[test]
fn a_daemon_that_would_make_other_batches_is_not_taken_for_the_one_that_is_gone() {
    let first = Daemon::start(&[]);
    let mut feed = client::attach_for(&first.socket(), &spec(), DEADLINE).unwrap();
    feed.next_batch().unwrap();
    let _second = killed_and_started_again(first, &["--resize=fast"]);
    let error = loop {
        if let Err(error) = feed.next_batch() {
            break error;
        }
    };
    assert!(matches!(error, ClientError::OtherDaemon(_)), "{error}");
    assert!(feed.next_batch().is_err());
}

/// design.md §8: a trainer stalls.
#[test]
fn a_stopped_trainer_is_evicted_and_what_it_holds_stays_whole() {
    let daemon = Daemon::start(&[]);
    let share = shared("all", Delivery::Lossless).map(|share| Share { max_lag_s: 0.3, ..share });
    let spec = FeedSpec { share, slots: 3, ..spec() };
    let orders = Orders { holds_the_first: true, ..Orders::new(daemon.socket(), spec, 100, 0) };
    let mut stopped = Trainer::obey(orders);
    stopped.line("holding").unwrap();
    stopped.signal(Signal::STOP);
    let mut other = Trainer::start(&daemon, spec, 60, 0);
    other.finish();
    let evicted = || {
        let status = client::status(&daemon.socket()).unwrap();
        let trainers = status.feeds.first().map(|feed| feed.trainers.clone()).unwrap_or_default();
        trainers.iter().any(|trainer| trainer.pid == stopped.child.id() && trainer.evicted)
    };
    assert!(evicted() && other.read.len() == 60);
    stopped.signal(Signal::CONT);
    writeln!(stopped.child.stdin.as_mut().unwrap()).unwrap();
    // It checks what it held, 60 batches later, against its digest.
    let mut oracle = Oracle::new();
    stopped.batches(1);
    let error = stopped.line("error ").expect("it is told");
    assert!(error.contains("evicted from the shared feed: it kept others waiting for more than 0.3 s"), "{error}");
    oracle.check(&stopped);
    oracle.check(&other);
    assert!(stopped.child.wait().unwrap().success());
}

#[test]
fn a_dropped_feed_is_left_once_its_last_batch_is_dropped_too() {
    let daemon = Daemon::start(&[]);
    let spec = FeedSpec { share: shared("all", Delivery::Lossless), ..spec() };
    let mut feed = daemon.attach(spec).unwrap();
    let held = feed.next_batch().unwrap();
    let mut other = daemon.attach(FeedSpec { start: Start::At(Place::default()), ..spec }).unwrap();
    drop(feed);
    (0..4).for_each(|_| drop(other.next_batch().unwrap()));
    let reading =
        std::thread::spawn(move || (0..10).all(|_| other.next_batch().is_ok_and(|batch| other.is_intact(&batch))));
    // Many times what leaving takes.
    for _ in 0..50 {
        let feed = shared_by_all(&daemon).unwrap();
        assert_eq!((feed.trainers.len(), feed.published), (2, 4));
    }
    let view = held.view();
    assert!(view.head.index == 0 && view.head.digest == view.digest_by("cpu"));
    drop(held);
    assert!(reading.join().unwrap());
}

#[test]
fn the_name_of_a_feed_that_is_over_is_free_though_an_evicted_trainer_is_still_there() {
    let daemon = Daemon::start(&[]);
    let share = shared("all", Delivery::Lossless).map(|share| Share { max_lag_s: 0.05, ..share });
    let spec = FeedSpec { share, ..spec() };
    let (mut evicted, mut other) = (daemon.attach(spec).unwrap(), daemon.attach(spec).unwrap());
    let _held = evicted.next_batch().unwrap();
    (0..10).for_each(|_| drop(other.next_batch().unwrap()));
    drop(other);
    let mut next = until("the feed is over", || daemon.attach(FeedSpec { batch_size: 32, ..spec }).ok());
    assert_eq!(next.next_batch().unwrap().view().len(), 32);
    assert!(matches!(evicted.next_batch(), Err(ClientError::Evicted { .. })));
}

#[test]
fn an_epoch_whose_end_is_skipped_ends_with_the_next_one() {
    let daemon = Daemon::start(&[]);
    let spec = FeedSpec { batch_size: 24, share: shared("newest", Delivery::Latest), ..spec() };
    let mut slow = daemon.attach(spec).unwrap();
    let mut epoch = slow.epoch();
    assert_eq!(epoch.next().unwrap().unwrap().place(), Place::default());
    let mut fast = daemon.attach(spec).unwrap();
    while fast.place() < (Place { epoch: 1, index: 7 }) {
        fast.next_batch().unwrap();
    }
    assert!(epoch.all(|batch| batch.unwrap().view().head.epoch == 0), "the rest of the first");
    let next = slow.place();
    assert!(slow.is_ready() && next.epoch == 1 && next.index > 0, "{next}");
    let second: Vec<Place> = slow.epoch().map(|batch| batch.unwrap().place()).collect();
    assert!(second[0] == next && second.iter().all(|place| place.epoch == 1), "{second:?}");
}

#[test]
fn another_spec_is_refused_naming_the_keys_and_places_that_have_passed_by_name() {
    let daemon = Daemon::start(&[]);
    let spec = FeedSpec { share: shared("all", Delivery::Lossless), ..spec() };
    let mut feed = daemon.attach(spec).unwrap();
    let keys = ["batch_size", "seed"].map(str::to_owned).into();
    let other = refusal(daemon.attach(FeedSpec { batch_size: 32, seed: 9, ..spec }));
    assert_eq!(other, Reason::OtherSpec { keys });
    (0..6).for_each(|_| drop(feed.next_batch().unwrap()));
    let first = FeedSpec { start: Start::At(Place::default()), ..spec };
    let passed = refusal(daemon.attach(first));
    assert!(matches!(passed, Reason::Passed { next: Place { epoch: 0, index: 6.. } }), "{passed:?}");
    // A place that is still to come; and any place of a private feed.
    let later = Start::At(Place { epoch: 1, index: 2 });
    let mut later = daemon.attach(FeedSpec { start: later, ..spec }).unwrap();
    assert!(daemon.attach(FeedSpec { share: None, ..first }).is_ok());
    let reading =
        std::thread::spawn(move || later.next_batch().map(|batch| (batch.view().head.epoch, batch.view().head.index)));
    while !reading.is_finished() {
        feed.next_batch().unwrap();
    }
    assert_eq!(reading.join().unwrap().unwrap(), (1, 2));
}

#[test]
fn a_shared_feed_has_room_for_64_trainers() {
    let daemon = Daemon::start(&[]);
    let spec =
        FeedSpec { share: shared("crowd", Delivery::Latest), slots: 65, image_size: ImageSize::square(8), ..spec() };
    let attach = || client::attach_for(&daemon.socket(), &spec, Duration::ZERO);
    let mut feeds: Vec<_> = (0..64).map(|_| attach().unwrap()).collect();
    assert_eq!(refusal(attach()), Reason::TooManyTrainers);
    // Each holds a batch, and there is one more to write.
    let held: Vec<_> = feeds.iter_mut().map(|feed| feed.next_batch().unwrap()).collect();
    drop(held.into_iter().next());
    assert!(feeds[0].next_batch().is_ok());
    let few = FeedSpec { share: shared("few", Delivery::Latest), slots: 2, ..spec };
    let _one = daemon.attach(few).unwrap();
    assert_eq!(refusal(daemon.attach(few)), Reason::TooManyTrainers);
}

#[test]
fn status_lists_feeds_trainers_places_and_the_store() {
    let daemon = Daemon::start(&[]);
    let spec = FeedSpec { share: shared("all", Delivery::Lossless), ..spec() };
    let mut fast = daemon.attach(spec).unwrap();
    // Four may be published by now, none of which can be overwritten.
    let first = Start::At(Place::default());
    let _slow = daemon.attach(FeedSpec { start: first, ..spec }).unwrap();
    let _val = daemon.attach(FeedSpec::val()).unwrap();
    (0..3).for_each(|_| drop(fast.next_batch().unwrap()));
    let status = |more: &[&str]| {
        let output = run(&[&["status", "--socket", daemon.socket().to_str().unwrap()], more].concat());
        String::from_utf8(output.stdout).unwrap()
    };
    until("four are published", || {
        let status: serde_json::Value = serde_json::from_str(&status(&["--json"])).unwrap();
        let feed = &status["feeds"][0];
        let [fast, slow] = [0, 1].map(|at| &feed["trainers"][at]);
        assert_eq!((&feed["share"]["name"], &feed["share"]["delivery"]), (&"all".into(), &"lossless".into()));
        assert_eq!((&fast["read"], &fast["index"], &slow["read"]), (&3.into(), &3.into(), &0.into()));
        let done = slow["lag"].as_u64() == Some(4) && status["stores"][0]["decoded"].as_u64() >= Some(64);
        (feed["published"] == 4 && feed["index"] == 4 && done).then_some(())
    });
    let text = status(&[]);
    assert!(text.contains("shared as all (lossless, at most 300 s of lag), 4 published, next epoch 0, batch 4 of 13"));
    assert!(text.contains("val in batches of 128 f32, private") && text.contains("0 skipped"), "{text}");
}

#[test]
fn bench_compares_sharers_with_one_alone() {
    let data = sample_data();
    // More than is in flight between a round and the readings of the daemon before and after it.
    let options =
        ["--trainers=3", "--share=x", "--images=20000", "--rounds=2", "--size=32", "--batch-size=16", "--json"];
    let output = run(&[&["bench", "--data", data.to_str().unwrap()], &options[..]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for key in ["images_per_s", "cpu_ms_per_1000_images", "slowest_trainer_of_alone", "cpu_of_alone"] {
        assert!(result["alone"][key].as_f64().is_some_and(|value| value > 0.0), "{key}: {result}");
    }
    assert!(result["images"].as_u64().unwrap() >= 2 * 3 * 20_000 && result["share"] == "x", "{result}");
}

/// The second of two trainings joins the first one's feed at its next epoch, and goes on when that one is done.
#[test]
#[cfg(feature = "torch")]
fn trainings_share_a_feed() {
    let daemon = Daemon::start(&[]);
    let log = |name: &str| daemon.dir.path().join(name);
    let train = |name: &str, more: &[&str]| {
        let mut command = common::mixd();
        command.args(["train", "--share=sweep", "--size=32", "--batch-size=20", "--threads=1"]).args(more);
        command
            .arg("--socket")
            .arg(daemon.socket())
            .arg("--log")
            .arg(log(name))
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut first = train("first", &["--epochs=4", "--lr=0.02"]);
    let shared = || client::status(&daemon.socket()).unwrap().feeds.into_iter().find(|feed| feed.trainers[0].read > 0);
    until("the first one trains", shared);
    let mut second = train("second", &["--epochs=2", "--start=next-epoch", "--lr=0.01"]);
    let mut refused = train("refused", &["--seed=1"]);
    assert_eq!(refused.wait().unwrap().code(), Some(1));
    assert!(first.wait().unwrap().success() && second.wait().unwrap().success());
    let places = |name: &str| -> Vec<(u64, u64)> {
        let text = std::fs::read_to_string(log(name)).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let place = |line: serde_json::Value| Some((line["epoch"].as_u64()?, line["index"].as_u64()?));
        lines.filter(|line| line["event"] == "step").filter_map(place).collect()
    };
    let epochs = |from: u64, to: u64| (from..to).flat_map(|epoch| (0..10).map(move |index| (epoch, index)));
    assert_eq!(places("first"), epochs(0, 4).collect::<Vec<_>>());
    let joined = places("second")[0].0;
    assert!(joined > 0);
    assert_eq!(places("second"), epochs(joined, joined + 2).collect::<Vec<_>>());
}

//! The verdict names what bounds the trainers, of real daemons that are starved of one thing at a time.

mod common;

use common::{Daemon, sample_data, small_folder, stderr, until};
use mixd::client;
use mixd::spec::{FeedSpec, Share};
use mixd::status::Verdict;
use mixd::types::ImageSize;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Held by each test: what others do at the same time would bound its daemon.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The result of `mixd bench`.
fn bench(program: &mut Command, data: &Path, options: &[&str]) -> serde_json::Value {
    let bench = ["bench", "--json", "--rounds=1", "--data", data.to_str().unwrap()];
    let output = program.args(bench).args(options).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn bench_names_the_stage_that_is_starved_of_time() {
    let _alone = alone();
    // Batches of many images, since what is done once a batch, waking others, takes longer than mixing a few of one pixel.
    let many = small_folder(2_000);
    let cases: [(&str, &Path, &[&str]); 5] = [
        ("decode", &sample_data(), &["--cache=off", "--workers=1"]),
        ("render", &sample_data(), &["--recipe=torchvision-v2", "--size=64"]),
        ("mix", &sample_data(), &["--size=256"]),
        ("trainer", &sample_data(), &["--size=32", "--step-us=5000"]),
        ("plan", many.path(), &["--size=1", "--batch-size=4000", "--dtype=u8"]),
    ];
    for (bound, data, options) in cases {
        let result = bench(&mut common::mixd(), data, &[&["--seconds=0.5", "--ceiling"], options].concat());
        assert_eq!(result["bottleneck"], bound, "{result}");
        let text = result["verdict"]["text"].as_str().unwrap();
        assert!(text.starts_with(&format!("{bound}-bound: ")), "{text}");
    }
}

#[test]
fn a_slow_disk_is_named() {
    let _alone = alone();
    if !common::may_trace() {
        return common::left_out("no strace, or no right to trace, here");
    }
    // Each file that is opened costs 20 ms.
    let mut strace = common::command("strace");
    strace.args(["-qq", "-f", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=openat"]);
    strace.args(["-e", "inject=openat:delay_enter=20000", env!("CARGO_BIN_EXE_mixd")]);
    let result = bench(&mut strace, &sample_data(), &["--images=128", "--batch-size=16", "--size=32", "--cache=off"]);
    assert_eq!(result["bottleneck"], "disk", "{result}");
}

/// The daemon's verdict, which is asked for until it is what the caller waits for; meanwhile trainers go on.
fn wait_for(daemon: &Daemon, bound: &str, mut go_on: impl FnMut()) -> Verdict {
    until(bound, || {
        go_on();
        let verdict = client::status(&daemon.socket()).unwrap().verdict.unwrap();
        (verdict.bound == bound).then_some(verdict)
    })
}

fn small() -> FeedSpec {
    FeedSpec { image_size: ImageSize::square(32), batch_size: 16, ..FeedSpec::train() }
}

#[test]
fn a_daemon_without_trainers_is_idle_and_one_whose_trainer_works_is_trainer_bound() {
    let _alone = alone();
    let daemon = Daemon::start(&[]);
    assert_eq!(wait_for(&daemon, "idle", || {}).text, "idle: no trainer is attached");
    let mut feed = daemon.attach(small()).unwrap();
    let mut work = || {
        drop(feed.next_batch().unwrap());
        let until = Instant::now() + Duration::from_millis(5);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
    };
    let verdict = wait_for(&daemon, "trainer", &mut work);
    assert!(verdict.images_per_s > 0.0 && verdict.seconds > 0.0, "{verdict:?}");
    assert!(verdict.text.contains(&format!("(pid {})", std::process::id())), "{verdict:?}");
    drop(feed);
    wait_for(&daemon, "idle", || {});
}

/// Who reads fast waits for the slow trainer, not for the daemon.
#[test]
fn a_slow_trainer_of_a_shared_feed_is_not_blamed_on_the_daemon() {
    let _alone = alone();
    let daemon = Daemon::start(&[]);
    let spec = FeedSpec { share: Some(Share::new("all".parse().unwrap())), ..small() };
    let mut slow = daemon.attach(spec).unwrap();
    let mut fast = daemon.bench_trainer(&["--warmup=0", "--batch-size=16", "--size=32", "--share=all"]);
    until("two trainers", || (client::status(&daemon.socket()).unwrap().feeds[0].trainers.len() == 2).then_some(()));
    let start = Instant::now();
    let verdict = wait_for(&daemon, "trainer", || {
        drop(slow.next_batch().unwrap());
        std::thread::sleep(Duration::from_millis(5));
    });
    // The fast one waits for nearly all of its time.
    let waited =
        client::status(&daemon.socket()).unwrap().feeds[0].trainers.iter().map(|one| one.waited_s).fold(0.0, f64::max);
    assert!(waited > 0.5 * verdict.seconds.min(start.elapsed().as_secs_f64()), "{waited}: {verdict:?}");
    assert!(verdict.text.starts_with("trainer-bound: 2 trainers read "), "{verdict:?}");
    fast.kill().unwrap();
    fast.wait().unwrap();
}

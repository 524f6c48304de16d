//! The control plane as another program sees it, over the socket: in the messages of the proto file.

mod common;

use common::Daemon;
use mixd::client::{ClientError, Reason};
use mixd::spec::{FeedSpec, Share};
use prost::Message;
use proto::refusal::Kind;
use proto::{AttachRequest, Attached, ListFeedsReply, Refusal, Versions};
use tokio_stream::StreamExt;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic::{Request, Status, Streaming};

#[allow(dead_code, missing_docs, clippy::all, reason = "generated")]
mod proto {
    include!(concat!(env!("OUT_DIR"), "/mixd.v1.rs"));
}

const OURS: Versions = Versions {
    protocol: mixd::wire::PROTOCOL_VERSION,
    layout: mixd::ring::LAYOUT_VERSION,
    plan: mixd::batch::PLAN_VERSION,
};

/// Calls a method whose answers are a stream, or one.
async fn call<Q, A>(daemon: &Daemon, method: &'static str, request: Q) -> Result<Streaming<A>, Status>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    let uri = format!("unix:{}", daemon.socket().display());
    let mut grpc = Grpc::new(Endpoint::try_from(uri).unwrap().connect().await.unwrap());
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<Q, A>::default();
    let request = Request::new(tokio_stream::once(request));
    Ok(grpc.streaming(request, PathAndQuery::from_static(method), codec).await?.into_inner())
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn refusal(status: &Status) -> Refusal {
    Refusal::decode(status.details()).unwrap()
}

/// What the daemon answers to a trainer that asks for `spec`.
fn attach(daemon: &Daemon, versions: Versions, spec: &proto::FeedSpec) -> Result<Attached, Status> {
    let spec = Some(spec.clone());
    let request = AttachRequest { versions: Some(versions), spec, pid: 1, ..AttachRequest::default() };
    block_on(async {
        let mut answers = call(daemon, "/mixd.v1.Control/Attach", request).await?;
        Ok(answers.message().await?.expect("an answer"))
    })
}

#[test]
fn other_versions_are_refused_before_what_they_ask_for_is_read() {
    let daemon = Daemon::start(&[]);
    let spec = proto::FeedSpec { dtype: Some("f64".to_owned()), ..Default::default() };
    let kind = |versions| refusal(&attach(&daemon, versions, &spec).unwrap_err()).kind();
    assert_eq!((kind(Versions { layout: 99, ..OURS }), kind(OURS)), (Kind::Version, Kind::Spec));
}

#[test]
fn refusals_carry_what_a_program_needs() {
    let daemon = Daemon::start(&[]);
    let share = Some(Share::new("all".parse().unwrap()));
    let mut feed = daemon.attach(FeedSpec { share, ..FeedSpec::train() }).unwrap();
    // 200 samples in batches of 64: 4 in each epoch.
    (0..6).for_each(|_| drop(feed.next_batch().unwrap()));
    let share = proto::Share { name: "all".to_owned(), ..Default::default() };
    let spec = proto::FeedSpec { share: Some(share), ..Default::default() };
    let refused = |spec| refusal(&attach(&daemon, OURS, &spec).unwrap_err());
    let other = refused(proto::FeedSpec { seed: Some(9), batch_size: Some(32), ..spec.clone() });
    assert_eq!((other.kind(), other.keys), (Kind::OtherSpec, vec!["batch_size".to_owned(), "seed".to_owned()]));
    let at = Some(proto::start::At::Place(proto::Place::default()));
    let passed = refused(proto::FeedSpec { start: Some(proto::Start { at }), ..spec });
    assert_eq!((passed.kind(), passed.next.unwrap().epoch >= 1), (Kind::Passed, true));
    let large = proto::FeedSpec { batch_size: Some(65_536), slots: Some(1_000), ..Default::default() };
    let no_room = refused(large);
    assert!(no_room.kind() == Kind::NoRoom && no_room.need_bytes > no_room.free_bytes, "{no_room:?}");
}

#[test]
fn a_watcher_sees_feeds_come() {
    let daemon = Daemon::start(&[]);
    let watch = |interval_ms| {
        let request = proto::WatchRequest { interval_ms: Some(interval_ms) };
        call::<_, proto::Status>(&daemon, "/mixd.v1.Control/Watch", request)
    };
    block_on(async {
        let mut statuses = watch(100).await.unwrap();
        assert_eq!(statuses.next().await.unwrap().unwrap().feeds.len(), 0);
        let mut feed = daemon.attach(FeedSpec::train()).unwrap();
        feed.next_batch().unwrap();
        while statuses.next().await.unwrap().unwrap().feeds.is_empty() {}
        let mut listed = call::<_, ListFeedsReply>(&daemon, "/mixd.v1.Control/ListFeeds", ()).await.unwrap();
        let feeds = listed.message().await.unwrap().unwrap().feeds;
        assert_eq!((feeds.len(), feeds[0].trainers[0].pid), (1, std::process::id()));
        assert!(feeds[0].published > 0);
        assert_eq!(refusal(&watch(1).await.unwrap_err()).kind(), Kind::Spec);
    });
}

#[test]
fn draining_lets_feeds_go_on_and_opens_no_more() {
    let daemon = Daemon::start(&[]);
    let mut feed = daemon.attach(FeedSpec { batch_size: 8, ..FeedSpec::train() }).unwrap();
    block_on(async {
        // Answers when the last feed has closed.
        let drain = async { call::<_, ()>(&daemon, "/mixd.v1.Control/Drain", ()).await?.message().await };
        let mut drain = std::pin::pin!(drain);
        // Refused from the moment on that the daemon has heard of it; until then the feeds that open close again.
        let reason = loop {
            tokio::select! {
                _ = &mut drain => panic!("drained though a feed is open"),
                attached = async { tokio::task::yield_now().await; daemon.attach(FeedSpec::val()) } => match attached {
                    Err(ClientError::Refused(refusal)) => break refusal.reason,
                    other => drop(other.unwrap()),
                }
            }
        };
        assert_eq!(reason, Reason::Stopping);
        assert_eq!(feed.epoch().count(), 25);
        drop(feed);
        drain.await.unwrap();
    });
}

/// Runs `mixd` where it may open so many files; returns what it says, and whether it ended well, in time.
fn with_descriptors(count: usize, args: &[&str]) -> (String, bool) {
    let mut command = common::command("sh");
    command.args([
        "-c",
        "echo | (ulimit -n \"$0\" && exec timeout 20 \"$@\")",
        &count.to_string(),
        env!("CARGO_BIN_EXE_mixd"),
    ]);
    let output = command.args(args).output().unwrap();
    (String::from_utf8_lossy(&output.stderr).into_owned(), output.status.success())
}

#[test]
fn whoever_lacks_descriptors_is_told_so() {
    let daemon = Daemon::start(&[]);
    let socket = daemon.socket();
    let dir = tempfile::tempdir().unwrap();
    let (own, data) = (dir.path().join("s"), common::sample_data());
    let (own, data, socket) = (own.to_str().unwrap(), data.to_str().unwrap(), socket.to_str().unwrap());
    // Standard input is at its end, so a daemon that serves ends at once.
    let serve = ["serve", "--until-eof", "--data", data, "--socket", own];
    let read = [
        "bench-trainer",
        "--warmup=0",
        "--images=10",
        "--batch-size=10",
        "--seconds=5",
        "--touch=all",
        "--socket",
        socket,
    ];
    for args in [&serve[..], &["status", "--socket", socket], &read] {
        // With 4 and fewer the loader of programs finds no library.
        let outcomes: Vec<_> = (5..40).map(|count| with_descriptors(count, args)).collect();
        assert!(outcomes.iter().any(|(_, well)| !well), "{args:?}: nothing was lacking");
        assert!(outcomes.last().unwrap().1, "{args:?}: {:?}", outcomes.last());
        for (text, well) in outcomes {
            assert!(well || text.contains("ulimit -n"), "{args:?}: {text}");
        }
    }
}

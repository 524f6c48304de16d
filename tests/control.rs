//! The control plane as another program sees it, over the socket.

mod common;

use common::Daemon;
use mixd::control::proto::control_client::ControlClient;
use mixd::control::proto::{AttachRequest, DrainRequest, ListFeedsRequest, Versions, WatchRequest};
use mixd::control::versions;
use mixd::spec::FeedSpec;
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};

async fn connect(daemon: &Daemon) -> ControlClient<Channel> {
    let uri = format!("unix:{}", daemon.socket().display());
    ControlClient::new(Endpoint::try_from(uri).unwrap().connect().await.unwrap())
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn other_versions_are_refused_naming_both() {
    let daemon = Daemon::start(&[]);
    let refusal = block_on(async {
        let other = Versions { layout: 99, ..versions() };
        let request = AttachRequest { versions: Some(other), pid: 1, ..AttachRequest::default() };
        connect(&daemon).await.attach(tokio_stream::once(request)).await.unwrap_err()
    });
    let text = refusal.message();
    let ours = format!("layout {},", versions().layout);
    assert!(text.contains(&ours) && text.contains("layout 99,"), "{text}");
}

#[test]
fn a_watcher_sees_feeds_come() {
    let daemon = Daemon::start(&[]);
    block_on(async {
        let mut client = connect(&daemon).await;
        let mut watch = client.watch(WatchRequest { interval_ms: Some(100) }).await.unwrap().into_inner();
        assert_eq!(watch.next().await.unwrap().unwrap().feeds.len(), 0);
        let mut feed = daemon.attach(FeedSpec::train()).unwrap();
        feed.next_batch().unwrap();
        while watch.next().await.unwrap().unwrap().feeds.is_empty() {}
        let feeds = client.list_feeds(ListFeedsRequest {}).await.unwrap().into_inner().feeds;
        assert_eq!((feeds.len(), feeds[0].trainers[0].pid), (1, std::process::id()));
        assert!(feeds[0].published > 0);
        let refused = client.watch(WatchRequest { interval_ms: Some(1) }).await.unwrap_err();
        assert!(refused.message().contains("it must be 100 to 60000"), "{refused}");
    });
}

#[test]
fn draining_lets_feeds_go_on_and_opens_no_more() {
    let daemon = Daemon::start(&[]);
    let mut feed = daemon.attach(FeedSpec { batch_size: 8, ..FeedSpec::train() }).unwrap();
    block_on(async {
        let mut client = connect(&daemon).await;
        let mut drain = std::pin::pin!(client.drain(DrainRequest {}));
        // Refused from the moment on that the daemon has heard of it; until then the feeds that open close again.
        let refusal = loop {
            tokio::select! {
                _ = &mut drain => panic!("drained though a feed is open"),
                attached = async { tokio::task::yield_now().await; daemon.attach(FeedSpec::val()) } => {
                    if let Err(refusal) = attached {
                        break refusal.to_string();
                    }
                }
            }
        };
        assert!(refusal.contains("opens no more feeds"), "{refusal}");
        assert_eq!(feed.epoch().count(), 25);
        drop(feed);
        drain.await.unwrap();
    });
}

#[test]
fn metrics_are_answered_as_text() {
    use std::io::{Read, Write};
    // A free port: bound once, let go, and asked for.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let daemon = Daemon::start(&["--metrics", &address]);
    let mut feed = daemon.attach(FeedSpec::train()).unwrap();
    feed.next_batch().unwrap();
    let mut stream = std::net::TcpStream::connect(&address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: mixd\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(
        answer.contains("\nmixd_feeds 1\n") && answer.contains("mixd_stage_items_total{stage=\"decode\"} "),
        "{answer}"
    );
}

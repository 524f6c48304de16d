//! What a daemon answers over HTTP: metrics that Prometheus's own tool accepts, health, readiness, the live page.

mod common;

use common::{Daemon, free_port, get, sample_data, until};
use mixd::spec::{Crop, FeedSpec, Share};
use std::collections::BTreeSet;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

fn with_metrics() -> (Daemon, SocketAddr) {
    let address = free_port();
    (Daemon::start(&["--metrics", &address.to_string()]), address)
}

/// The value of a metric, with its labels as they are written.
fn metric(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[test]
fn metrics_pass_promtool_and_counters_outlive_their_trainers() {
    let (daemon, address) = with_metrics();
    let spec = FeedSpec { share: Some(Share::new("all".parse().unwrap())), ..FeedSpec::train() };
    let mut feed = daemon.attach(spec).unwrap();
    (0..5).for_each(|_| drop(feed.next_batch().unwrap()));
    let mut private = daemon.attach(FeedSpec::val()).unwrap();
    drop(private.next_batch().unwrap());
    let open = get(address, "/metrics").1;
    let shared = r#"{split="train",share="all"}"#;
    assert_eq!((metric(&open, "mixd_feeds"), metric(&open, "mixd_trainers")), (Some(2.0), Some(2.0)), "{open}");
    let read = |text: &str| metric(text, &format!("mixd_batches_read_total{shared}"));
    let observed = |text: &str| metric(text, &format!("mixd_wait_seconds_count{shared}"));
    assert_eq!((read(&open), observed(&open)), (Some(5.0), Some(5.0)), "{open}");
    assert_eq!(metric(&open, r#"mixd_batches_read_total{split="val",share=""}"#), Some(1.0), "{open}");
    assert!(metric(&open, &format!("mixd_lag_batches{shared}")).is_some(), "{open}");
    drop((feed, private));
    let closed = until("both feeds closed", || {
        Some(get(address, "/metrics").1).filter(|text| metric(text, "mixd_feeds") == Some(0.0))
    });
    assert_eq!((read(&closed), observed(&closed)), (Some(5.0), Some(5.0)), "{closed}");
    assert_eq!(metric(&closed, &format!("mixd_lag_batches{shared}")), None, "{closed}");
    // Another trainer of the same share goes on counting.
    let mut again = daemon.attach(spec).unwrap();
    drop(again.next_batch().unwrap());
    assert_eq!(read(&get(address, "/metrics").1), Some(6.0));
    // A wait that ends in a batch is one of the waits and, where it was one, of the hand-overs.
    let sum = metric(&closed, &format!("mixd_wait_seconds_sum{shared}")).unwrap();
    let bucket =
        |le: &str| metric(&closed, &format!("mixd_wait_seconds_bucket{{split=\"train\",share=\"all\",le=\"{le}\"}}"));
    assert!(sum > 0.0 && bucket("+Inf") == Some(5.0) && bucket("0.000004096") < Some(5.0), "{closed}");
    assert!(metric(&closed, &format!("mixd_handover_seconds_count{shared}")) >= Some(1.0), "{closed}");
    assert!(!open.contains("pid="), "{open}");
    promtool(&open);
}

fn read_file(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The names of metrics in a text, those of a histogram's parts without what they end in.
fn names(text: &str) -> BTreeSet<String> {
    let parts = text.split(|part: char| !part.is_ascii_lowercase() && part != '_');
    let name = |part: &str| {
        ["_bucket", "_sum", "_count"].iter().find_map(|end| part.strip_suffix(end)).unwrap_or(part).to_owned()
    };
    parts.filter(|part| part.starts_with("mixd_") && part.len() > 5).map(name).collect()
}

#[test]
fn documents_dashboard_and_alerts_name_the_metrics_that_there_are() {
    let (daemon, address) = with_metrics();
    let _fixed = daemon.attach(FeedSpec::train()).unwrap();
    let crop = Crop::RandomResizedCrop { scale: [0.5, 1.0], ratio: [0.75, 1.3] };
    let _random = daemon.attach(FeedSpec { crop, ..FeedSpec::train() }).unwrap();
    let metrics = get(address, "/metrics").1;
    let served: BTreeSet<String> =
        metrics.lines().filter_map(|line| Some(line.strip_prefix("# TYPE ")?.split(' ').next()?.to_owned())).collect();
    let text = read_file("docs/observe.md");
    let documented = names(&text);
    let of_stores = |name: &&String| name.starts_with("mixd_object_store_") || name.starts_with("mixd_disk_cache_");
    assert_eq!(documented.iter().filter(|name| !of_stores(name)).cloned().collect::<BTreeSet<_>>(), served);
    // The table has the type, the labels and the words of each family.
    for line in metrics.lines().filter(|line| line.starts_with("# HELP ")) {
        let (name, help) = line["# HELP ".len()..].split_once(' ').unwrap();
        let kind = metrics.lines().find_map(|line| line.strip_prefix(&format!("# TYPE {name} "))).unwrap();
        let sample = metrics
            .lines()
            .find(|line| line.starts_with(&format!("{name}{{")) || line.starts_with(&format!("{name}_bucket{{")));
        let labels = sample.map_or(String::new(), |line| {
            let labels = line[line.find('{').unwrap() + 1..line.rfind('}').unwrap()].split(',');
            let names = labels.filter_map(|label| Some(label.split_once('=')?.0)).filter(|&name| name != "le");
            names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
        });
        assert!(text.contains(&format!("| `{name}` | {kind} | {labels} | {help} |")), "{name} {kind} {labels} {help}");
    }
    for path in ["deploy/grafana/mixd.json", "deploy/prometheus/rules.yml"] {
        let used = names(&read_file(path));
        assert!(used.len() > 2 && used.is_subset(&documented), "{path}: {:?}", used.difference(&documented));
    }
    serde_json::from_str::<serde_json::Value>(&read_file("deploy/grafana/mixd.json")).unwrap();
    if !common::has_tool("promtool") {
        return;
    }
    for (what, file) in [("rules", "rules.yml"), ("config", "mixd.yml")] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus").join(file);
        let output = Command::new("promtool").args(["check", what]).arg(path).output().unwrap();
        assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), common::stderr(&output));
    }
}

/// Has Prometheus's own tool lint the metrics.
fn promtool(metrics: &str) {
    if !common::has_tool("promtool") {
        return;
    }
    let spawned = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut tool = spawned.unwrap();
    tool.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let output = tool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &common::stderr(&output);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}

#[test]
fn a_daemon_is_alive_at_once_ready_when_it_has_its_data_and_no_more_when_it_drains() {
    let (dir, address) = (tempfile::tempdir().unwrap(), free_port());
    // The table of labels is a pipe: indexing waits for it.
    let labels = dir.path().join("labels.csv");
    assert!(Command::new("mkfifo").arg(&labels).status().unwrap().success());
    let mut command = Daemon::command(dir.path(), &sample_data());
    command.arg("--labels").arg(&labels).args(["--metrics", &address.to_string()]);
    let mut child = command.arg("--until-eof").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // It ends with the test, however that ends.
    let _lifeline = child.stdin.take();
    assert_eq!(get(address, "/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(get(address, "/readyz"), (503, "indexing the data set\n".to_owned()));
    let metrics = get(address, "/metrics").1;
    assert_eq!(metric(&metrics, "mixd_ready"), Some(0.0), "{metrics}");
    promtool(&metrics);
    let mut table = std::fs::OpenOptions::new().write(true).open(&labels).unwrap();
    let train = sample_data().join("train");
    table.write_all(b"file_name,label\n").unwrap();
    for path in common::files(&train).iter().filter(|path| path.extension().is_some_and(|end| end == "JPEG")) {
        let name = path.strip_prefix(sample_data()).unwrap().display();
        writeln!(table, "{name},{}", path.parent().unwrap().file_name().unwrap().to_str().unwrap()).unwrap();
    }
    drop(table);
    until("readiness", || (get(address, "/readyz") == (200, "ready\n".to_owned())).then_some(()));
    // A trainer that stays has the daemon wait for it.
    let socket = dir.path().join("mixd.sock");
    let feed = mixd::client::attach(&socket, &FeedSpec::train()).unwrap();
    mixd::client::shutdown(&socket).unwrap();
    until("draining", || (get(address, "/readyz") == (503, "draining\n".to_owned())).then_some(()));
    drop(feed);
    assert!(child.wait().unwrap().success());
}

#[test]
fn nothing_else_is_found_and_requests_that_make_no_sense_harm_nobody() {
    let (daemon, address) = with_metrics();
    for path in ["/", "/metrics/", "/metric", "/readyz?x=/", "/../metrics"] {
        let expected = if path.starts_with("/readyz") { 200 } else { 404 };
        assert_eq!(get(address, path).0, expected, "{path}");
    }
    let silent = std::net::TcpStream::connect(address).unwrap();
    let mut wrong = std::net::TcpStream::connect(address).unwrap();
    wrong.write_all(b"\0\xff nonsense\r\n\r\n").unwrap();
    assert_eq!(get(address, "/healthz").0, 200);
    drop((silent, wrong));
    drop(daemon);
}

//! The real program on stores other than S3, and on web servers.

use super::common::trainer::{Oracle, Trainer};
use super::common::{self, Daemon, mixd, stderr};
use super::server::Shards;
use super::spec;
use super::web::{Speech, Web};
use chrono::{DateTime, TimeDelta, Utc};
use mixd::source::remote::{DiskCache, Remote, StoreOptions};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// A secret as it stands in a token or a signature.
const TOKEN: &str = "loopback-0123-token";

fn long_ago() -> DateTime<Utc> {
    "2026-01-02T03:04:05Z".parse().unwrap()
}

/// A server with the shards in a bucket's folder.
fn filled(server: Web, shards: &Shards) -> Web {
    for path in shards.paths() {
        let name = path.file_name().unwrap().to_str().unwrap();
        server.put(&format!("bucket/set/{name}"), std::fs::read(&path).unwrap(), long_ago());
    }
    server
}

/// A program that knows these variables and nothing of its user.
fn environment(command: &mut Command, kept: &Path, variables: &[(&str, &str)]) {
    common::without_credentials(command, kept);
    command
        .env("MIXD_CACHE_DIR", kept.join("indexes"))
        .env("MIXD_DISK_CACHE", format!("{}:1G", kept.join("objects").display()));
    command.envs(variables.iter().copied());
}

/// The batches that a daemon gives are those of the shards on a disk.
fn check(shards: &Shards, data: &str, args: &[&str], variables: &[(&str, &str)]) {
    let kept = tempfile::tempdir().unwrap();
    let daemon = Daemon::with(tempfile::tempdir().unwrap(), Path::new(data), args, |command| {
        environment(command, kept.path(), variables);
    });
    let mut trainer = Trainer::start(&daemon, spec(), 5, 0);
    trainer.finish();
    assert_eq!(trainer.read.len(), 5, "{data}");
    Oracle::of(shards.dir.path()).check(&trainer);
}

/// Nothing of these secrets is shown of a server that refuses every request.
fn check_refusal(server: &Web, data: &str, variables: &[(&str, &str)], secrets: &[&str]) {
    server.refuse();
    let kept = tempfile::tempdir().unwrap();
    let mut program = mixd();
    environment(&mut program, kept.path(), variables);
    program.args(["plan", "--epoch", "0", "--store-timeout", "0.3"]).env("MIXD_DATA", data).env("RUST_LOG", "trace");
    let output = program.stdin(Stdio::null()).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), stderr(&output));
    assert!(!output.status.success() && text.contains("access is denied (AuthenticationFailed)"), "{text}");
    assert!(server.seen().iter().any(|head| secrets.iter().any(|secret| head.contains(secret))), "no secret was sent");
    for secret in secrets {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

#[test]
fn googles_objects_give_the_batches_of_the_same_shards_on_a_disk() {
    let shards = Shards::write(60, 100);
    let server = filled(Web::start(Speech::Google), &shards);
    let address = format!("http://{}", server.address);
    let variables = [("GOOGLE_BASE_URL", &*address), ("GOOGLE_ALLOW_HTTP", "true"), ("GOOGLE_BEARER_TOKEN", TOKEN)];
    check(&shards, "gs://bucket/set", &[], &variables);
    check(&shards, "gs://bucket/set/train-*.tar", &["--splits=val=val-*.tar"], &variables);
    assert!(server.seen().iter().all(|head| head.contains(&format!("Bearer {TOKEN}"))), "{:?}", server.seen());
    check_refusal(&server, "gs://bucket/set", &variables, &[TOKEN]);
}

#[test]
fn azures_blobs_give_the_batches_of_the_same_shards_on_a_disk() {
    let shards = Shards::write(60, 100);
    let server = filled(Web::start(Speech::Azure), &shards);
    let address = format!("http://{}", server.address);
    // The emulator's account has a key that everybody knows.
    let emulator = [("AZURE_STORAGE_USE_EMULATOR", "true"), ("AZURITE_BLOB_STORAGE_URL", &*address)];
    check(&shards, "az://bucket/set", &[], &emulator);
    assert!(server.seen().iter().all(|head| head.contains("SharedKey devstoreaccount1:")), "{:?}", server.seen());
    let server = filled(Web::start(Speech::Azure), &shards);
    let address = format!("http://{}", server.address);
    let signature = format!("sv=2026-01-01&sig={TOKEN}");
    let account = [
        ("AZURE_STORAGE_ENDPOINT", &*address),
        ("AZURE_STORAGE_ACCOUNT_NAME", "mine"),
        ("AZURE_STORAGE_SAS_TOKEN", &signature),
        ("AZURE_ALLOW_HTTP", "true"),
    ];
    check(&shards, "az://bucket/set/{train,val}-*.tar", &[], &account);
    assert!(server.seen().iter().all(|head| head.contains(&format!("sig={TOKEN}"))), "{:?}", server.seen());
    check_refusal(&server, "az://bucket/set", &account, &[TOKEN]);
}

/// The shards by name, since web servers do not list.
fn named(root: &str, shards: &Shards) -> String {
    let train = shards.paths().iter().filter(|path| path.to_str().unwrap().contains("train-")).count() - 1;
    let val = shards.paths().len() - train - 2;
    format!(
        "{root}/bucket/set/train-{{000..{train:03}}}.tar?sig={TOKEN}::{root}/bucket/set/val-{{000..{val:03}}}.tar?sig={TOKEN}"
    )
}

#[test]
fn a_web_servers_files_give_the_batches_of_the_same_shards_on_a_disk() {
    let shards = Shards::write(60, 100);
    for speech in [Speech::Web, Speech::Times, Speech::Pages] {
        let server = filled(Web::start(speech), &shards);
        let data = named(&format!("http://{}", server.address), &shards);
        check(&shards, &data, &[], &[]);
        // What may lie beside the shards is asked for without their signature.
        let is_right = |head: &String| head.starts_with("GET ") && head.contains(".tar") == head.contains(TOKEN);
        assert!(server.seen().iter().all(is_right), "{:?}", server.seen());
        check_refusal(&server, &data, &[], &[TOKEN]);
    }
}

#[test]
fn a_web_server_with_a_certificate_of_its_own_is_trusted_by_ssl_cert_file() {
    let dir = tempfile::tempdir().unwrap();
    let Some(tls) = certified(dir.path()) else {
        return common::left_out("a server with TLS: there is no openssl to make its certificate");
    };
    let shards = Shards::write(60, 100);
    let server = filled(Web::with(Speech::Web, Some(tls)), &shards);
    let data = named(&format!("https://localhost:{}", server.address.port()), &shards);
    let trusted = dir.path().join("ca.pem");
    check(&shards, &data, &[], &[("SSL_CERT_FILE", trusted.to_str().unwrap())]);
    // And no other.
    let kept = tempfile::tempdir().unwrap();
    let mut program = mixd();
    environment(&mut program, kept.path(), &[]);
    let output = program.args(["plan", "--epoch=0", "--store-timeout=0.3", "--data", &data]).output().unwrap();
    assert!(!output.status.success() && stderr(&output).contains("certificate"), "{}", stderr(&output));
}

#[test]
fn an_object_without_an_etag_is_read_once_its_time_of_change_tells_changes_apart() {
    let dir = tempfile::tempdir().unwrap();
    let find = |server: &Web, timeout: Duration| {
        let options = StoreOptions { disk_cache: Some(DiskCache { dir: dir.path().into(), bytes: 1 << 30 }), timeout };
        let remote = Remote::new(&options, dir.path(), Vec::new()).unwrap();
        remote.find(&[format!("http://{}/a.bin", server.address).parse().unwrap()])
    };
    // By the server's clock, whatever the machine's.
    for ahead in [TimeDelta::zero(), TimeDelta::hours(1), -TimeDelta::hours(1)] {
        let server = Web::start(Speech::Times);
        server.set_ahead(ahead);
        let changed = Utc::now() + ahead;
        server.put("a.bin", vec![1; 100], changed);
        find(&server, common::DEADLINE).unwrap();
        let age = Utc::now() + ahead - changed;
        assert!(age >= TimeDelta::seconds(1) && server.seen().len() > 1, "{ahead}: {age}");
        let seen = server.seen().len();
        find(&server, common::DEADLINE).unwrap();
        assert_eq!(server.seen().len(), seen + 1);
    }
    // A server that makes its files for each request never comes to that.
    let server = Web::start(Speech::Times);
    server.put("a.bin", vec![1; 100], Utc::now() + TimeDelta::hours(1));
    let error = find(&server, Duration::from_millis(200)).unwrap_err().to_string();
    assert!(error.contains("changed just now") && error.contains("no ETag"), "{error}");
    // ETags need none of this.
    let server = Web::start(Speech::Web);
    server.put("a.bin", vec![1; 100], Utc::now());
    find(&server, common::DEADLINE).unwrap();
    assert_eq!(server.seen().len(), 1);
}

/// A certificate for localhost by an authority of its own, `ca.pem`; `None` without openssl.
fn certified(dir: &Path) -> Option<Arc<ServerConfig>> {
    let commands =
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=loopback-authority -keyout ca.key -out ca.pem &&
        openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout own.key -out own.csr &&
        printf 'subjectAltName=DNS:localhost\\nbasicConstraints=CA:FALSE\\n' > own.ext &&
        openssl x509 -req -in own.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile own.ext -out own.pem";
    let output = Command::new("sh").args(["-c", commands]).current_dir(dir).output().unwrap();
    if output.status.code() == Some(127) {
        return None;
    }
    assert!(output.status.success(), "{}", stderr(&output));
    let certificates = CertificateDer::pem_file_iter(dir.join("own.pem")).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(dir.join("own.key")).unwrap();
    Some(Arc::new(ServerConfig::builder().with_no_client_auth().with_single_cert(certificates, key).unwrap()))
}

//! The real program on a bucket whose credentials are in the files of the AWS tools.

use super::common::trainer::{Oracle, Trainer};
use super::common::{self, Daemon, mixd, stderr, until};
use super::server::{BUCKET, Fault, KEY, Proxy, SECRET, Server, Shards};
use super::spec;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// A home folder with these files of the AWS tools, and nothing in the environment.
struct Home {
    dir: tempfile::TempDir,
    data: String,
}

impl Home {
    fn new(config: &str, credentials: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(".aws")).unwrap();
        std::fs::write(dir.path().join(".aws/config"), config).unwrap();
        std::fs::write(dir.path().join(".aws/credentials"), credentials).unwrap();
        Self { dir, data: format!("s3://{BUCKET}/set") }
    }

    fn environment(&self, command: &mut Command, profile: &str) {
        common::without_credentials(command, self.dir.path());
        command.env("AWS_PROFILE", profile).env("MIXD_CACHE_DIR", self.dir.path().join("indexes"));
        command.env("MIXD_DISK_CACHE", format!("{}:1G", self.dir.path().join("objects").display()));
    }

    /// The batches of a daemon are those of the shards on a disk.
    fn check(&self, profile: &str, shards: &Shards) {
        let daemon = Daemon::with(tempfile::tempdir().unwrap(), Path::new(&self.data), &[], |command| {
            self.environment(command, profile);
        });
        let mut trainer = Trainer::start(&daemon, spec(), 5, 0);
        trainer.finish();
        assert_eq!(trainer.read.len(), 5);
        Oracle::of(shards.dir.path()).check(&trainer);
    }

    fn plan(&self, profile: &str) -> Output {
        let mut program = mixd();
        self.environment(&mut program, profile);
        program.args(["plan", "--epoch=0", "--store-timeout=0.3", "--data", &self.data]).env("RUST_LOG", "trace");
        program.stdin(Stdio::null()).output().unwrap()
    }

    /// The same, while it runs.
    fn planning(&self, profile: &str) -> Child {
        let mut program = mixd();
        self.environment(&mut program, profile);
        program.args(["plan", "--epoch=0", "--data", &self.data]);
        program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }
}

#[test]
fn a_profile_of_the_aws_tools_opens_a_bucket() {
    let (server, shards) = (Server::start(), Shards::write(60, 100));
    shards.upload(&server);
    let proxy = Proxy::before(server.address);
    let kept = tempfile::tempdir().unwrap();
    let (script, runs) = (kept.path().join("keys.sh"), kept.path().join("runs"));
    let answer = format!(r#"{{"Version": 1, "AccessKeyId": "{KEY}", "SecretAccessKey": "{SECRET}"}}"#);
    std::fs::write(&script, format!("echo run >> '{}'\necho '{answer}'\n", runs.display())).unwrap();
    let config = format!(
        "[profile mine]\nregion = us-east-1\nendpoint_url = http://{0}\n\
         [profile process]\nregion = us-east-1\nendpoint_url = http://{0}\ncredential_process = sh '{1}' {SECRET}\n\
         [profile broken]\nregion = us-east-1\nendpoint_url = http://{0}\ncredential_process = echo {SECRET} >&2; echo {SECRET}; exit 3\n\
         [profile login]\nsso_session = us\naws_secret_access_key = {SECRET}\n",
        proxy.address,
        script.display()
    );
    let home = Home::new(&config, &format!("[mine]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"));
    home.check("mine", &shards);
    std::fs::remove_dir_all(home.dir.path().join("objects")).unwrap();
    home.check("process", &shards);
    // Keys without an end are asked for once.
    assert_eq!(std::fs::read_to_string(&runs).unwrap(), "run\n");
    let ended = answer.replace('}', r#", "Expiration": "2026-01-01T00:00:00+01:00"}"#);
    std::fs::write(&script, format!("echo run >> '{}'\necho '{ended}'\n", runs.display())).unwrap();
    assert!(home.plan("process").status.success());
    assert!(std::fs::read_to_string(&runs).unwrap().lines().count() > 2, "keys that have ended were used");

    proxy.spoil_all(Fault::Denied);
    for (profile, expected) in [
        ("mine", "s3://"),
        ("process", "s3://"),
        ("broken", "credential_process failed (exit status: 3)"),
        ("login", "aws configure export-credentials --profile login"),
        ("absent", "no profile `absent`"),
    ] {
        std::fs::remove_dir_all(home.dir.path().join("indexes")).ok();
        std::fs::remove_dir_all(home.dir.path().join("objects")).ok();
        let output = home.plan(profile);
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), stderr(&output));
        assert!(!output.status.success() && text.contains(expected), "{profile}: {text}");
        assert!(!text.contains(SECRET) && !text.contains(KEY), "{profile}: {text}");
    }
}

#[test]
fn a_program_that_is_asked_for_keys_ends_with_mixd() {
    let home = Home::new("", "");
    let started = home.dir.path().join("started");
    let config = format!(
        "[profile slow]\nregion = us-east-1\nendpoint_url = http://127.0.0.1:9\ncredential_process = sh -c 'sleep 600 & echo $! > {0}.new; mv {0}.new {0}; wait'\n",
        started.display()
    );
    std::fs::write(home.dir.path().join(".aws/config"), config).unwrap();
    let mut program = home.planning("slow");
    let process = until("the program runs", || std::fs::read_to_string(&started).ok());
    let stat = || std::fs::read_to_string(format!("/proc/{}/stat", process.trim()));
    until("it sleeps", || stat().unwrap().contains("(sleep) ").then_some(()));
    program.kill().unwrap();
    program.wait().unwrap();
    until("the program has ended", || stat().map_or(true, |stat| stat.contains(") Z ")).then_some(()));
}

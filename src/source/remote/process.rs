//! Keys that a program gives: `credential_process` of a profile.
//!
//! <https://docs.aws.amazon.com/sdkref/latest/guide/feature-process-credentials.html>

use super::trouble::{StoreError, Trouble};
use chrono::{DateTime, TimeDelta, Utc};
use object_store::aws::AwsCredential;
use object_store::{CredentialProvider, Error};
use rustix::process::{Pid, Signal};
use serde::Deserialize;
use std::fmt;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// Keys are asked for anew so long before they expire, or after half of their life.
const EARLY: TimeDelta = TimeDelta::minutes(5);
/// A program that has failed is run again after so long.
const FAILED_PAUSE: TimeDelta = TimeDelta::seconds(30);

/// The program is ended after so long.
const RUN_MAX: Duration = Duration::from_secs(20);
/// How often to look whether it has ended.
const ENDED_INTERVAL: Duration = Duration::from_millis(10);
/// More than an answer has.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// The program, and what it gave last.
pub struct Process {
    command: String,
    given: Mutex<Option<Given>>,
}

struct Given {
    keys: Arc<AwsCredential>,
    /// When the program is run again.
    anew: DateTime<Utc>,
    expiry: DateTime<Utc>,
}

/// Without the command, which may hold a secret.
impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Process")
    }
}

/// What the program writes.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    access_key_id: String,
    secret_access_key: String,
    session_token: Option<String>,
    expiration: Option<String>,
}

impl Process {
    /// The keys that `command` gives, which a shell runs.
    pub fn new(command: String) -> Self {
        Self { command, given: Mutex::default() }
    }

    async fn keys(&self) -> Result<Arc<AwsCredential>, StoreError> {
        // Held over the run: one program at a time.
        let mut given = self.given.lock().await;
        if let Some(given) = &*given
            && Utc::now() < given.anew
        {
            return Ok(Arc::clone(&given.keys));
        }
        let command = self.command.clone();
        let run = tokio::task::spawn_blocking(move || run(&command, RUN_MAX));
        let now = Utc::now();
        let answer = match (run.await.map_err(|_| failed("did not run"))?, &mut *given) {
            // Until they expire.
            (Err(_), Some(given)) if now < given.expiry => {
                given.anew = given.expiry.min(now + FAILED_PAUSE);
                return Ok(Arc::clone(&given.keys));
            }
            (answer, _) => answer?,
        };
        let Answer { access_key_id: key_id, secret_access_key: secret_key, session_token: token, expiration } = answer;
        let expiry = match expiration {
            None => DateTime::<Utc>::MAX_UTC,
            Some(text) => {
                DateTime::parse_from_rfc3339(&text).map_err(|_| failed("gave an Expiration that is no time"))?.to_utc()
            }
        };
        let keys = Arc::new(AwsCredential { key_id, secret_key, token });
        let anew = expiry - EARLY.min((expiry - now) / 2);
        *given = Some(Given { keys: Arc::clone(&keys), anew, expiry });
        Ok(keys)
    }
}

/// What the program writes to standard error is left out: it may be anything.
fn run(command: &str, limit: Duration) -> Result<Answer, StoreError> {
    let deadline = Instant::now() + limit;
    let mut shell = Command::new("sh");
    // A group of its own, so that what the shell starts ends with it.
    shell.args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    let mut child = shell.spawn().map_err(|error| failed(&format!("cannot be started: {error}")))?;
    let stdout = child.stdout.take().expect("it is piped");
    let (done, read) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = done.send(stdout.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes).map(|_| bytes));
    });
    let read = read.recv_timeout(limit);
    // It may go on without its output.
    let mut is_late = read.is_err();
    let status = loop {
        if is_late {
            let _ = rustix::process::kill_process_group(Pid::from_child(&child), Signal::KILL);
        }
        let status = if is_late { child.wait().map(Some) } else { child.try_wait() };
        match status.map_err(|error| failed(&format!("cannot be waited for: {error}")))? {
            Some(status) => break status,
            None => std::thread::sleep(ENDED_INTERVAL),
        }
        is_late = Instant::now() >= deadline;
    };
    let Some(bytes) = read.ok().filter(|_| !is_late) else {
        return Err(failed(&format!("did not end within {} s", limit.as_secs())));
    };
    if !status.success() {
        return Err(failed(&format!("failed ({status})")));
    }
    let bytes = bytes.map_err(|error| failed(&format!("cannot be read: {error}")))?;
    serde_json::from_slice(&bytes).map_err(|_| failed("did not give AccessKeyId and SecretAccessKey as JSON"))
}

fn failed(how: &str) -> StoreError {
    // A network that is away may be its cause.
    StoreError::new(Trouble::Passing, format!("the profile's credential_process {how} (run it by hand to see why)"))
}

impl CredentialProvider for Process {
    type Credential = AwsCredential;

    fn get_credential<'own, 'future>(
        &'own self,
    ) -> Pin<Box<dyn Future<Output = object_store::Result<Arc<AwsCredential>>> + Send + 'future>>
    where
        'own: 'future,
        Self: 'future,
    {
        Box::pin(async { self.keys().await.map_err(|error| Error::Generic { store: "S3", source: error.into() }) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_does_not_end_is_ended_with_what_it_has_started() {
        let dir = tempfile::tempdir().unwrap();
        let started = dir.path().join("started");
        for command in [
            "sleep 600 & echo $! > FILE; wait",
            // Its output ends before it does.
            "echo $$ > FILE; exec >&- sleep 600",
        ] {
            let error = run(&command.replace("FILE", started.to_str().unwrap()), Duration::from_secs(1)).err().unwrap();
            assert!(error.to_string().contains("did not end within 1 s"), "{error}");
            let started = std::fs::read_to_string(&started).unwrap();
            let stat = || std::fs::read_to_string(format!("/proc/{}/stat", started.trim()));
            let deadline = Instant::now() + Duration::from_secs(30);
            while stat().is_ok_and(|stat| !stat.contains(") Z ")) {
                assert!(Instant::now() < deadline, "it runs on");
            }
        }
    }

    #[test]
    fn keys_that_live_for_a_minute_are_used_more_than_once() {
        let dir = tempfile::tempdir().unwrap();
        let runs = dir.path().join("runs");
        let expiry = (Utc::now() + TimeDelta::minutes(1)).to_rfc3339();
        let answer = format!(r#"{{"AccessKeyId":"a","SecretAccessKey":"b","Expiration":"{expiry}"}}"#);
        let process = Process::new(format!("echo run >> {}; echo '{answer}'", runs.display()));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for _ in 0..3 {
            assert_eq!(runtime.block_on(process.keys()).unwrap().key_id, "a");
        }
        assert_eq!(std::fs::read_to_string(runs).unwrap(), "run\n");
    }
}

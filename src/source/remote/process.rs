//! Keys that a program gives: `credential_process` of a profile.
//!
//! <https://docs.aws.amazon.com/sdkref/latest/guide/feature-process-credentials.html>

use super::trouble::{StoreError, Trouble};
use chrono::{DateTime, TimeDelta, Utc};
use object_store::aws::AwsCredential;
use object_store::{CredentialProvider, Error};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use serde::Deserialize;
use std::fmt;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::pin::Pin;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Keys are asked for anew so long before they expire, or after half of their life.
const EARLY: TimeDelta = TimeDelta::minutes(5);
/// A program that has failed is run again after so long, where the keys that it gave before are still good.
const FAILED_PAUSE: TimeDelta = TimeDelta::seconds(30);
/// How long a failure is told to those who ask, where they are not: those who waited for the run do not repeat it.
const FAILURE_TOLD: Duration = Duration::from_secs(1);

/// The program is ended after so long.
const RUN_MAX: Duration = Duration::from_secs(20);
/// How often to look whether it has ended.
const ENDED_INTERVAL: Duration = Duration::from_millis(10);
/// More than an answer has.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Keys that a program gives.
pub struct Process(Arc<Program>);

/// The program, and what it gave last.
struct Program {
    command: String,
    given: Mutex<Option<Given>>,
    /// Held over a run, one at a time; how the last one failed, and when.
    running: Mutex<Option<(StoreError, Instant)>>,
}

#[derive(Clone)]
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
        Self(Arc::new(Program { command, given: Mutex::default(), running: Mutex::default() }))
    }

    async fn keys(&self) -> Result<Arc<AwsCredential>, StoreError> {
        if let Some(keys) = self.0.keys(|given| given.anew) {
            return Ok(keys);
        }
        // Whoever asks may give up; the run goes on, for those who ask next.
        let program = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || program.renewed()).await.map_err(|_| failed("did not run"))?
    }
}

impl Program {
    /// The keys, if now is before `end` of them.
    fn keys(&self, end: impl FnOnce(&Given) -> DateTime<Utc>) -> Option<Arc<AwsCredential>> {
        let given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.as_ref().filter(|given| Utc::now() < end(given)).map(|given| Arc::clone(&given.keys))
    }

    /// The keys that a run gives; those of the one before until they expire, where another run is under way or this one fails.
    fn renewed(&self) -> Result<Arc<AwsCredential>, StoreError> {
        let running = self.running.try_lock().ok();
        let mut running = match (running, self.keys(|given| given.expiry)) {
            (Some(running), _) => running,
            (None, Some(keys)) => return Ok(keys),
            (None, None) => self.running.lock().unwrap_or_else(PoisonError::into_inner),
        };
        // Another run may have ended meanwhile.
        if let Some(keys) = self.keys(|given| given.anew) {
            return Ok(keys);
        }
        if let Some((error, _)) = running.as_ref().filter(|(_, at)| at.elapsed() < FAILURE_TOLD) {
            return Err(error.clone());
        }
        let result = run(&self.command, RUN_MAX).and_then(Given::new);
        *running = result.as_ref().err().map(|error| (error.clone(), Instant::now()));
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Utc::now();
        match (result, &mut *given) {
            (Ok(new), given) => Ok(Arc::clone(&given.insert(new).keys)),
            (Err(_), Some(given)) if now < given.expiry => {
                given.anew = given.expiry.min(now + FAILED_PAUSE);
                Ok(Arc::clone(&given.keys))
            }
            (Err(error), _) => Err(error),
        }
    }
}

impl Given {
    fn new(answer: Answer) -> Result<Self, StoreError> {
        let Answer { access_key_id: key_id, secret_access_key: secret_key, session_token: token, expiration } = answer;
        let expiry = match expiration {
            None => DateTime::<Utc>::MAX_UTC,
            Some(text) => {
                DateTime::parse_from_rfc3339(&text).map_err(|_| failed("gave an Expiration that is no time"))?.to_utc()
            }
        };
        let anew = expiry - EARLY.min((expiry - Utc::now()) / 2);
        Ok(Self { keys: Arc::new(AwsCredential { key_id, secret_key, token }), anew, expiry })
    }
}

/// What the program writes to standard error is left out: it may be anything.
fn run(command: &str, limit: Duration) -> Result<Answer, StoreError> {
    let deadline = Instant::now() + limit;
    // A group of its own, which ends when this process does, however that ends: its input is closed then.
    let script = "exec 3<&0 </dev/null; { read -r _; kill -KILL 0; } <&3 >/dev/null 2>&1 & watch=$!; exec 3<&-; \
                  sh -c \"$1\"; status=$?; kill -KILL $watch; wait $watch; exit $status";
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh", command]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    shell.process_group(0);
    let mut child = shell.spawn().map_err(|error| failed(&format!("cannot be started: {error}")))?;
    let (input, output) = (child.stdin.take(), child.stdout.take().expect("it is piped"));
    let group = Pid::from_child(&child);
    let answer = read(output, deadline);
    // It may go on without its output. It keeps its id until it is waited for.
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let has_ended = || waitid(WaitId::Pid(group), options).is_ok_and(|ended| ended.is_some());
    let is_late = loop {
        if has_ended() {
            break false;
        } else if Instant::now() >= deadline || answer.is_err() {
            break true;
        }
        std::thread::sleep(ENDED_INTERVAL);
    };
    // Whatever it has left behind, too.
    let _ = kill_process_group(group, Signal::KILL);
    drop(input);
    let status = child.wait().map_err(|error| failed(&format!("cannot be waited for: {error}")))?;
    let bytes = answer.map_err(|error| failed(&format!("cannot be read: {error}")))?;
    let Some(bytes) = bytes.filter(|_| !is_late) else {
        return Err(failed(&format!("did not end within {} s", limit.as_secs())));
    };
    if !status.success() {
        return Err(failed(&format!("failed ({status})")));
    }
    serde_json::from_slice(&bytes).map_err(|_| failed("did not give AccessKeyId and SecretAccessKey as JSON"))
}

/// All that a program writes; `None` where it has not ended that by the deadline.
fn read(mut output: ChildStdout, deadline: Instant) -> io::Result<Option<Vec<u8>>> {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
    while bytes.len() <= ANSWER_BYTES_MAX {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).map_err(io::Error::other)?;
        if retry_on_intr(|| poll(&mut [PollFd::new(&output, PollFlags::IN)], Some(&left)))? == 0 {
            return Ok(None);
        }
        match output.read(&mut chunk)? {
            0 => return Ok(Some(bytes)),
            count => bytes.extend_from_slice(&chunk[..count]),
        }
    }
    Err(io::Error::other("it is longer than keys are"))
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
        for (command, expected) in [
            ("sleep 600 & echo $! > FILE; wait", "did not end within 1 s"),
            // It is left behind by a program that has given its answer, and that waits for all that it has started before.
            ("true & wait; sleep 600 >&- & echo $! > FILE; echo {}", "did not give AccessKeyId"),
            // Its output ends before it does.
            ("echo $$ > FILE; exec >&- sleep 600", "did not end within 1 s"),
            ("echo $$ > FILE; yes", "longer than keys are"),
        ] {
            let error = run(&command.replace("FILE", started.to_str().unwrap()), Duration::from_secs(1)).err().unwrap();
            assert!(error.to_string().contains(expected), "{error}");
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

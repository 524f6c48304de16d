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
use std::time::Duration;
use tokio::sync::Mutex;

/// Keys are asked for anew so long before they expire.
const EARLY: TimeDelta = TimeDelta::minutes(5);

/// The program is ended after so long.
const RUN_MAX: Duration = Duration::from_secs(20);
/// More than an answer has.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// The program, and what it gave last.
pub struct Process {
    command: String,
    given: Mutex<Option<(Arc<AwsCredential>, DateTime<Utc>)>>,
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
        if let Some((keys, expiry)) = &*given
            && Utc::now() + EARLY < *expiry
        {
            return Ok(Arc::clone(keys));
        }
        let command = self.command.clone();
        let run = tokio::task::spawn_blocking(move || run(&command));
        let answer = match (run.await.map_err(|_| failed("did not run"))?, &*given) {
            // Until they expire.
            (Err(_), Some((keys, expiry))) if Utc::now() < *expiry => return Ok(Arc::clone(keys)),
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
        *given = Some((Arc::clone(&keys), expiry));
        Ok(keys)
    }
}

/// What the program writes to standard error is left out: it may be anything.
fn run(command: &str) -> Result<Answer, StoreError> {
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
    let read = read.recv_timeout(RUN_MAX);
    if read.is_err() {
        let _ = rustix::process::kill_process_group(Pid::from_child(&child), Signal::KILL);
    }
    let status = child.wait().map_err(|error| failed(&format!("cannot be waited for: {error}")))?;
    let Ok(bytes) = read else { return Err(failed(&format!("did not end within {} s", RUN_MAX.as_secs()))) };
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

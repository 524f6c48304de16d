//! Requests to object stores, each once: what failed may be retried as its [`Trouble`] says.
//!
//! Errors of the libraries below hold addresses with their signatures, and answers that repeat access keys. None of their texts is passed on:
//! a [`StoreError`] is made of the status, the store's error code and the kind of failure.

use super::process::Process;
use super::profile::{self, Aws, Variables};
use super::trouble::{MISUNDERSTOOD, StoreError, Trouble, WHOLE_FILE};
use super::url::{Scheme, Url};
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::StreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::path::Path;
use object_store::{ClientOptions, Error, GetOptions, GetRange, ObjectMeta, ObjectStore, RetryConfig};
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// How long a request may take to connect, and to bring its next bytes.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request may take in all: a block at 140 KB/s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Times of change have seconds: an object may change again within the one that it has, and within the tick of a clock.
const SETTLING: TimeDelta = TimeDelta::seconds(2);

/// An object as it was when it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where it is.
    pub url: Url,
    /// What changes with its content: the store's ETag, or else its time of change.
    pub tag: String,
    /// Its size.
    pub bytes: u64,
}

/// The stores that are in use.
pub struct Stores {
    variables: Variables,
    /// With the user's profile, once it is needed.
    aws: OnceLock<Result<Aws, StoreError>>,
    open: Mutex<HashMap<String, Arc<dyn ObjectStore>>>,
    web: Web,
}

/// The connections of all web servers' objects.
#[derive(Debug, Clone)]
struct Web(HttpClient);

/// The time at which the server answered, by its own clock; with an answer's extensions.
#[derive(Debug, Clone, Copy)]
struct Answered(DateTime<Utc>);

impl HttpService for Web {
    fn call<'own, 'future>(
        &'own self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'future>>
    where
        'own: 'future,
        Self: 'future,
    {
        Box::pin(async {
            let mut response = self.0.execute(request).await?;
            let date = response.headers().get("date").and_then(|date| date.to_str().ok());
            if let Some(date) = date.and_then(|date| DateTime::parse_from_rfc2822(date).ok()) {
                response.extensions_mut().insert(Answered(date.to_utc()));
            }
            Ok(response)
        })
    }
}

impl HttpConnector for Web {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

/// Without its variables.
impl fmt::Debug for Stores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stores")
    }
}

impl Stores {
    /// No store is in use yet.
    ///
    /// # Errors
    /// When no client can be made.
    pub fn new(variables: Variables) -> Result<Self, StoreError> {
        let client =
            ReqwestConnector::default().connect(&client_options().with_allow_http(true)).map_err(|e| told(&e))?;
        Ok(Self { variables, aws: OnceLock::new(), open: Mutex::default(), web: Web(client) })
    }

    /// What tells a bucket from one of the same name elsewhere: endpoint and account, where they were given.
    pub fn endpoint(&self, url: &Url) -> String {
        let names: &[&str] = match url.scheme() {
            Scheme::S3 => &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"],
            Scheme::Az => &[
                "AZURE_STORAGE_ENDPOINT",
                "AZURE_ENDPOINT",
                "AZURE_STORAGE_USE_EMULATOR",
                "AZURITE_BLOB_STORAGE_URL",
                "AZURE_STORAGE_ACCOUNT_NAME",
            ],
            Scheme::Gs => &["GOOGLE_BASE_URL"],
            Scheme::Http => &[],
        };
        // Where the profile cannot be used no object was found.
        let aws = self.aws().ok().filter(|_| url.scheme() == Scheme::S3);
        let variables = aws.map_or(&self.variables, |aws| &aws.variables);
        let value = |name: &&str| variables.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        names.iter().filter_map(value).collect::<Vec<_>>().join(" ")
    }

    fn aws(&self) -> Result<&Aws, StoreError> {
        self.aws.get_or_init(|| profile::completed(&self.variables)).as_ref().map_err(Clone::clone)
    }

    /// Looks for an object.
    ///
    /// # Errors
    /// When it is not there, or the store does not answer.
    pub async fn find(&self, url: &Url) -> Result<Found, StoreError> {
        let (store, path) = self.store(url)?;
        // A signed address is good for GET alone.
        let range = (url.scheme() == Scheme::Http).then_some(GetRange::Bounded(0..1));
        let head = range.is_none();
        let result = store.get_opts(&path, GetOptions { head, range, ..GetOptions::default() }).await;
        let result = result.map_err(|error| match told(&error) {
            // A page for whatever is not there, say: it would come again.
            error if !head && error.is_misunderstood() => StoreError::new(Trouble::Final, error.to_string()),
            error => error,
        })?;
        let found = found(url.clone(), &result.meta)?;
        let now = result.extensions.get::<Answered>().map_or_else(Utc::now, |answered| answered.0);
        if result.meta.e_tag.is_none() && now - result.meta.last_modified < SETTLING {
            // Whatever is read now could change without a trace.
            let text = format!(
                "it was changed just now, and the server gives no ETag: waiting until its time of change is {} s old",
                SETTLING.num_seconds()
            );
            return Err(StoreError::new(Trouble::Passing, text));
        }
        Ok(found)
    }

    /// The objects of a bucket whose names begin with `prefix`'s and a slash, in the order of their names.
    ///
    /// # Errors
    /// When the store does not answer, or cannot list.
    pub async fn list(&self, prefix: &Url) -> Result<Vec<Found>, StoreError> {
        if prefix.scheme() == Scheme::Http {
            let text = "web servers do not list their files (name the shards, such as train-{000000..000146}.tar)";
            return Err(StoreError::new(Trouble::Final, text));
        }
        let (store, path) = self.store(prefix)?;
        let mut listed = store.list(Some(&path));
        let mut all = Vec::new();
        while let Some(meta) = listed.next().await {
            let meta = meta.map_err(|error| told(&error))?;
            let url = prefix.sibling(meta.location.as_ref());
            // Not every store lists ETags, and with its requests it gives them.
            all.push(if meta.e_tag.is_some() { found(url, &meta)? } else { self.find(&url).await? });
        }
        all.sort_unstable_by(|one: &Found, other| one.url.cmp(&other.url));
        Ok(all)
    }

    /// The bytes of `range` of an object, which is the one that was found.
    ///
    /// # Errors
    /// When they do not come, or others do.
    pub async fn get(&self, object: &Found, range: Range<u64>) -> Result<Vec<bytes::Bytes>, StoreError> {
        let (store, path) = self.store(&object.url)?;
        // A weak ETag never matches. What is returned is compared anyhow.
        let is_strong = object.tag.starts_with('"');
        let options = GetOptions {
            if_match: is_strong.then(|| object.tag.clone()),
            range: Some(GetRange::Bounded(range.clone())),
            ..GetOptions::default()
        };
        let request = async {
            let result = store.get_opts(&path, options).await.map_err(|error| told(&error))?;
            let now = found(object.url.clone(), &result.meta)?;
            if now != *object {
                return Err(changed());
            }
            let (expected, mut left) = (range.end - range.start, range.end - range.start);
            let (mut chunks, mut body) = (Vec::new(), result.into_stream());
            while let Some(chunk) = body.next().await {
                let chunk = chunk.map_err(|error| told(&error))?;
                let Some(rest) = left.checked_sub(chunk.len() as u64) else {
                    let text = format!("the store sent more than the {expected} bytes that were asked for");
                    return Err(StoreError::new(Trouble::Passing, text));
                };
                left = rest;
                chunks.push(chunk);
            }
            if left > 0 {
                let text = format!("the store sent {} of {expected} bytes", expected - left);
                return Err(StoreError::new(Trouble::Passing, text));
            }
            Ok(chunks)
        };
        let timed_out = |_| StoreError::new(Trouble::Passing, "the store's answer took too long");
        tokio::time::timeout(REQUEST_TIMEOUT, request).await.map_err(timed_out)?
    }

    /// All bytes of an object of at most `bytes_max`, by one request.
    ///
    /// # Errors
    /// When they do not come, or are more.
    pub async fn get_small(&self, url: &Url, bytes_max: u64) -> Result<Vec<u8>, StoreError> {
        let (store, path) = self.store(url)?;
        let request = async {
            let result = store.get_opts(&path, GetOptions::default()).await.map_err(|error| told(&error))?;
            let expected = result.meta.size;
            let too_large = || StoreError::new(Trouble::Final, format!("it has more than {bytes_max} bytes"));
            if expected > bytes_max {
                return Err(too_large());
            }
            let (mut bytes, mut body) = (Vec::new(), result.into_stream());
            while let Some(chunk) = body.next().await {
                bytes.extend_from_slice(&chunk.map_err(|error| told(&error))?);
                if bytes.len() as u64 > bytes_max {
                    return Err(too_large());
                }
            }
            if bytes.len() as u64 != expected {
                let text = format!("the store sent {} of {expected} bytes", bytes.len());
                return Err(StoreError::new(Trouble::Passing, text));
            }
            Ok(bytes)
        };
        let timed_out = |_| StoreError::new(Trouble::Passing, "the store's answer took too long");
        tokio::time::timeout(REQUEST_TIMEOUT, request).await.map_err(timed_out)?
    }

    /// The store of an address, and the object's path in it.
    fn store(&self, url: &Url) -> Result<(Arc<dyn ObjectStore>, Path), StoreError> {
        if url.scheme() == Scheme::Http {
            let store = HttpBuilder::new()
                .with_url(url.text())
                .with_http_connector(self.web.clone())
                .with_retry(once())
                .build()
                .map_err(|_| StoreError::new(Trouble::Final, "this is no address of a file on a web server"))?;
            return Ok((Arc::new(store), Path::default()));
        }
        let path = Path::parse(url.name()).map_err(|_| {
            StoreError::new(Trouble::Final, "object names with `//`, `/./` or `/../` are not supported")
        })?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = open.get(url.root()) {
            return Ok((Arc::clone(store), path));
        }
        let aws = if url.scheme() == Scheme::S3 { Some(self.aws()?) } else { None };
        let store = self.build(url, aws).map_err(|error| match error {
            // Which setting is missing or wrong; never its value.
            Error::Generic { store, .. } => StoreError::new(
                Trouble::Final,
                format!("the settings for {store} in the environment are incomplete or wrong"),
            ),
            error => told(&error),
        })?;
        open.insert(url.root().to_owned(), Arc::clone(&store));
        Ok((store, path))
    }

    fn build(&self, url: &Url, aws: Option<&Aws>) -> object_store::Result<Arc<dyn ObjectStore>> {
        let bucket = url.bucket();
        let (options, retry) = (client_options(), once());
        Ok(match url.scheme() {
            Scheme::S3 => {
                let aws = aws.expect("it is there for S3");
                // An endpoint without TLS was named by the user.
                let options = options.with_allow_http(self.endpoint(url).contains("http://"));
                let builder = AmazonS3Builder::new().with_client_options(options).with_retry(retry);
                let mut builder = configured(&aws.variables, "AWS_", builder, AmazonS3Builder::with_config);
                if let Some(command) = &aws.process {
                    builder = builder.with_credentials(Arc::new(Process::new(command.clone())));
                }
                Arc::new(builder.with_bucket_name(bucket).build()?)
            }
            Scheme::Gs => {
                let builder = GoogleCloudStorageBuilder::new().with_client_options(options).with_retry(retry);
                let builder = configured(&self.variables, "GOOGLE_", builder, GoogleCloudStorageBuilder::with_config);
                Arc::new(builder.with_bucket_name(bucket).build()?)
            }
            Scheme::Az | Scheme::Http => {
                let builder = MicrosoftAzureBuilder::new().with_client_options(options).with_retry(retry);
                let builder = configured(&self.variables, "AZURE_", builder, MicrosoftAzureBuilder::with_config);
                Arc::new(builder.with_container_name(bucket).build()?)
            }
        })
    }
}

/// The builder with each variable that begins with `prefix` and that it knows, as its own `from_env` has it.
fn configured<B, K: FromStr>(variables: &Variables, prefix: &str, builder: B, set: impl Fn(B, K, String) -> B) -> B {
    let ours = variables.iter().filter(|(name, value)| name.starts_with(prefix) && !value.is_empty());
    ours.fold(builder, |builder, (name, value)| match name.to_ascii_lowercase().parse() {
        Ok(key) => set(builder, key, value.clone()),
        Err(_) => builder,
    })
}

fn client_options() -> ClientOptions {
    ClientOptions::new()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_read_timeout(READ_TIMEOUT)
        .with_timeout(REQUEST_TIMEOUT)
}

/// Whoever asks knows better when to ask again.
fn once() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

fn found(url: Url, meta: &ObjectMeta) -> Result<Found, StoreError> {
    let time = meta.last_modified.timestamp_nanos_opt().filter(|time| *time != 0);
    let tag = meta.e_tag.clone().filter(|tag| !tag.is_empty()).or_else(|| time.map(|time| format!("modified:{time}")));
    let Some(tag) = tag else {
        let text = "the server gives neither ETag nor Last-Modified, without which a change could go unnoticed";
        return Err(StoreError::new(Trouble::Final, text));
    };
    Ok(Found { url, tag, bytes: meta.size })
}

fn changed() -> StoreError {
    StoreError::new(Trouble::Changed, "it has changed")
}

/// What an error of the library means, without its text.
fn told(error: &Error) -> StoreError {
    match error {
        Error::NotFound { .. } => return StoreError::new(Trouble::Missing, "there is no such object"),
        Error::Precondition { .. } => return changed(),
        _ => {}
    }
    if let Some(own) = cause::<StoreError>(error) {
        return own.clone();
    }
    let text = chain(error);
    let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>")).map(|(code, _)| code);
    let code = code.filter(|code| code.len() < 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    let code = code.map_or_else(String::new, |code| format!(" ({code})"));
    let denied = |what| {
        StoreError::new(
            Trouble::Final,
            format!("{what}{code}: are the credentials in the environment, or the profile, those of this store?"),
        )
    };
    if matches!(error, Error::PermissionDenied { .. }) {
        return denied("access is denied");
    }
    if matches!(error, Error::Unauthenticated { .. }) {
        return denied("the store asks for credentials");
    }
    let status =
        text.split_once("status code: ").and_then(|(_, rest)| rest.get(..3)).and_then(|code| code.parse::<u16>().ok());
    // Where a list is refused.
    if status == Some(403) {
        return denied("access is denied");
    }
    if status == Some(401) {
        return denied("the store asks for credentials");
    }
    if let Some(status) = status {
        let is_passing = status >= 500 || [408, 409, 425, 429].contains(&status);
        let trouble = if is_passing { Trouble::Passing } else { Trouble::Final };
        return StoreError::new(trouble, format!("the store answered with status {status}{code}"));
    }
    if ["169.254.", "metadata.google"].iter().any(|host| text.contains(host)) {
        let text = "there are no credentials for the store in the environment, and the machine's metadata service gives none \
                    (for a public S3 bucket set AWS_SKIP_SIGNATURE=true)";
        return StoreError::new(Trouble::Passing, text);
    }
    if let Some(error) = cause::<HttpError>(error) {
        let what = match error.kind() {
            _ if text.contains("certificate") => {
                "the server's certificate is not trusted (a file of trusted ones can be named by SSL_CERT_FILE)"
            }
            HttpErrorKind::Connect => "the store cannot be reached",
            HttpErrorKind::Timeout => "the store does not answer",
            HttpErrorKind::Interrupted => "the connection to the store broke",
            _ => "the store's answer broke off or is no HTTP",
        };
        return StoreError::new(Trouble::Passing, what);
    }
    let what = if text.contains("non-partial response") {
        WHOLE_FILE
    } else if text.contains("Requested ") {
        "the store sent another range than was asked for"
    } else {
        MISUNDERSTOOD
    };
    StoreError::new(Trouble::Passing, what)
}

/// The texts of an error and of all that it was caused by.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(error) = next {
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}

/// The error of a kind that an error was caused by.
fn cause<E: std::error::Error + 'static>(error: &Error) -> Option<&E> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

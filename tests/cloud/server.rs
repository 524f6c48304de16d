//! An S3 server on loopback (crate s3s-fs), which can die and come back, and a proxy in front of it that spoils answers.

use object_store::aws::AmazonS3Builder;
use object_store::{ObjectStoreExt, path::Path};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use tokio::runtime::Runtime;

pub const KEY: &str = "AKIALOOPBACKACCESS01";
pub const SECRET: &str = "loopback/secret+key/0123456789";
pub const BUCKET: &str = "shards";

/// The server, with a bucket.
pub struct Server {
    dir: tempfile::TempDir,
    pub address: SocketAddr,
    running: Option<Runtime>,
}

impl Server {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(BUCKET)).unwrap();
        let mut server = Self { dir, address: ([127, 0, 0, 1], 0).into(), running: None };
        server.come_back();
        server
    }

    /// Closes every connection, and listens no more.
    pub fn die(&mut self) {
        drop(self.running.take());
    }

    /// Listens where it did.
    pub fn come_back(&mut self) {
        let listener = TcpListener::bind(self.address).unwrap();
        self.address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut builder = s3s::service::S3ServiceBuilder::new(s3s_fs::FileSystem::new(self.dir.path()).unwrap());
        builder.set_auth(s3s::auth::SimpleAuth::from_single(KEY, SECRET));
        let service = builder.build();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((connection, _)) = listener.accept().await {
                let io = hyper_util::rt::TokioIo::new(connection);
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service.clone()));
            }
        });
        self.running = Some(runtime);
    }

    pub fn put(&self, name: &str, bytes: Vec<u8>) {
        let store = AmazonS3Builder::new()
            .with_endpoint(format!("http://{}", self.address))
            .with_allow_http(true)
            .with_bucket_name(BUCKET)
            .with_access_key_id(KEY)
            .with_secret_access_key(SECRET)
            .build()
            .unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(store.put(&Path::from(name), bytes.into())).unwrap();
    }
}

/// The variables by which a server at `address` is found and its user known.
pub fn variables(address: SocketAddr) -> Vec<(String, String)> {
    let endpoint = format!("http://{address}");
    [
        ("AWS_ENDPOINT_URL", &*endpoint),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

/// How an answer to a request for a range is spoiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The connection ends amid the body.
    Cut,
    /// A body of half the length, whose header says so.
    HalfLength,
    /// More bytes than were asked for, whose header says so.
    Longer,
    /// Another range is said to be answered.
    WrongRange,
    /// Status 503 and the store's request to slow down.
    SlowDown,
    /// Status 403 with the key of whoever asked, as S3 answers.
    Denied,
    /// No HTTP.
    Garbage,
}

#[derive(Default)]
struct State {
    faults: VecDeque<Fault>,
    /// The fault of every answer, after those.
    always: Option<Fault>,
    /// Ranges that begin in this one are held back.
    held: Range<u64>,
    /// First bytes of the ranges that were asked for, and of those that were answered whole.
    asked: Vec<(String, u64)>,
    answered: Vec<(String, u64)>,
}

/// The proxy.
pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<(Mutex<State>, Condvar)>,
}

impl Proxy {
    pub fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::<(Mutex<State>, Condvar)>::default();
        let proxy = Self { address, shared: Arc::clone(&shared) };
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || {
                    let _ = serve(&client, server, &shared);
                    let _ = client.shutdown(Shutdown::Both);
                });
            }
        });
        proxy
    }

    /// Spoils the next answers so, one after the other.
    pub fn spoil(&self, faults: impl IntoIterator<Item = Fault>) {
        self.shared.0.lock().unwrap().faults.extend(faults);
    }

    /// Spoils every answer so.
    pub fn spoil_all(&self, fault: Fault) {
        self.shared.0.lock().unwrap().always = Some(fault);
    }

    /// Holds back ranges that begin in this one; those that were held and do not are answered.
    pub fn hold(&self, range: Range<u64>) {
        self.shared.0.lock().unwrap().held = range;
        self.shared.1.notify_all();
    }

    /// Names and first bytes of ranges that were asked for.
    pub fn asked(&self) -> Vec<(String, u64)> {
        self.shared.0.lock().unwrap().asked.clone()
    }

    /// Names and first bytes of ranges that were answered, all of them.
    pub fn answered(&self) -> Vec<(String, u64)> {
        self.shared.0.lock().unwrap().answered.clone()
    }

    /// Forgets what was asked.
    pub fn forget(&self) {
        let mut state = self.shared.0.lock().unwrap();
        state.asked.clear();
        state.answered.clear();
    }
}

/// One request of a connection; the answer says that the connection ends.
fn serve(mut client: &TcpStream, server: SocketAddr, shared: &(Mutex<State>, Condvar)) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if client.read(&mut byte)? == 0 {
            return Ok(());
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let name = head.split(' ').nth(1).unwrap_or_default().split('?').next().unwrap_or_default().to_owned();
    let range =
        head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
    let first: Option<u64> = range.and_then(|range| range.split('-').next()?.parse().ok());
    let fault = first.and_then(|first| {
        let mut state = shared.0.lock().unwrap();
        state.asked.push((name.clone(), first));
        while state.held.contains(&first) {
            state = shared.1.wait(state).unwrap();
        }
        let always = state.always;
        state.faults.pop_front().or(always)
    });
    let mut upstream = TcpStream::connect(server)?;
    upstream.write_all(head.trim_end().as_bytes())?;
    upstream.write_all(b"\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer)?;
    let Some(fault) = fault else {
        client.write_all(&answer)?;
        if let Some(first) = first {
            shared.0.lock().unwrap().answered.push((name, first));
        }
        return Ok(());
    };
    client.write_all(&spoiled(fault, &answer))
}

fn spoiled(fault: Fault, answer: &[u8]) -> Vec<u8> {
    let body_at = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("an answer") + 4;
    let (head, body) = (String::from_utf8_lossy(&answer[..body_at]).to_ascii_lowercase(), &answer[body_at..]);
    let with = |name: &str, value: &str, body: &[u8]| {
        let other = |line: &&str| !line.is_empty() && !line.starts_with(name);
        let lines: Vec<_> = head.lines().filter(other).map(str::to_owned).chain([format!("{name} {value}")]).collect();
        [lines.join("\r\n").replacen("http/1.1", "HTTP/1.1", 1).as_bytes(), b"\r\n\r\n", body].concat()
    };
    let status = |status: &str, body: String| {
        format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    };
    match fault {
        Fault::Cut => answer[..body_at + body.len() / 2].to_vec(),
        Fault::HalfLength => {
            let half = &body[..body.len() / 2];
            with("content-length:", &half.len().to_string(), half)
        }
        Fault::Longer => {
            let longer = [body, b"more"].concat();
            with("content-length:", &longer.len().to_string(), &longer)
        }
        Fault::WrongRange => with("content-range:", "bytes 7-9/100", body),
        Fault::SlowDown => status("503 Slow Down", "<Error><Code>SlowDown</Code></Error>".into()),
        Fault::Denied => status(
            "403 Forbidden",
            format!("<Error><Code>InvalidAccessKeyId</Code><AWSAccessKeyId>{KEY}</AWSAccessKeyId></Error>"),
        ),
        Fault::Garbage => b"\x16\x03\x01\x02no http".to_vec(),
    }
}

/// What a test reads: shards of the sample data in a folder and in the server's bucket.
pub struct Shards {
    pub dir: tempfile::TempDir,
}

impl Shards {
    /// Shards of `each` samples, each with `padding` bytes that nobody reads, so that shards have several blocks.
    pub fn write(each: usize, padding: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for split in ["train", "val"] {
            let mut images = super::common::files(&super::common::sample_data().join(split));
            images.sort();
            let mut classes: Vec<_> = images.iter().map(|path| path.parent().unwrap().to_owned()).collect();
            classes.dedup();
            for (nth, images) in images.chunks(each).enumerate() {
                let mut tar = tar::Builder::new(Vec::new());
                let mut add = |name: String, content: &[u8]| {
                    let mut header = tar::Header::new_gnu();
                    header.set_size(content.len() as u64);
                    tar.append_data(&mut header, name, content).unwrap();
                };
                for (image, path) in images.iter().enumerate() {
                    let label = classes.iter().position(|class| path.starts_with(class)).unwrap();
                    add(format!("{image:05}.jpg"), &std::fs::read(path).unwrap());
                    add(format!("{image:05}.cls"), label.to_string().as_bytes());
                    add(format!("{image:05}.bin"), &vec![nth as u8; padding]);
                }
                std::fs::write(dir.path().join(format!("{split}-{nth:03}.tar")), tar.into_inner().unwrap()).unwrap();
            }
        }
        Self { dir }
    }

    /// The same shards in a server's bucket.
    pub fn upload(&self, server: &Server) {
        for path in self.paths() {
            let name = path.file_name().unwrap().to_str().unwrap();
            server.put(&format!("set/{name}"), std::fs::read(&path).unwrap());
        }
    }

    pub fn paths(&self) -> Vec<PathBuf> {
        let mut paths = super::common::files(self.dir.path());
        paths.sort();
        paths
    }
}

//! Small servers on loopback that speak as much of other stores' protocols as reading takes: Google's XML, Azure's, and plain HTTP, with TLS or without.

use chrono::{DateTime, SecondsFormat, Utc};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// Objects in one page of a list, so that a list has several.
const PAGE: usize = 2;

/// What a server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speech {
    /// Google Cloud Storage's XML.
    Google,
    /// Azure's.
    Azure,
    /// None: requests for ranges of files, which have ETags.
    Web,
    /// The same with times of change alone.
    Times,
    /// The same with ETags, and a page wherever there is no file.
    Pages,
}

/// An object, and when it was changed.
type Object = (Vec<u8>, DateTime<Utc>);

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Object>,
    /// The lines of each request's head, the first of them with its query.
    seen: Vec<String>,
    /// Whether every request is refused, in the store's own way.
    refuses: bool,
    /// How far the server's clock is ahead of the machine's.
    ahead: chrono::TimeDelta,
}

/// A server; it ends with the process.
pub struct Web {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Web {
    pub fn start(speech: Speech) -> Self {
        Self::with(speech, None)
    }

    /// The same, behind TLS where there is a configuration for it.
    pub fn with(speech: Speech, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let (address, state) = (listener.local_addr().unwrap(), Arc::<Mutex<State>>::default());
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (shared, tls) = (Arc::clone(&shared), tls.clone());
                std::thread::spawn(move || match tls {
                    None => drop(serve(client, speech, &shared)),
                    Some(tls) => {
                        let connection = ServerConnection::new(tls).unwrap();
                        drop(serve(StreamOwned::<_, TcpStream>::new(connection, client), speech, &shared));
                    }
                });
            }
        });
        Self { address, state }
    }

    /// Puts an object that was changed at a time.
    pub fn put(&self, name: &str, bytes: Vec<u8>, changed: DateTime<Utc>) {
        self.state.lock().unwrap().objects.insert(name.to_owned(), (bytes, changed));
    }

    pub fn seen(&self) -> Vec<String> {
        self.state.lock().unwrap().seen.clone()
    }

    pub fn refuse(&self) {
        self.state.lock().unwrap().refuses = true;
    }

    /// Sets the server's clock ahead of the machine's.
    pub fn set_ahead(&self, by: chrono::TimeDelta) {
        self.state.lock().unwrap().ahead = by;
    }
}

/// A time as HTTP has it.
fn written(time: DateTime<Utc>) -> String {
    time.format("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

/// One request of a connection; the answer says that the connection ends.
fn serve(client: impl Read + Write, speech: Speech, state: &Mutex<State>) -> std::io::Result<()> {
    let mut client = BufReader::new(client);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if client.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    let answer = {
        let mut state = state.lock().unwrap();
        state.seen.push(head.clone());
        answer(&head, speech, &state)
    };
    client.get_mut().write_all(&answer)?;
    client.get_mut().flush()
}

fn answer(head: &str, speech: Speech, state: &State) -> Vec<u8> {
    let target = head.split(' ').nth(1).unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query: BTreeMap<String, String> = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.into(), decoded(value)))
        .collect();
    // An emulator's path begins with the account.
    let path = decoded(path.trim_start_matches('/').trim_start_matches("devstoreaccount1/"));
    let path = path.as_str();
    let date = format!("Date: {}\r\n", written(Utc::now() + state.ahead));
    let whole = |status: &str, body: String| {
        let length = body.len();
        format!("HTTP/1.1 {status}\r\n{date}Connection: close\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes()
    };
    if state.refuses {
        let key = header(head, "authorization").unwrap_or_default();
        let body = format!("<Error><Code>AuthenticationFailed</Code><Detail>{target} {key}</Detail></Error>");
        return whole("403 Forbidden", body);
    }
    if query.contains_key("list-type") || query.get("comp").is_some_and(|comp| comp == "list") {
        return whole("200 OK", list(speech, path, &query, state));
    }
    let Some((name, (bytes, changed))) = state.objects.get_key_value(path) else {
        return match speech {
            Speech::Pages => whole("200 OK", "<!doctype html><p>Not found".to_owned()),
            _ => whole("404 Not Found", String::new()),
        };
    };
    let tag = if speech == Speech::Times { String::new() } else { format!("ETag: {}\r\n", tag(name, bytes)) };
    let common =
        format!("{date}Connection: close\r\nAccept-Ranges: bytes\r\nLast-Modified: {}\r\n{tag}", written(*changed));
    let range = header(head, "range").or_else(|| header(head, "x-ms-range"));
    let range = range.and_then(|range| {
        range.strip_prefix("bytes=")?.split_once('-').map(|(first, last)| (first.to_owned(), last.to_owned()))
    });
    let (status, range) = match range {
        Some((first, last)) => {
            ("206 Partial Content", first.parse().unwrap()..(last.parse::<usize>().unwrap() + 1).min(bytes.len()))
        }
        None => ("200 OK", 0..bytes.len()),
    };
    let content = format!("Content-Range: bytes {}-{}/{}\r\n", range.start, range.end - 1, bytes.len());
    let content = if status.starts_with("206") { content } else { String::new() };
    let mut answer =
        format!("HTTP/1.1 {status}\r\n{common}{content}Content-Length: {}\r\n\r\n", range.len()).into_bytes();
    if !head.starts_with("HEAD") {
        answer.extend_from_slice(&bytes[range]);
    }
    answer
}

fn header(head: &str, name: &str) -> Option<String> {
    let mut lines = head.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned())
}

/// Without its percent signs.
fn decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| {
        all + &char::from(u8::from_str_radix(&part[..2], 16).unwrap()).to_string() + &part[2..]
    })
}

fn tag(name: &str, bytes: &[u8]) -> String {
    format!("\"{:x}\"", xxhash_rust::xxh3::xxh3_64(&[name.as_bytes(), bytes].concat()))
}

/// A page of the objects whose names begin with a prefix, and where the next one begins.
fn list(speech: Speech, bucket: &str, query: &BTreeMap<String, String>, state: &State) -> String {
    let place = |key: &str| query.get(key).cloned().unwrap_or_default();
    let (prefix, from) =
        (place("prefix"), place(if speech == Speech::Google { "continuation-token" } else { "marker" }));
    let named = state.objects.iter().filter_map(|(name, object)| {
        let name = name.strip_prefix(bucket.trim_end_matches('/'))?.strip_prefix('/')?;
        (name.starts_with(&prefix) && *name >= *from).then_some((name, object))
    });
    let found: Vec<_> = named.collect();
    let next = found.get(PAGE).map_or("", |(name, _)| name);
    let one = |(name, (bytes, changed)): &(&str, &Object)| {
        let (size, tag) = (bytes.len(), tag(&format!("{bucket}/{name}"), bytes).replace('"', "&quot;"));
        match speech {
            Speech::Google => {
                let changed = changed.to_rfc3339_opts(SecondsFormat::Millis, true);
                format!(
                    "<Contents><Key>{name}</Key><Size>{size}</Size><LastModified>{changed}</LastModified><ETag>{tag}</ETag></Contents>"
                )
            }
            _ => format!(
                "<Blob><Name>{name}</Name><Properties><Last-Modified>{}</Last-Modified><Content-Length>{size}</Content-Length>\
                 <Content-Type>application/x-tar</Content-Type><Etag>{tag}</Etag></Properties></Blob>",
                written(*changed)
            ),
        }
    };
    let items: String = found.iter().take(PAGE).map(one).collect();
    match speech {
        Speech::Google if next.is_empty() => format!("<ListBucketResult>{items}</ListBucketResult>"),
        Speech::Google => {
            format!("<ListBucketResult>{items}<NextContinuationToken>{next}</NextContinuationToken></ListBucketResult>")
        }
        _ => format!("<EnumerationResults><Blobs>{items}</Blobs><NextMarker>{next}</NextMarker></EnumerationResults>"),
    }
}

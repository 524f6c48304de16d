//! The live page in a real browser: headless Chromium, driven over WebDriver (W3C, 2018).

mod common;

use base64::Engine;
use common::{DEADLINE, Daemon, free_port, get, until};
use mixd::client::Feed;
use mixd::spec::{Augment, Crop, FeedSpec, Mix, Share};
use mixd::types::{ImageSize, Place};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// A browser, and the driver that it is started by.
struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Opens a page; `None` where there is no browser.
    fn open(url: &str) -> Option<Self> {
        if !common::has_tool("chromedriver") {
            return None;
        }
        let address = free_port();
        let spawned =
            Command::new("chromedriver").arg(format!("--port={}", address.port())).stdout(Stdio::null()).spawn();
        let driver = spawned.unwrap();
        let profile = tempfile::tempdir().unwrap();
        let mut browser = Self { driver, address, session: String::new(), _profile: profile };
        until("the driver", || TcpStream::connect(address).ok());
        // Without a sandbox: tests may run as root, and the page is ours.
        let folder = format!("--user-data-dir={}", browser._profile.path().display());
        let args = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--window-size=1200,1400",
            &folder,
        ];
        let options = json!({"args": args});
        let wanted = json!({"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}});
        let started = browser.call("POST", "/session", &wanted);
        browser.session = format!("/session/{}", started["sessionId"].as_str().unwrap_or_else(|| panic!("{started}")));
        browser.post("/url", &json!({ "url": url }));
        Some(browser)
    }

    /// A request to the driver; its value.
    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(3 * DEADLINE)).unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        )
        .unwrap();
        // It keeps its connections open.
        let mut stream = BufReader::new(stream);
        let mut length = 0;
        for line in stream.by_ref().lines().map(Result::unwrap).take_while(|line| !line.is_empty()) {
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).unwrap();
        serde_json::from_slice::<Value>(&body).unwrap()["value"].take()
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let value = self.call("POST", &format!("{}{path}", self.session), body);
        assert!(value.get("error").is_none(), "{path}: {value}");
        value
    }

    /// What a script returns.
    fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({"script": script, "args": []}))
    }

    fn text(&self, selector: &str) -> String {
        let script = format!("return document.querySelector({})?.innerText ?? ''", json!(selector));
        self.run(&script).as_str().unwrap().to_owned()
    }

    /// Waits until an element's text is what it should be.
    fn wait(&self, selector: &str, is_it: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let text = self.text(selector);
            if is_it(&text) {
                return text;
            }
            assert!(start.elapsed() < DEADLINE, "{selector} is {text:?}; log: {}", self.log());
        }
    }

    fn resize(&self, width: u32, height: u32) {
        self.post("/window/rect", &json!({"width": width, "height": height}));
    }

    /// Presses a key: WebDriver's code points for keys that are none.
    fn press(&self, key: &str) {
        let keys = json!([{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]);
        self.post("/actions", &json!({"actions": [{"type": "key", "id": "keyboard", "actions": keys}]}));
    }

    /// What the browser complained of.
    fn log(&self) -> Value {
        self.post("/se/log", &json!({"type": "browser"}))
    }

    /// Draws the page to a file beside the tests, for people.
    fn screenshot(&self, name: &str) {
        let value = self.call("GET", &format!("{}/screenshot", self.session), &Value::Null);
        let png = base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap()).unwrap();
        std::fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name), png).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            self.call("DELETE", &self.session, &Value::Null);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

fn with_page() -> (Daemon, SocketAddr) {
    let address = free_port();
    (Daemon::start(&["--web", &address.to_string()]), address)
}

fn spec() -> FeedSpec {
    let crop = Crop::RandomResizedCrop { scale: [0.35, 1.0], ratio: [0.75, 4.0 / 3.0] };
    let augment = Augment { policy: "trivial-augment-wide".parse().unwrap(), ..FeedSpec::train().augment };
    FeedSpec { batch_size: 12, image_size: ImageSize::square(64), crop, flip: 0.5, augment, ..FeedSpec::train() }
}

/// Reads so many batches; the last is leased.
fn read(feed: &mut Feed, batches: usize) {
    (0..batches).for_each(|_| drop(feed.next_batch().unwrap()));
}

#[test]
fn the_page_shows_verdict_stages_trainers_and_the_last_batch_with_what_was_drawn() {
    let (daemon, address) = with_page();
    let Some(browser) = Browser::open(&format!("http://{address}/")) else { return };
    browser.wait("#verdict", |text| text == "idle: no trainer is attached");
    browser.wait("#trainers", |text| text.contains("no trainer is attached"));
    let share = Share::new("resnet".parse().unwrap());
    let mut feed = daemon.attach(FeedSpec { share: Some(share), ..spec() }).unwrap();
    read(&mut feed, 20);
    browser.wait("#verdict", |text| text.contains("-bound: "));
    browser.wait("#daemon", |text| text.contains("(200 train, 50 val)"));
    browser.wait("#stages", |text| ["plan", "read", "decode", "render", "mix"].iter().all(|name| text.contains(name)));
    let pid = std::process::id().to_string();
    browser.wait("#trainers", |text| text.contains("1: train, resnet") && text.contains(&pid));
    browser.wait("#batch-note", |text| text.starts_with("12 images, 64x64"));
    let place = browser.wait("#place", |text| text.starts_with("epoch 1, batch "));
    // Each tile shows its image: the sheet that the daemon drew, and not another tile's.
    let tiles = browser.run(
        "return [...document.querySelectorAll('.tile')].map(tile => {
           const canvas = tile.querySelector('canvas');
           const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
           return [tile.innerText, tile.title, canvas.width, canvas.height, [...pixels].filter((_, at) => at % 4 < 3)]; })",
    );
    let index: u64 = place.split([' ', ',']).nth(4).unwrap().parse().unwrap();
    let expected = common::trainer::Oracle::of(&common::sample_data());
    let batch = expected
        .pipeline
        .batch(FeedSpec { dtype: mixd::types::Dtype::U8, ..spec() }, Place { epoch: 1, index })
        .unwrap();
    let source = expected.pipeline.source();
    let drawn = mixd::view::tiles(&batch.view(), spec().mean, spec().std, &|label| source.label_name(label as u32), 64);
    for (at, tile) in tiles.as_array().unwrap().iter().enumerate() {
        assert_eq!((tile[0].as_str().unwrap(), &tile[2], &tile[3]), (&*drawn[at].caption, &json!(64), &json!(64)));
        assert_eq!(tile[4], json!(drawn[at].rgb.as_raw()), "tile {at}");
        let told = tile[1].as_str().unwrap();
        let row = &batch.plan.rows[at];
        assert!(told.contains(&batch.names[at]) && told.contains("crop "), "{told}");
        assert!(told.contains(&format!("λ {:.3}", row.mix.lambda())), "{told}");
        assert_eq!(told.lines().nth(2).unwrap().contains("flipped"), row.own.view.flip, "{told}");
        for operation in row.own.view.operations(&spec().augment, spec().image_size).iter() {
            assert!(told.contains(&operation.to_string()), "{operation}: {told}");
        }
    }
    browser.wait("#lambda-law", |text| text == "Beta(0.4, 0.4), folded");
    browser.wait("#operations", |text| text.contains("posterize") && text.contains("shear_x"));
    assert_eq!(browser.run("return document.querySelectorAll('#lambda .fill').length"), 25);
    assert_eq!(browser.log(), json!([]), "the browser complains");
    browser.screenshot("page.png");
    // It reads: a trainer that is there is not disturbed, and its feed goes on.
    read(&mut feed, 5);
    drop(feed);
    browser.wait("#batch-note", |text| text == "no feed is open");
    drop(daemon);
    browser.wait("#verdict", |text| text.starts_with("the daemon does not answer"));
}

#[test]
fn the_page_can_be_used_by_keyboard_and_on_a_phone() {
    let (daemon, address) = with_page();
    let mut feed = daemon.attach(spec()).unwrap();
    read(&mut feed, 3);
    let Some(browser) = Browser::open(&format!("http://{address}/")) else { return };
    browser.wait("#batch-note", |text| text.starts_with("12 images"));
    browser.resize(375, 800);
    let overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
    until("no sideways scrolling", || (browser.run(overflow) == 0).then_some(()));
    assert_eq!(
        browser.run("return getComputedStyle(document.querySelector('main')).gridTemplateColumns.split(' ').length"),
        1
    );
    browser.screenshot("page-phone.png");
    // Tab goes to the box that pauses, the choice of the feed, and each tile, whose draws are shown then.
    let is_tile = "return document.activeElement.classList.contains('tile')";
    let mut tabs = 0;
    while browser.run(is_tile) == false {
        browser.press("\u{E004}");
        tabs += 1;
        assert!(tabs < 10, "no tile is reached");
    }
    let detail = browser.wait("#detail", |text| text.contains("view: "));
    browser.press("\u{E004}");
    browser.wait("#detail", |text| text != detail && text.contains("view: "));
    // Paused, it stays as it is.
    browser.run("document.getElementById('pause').focus()");
    browser.press(" ");
    assert_eq!(browser.run("return document.getElementById('pause').checked"), true);
    let place = browser.text("#place");
    read(&mut feed, 3);
    let polled = "window.polled = 0; const plain = window.fetch; window.fetch = (...args) => { window.polled += 1; return plain(...args); }; return 0";
    browser.run(polled);
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < 2.5 {
        std::thread::yield_now();
    }
    assert_eq!((browser.run("return window.polled"), browser.text("#place")), (json!(0), place));
    browser.press(" ");
    browser.wait("#place", |text| !text.is_empty());
    until("requests", || (browser.run("return window.polled").as_u64() > Some(0)).then_some(()));
}

#[test]
fn the_page_is_for_its_machine_reads_only_and_brings_all_it_needs() {
    let (daemon, address) = with_page();
    let request = |method: &str, path: &str, host: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    };
    for path in ["/", "/api/status", "/api/feeds/1/batch"] {
        let foreign = request("GET", path, "attacker.example");
        assert!(foreign.starts_with("HTTP/1.1 403 ") && foreign.contains("open it by its address"), "{foreign}");
        assert!(request("POST", path, "localhost").starts_with("HTTP/1.1 405 "), "{path}");
    }
    let own = request("GET", "/", "localhost:1");
    assert!(own.starts_with("HTTP/1.1 200 ") && own.contains("content-security-policy: default-src 'self'; "), "{own}");
    for (path, status) in [
        ("/page.css", 200),
        ("/page.js", 200),
        ("/metrics", 200),
        ("/api/feeds/9/batch", 404),
        ("/api/feeds/x/batch", 400),
    ] {
        assert_eq!(get(address, path).0, status, "{path}");
    }
    // What the daemon has not published is not made.
    let mut feed = daemon.attach(FeedSpec { mix: Mix::NONE, ..spec() }).unwrap();
    read(&mut feed, 1);
    for place in ["1000/0", "0/999999"] {
        assert_eq!(get(address, &format!("/api/feeds/1/batches/{place}")).0, 404, "{place}");
    }
    for text in ["index.html", "page.css", "page.js"].map(include_page) {
        let text = text.replace("http://www.w3.org/2000/svg", "");
        assert!(!text.contains("http:") && !text.contains("https:") && !text.contains("innerHTML"), "{text}");
    }
}

fn include_page(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/web/page").join(name)).unwrap()
}

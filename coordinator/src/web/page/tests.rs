//! The page over real TCP.

mod tokens;

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_common::limits;
use anabranch_common::status::RunStanding;
use anabranch_io::web::{Bounds, Hosts, Server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

use super::access::Viewing;
use super::routes::{Served as Serving, serve};
use crate::host::RunView;
pub(super) use crate::overview::tests::{agent, measured, page, run, snapshot_at};
use crate::registry::page_tokens::PageGrants;
use crate::transport::{Input, Shared};
use crate::web::Snapshot;

/// A page that is served.
struct Served {
    snapshots: watch::Sender<Arc<Snapshot>>,
    grants: watch::Sender<Arc<PageGrants>>,
    /// What the loop is told.
    inputs: mpsc::Receiver<Input>,
    shared: Arc<Shared>,
    address: String,
}

fn served(runs: Vec<RunView>) -> Served {
    served_to(Viewing::Open, runs)
}

fn served_to(viewing: Viewing, runs: Vec<RunView>) -> Served {
    let (out, snapshots) = watch::channel(Arc::new(snapshot_at(1_000, runs)));
    let (granting, grants) = watch::channel(Arc::default());
    let (to_loop, inputs) = mpsc::channel(limits::PAGE_OPERATIONS);
    let server = Server::bind(([127, 0, 0, 1], 0).into(), Bounds::default()).expect("a free port");
    let address = server.address();
    let hosts = Hosts::new(address, ["trainer.example.org".to_owned()]);
    let shared = Shared::new(to_loop, BTreeMap::new());
    let serving = Serving { hosts, viewing, snapshots, grants, shared: Arc::clone(&shared) };
    tokio::spawn(serve(server, serving));
    Served { snapshots: out, grants: granting, inputs, shared, address: address.to_string() }
}

impl Served {
    async fn open(&self, request: &str) -> TcpStream {
        let mut client = TcpStream::connect(&self.address).await.expect("connected");
        client.write_all(request.as_bytes()).await.expect("sent");
        client
    }

    /// Gets a path, with more lines in the head.
    async fn get(&self, path: &str, more: &str) -> String {
        self.ask("GET", path, more).await
    }

    /// Sends a request without a body, with more lines in the head.
    async fn ask(&self, method: &str, path: &str, more: &str) -> String {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n{more}Connection: close\r\n\r\n", self.address);
        let mut text = String::new();
        self.open(&head).await.read_to_string(&mut text).await.expect("an answer");
        text
    }

    /// Gets events.
    async fn listen(&self, query: &str) -> TcpStream {
        self.open(&format!("GET /api/events{query} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address))
            .await
    }
}

/// Reads until the text that has come has what is wanted.
async fn read_until(client: &mut TcpStream, wanted: &str) -> String {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if text.contains(wanted) {
            return text.into_owned();
        }
        assert!(client.read_buf(&mut bytes).await.expect("read") > 0, "it ends before {wanted:?}");
    }
}

#[tokio::test]
async fn every_file_is_served_with_the_headers_that_bind_it() {
    let served = served(Vec::new());
    let files = [
        ("/", "text/html"),
        ("/page.css", "text/css"),
        ("/page.js", "text/javascript"),
        ("/view.js", "text/javascript"),
        ("/chart.js", "text/javascript"),
        ("/dom.js", "text/javascript"),
        ("/parts.js", "text/javascript"),
        ("/session.js", "text/javascript"),
        ("/operate.js", "text/javascript"),
        ("/pods.js", "text/javascript"),
        ("/icon.svg", "image/svg+xml"),
        ("/api/state", "application/json"),
    ];
    let mut bytes = 0;
    for (path, kind) in files {
        let text = served.get(path, "").await;
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains(&format!("content-type: {kind}")), "{text}");
        for header in [
            "content-security-policy: default-src 'none'; script-src 'self'; ",
            "x-content-type-options: nosniff\r\n",
            "referrer-policy: no-referrer\r\n",
            "cache-control: no-store\r\n",
            "cross-origin-resource-policy: same-origin\r\n",
        ] {
            assert!(text.contains(header), "{path} has no {header}");
        }
        assert!(!text.contains("access-control-"), "{path} is for no other site");
        bytes += text.len();
    }
    assert!(bytes <= 150_000, "the page has {bytes} bytes");
    assert!(served.get("/nowhere", "").await.starts_with("HTTP/1.1 404 "));
}

#[tokio::test]
async fn other_names_and_other_sites_are_refused_everywhere() {
    let served = served(vec![run("wards", Vec::new())]);
    for path in ["/", "/page.js", "/api/state", "/api/events", "/nowhere"] {
        let mut text = String::new();
        let head = format!("GET {path} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
        served.open(&head).await.read_to_string(&mut text).await.expect("an answer");
        assert!(text.starts_with("HTTP/1.1 403 ") && text.contains("server.names"), "{text}");
        assert!(!text.contains("trainer.example.org"), "strangers hear no names: {text}");
        let text = served.get(path, "Origin: https://evil.example\r\n").await;
        assert!(text.starts_with("HTTP/1.1 403 ") && !text.contains("wards"), "{text}");
    }
    assert!(served.get("/api/state", "Sec-Fetch-Site: cross-site\r\n").await.starts_with("HTTP/1.1 403 "));
    let text = served.get("/api/state", &format!("Origin: http://{}\r\n", served.address)).await;
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("wards"), "{text}");
}

#[tokio::test]
async fn only_reading_is_served() {
    let served = served(Vec::new());
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let mut text = String::new();
        let head = format!("{method} /api/state HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", served.address);
        served.open(&head).await.read_to_string(&mut text).await.expect("an answer");
        assert!(text.starts_with("HTTP/1.1 405 "), "{text}");
    }
}

#[tokio::test]
async fn events_follow_what_is_published_and_end_with_the_process() {
    let served = served(vec![run("wards", Vec::new())]);
    let mut client = served.listen("?run=wards").await;
    let text = read_until(&mut client, "\n\n").await;
    assert!(text.contains("content-type: text/event-stream") && text.contains("event: state\ndata: {"), "{text}");
    let mut paused = run("wards", vec![agent(1)]);
    paused.summary.state = RunStanding::Paused;
    served.snapshots.send_replace(Arc::new(snapshot_at(2_000, vec![paused])));
    let text = read_until(&mut client, "the run is paused").await;
    assert!(text.contains("agent-1"), "the run in detail");
    drop(served.snapshots);
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.expect("it ends in order");
}

#[tokio::test]
async fn a_client_beyond_the_bound_is_told_and_a_place_that_is_left_is_free() {
    let served = served(Vec::new());
    let mut clients = Vec::new();
    for _ in 0..limits::PAGE_CLIENTS {
        let mut client = served.listen("").await;
        read_until(&mut client, "event: state").await;
        clients.push(client);
    }
    let text = served.get("/api/events", "").await;
    assert!(text.starts_with("HTTP/1.1 503 ") && text.contains("close one"), "{text}");
    assert!(served.get("/api/state", "").await.starts_with("HTTP/1.1 200 OK\r\n"), "the state is not events");
    drop(clients);
    loop {
        let mut client = served.listen("").await;
        let head = read_until(&mut client, "\r\n").await;
        if head.starts_with("HTTP/1.1 200 OK\r\n") {
            break;
        }
        // The server has not heard yet that they have gone.
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        tokio::task::yield_now().await;
    }
}

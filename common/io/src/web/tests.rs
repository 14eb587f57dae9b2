//! The bounds of the server, over real TCP.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anabranch_common::limits;
use axum::body::Body;
use axum::routing::get;
use axum::{Extension, Router};
use hyper::body::{Bytes, Frame};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Bounds, Client, Server};
use crate::tls;
use crate::tls::Role;
use crate::tls::tests::{FOREVER, TestCa};

/// A server that has something to say, and where it listens.
fn serve(bounds: Bounds) -> String {
    let server = Server::bind(([127, 0, 0, 1], 0).into(), bounds).expect("a free port");
    let address = server.address().to_string();
    tokio::spawn(server.serve(Router::new().route("/", get(async || "here\n"))));
    address
}

/// Sends a request on a connection that stays open.
async fn ask(client: &mut TcpStream, path: &str) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: here\r\n\r\n");
    client.write_all(request.as_bytes()).await.expect("sent");
}

/// Reads the head of an answer and its body, whose length the head says.
async fn answer(client: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
            if body.len() >= length.parse::<usize>().expect("a number") {
                return text.into_owned();
            }
        }
        assert!(client.read_buf(&mut bytes).await.expect("read") > 0, "it ends in {bytes:?}");
    }
}

#[tokio::test]
async fn a_head_that_is_too_long_or_too_late_ends_its_connection() {
    let address = serve(Bounds { head: Duration::from_millis(50), ..Bounds::default() });
    let mut silent = TcpStream::connect(&address).await.expect("connected");
    silent.write_all(b"GET / HTTP/1.1\r\nHost:").await.expect("sent");
    let mut words = Vec::new();
    silent.read_to_end(&mut words).await.expect("closed in order");
    assert!(!String::from_utf8_lossy(&words).contains(" 200 "), "{words:?}");

    let address = serve(Bounds::default());
    let mut long = TcpStream::connect(&address).await.expect("connected");
    long.write_all(b"GET / HTTP/1.1\r\nX: ").await.expect("sent");
    // The answer may come before all of it was sent.
    let _ = long.write_all(&vec![b'x'; 2 * limits::WEB_HEAD_BYTES]).await;
    let mut words = [0; 12];
    long.read_exact(&mut words).await.expect("an answer");
    assert_eq!(&words, b"HTTP/1.1 431");
}

#[tokio::test]
async fn a_client_beyond_the_bound_waits_until_another_one_has_gone() {
    let address = serve(Bounds { connections: 1, ..Bounds::default() });
    let mut first = TcpStream::connect(&address).await.expect("connected");
    ask(&mut first, "/").await;
    answer(&mut first).await;
    let mut second = TcpStream::connect(&address).await.expect("the kernel takes it");
    ask(&mut second, "/").await;
    ask(&mut first, "/other").await;
    answer(&mut first).await;
    let early = second.try_read(&mut [0; 1]).map_err(|error| error.kind());
    assert_eq!(early, Err(std::io::ErrorKind::WouldBlock));
    drop(first);
    assert!(answer(&mut second).await.starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn a_taken_port_is_told() {
    let address = serve(Bounds::default());
    let taken = Server::bind(address.parse().expect("an address"), Bounds::default()).expect_err("it is taken");
    assert!(taken.to_string().starts_with(&format!("figures cannot be served at {address}: ")), "{taken}");
}

#[tokio::test]
async fn a_busy_client_gives_its_place_up_after_a_while() {
    let address = serve(Bounds { connections: 1, life: Duration::from_millis(50), ..Bounds::default() });
    let mut busy = TcpStream::connect(&address).await.expect("connected");
    ask(&mut busy, "/").await;
    answer(&mut busy).await;
    let mut waiting = TcpStream::connect(&address).await.expect("the kernel takes it");
    ask(&mut waiting, "/").await;
    let kept_busy = tokio::spawn(async move {
        let mut answers = 0;
        // It asks again and again, and never rests.
        loop {
            let request = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n";
            if busy.write_all(request).await.is_err() || matches!(busy.read(&mut [0; 4096]).await, Ok(0) | Err(_)) {
                return answers;
            }
            answers += 1;
        }
    });
    assert!(answer(&mut waiting).await.starts_with("HTTP/1.1 200 OK"));
    assert!(kept_busy.await.expect("no panic") > 0, "it was served in its time");
}

/// Who the router was told that a client is.
fn tell_client() -> Router {
    Router::new().route("/", get(async |Extension(client): Extension<Client>| format!("{}\n", client.is_encrypted)))
}

#[tokio::test]
async fn over_tls_requests_are_answered_and_plain_ones_are_not() {
    let authority = TestCa::new();
    let own = authority.issue(Role::Server, "coordinator", &["localhost"], FOREVER);
    let tls = tls::web_server(&authority.der, &own.der, &own.key_der).expect("they fit");
    let bounds = Bounds { head: Duration::from_millis(200), ..Bounds::default() };
    let server = Server::bind(([127, 0, 0, 1], 0).into(), bounds).expect("a free port");
    let address = server.address();
    let (_newer, configs) = watch::channel(tls);
    tokio::spawn(server.with_tls(configs).serve(tell_client()));

    let connect = async |name: &'static str| greet(address, &authority, name).await;
    let mut client = connect("localhost").await.expect("a certificate of this CA, for this name");
    assert_eq!(client.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    client.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.expect("sent");
    let mut text = String::new();
    client.read_to_string(&mut text).await.expect("closed in order");
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\ntrue\n"), "{text}");
    assert!(connect("evil.example").await.is_err(), "it is not for other names");

    for first in [&b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..], b""] {
        let mut plain = TcpStream::connect(address).await.expect("connected");
        plain.write_all(first).await.expect("sent");
        let mut bytes = Vec::new();
        // A client that says nothing is cut off in time.
        let _ = plain.read_to_end(&mut bytes).await;
        assert!(!String::from_utf8_lossy(&bytes).contains("HTTP/1.1"), "{bytes:?}");
    }
}

/// Shakes hands as a browser that knows one CA.
async fn greet(
    address: std::net::SocketAddr,
    authority: &TestCa,
    name: &'static str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.der.clone().into()).expect("a CA");
    let mut config = rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("known")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let stream = TcpStream::connect(address).await.expect("connected");
    TlsConnector::from(Arc::new(config)).connect(name.try_into().expect("a name"), stream).await
}

#[tokio::test]
async fn a_connection_is_shown_the_newest_certificate_and_an_open_one_goes_on() {
    let authorities = [TestCa::new(), TestCa::new()];
    let [first, second] = authorities.each_ref().map(|authority| {
        let own = authority.issue(Role::Server, "coordinator", &["localhost"], FOREVER);
        (tls::web_server(&authority.der, &own.der, &own.key_der).expect("they fit"), own.der)
    });
    let server = Server::bind(([127, 0, 0, 1], 0).into(), Bounds::default()).expect("a free port");
    let address = server.address();
    let (newer, configs) = watch::channel(first.0);
    tokio::spawn(server.with_tls(configs).serve(tell_client()));
    let shown = |client: &TlsStream<TcpStream>| {
        let chain = client.get_ref().1.peer_certificates().expect("a certificate");
        chain.iter().map(|der| der.to_vec()).collect::<Vec<_>>()
    };

    let mut early = greet(address, &authorities[0], "localhost").await.expect("the first CA");
    assert_eq!(shown(&early), [first.1, authorities[0].der.clone()]);
    newer.send_replace(second.0);
    let late = greet(address, &authorities[1], "localhost").await.expect("the second CA");
    assert_eq!(shown(&late), [second.1, authorities[1].der.clone()]);
    assert!(greet(address, &authorities[0], "localhost").await.is_err(), "the first CA has gone");
    early.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.expect("sent");
    let mut text = String::new();
    early.read_to_string(&mut text).await.expect("closed in order");
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
}

/// A body that lasts as long as its channel.
struct Lasting(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Lasting {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|part| part.map(|part| Ok(Frame::data(part))))
    }
}

#[tokio::test]
async fn an_answer_that_outlasts_its_connections_life_is_sent_whole() {
    let (parts, lasting) = mpsc::channel(1);
    let lasting = Arc::new(Mutex::new(Some(lasting)));
    let long = get(async move || Body::new(Lasting(lasting.lock().take().expect("asked for once"))));
    let router = Router::new().route("/", get(async || "here\n")).route("/long", long);
    let bounds = Bounds { life: Duration::from_millis(50), ..Bounds::default() };
    let server = Server::bind(([127, 0, 0, 1], 0).into(), bounds).expect("a free port");
    let address = server.address();
    tokio::spawn(server.serve(router));
    let mut client = TcpStream::connect(address).await.expect("connected");
    ask(&mut client, "/long").await;
    parts.send(Bytes::from_static(b"first")).await.expect("it is read");
    let mut bytes = Vec::new();
    while !String::from_utf8_lossy(&bytes).contains("first") {
        assert!(client.read_buf(&mut bytes).await.expect("read") > 0, "it ends in {bytes:?}");
    }
    // A connection that was opened later has come to its end.
    let mut later = TcpStream::connect(address).await.expect("connected");
    ask(&mut later, "/").await;
    later.read_to_end(&mut Vec::new()).await.expect("closed in order");
    parts.send(Bytes::from_static(b"last")).await.expect("it is still read");
    drop(parts);
    client.read_to_end(&mut bytes).await.expect("closed in order");
    assert!(String::from_utf8_lossy(&bytes).ends_with("\r\nlast\r\n0\r\n\r\n"), "{bytes:?}");
}

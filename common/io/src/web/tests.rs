//! The bounds of the server, over real TCP.

use std::time::Duration;

use anabranch_common::limits;
use axum::Router;
use axum::routing::get;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Bounds, Server};

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

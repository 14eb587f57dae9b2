//! A proxy for HTTP/1.1 that lets one request through at a time.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// Serves until the process ends. Returns its address.
pub(crate) fn serialise(server: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let turn = Arc::new(Mutex::new(()));
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let turn = Arc::clone(&turn);
            std::thread::spawn(move || {
                // A client that has gone hears nothing, and asks again.
                pass(client, server, &turn).ok();
            });
        }
    });
    address
}

/// Passes one request and its answer on, and closes the connection.
fn pass(mut client: TcpStream, server: SocketAddr, turn: &Mutex<()>) -> io::Result<()> {
    let request = read_request(&client)?;
    let answer = {
        let _turn = turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut upstream = TcpStream::connect(server)?;
        upstream.write_all(&request)?;
        let mut answer = Vec::new();
        upstream.read_to_end(&mut answer)?;
        answer
    };
    client.write_all(&answer)
}

/// Reads a request whole, and asks the server to close the connection behind its answer.
fn read_request(client: &TcpStream) -> io::Result<Vec<u8>> {
    let mut reader = BufReader::new(client);
    let (mut request, mut length) = (Vec::new(), 0);
    loop {
        let mut line = Vec::new();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let text = String::from_utf8_lossy(&line).to_ascii_lowercase();
        if let Some(value) = text.strip_prefix("content-length:") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
        if text.trim().is_empty() {
            request.extend_from_slice(b"connection: close\r\n\r\n");
            break;
        }
        if !text.starts_with("connection:") {
            request.extend_from_slice(&line);
        }
    }
    let head = request.len();
    request.resize(head + length, 0);
    reader.read_exact(&mut request[head..])?;
    Ok(request)
}

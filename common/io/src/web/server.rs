//! Connections over HTTP/1.1, within bounds: how many, how long a head, and how long each part of a request takes.
//!
//! [`carry`] takes any stream of bytes: TLS is a stream around the socket.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anabranch_common::limits;
use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::patient::Patient;
use super::shares::Shares;

/// An address at which nothing can be served.
#[derive(Debug, thiserror::Error)]
#[error("figures cannot be served at {address}: {source}")]
pub struct WebError {
    /// The address.
    pub address: SocketAddr,
    /// The system's error.
    pub source: io::Error,
}

/// Returns the address that an operator means: a port alone is one of the loopback interface.
///
/// # Errors
/// The text is neither a port nor an address with one.
pub fn listen_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse::<u16>() {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    text.parse().map_err(|_| {
        format!("{text:?} is neither a port nor an IP address with a port, like 9464 or 10.0.0.7:9464 or [::1]:9464")
    })
}

/// What clients may take.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Clients that are served at the same time.
    pub connections: usize,
    /// Those of them that one address may be; addresses of this machine's own are not counted.
    pub connections_per_address: usize,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// How long a client may take for the head of its next request.
    pub head: Duration,
    /// How long an answer may take to be made.
    pub answer: Duration,
    /// How long a client may take nothing of an answer.
    pub silence: Duration,
    /// How long a connection takes requests. It ends after the answer that is being sent then.
    pub life: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: limits::WEB_CONNECTIONS,
            connections_per_address: limits::WEB_CONNECTIONS_PER_ADDRESS,
            head_bytes: limits::WEB_HEAD_BYTES,
            head: Duration::from_millis(limits::WEB_HEAD_MS),
            answer: Duration::from_millis(limits::WEB_ANSWER_MS),
            silence: Duration::from_millis(limits::WEB_SILENCE_MS),
            life: Duration::from_millis(limits::WEB_LIFE_MS),
        }
    }
}

/// Who sends a request: an extension of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    /// Its address.
    pub address: SocketAddr,
    /// Whether it speaks TLS.
    pub is_encrypted: bool,
}

/// A socket on which clients are accepted.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    bounds: Bounds,
    tls: Option<watch::Receiver<Arc<rustls::ServerConfig>>>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Server {
    /// Listens at an address. Call inside a tokio runtime.
    ///
    /// # Errors
    /// The port is taken, or the address is not this machine's.
    pub fn bind(address: SocketAddr, bounds: Bounds) -> Result<Self, WebError> {
        let listen = || {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok((TcpListener::from_std(listener)?, address))
        };
        let (listener, address) = listen().map_err(|source| WebError { address, source })?;
        Ok(Self { listener, address, bounds, tls: None })
    }

    /// Lets clients speak TLS, and nothing else: each connection under the newest configuration at its begin.
    #[must_use]
    pub fn with_tls(self, configs: watch::Receiver<Arc<rustls::ServerConfig>>) -> Self {
        Self { tls: Some(configs), ..self }
    }

    /// The address, with the port that the system has chosen where none was named.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until it is dropped.
    pub async fn serve(self, router: Router) {
        let Self { listener, bounds, tls, .. } = self;
        let room = Arc::new(Semaphore::new(bounds.connections));
        let shares = Shares::new(bounds.connections_per_address);
        while let Ok(place) = Arc::clone(&room).acquire_owned().await {
            match listener.accept().await {
                Ok((stream, address)) => {
                    let Some(share) = shares.take(address.ip()) else {
                        tracing::debug!(%address, "an address has too many HTTP connections");
                        continue;
                    };
                    let router = router.clone();
                    let tls = tls.as_ref().map(|configs| TlsAcceptor::from(Arc::clone(&configs.borrow())));
                    tokio::spawn(async move {
                        if let Err(error) = accept(stream, address, tls, router, bounds).await {
                            tracing::debug!(%address, error, "an HTTP connection ended");
                        }
                        drop((place, share));
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "an HTTP connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(limits::WEB_ACCEPT_REST_MS)).await;
                }
            }
        }
    }
}

/// Shakes hands with a client, and answers its requests.
async fn accept(
    stream: TcpStream,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    router: Router,
    bounds: Bounds,
) -> Result<(), String> {
    let client = Client { address, is_encrypted: tls.is_some() };
    let carried = match tls {
        None => carry(stream, client, router, bounds).await,
        Some(tls) => {
            let greeted = timeout(bounds.head, tls.accept(stream)).await;
            let stream = greeted.map_err(|late| late.to_string())?.map_err(|error| error.to_string())?;
            carry(stream, client, router, bounds).await
        }
    };
    carried.map_err(|error| error.to_string())
}

/// Answers the requests of one client until it goes or exceeds a bound.
async fn carry<S>(stream: S, client: Client, router: Router, bounds: Bounds) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let routes = TowerToHyperService::new(router);
    let answer = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(client);
        let answer = routes.call(request);
        async move {
            let late = (StatusCode::SERVICE_UNAVAILABLE, "the answer takes too long; try again later\n");
            Ok::<Response, Infallible>(match timeout(bounds.answer, answer).await {
                Ok(Ok(answer)) => answer,
                Err(_) => late.into_response(),
            })
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.head)
        .max_buf_size(bounds.head_bytes)
        .serve_connection(TokioIo::new(Patient::new(stream, bounds.silence)), answer);
    let mut connection = pin!(connection);
    if let Ok(ended) = timeout(bounds.life, connection.as_mut()).await {
        return ended;
    }
    // Others that wait for its place have their turn.
    connection.as_mut().graceful_shutdown();
    connection.await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_of_the_loopback_interface() {
        let address = |text: &str| listen_address(text).map(|address| address.to_string());
        assert_eq!(address("9464").as_deref(), Ok("127.0.0.1:9464"));
        assert_eq!(address("0.0.0.0:80").as_deref(), Ok("0.0.0.0:80"));
        assert_eq!(address("[::1]:9464").as_deref(), Ok("[::1]:9464"));
        for bad in ["", "70000", "localhost:9464", "10.0.0.7"] {
            assert!(address(bad).is_err_and(|why| why.contains("10.0.0.7:9464")), "{bad}");
        }
    }
}

//! Sockets, and getting from `host:port` to a connection.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anabranch_common::limits;
use anabranch_common::limits::{CONNECT_ATTEMPT_DELAY_MS, HANDSHAKE_TIMEOUT_MS};
use quinn::{ClientConfig, Connection, Endpoint, EndpointConfig, ServerConfig, TokioRuntime};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::race::{self, Race};
use super::{ConnectProblem, explain, reset};

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} (UDP): {source}")]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// The system's error.
    pub source: io::Error,
}

impl BindError {
    /// What the user can do about it.
    #[must_use]
    pub fn help(&self) -> String {
        match self.source.kind() {
            io::ErrorKind::AddrInUse => "another program uses this port; stop it, or listen on another port",
            io::ErrorKind::AddrNotAvailable => "this machine does not have this address; use 0.0.0.0 or [::] for all",
            io::ErrorKind::PermissionDenied => "ports below 1024 need a privilege; choose a higher one",
            _ => "choose another address or port",
        }
        .to_owned()
    }
}

fn server_socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // [::] means all addresses, of both families.
        socket.set_only_v6(false)?;
    }
    // Only a matter of speed: refused where the system's limits are lower.
    let _ = socket.set_recv_buffer_size(limits::SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(limits::SOCKET_BUFFER_BYTES);
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Listens on `address`. Call inside a tokio runtime.
///
/// # Errors
/// The port is taken, or the address is not this machine's.
pub fn bind_server(address: SocketAddr, config: ServerConfig) -> Result<Endpoint, BindError> {
    bind(address, EndpointConfig::default(), config)
}

/// Like [`bind_server`], for a server that may be killed and started again: connections of its former life end at once
/// rather than after their idle timeout. `secret` is its private key.
///
/// # Errors
/// As [`bind_server`].
pub fn bind_lasting_server(address: SocketAddr, config: ServerConfig, secret: &[u8]) -> Result<Endpoint, BindError> {
    bind(address, reset::endpoint_config(secret), config)
}

fn bind(address: SocketAddr, endpoint: EndpointConfig, config: ServerConfig) -> Result<Endpoint, BindError> {
    server_socket(address)
        .and_then(|socket| Endpoint::new(endpoint, Some(config), socket, Arc::new(TokioRuntime)))
        .map_err(|source| BindError { address, source })
}

/// A socket for connections to elsewhere: for both families where the system has IPv6. Call inside a tokio runtime.
///
/// # Errors
/// The system gives no UDP socket.
pub fn bind_client() -> Result<Endpoint, BindError> {
    let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    Endpoint::client(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)))
        .or_else(|_| Endpoint::client(v4))
        .map_err(|source| BindError { address: v4, source })
}

/// Splits `host:port`; an IPv6 address stands in brackets. Returns the host without them.
#[must_use]
pub fn split(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').filter(|ip| ip.parse::<Ipv6Addr>().is_ok())?,
        None => Some(host).filter(|host| !host.is_empty() && !host.contains(':'))?,
    };
    Some((host, port))
}

/// Connects to `address` (`host:port`), whose certificate must be valid for `host`. The addresses of a name are raced: one
/// attempt after another starts, each runs for at most `HANDSHAKE_TIMEOUT_MS`, and the first completed handshake wins
/// (see `race`).
///
/// A server sees a client's certificate last: when it refuses it, this call has already succeeded, and the first use
/// of the connection fails with the reason (see [`explain`]).
///
/// # Errors
/// The problem with the address that got furthest: one that answered is told rather than one that did not. Where there
/// are several addresses, the problem with each of them beside it ([`ConnectProblem::Addresses`]).
pub async fn connect(endpoint: &Endpoint, address: &str, config: ClientConfig) -> Result<Connection, ConnectProblem> {
    let (host, port) = split(address).ok_or_else(|| ConnectProblem::BadAddress(address.to_owned()))?;
    let unresolved = |reason: String| ConnectProblem::Resolve { address: address.to_owned(), reason };
    let found: Vec<SocketAddr> = match host.parse::<IpAddr>() {
        Ok(ip) => vec![SocketAddr::new(ip, port)],
        Err(_) => tokio::net::lookup_host((host, port)).await.map_err(|error| unresolved(error.to_string()))?.collect(),
    };
    connect_any(endpoint, address, host, &found, config).await
}

/// Connects to one of `found`, the addresses of `host`, as [`connect`] does. `address` is for messages.
pub(super) async fn connect_any(
    endpoint: &Endpoint,
    address: &str,
    host: &str,
    found: &[SocketAddr],
    config: ClientConfig,
) -> Result<Connection, ConnectProblem> {
    let ours_is_v6 = endpoint.local_addr().is_ok_and(|local| local.is_ipv6());
    let order = race::in_order(found.iter().copied().filter(|remote| ours_is_v6 || remote.is_ipv4()));
    if order.is_empty() {
        let reason = "no address that this machine can reach".to_owned();
        return Err(ConnectProblem::Resolve { address: address.to_owned(), reason });
    }
    let attempt = |at: usize| {
        let (endpoint, remote, host, config) = (endpoint.clone(), order[at], host.to_owned(), config.clone());
        async move { connect_one(&endpoint, remote, &host, config).await }
    };
    let raced = first_connected(order.len(), Duration::from_millis(CONNECT_ATTEMPT_DELAY_MS), attempt).await;
    raced.map(|(_, connection)| connection).map_err(|problems| {
        let of = |at: Option<usize>| at.map_or_else(|| "an attempt".to_owned(), |at| order[at].to_string());
        let problems: Vec<_> = problems.into_iter().map(|(at, problem)| (of(at), problem)).collect();
        summary(address, &problems)
    })
}

/// Starts attempts 0 to `count`, one after another: the next one `delay` after the one before, or as soon as one has failed.
/// The first that succeeds wins; the others are dropped. Returns its number and the connection.
///
/// # Errors
/// The problem with each attempt, in the order in which they ended; no number for one that has panicked.
pub async fn first_connected<F>(
    count: usize,
    delay: Duration,
    attempt: impl Fn(usize) -> F,
) -> Result<(usize, Connection), Vec<(Option<usize>, ConnectProblem)>>
where
    F: Future<Output = Result<Connection, ConnectProblem>> + Send + 'static,
{
    let started = Instant::now();
    let whole_ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let now_ms = || whole_ms(started.elapsed());
    let mut race = Race::new(0..count, whole_ms(delay));
    // Dropped with the attempts that have not won: each then tells its end that it is given up.
    let mut attempts = JoinSet::new();
    let mut problems = Vec::new();
    while !race.is_lost() {
        while let Some(at) = race.due(now_ms()) {
            let attempt = attempt(at);
            attempts.spawn(async move { (at, attempt.await) });
        }
        let wait = race.wait_ms(now_ms()).map(Duration::from_millis);
        tokio::select! {
            Some(ended) = attempts.join_next() => {
                race.failed(now_ms());
                match ended {
                    Ok((at, Ok(connection))) => return Ok((at, connection)),
                    Ok((at, Err(problem))) => problems.push((Some(at), problem)),
                    Err(panic) => problems.push((None, ConnectProblem::Other(panic.to_string()))),
                }
            }
            () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
        }
    }
    Err(problems)
}

/// Returns what is told of attempts that have all failed, each with its own address.
fn summary(address: &str, problems: &[(String, ConnectProblem)]) -> ConnectProblem {
    let answered = problems.iter().rev().find(|(_, problem)| *problem != ConnectProblem::TimedOut);
    let problem = match answered {
        Some((_, problem)) => problem.clone(),
        None => ConnectProblem::Unreachable(address.to_owned()),
    };
    if problems.len() < 2 {
        return problem;
    }
    let outcome = |(remote, problem): &(String, ConnectProblem)| match problem {
        ConnectProblem::TimedOut => format!("{remote}: no answer"),
        problem => format!("{remote}: {problem}"),
    };
    let outcomes = problems.iter().map(outcome).collect::<Vec<_>>().join("; ");
    ConnectProblem::Addresses { problem: Box::new(problem), outcomes }
}

async fn connect_one(
    endpoint: &Endpoint,
    remote: SocketAddr,
    host: &str,
    config: ClientConfig,
) -> Result<Connection, ConnectProblem> {
    let connecting = endpoint
        .connect_with(config, remote, host)
        .map_err(|error| ConnectProblem::Other(format!("{remote}: {error}")))?;
    match tokio::time::timeout(Duration::from_millis(HANDSHAKE_TIMEOUT_MS), connecting).await {
        Ok(result) => result.map_err(|error| explain(&error)),
        Err(_) => Err(ConnectProblem::TimedOut),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_split_into_host_and_port() {
        assert_eq!(split("trainer.example:7700"), Some(("trainer.example", 7700)));
        assert_eq!(split("127.0.0.1:1"), Some(("127.0.0.1", 1)));
        assert_eq!(split("[::1]:7700"), Some(("::1", 7700)));
        for bad in ["", "host", "host:", "host:0", "host:70000", ":1", "::1:7700", "[::1]", "[host]:1", "[::1:1"] {
            assert_eq!(split(bad), None, "{bad}");
        }
    }

    /// A silent address may still answer, so the refusal by another one is told at the end, beside the silence.
    #[test]
    fn each_address_is_told_with_its_own_problem() {
        let (silent, refused) = (ConnectProblem::TimedOut, ConnectProblem::Refused("revoked".to_owned()));
        let ended = |of: &[&ConnectProblem]| {
            let remotes = ["[::1]:7700", "127.0.0.1:7700"].into_iter().map(str::to_owned);
            summary("trainer:7700", &remotes.zip(of.iter().copied().cloned()).collect::<Vec<_>>())
        };
        assert_eq!(ended(&[&refused]), refused);
        assert_eq!(ended(&[&silent]), ConnectProblem::Unreachable("trainer:7700".to_owned()));
        let both = ended(&[&refused, &silent]);
        assert_eq!((both.exit_code(), both.help()), (refused.exit_code(), refused.help()));
        let told = "the other side refused this certificate: revoked \
                    ([::1]:7700: the other side refused this certificate: revoked; 127.0.0.1:7700: no answer)";
        assert_eq!(both.to_string(), told);
        let told = "no answer from trainer:7700 ([::1]:7700: no answer; 127.0.0.1:7700: no answer)";
        assert_eq!(ended(&[&silent, &silent]).to_string(), told);
        assert!(ended(&[&silent, &silent]).is_transient());
    }

    #[tokio::test]
    async fn a_taken_port_is_told_with_its_code() {
        let taken = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let address = taken.local_addr().expect("bound");
        let source = server_socket(address).expect_err("taken");
        let error = BindError { address, source };
        assert!(error.help().contains("another port"), "{}", error.help());
        assert_eq!(crate::exit::code_of(&anyhow::Error::new(error)), crate::exit::ExitCode::Address);
    }
}

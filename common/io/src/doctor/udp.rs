//! Whether datagrams reach a QUIC server and come back, without a connection: a long header of a version that no server
//! speaks is answered with the versions that it does speak (RFC 9000, section 6). The answer is shorter than the question.
//!
//! ```text
//!  ping:    a datagram of 1,200 bytes to each address ─► answered, refused (ICMP), or silent
//!  trains:  more and more datagrams a second to one address ─► how many of each train are answered
//! ```
//! The sockets are connected, so that the system tells what ICMP says.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anabranch_common::limits::{SOCKET_BUFFER_BYTES, doctor as limits};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout, timeout_at};

/// A version of the kind that is never spoken (RFC 9000, section 15).
const NO_VERSION: [u8; 4] = [0x1a, 0x2a, 0x3a, 0x4a];
/// Bytes of either connection id of a ping.
const ID: usize = 8;

/// What became of pings to an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ping {
    /// A QUIC server has answered, so long after the ping.
    Answered(Duration),
    /// The machine has no program at this port.
    Refused,
    /// The network says that it does not go on.
    Unreachable(String),
    /// Nothing came back.
    Silent(Host),
}

/// What a TCP connection to a silent address tells about the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// It answers: only UDP is silent.
    Answers,
    /// It is as silent.
    IsSilent,
}

/// One train of datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Train {
    /// Datagrams of `PING_BYTES` that were sent in a second.
    pub per_s: u32,
    /// Datagrams that were sent.
    pub sent: u32,
    /// Those that were answered.
    pub answered: u32,
    /// How long answers came, from the first to the last one.
    pub span: Duration,
}

/// A ping: a long header with the destination's id and ours, padded.
fn datagram(id: [u8; ID]) -> Vec<u8> {
    let mut bytes = vec![0; limits::PING_BYTES];
    bytes[0] = 0xC0;
    bytes[1..5].copy_from_slice(&NO_VERSION);
    bytes[5] = 8;
    bytes[6..14].copy_from_slice(b"anadoctr");
    bytes[14] = 8;
    bytes[15..23].copy_from_slice(&id);
    bytes
}

/// The id of the ping that `answer` is for: the version is 0, and the ids have changed places.
fn answered(answer: &[u8]) -> Option<[u8; ID]> {
    let (head, rest) = answer.split_at_checked(6)?;
    let is_answer = head[0] & 0x80 != 0 && head[1..5] == [0; 4] && head[5] == 8;
    rest.get(..ID).filter(|_| is_answer)?.try_into().ok()
}

async fn connected(remote: SocketAddr) -> io::Result<UdpSocket> {
    let local: SocketAddr = match remote {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(remote).await?;
    Ok(socket)
}

/// Pings an address up to `PING_TRIES` times. `salt` goes into the pings, so that no answer to others is taken for one.
pub async fn ping(remote: SocketAddr, salt: u32) -> Ping {
    match ping_on_a_socket(remote, salt).await {
        Ok(Some(after)) => Ping::Answered(after),
        Ok(None) => Ping::Silent(tcp(remote).await),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ping::Refused,
        Err(error) => Ping::Unreachable(error.to_string()),
    }
}

async fn ping_on_a_socket(remote: SocketAddr, salt: u32) -> io::Result<Option<Duration>> {
    let socket = connected(remote).await?;
    let mut buffer = [0; limits::PING_BYTES];
    for number in 0..limits::PING_TRIES {
        let id = id_of(salt, number);
        let sent = Instant::now();
        socket.send(&datagram(id)).await?;
        let deadline = sent + Duration::from_millis(limits::PING_MS);
        while let Ok(received) = timeout_at(deadline, socket.recv(&mut buffer)).await {
            if answered(&buffer[..received?]) == Some(id) {
                return Ok(Some(sent.elapsed()));
            }
        }
    }
    Ok(None)
}

async fn tcp(remote: SocketAddr) -> Host {
    match timeout(Duration::from_millis(limits::TCP_MS), TcpStream::connect(remote)).await {
        Ok(Ok(_)) => Host::Answers,
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Host::Answers,
        _ => Host::IsSilent,
    }
}

fn id_of(salt: u32, number: u32) -> [u8; ID] {
    (u64::from(salt) << 32 | u64::from(number)).to_le_bytes()
}

/// Sends trains of pings, each faster than the one before. About 510 KB in 1.5 s, and the time until the last answers.
///
/// # Errors
/// The system or the network refuses a datagram.
pub async fn trains(remote: SocketAddr, salt: u32) -> io::Result<Vec<Train>> {
    let mut trains = Vec::new();
    for (car, (count, per_s)) in (1..).zip(limits::TRAIN_DATAGRAMS.into_iter().zip(limits::TRAIN_PER_S)) {
        trains.push(train(remote, salt.wrapping_add(car), count, per_s).await?);
    }
    Ok(trains)
}

async fn train(remote: SocketAddr, salt: u32, count: u32, per_s: u32) -> io::Result<Train> {
    let socket = connected(remote).await?;
    let begun = Instant::now();
    let mut seen = vec![false; count as usize];
    let mut span: Option<(Instant, Instant)> = None;
    let mut sent = 0;
    let mut quiet_from = begun;
    let mut buffer = [0; limits::PING_BYTES];
    loop {
        let due = begun + Duration::from_secs_f64(f64::from(sent) / f64::from(per_s));
        let wait = if sent < count { due } else { quiet_from + Duration::from_millis(limits::TRAIN_REST_MS) };
        match timeout_at(wait, socket.recv(&mut buffer)).await {
            Ok(received) => {
                let number = answered(&buffer[..received?]).map(u64::from_le_bytes);
                let number = number.filter(|number| number >> 32 == u64::from(salt)).map(|number| number & 0xffff_ffff);
                let place = number.and_then(|number| seen.get_mut(usize::try_from(number).ok()?));
                if let Some(place) = place {
                    *place = true;
                    quiet_from = Instant::now();
                    span = Some((span.map_or(quiet_from, |(first, _)| first), quiet_from));
                }
                if sent == count && seen.iter().all(|seen| *seen) {
                    break;
                }
            }
            Err(_) if sent < count => {
                socket.send(&datagram(id_of(salt, sent))).await?;
                sent += 1;
                quiet_from = Instant::now();
            }
            Err(_) => break,
        }
    }
    let answered = u32::try_from(seen.iter().filter(|seen| **seen).count()).unwrap_or(u32::MAX);
    Ok(Train { per_s, sent, answered, span: span.map_or(Duration::ZERO, |(first, last)| last - first) })
}

/// Returns the buffers that the system gives a server's socket, for receiving and for sending, in bytes.
///
/// # Errors
/// The system gives no UDP socket.
pub fn server_buffers() -> io::Result<(usize, usize)> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    // Refused where the system's limits are lower: what counts is what is there afterwards.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    // Linux gives twice what was asked for, and counts its own structures in it.
    let doubled = if cfg!(target_os = "linux") { 2 } else { 1 };
    Ok((socket.recv_buffer_size()? / doubled, socket.send_buffer_size()? / doubled))
}

impl Train {
    /// Returns the bits a second at which it was sent.
    #[must_use]
    pub fn bits_per_s(self) -> f64 {
        f64::from(self.per_s) * 8.0 * limits::PING_BYTES as f64
    }

    /// Returns the bits a second that were answered, while answers came.
    #[must_use]
    pub fn answered_bits_per_s(self) -> f64 {
        // The first answer begins the span.
        let count = f64::from(self.answered.saturating_sub(1));
        count * 8.0 * limits::PING_BYTES as f64 / self.span.as_secs_f64().max(1e-3)
    }

    /// Returns the share that was not answered, in percent.
    #[must_use]
    pub fn loss_percent(self) -> f64 {
        100.0 * f64::from(self.sent - self.answered) / f64::from(self.sent.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_belongs_to_the_ping_whose_id_it_repeats() {
        let id = id_of(7, 9);
        let ping = datagram(id);
        assert_eq!((ping.len(), &ping[1..5]), (limits::PING_BYTES, &NO_VERSION[..]));
        let mut answer = vec![0xA5, 0, 0, 0, 0, 8];
        answer.extend(id);
        answer.extend([8; 9]);
        answer.extend([0, 0, 0, 1]);
        assert_eq!(answered(&answer), Some(id));
        assert_eq!([answered(&ping), answered(&answer[..13]), answered(&[])], [None; 3]);
    }

    #[tokio::test]
    async fn a_port_without_a_program_is_told_from_a_silent_one() {
        let taken = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
        let silent = taken.local_addr().expect("bound");
        assert_eq!(ping(silent, 1).await, Ping::Silent(Host::Answers), "loopback refuses the TCP connection");
        drop(taken);
        assert_eq!(ping(silent, 1).await, Ping::Refused);
    }

    #[tokio::test]
    async fn a_server_answers_pings_and_whole_trains() {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let der = certified.cert.der().to_vec();
        let config = crate::tls::server(&der, &der, &certified.signing_key.serialize_der()).expect("they fit");
        let server = crate::tls::server_endpoint(([127, 0, 0, 1], 0).into(), config).expect("a free port");
        let address = server.local_addr().expect("bound");
        assert!(matches!(ping(address, 1).await, Ping::Answered(_)));
        let trains = trains(address, 2).await.expect("loopback takes them");
        let counts: Vec<_> = trains.iter().map(|train| (train.sent, train.per_s)).collect();
        assert_eq!(counts, [(25, 50), (100, 200), (300, 800)]);
        assert!(trains[0].answered > 0, "{trains:?}");
    }

    #[test]
    fn figures_of_a_train_are_those_of_its_datagrams() {
        let train = Train { per_s: 800, sent: 300, answered: 101, span: Duration::from_secs(1) };
        assert_eq!((train.bits_per_s(), train.answered_bits_per_s()), (7_680_000.0, 960_000.0));
        assert!((train.loss_percent() - 66.33).abs() < 0.01);
    }
}

//! Whoever has no certificate: datagrams from raw sockets, half-open handshakes, silent connections.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anabranch_common::rng::SplitMix64;
use anabranch_io::tls;
use anyhow::Context as _;
use quinn::{ClientConfig, Connection, Endpoint};

use crate::clock::Stopwatch;

/// Bytes of a datagram that may open a connection: QUIC wants them padded.
const INITIAL_BYTES: usize = 1200;
/// How long a datagram may take on the loopback interface.
const ARRIVAL: Duration = Duration::from_secs(5);

/// An address of the loopback network that nobody else uses: another one for each number.
#[must_use]
pub fn source(number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(127, 66, high, low.max(1)).into()
}

/// Datagrams of every kind of nonsense, `count` of them: random bytes, and first packets of a connection whose
/// encrypted part is random.
#[must_use]
pub fn garbage(seed: u64, count: usize) -> Vec<Vec<u8>> {
    let mut rng = SplitMix64::new(seed);
    let one = |index: usize| {
        let mut datagram: Vec<u8> = (0..INITIAL_BYTES).map(|_| rng.next_u64().to_le_bytes()[0]).collect();
        match index % 4 {
            // A first packet of QUIC version 1: long header, connection ids of 8 bytes, no token, a length that fits.
            0 | 1 => {
                datagram[..6].copy_from_slice(&[0xC3, 0, 0, 0, 1, 8]);
                datagram[14] = 8;
                let rest = u16::try_from(INITIAL_BYTES - 26).unwrap_or(0) | 0x4000;
                datagram[23] = 0;
                datagram[24..26].copy_from_slice(&rest.to_be_bytes());
            }
            // One of a version that nobody speaks.
            2 => datagram[..6].copy_from_slice(&[0xC3, 0x0A, 0x0A, 0x0A, 0x0A, 8]),
            _ => datagram.truncate(1 + index % INITIAL_BYTES),
        }
        datagram
    };
    (0..count).map(one).collect()
}

/// True first datagrams of `count` connections, recorded at a socket that answers nothing.
///
/// # Errors
/// There is no socket, or a datagram does not arrive.
pub async fn initials(config: &ClientConfig, count: usize) -> anyhow::Result<Vec<Vec<u8>>> {
    let sink = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let client = Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let mut recorded = Vec::with_capacity(count);
    let mut buffer = [0; 2048];
    for _ in 0..count {
        let opening = client.connect_with(config.clone(), sink.local_addr()?, "localhost")?;
        let (length, _) = tokio::time::timeout(ARRIVAL, sink.recv_from(&mut buffer)).await??;
        recorded.push(buffer[..length].to_vec());
        drop(opening);
        // Its farewell is not wanted.
        while sink.try_recv(&mut buffer).is_ok() {}
    }
    Ok(recorded)
}

/// Sends datagrams from `sources` addresses in turn, `per_second` of them a second (0: at once).
///
/// # Errors
/// There is no socket.
pub fn flood(port: u16, datagrams: &[Vec<u8>], sources: u16, per_second: u32) -> anyhow::Result<()> {
    let sockets = (1..=sources.max(1)).map(|number| UdpSocket::bind((source(number), 0)));
    let sockets = sockets.collect::<Result<Vec<_>, _>>().context("no address of the loopback network")?;
    for (datagram, socket) in datagrams.iter().zip(sockets.iter().cycle()) {
        // Lost ones are as good.
        let _ = socket.send_to(datagram, (Ipv4Addr::LOCALHOST, port));
        if per_second > 0 {
            std::thread::sleep(Duration::from_secs(1) / per_second);
        }
    }
    Ok(())
}

/// Sends datagrams from `sources` addresses in turn, over and over, `per_second` of them a second until it is `over`.
/// Returns how many.
///
/// # Errors
/// There is no socket.
pub fn flood_until(
    port: u16,
    datagrams: &[Vec<u8>],
    sources: u16,
    per_second: u32,
    over: &AtomicBool,
) -> anyhow::Result<u64> {
    let sockets = (1..=sources.max(1)).map(|number| UdpSocket::bind((source(number), 0)));
    let sockets = sockets.collect::<Result<Vec<_>, _>>().context("no address of the loopback network")?;
    let mut next = datagrams.iter().cycle().zip(sockets.iter().cycle());
    let (watch, mut sent) = (Stopwatch::start(), 0_u64);
    while !over.load(Ordering::Relaxed) {
        // By the clock: sleeps are longer than they were asked to be.
        while (sent as f64) < watch.seconds() * f64::from(per_second) {
            let Some((datagram, socket)) = next.next() else { return Ok(sent) };
            // Lost ones are as good.
            let _ = socket.send_to(datagram, (Ipv4Addr::LOCALHOST, port));
            sent += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(sent)
}

/// A connection from a given address, up to the end of TLS and no further.
///
/// # Errors
/// It is refused.
pub async fn silent(port: u16, config: &ClientConfig, from: IpAddr) -> anyhow::Result<(Endpoint, Connection)> {
    let endpoint = Endpoint::client(SocketAddr::new(from, 0))?;
    let connecting =
        endpoint.connect_with(config.clone(), SocketAddr::from((Ipv4Addr::LOCALHOST, port)), "localhost")?;
    let connection = tokio::time::timeout(ARRIVAL, connecting).await??;
    Ok((endpoint, connection))
}

/// For TLS without a certificate, as a joining agent has it.
///
/// # Errors
/// The CA's certificate is no good.
pub fn config(ca_der: &[u8]) -> anyhow::Result<ClientConfig> {
    Ok(tls::client_pinned(&[anabranch_common::ids::Digest::of(ca_der)])?)
}

//! A coordinator from outside, over QUIC: the handshake, the time of its clock, the path, and how fast bytes come back.
//!
//! The server must be of the CA that is expected, but its certificate may have expired: that, and whose clock is wrong, is
//! what is to be found out.

use std::time::Duration;

use anabranch_common::ids::Digest;
use anabranch_common::limits;
use anabranch_common::wire::frame::FrameKind;
use anabranch_common::wire::handshake::Purpose;
use anabranch_common::wire::probe::{Facts, FactsWanted, ProbeAnswer};
use quinn::{Connection, Endpoint};
use tokio::time::{Instant, timeout};

use crate::frames::{self, Format, FrameIoError, HandshakeError};
use crate::tls::{self, BindError, ConnectProblem, TlsError};

const HANDSHAKE: Duration = Duration::from_millis(limits::HANDSHAKE_TIMEOUT_MS);
const PROBE: Duration = Duration::from_millis(limits::doctor::PROBE_MS);
/// How often the path's MTU is looked at.
const LOOK: Duration = Duration::from_millis(limits::POD_LOOK_MS);

/// Why a coordinator was not probed.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// No socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectProblem),
    /// No agreement on a version.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The exchange broke.
    #[error(transparent)]
    Frame(#[from] FrameIoError),
}

/// What this side shows of itself.
#[derive(Debug, Clone, Copy)]
pub struct Credential<'a> {
    /// Certificate, in DER.
    pub certificate_der: &'a [u8],
    /// Key, PKCS#8 in DER.
    pub key_der: &'a [u8],
}

/// A connection that probes.
#[derive(Debug)]
pub struct Line {
    endpoint: Endpoint,
    connection: Connection,
    /// How long the handshake took.
    pub handshake: Duration,
}

/// One look at the coordinator's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The answer.
    pub answer: ProbeAnswer,
    /// This machine's clock when the answer came, Unix time in milliseconds.
    pub here_ms: u64,
    /// How long the question and its answer took together.
    pub round_trip: Duration,
}

impl Sample {
    /// Returns how far this machine's clock is ahead of the coordinator's, in milliseconds. Off by half the round trip at
    /// most.
    #[must_use]
    pub fn ahead_ms(&self) -> i64 {
        let half = u64::try_from(self.round_trip.as_millis() / 2).unwrap_or(u64::MAX);
        let there = i64::try_from(self.answer.unix_ms.saturating_add(half)).unwrap_or(i64::MAX);
        i64::try_from(self.here_ms).unwrap_or(i64::MAX).saturating_sub(there)
    }
}

/// Packets and bytes of a path, from this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// Bytes of the largest datagram that is known to pass.
    pub mtu: u16,
    /// Packets sent.
    pub sent: u64,
    /// Packets lost.
    pub lost: u64,
    /// Times that large datagrams stopped passing.
    pub black_holes: u64,
    /// The round trip as QUIC has it.
    pub round_trip: Duration,
}

impl Line {
    /// Connects to `address` (`host:port`), whose CA has one of these fingerprints, through `endpoint`.
    ///
    /// # Errors
    /// See [`LineError`].
    pub async fn open(
        endpoint: &Endpoint,
        address: &str,
        cas: &[Digest],
        credential: Option<Credential<'_>>,
    ) -> Result<Self, LineError> {
        let config = tls::client_probe(cas, credential.map(|own| (own.certificate_der, own.key_der)))?;
        let begun = Instant::now();
        let connection = tls::connect(endpoint, address, config).await?;
        Ok(Self { endpoint: endpoint.clone(), connection, handshake: begun.elapsed() })
    }

    /// Returns the certificates that the server has shown, in DER, its own first.
    #[must_use]
    pub fn certificates(&self) -> Vec<Vec<u8>> {
        tls::peer_certificates(&self.connection)
    }

    /// Asks for the time. `unix_ms` reads this machine's clock.
    ///
    /// # Errors
    /// See [`LineError`].
    pub async fn ask(&self, unix_ms: impl Fn() -> u64) -> Result<Sample, LineError> {
        let (mut send, mut recv) = self.connection.open_bi().await.map_err(|error| tls::explain(&error))?;
        let begun = Instant::now();
        let version = frames::propose(&mut send, &mut recv, Purpose::Probe, HANDSHAKE).await?;
        let kind = Format { kind: FrameKind::ProbeAnswer, version };
        let answer = frames::recv_one(&mut recv, kind, limits::doctor::ANSWER_BYTES, HANDSHAKE).await?;
        let (here_ms, round_trip) = (unix_ms(), begun.elapsed());
        // The other side ends its half when it sees the end of this one.
        send.finish().ok();
        timeout(HANDSHAKE, recv.read_to_end(0)).await.ok();
        Ok(Sample { answer, here_ms, round_trip })
    }

    /// Sends `ECHO_BYTES` and waits until as many have come back. Returns the bytes and how long that took.
    ///
    /// # Errors
    /// See [`LineError`]; also where not all came back in time.
    pub async fn echo(&self) -> Result<(u64, Duration), LineError> {
        let (mut send, mut recv) = self.connection.open_bi().await.map_err(|error| tls::explain(&error))?;
        let version = frames::propose(&mut send, &mut recv, Purpose::Probe, HANDSHAKE).await?;
        let kind = Format { kind: FrameKind::ProbeAnswer, version };
        let _: ProbeAnswer = frames::recv_one(&mut recv, kind, limits::doctor::ANSWER_BYTES, HANDSHAKE).await?;
        let piece = vec![0xA5; limits::FRAME_READ_BYTES];
        let begun = Instant::now();
        let sending = async {
            let mut left = limits::doctor::ECHO_BYTES;
            while left > 0 {
                let part = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
                send.write_all(&piece[..part]).await.map_err(FrameIoError::from)?;
                left -= part as u64;
            }
            send.finish().ok();
            Ok::<(), FrameIoError>(())
        };
        let receiving = async {
            let mut back = 0;
            while let Some(chunk) = recv.read_chunk(limits::FRAME_READ_BYTES, true).await.map_err(FrameIoError::from)? {
                back += chunk.bytes.len() as u64;
            }
            Ok::<u64, FrameIoError>(back)
        };
        let both = async { tokio::try_join!(sending, receiving) };
        let ((), back) = timeout(PROBE, both).await.unwrap_or(Err(FrameIoError::TimedOut))?;
        if back < limits::doctor::ECHO_BYTES {
            return Err(FrameIoError::Closed.into());
        }
        Ok((back, begun.elapsed()))
    }

    /// Waits until the search for the path's MTU has found that the largest datagram passes, at most `MTU_MS`.
    pub async fn search_mtu(&self) {
        let until = Instant::now() + Duration::from_millis(limits::doctor::MTU_MS);
        while self.path().mtu < limits::doctor::MTU_BYTES && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Returns what is known of the path.
    #[must_use]
    pub fn path(&self) -> Path {
        let path = self.connection.stats().path;
        Path {
            mtu: path.current_mtu,
            sent: path.sent_packets,
            lost: path.lost_packets,
            black_holes: path.black_holes_detected,
            round_trip: path.rtt,
        }
    }

    /// Asks about a run, as the agent of this connection's certificate. The connection is of no further use.
    ///
    /// # Errors
    /// See [`LineError`].
    pub async fn facts(&self, wanted: FactsWanted) -> Result<Facts, LineError> {
        let (mut send, mut recv) = self.connection.open_bi().await.map_err(|error| tls::explain(&error))?;
        let version = frames::propose(&mut send, &mut recv, Purpose::Facts, HANDSHAKE).await?;
        let format = |kind| Format { kind, version };
        let kind = format(FrameKind::FactsWanted);
        frames::send(&mut send, kind, &wanted, limits::HANDSHAKE_MESSAGE_BYTES, HANDSHAKE).await?;
        let deadline = Duration::from_millis(limits::REQUEST_TIMEOUT_MS);
        let kind = format(FrameKind::Facts);
        Ok(frames::recv_one(&mut recv, kind, limits::CONTROL_MESSAGE_BYTES, deadline).await?)
    }

    /// Ends the connection, and waits until the other side has been told.
    pub async fn close(self) {
        self.connection.close(0u32.into(), b"done");
        // Without a goodbye the coordinator would notice by its idle timeout: a courtesy, not a need.
        let _ = timeout(Duration::from_millis(limits::GOODBYE_MS), self.endpoint.wait_idle()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_of_the_answer_is_taken_out_of_the_clocks_difference() {
        let answer = ProbeAnswer { unix_ms: 10_000, software: "1".into(), remote: String::new(), sent: 1, lost: 0 };
        let sample = |here_ms| Sample { answer: answer.clone(), here_ms, round_trip: Duration::from_millis(200) };
        assert_eq!([10_100, 9_100, 11_100].map(|here_ms| sample(here_ms).ahead_ms()), [0, -1_000, 1_000]);
    }
}

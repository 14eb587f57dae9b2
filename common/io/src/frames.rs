//! Frames on QUIC streams: messages with a limit, a checksum and a deadline.
//!
//! The functions here read or write one frame and are not cancel-safe; [`FrameReader`] is, for a control stream that is
//! read inside `select!`.

mod error;
mod handshake;
mod reader;

use std::time::Duration;

use anabranch_common::limits::FRAME_HEADER_BYTES;
use anabranch_common::schema;
use anabranch_common::schema::Layout;
use anabranch_common::wire::frame::{self, FrameKind};
use quinn::{ReadExactError, RecvStream, SendStream};

pub use error::{FrameIoError, HandshakeError};
pub use handshake::{accept, propose};
pub use reader::{FrameReader, FrameWriter};

/// Priority of control streams: before bulk, so that a lease or a verdict never waits behind chunks.
pub const CONTROL_PRIORITY: i32 = 10;
/// Priority of chunk streams.
pub const BULK_PRIORITY: i32 = 0;

/// How a message is framed and encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// The kind in the frame's header.
    pub kind: FrameKind,
    /// The version of the schema that both sides agreed on.
    pub version: u16,
}

impl From<FrameKind> for Format {
    /// The newest version, which is right for what comes before an agreement.
    fn from(kind: FrameKind) -> Self {
        Self { kind, version: schema::VERSION }
    }
}

async fn within<T>(deadline: Duration, work: impl Future<Output = Result<T, FrameIoError>>) -> Result<T, FrameIoError> {
    tokio::time::timeout(deadline, work).await.unwrap_or(Err(FrameIoError::TimedOut))
}

/// Sends one message of at most `max` bytes.
///
/// # Errors
/// Too long, the stream is closed, or `deadline` passed before the connection took all of it. The stream is then of no
/// further use: part of the frame may be under way.
pub async fn send<T: Layout>(
    stream: &mut SendStream,
    format: impl Into<Format>,
    message: &T,
    max: usize,
    deadline: Duration,
) -> Result<(), FrameIoError> {
    let Format { kind, version } = format.into();
    let bytes = frame::encode(kind, &schema::encode_as(version, message, max)?)?;
    within(deadline, async { Ok(stream.write_all(&bytes).await?) }).await
}

/// Receives one message of at most `max` bytes, or nothing if the stream ended before it. Never allocates more than
/// `max`, nor before a valid header of the expected kind is there.
///
/// # Errors
/// See [`FrameIoError`].
pub async fn recv<T: Layout>(
    stream: &mut RecvStream,
    format: impl Into<Format>,
    max: usize,
    deadline: Duration,
) -> Result<Option<T>, FrameIoError> {
    let Format { kind, version } = format.into();
    match recv_part(stream, kind, max, deadline).await? {
        Some(payload) => Ok(Some(schema::decode_as(version, &payload, max)?)),
        None => Ok(None),
    }
}

/// Like [`recv`], for a message that must come.
///
/// # Errors
/// See [`FrameIoError`]; `Closed` if the stream ended instead.
pub async fn recv_one<T: Layout>(
    stream: &mut RecvStream,
    format: impl Into<Format>,
    max: usize,
    deadline: Duration,
) -> Result<T, FrameIoError> {
    recv(stream, format, max, deadline).await?.ok_or(FrameIoError::Closed)
}

/// Sends raw bytes as one frame.
///
/// # Errors
/// As for [`send`].
pub async fn send_part(
    stream: &mut SendStream,
    kind: FrameKind,
    payload: &[u8],
    deadline: Duration,
) -> Result<(), FrameIoError> {
    let bytes = frame::encode(kind, payload)?;
    within(deadline, async { Ok(stream.write_all(&bytes).await?) }).await
}

/// Receives raw bytes of at most `max` as one frame, or nothing if the stream ended before it.
///
/// # Errors
/// See [`FrameIoError`].
pub async fn recv_part(
    stream: &mut RecvStream,
    kind: FrameKind,
    max: usize,
    deadline: Duration,
) -> Result<Option<Vec<u8>>, FrameIoError> {
    within(deadline, async {
        let mut head = [0; FRAME_HEADER_BYTES];
        match stream.read_exact(&mut head).await {
            Ok(()) => {}
            Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let header = frame::header(&head, max)?;
        error::expect_kind(&header, kind)?;
        let mut payload = vec![0; header.len];
        stream.read_exact(&mut payload).await?;
        header.check(&payload)?;
        Ok(Some(payload))
    })
    .await
}

#[cfg(test)]
mod tests;

//! The first two frames of a stream: which version, and what for.

use std::time::Duration;

use anabranch_common::limits;
use anabranch_common::wire::frame::FrameKind;
use anabranch_common::wire::handshake::{Agree, Propose, Purpose};
use quinn::{RecvStream, SendStream};

use super::{HandshakeError, recv_one, send};

/// The opening side: proposes our versions for `purpose` and returns the version to speak.
///
/// # Errors
/// See [`HandshakeError`].
pub async fn propose(
    send_stream: &mut SendStream,
    recv_stream: &mut RecvStream,
    purpose: Purpose,
    deadline: Duration,
) -> Result<u16, HandshakeError> {
    propose_this(send_stream, recv_stream, Propose::new(purpose), deadline).await
}

pub(super) async fn propose_this(
    send_stream: &mut SendStream,
    recv_stream: &mut RecvStream,
    proposal: Propose,
    deadline: Duration,
) -> Result<u16, HandshakeError> {
    send(send_stream, FrameKind::Propose, &proposal, limits::HANDSHAKE_MESSAGE_BYTES, deadline).await?;
    match recv_one(recv_stream, FrameKind::Agree, limits::HANDSHAKE_MESSAGE_BYTES, deadline).await? {
        Agree::Version(version) if (proposal.min..=proposal.max).contains(&version) => Ok(version),
        Agree::Version(version) => Err(HandshakeError::Version { min: version, max: version }),
        Agree::Unsupported { min, max } => Err(HandshakeError::Version { min, max }),
        Agree::Forbidden => Err(HandshakeError::Forbidden(proposal.purpose)),
    }
}

/// The accepting side: answers a proposal, whose purpose must be `allowed` for this peer, and returns purpose and version.
///
/// # Errors
/// See [`HandshakeError`]. The other side has been told before this returns; finish the stream, do not reset it.
pub async fn accept(
    send_stream: &mut SendStream,
    recv_stream: &mut RecvStream,
    allowed: impl FnOnce(Purpose) -> bool,
    deadline: Duration,
) -> Result<(Purpose, u16), HandshakeError> {
    let proposal: Propose =
        recv_one(recv_stream, FrameKind::Propose, limits::HANDSHAKE_MESSAGE_BYTES, deadline).await?;
    let answer = if allowed(proposal.purpose) { proposal.answer() } else { Agree::Forbidden };
    send(send_stream, FrameKind::Agree, &answer, limits::HANDSHAKE_MESSAGE_BYTES, deadline).await?;
    match answer {
        Agree::Version(version) => Ok((proposal.purpose, version)),
        Agree::Unsupported { .. } => Err(HandshakeError::Version { min: proposal.min, max: proposal.max }),
        Agree::Forbidden => Err(HandshakeError::Forbidden(proposal.purpose)),
    }
}

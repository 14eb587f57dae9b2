//! Frames: how a message lies on a stream.
//!
//! ```text
//!  0      4         6      8          12        16
//!  ┌──────┬─────────┬──────┬──────────┬─────────┬─────────┐
//!  │"ANBR"│ version │ kind │ length   │ crc32c  │ payload │
//!  │ 4    │ u16 le  │u16 le│ u32 le   │ u32 le  │         │
//!  └──────┴─────────┴──────┴──────────┴─────────┴─────────┘
//! ```
//! The checksum covers the header's first 12 bytes and the payload. `version` is the frame layout's, not the protocol's.

use crate::limits::FRAME_HEADER_BYTES;

/// Magic bytes of a frame.
pub const MAGIC: [u8; 4] = *b"ANBR";
/// Version of the frame layout.
pub const LAYOUT_VERSION: u16 = 1;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum FrameKind {
    /// `handshake::Propose`.
    Propose = 1,
    /// `handshake::Agree`.
    Agree = 2,
    /// `message::JoinRequest`.
    JoinRequest = 3,
    /// `message::JoinResponse`.
    JoinResponse = 4,
    /// `message::AgentMessage`.
    Agent = 5,
    /// `message::CoordinatorMessage`.
    Coordinator = 6,
    /// `operator::OperatorRequest`.
    OperatorRequest = 7,
    /// `operator::OperatorResponse`.
    OperatorResponse = 8,
    /// `transfer::ChunkHeader`; the chunk's bytes follow, unframed, to the end of the stream.
    Chunk = 9,
    /// A raw part of a body that follows an operator request or response.
    Part = 10,
    /// `pod::PodGreeting`.
    PodGreeting = 11,
    /// `pod::PodAnswer`.
    PodAnswer = 12,
    /// `pod::ParcelHead`; the values follow, unframed.
    Parcel = 13,
    /// `runs::RunsWanted`.
    RunsWanted = 14,
    /// `runs::RunsListed`.
    RunsListed = 15,
    /// `probe::ProbeAnswer`.
    ProbeAnswer = 16,
    /// `probe::FactsWanted`.
    FactsWanted = 17,
    /// `probe::Facts`.
    Facts = 18,
}

impl FrameKind {
    fn from_u16(kind: u16) -> Option<Self> {
        Some(match kind {
            1 => Self::Propose,
            2 => Self::Agree,
            3 => Self::JoinRequest,
            4 => Self::JoinResponse,
            5 => Self::Agent,
            6 => Self::Coordinator,
            7 => Self::OperatorRequest,
            8 => Self::OperatorResponse,
            9 => Self::Chunk,
            10 => Self::Part,
            11 => Self::PodGreeting,
            12 => Self::PodAnswer,
            13 => Self::Parcel,
            14 => Self::RunsWanted,
            15 => Self::RunsListed,
            16 => Self::ProbeAnswer,
            17 => Self::FactsWanted,
            18 => Self::Facts,
            _ => return None,
        })
    }
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Something that does not speak this protocol.
    #[error("the peer does not speak the anabranch protocol")]
    Magic,
    /// Another frame layout.
    #[error("frame layout {0} is not known to this version, which speaks {LAYOUT_VERSION}")]
    Layout(u16),
    /// A kind that is not known or not expected here.
    #[error("unexpected frame of kind {0}")]
    Kind(u16),
    /// Longer than allowed here.
    #[error("frame of {found} bytes, more than {max}")]
    TooLarge {
        /// Its length.
        found: usize,
        /// The limit.
        max: usize,
    },
    /// Damaged on the way.
    #[error("frame does not match its checksum")]
    Checksum,
}

/// A frame's header once it has been checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the frame carries.
    pub kind: FrameKind,
    /// Length of the payload in bytes.
    pub len: usize,
    prefix_crc: u32,
    crc: u32,
}

/// A frame around `payload`.
///
/// # Errors
/// The payload is longer than a frame can say.
pub fn encode(kind: FrameKind, payload: &[u8]) -> Result<Vec<u8>, FrameError> {
    let too_large = |_| FrameError::TooLarge { found: payload.len(), max: u32::MAX as usize };
    let len = u32::try_from(payload.len()).map_err(too_large)?;
    let mut out = Vec::with_capacity(FRAME_HEADER_BYTES + payload.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&LAYOUT_VERSION.to_le_bytes());
    out.extend_from_slice(&(kind as u16).to_le_bytes());
    out.extend_from_slice(&len.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&out), payload);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(payload);
    Ok(out)
}

/// Checks a header. The caller then reads exactly `len` bytes and passes them to [`FrameHeader::check`].
///
/// # Errors
/// Not a frame, or longer than `max_bytes`.
pub fn header(bytes: &[u8; FRAME_HEADER_BYTES], max_bytes: usize) -> Result<FrameHeader, FrameError> {
    if bytes[..4] != MAGIC {
        return Err(FrameError::Magic);
    }
    let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    if u16_at(4) != LAYOUT_VERSION {
        return Err(FrameError::Layout(u16_at(4)));
    }
    let kind = FrameKind::from_u16(u16_at(6)).ok_or(FrameError::Kind(u16_at(6)))?;
    let len = u32_at(8) as usize;
    if len > max_bytes {
        return Err(FrameError::TooLarge { found: len, max: max_bytes });
    }
    Ok(FrameHeader { kind, len, prefix_crc: crc32c::crc32c(&bytes[..12]), crc: u32_at(12) })
}

impl FrameHeader {
    /// Checks the payload that followed this header.
    ///
    /// # Errors
    /// It is not what was sent.
    pub fn check(&self, payload: &[u8]) -> Result<(), FrameError> {
        if payload.len() == self.len && crc32c::crc32c_append(self.prefix_crc, payload) == self.crc {
            Ok(())
        } else {
            Err(FrameError::Checksum)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8], max: usize) -> Result<(FrameKind, Vec<u8>), FrameError> {
        let (head, payload) = bytes.split_at(FRAME_HEADER_BYTES);
        let header = header(head.try_into().expect("16 bytes"), max)?;
        header.check(payload)?;
        Ok((header.kind, payload.to_vec()))
    }

    #[test]
    fn the_bytes_of_a_frame_are_these() {
        let bytes = encode(FrameKind::Agent, b"hi").expect("short");
        assert_eq!(bytes[..12], *b"ANBR\x01\x00\x05\x00\x02\x00\x00\x00");
        assert_eq!(bytes[16..], *b"hi");
        assert_eq!(parse(&bytes, 2), Ok((FrameKind::Agent, b"hi".to_vec())));
    }

    #[test]
    fn every_flipped_bit_is_noticed_and_the_limit_holds() {
        let bytes = encode(FrameKind::Chunk, b"payload").expect("short");
        for bit in 0..bytes.len() * 8 {
            let mut broken = bytes.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&broken, 1 << 20).is_err(), "flipping bit {bit} went unnoticed");
        }
        assert_eq!(parse(&bytes, 6), Err(FrameError::TooLarge { found: 7, max: 6 }));
    }
}

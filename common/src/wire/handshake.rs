//! How two versions of the protocol agree, before anything else is said.
//!
//! The peer that opens the stream sends the range of versions it speaks; the other answers with the one they will use,
//! or with its own range when there is none. Both are single frames with a layout that never changes. The protocol's
//! version is the schema's.

use crate::schema;

/// The oldest protocol version that this build speaks.
pub const MIN_PROTOCOL: u16 = schema::OLDEST;
/// The newest protocol version that this build speaks.
pub const MAX_PROTOCOL: u16 = schema::VERSION;
/// The name under which QUIC connections are opened (ALPN). It has no version in it on purpose: a mismatch is told in
/// words, not as a TLS alert.
pub const ALPN: &[u8] = b"anabranch";

/// What the stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Enrolment; needs no certificate.
    Join,
    /// An agent's control stream.
    Agent,
    /// An operator's request.
    Operator,
    /// The list of runs that an agent may take part in.
    Runs,
    /// What `doctor` asks; needs no certificate.
    Probe,
    /// What an agent's `doctor` asks about a run.
    Facts,
}

/// The first frame on a control stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Propose {
    /// Oldest version spoken.
    pub min: u16,
    /// Newest version spoken.
    pub max: u16,
    /// What for.
    pub purpose: Purpose,
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agree {
    /// Speak this version.
    Version(u16),
    /// There is no common version: this is the range here.
    Unsupported {
        /// Oldest version spoken here.
        min: u16,
        /// Newest version spoken here.
        max: u16,
    },
    /// The certificate does not allow this purpose.
    Forbidden,
}

impl Propose {
    /// What this build proposes.
    #[must_use]
    pub fn new(purpose: Purpose) -> Self {
        Self { min: MIN_PROTOCOL, max: MAX_PROTOCOL, purpose }
    }

    /// The newest version both speak.
    #[must_use]
    pub fn answer(&self) -> Agree {
        let common = self.max.min(MAX_PROTOCOL);
        if common >= self.min && common >= MIN_PROTOCOL {
            Agree::Version(common)
        } else {
            Agree::Unsupported { min: MIN_PROTOCOL, max: MAX_PROTOCOL }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_chosen_and_none_is_said_so() {
        let propose = |min, max| Propose { min, max, purpose: Purpose::Agent }.answer();
        assert_eq!(propose(MIN_PROTOCOL, MIN_PROTOCOL), Agree::Version(MIN_PROTOCOL));
        assert_eq!(propose(0, 7), Agree::Version(MAX_PROTOCOL));
        assert_eq!(
            propose(MAX_PROTOCOL + 1, MAX_PROTOCOL + 2),
            Agree::Unsupported { min: MIN_PROTOCOL, max: MAX_PROTOCOL }
        );
        assert_eq!(propose(0, 1), Agree::Unsupported { min: MIN_PROTOCOL, max: MAX_PROTOCOL });
    }
}

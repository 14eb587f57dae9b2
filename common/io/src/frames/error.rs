//! What can go wrong with a frame on a stream.

use anabranch_common::schema::SchemaError;
use anabranch_common::wire::frame::{FrameError, FrameHeader, FrameKind};
use anabranch_common::wire::handshake::{MAX_PROTOCOL, MIN_PROTOCOL, Purpose};
use quinn::{ConnectionError, ReadError, ReadExactError, WriteError};

use crate::exit::ExitCode;
use crate::tls::{ConnectProblem, explain};

/// Why a frame was not sent or received.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameIoError {
    /// The stream ended in the middle of a frame, or where one had to come, or was given up by the other side.
    #[error("the other side closed the stream")]
    Closed,
    /// Not a frame that may come here.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Not a message that may come here.
    #[error(transparent)]
    Message(#[from] SchemaError),
    /// The connection ended.
    #[error(transparent)]
    Connection(#[from] ConnectProblem),
    /// It took too long.
    #[error("the other side took too long")]
    TimedOut,
}

impl FrameIoError {
    /// The exit code of a command that ends with this error, if it is one that says something about the command.
    #[must_use]
    pub fn exit_code(&self) -> Option<ExitCode> {
        match self {
            Self::Connection(problem) => Some(problem.exit_code()),
            Self::Closed | Self::TimedOut => Some(ExitCode::Unavailable),
            Self::Frame(FrameError::Magic | FrameError::Layout(_)) => Some(ExitCode::Protocol),
            Self::Frame(_) | Self::Message(_) => None,
        }
    }

    /// Whether the other side broke the protocol, as opposed to the network or its being gone.
    #[must_use]
    pub fn is_protocol_violation(&self) -> bool {
        matches!(self, Self::Frame(_) | Self::Message(_))
    }
}

impl From<ConnectionError> for FrameIoError {
    fn from(error: ConnectionError) -> Self {
        Self::Connection(explain(&error))
    }
}

impl From<WriteError> for FrameIoError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::ConnectionLost(error) => error.into(),
            WriteError::Stopped(_) | WriteError::ClosedStream | WriteError::ZeroRttRejected => Self::Closed,
        }
    }
}

impl From<ReadError> for FrameIoError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::ConnectionLost(error) => error.into(),
            _ => Self::Closed,
        }
    }
}

impl From<ReadExactError> for FrameIoError {
    fn from(error: ReadExactError) -> Self {
        match error {
            ReadExactError::ReadError(error) => error.into(),
            ReadExactError::FinishedEarly(_) => Self::Closed,
        }
    }
}

pub(super) fn expect_kind(header: &FrameHeader, kind: FrameKind) -> Result<(), FrameError> {
    if header.kind == kind { Ok(()) } else { Err(FrameError::Kind(header.kind as u16)) }
}

/// Why the two sides did not agree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The frames did not get through.
    #[error(transparent)]
    Frame(#[from] FrameIoError),
    /// There is no common version.
    #[error("the other side speaks protocol {theirs}, this one {MIN_PROTOCOL} to {MAX_PROTOCOL}",
        theirs = range(*min, *max))]
    Version {
        /// Oldest version that the other side speaks.
        min: u16,
        /// Newest version that the other side speaks.
        max: u16,
    },
    /// The certificate does not allow this purpose.
    #[error("this certificate does not allow to connect as {}", purpose_text(*.0))]
    Forbidden(Purpose),
}

fn range(min: u16, max: u16) -> String {
    if min == max { min.to_string() } else { format!("{min} to {max}") }
}

fn purpose_text(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Join => "a new agent",
        Purpose::Agent => "an agent",
        Purpose::Operator => "an operator",
        Purpose::Runs => "an agent that asks which runs there are",
        Purpose::Probe => "a machine that only probes",
        Purpose::Facts => "an agent that asks about a run",
    }
}

impl HandshakeError {
    /// The exit code of a command that ends with this error.
    #[must_use]
    pub fn exit_code(&self) -> Option<ExitCode> {
        match self {
            Self::Frame(error) => error.exit_code(),
            Self::Version { .. } => Some(ExitCode::Protocol),
            Self::Forbidden(_) => Some(ExitCode::Identity),
        }
    }

    /// What the user can do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Frame(FrameIoError::Connection(problem)) => problem.help(),
            Self::Frame(_) => None,
            Self::Version { max, .. } => {
                let older = if *max < MIN_PROTOCOL { "the other side" } else { "this side" };
                Some(format!("upgrade {older}"))
            }
            Self::Forbidden(_) => Some("use the certificate that was made for this command".to_owned()),
        }
    }
}

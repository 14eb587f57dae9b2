//! Opening a stream: agreement on a protocol version; and enrolment, which is one request on a connection of its own.

use std::time::Duration;

use anabranch_common::limits;
use anabranch_common::token::JoinToken;
use anabranch_common::wire::frame::FrameKind;
use anabranch_common::wire::handshake::Purpose;
use anabranch_common::wire::message::{JoinRequest, JoinResponse};
use anabranch_io::exit::ExitCode;
use anabranch_io::frames::{self, Format, FrameIoError, HandshakeError};
use anabranch_io::tls::{self, BindError, ConnectProblem, TlsError};
use quinn::{RecvStream, SendStream};

use super::coordinator::Coordinator;
use crate::session::command::Ending;
use crate::session::event::Problem;

pub(super) const HANDSHAKE: Duration = Duration::from_millis(limits::HANDSHAKE_TIMEOUT_MS);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The connection was refused or broke.
    #[error(transparent)]
    Connect(#[from] ConnectProblem),
    /// No agreement on a protocol version.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The exchange broke.
    #[error(transparent)]
    Frame(#[from] FrameIoError),
    /// Certificate or key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl DialError {
    /// Whether trying again later, with nothing changed here, can help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self.to_problem(), Problem::Transient(_))
    }

    /// For the session: whether to try again.
    #[must_use]
    pub fn to_problem(&self) -> Problem {
        match self {
            Self::Connect(problem) => of_connect(problem),
            Self::Handshake(HandshakeError::Frame(error)) | Self::Frame(error) => of_frame(error),
            Self::Handshake(error @ HandshakeError::Version { .. }) => {
                Problem::Final(Ending::Version(with_help(error, error.help())))
            }
            Self::Handshake(error @ HandshakeError::Forbidden(_)) => {
                Problem::Final(Ending::Identity(with_help(error, error.help())))
            }
            Self::Bind(error) => Problem::Transient(error.to_string()),
            Self::Tls(error) => Problem::Final(Ending::Identity(error.to_string())),
        }
    }
}

/// The same for a connection that is open.
pub(super) fn of_frame(error: &FrameIoError) -> Problem {
    match error {
        FrameIoError::Connection(problem) => of_connect(problem),
        error if error.exit_code() == Some(ExitCode::Protocol) => Problem::Final(Ending::Version(error.to_string())),
        error => Problem::Transient(error.to_string()),
    }
}

/// The same for its end.
pub(super) fn of_connect(problem: &ConnectProblem) -> Problem {
    let text = with_help(problem, problem.help());
    match problem.exit_code() {
        ExitCode::Clock => Problem::Final(Ending::Clock(text)),
        ExitCode::Protocol => Problem::Final(Ending::Version(text)),
        _ if problem.is_transient() => Problem::Transient(problem.to_string()),
        _ => Problem::Final(Ending::Identity(text)),
    }
}

fn with_help(error: &impl std::fmt::Display, help: Option<String>) -> String {
    match help {
        Some(help) => format!("{error}; {help}"),
        None => error.to_string(),
    }
}

/// A control stream on which both sides have agreed.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) send: SendStream,
    pub(super) recv: RecvStream,
    /// The version of the schema that both sides agreed on.
    pub(super) version: u16,
}

/// Agrees on a protocol version.
pub(super) async fn greet(mut send: SendStream, mut recv: RecvStream, purpose: Purpose) -> Result<Control, DialError> {
    let version = frames::propose(&mut send, &mut recv, purpose, HANDSHAKE).await?;
    Ok(Control { send, recv, version })
}

/// Enrols with a token and a certificate signing request (DER).
///
/// # Errors
/// The coordinator was not reached, is not the one that the token names, or the exchange broke. A refusal is an answer.
pub async fn join(token: &JoinToken, csr_der: Vec<u8>) -> Result<JoinResponse, DialError> {
    let config = tls::client_pinned(&token.ca_fingerprints)?;
    let coordinator = Coordinator::new(token.addresses.clone());
    let endpoint = tls::client_endpoint()?;
    let connection = coordinator.connect(&endpoint, &config, HANDSHAKE).await?;
    let (send, recv) = connection.open_bi().await.map_err(|error| tls::explain(&error))?;
    let Control { mut send, mut recv, version } = greet(send, recv, Purpose::Join).await?;
    let format = |kind| Format { kind, version };
    let request = JoinRequest { token_secret: token.secret, csr_der };
    frames::send(&mut send, format(FrameKind::JoinRequest), &request, limits::JOIN_MESSAGE_BYTES, HANDSHAKE).await?;
    let answer = Duration::from_millis(limits::REQUEST_TIMEOUT_MS);
    let expected = format(FrameKind::JoinResponse);
    let response = frames::recv_one(&mut recv, expected, limits::CONTROL_MESSAGE_BYTES, answer).await?;
    connection.close(0u32.into(), b"done");
    // Without a goodbye the coordinator would notice by its idle timeout: a courtesy, not a need.
    let _ = tokio::time::timeout(Duration::from_millis(limits::GOODBYE_MS), endpoint.wait_idle()).await;
    Ok(response)
}

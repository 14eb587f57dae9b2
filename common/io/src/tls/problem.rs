//! Why a connection was not made, or ended, in words that say what to do.

use quinn::ConnectionError;
use time::OffsetDateTime;
use time::macros::format_description;

use crate::exit::ExitCode;

/// TLS alerts (RFC 8446, section 6.2) that are told apart.
mod alert {
    pub(super) const BAD_CERTIFICATE: u8 = 42;
    pub(super) const UNSUPPORTED_CERTIFICATE: u8 = 43;
    pub(super) const CERTIFICATE_REVOKED: u8 = 44;
    pub(super) const CERTIFICATE_EXPIRED: u8 = 45;
    pub(super) const CERTIFICATE_UNKNOWN: u8 = 46;
    pub(super) const UNKNOWN_CA: u8 = 48;
    pub(super) const ACCESS_DENIED: u8 = 49;
    pub(super) const DECRYPT_ERROR: u8 = 51;
    pub(super) const PROTOCOL_VERSION: u8 = 70;
    pub(super) const CERTIFICATE_REQUIRED: u8 = 116;
    pub(super) const NO_APPLICATION_PROTOCOL: u8 = 120;
}

/// Why a connection was not made, or ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectProblem {
    /// The address is not `host:port`.
    #[error("{0:?} is not an address of the form host:port")]
    BadAddress(String),
    /// The name has no address.
    #[error("the name in {address} cannot be resolved: {reason}")]
    Resolve {
        /// What was to be resolved.
        address: String,
        /// The system's error.
        reason: String,
    },
    /// Nobody answers, or the way is blocked (QUIC runs over UDP).
    #[error("no answer from {0}")]
    Unreachable(String),
    /// The connection was silent for too long.
    #[error("connection timed out")]
    TimedOut,
    /// The other side ended the connection on purpose.
    #[error("connection closed by the other side{}", suffix(reason))]
    Closed {
        /// Its code.
        code: u64,
        /// Its reason; may be empty.
        reason: String,
    },
    /// The other side was restarted and does not know the connection any more.
    #[error("the other side was restarted")]
    Reset,
    /// This side ended the connection.
    #[error("connection closed by this side")]
    ClosedHere,
    /// A certificate is not valid yet at the clock of the machine that checked it.
    #[error("certificate is not valid yet at {whose} clock{}", suffix(times))]
    NotYetValid {
        /// Whose clock: `this machine's` or `the other side's`.
        whose: &'static str,
        /// What the clock says, and from when the certificate is valid; empty if not known.
        times: String,
    },
    /// A certificate is no longer valid at the clock of the machine that checked it.
    #[error("certificate has expired at {whose} clock{}", suffix(times))]
    Expired {
        /// Whose clock: `this machine's` or `the other side's`.
        whose: &'static str,
        /// What the clock says, and until when the certificate was valid; empty if not known.
        times: String,
    },
    /// The other side's certificate does not come from the CA that this side trusts.
    #[error("the other side's certificate was not issued by the CA that is trusted here")]
    UnknownCa,
    /// The other side does not trust the CA of this side's certificate.
    #[error("the other side does not know the CA of this certificate")]
    OurCaUnknown,
    /// The other side's certificate is for other names.
    #[error("the other side's certificate is not valid for the name or address that was used")]
    WrongName,
    /// The other side's certificate was refused here, for another reason.
    #[error("the other side's certificate was refused: {0}")]
    BadPeerCertificate(String),
    /// The other side refused this side's certificate, or wants one.
    #[error("the other side refused this certificate: {0}")]
    Refused(String),
    /// The other side speaks something else.
    #[error("the other side does not speak the anabranch protocol")]
    OtherProtocol,
    /// None of a name's addresses gave a connection.
    #[error("{problem} ({outcomes})")]
    Addresses {
        /// The problem with the address that got furthest.
        problem: Box<Self>,
        /// Each address with its own problem.
        outcomes: String,
    },
    /// Anything else.
    #[error("connection failed: {0}")]
    Other(String),
}

fn suffix(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" ({text})") }
}

impl ConnectProblem {
    /// Returns the problem with one address that stands for those with all of them.
    #[must_use]
    pub fn of_one(&self) -> &Self {
        match self {
            Self::Addresses { problem, .. } => problem.of_one(),
            problem => problem,
        }
    }

    /// The exit code of a command that ends with this problem.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Addresses { problem, .. } => problem.exit_code(),
            Self::BadAddress(_) => ExitCode::Config,
            Self::NotYetValid { .. } | Self::Expired { .. } => ExitCode::Clock,
            Self::UnknownCa | Self::OurCaUnknown | Self::WrongName | Self::BadPeerCertificate(_) | Self::Refused(_) => {
                ExitCode::Identity
            }
            Self::OtherProtocol => ExitCode::Protocol,
            Self::Resolve { .. }
            | Self::Unreachable(_)
            | Self::TimedOut
            | Self::Closed { .. }
            | Self::Reset
            | Self::ClosedHere
            | Self::Other(_) => ExitCode::Unavailable,
        }
    }

    /// Whether trying again later, with nothing changed here, can help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.exit_code() == ExitCode::Unavailable
    }

    /// What the user can do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        let help = match self.of_one() {
            Self::BadAddress(_) => "write it as host:port, for example trainer.example:7700 or [2001:db8::1]:7700",
            Self::Resolve { .. } => "check the spelling and the name server",
            Self::Unreachable(_) => {
                "check that the coordinator runs and that UDP to its port is open on the way; QUIC does not use TCP"
            }
            Self::NotYetValid { .. } => "set the clock (NTP)",
            Self::Expired { whose: HERE, .. } => {
                "check the clock (NTP); if it is right, the coordinator's certificate has expired: its operator has to start \
                 `run` again"
            }
            Self::Expired { .. } => {
                "check the clock (NTP); if it is right, join again with a new token, into the same directory: identity and \
                 finished work stay"
            }
            Self::UnknownCa | Self::OurCaUnknown => {
                "this is another coordinator than the one that was joined, or its certificates were replaced: join again"
            }
            Self::WrongName => "use a name or address that the coordinator's certificate lists",
            Self::Refused(_) => "ask the operator whether this agent was revoked; join again with a new token",
            Self::OtherProtocol => "check host and port, and that both sides run versions that fit each other",
            _ => return None,
        };
        Some(help.to_owned())
    }
}

/// Whose clock it is, where this side has judged a certificate.
const HERE: &str = "this machine's";

/// Which side has found the fault.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Here,
    There,
}

/// What a connection's end means.
#[must_use]
pub fn explain(error: &ConnectionError) -> ConnectProblem {
    match error {
        ConnectionError::TransportError(error) => of_code(u64::from(error.code), &error.reason, Side::Here),
        ConnectionError::ConnectionClosed(close) => {
            of_code(u64::from(close.error_code), &String::from_utf8_lossy(&close.reason), Side::There)
        }
        ConnectionError::ApplicationClosed(close) => ConnectProblem::Closed {
            code: close.error_code.into_inner(),
            reason: String::from_utf8_lossy(&close.reason).into_owned(),
        },
        ConnectionError::VersionMismatch => ConnectProblem::OtherProtocol,
        ConnectionError::Reset => ConnectProblem::Reset,
        ConnectionError::TimedOut => ConnectProblem::TimedOut,
        ConnectionError::LocallyClosed => ConnectProblem::ClosedHere,
        ConnectionError::CidsExhausted => ConnectProblem::Other(error.to_string()),
    }
}

/// A QUIC transport error; 0x100 to 0x1ff carry a TLS alert (RFC 9001, section 4.8).
fn of_code(code: u64, reason: &str, side: Side) -> ConnectProblem {
    let alert = code.checked_sub(0x100).and_then(|alert| u8::try_from(alert).ok());
    // A certificate that names our CA but was signed by another of the same name has a bad signature.
    let unknown_ca = alert == Some(alert::UNKNOWN_CA) || reason.contains("BadSignature");
    match alert {
        Some(alert::CERTIFICATE_EXPIRED) => clock_problem(reason, side),
        Some(_) if unknown_ca && side == Side::Here => ConnectProblem::UnknownCa,
        Some(_) if unknown_ca => ConnectProblem::OurCaUnknown,
        Some(
            alert::BAD_CERTIFICATE
            | alert::UNSUPPORTED_CERTIFICATE
            | alert::CERTIFICATE_REVOKED
            | alert::CERTIFICATE_UNKNOWN
            | alert::ACCESS_DENIED
            | alert::DECRYPT_ERROR
            | alert::CERTIFICATE_REQUIRED,
        ) => match side {
            Side::Here if reason.contains("not valid for name") => ConnectProblem::WrongName,
            Side::Here => ConnectProblem::BadPeerCertificate(reason.to_owned()),
            Side::There => ConnectProblem::Refused(reason.to_owned()),
        },
        Some(alert::PROTOCOL_VERSION | alert::NO_APPLICATION_PROTOCOL) => ConnectProblem::OtherProtocol,
        _ => ConnectProblem::Other(if reason.is_empty() { format!("error {code}") } else { reason.to_owned() }),
    }
}

/// rustls uses one alert for "expired" and "not yet valid"; its text tells them apart, and has both times. The text also
/// reaches the peer, as the reason of the close. Without it, or should it change, only the times are lost.
fn clock_problem(reason: &str, side: Side) -> ConnectProblem {
    let whose = if side == Side::Here { HERE } else { "the other side's" };
    let now = number_after(reason, "verification time ").and_then(utc);
    if reason.contains("not valid yet") {
        let bound = number_after(reason, "not valid before ").and_then(utc);
        ConnectProblem::NotYetValid { whose, times: times(now, "valid from", bound) }
    } else {
        let bound = number_after(reason, "not valid after ").and_then(utc);
        ConnectProblem::Expired { whose, times: times(now, "valid until", bound) }
    }
}

fn times(now: Option<String>, which: &str, bound: Option<String>) -> String {
    match (now, bound) {
        (Some(now), Some(bound)) => format!("{now}; {which} {bound}"),
        (Some(now), None) => now,
        (None, _) => String::new(),
    }
}

fn number_after(text: &str, marker: &str) -> Option<i64> {
    let (_, rest) = text.split_once(marker)?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

fn utc(unix_s: i64) -> Option<String> {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    OffsetDateTime::from_unix_timestamp(unix_s).ok()?.format(format).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::pki_types::UnixTime;
    use rustls::{CertificateError, Error};

    use super::*;

    /// Guards against a rustls that words its errors differently: the text is built by rustls itself.
    #[test]
    fn clock_errors_name_the_clock_and_both_times() {
        let at = |s| UnixTime::since_unix_epoch(Duration::from_secs(s));
        let not_yet = CertificateError::NotValidYetContext { time: at(1_795_348_800), not_before: at(1_795_435_200) };
        let problem = of_code(0x100 + 45, &Error::InvalidCertificate(not_yet).to_string(), Side::Here);
        assert_eq!(
            problem.to_string(),
            "certificate is not valid yet at this machine's clock (2026-11-22 12:00 UTC; valid from 2026-11-23 12:00 UTC)"
        );
        assert_eq!(problem.exit_code(), ExitCode::Clock);
        let ours = ConnectProblem::Expired { whose: HERE, times: String::new() };
        assert!(ours.help().is_some_and(|help| help.contains("its operator")), "it is the coordinator's");
        let expired = CertificateError::ExpiredContext { time: at(1_795_435_200), not_after: at(1_795_348_800) };
        let problem = of_code(0x100 + 45, &Error::InvalidCertificate(expired).to_string(), Side::There);
        assert_eq!(
            problem.to_string(),
            "certificate has expired at the other side's clock (2026-11-23 12:00 UTC; valid until 2026-11-22 12:00 UTC)"
        );
        let terse = of_code(0x100 + 45, "", Side::There);
        assert_eq!(terse.to_string(), "certificate has expired at the other side's clock");
        assert!(terse.help().is_some_and(|help| help.contains("join again")));
    }

    #[test]
    fn each_alert_has_its_exit_code() {
        let code = |alert: u64, side| of_code(0x100 + alert, "", side).exit_code();
        for alert in [42, 46, 48, 49, 116] {
            assert_eq!(code(alert, Side::There), ExitCode::Identity, "alert {alert}");
            assert_eq!(code(alert, Side::Here), ExitCode::Identity, "alert {alert}");
        }
        assert_eq!(code(120, Side::There), ExitCode::Protocol);
        assert_eq!(code(80, Side::There), ExitCode::Unavailable);
        assert_eq!(of_code(0x0a, "", Side::There).exit_code(), ExitCode::Unavailable);
    }
}

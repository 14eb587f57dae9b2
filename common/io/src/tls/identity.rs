//! Who a certificate belongs to: subject `O=Anabranch, OU=<role>, CN=<name>`, and the id from its public key. Where the key
//! was replaced, `serialNumber=<id>` in the subject has the id of the first one.

use std::str::FromStr;

use anabranch_common::ids::{AgentId, Digest};
use anabranch_common::limits::NAME_BYTES;
use quinn::Connection;
use rustls::pki_types::CertificateDer;
use x509_parser::oid_registry::OID_X509_SERIALNUMBER;
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

use super::authority::issuer_id;

/// `O` of every certificate's subject.
pub const ORGANIZATION: &str = "Anabranch";

/// What a certificate allows; its subject's `OU`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Trains.
    Agent,
    /// Commands.
    Operator,
    /// The coordinator itself.
    Server,
}

impl Role {
    /// Its `OU`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Operator => "operator",
            Self::Server => "server",
        }
    }
}

/// A role that is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown role in certificate")]
pub struct UnknownRole;

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        let roles = [Self::Agent, Self::Operator, Self::Server];
        roles.into_iter().find(|role| role.as_str() == text).ok_or(UnknownRole)
    }
}

/// The other side of a connection, as its certificate has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// What it may do.
    pub role: Role,
    /// Who it is, whatever its role: the id that its CA has written into the certificate, else that of its public key.
    pub agent: AgentId,
    /// Its name, for people.
    pub name: String,
    /// The id that belongs to its public key: another one than `agent` once the key was replaced.
    pub key: AgentId,
    /// The name of the key of the CA that has issued the certificate ([`authority_id`](super::authority_id)).
    pub authority: Option<Digest>,
    /// Until when the certificate is valid, in seconds since 1970 (UTC).
    pub expires_at_s: i64,
}

/// Why a certificate does not name anybody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseCertificateError {
    /// Not a certificate.
    #[error("certificate cannot be read: {0}")]
    Malformed(String),
    /// A certificate of something else.
    #[error("certificate does not say O={ORGANIZATION}, one known OU and one CN, or has more than an agent's id")]
    Subject,
}

fn parse(cert_der: &[u8]) -> Result<X509Certificate<'_>, ParseCertificateError> {
    match X509Certificate::from_der(cert_der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok((rest, _)) => Err(ParseCertificateError::Malformed(format!("{} bytes after its end", rest.len()))),
        Err(error) => Err(ParseCertificateError::Malformed(error.to_string())),
    }
}

/// The single value among `values`: a subject with two names would be read differently by different readers.
fn single<'a>(mut values: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    values.next().filter(|_| values.next().is_none())
}

fn subject(name: &X509Name<'_>) -> Option<(Role, String, Option<AgentId>)> {
    let organization = single(name.iter_organization().filter_map(|value| value.as_str().ok()))?;
    let unit = single(name.iter_organizational_unit().filter_map(|value| value.as_str().ok()))?;
    let common = single(name.iter_common_name().filter_map(|value| value.as_str().ok()))?;
    let fits = organization == ORGANIZATION && common.len() <= NAME_BYTES;
    let mut ids = name.iter_by_oid(&OID_X509_SERIALNUMBER).map(|id| id.as_str().ok()?.parse().ok());
    let agent = match (ids.next(), ids.next()) {
        (None, _) => None,
        (Some(Some(agent)), None) => Some(agent),
        _ => return None,
    };
    fits.then(|| Some((unit.parse().ok()?, common.to_owned(), agent)))?
}

/// Who a certificate (DER) belongs to. Does not verify anything.
///
/// # Errors
/// See [`ParseCertificateError`].
pub fn parse_peer(cert_der: &[u8]) -> Result<Peer, ParseCertificateError> {
    let certificate = parse(cert_der)?;
    let (role, name, written) = subject(certificate.subject()).ok_or(ParseCertificateError::Subject)?;
    let key = AgentId::of_public_key(certificate.public_key().raw);
    let (authority, expires_at_s) = (issuer_id(&certificate), certificate.validity().not_after.timestamp());
    Ok(Peer { role, agent: written.unwrap_or(key), name, key, authority, expires_at_s })
}

/// The id that belongs to a certificate's (DER) public key.
///
/// # Errors
/// Not a certificate.
pub fn agent_id(cert_der: &[u8]) -> Result<AgentId, ParseCertificateError> {
    Ok(AgentId::of_public_key(parse(cert_der)?.public_key().raw))
}

/// From when to when a certificate (DER) is valid, both in seconds since 1970 (UTC).
///
/// # Errors
/// Not a certificate.
pub fn validity(cert_der: &[u8]) -> Result<(i64, i64), ParseCertificateError> {
    let certificate = parse(cert_der)?;
    let validity = certificate.validity();
    Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// Returns the certificates that the other end has shown, in DER, its own first.
#[must_use]
pub fn peer_certificates(connection: &Connection) -> Vec<Vec<u8>> {
    let chain = connection.peer_identity().and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
    chain.into_iter().flat_map(|chain| *chain).map(|certificate| certificate.to_vec()).collect()
}

/// Who is at the other end, by the certificate that the handshake has verified. Nothing if it showed none, or one that
/// names nobody.
#[must_use]
pub fn peer(connection: &Connection) -> Option<Peer> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    parse_peer(chain.first()?).ok()
}

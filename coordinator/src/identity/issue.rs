//! Making certificates.

use std::time::Duration;

use anabranch_common::ids::{AgentId, Digest};
use anabranch_io::tls;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{Credential, IdentityError, IssueError, Issued, Member, is_server_name};
use crate::config::{is_label, label_problem};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const AUTHORITY_LIFE: Duration = DAY.saturating_mul(3650);
const SERVICE_LIFE: Duration = DAY.saturating_mul(730);
/// Certificates are valid from this long ago, for machines whose clocks run behind.
const BACKDATED: Duration = Duration::from_secs(5 * 60);
/// Every server certificate is good for these, so that verbs work on the coordinator's own machine.
const LOCAL_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// `serialNumber` in a subject (X.520): the identity of an agent whose first key was replaced.
const SERIAL_NUMBER: [u64; 4] = [2, 5, 4, 5];

type Authority = Issuer<'static, KeyPair>;

/// A new CA: its certificate in DER, and what signs with it.
pub(super) fn authority(now_ms: u64) -> Result<(Vec<u8>, Authority), IdentityError> {
    let key = KeyPair::generate()?;
    let mut params = subject("ca", "Anabranch run CA", AUTHORITY_LIFE, now_ms);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial_of(&key.subject_public_key_info()));
    let certificate = params.self_signed(&key)?.der().to_vec();
    Ok((certificate, Issuer::new(params, key)))
}

pub(super) fn server(ca: &Authority, names: &[String], now_ms: u64) -> Result<Credential, IdentityError> {
    server_for_key(ca, &KeyPair::generate()?.serialize_der(), names, now_ms)
}

pub(super) fn server_for_key(
    ca: &Authority,
    key_der: &[u8],
    names: &[String],
    now_ms: u64,
) -> Result<Credential, IdentityError> {
    let mut all: Vec<String> = names.to_vec();
    all.extend(LOCAL_NAMES.map(String::from));
    all.sort();
    all.dedup();
    if let Some(bad) = all.iter().find(|name| !is_server_name(name)) {
        return Err(IdentityError::BadName(bad.chars().take(80).collect()));
    }
    let mut params = subject("server", "coordinator", SERVICE_LIFE, now_ms);
    params.subject_alt_names = CertificateParams::new(all)?.subject_alt_names;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    sign_own(ca, params, key_der)
}

pub(super) fn operator(ca: &Authority, now_ms: u64) -> Result<Credential, IdentityError> {
    operator_for_key(ca, &KeyPair::generate()?.serialize_der(), now_ms)
}

pub(super) fn operator_for_key(ca: &Authority, key_der: &[u8], now_ms: u64) -> Result<Credential, IdentityError> {
    let mut params = subject("operator", "operator", SERVICE_LIFE, now_ms);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    sign_own(ca, params, key_der)
}

pub(super) fn agent(
    ca: &Authority,
    Member { agent, name }: Member<'_>,
    csr_der: &[u8],
    lifetime_days: u32,
    now_ms: u64,
) -> Result<Issued, IssueError> {
    if !is_label(name) {
        return Err(IssueError::BadName(label_problem(name)));
    }
    let request = signed_request(csr_der)?;
    let mut params = subject("agent", name, DAY.saturating_mul(lifetime_days), now_ms);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let spki = request.public_key.subject_public_key_info();
    if AgentId::of_public_key(&spki) != agent {
        params.distinguished_name.push(DnType::CustomDnType(SERIAL_NUMBER.to_vec()), agent.to_string());
    }
    params.serial_number = Some(serial_of(&spki));
    let certificate = params.signed_by(&request.public_key, ca).map_err(certificate_error)?;
    let certificate_der = certificate.der().to_vec();
    // Taken from the certificate itself, because that is where the transport takes it from.
    let peer = tls::parse_peer(&certificate_der).map_err(certificate_error)?;
    Ok(Issued { agent: peer.agent, key: peer.key, certificate_der })
}

/// Returns the agent whose key a certificate request is for and signed by.
pub(super) fn requester(csr_der: &[u8]) -> Result<AgentId, IssueError> {
    let request = signed_request(csr_der)?;
    Ok(AgentId::of_public_key(&request.public_key.subject_public_key_info()))
}

fn signed_request(csr_der: &[u8]) -> Result<CertificateSigningRequestParams, IssueError> {
    // `from_der` checks that the request is signed by the key that it is for.
    CertificateSigningRequestParams::from_der(&csr_der.into()).map_err(|_| IssueError::BadRequest)
}

fn certificate_error(error: impl std::fmt::Display) -> IssueError {
    IssueError::Certificate(error.to_string())
}

fn sign_own(ca: &Authority, mut params: CertificateParams, key_der: &[u8]) -> Result<Credential, IdentityError> {
    let key = KeyPair::try_from(key_der)?;
    params.serial_number = Some(serial_of(&key.subject_public_key_info()));
    let certificate_der = params.signed_by(&key, ca)?.der().to_vec();
    Ok(Credential { certificate_der, key_der: key_der.to_vec() })
}

/// Parameters that every certificate shares.
fn subject(role: &str, name: &str, life: Duration, now_ms: u64) -> CertificateParams {
    let now = OffsetDateTime::UNIX_EPOCH + Duration::from_millis(now_ms);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Anabranch");
    params.distinguished_name.push(DnType::OrganizationalUnitName, role);
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.not_before = now.checked_sub(time::Duration::try_from(BACKDATED).unwrap_or_default()).unwrap_or(now);
    params.not_after = now.saturating_add(time::Duration::try_from(life).unwrap_or(time::Duration::MAX));
    params
}

/// A positive serial number of 16 bytes that follows from the public key.
fn serial_of(spki_der: &[u8]) -> SerialNumber {
    let mut serial = Digest::of(&[b"anabranch certificate serial".as_slice(), spki_der].concat()).0;
    serial[0] = (serial[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&serial[..16])
}

/// Fails when the CA is not valid yet, or no longer: nobody would accept what it issues, and the clock is the likely cause.
pub(super) fn check_clock(ca_der: &[u8], now_ms: u64) -> Result<(), IdentityError> {
    let Ok((_, certificate)) = X509Certificate::from_der(ca_der) else { return Ok(()) };
    let (from, until) = (certificate.validity().not_before.timestamp(), certificate.validity().not_after.timestamp());
    let now = i64::try_from(now_ms / 1000).unwrap_or(i64::MAX);
    if (from..=until).contains(&now) {
        return Ok(());
    }
    Err(IdentityError::Clock { now: utc(now), from: utc(from), until: utc(until) })
}

fn utc(unix_s: i64) -> String {
    let format = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    let moment = OffsetDateTime::from_unix_timestamp(unix_s).ok();
    moment.and_then(|moment| moment.format(&format).ok()).unwrap_or_else(|| format!("{unix_s} s after 1970"))
}

/// Returns the Unix time in seconds at which a certificate expires; 0 where it cannot be read.
pub(super) fn expires_at_s(certificate_der: &[u8]) -> i64 {
    X509Certificate::from_der(certificate_der)
        .map_or(0, |(_, certificate)| certificate.validity().not_after.timestamp())
}

/// Whether two thirds of a certificate's life are over.
pub(super) fn is_due(certificate_der: &[u8], now_ms: u64) -> bool {
    X509Certificate::from_der(certificate_der).map_or(true, |(_, certificate)| {
        let validity = certificate.validity();
        let (start, end) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        let now = i64::try_from(now_ms / 1000).unwrap_or(i64::MAX);
        now >= start.saturating_add(end.saturating_sub(start) / 3 * 2)
    })
}

/// Whether the certificate is good for each of `names`.
pub(super) fn covers(certificate_der: &[u8], names: &[String]) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate_der) else { return false };
    let Ok(Some(listed)) = certificate.subject_alternative_name() else { return names.is_empty() };
    names.iter().all(|name| {
        let address: Option<Vec<u8>> = name.parse().ok().map(|ip| match ip {
            std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
            std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
        });
        listed.value.general_names.iter().any(|listed| match listed {
            GeneralName::DNSName(listed) => address.is_none() && listed.eq_ignore_ascii_case(name),
            GeneralName::IPAddress(listed) => address.as_deref() == Some(*listed),
            _ => false,
        })
    })
}

/// Whether the issuer's key signed the certificate.
pub(super) fn signed_by(certificate_der: &[u8], issuer_der: &[u8]) -> bool {
    let (Ok((_, certificate)), Ok((_, issuer))) =
        (X509Certificate::from_der(certificate_der), X509Certificate::from_der(issuer_der))
    else {
        return false;
    };
    certificate.verify_signature(Some(issuer.public_key())).is_ok()
}

/// The public key of a certificate, SubjectPublicKeyInfo in DER.
pub(super) fn public_key(certificate_der: &[u8]) -> Option<Vec<u8>> {
    let (_, certificate) = X509Certificate::from_der(certificate_der).ok()?;
    Some(certificate.tbs_certificate.subject_pki.raw.to_vec())
}

//! Trust in a server whose CA is known by its fingerprint only.

use std::sync::Arc;
use std::time::Duration;

use anabranch_common::ids::Digest;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

/// Accepts a server chain that ends in a CA with one of these fingerprints and that verifies against that CA, for the server's
/// name and the present time: what WebPKI does, with a CA that the server brings along.
#[derive(Debug)]
pub(super) struct PinnedCa {
    fingerprints: Vec<Digest>,
    provider: Arc<CryptoProvider>,
    /// Whether certificates are judged at a moment of their own life, not at the present time.
    at_any_time: bool,
}

impl PinnedCa {
    pub(super) fn new(fingerprints: &[Digest], provider: Arc<CryptoProvider>) -> Self {
        Self { fingerprints: fingerprints.to_vec(), provider, at_any_time: false }
    }

    /// The same for questions whose answers tell whose clock is wrong: certificates count as if they were valid now.
    pub(super) fn at_any_time(self) -> Self {
        Self { at_any_time: true, ..self }
    }

    /// The time at which these certificates are judged.
    fn time(&self, certificates: [&CertificateDer<'_>; 2], now: UnixTime) -> UnixTime {
        if !self.at_any_time {
            return now;
        }
        let lives = || certificates.into_iter().filter_map(|certificate| super::validity(certificate).ok());
        let moment = |seconds: i64| u64::try_from(seconds).unwrap_or(0);
        let from_s = lives().map(|(from_s, _)| moment(from_s)).max().unwrap_or(0);
        let until_s = lives().map(|(_, until_s)| moment(until_s)).min().unwrap_or(u64::MAX);
        UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs().min(until_s).max(from_s)))
    }
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let unknown = || Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let ca = intermediates.last().ok_or_else(unknown)?;
        if !self.fingerprints.contains(&Digest::of(ca)) {
            return Err(unknown());
        }
        let roots = Arc::new(super::Authorities::from(ca).roots()?);
        let webpki = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&self.provider))
            .build()
            .map_err(|_| unknown())?;
        let now = self.time([end_entity, ca], now);
        webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

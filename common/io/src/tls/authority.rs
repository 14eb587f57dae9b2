//! The CAs that one side trusts: one, or during a rollover the present one and the next.

use anabranch_common::ids::Digest;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::provider;

/// CAs that one side trusts, each by its certificate in DER. A server shows the first one beside its own certificate,
/// which that CA has issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorities(Vec<Vec<u8>>);

impl Authorities {
    /// Trusts these CAs; none of them means that nobody is trusted.
    #[must_use]
    pub fn new(ca_ders: Vec<Vec<u8>>) -> Self {
        Self(ca_ders)
    }

    /// Returns the certificates in DER.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(Vec::as_slice)
    }

    /// Returns how many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns BLAKE3 over each certificate.
    #[must_use]
    pub fn fingerprints(&self) -> Vec<Digest> {
        self.iter().map(Digest::of).collect()
    }

    pub(super) fn roots(&self) -> Result<RootCertStore, rustls::Error> {
        let mut roots = RootCertStore::empty();
        for der in self.iter() {
            roots.add(CertificateDer::from(der.to_vec()))?;
        }
        Ok(roots)
    }
}

impl From<&[u8]> for Authorities {
    fn from(ca_der: &[u8]) -> Self {
        Self(vec![ca_der.to_vec()])
    }
}

impl From<&Vec<u8>> for Authorities {
    fn from(ca_der: &Vec<u8>) -> Self {
        Self::from(ca_der.as_slice())
    }
}

impl From<&CertificateDer<'_>> for Authorities {
    fn from(ca_der: &CertificateDer<'_>) -> Self {
        Self::from(ca_der.as_ref())
    }
}

impl From<&Self> for Authorities {
    fn from(same: &Self) -> Self {
        same.clone()
    }
}

/// Returns the name of a CA's key, by its own certificate in DER: a digest of the subject key identifier.
#[must_use]
pub fn authority_id(ca_der: &[u8]) -> Option<Digest> {
    let (_, certificate) = X509Certificate::from_der(ca_der).ok()?;
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(key) => Some(Digest::of(key.0)),
        _ => None,
    })
}

/// Returns the name of the CA's key that a certificate in DER says it was issued with. Does not verify anything.
pub(super) fn issuer_id(certificate: &X509Certificate<'_>) -> Option<Digest> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(authority) => {
            authority.key_identifier.as_ref().map(|key| Digest::of(key.0))
        }
        _ => None,
    })
}

/// Returns whether a server's certificate was issued by this CA, and is valid for one of its own names at a moment of its life.
/// All arguments are DER.
#[must_use]
pub fn is_of_authority(certificate_der: &[u8], ca_der: &[u8]) -> bool {
    let verify = || {
        let roots = Authorities::from(ca_der).roots().ok()?;
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider()).build().ok()?;
        let (from_s, _) = super::validity(certificate_der).ok()?;
        let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(u64::try_from(from_s).ok()?));
        // Every server certificate is valid for this name.
        let name = ServerName::try_from("localhost").ok()?;
        let certificate = CertificateDer::from(certificate_der);
        verifier.verify_server_cert(&certificate, &[], &name, &[], at).ok()
    };
    verify().is_some()
}

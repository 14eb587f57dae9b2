//! The agent's key and certificate. The key is made here and never leaves.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anabranch_common::ids::AgentId;
use anabranch_io::tls;
use rcgen::{CertificateParams, KeyPair, PublicKeyData as _};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::config::AgentDir;
use crate::files::{self, PRIVATE, PUBLIC};

/// Why key or certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file is missing or cannot be read or written.
    #[error("{} cannot be used: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} does not hold a {what}: {detail}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// A key or a request could not be made.
    #[error("a key or a signing request cannot be made: {0}")]
    Crypto(String),
}

/// The private key.
#[derive(Debug)]
pub struct AgentKey(KeyPair);

impl AgentKey {
    /// Reads the key in `dir`, or makes one and stores it: a join that is tried again uses the same key.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn read_or_make(dir: &AgentDir) -> Result<Self, IdentityError> {
        let path = dir.key();
        if path.exists() {
            return Self::read(dir);
        }
        let key = KeyPair::generate().map_err(|error| IdentityError::Crypto(error.to_string()))?;
        let at = |source| IdentityError::File { path: path.clone(), source };
        files::create_private_dir(path.parent().unwrap_or(dir.path())).map_err(at)?;
        files::write_atomic(&path, key.serialize_pem().as_bytes(), PRIVATE).map_err(at)?;
        Ok(Self(key))
    }

    /// Reads the key in `dir`.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn read(dir: &AgentDir) -> Result<Self, IdentityError> {
        let path = dir.key();
        let pem = match fs::read_to_string(&path) {
            Ok(pem) => pem,
            Err(source) => return Err(IdentityError::File { path, source }),
        };
        let content =
            |error: rcgen::Error| IdentityError::Content { path, what: "private key", detail: error.to_string() };
        KeyPair::from_pem(&pem).map(Self).map_err(content)
    }

    /// Whose key this is.
    #[must_use]
    pub fn agent(&self) -> AgentId {
        AgentId::of_public_key(&self.0.subject_public_key_info())
    }

    /// A certificate signing request, in DER. Only the key in it counts.
    ///
    /// # Errors
    /// The key cannot sign.
    pub fn signing_request(&self) -> Result<Vec<u8>, IdentityError> {
        let crypto = |error: rcgen::Error| IdentityError::Crypto(error.to_string());
        let request = CertificateParams::default().serialize_request(&self.0).map_err(crypto)?;
        Ok(request.der().to_vec())
    }

    /// The key, PKCS#8 in DER.
    #[must_use]
    pub fn to_der(&self) -> Vec<u8> {
        self.0.serialize_der()
    }
}

/// Reads a certificate in PEM.
///
/// # Errors
/// See [`IdentityError`].
pub fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, IdentityError> {
    let bytes = fs::read(path).map_err(|source| IdentityError::File { path: path.to_path_buf(), source })?;
    CertificateDer::from_pem_slice(&bytes).map_err(|error| IdentityError::Content {
        path: path.to_path_buf(),
        what: "certificate",
        detail: error.to_string(),
    })
}

/// Writes a certificate as PEM, in one step.
///
/// # Errors
/// The system's.
pub fn write_certificate(path: &Path, der: &[u8]) -> Result<(), IdentityError> {
    let at = |source| IdentityError::File { path: path.to_path_buf(), source };
    files::create_private_dir(path.parent().unwrap_or(path)).map_err(at)?;
    files::write_atomic(path, to_pem(der).as_bytes(), PUBLIC).map_err(at)
}

fn to_pem(der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut body = String::with_capacity(der.len().div_ceil(3) * 4 + der.len() / 48 + 64);
    body.push_str("-----BEGIN CERTIFICATE-----\n");
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
            for place in 0..4 {
                let filled = place <= group.len();
                let index = (bits >> (18 - 6 * place)) & 63;
                body.push(if filled { char::from(ALPHABET[index as usize]) } else { '=' });
            }
        }
        body.push('\n');
    }
    body.push_str("-----END CERTIFICATE-----\n");
    body
}

/// First and last moment of a certificate's life, Unix time in milliseconds.
///
/// # Errors
/// The bytes are not a certificate.
pub fn validity_ms(der: &[u8]) -> Result<(u64, u64), IdentityError> {
    let (from_s, to_s) = tls::validity(der).map_err(|error| IdentityError::Crypto(error.to_string()))?;
    let ms = |seconds: i64| u64::try_from(seconds).unwrap_or(0).saturating_mul(1000);
    Ok((ms(from_s), ms(to_s)))
}

/// When to renew a certificate: after two thirds of its life.
#[must_use]
pub fn renew_at_ms((from_ms, to_ms): (u64, u64)) -> u64 {
    from_ms + to_ms.saturating_sub(from_ms) / 3 * 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_directory_gives_the_same_key() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let dir = AgentDir::new(dir.path().join("agent"));
        let first = AgentKey::read_or_make(&dir).expect("made");
        let second = AgentKey::read_or_make(&dir).expect("read");
        assert_eq!(first.agent(), second.agent());
        assert!(first.signing_request().expect("signed").len() > 64);
    }

    /// Guards the PEM writer against every length of the last group.
    #[test]
    fn certificates_are_read_as_they_were_written() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for len in 1..100u8 {
            let der: Vec<u8> = (0..len).map(|i| i.wrapping_mul(37)).collect();
            let path = dir.path().join("a.crt");
            write_certificate(&path, &der).expect("written");
            assert_eq!(read_certificate(&path).expect("read").as_ref(), &der[..]);
        }
    }

    #[test]
    fn renewal_is_due_after_two_thirds() {
        assert_eq!(renew_at_ms((1_000, 4_000)), 3_000);
    }
}

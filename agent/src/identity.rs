//! The agent's key and certificate, and the CAs that it trusts. The key is made here and never leaves.
//!
//! A new key comes into use together with its certificate, however the process ends meanwhile:
//!
//! ```text
//!  agent.key.next is written ─► signed request ─► agent.crt.next is written: from here on the next pair counts
//!                                                   └─► agent.key.next becomes agent.key ─► agent.crt.next becomes agent.crt
//! ```

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use anabranch_common::ids::AgentId;
use anabranch_common::limits;
use anabranch_io::tls::{self, Authorities};
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
        if path.exists() { Self::read(dir) } else { Self::make(dir, path) }
    }

    fn make(dir: &AgentDir, path: PathBuf) -> Result<Self, IdentityError> {
        let key = KeyPair::generate().map_err(|error| IdentityError::Crypto(error.to_string()))?;
        let at = |source| IdentityError::File { path: path.clone(), source };
        files::create_private_dir(path.parent().unwrap_or(dir.path())).map_err(at)?;
        files::write_atomic(&path, key.serialize_pem().as_bytes(), PRIVATE).map_err(at)?;
        Ok(Self(key))
    }

    /// Reads the key in `dir` that counts.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn read(dir: &AgentDir) -> Result<Self, IdentityError> {
        let has_next = dir.next_certificate().exists() && dir.next_key().exists();
        Self::read_file(if has_next { dir.next_key() } else { dir.key() })
    }

    /// Reads the key that is to take the place of the present one, or makes one and stores it: a renewal that is tried again
    /// uses the same key.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn read_or_make_next(dir: &AgentDir) -> Result<Self, IdentityError> {
        settle(dir)?;
        let path = dir.next_key();
        if path.exists() { Self::read_file(path) } else { Self::make(dir, path) }
    }

    fn read_file(path: PathBuf) -> Result<Self, IdentityError> {
        let pem = match fs::read_to_string(&path) {
            Ok(pem) => pem,
            Err(source) => return Err(IdentityError::File { path, source }),
        };
        let content =
            |error: rcgen::Error| IdentityError::Content { path, what: "private key", detail: error.to_string() };
        KeyPair::from_pem(&pem).map(Self).map_err(content)
    }

    /// Returns the id that belongs to this key: the agent's, unless its first key was replaced.
    #[must_use]
    pub fn id(&self) -> AgentId {
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

/// Reads the certificate in `dir` that counts.
///
/// # Errors
/// See [`IdentityError`].
pub fn own_certificate(dir: &AgentDir) -> Result<CertificateDer<'static>, IdentityError> {
    let next = dir.next_certificate();
    read_certificate(&if next.exists() { next } else { dir.certificate() })
}

/// Brings a certificate for the next key into use, together with that key.
///
/// # Errors
/// The system's. Either pair counts then, and both were issued to this agent.
pub fn replace_pair(dir: &AgentDir, certificate_der: &[u8]) -> Result<(), IdentityError> {
    write_certificate(&dir.next_certificate(), certificate_der)?;
    settle(dir)
}

/// Ends a replacement of key and certificate that was cut off.
///
/// # Errors
/// The system's.
pub fn settle(dir: &AgentDir) -> Result<(), IdentityError> {
    let certificate = dir.next_certificate();
    if !certificate.exists() {
        return Ok(());
    }
    let rename = |from: &Path, to: &Path| {
        let renamed = fs::rename(from, to).and_then(|()| files::sync_folder(to));
        renamed.map_err(|source| IdentityError::File { path: to.to_path_buf(), source })
    };
    if dir.next_key().exists() {
        rename(&dir.next_key(), &dir.key())?;
    }
    rename(&certificate, &dir.certificate())
}

/// Reads the CAs that are trusted.
///
/// # Errors
/// See [`IdentityError`].
pub fn read_authorities(path: &Path) -> Result<Authorities, IdentityError> {
    let file = |source| IdentityError::File { path: path.to_path_buf(), source };
    let content = |detail: String| IdentityError::Content { path: path.to_path_buf(), what: "certificate", detail };
    let mut bytes = Vec::new();
    let opened = fs::File::open(path).map_err(file)?;
    opened.take(limits::AUTHORITIES_FILE_BYTES).read_to_end(&mut bytes).map_err(file)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|error| content(error.to_string()))?;
    if !(1..=limits::AUTHORITIES).contains(&found.len()) {
        return Err(content(format!("{} certificates, expected 1 to {}", found.len(), limits::AUTHORITIES)));
    }
    Ok(Authorities::new(found.iter().map(|der| der.to_vec()).collect()))
}

/// Writes the CAs that are trusted as PEM, in one step.
///
/// # Errors
/// The system's.
pub fn write_authorities(path: &Path, authorities: &Authorities) -> Result<(), IdentityError> {
    write_pem(path, &authorities.iter().map(to_pem).collect::<String>())
}

/// Returns the agent that a certificate names.
///
/// # Errors
/// It names nobody.
pub fn agent_of(certificate_der: &[u8]) -> Result<AgentId, IdentityError> {
    let peer = tls::parse_peer(certificate_der).map_err(|error| IdentityError::Crypto(error.to_string()))?;
    Ok(peer.agent)
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
    write_pem(path, &to_pem(der))
}

fn write_pem(path: &Path, pem: &str) -> Result<(), IdentityError> {
    let at = |source| IdentityError::File { path: path.to_path_buf(), source };
    files::create_private_dir(path.parent().unwrap_or(path)).map_err(at)?;
    files::write_atomic(path, pem.as_bytes(), PUBLIC).map_err(at)
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
        assert_eq!(first.id(), second.id());
        assert!(first.signing_request().expect("signed").len() > 64);
    }

    /// A crash between any two steps leaves a pair that belongs together.
    #[test]
    fn a_new_key_and_its_certificate_come_into_use_together() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let dir = AgentDir::new(folder.path().join("agent"));
        let first = AgentKey::read_or_make(&dir).expect("made");
        write_certificate(&dir.certificate(), b"first").expect("written");
        let next = AgentKey::read_or_make_next(&dir).expect("made");
        assert_ne!(next.id(), first.id());
        let pair = || {
            let certificate = own_certificate(&dir).expect("read").to_vec();
            (AgentKey::read(&dir).expect("read").id(), certificate)
        };
        assert_eq!(pair(), (first.id(), b"first".to_vec()), "a key without a certificate does not count");
        assert_eq!(AgentKey::read_or_make_next(&dir).expect("read").id(), next.id(), "another attempt, the same key");
        let expected = (next.id(), b"second".to_vec());
        write_certificate(&dir.next_certificate(), b"second").expect("written");
        assert_eq!(pair(), expected, "killed before the key was renamed");
        fs::rename(dir.next_key(), dir.key()).expect("renamed");
        assert_eq!(pair(), expected, "killed before the certificate was renamed");
        settle(&dir).expect("settled");
        assert_eq!(pair(), expected);
        assert!(!dir.next_certificate().exists() && !dir.next_key().exists());
        assert_ne!(
            AgentKey::read_or_make_next(&dir).expect("made").id(),
            next.id(),
            "each rotation has a key of its own"
        );
        replace_pair(&dir, b"third").expect("replaced");
        assert_eq!(pair().1, b"third");
    }

    #[test]
    fn one_ca_is_trusted_or_two() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("ca.crt");
        let cas = |count: u8| Authorities::new((0..count).map(|n| vec![n; 70]).collect());
        for count in [1, 2] {
            write_authorities(&path, &cas(count)).expect("written");
            assert_eq!(read_authorities(&path).expect("read"), cas(count));
        }
        for count in [0, 3] {
            write_authorities(&path, &cas(count)).expect("written");
            let error = read_authorities(&path).expect_err("none, or too many").to_string();
            assert!(error.contains("expected 1 to 2"), "{error}");
        }
        write_authorities(&path, &cas(1)).expect("written");
        let pem = fs::read_to_string(&path).expect("read");
        let comment = "#\n".repeat(usize::try_from(limits::AUTHORITIES_FILE_BYTES).expect("small") / 2);
        fs::write(&path, format!("{comment}{pem}")).expect("written");
        assert!(read_authorities(&path).is_err(), "behind what is read of the file");
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

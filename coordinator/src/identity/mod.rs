//! Who is who: the CA of a coordinator, and the certificates it issues.
//!
//! ```text
//!  tls/ca.crt  ca.key         10 years; its BLAKE3 is in every join token
//!  tls/server.crt  .key        2 years; O=Anabranch OU=server, every name under which agents reach it
//!  tls/operator.crt .key       2 years; O=Anabranch OU=operator, what `status`, `pause` and the like show
//!  an agent's certificate     30 days; O=Anabranch OU=agent CN=its name, for the key of its request
//! ```
//! An identity is a key: [`AgentId::of_public_key`]. Names are for people. Time is an argument, Unix milliseconds.

mod files;
mod issue;
pub mod run;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anabranch_common::ids::{AgentId, Digest};
use rcgen::{Issuer, KeyPair};
use rustls::pki_types::CertificateDer;

/// Name of the folder with keys and certificates in a coordinator's directory.
pub const FOLDER: &str = "tls";

/// A certificate and its private key.
pub struct Credential {
    /// The certificate, in DER.
    pub certificate_der: Vec<u8>,
    /// The private key, PKCS#8 in DER.
    pub key_der: Vec<u8>,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential").field("certificate", &Digest::of(&self.certificate_der)).finish_non_exhaustive()
    }
}

/// The keys and certificates of one coordinator.
#[derive(Debug)]
pub struct Identity {
    dir: PathBuf,
    ca_der: Vec<u8>,
    ca: Issuer<'static, KeyPair>,
    server: Credential,
    operator: Credential,
}

/// An agent's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// Whose it is: follows from the key alone.
    pub agent: AgentId,
    /// The certificate, in DER.
    pub certificate_der: Vec<u8>,
}

/// Why keys and certificates could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// There is one already, and it is never overwritten: agents pin its CA.
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file does not hold what its name says.
    #[error("{} is not usable: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A name that cannot stand in a certificate.
    #[error("{0:?} is neither a host name nor an IP address")]
    BadName(String),
    /// The CA's certificate is not valid at this machine's clock.
    #[error("the run's CA is valid from {from} to {until}, but this machine's clock says {now}")]
    Clock {
        /// What the clock says, in UTC.
        now: String,
        /// From when the certificate is valid.
        from: String,
        /// Until when.
        until: String,
    },
    /// The cryptography library refused.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
}

/// Why an agent got no certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// The request cannot be read, or is not signed by the key it is for.
    #[error("the request for a certificate is not readable or not signed by its own key")]
    BadRequest,
    /// The name cannot stand in a certificate.
    #[error("an agent's name {0}")]
    BadName(String),
    /// The cryptography library refused.
    #[error("cannot make a certificate: {0}")]
    Certificate(String),
}

impl Identity {
    /// Makes CA, server and operator certificates in `dir/tls`, all at once: either every file is there afterwards or
    /// none. The server's certificate is good for `names` and for localhost, 127.0.0.1 and ::1.
    ///
    /// # Errors
    /// There is a `tls` already, a name is no name, or a file cannot be written.
    pub fn create(dir: &Path, names: &[String], now_ms: u64) -> Result<Self, IdentityError> {
        let tls = dir.join(FOLDER);
        if tls.symlink_metadata().is_ok() {
            return Err(IdentityError::Exists(tls));
        }
        let (ca_certificate, ca) = issue::authority(now_ms)?;
        let server = issue::server(&ca, names, now_ms)?;
        let operator = issue::operator(&ca, now_ms)?;
        let partial = dir.join(format!("{FOLDER}.partial"));
        files::fresh_folder(&partial)?;
        files::write_secret(&partial.join("ca.key"), &ca.key().serialize_pem())?;
        files::write_public(&partial.join("ca.crt"), &ca_certificate)?;
        files::write_credential(&partial, "server", &server, ca_certificate.as_slice())?;
        files::write_credential(&partial, "operator", &operator, &[])?;
        files::rename(&partial, &tls)?;
        Ok(Self { dir: tls, ca_der: ca_certificate, ca, server, operator })
    }

    /// Reads `dir/tls` and checks that keys and certificates belong together.
    ///
    /// # Errors
    /// A file is missing, unreadable or not what it should be.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        let tls = dir.join(FOLDER);
        let ca = files::read_credential(&tls, "ca")?;
        let server = files::read_credential(&tls, "server")?;
        let operator = files::read_credential(&tls, "operator")?;
        let damaged = |error: rcgen::Error| files::damaged(&tls.join("ca.key"), error.to_string());
        let key = KeyPair::try_from(ca.key_der.as_slice()).map_err(damaged)?;
        let certificate = CertificateDer::from(ca.certificate_der.as_slice());
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| files::damaged(&tls.join("ca.crt"), error.to_string()))?;
        for (name, credential) in [("server", &server), ("operator", &operator)] {
            if !issue::signed_by(&credential.certificate_der, &ca.certificate_der) {
                let problem = "it was not issued by ca.crt".to_owned();
                return Err(files::damaged(&tls.join(format!("{name}.crt")), problem));
            }
        }
        Ok(Self { dir: tls, ca_der: ca.certificate_der, ca: issuer, server, operator })
    }

    /// The CA's certificate, in DER.
    #[must_use]
    pub fn ca_der(&self) -> &[u8] {
        &self.ca_der
    }

    /// BLAKE3 over the CA's certificate: what a join token pins.
    #[must_use]
    pub fn ca_fingerprint(&self) -> Digest {
        Digest::of(&self.ca_der)
    }

    /// The server's certificate and key. The server presents this certificate followed by [`ca_der`](Self::ca_der).
    #[must_use]
    pub fn server(&self) -> &Credential {
        &self.server
    }

    /// The operator's certificate and key.
    #[must_use]
    pub fn operator(&self) -> &Credential {
        &self.operator
    }

    /// Each certificate in `tls/`, by the name of its file, with the Unix time in seconds at which it expires.
    #[must_use]
    pub fn expiries(&self) -> [(&'static str, i64); 3] {
        let certificates = [
            ("ca", &self.ca_der),
            ("server", &self.server.certificate_der),
            ("operator", &self.operator.certificate_der),
        ];
        certificates.map(|(name, der)| (name, issue::expires_at_s(der)))
    }

    /// Issues a certificate for the key of `csr_der` (PKCS#10, DER). Nothing else in the request counts: name, role and
    /// life are set here. The serial number follows from the key, so that the same key always gets an equivalent
    /// certificate.
    ///
    /// # Errors
    /// See [`IssueError`].
    pub fn issue_agent(
        &self,
        csr_der: &[u8],
        name: &str,
        lifetime_days: u32,
        now_ms: u64,
    ) -> Result<Issued, IssueError> {
        issue::agent(&self.ca, csr_der, name, lifetime_days, now_ms)
    }

    /// Issues the server's and the operator's certificates anew when two thirds of their life are over, and the
    /// server's also when it lacks one of `names`. Says which were renewed. Keys stay.
    ///
    /// # Errors
    /// The CA is not valid at `now_ms`, a name is no name, or a file cannot be written; the old certificates stay in
    /// place then.
    pub fn renew(&mut self, names: &[String], now_ms: u64) -> Result<Vec<&'static str>, IdentityError> {
        issue::check_clock(&self.ca_der, now_ms)?;
        let mut renewed = Vec::new();
        let certificate = &self.server.certificate_der;
        if issue::is_due(certificate, now_ms) || !issue::covers(certificate, names) {
            self.server = issue::server_for_key(&self.ca, &self.server.key_der, names, now_ms)?;
            files::replace_certificate(&self.dir, "server", &self.server, &self.ca_der)?;
            renewed.push("server");
        }
        if issue::is_due(&self.operator.certificate_der, now_ms) {
            self.operator = issue::operator_for_key(&self.ca, &self.operator.key_der, now_ms)?;
            files::replace_certificate(&self.dir, "operator", &self.operator, &[])?;
            renewed.push("operator");
        }
        Ok(renewed)
    }
}

/// Returns the agent whose key a certificate request is for.
///
/// # Errors
/// The request is damaged, or its own key did not sign it.
pub fn requester(csr_der: &[u8]) -> Result<AgentId, IssueError> {
    issue::requester(csr_der)
}

/// Reads an operator's certificate and key from two PEM files.
///
/// # Errors
/// A file is missing, unreadable or not what it should be.
pub fn read_pair(certificate: &Path, key: &Path) -> Result<Credential, IdentityError> {
    files::read_pair(certificate, key)
}

/// Reads a certificate from a PEM file, in DER.
///
/// # Errors
/// The file is missing, unreadable or holds no certificate.
pub fn read_certificate(path: &Path) -> Result<Vec<u8>, IdentityError> {
    files::read_certificate(path)
}

/// Whether `name` is a host name or an IP address, without a port.
#[must_use]
pub fn is_server_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    name.parse::<IpAddr>().is_ok()
        || (name.len() <= 253
            && name.split('.').all(label)
            && !name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit())))
}

#[cfg(test)]
mod tests;

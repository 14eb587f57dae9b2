//! Who is who: the CA of a coordinator, and the certificates it issues.
//!
//! ```text
//!  tls/ca.crt  ca.key         10 years; its BLAKE3 is in every join token
//!  tls/next/                  during a rollover the same files of the CA that takes its place (see `rollover`)
//!  tls/server.crt  .key        2 years; O=Anabranch OU=server, every name under which agents reach it
//!  tls/operator.crt .key       2 years; O=Anabranch OU=operator, what `status`, `pause` and the like show
//!  an agent's certificate     30 days; O=Anabranch OU=agent CN=its name, for the key of its request
//! ```
//! An identity is that of the first key: [`AgentId::of_public_key`]. A certificate for a later key says whose it is, with
//! `serialNumber=<id>` in its subject. Names are for people. Time is an argument, Unix milliseconds.

mod files;
mod issue;
mod own;
mod rollover;
pub mod run;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anabranch_common::ids::{AgentId, Digest};
use anabranch_io::tls::Authorities;
use own::OwnSet;

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
    own: OwnSet,
    /// During a rollover.
    next: Option<OwnSet>,
}

/// Whom a certificate names.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    /// Its identity.
    pub agent: AgentId,
    /// Its name.
    pub name: &'a str,
}

/// An agent's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// Whose it is.
    pub agent: AgentId,
    /// The id of its key: another one once the first key was replaced.
    pub key: AgentId,
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
    /// There is no next CA.
    #[error("no rollover to a new CA is under way")]
    NoRollover,
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
        let own = OwnSet::create(&tls, &dir.join(format!("{FOLDER}.partial")), names, now_ms)?;
        Ok(Self { dir: tls, own, next: None })
    }

    /// Reads `dir/tls` and checks that keys and certificates belong together. Changes nothing.
    ///
    /// # Errors
    /// A file is missing, unreadable or not what it should be.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        let tls = dir.join(FOLDER);
        let (own, next) = rollover::load(&tls)?;
        Ok(Self { dir: tls, own, next })
    }

    /// The certificate of the CA whose certificates the server shows, in DER.
    #[must_use]
    pub fn ca_der(&self) -> &[u8] {
        &self.own.ca_der
    }

    /// During a rollover the certificate of the next CA, in DER.
    #[must_use]
    pub fn next_ca_der(&self) -> Option<&[u8]> {
        self.next.as_ref().map(|next| next.ca_der.as_slice())
    }

    /// The CAs that are trusted. The first one has issued the server's certificate.
    #[must_use]
    pub fn authorities(&self) -> Authorities {
        let next = self.next.iter().map(|next| next.ca_der.clone());
        Authorities::new(std::iter::once(self.own.ca_der.clone()).chain(next).collect())
    }

    /// BLAKE3 over the CA's certificate: what a join token pins, beside that of the next CA during a rollover.
    #[must_use]
    pub fn ca_fingerprint(&self) -> Digest {
        Digest::of(&self.own.ca_der)
    }

    /// The server's certificate and key. The server presents this certificate followed by [`ca_der`](Self::ca_der).
    #[must_use]
    pub fn server(&self) -> &Credential {
        &self.own.server
    }

    /// The operator's certificate and key.
    #[must_use]
    pub fn operator(&self) -> &Credential {
        &self.own.operator
    }

    /// Each certificate in `tls/`, by the path of its file without its ending, with the Unix time in seconds at which it
    /// expires.
    #[must_use]
    pub fn expiries(&self) -> Vec<(&'static str, i64)> {
        let next = self.next.as_ref().map(|next| {
            let [ca, server, operator] = next.expiries().map(|(_, at_s)| at_s);
            [("next/ca", ca), ("next/server", server), ("next/operator", operator)]
        });
        self.own.expiries().into_iter().chain(next.into_iter().flatten()).collect()
    }

    /// Issues a certificate for the key of `csr_der` (PKCS#10, DER) to the agent with that key. Nothing else in the request
    /// counts: name, role and life are set here. The serial number follows from the key, so that the same key always gets
    /// an equivalent certificate. During a rollover the next CA issues it.
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
        let agent = issue::requester(csr_der)?;
        self.issue_member(Member { agent, name }, csr_der, lifetime_days, now_ms)
    }

    /// Issues a certificate likewise to a member, whose present key may be another one than its first.
    ///
    /// # Errors
    /// See [`IssueError`].
    pub fn issue_member(
        &self,
        member: Member<'_>,
        csr_der: &[u8],
        lifetime_days: u32,
        now_ms: u64,
    ) -> Result<Issued, IssueError> {
        let newest = self.next.as_ref().unwrap_or(&self.own);
        issue::agent(&newest.ca, member, csr_der, lifetime_days, now_ms)
    }

    /// Issues the server's and the operator's certificates anew when two thirds of their life are over, and the server's
    /// also when it lacks one of `names`; during a rollover those of both CAs. Says which were renewed. Keys stay.
    ///
    /// # Errors
    /// A CA is not valid at `now_ms`, a name is no name, or a file cannot be written; the old certificates stay in
    /// place then.
    pub fn renew(&mut self, names: &[String], now_ms: u64) -> Result<Vec<&'static str>, IdentityError> {
        let renewed = self.own.renew(names, now_ms)?;
        if let Some(next) = &mut self.next {
            next.renew(names, now_ms)?;
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

/// Reads the CAs of a coordinator from a PEM file: one, or several one after the other.
///
/// # Errors
/// The file is missing, unreadable or holds no certificate.
pub fn read_authorities(path: &Path) -> Result<Authorities, IdentityError> {
    files::read_certificates(path).map(Authorities::new)
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

//! A CA with the certificates of the coordinator's own that it has issued: a folder with six files.

use std::path::{Path, PathBuf};

use rcgen::{Issuer, KeyPair};
use rustls::pki_types::CertificateDer;

use super::{Credential, IdentityError, files, issue};

/// The files of a folder.
pub(super) const FILES: [&str; 6] = ["ca.key", "ca.crt", "server.key", "server.crt", "operator.key", "operator.crt"];

/// A CA, and what it has issued for the coordinator itself.
#[derive(Debug)]
pub(super) struct OwnSet {
    pub(super) folder: PathBuf,
    pub(super) ca_der: Vec<u8>,
    pub(super) ca: Issuer<'static, KeyPair>,
    pub(super) server: Credential,
    pub(super) operator: Credential,
}

impl OwnSet {
    /// Makes everything in `partial`, and renames that to `folder`: either every file is there afterwards or none.
    ///
    /// # Errors
    /// A name is no name, or a file cannot be written.
    pub(super) fn create(folder: &Path, partial: &Path, names: &[String], now_ms: u64) -> Result<Self, IdentityError> {
        let (ca_der, ca) = issue::authority(now_ms)?;
        let server = issue::server(&ca, names, now_ms)?;
        let operator = issue::operator(&ca, now_ms)?;
        files::fresh_folder(partial)?;
        files::write_secret(&partial.join("ca.key"), &ca.key().serialize_pem())?;
        files::write_public(&partial.join("ca.crt"), &ca_der)?;
        files::write_credential(partial, "server", &server, &ca_der)?;
        files::write_credential(partial, "operator", &operator, &[])?;
        files::sync_folder(partial)?;
        files::rename(partial, folder)?;
        Ok(Self { folder: folder.to_owned(), ca_der, ca, server, operator })
    }

    /// Reads a folder and checks that keys and certificates belong together.
    ///
    /// # Errors
    /// A file is missing, unreadable or not what it should be.
    pub(super) fn load(folder: &Path) -> Result<Self, IdentityError> {
        let ca = files::read_credential(folder, "ca")?;
        let server = files::read_credential(folder, "server")?;
        let operator = files::read_credential(folder, "operator")?;
        let damaged = |error: rcgen::Error| files::damaged(&folder.join("ca.key"), error.to_string());
        let key = KeyPair::try_from(ca.key_der.as_slice()).map_err(damaged)?;
        let certificate = CertificateDer::from(ca.certificate_der.as_slice());
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| files::damaged(&folder.join("ca.crt"), error.to_string()))?;
        for (name, credential) in [("server", &server), ("operator", &operator)] {
            if !issue::signed_by(&credential.certificate_der, &ca.certificate_der) {
                let problem = "it was not issued by ca.crt".to_owned();
                return Err(files::damaged(&folder.join(format!("{name}.crt")), problem));
            }
        }
        Ok(Self { folder: folder.to_owned(), ca_der: ca.certificate_der, ca: issuer, server, operator })
    }

    /// Each certificate, by the name of its file, with the Unix time in seconds at which it expires.
    pub(super) fn expiries(&self) -> [(&'static str, i64); 3] {
        let certificates = [
            ("ca", &self.ca_der),
            ("server", &self.server.certificate_der),
            ("operator", &self.operator.certificate_der),
        ];
        certificates.map(|(name, der)| (name, issue::expires_at_s(der)))
    }

    /// Issues the server's and the operator's certificates anew when two thirds of their life are over, and the server's
    /// also when it lacks one of `names`. Says which were renewed. Keys stay.
    ///
    /// # Errors
    /// The CA is not valid at `now_ms`, a name is no name, or a file cannot be written; the old certificates stay in
    /// place then.
    pub(super) fn renew(&mut self, names: &[String], now_ms: u64) -> Result<Vec<&'static str>, IdentityError> {
        issue::check_clock(&self.ca_der, now_ms)?;
        let mut renewed = Vec::new();
        let certificate = &self.server.certificate_der;
        if issue::is_due(certificate, now_ms) || !issue::covers(certificate, names) {
            self.server = issue::server_for_key(&self.ca, &self.server.key_der, names, now_ms)?;
            files::replace_certificate(&self.folder, "server", &self.server, &self.ca_der)?;
            renewed.push("server");
        }
        if issue::is_due(&self.operator.certificate_der, now_ms) {
            self.operator = issue::operator_for_key(&self.ca, &self.operator.key_der, now_ms)?;
            files::replace_certificate(&self.folder, "operator", &self.operator, &[])?;
            renewed.push("operator");
        }
        Ok(renewed)
    }
}

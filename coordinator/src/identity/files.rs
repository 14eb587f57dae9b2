//! Keys and certificates as PEM files: keys readable by their owner only, everything written whole or not at all.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anabranch_common::limits;
use rcgen::{KeyPair, PublicKeyData as _};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{Credential, IdentityError, issue};

pub(super) fn damaged(path: &Path, problem: String) -> IdentityError {
    IdentityError::Damaged { path: path.to_owned(), problem }
}

fn unwritable(path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    |source| IdentityError::Unwritable { path, source }
}

/// An empty folder that only its owner may enter; what an interrupted attempt left behind is removed.
pub(super) fn fresh_folder(path: &Path) -> Result<(), IdentityError> {
    if path.exists() {
        fs::remove_dir_all(path).map_err(unwritable(path))?;
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(unwritable(path))
}

/// The names in a folder are durable.
pub(super) fn sync_folder(path: &Path) -> Result<(), IdentityError> {
    fs::File::open(path).and_then(|folder| folder.sync_all()).map_err(unwritable(path))
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<(), IdentityError> {
    fs::rename(from, to).map_err(unwritable(to))?;
    sync_folder(to.parent().unwrap_or(Path::new(".")))
}

/// Puts a copy in the place of `to`, whole, with the mode of the original.
pub(super) fn copy_whole(from: &Path, to: &Path) -> Result<(), IdentityError> {
    let mode = fs::metadata(from).map_err(unwritable(from))?.permissions().mode();
    let name = to.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let partial = to.with_file_name(format!("{name}.partial"));
    let text = String::from_utf8(read(from)?).map_err(|error| damaged(from, error.to_string()))?;
    write(&partial, &text, mode)?;
    rename(&partial, to)
}

/// Removes a folder, if it is there.
pub(super) fn remove_folder(path: &Path) -> Result<(), IdentityError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(unwritable(path)(error)),
        _ => Ok(()),
    }
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), IdentityError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(unwritable(path))
}

/// A private key, already in PEM.
pub(super) fn write_secret(path: &Path, pem: &str) -> Result<(), IdentityError> {
    write(path, pem, 0o600)
}

/// A certificate.
pub(super) fn write_public(path: &Path, der: &[u8]) -> Result<(), IdentityError> {
    write(path, &pem_of("CERTIFICATE", der), 0o644)
}

/// `NAME.crt` (followed by `chain`, when there is one) and `NAME.key`.
pub(super) fn write_credential(
    folder: &Path,
    name: &str,
    credential: &Credential,
    chain: &[u8],
) -> Result<(), IdentityError> {
    write(&folder.join(format!("{name}.key")), &pem_of("PRIVATE KEY", &credential.key_der), 0o600)?;
    write(&folder.join(format!("{name}.crt")), &certificates(credential, chain), 0o644)
}

/// Puts a new certificate in the place of the old one, whose key stays.
pub(super) fn replace_certificate(
    folder: &Path,
    name: &str,
    credential: &Credential,
    chain: &[u8],
) -> Result<(), IdentityError> {
    let partial = folder.join(format!("{name}.crt.partial"));
    write(&partial, &certificates(credential, chain), 0o644)?;
    rename(&partial, &folder.join(format!("{name}.crt")))
}

fn certificates(credential: &Credential, chain: &[u8]) -> String {
    let mut text = pem_of("CERTIFICATE", &credential.certificate_der);
    if !chain.is_empty() {
        text.push_str(&pem_of("CERTIFICATE", chain));
    }
    text
}

pub(super) fn read_credential(folder: &Path, name: &str) -> Result<Credential, IdentityError> {
    read_pair(&folder.join(format!("{name}.crt")), &folder.join(format!("{name}.key")))
}

pub(super) fn read_pair(certificate: &Path, key: &Path) -> Result<Credential, IdentityError> {
    let certificate_der = read_certificate(certificate)?;
    let key_pem = read(key)?;
    let key_der = PrivateKeyDer::from_pem_slice(&key_pem)
        .map_err(|error| damaged(key, format!("no private key in it ({error})")))?
        .secret_der()
        .to_vec();
    let pair = KeyPair::try_from(key_der.as_slice()).map_err(|error| damaged(key, error.to_string()))?;
    if issue::public_key(&certificate_der) != Some(pair.subject_public_key_info()) {
        return Err(damaged(certificate, format!("it does not belong to {}", key.display())));
    }
    Ok(Credential { certificate_der, key_der })
}

pub(super) fn read_certificate(path: &Path) -> Result<Vec<u8>, IdentityError> {
    let pem = read(path)?;
    let certificate = CertificateDer::from_pem_slice(&pem)
        .map_err(|error| damaged(path, format!("no certificate in it ({error})")))?;
    Ok(certificate.to_vec())
}

/// Every certificate of a file, in DER: at least one, and at most `limits::AUTHORITIES`.
pub(super) fn read_certificates(path: &Path) -> Result<Vec<Vec<u8>>, IdentityError> {
    let pem = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|error| damaged(path, format!("no certificate in it ({error})")))?;
    if !(1..=limits::AUTHORITIES).contains(&found.len()) {
        let problem = format!("{} certificates in it, expected 1 to {}", found.len(), limits::AUTHORITIES);
        return Err(damaged(path, problem));
    }
    Ok(found.iter().map(|der| der.to_vec()).collect())
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    fs::read(path).map_err(|source| IdentityError::Unreadable { path: PathBuf::from(path), source })
}

fn pem_of(label: &str, der: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new(label, der), config)
}

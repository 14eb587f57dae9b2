//! Blobs as files of their own, so that residuals and payloads do not pass through sled's log.
//!
//! ```text
//!  store/bulk/620000000000000007    the bytes of one blob, and nothing else; the name is its key in hex
//! ```
//! A file is written once, under its final name, and never again: a crash leaves it whole, in part, or not at all, and
//! which of these counts is for the head to say. It names a blob, with its digest, when file and directory have been
//! synced:
//!
//! ```text
//!  files ─► sync ─► directory ─► sync ─► head ─► sled's commit ─► files that it no longer names are removed
//! ```

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anabranch_common::ids::{Digest, Digester};
use anabranch_common::limits;
use anabranch_io::durable::{self, StorageError};
use anabranch_io::faults;

use super::shelf::Content;

/// The files, and which of them are not synced yet.
#[derive(Debug)]
pub(super) struct BlobFiles {
    dir: PathBuf,
    /// Kept open: the kernel reports a failed write-back to descriptors that were open when it happened.
    unsynced: RefCell<Vec<(PathBuf, File)>>,
}

impl BlobFiles {
    /// Opens the files in `dir`, which is created when it is not there.
    pub(super) fn open(dir: PathBuf) -> Result<Self, StorageError> {
        durable::create_private_dir(&dir)?;
        Ok(Self::to_read(dir))
    }

    /// The files in `dir`, whether it is there or not: for whoever only reads.
    pub(super) fn to_read(dir: PathBuf) -> Self {
        Self { dir, unsynced: RefCell::default() }
    }

    /// Where the blob with this key lies.
    pub(super) fn path(&self, key: &[u8]) -> PathBuf {
        let name: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        self.dir.join(name)
    }

    /// Writes a file that is not there yet. It is durable after [`sync`](Self::sync).
    pub(super) fn put(&self, key: &[u8], content: Content<'_>) -> Result<Digest, StorageError> {
        let path = self.path(key);
        let written = File::options().write(true).create_new(true).mode(0o600).open(&path).and_then(|file| {
            let written = write(&file, content);
            if written.is_err() {
                // Where there is no space left, half a residual should not take what there was. The next start would
                // remove it too.
                let _ = fs::remove_file(&path);
            }
            Ok((file, written?))
        });
        let (file, digest) = written.map_err(|source| StorageError::of_io(&path, source))?;
        self.unsynced.borrow_mut().push((path, file));
        Ok(digest)
    }

    /// What a file holds, whole or not; nothing when there is none.
    pub(super) fn read(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        let path = self.path(key);
        match read(&path) {
            Ok(Some(bytes)) => Ok(Some(bytes)),
            Ok(None) => Err(StorageError::Corrupt { path, detail: "it is longer than any blob".to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StorageError::of_io(&path, error)),
        }
    }

    /// Removes a file, if it is there.
    pub(super) fn delete(&self, key: &[u8]) -> Result<(), StorageError> {
        let path = self.path(key);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StorageError::of_io(&path, error)),
            _ => Ok(()),
        }
    }

    /// The keys that start with `prefix` and have a file. What has another kind of name is nobody's.
    pub(super) fn keys(&self, prefix: &[u8]) -> Result<BTreeSet<Vec<u8>>, StorageError> {
        let at = |source| StorageError::of_io(&self.dir, source);
        let mut keys = BTreeSet::new();
        for entry in fs::read_dir(&self.dir).map_err(at)? {
            let key = entry.map_err(at)?.file_name().to_str().and_then(key_of);
            keys.extend(key.filter(|key| key.starts_with(prefix)));
        }
        Ok(keys)
    }

    /// Makes what was written durable, names after contents: before the database commits. A failure must poison it.
    pub(super) fn sync(&self) -> Result<(), StorageError> {
        let unsynced = self.unsynced.take();
        if unsynced.is_empty() {
            return Ok(());
        }
        for (path, file) in unsynced {
            file.sync_data().map_err(|source| StorageError::of_io(&path, source))?;
        }
        let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
        synced.map_err(|source| StorageError::of_io(&self.dir, source))
    }
}

fn write(mut file: &File, content: Content<'_>) -> io::Result<Digest> {
    let mut digester = Digester::default();
    content.each_piece(|piece| {
        faults::point("ledger-in-file");
        digester.add(piece);
        file.write_all(piece)
    })?;
    Ok(digester.digest())
}

/// All of a file; nothing when it is longer than what is ever written.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    if len > limits::TRANSFER_BYTES {
        return Ok(None);
    }
    let mut bytes = Vec::with_capacity(usize::try_from(len).map_err(io::Error::other)?);
    file.take(limits::TRANSFER_BYTES).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

fn key_of(name: &str) -> Option<Vec<u8>> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = name.as_bytes().as_chunks();
    let key = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect();
    if rest.is_empty() { key } else { None }
}

//! Notices when committed writes have vanished.
//!
//! When a segment is damaged or the file is cut, sled may open without complaint and without the newest writes: recovery
//! takes a bad checksum for the end of the log. So commits are counted twice, in the store and in a file next to it; a
//! store that has counted fewer than the file has lost some. A page lost from the middle is not noticed here: readers
//! check that positions follow each other and that chunks are complete (measured: docs/adr/0003).
//!
//! ```text
//!  commits   0         8                16
//!            ┌─────────┬────────────────┐
//!            │ count   │ first 8 bytes  │   written in place after each commit, without a sync of its own: after
//!            │ u64 be  │ of its BLAKE3  │   power loss it may be too low, never too high
//!            └─────────┴────────────────┘
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use anabranch_common::ids::Digest;

use super::StorageError;

const FILE: &str = "commits";
const TREE: &str = "commits";
const KEY: &[u8] = b"count";

pub(super) struct CommitMark {
    tree: sled::Tree,
    file: File,
    count: u64,
}

impl CommitMark {
    /// Compares the two counts.
    pub(super) fn open(dir: &Path, db: &sled::Db) -> Result<Self, StorageError> {
        let of_sled = |error| StorageError::of_sled(dir, error);
        let path = dir.join(FILE);
        let of_io = |source| StorageError::of_io(&path, source);
        let tree = db.open_tree(TREE).map_err(of_sled)?;
        let stored = tree.get(KEY).map_err(of_sled)?;
        let count = stored.and_then(|value| Some(u64::from_be_bytes((&*value).try_into().ok()?))).unwrap_or(0);
        let mut options = File::options();
        let file =
            options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(of_io)?;
        match read(&file).map_err(of_io)? {
            Some(marked) if marked > count => {
                let detail = format!("{marked} commits were made and it holds {count} of them");
                Err(StorageError::Corrupt { path: dir.to_owned(), detail })
            }
            _ => Ok(Self { tree, file, count }),
        }
    }

    /// Counts a commit in the store; before its flush.
    pub(super) fn begin(&mut self) -> sled::Result<()> {
        self.tree.insert(KEY, &(self.count + 1).to_be_bytes())?;
        Ok(())
    }

    /// Counts a commit in the file; after its sync.
    pub(super) fn done(&mut self) -> io::Result<()> {
        self.count += 1;
        self.file.write_all_at(&encode(self.count), 0)
    }
}

fn encode(count: u64) -> [u8; 16] {
    let count = count.to_be_bytes();
    let mut out = [0; 16];
    out[..8].copy_from_slice(&count);
    out[8..].copy_from_slice(&Digest::of(&count).0[..8]);
    out
}

/// The count in the file; nothing if it is new, or was torn by power loss.
fn read(file: &File) -> io::Result<Option<u64>> {
    let mut bytes = [0; 16];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let count = bytes.first_chunk().map(|count| u64::from_be_bytes(*count));
    Ok(count.filter(|count| encode(*count) == bytes))
}

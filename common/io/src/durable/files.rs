//! Numbered files beside a database, so that long contents do not pass through sled's log.
//!
//! ```text
//!  store/bulk/0000000000000003    bytes and nothing else; the name is the file's number
//! ```
//! A file is created under its final name and grows at its end. The database names it, or a part
//! of it, with a checksum or a digest, and only when file and directory have been synced:
//!
//! ```text
//!  files ─► sync ─► directory ─► sync ─► names in the database ─► its commit ─► files that it no longer names are removed
//! ```
//! A crash leaves a file whole, in part, or not at all. The owner removes files that the database
//! does not name when it opens them, and never uses a number again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anabranch_common::limits;
use parking_lot::Mutex;

use super::{StorageError, create_private_dir};

/// What may be done to the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everything.
    Write,
    /// They are read; none is created or removed.
    Read,
}

/// The files of one directory, and which of them are not synced yet.
#[derive(Debug)]
pub struct Files {
    dir: PathBuf,
    access: Access,
    unsynced: Mutex<Unsynced>,
}

#[derive(Debug, Default)]
struct Unsynced {
    /// Kept open: the kernel reports a failed write-back to descriptors that were open when it
    /// happened.
    written: BTreeMap<u64, Arc<File>>,
    /// Whether a name is new.
    created: bool,
}

/// A file that is being written.
#[derive(Debug)]
pub struct Growing {
    /// Its number.
    pub number: u64,
    /// Its length in bytes.
    pub len: u64,
    file: Arc<File>,
}

impl Files {
    /// Opens the files in `dir`. With [`Access::Write`] it is created when it is not there.
    ///
    /// # Errors
    /// The directory cannot be created.
    pub fn open(dir: PathBuf, access: Access) -> Result<Self, StorageError> {
        if access == Access::Write {
            create_private_dir(&dir)?;
        }
        Ok(Self { dir, access, unsynced: Mutex::default() })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns where a file lies.
    #[must_use]
    pub fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:016x}"))
    }

    /// Returns the error for a file that is not what the database says of it.
    #[must_use]
    pub fn damaged(&self, number: u64, what: &str) -> StorageError {
        StorageError::Corrupt { path: self.path(number), detail: what.to_owned() }
    }

    fn error(&self, number: u64) -> impl Fn(io::Error) -> StorageError {
        let path = self.path(number);
        move |source| StorageError::of_io(&path, source)
    }

    /// Creates a file.
    ///
    /// # Errors
    /// It is there already, or the storage fails.
    pub fn create(&self, number: u64) -> Result<Growing, StorageError> {
        if self.access == Access::Read {
            return Err(StorageError::of_io(&self.dir, io::ErrorKind::ReadOnlyFilesystem.into()));
        }
        let opened = File::options().write(true).create_new(true).mode(0o600).open(self.path(number));
        let file = Arc::new(opened.map_err(self.error(number))?);
        let mut unsynced = self.unsynced.lock();
        unsynced.created = true;
        unsynced.written.insert(number, Arc::clone(&file));
        Ok(Growing { number, len: 0, file })
    }

    /// Writes bytes at the end of a file, and returns where they begin. They are durable after
    /// [`sync`](Self::sync).
    ///
    /// # Errors
    /// The storage fails.
    pub fn append(&self, growing: &mut Growing, bytes: &[u8]) -> Result<u64, StorageError> {
        let offset = growing.len;
        growing.file.write_all_at(bytes, offset).map_err(self.error(growing.number))?;
        growing.len += bytes.len() as u64;
        self.unsynced.lock().written.entry(growing.number).or_insert_with(|| Arc::clone(&growing.file));
        Ok(offset)
    }

    /// Returns what a file holds, whole or not; `None` when there is no such file.
    ///
    /// # Errors
    /// It is longer than [`limits::TRANSFER_BYTES`], or the storage fails.
    pub fn read(&self, number: u64) -> Result<Option<Vec<u8>>, StorageError> {
        match fs::metadata(self.path(number)).map(|metadata| metadata.len()) {
            Ok(len @ ..=limits::TRANSFER_BYTES) => self.read_at(number, 0, len),
            Ok(_) => Err(self.damaged(number, "it is longer than any blob")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.error(number)(error)),
        }
    }

    /// Returns `len` bytes of a file; `None` when there is no such file.
    ///
    /// # Errors
    /// The file ends before they do, or the storage fails.
    pub fn read_at(&self, number: u64, offset: u64, len: u64) -> Result<Option<Vec<u8>>, StorageError> {
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| self.damaged(number, "it is too long"))?];
        match File::open(self.path(number)).and_then(|file| file.read_exact_at(&mut bytes, offset)) {
            Ok(()) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self.damaged(number, "it ends too early"))
            }
            Err(error) => Err(self.error(number)(error)),
        }
    }

    /// Removes a file, if it is there. No commit of the database may name it any more.
    ///
    /// # Errors
    /// The storage fails.
    pub fn remove(&self, number: u64) -> Result<(), StorageError> {
        if self.access == Access::Read {
            return Ok(());
        }
        self.forget(number);
        match fs::remove_file(self.path(number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.error(number)(error)),
            _ => Ok(()),
        }
    }

    /// Leaves a file out of the next sync: nothing in it counts, and it is about to be removed.
    pub fn forget(&self, number: u64) {
        self.unsynced.lock().written.remove(&number);
    }

    /// Returns the numbers of the files that are there.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn numbers(&self) -> Result<BTreeSet<u64>, StorageError> {
        let listed = fs::read_dir(&self.dir).and_then(|entries| {
            let name = |entry: io::Result<fs::DirEntry>| entry.map(|entry| entry.file_name());
            entries.map(name).collect::<io::Result<Vec<_>>>()
        });
        let number = |name: &str| u64::from_str_radix(name, 16).ok().filter(|_| name.len() == 16);
        match listed {
            Ok(names) => Ok(names.iter().filter_map(|name| name.to_str().and_then(number)).collect()),
            // Whoever only reads finds nothing where nothing was ever written.
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.access == Access::Read => Ok(BTreeSet::new()),
            Err(error) => Err(StorageError::of_io(&self.dir, error)),
        }
    }

    /// Makes what was written durable, names after contents. To be called in
    /// [`DurableDb::commit_after`](super::DurableDb::commit_after), so that a failure poisons the
    /// database.
    ///
    /// # Errors
    /// The storage fails.
    pub fn sync(&self) -> Result<(), StorageError> {
        let Unsynced { written, created } = std::mem::take(&mut *self.unsynced.lock());
        for (number, file) in written {
            file.sync_data().map_err(self.error(number))?;
        }
        if created {
            let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
            synced.map_err(|source| StorageError::of_io(&self.dir, source))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn open(dir: &Path, access: Access) -> Files {
        Files::open(dir.join("bulk"), access).expect("opens")
    }

    fn write(files: &Files, number: u64, pieces: &[&[u8]]) -> Vec<u64> {
        let mut file = files.create(number).expect("creates");
        let offsets = pieces.iter().map(|piece| files.append(&mut file, piece).expect("appends")).collect();
        assert_eq!(file.len, pieces.iter().map(|piece| piece.len() as u64).sum::<u64>());
        offsets
    }

    #[test]
    fn a_file_is_read_whole_and_in_parts_and_its_number_is_taken() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let files = open(dir.path(), Access::Write);
        assert_eq!(write(&files, 255, &[b"one", b"", b"three"]), [0, 3, 3]);
        for _ in 0..2 {
            assert_eq!(files.read(255).expect("reads").as_deref(), Some(&b"onethree"[..]));
            assert_eq!(files.read_at(255, 3, 5).expect("reads").as_deref(), Some(&b"three"[..]));
            files.sync().expect("syncs");
        }
        let path = dir.path().join("bulk/00000000000000ff");
        assert_eq!(files.path(255), path);
        assert_eq!(fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o600);
        files.create(255).expect_err("no file is written over");
        assert_eq!((files.read(1).expect("reads"), files.read_at(1, 0, 1).expect("reads")), (None, None));
    }

    #[test]
    fn a_file_that_ends_too_early_is_damage_by_its_name() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let files = open(dir.path(), Access::Write);
        write(&files, 7, &[b"0123456789"]);
        for (offset, len) in [(0, 11), (9, 2), (10, 1), (u64::from(u32::MAX), 1)] {
            let error = files.read_at(7, offset, len).expect_err("beyond its end");
            assert!(matches!(&error, StorageError::Corrupt { path, .. } if *path == files.path(7)), "{error}");
        }
        assert_eq!(files.read_at(7, 10, 0).expect("nothing"), Some(Vec::new()));
    }

    #[test]
    fn numbers_are_those_of_files_with_such_names_and_go_with_them() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let files = open(dir.path(), Access::Write);
        (1..4).for_each(|number| _ = write(&files, number, &[b"x"]));
        for name in ["lock", "4", "00000000000000fg", "00000000000000004"] {
            fs::write(dir.path().join("bulk").join(name), b"another's").expect("writes");
        }
        assert_eq!(files.numbers().expect("lists"), BTreeSet::from([1, 2, 3]));
        files.remove(2).expect("removes");
        files.remove(2).expect("is not there");
        assert_eq!(files.numbers().expect("lists"), BTreeSet::from([1, 3]));
        files.sync().expect("what was removed is not synced");
    }

    #[test]
    fn reading_creates_and_removes_nothing() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let reader = open(dir.path(), Access::Read);
        assert!(!dir.path().join("bulk").exists());
        assert_eq!(reader.numbers().expect("lists"), BTreeSet::new());
        write(&open(dir.path(), Access::Write), 1, &[b"x"]);
        assert_eq!(reader.read(1).expect("reads").as_deref(), Some(&b"x"[..]));
        assert!(matches!(reader.create(2), Err(StorageError::Permission { .. })));
        reader.remove(1).expect("does nothing");
        assert!(reader.path(1).exists());
    }

    /// A new name that cannot be made durable is an error, once; afterwards the caller's database
    /// is poisoned.
    #[test]
    fn a_sync_covers_every_name_and_every_later_write() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let files = open(dir.path(), Access::Write);
        let mut file = files.create(1).expect("creates");
        files.sync().expect("syncs");
        assert!(files.unsynced.lock().written.is_empty());
        files.append(&mut file, b"more").expect("appends");
        assert_eq!(files.unsynced.lock().written.len(), 1, "a file that was synced is written to again");
        files.forget(1);
        files.sync().expect("nothing is left to sync");
        write(&files, 2, &[b"x"]);
        fs::rename(dir.path().join("bulk"), dir.path().join("away")).expect("moves");
        files.sync().expect_err("the directory cannot be synced");
    }
}

//! One process a directory.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use super::{LockHolder, StorageError};

use anabranch_common::limits;

/// Held while this process uses a directory; the system lets go of it when the process ends, however it ends. The file
/// stays behind on purpose: removing it would let two processes lock two files of the same name.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a child that this process is just starting has a copy of the descriptor until it executes.
        // Should unlocking fail, closing is what is left.
        let _ = self.file.unlock();
    }
}

impl Lock {
    /// Locks a directory that is there.
    ///
    /// # Errors
    /// Another process has it, or the file of the lock cannot be used.
    pub fn acquire(dir: &Path) -> Result<Self, StorageError> {
        let path = dir.join("lock");
        let at = |source| StorageError::of_io(&path, source);
        let mut options = File::options();
        // Not truncated: until the lock is ours, the content is the other process's.
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&path).map_err(at)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StorageError::Locked { path: dir.to_owned(), holder: holder_of(&mut file) });
            }
            Err(TryLockError::Error(source)) => return Err(at(source)),
        }
        file.set_len(0).map_err(at)?;
        file.rewind().map_err(at)?;
        writeln!(file, "{}", std::process::id()).map_err(at)?;
        Ok(Self { file })
    }
}

/// Held while this process reads a directory that no process may write meanwhile. Readers share it. It creates and writes
/// nothing.
#[derive(Debug)]
pub struct ReadLock {
    /// None where no process has used the directory yet.
    file: Option<File>,
}

impl Drop for ReadLock {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            // As above.
            let _ = file.unlock();
        }
    }
}

impl ReadLock {
    /// Locks a directory, if a process has ever used it.
    ///
    /// # Errors
    /// A process writes there, or the file of the lock cannot be used.
    pub fn acquire(dir: &Path) -> Result<Self, StorageError> {
        let path = dir.join("lock");
        let at = |source| StorageError::of_io(&path, source);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self { file: None }),
            Err(error) => return Err(at(error)),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(Self { file: Some(file) }),
            Err(TryLockError::WouldBlock) => {
                Err(StorageError::Locked { path: dir.to_owned(), holder: LockHolder::of_writer(read_pid(&mut file)) })
            }
            Err(TryLockError::Error(source)) => Err(at(source)),
        }
    }
}

/// Whether a process writes to the store in a directory, as far as its lock tells. Costs no copy of the store.
#[must_use]
pub fn is_written(dir: &Path) -> bool {
    matches!(ReadLock::acquire(dir), Err(StorageError::Locked { .. }))
}

/// Returns who keeps `file` from being locked. The process id in the file is the latest writer's, which may have ended long
/// ago: readers write none.
fn holder_of(file: &mut File) -> LockHolder {
    match file.try_lock_shared() {
        Ok(()) => {
            // Closing, which comes next, does the same.
            let _ = file.unlock();
            LockHolder::Readers
        }
        Err(_) => LockHolder::of_writer(read_pid(file)),
    }
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(limits::LOCK_FILE_BYTES).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by the power tests: a store could not be opened again while another thread was starting a process.
    #[test]
    fn a_copy_of_the_descriptor_does_not_keep_the_lock() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let lock = Lock::acquire(dir.path()).expect("free");
        let copy = lock.file.try_clone().expect("a copy");
        Lock::acquire(dir.path()).expect_err("held");
        drop(lock);
        Lock::acquire(dir.path()).expect("free again");
        drop(copy);
    }

    /// A reader leaves the process id of the latest writer in the file, which would send an operator to a dead process.
    #[test]
    fn a_reader_is_not_taken_for_the_writer_before_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        drop(Lock::acquire(dir.path()).expect("free"));
        let readers = [(); 2].map(|()| ReadLock::acquire(dir.path()).expect("readers share"));
        let error = Lock::acquire(dir.path()).expect_err("held by readers");
        assert!(matches!(&error, StorageError::Locked { holder: LockHolder::Readers, .. }), "{error}");
        assert!(!error.to_string().contains("process "), "{error}");
        drop(readers);
        assert!(!is_written(dir.path()));
        let _writer = Lock::acquire(dir.path()).expect("free again");
        assert!(is_written(dir.path()));
        let error = ReadLock::acquire(dir.path()).expect_err("held by a writer");
        let own = LockHolder::Process(std::process::id());
        assert!(matches!(&error, StorageError::Locked { holder, .. } if *holder == own), "{error}");
    }
}
